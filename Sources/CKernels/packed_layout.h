// Where things lie in packed panels and in prepared rows; shared by all tables.
#ifndef TANDEM_PACKED_LAYOUT_H
#define TANDEM_PACKED_LAYOUT_H

#include "CPacked.h"
#include "numbers.h"

enum {
    PANEL = TK_PANEL_OUTPUTS,
    BLOCK = TK_BLOCK_INPUTS,
    /// Blocks of a super block of the K formats.
    SUPER = 8,
    /// Groups of four inputs in a block.
    QUADS = 8,
    /// Bytes of one such group in a panel: 32 outputs times 4.
    QUAD_BYTES = PANEL * 4,
    CODE_BYTES = PANEL * BLOCK,
    NIBBLE_BYTES = CODE_BYTES / 2,
    /// f16 scales of 32 outputs.
    SCALE_BYTES = PANEL * 2,
    /// Rows whose partial sums are kept beside each other while a panel passes by.
    CHUNK_ROWS = 48,
};

/// Bytes before the first block of a super block, and of a block with its scales.
static inline size_t super_bytes(tk_packed_format format) {
    switch (format) {
    case TK_PACKED_Q4_K:
    case TK_PACKED_Q5_K: return 2 * SCALE_BYTES;
    case TK_PACKED_Q6_K: return SCALE_BYTES;
    case TK_PACKED_Q8_0:
    case TK_PACKED_Q4_0:
    case TK_PACKED_BF16: return 0;
    }
    return 0;
}

static inline size_t block_bytes(tk_packed_format format) {
    switch (format) {
    case TK_PACKED_Q8_0: return SCALE_BYTES + CODE_BYTES;
    case TK_PACKED_Q4_0: return SCALE_BYTES + NIBBLE_BYTES;
    // A byte of scale and one of minimum (or two of scale) for each output.
    case TK_PACKED_Q4_K: return 2 * PANEL + NIBBLE_BYTES;
    case TK_PACKED_Q5_K: return 2 * PANEL + NIBBLE_BYTES + CODE_BYTES / 8;
    case TK_PACKED_Q6_K: return 2 * PANEL + NIBBLE_BYTES + CODE_BYTES / 4;
    case TK_PACKED_BF16: return 2 * CODE_BYTES;
    }
    return 0;
}

/// What is added to a value to make its code unsigned.
static inline int code_offset(tk_packed_format format) {
    switch (format) {
    case TK_PACKED_Q8_0: return 128;
    case TK_PACKED_Q4_0: return 8;
    case TK_PACKED_Q6_K: return 32;
    case TK_PACKED_Q4_K:
    case TK_PACKED_Q5_K:
    case TK_PACKED_BF16: return 0;
    }
    return 0;
}

static inline size_t blocks_of(size_t inputs) { return (inputs + BLOCK - 1) / BLOCK; }

/// Where a block of a panel starts; its super block's scales lie `super_bytes` before block 0 of it.
static inline size_t block_offset(tk_packed_format format, size_t block) {
    size_t head = super_bytes(format);
    return block * block_bytes(format) + (head == 0 ? 0 : (block / SUPER + 1) * head);
}

/// A prepared block of form Q8; a row is [blocks] of them.
typedef struct q8_block {
    int8_t codes[BLOCK];
    float scale;
    /// scale times the sum of the codes; where the scale is a power of two, its exponent (NaN with it).
    float product;
    /// What unsigned weight codes add too much, for an offset of 128: -128 times the sum of the codes ...
    int32_t start;
    /// ... and of their first half.
    int32_t half_start;
} q8_block;

_Static_assert(sizeof(q8_block) == 48, "a prepared block has no padding");

/// What a block's codes are multiplied with: such that the largest magnitude is 127, or the next power of two.
static inline __attribute__((always_inline)) float input_scale(float most, const int is_power) {
    const float scale = most / 127;
    if (!is_power) return scale;
    const uint32_t bits = float_bits(scale), power = bits & 0x7f800000;
    return bits_float(bits == power ? power : power + 0x00800000);
}

/// The exponent of a normal power of two.
static inline __attribute__((always_inline)) float power_of(float scale) {
    return (float)((int32_t)(float_bits(scale) >> 23) - 127);
}

static inline __attribute__((always_inline)) void write_row(
    float *restrict target, const float *restrict from, const float *restrict bias, int accumulate, size_t columns) {
    if (bias && accumulate)
        for (size_t c = 0; c < columns; c++) target[c] += from[c] + bias[c];
    else if (bias)
        for (size_t c = 0; c < columns; c++) target[c] = from[c] + bias[c];
    else if (accumulate)
        for (size_t c = 0; c < columns; c++) target[c] += from[c];
    else
        for (size_t c = 0; c < columns; c++) target[c] = from[c];
}

/// Sums of `rows` x 32 outputs to y: plus bias, onto what y holds or not. Plain C that compilers put
/// into vectors; `sums` has 32 floats a row.
static inline __attribute__((always_inline)) void write_out(
    float *y, const float *sums, const float *bias, int accumulate, size_t rows, size_t columns, size_t y_stride) {
    for (size_t r = 0; r < rows; r++)
        if (columns == PANEL)
            write_row(y + r * y_stride, sums + r * PANEL, bias, accumulate, PANEL);
        else
            write_row(y + r * y_stride, sums + r * PANEL, bias, accumulate, columns);
}

#endif
