// Attention in AVX2: eight positions per vector for scores, eight dimensions for sums of values.
#include "attention_rows.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

enum { LANES = 8, ROWS = 6, COLUMNS = 2 };
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

/// Eight elements from index i, as f32.
INLINE __m256 expand(const uint8_t *row, const tk_kv_element element, size_t i, __m256 scale) {
    switch (element) {
    case TK_KV_F32: return _mm256_loadu_ps((const float *)row + i);
    case TK_KV_F16: return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)row + i)));
    case TK_KV_BF16: {
        __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)row + i));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    case TK_KV_I8:
        return _mm256_mul_ps(
            _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)(row + i)))), scale);
    }
    return _mm256_setzero_ps();
}

/// One row as f32; the last vector is read from a padded copy.
INLINE void expand_row(float *to, const uint8_t *row, float scale, const tk_kv_element element, size_t dim) {
    const __m256 scales = _mm256_set1_ps(scale);
    size_t i = 0;
    for (; i + LANES <= dim; i += LANES) _mm256_storeu_ps(to + i, expand(row, element, i, scales));
    if (i < dim) {
        uint8_t padded[4 * LANES] = {0};
        memcpy(padded, row + tk_kv_row_bytes(element, i), tk_kv_row_bytes(element, dim - i));
        _mm256_storeu_ps(to + i, expand(padded, element, 0, scales));
    }
}

