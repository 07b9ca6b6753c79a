// Rows of keys and values as integers, the same bits in every table; and the tables' names.
#ifndef TANDEM_ATTENTION_ROWS_H
#define TANDEM_ATTENTION_ROWS_H

#include "CAttention.h"
#include "numbers.h"

extern const tk_attention tk_attention_scalar, tk_attention_avx2, tk_attention_avx512;

/// Integers in -127 ... 127 and their scale; a row with anything that is not finite expands to NaN.
static inline void store_i8(void *row, void *scale, const float *x, size_t dim) {
    uint32_t largest_bits = 0;
    for (size_t i = 0; i < dim; i++) {
        uint32_t bits = float_bits(x[i]) & 0x7fffffff;
        largest_bits = bits > largest_bits ? bits : largest_bits;
    }
    const float largest = bits_float(largest_bits);
    // Below the smallest normal number the inverse is infinite: such a row is 0.
    const int finite = largest_bits < 0x7f800000, tiny = largest < 1e-36f;
    const float step = finite ? (tiny ? 0 : largest / 127) : __builtin_nanf("");
    const float inverse = finite && !tiny ? 127 / largest : 0;
    memcpy(scale, &step, sizeof step);
    int8_t *to = row;
    if (inverse == 0) {
        memset(to, 1, dim);
        return;
    }
    // Adding 1.5 * 2^23 rounds to the nearest integer, ties to even, and leaves it in the lowest bits.
    for (size_t i = 0; i < dim; i++) to[i] = (int8_t)(float_bits(x[i] * inverse + 0x1.8p23f) & 0xff);
}

/// Asks for one row of the tile that comes next.
static inline __attribute__((always_inline)) void prefetch_row(const uint8_t *row, size_t bytes) {
    for (size_t byte = 0; byte < bytes; byte += 64) __builtin_prefetch(row + byte, 0, 3);
}

#endif
