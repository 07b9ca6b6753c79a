// Packing of panels and preparing of inputs, in plain C that is compiled once for each instruction set:
// the including file sets the target and defines `transpose_codes`.
#ifndef TANDEM_PACKED_PACK_H
#define TANDEM_PACKED_PACK_H

#include "packed_layout.h"

#pragma STDC FP_CONTRACT OFF

// MARK: Inputs

#ifndef HAS_PREPARE_BLOCK
/// One block: 127 stands for the largest magnitude, or somewhat less does. What is not finite makes the scale NaN, and with it
/// every product.
static inline __attribute__((always_inline)) void prepare_block(
    q8_block *restrict block, const float *restrict x, const int is_power) {
    uint32_t largest = 0;
    for (size_t i = 0; i < BLOCK; i++) {
        uint32_t magnitude = float_bits(x[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    const int is_finite = largest < 0x7f800000, is_zero = largest < 0x0d800000;  // 2^-100
    const float most = is_finite ? is_zero ? 0 : bits_float(largest) : bits_float(0x7fc00000);
    const float scale = is_finite && !is_zero ? input_scale(most, is_power) : most;
    const float inverse = is_finite && !is_zero ? is_power ? 1 / scale : 127 / most : 0;
    int32_t values[BLOCK], low = 0, high = 0;
    // Adding 1.5 * 2^23 rounds to nearest, ties to even.
    for (size_t i = 0; i < BLOCK; i++)
        values[i] = (int32_t)(float_bits(x[i] * inverse + 0x1.8p23f) - float_bits(0x1.8p23f));
    for (size_t i = 0; i < BLOCK; i++) values[i] = is_finite ? values[i] : 0;
    for (size_t i = 0; i < BLOCK; i++) block->codes[i] = (int8_t)values[i];
    for (size_t i = 0; i < BLOCK / 2; i++) {
        low += values[i];
        high += values[i + BLOCK / 2];
    }
    block->scale = scale;
    block->product = !is_finite ? most : !is_power ? scale * (float)(low + high) : is_zero ? 0 : power_of(scale);
    block->start = -128 * (low + high);
    block->half_start = -128 * low;
}
#endif

static inline __attribute__((always_inline)) void prepare_q8(
    uint8_t *prepared, const float *x, const int is_power, size_t rows, size_t inputs, size_t x_stride, size_t first,
    size_t count) {
    const size_t stride = tk_prepared_stride(TK_INPUT_Q8, inputs);
    for (size_t r = 0; r < rows; r++) {
        q8_block *row = (q8_block *)(void *)(prepared + r * stride);
        for (size_t b = first / BLOCK; b < (first + count) / BLOCK; b++)
            prepare_block(row + b, x + r * x_stride + b * BLOCK, is_power);
    }
}

static inline __attribute__((always_inline)) void prepare_bf16(
    uint8_t *prepared, const float *x, size_t rows, size_t inputs, size_t x_stride, size_t first, size_t count) {
    const size_t stride = tk_prepared_stride(TK_INPUT_BF16, inputs);
    for (size_t r = 0; r < rows; r++) {
        uint16_t *target = (uint16_t *)(void *)(prepared + r * stride);
        const float *from = x + r * x_stride;
        for (size_t i = first; i < first + count; i++) target[i] = float_bf16(from[i]);
        if (first + count == inputs)
            for (size_t i = inputs; i < (inputs + 1) / 2 * 2; i++) target[i] = 0;
    }
}

static void prepare(
    uint8_t *prepared, const float *x, tk_input_form form, size_t rows, size_t inputs, size_t x_stride, size_t first,
    size_t count) {
    switch (form) {
    case TK_INPUT_Q8_POWERS: prepare_q8(prepared, x, 1, rows, inputs, x_stride, first, count); return;
    case TK_INPUT_Q8: prepare_q8(prepared, x, 0, rows, inputs, x_stride, first, count); return;
    case TK_INPUT_BF16: prepare_bf16(prepared, x, rows, inputs, x_stride, first, count); return;
    }
}

// MARK: Weights

/// The unsigned codes of block `b` of a file's row, and the bytes of its scales.
typedef struct row_block {
    uint8_t codes[BLOCK];
    uint8_t scales[2];   // f16 (Q8_0, Q4_0), or scale and minimum, or two scales
} row_block;

/// The 6-bit scale and minimum of one of 8 groups of Q4_K and Q5_K, as `dequant.c` has them.
static inline void group_bytes(const uint8_t *packed, size_t group, uint8_t *scale, uint8_t *minimum) {
    if (group < 4) {
        *scale = packed[group] & 63;
        *minimum = packed[group + 4] & 63;
    } else {
        *scale = (uint8_t)((packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4);
        *minimum = (uint8_t)((packed[group + 4] >> 4) | (packed[group] >> 6) << 4);
    }
}

static inline __attribute__((always_inline)) void split_nibbles(uint8_t *codes, const uint8_t *nibbles) {
    for (size_t i = 0; i < BLOCK / 2; i++) {
        codes[i] = nibbles[i] & 15;
        codes[i + BLOCK / 2] = nibbles[i] >> 4;
    }
}

static inline __attribute__((always_inline)) void read_block(
    row_block *out, const uint8_t *row, const tk_packed_format format, size_t b) {
    switch (format) {
    case TK_PACKED_Q8_0: {
        const uint8_t *block = row + b * 34;
        memcpy(out->scales, block, 2);
        for (size_t i = 0; i < BLOCK; i++) out->codes[i] = block[2 + i] ^ 0x80;
        return;
    }
    case TK_PACKED_Q4_0: {
        const uint8_t *block = row + b * 18;
        memcpy(out->scales, block, 2);
        split_nibbles(out->codes, block + 2);
        return;
    }
    case TK_PACKED_Q4_K: {
        const uint8_t *super = row + b / SUPER * 144, *q = super + 16 + b % SUPER / 2 * 32;
        group_bytes(super + 4, b % SUPER, out->scales, out->scales + 1);
        int shift = b % 2 ? 4 : 0;
        for (size_t i = 0; i < BLOCK; i++) out->codes[i] = q[i] >> shift & 15;
        return;
    }
    case TK_PACKED_Q5_K: {
        const uint8_t *super = row + b / SUPER * 176, *q = super + 48 + b % SUPER / 2 * 32, *fifth = super + 16;
        group_bytes(super + 4, b % SUPER, out->scales, out->scales + 1);
        int shift = b % 2 ? 4 : 0, bit = (int)(b % SUPER);
        for (size_t i = 0; i < BLOCK; i++)
            out->codes[i] = (uint8_t)((q[i] >> shift & 15) | (fifth[i] >> bit & 1) << 4);
        return;
    }
    case TK_PACKED_Q6_K: {
        const uint8_t *super = row + b / SUPER * 210;
        size_t run = b % SUPER, half = run / 4, quarter = run % 4;
        const uint8_t *low = super + half * 64 + quarter % 2 * 32, *high = super + 128 + half * 32;
        int low_shift = quarter < 2 ? 0 : 4, high_shift = (int)quarter * 2;
        memcpy(out->scales, super + 192 + run * 2, 2);
        for (size_t i = 0; i < BLOCK; i++)
            out->codes[i] = (uint8_t)((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4);
        return;
    }
    case TK_PACKED_BF16: return;
    }
}

/// Where a file's super block has its f16 scale (and, after it, its minimum).
static inline const uint8_t *super_scale(const uint8_t *row, tk_packed_format format, size_t super) {
    switch (format) {
    case TK_PACKED_Q4_K: return row + super * 144;
    case TK_PACKED_Q5_K: return row + super * 176;
    case TK_PACKED_Q6_K: return row + super * 210 + 208;
    case TK_PACKED_Q8_0:
    case TK_PACKED_Q4_0:
    case TK_PACKED_BF16: return row;
    }
    return row;
}

/// Codes by groups of four inputs to the bits that the format keeps of them.
static inline __attribute__((always_inline)) void squeeze(
    uint8_t *target, const uint8_t *codes, const tk_packed_format format) {
    if (format == TK_PACKED_Q8_0) {
        memcpy(target, codes, CODE_BYTES);
        return;
    }
    // Low nibbles are groups 0 to 3, high ones 4 to 7.
    for (size_t i = 0; i < NIBBLE_BYTES; i++)
        target[i] = (uint8_t)((codes[i] & 15) | (codes[i + NIBBLE_BYTES] & 15) << 4);
    uint8_t *more = target + NIBBLE_BYTES;
    if (format == TK_PACKED_Q5_K)
        for (size_t i = 0; i < CODE_BYTES / 8; i++) {
            uint8_t bits = 0;
            for (size_t bit = 0; bit < 8; bit++) bits |= (uint8_t)((codes[8 * i + bit] >> 4 & 1) << bit);
            more[i] = bits;
        }
    if (format == TK_PACKED_Q6_K)
        // Bits 2 i of the first 128 bytes are group i, of the second 128 group 4 + i.
        for (size_t half = 0; half < 2; half++)
            for (size_t i = 0; i < QUAD_BYTES; i++) {
                const uint8_t *from = codes + half * 4 * QUAD_BYTES + i;
                more[half * QUAD_BYTES + i] = (uint8_t)(
                    from[0] >> 4 | (from[QUAD_BYTES] >> 4) << 2 | (from[2 * QUAD_BYTES] >> 4) << 4
                    | (from[3 * QUAD_BYTES] >> 4) << 6);
            }
}

static inline __attribute__((always_inline)) void pack_codes(
    uint8_t *panel, const void *const *rows, const tk_packed_format format, size_t inputs) {
    _Alignas(64) uint8_t codes[PANEL][BLOCK];
    _Alignas(64) uint8_t ordered[CODE_BYTES];
    const size_t head = super_bytes(format), header = block_bytes(format) == SCALE_BYTES + CODE_BYTES ? SCALE_BYTES : 2 * PANEL;
    for (size_t b = 0; b < inputs / BLOCK; b++) {
        uint8_t *block = panel + block_offset(format, b);
        if (head != 0 && b % SUPER == 0)
            for (size_t o = 0; o < PANEL; o++) {
                const uint8_t *scale = rows[o] ? super_scale(rows[o], format, b / SUPER) : NULL;
                memset(block - head + 2 * o, 0, 2);
                if (scale) memcpy(block - head + 2 * o, scale, 2);
                if (head == 2 * SCALE_BYTES) {
                    memset(block - head + SCALE_BYTES + 2 * o, 0, 2);
                    if (scale) memcpy(block - head + SCALE_BYTES + 2 * o, scale + 2, 2);
                }
            }
        for (size_t o = 0; o < PANEL; o++) {
            row_block one = {{0}, {0}};
            if (rows[o]) read_block(&one, rows[o], format, b);
            memcpy(codes[o], one.codes, BLOCK);
            if (head == 0) {
                memcpy(block + 2 * o, one.scales, 2);
            } else {
                block[o] = one.scales[0];
                block[PANEL + o] = one.scales[1];
            }
        }
        transpose_codes(format == TK_PACKED_Q8_0 ? block + header : ordered, &codes[0][0]);
        if (format != TK_PACKED_Q8_0) squeeze(block + header, ordered, format);
    }
}

static inline __attribute__((always_inline)) void pack_q8_0(uint8_t *panel, const void *const *rows, size_t inputs) {
#ifdef HAS_PACK_Q8_0
    int is_full = 1;
    for (size_t o = 0; o < PANEL; o++) is_full &= rows[o] != NULL;
    if (is_full) {
        for (size_t b = 0; b < inputs / BLOCK; b++)
            pack_q8_0_block(panel + b * (SCALE_BYTES + CODE_BYTES), rows, b * 34);
        return;
    }
#endif
    pack_codes(panel, rows, TK_PACKED_Q8_0, inputs);
}

/// Pairs of inputs, 32 outputs beside each other. `transpose_codes` moves four bytes at a time, which
/// are such a pair.
static inline __attribute__((always_inline)) void pack_bf16(uint8_t *panel, const void *const *rows, size_t inputs) {
    _Alignas(64) uint8_t codes[PANEL][BLOCK];
    size_t pairs = (inputs + 1) / 2;
    for (size_t pair = 0; pair < pairs; pair += QUADS) {
        size_t here = min_size(QUADS, pairs - pair), values = min_size(2 * QUADS, inputs - 2 * pair);
        for (size_t o = 0; o < PANEL; o++) {
            if (!rows[o] || values < 2 * QUADS) memset(codes[o], 0, BLOCK);
            if (rows[o]) memcpy(codes[o], (const uint8_t *)rows[o] + 4 * pair, 2 * values);
        }
        if (here == QUADS) {
            transpose_codes(panel + pair * QUAD_BYTES, &codes[0][0]);
        } else {
            _Alignas(64) uint8_t ordered[CODE_BYTES];
            transpose_codes(ordered, &codes[0][0]);
            memcpy(panel + pair * QUAD_BYTES, ordered, here * QUAD_BYTES);
        }
    }
}

static void pack(uint8_t *panel, const void *const *rows, tk_packed_format format, size_t inputs) {
    switch (format) {
    case TK_PACKED_Q8_0: pack_q8_0(panel, rows, inputs); return;
    case TK_PACKED_Q4_0: pack_codes(panel, rows, TK_PACKED_Q4_0, inputs); return;
    case TK_PACKED_Q4_K: pack_codes(panel, rows, TK_PACKED_Q4_K, inputs); return;
    case TK_PACKED_Q5_K: pack_codes(panel, rows, TK_PACKED_Q5_K, inputs); return;
    case TK_PACKED_Q6_K: pack_codes(panel, rows, TK_PACKED_Q6_K, inputs); return;
    case TK_PACKED_BF16: pack_bf16(panel, rows, inputs); return;
    }
}

#endif