/// Eight rows of eight become eight columns.
INLINE void transpose(__m256 v[LANES]) {
    __m256 a[LANES];
    UNROLL for (size_t i = 0; i < LANES; i += 2) {
        a[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    UNROLL for (size_t i = 0; i < LANES; i += 4) {
        v[i] = _mm256_shuffle_ps(a[i], a[i + 2], 0x44);
        v[i + 1] = _mm256_shuffle_ps(a[i], a[i + 2], 0xee);
        v[i + 2] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0x44);
        v[i + 3] = _mm256_shuffle_ps(a[i + 1], a[i + 3], 0xee);
    }
    UNROLL for (size_t c = 0; c < 4; c++) {
        a[c] = _mm256_permute2f128_ps(v[c], v[c + 4], 0x20);
        a[c + 4] = _mm256_permute2f128_ps(v[c], v[c + 4], 0x31);
    }
    UNROLL for (size_t c = 0; c < LANES; c++) v[c] = a[c];
}

INLINE void gather_keys_of(
    float *keys, const uint8_t *const *rows, const float *scales, const uint8_t *const *next,
    const tk_kv_element element, size_t dim) {
    float expanded[LANES][TK_DIM_MAX];
    for (size_t group = 0; group < TK_TILE_POSITIONS; group += LANES) {
        for (size_t r = 0; r < LANES; r++) {
            prefetch_row(next[group + r], tk_kv_row_bytes(element, dim));
            expand_row(expanded[r], rows[group + r], element == TK_KV_I8 ? scales[group + r] : 0, element, dim);
        }
        for (size_t i = 0; i < dim; i += LANES) {
            __m256 v[LANES];
            UNROLL for (size_t r = 0; r < LANES; r++) v[r] = _mm256_loadu_ps(expanded[r] + i);
            transpose(v);
            UNROLL for (size_t c = 0; c < LANES; c++) {
                if (i + c >= dim) break;
                _mm256_storeu_ps(keys + (i + c) * TK_TILE_POSITIONS + group, v[c]);
            }
        }
    }
}

#define gather_keys(keys, found, next, element, dim) \
    gather_keys_any(keys, (found)->rows, (found)->scales, (next)->rows, element, dim)
static void gather_keys_any(
    float *keys, const uint8_t *const *rows, const float *scales, const uint8_t *const *next, tk_kv_element element,
    size_t dim) {
    switch (element) {
    case TK_KV_F32: gather_keys_of(keys, rows, scales, next, TK_KV_F32, dim); return;
    case TK_KV_F16: gather_keys_of(keys, rows, scales, next, TK_KV_F16, dim); return;
    case TK_KV_BF16: gather_keys_of(keys, rows, scales, next, TK_KV_BF16, dim); return;
    case TK_KV_I8: gather_keys_of(keys, rows, scales, next, TK_KV_I8, dim); return;
    }
}

INLINE void gather_values_of(
    float *values, const uint8_t *const *rows, const float *scales, const uint8_t *const *next,
    const tk_kv_element element, size_t low, size_t high, size_t dim, size_t padded) {
    for (size_t position = low; position < high; position++) {
        float *to = values + position * padded;
        prefetch_row(next[position], tk_kv_row_bytes(element, dim));
        expand_row(to, rows[position], element == TK_KV_I8 ? scales[position] : 0, element, dim);
        for (size_t i = (dim + LANES - 1) / LANES * LANES; i < padded; i += LANES)
            _mm256_storeu_ps(to + i, _mm256_setzero_ps());
    }
}

#define gather_values(values, found, next, element, low, high, dim, padded) \
    gather_values_any(values, (found)->rows, (found)->scales, (next)->rows, element, low, high, dim, padded)
static void gather_values_any(
    float *values, const uint8_t *const *rows, const float *scales, const uint8_t *const *next, tk_kv_element element,
    size_t low, size_t high, size_t dim, size_t padded) {
    switch (element) {
    case TK_KV_F32: gather_values_of(values, rows, scales, next, TK_KV_F32, low, high, dim, padded); return;
    case TK_KV_F16: gather_values_of(values, rows, scales, next, TK_KV_F16, low, high, dim, padded); return;
    case TK_KV_BF16: gather_values_of(values, rows, scales, next, TK_KV_BF16, low, high, dim, padded); return;
    case TK_KV_I8: gather_values_of(values, rows, scales, next, TK_KV_I8, low, high, dim, padded); return;
    }
}

/// Scores of `rows` queries (known when compiled) against two vectors of a tile of keys.
INLINE void score_tile(float *scores, const float *q, const float *keys, const size_t rows, size_t dim) {
    __m256 sums[ROWS][COLUMNS];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < COLUMNS; c++)
        sums[r][c] = _mm256_setzero_ps();
    for (size_t i = 0; i < dim; i++) {
        __m256 key[COLUMNS];
        UNROLL for (size_t c = 0; c < COLUMNS; c++) key[c] = _mm256_loadu_ps(keys + i * TK_TILE_POSITIONS + c * LANES);
        UNROLL for (size_t r = 0; r < rows; r++) {
            __m256 factor = _mm256_set1_ps(q[r * dim + i]);
            UNROLL for (size_t c = 0; c < COLUMNS; c++) sums[r][c] = _mm256_fmadd_ps(factor, key[c], sums[r][c]);
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < COLUMNS; c++)
        _mm256_storeu_ps(scores + r * TK_SEGMENT_POSITIONS + c * LANES, sums[r][c]);
}

/// How many rows the next register tile takes of those left: as even a split as there is.
INLINE size_t next_rows(size_t left) {
    size_t tiles = (left + ROWS - 1) / ROWS;
    return (left + tiles - 1) / tiles;
}

static void score_rows(float *scores, const float *q, const float *keys, size_t rows, size_t dim) {
    for (size_t row = 0, taken; row < rows; row += taken) {
        const float *from = q + row * dim;
        taken = next_rows(rows - row);
        for (size_t t = 0; t < TK_TILE_POSITIONS; t += COLUMNS * LANES) {
            float *to = scores + row * TK_SEGMENT_POSITIONS + t;
            switch (taken) {
            case 1: score_tile(to, from, keys + t, 1, dim); break;
            case 2: score_tile(to, from, keys + t, 2, dim); break;
            case 3: score_tile(to, from, keys + t, 3, dim); break;
            case 4: score_tile(to, from, keys + t, 4, dim); break;
            case 5: score_tile(to, from, keys + t, 5, dim); break;
            default: score_tile(to, from, keys + t, 6, dim); break;
            }
        }
    }
}

/// exp of what is not positive, as a power of 2: Cephes' polynomial on [-1 / 2, 1 / 2]. The error against
/// 1, the largest weight, stays within a unit in the last place; NaN stays NaN.
INLINE __m256 exponential(__m256 x) {
    const __m256 per_octave = _mm256_set1_ps(1.44269504088896341f);
    x = _mm256_max_ps(_mm256_set1_ps(-87.33654f), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, per_octave), 8);
    __m256 f = _mm256_fmsub_ps(x, per_octave, n);
    __m256 p = _mm256_set1_ps(1.535336188319500e-4f);
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1.339887440266574e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.618437357674640e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.550332471162809e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.402264791363012e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.931472028550421e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(1));
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

/// Lanes i, i + 4, then i + 2, then i + 1.
INLINE float reduce(__m256 v) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// All bits of the lanes of the vector at `start` that lie in low ..< high.
INLINE __m256 lanes_between(size_t start, size_t low, size_t high) {
    const __m256i lanes = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32((int)start));
    __m256i from = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32((int)low - 1));
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)high), lanes);
    return _mm256_castsi256_ps(_mm256_and_si256(from, below));
}

/// Turns scores low ..< high into weights against their maximum.
static void softmax_segment(float *scores, float *maximum, float *total, size_t low, size_t high) {
    const size_t from = low / LANES * LANES;
    const __m256 lowest = _mm256_set1_ps(-__builtin_inff());
    __m256 largest = lowest;
    for (size_t i = from; i < high; i += LANES) {
        __m256 seen = _mm256_blendv_ps(lowest, _mm256_loadu_ps(scores + i), lanes_between(i, low, high));
        largest = _mm256_max_ps(largest, seen);
    }
    float lanes[LANES], top;
    _mm256_storeu_ps(lanes, largest);
    top = lanes[0];
    for (size_t i = 1; i < LANES; i++) top = lanes[i] > top ? lanes[i] : top;
    const __m256 shift = _mm256_set1_ps(top);
    __m256 sum = _mm256_setzero_ps();
    for (size_t i = from; i < high; i += LANES) {
        __m256 weight = exponential(_mm256_sub_ps(_mm256_loadu_ps(scores + i), shift));
        if (i < low || i + LANES > high) weight = _mm256_and_ps(weight, lanes_between(i, low, high));
        _mm256_storeu_ps(scores + i, weight);
        sum = _mm256_add_ps(sum, weight);
    }
    *maximum = top;
    *total = reduce(sum);
}

