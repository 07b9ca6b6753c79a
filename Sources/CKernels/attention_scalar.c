// Attention in plain C: the fallback, and what the others are tested against.
#include <math.h>

#include "attention_rows.h"

#pragma STDC FP_CONTRACT OFF

enum { LANES = 8 };

static void expand_row(float *to, const uint8_t *row, float scale, tk_kv_element element, size_t dim) {
    switch (element) {
    case TK_KV_F32: memcpy(to, row, dim * sizeof(float)); return;
    case TK_KV_F16:
        for (size_t i = 0; i < dim; i++) to[i] = f16_float(((const uint16_t *)row)[i]);
        return;
    case TK_KV_BF16:
        for (size_t i = 0; i < dim; i++) to[i] = bf16_float(((const uint16_t *)row)[i]);
        return;
    case TK_KV_I8:
        for (size_t i = 0; i < dim; i++) to[i] = (float)((const int8_t *)row)[i] * scale;
        return;
    }
}

#define gather_keys(keys, found, next, element, dim) \
    gather_keys_of(keys, (found)->rows, (found)->scales, (next)->rows, element, dim)
static void gather_keys_of(
    float *keys, const uint8_t *const *rows, const float *scales, const uint8_t *const *next, tk_kv_element element,
    size_t dim) {
    (void)next;
    float expanded[TK_DIM_MAX];
    for (size_t position = 0; position < TK_TILE_POSITIONS; position++) {
        expand_row(expanded, rows[position], scales[position], element, dim);
        for (size_t i = 0; i < dim; i++) keys[i * TK_TILE_POSITIONS + position] = expanded[i];
    }
}

#define gather_values(values, found, next, element, low, high, dim, padded) \
    gather_values_of(values, (found)->rows, (found)->scales, (next)->rows, element, low, high, dim, padded)
static void gather_values_of(
    float *values, const uint8_t *const *rows, const float *scales, const uint8_t *const *next, tk_kv_element element,
    size_t low, size_t high, size_t dim, size_t padded) {
    (void)next;
    for (size_t position = low; position < high; position++) {
        expand_row(values + position * padded, rows[position], scales[position], element, dim);
        for (size_t i = dim; i < padded; i++) values[position * padded + i] = 0;
    }
}

static void score_rows(float *scores, const float *q, const float *keys, size_t rows, size_t dim) {
    for (size_t row = 0; row < rows; row++) {
        float sums[TK_TILE_POSITIONS] = {0};
        for (size_t i = 0; i < dim; i++) {
            const float factor = q[row * dim + i];
            for (size_t t = 0; t < TK_TILE_POSITIONS; t++) sums[t] += factor * keys[i * TK_TILE_POSITIONS + t];
        }
        memcpy(scores + row * TK_SEGMENT_POSITIONS, sums, sizeof sums);
    }
}

/// Turns scores low ..< high into weights against their maximum.
static void softmax_segment(float *scores, float *maximum, float *total, size_t low, size_t high) {
    float largest = scores[low], lanes[LANES] = {0};
    for (size_t i = low; i < high; i++) largest = scores[i] > largest ? scores[i] : largest;
    for (size_t i = low; i < high; i++) {
        scores[i] = expf(scores[i] - largest);
        lanes[i % LANES] += scores[i];
    }
    *maximum = largest;
    *total = ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static void accumulate_rows(
    float *sums, const float *weights, const float *values, size_t rows, size_t low, size_t high, size_t padded,
    int starts) {
    if (starts) memset(sums, 0, rows * padded * sizeof(float));
    for (size_t row = 0; row < rows; row++)
        for (size_t t = low; t < high; t++) {
            const float weight = weights[row * TK_SEGMENT_POSITIONS + t];
            for (size_t i = 0; i < padded; i++) sums[row * padded + i] += weight * values[t * padded + i];
        }
}

static void merge_row(
    float *sums, float *total, float power, const float *part, float part_total, float part_power, size_t padded) {
    const float factor = expf(power), part_factor = expf(part_power);
    for (size_t i = 0; i < padded; i++) sums[i] = sums[i] * factor + part[i] * part_factor;
    *total = *total * factor + part_total * part_factor;
}

static void finish_row(float *out, const float *sums, float total, size_t dim) {
    for (size_t i = 0; i < dim; i++) out[i] = sums[i] / total;
}

#include "attention.h"

static void store_row(void *row, void *scale, const float *x, tk_kv_element element, size_t dim) {
    switch (element) {
    case TK_KV_F32: memcpy(row, x, dim * sizeof(float)); return;
    case TK_KV_F16:
        for (size_t i = 0; i < dim; i++) ((uint16_t *)row)[i] = float_f16(x[i]);
        return;
    case TK_KV_BF16:
        for (size_t i = 0; i < dim; i++) ((uint16_t *)row)[i] = float_bf16(x[i]);
        return;
    case TK_KV_I8: store_i8(row, scale, x, dim); return;
    }
}

const tk_attention tk_attention_scalar = {attend, attend_segment, attend_merge, store_row};
