// Number formats in plain C, shared by the tables for what has no vector form and for tails.
#ifndef TANDEM_NUMBERS_H
#define TANDEM_NUMBERS_H

#include <string.h>

#include "CKernels.h"

static inline float bits_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline uint32_t float_bits(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float bf16_float(uint16_t h) { return bits_float((uint32_t)h << 16); }

static inline uint16_t float_bf16(float value) {
    uint32_t bits = float_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)((bits >> 16) | 0x40);
    return (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

static inline float f16_float(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t magnitude = h & 0x7fff;
    if (magnitude >= 0x7c00) return bits_float(sign | 0x7f800000 | (magnitude & 0x3ff) << 13);
    if (magnitude >= 0x0400) return bits_float(sign | ((magnitude << 13) + 0x38000000));
    float small = (float)magnitude * 0x1p-24f;
    return bits_float(sign | float_bits(small));
}

static inline uint16_t float_f16(float value) {
    uint32_t bits = float_bits(value);
    uint16_t sign = (uint16_t)((bits >> 16) & 0x8000);
    uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return (uint16_t)(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
    if (magnitude >= 0x47800000) return (uint16_t)(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Subnormal: adding 0.5 puts the right bits, rounded to nearest even, at the bottom.
        float shifted = bits_float(magnitude) + 0.5f;
        return (uint16_t)(sign | (uint16_t)(float_bits(shifted) - 0x3f000000));
    }
    uint32_t rounded = magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1);
    return (uint16_t)(sign | (uint16_t)(rounded >> 13));
}

static inline size_t element_bytes(tk_element element) { return element == TK_F32 ? 4 : 2; }

static inline size_t min_size(size_t a, size_t b) { return a < b ? a : b; }
static inline size_t max_size(size_t a, size_t b) { return a > b ? a : b; }

/// Rows of x worth keeping in the second-level cache while all columns pass by: a multiple of step.
static inline size_t rows_in_cache(size_t in, size_t step) {
    size_t rows = (512 * 1024) / (in * sizeof(float) + 1);
    return max_size(step, rows / step * step);
}

#endif