/// Adds a tile's weighted values, to 0 where the sums start, to `rows` rows of two vectors.
INLINE void accumulate_tile(
    float *sums, const float *weights, const float *values, const size_t rows, size_t low, size_t high,
    size_t padded, int starts) {
    __m256 all[ROWS][COLUMNS];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < COLUMNS; c++)
        all[r][c] = starts ? _mm256_setzero_ps() : _mm256_loadu_ps(sums + r * padded + c * LANES);
    for (size_t t = low; t < high; t++) {
        __m256 value[COLUMNS];
        UNROLL for (size_t c = 0; c < COLUMNS; c++) value[c] = _mm256_loadu_ps(values + t * padded + c * LANES);
        UNROLL for (size_t r = 0; r < rows; r++) {
            __m256 weight = _mm256_set1_ps(weights[r * TK_SEGMENT_POSITIONS + t]);
            UNROLL for (size_t c = 0; c < COLUMNS; c++) all[r][c] = _mm256_fmadd_ps(weight, value[c], all[r][c]);
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < COLUMNS; c++)
        _mm256_storeu_ps(sums + r * padded + c * LANES, all[r][c]);
}

static void accumulate_rows(
    float *sums, const float *weights, const float *values, size_t rows, size_t low, size_t high, size_t padded,
    int starts) {
    for (size_t row = 0, taken; row < rows; row += taken) {
        const float *from = weights + row * TK_SEGMENT_POSITIONS;
        taken = next_rows(rows - row);
        for (size_t i = 0; i < padded; i += COLUMNS * LANES) {
            float *to = sums + row * padded + i;
            switch (taken) {
            case 1: accumulate_tile(to, from, values + i, 1, low, high, padded, starts); break;
            case 2: accumulate_tile(to, from, values + i, 2, low, high, padded, starts); break;
            case 3: accumulate_tile(to, from, values + i, 3, low, high, padded, starts); break;
            case 4: accumulate_tile(to, from, values + i, 4, low, high, padded, starts); break;
            case 5: accumulate_tile(to, from, values + i, 5, low, high, padded, starts); break;
            default: accumulate_tile(to, from, values + i, 6, low, high, padded, starts); break;
            }
        }
    }
}

/// sums = sums * exp(power) + part * exp(part_power), totals alike.
static void merge_row(
    float *sums, float *total, float power, const float *part, float part_total, float part_power, size_t padded) {
    const __m256 factor = exponential(_mm256_set1_ps(power)), part_factor = exponential(_mm256_set1_ps(part_power));
    for (size_t i = 0; i < padded; i += LANES) {
        __m256 scaled = _mm256_mul_ps(_mm256_loadu_ps(sums + i), factor);
        _mm256_storeu_ps(sums + i, _mm256_fmadd_ps(_mm256_loadu_ps(part + i), part_factor, scaled));
    }
    *total = *total * _mm256_cvtss_f32(factor) + part_total * _mm256_cvtss_f32(part_factor);
}

static void finish_row(float *out, const float *sums, float total, size_t dim) {
    const __m256 totals = _mm256_set1_ps(total);
    size_t i = 0;
    for (; i + LANES <= dim; i += LANES)
        _mm256_storeu_ps(out + i, _mm256_div_ps(_mm256_loadu_ps(sums + i), totals));
    for (; i < dim; i++) out[i] = sums[i] / total;
}

#include "attention.h"

static void store_row(void *row, void *scale, const float *x, tk_kv_element element, size_t dim) {
    switch (element) {
    case TK_KV_F32: memcpy(row, x, dim * sizeof(float)); return;
    case TK_KV_F16: {
        size_t i = 0;
        for (; i + LANES <= dim; i += LANES) {
            __m128i half = _mm256_cvtps_ph(_mm256_loadu_ps(x + i), _MM_FROUND_TO_NEAREST_INT);
            _mm_storeu_si128((__m128i *)((uint16_t *)row + i), half);
        }
        for (; i < dim; i++) ((uint16_t *)row)[i] = float_f16(x[i]);
        return;
    }
    case TK_KV_BF16:
        for (size_t i = 0; i < dim; i++) ((uint16_t *)row)[i] = float_bf16(x[i]);
        return;
    case TK_KV_I8: store_i8(row, scale, x, dim); return;
    }
}

const tk_attention tk_attention_avx2 = {attend, attend_segment, attend_merge, store_row};

#pragma clang attribute pop

#endif
