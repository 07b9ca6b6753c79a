// Attention in AVX-512: sixteen positions per vector for scores, sixteen dimensions for sums of values.
#include "attention_rows.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)

enum { LANES = 16, ROWS = 6, COLUMNS = 4 };
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

/// Sixteen rows of sixteen 32-bit units become sixteen columns.
INLINE void transpose(__m512i v[LANES]) {
    __m512i a[LANES];
    UNROLL for (size_t i = 0; i < LANES; i += 2) {
        a[i] = _mm512_unpacklo_epi32(v[i], v[i + 1]);
        a[i + 1] = _mm512_unpackhi_epi32(v[i], v[i + 1]);
    }
    UNROLL for (size_t i = 0; i < LANES; i += 4) {
        v[i] = _mm512_unpacklo_epi64(a[i], a[i + 2]);
        v[i + 1] = _mm512_unpackhi_epi64(a[i], a[i + 2]);
        v[i + 2] = _mm512_unpacklo_epi64(a[i + 1], a[i + 3]);
        v[i + 3] = _mm512_unpackhi_epi64(a[i + 1], a[i + 3]);
    }
    // v[4 g + c] holds column c, c + 4, c + 8, c + 12 of rows 4 g ... 4 g + 3.
    UNROLL for (size_t c = 0; c < 4; c++) {
        a[c] = _mm512_shuffle_i32x4(v[c], v[c + 4], 0x88);
        a[c + 4] = _mm512_shuffle_i32x4(v[c], v[c + 4], 0xdd);
        a[c + 8] = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0x88);
        a[c + 12] = _mm512_shuffle_i32x4(v[c + 8], v[c + 12], 0xdd);
    }
    UNROLL for (size_t c = 0; c < 4; c++) {
        v[c] = _mm512_shuffle_i32x4(a[c], a[c + 8], 0x88);
        v[c + 4] = _mm512_shuffle_i32x4(a[c + 4], a[c + 12], 0x88);
        v[c + 8] = _mm512_shuffle_i32x4(a[c], a[c + 8], 0xdd);
        v[c + 12] = _mm512_shuffle_i32x4(a[c + 4], a[c + 12], 0xdd);
    }
}

/// One column of units as one to four rows of keys.
INLINE void store_units(float *keys, __m512i units, __m512 scales, const tk_kv_element element) {
    switch (element) {
    case TK_KV_F32: _mm512_storeu_ps(keys, _mm512_castsi512_ps(units)); return;
    case TK_KV_F16:
        _mm512_storeu_ps(keys, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(units)));
        _mm512_storeu_ps(keys + TK_TILE_POSITIONS, _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32(units, 16))));
        return;
    case TK_KV_BF16:
        _mm512_storeu_ps(keys, _mm512_castsi512_ps(_mm512_slli_epi32(units, 16)));
        _mm512_storeu_ps(
            keys + TK_TILE_POSITIONS,
            _mm512_castsi512_ps(_mm512_and_si512(units, _mm512_set1_epi32((int)0xffff0000))));
        return;
    case TK_KV_I8: return;
    }
    (void)scales;
}

INLINE void store_bytes(float *keys, __m512i units, __m512 scales, size_t count) {
    UNROLL for (size_t b = 0; b < 4; b++) {
        if (b >= count) return;
        __m512i value = _mm512_srai_epi32(_mm512_slli_epi32(units, (unsigned)(24 - 8 * b)), 24);
        _mm512_storeu_ps(keys + b * TK_TILE_POSITIONS, _mm512_mul_ps(_mm512_cvtepi32_ps(value), scales));
    }
}

INLINE void gather_keys_of(
    float *keys, const uint8_t *const *rows, const float *scales, const uint8_t *const *next,
    const tk_kv_element element, size_t dim) {
    const size_t bytes = tk_kv_row_bytes(element, dim);
    const size_t per_unit = element == TK_KV_F32 ? 1 : element == TK_KV_I8 ? 4 : 2;
    for (size_t group = 0; group < TK_TILE_POSITIONS; group += LANES) {
        __m512 scale = element == TK_KV_I8 ? _mm512_loadu_ps(scales + group) : _mm512_setzero_ps();
        for (size_t byte = 0; byte < bytes; byte += 64) {
            const __mmask64 mask = bytes - byte >= 64 ? ~(__mmask64)0 : ((__mmask64)1 << (bytes - byte)) - 1;
            __m512i v[LANES];
            UNROLL for (size_t i = 0; i < LANES; i++) {
                __builtin_prefetch(next[group + i] + byte, 0, 3);
                v[i] = _mm512_maskz_loadu_epi8(mask, rows[group + i] + byte);
            }
            transpose(v);
            float *to = keys + byte / 4 * per_unit * TK_TILE_POSITIONS + group;
            UNROLL for (size_t i = 0; i < LANES; i++) {
                if (byte + 4 * i >= bytes) break;
                if (element == TK_KV_I8)
                    store_bytes(to + i * per_unit * TK_TILE_POSITIONS, v[i], scale, min_size(4, bytes - byte - 4 * i));
                else
                    store_units(to + i * per_unit * TK_TILE_POSITIONS, v[i], scale, element);
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

INLINE __mmask16 first_lanes(size_t n) { return n >= LANES ? 0xffff : (__mmask16)((1u << n) - 1); }

/// Sixteen elements from index i, as f32.
INLINE __m512 expand(const uint8_t *row, const tk_kv_element element, size_t i, __m512 scale) {
    switch (element) {
    case TK_KV_F32: return _mm512_loadu_ps((const float *)row + i);
    case TK_KV_F16: return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)row + i)));
    case TK_KV_BF16: {
        __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)row + i));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    case TK_KV_I8: {
        __m512i integers = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(row + i)));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(integers), scale);
    }
    }
    return _mm512_setzero_ps();
}

/// The last ones of a row; the other lanes are 0.
INLINE __m512 expand_tail(const uint8_t *row, const tk_kv_element element, size_t i, size_t dim, __m512 scale) {
    uint8_t padded[4 * LANES] = {0};
    memcpy(padded, row + tk_kv_row_bytes(element, i), tk_kv_row_bytes(element, dim - i));
    return expand(padded, element, 0, scale);
}

INLINE void gather_values_of(
    float *values, const uint8_t *const *rows, const float *scales, const uint8_t *const *next,
    const tk_kv_element element, size_t low, size_t high, size_t dim, size_t padded) {
    for (size_t position = low; position < high; position++) {
        __m512 scale = element == TK_KV_I8 ? _mm512_set1_ps(scales[position]) : _mm512_setzero_ps();
        float *to = values + position * padded;
        size_t i = 0;
        prefetch_row(next[position], tk_kv_row_bytes(element, dim));
        for (; i + LANES <= dim; i += LANES) _mm512_storeu_ps(to + i, expand(rows[position], element, i, scale));
        if (i < dim) _mm512_storeu_ps(to + i, expand_tail(rows[position], element, i, dim, scale));
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

/// Scores of `rows` queries (known when compiled) against a tile of keys.
INLINE void score_tile(float *scores, const float *q, const float *keys, const size_t rows, size_t dim) {
    __m512 sums[ROWS][COLUMNS];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < COLUMNS; c++)
        sums[r][c] = _mm512_setzero_ps();
    for (size_t i = 0; i < dim; i++) {
        __m512 key[COLUMNS];
        UNROLL for (size_t c = 0; c < COLUMNS; c++) key[c] = _mm512_loadu_ps(keys + i * TK_TILE_POSITIONS + c * LANES);
        UNROLL for (size_t r = 0; r < rows; r++) {
            __m512 factor = _mm512_set1_ps(q[r * dim + i]);
            UNROLL for (size_t c = 0; c < COLUMNS; c++) sums[r][c] = _mm512_fmadd_ps(factor, key[c], sums[r][c]);
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < COLUMNS; c++)
        _mm512_storeu_ps(scores + r * TK_SEGMENT_POSITIONS + c * LANES, sums[r][c]);
}

/// How many rows the next register tile takes of those left: as even a split as there is.
INLINE size_t next_rows(size_t left) {
    size_t tiles = (left + ROWS - 1) / ROWS;
    return (left + tiles - 1) / tiles;
}

static void score_rows(float *scores, const float *q, const float *keys, size_t rows, size_t dim) {
    for (size_t row = 0, taken; row < rows; row += taken) {
        float *to = scores + row * TK_SEGMENT_POSITIONS;
        const float *from = q + row * dim;
        taken = next_rows(rows - row);
        switch (taken) {
        case 1: score_tile(to, from, keys, 1, dim); break;
        case 2: score_tile(to, from, keys, 2, dim); break;
        case 3: score_tile(to, from, keys, 3, dim); break;
        case 4: score_tile(to, from, keys, 4, dim); break;
        case 5: score_tile(to, from, keys, 5, dim); break;
        default: score_tile(to, from, keys, 6, dim); break;
        }
    }
}

/// exp of what is not positive, as a power of 2: Cephes' polynomial on [-1 / 2, 1 / 2]. The error against
/// 1, the largest weight, stays within a unit in the last place; NaN stays NaN.
INLINE __m512 exponential(__m512 x) {
    const __m512 per_octave = _mm512_set1_ps(1.44269504088896341f);
    x = _mm512_max_ps(_mm512_set1_ps(-87.33654f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, per_octave), 8);
    __m512 f = _mm512_fmsub_ps(x, per_octave, n);
    __m512 p = _mm512_set1_ps(1.535336188319500e-4f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.339887440266574e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.618437357674640e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.550332471162809e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.402264791363012e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.931472028550421e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1));
    return _mm512_scalef_ps(p, n);
}

/// Lanes i, i + 8, then i + 4, then i + 2, then i + 1.
INLINE float reduce(__m512 v) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

/// Lanes of the vector at `start` that lie in low ..< high.
INLINE __mmask16 lanes_between(size_t start, size_t low, size_t high) {
    __mmask16 below = high > start ? first_lanes(high - start) : 0;
    return low > start ? (__mmask16)(below & ~first_lanes(low - start)) : below;
}

/// Turns scores low ..< high into weights against their maximum.
static void softmax_segment(float *scores, float *maximum, float *total, size_t low, size_t high) {
    const size_t from = low / LANES * LANES;
    __m512 largest = _mm512_set1_ps(-__builtin_inff());
    for (size_t i = from; i < high; i += LANES)
        largest = _mm512_mask_max_ps(largest, lanes_between(i, low, high), largest, _mm512_loadu_ps(scores + i));
    const float top = _mm512_reduce_max_ps(largest);
    const __m512 shift = _mm512_set1_ps(top);
    __m512 sum = _mm512_setzero_ps();
    size_t i = from;
    if (from < low) {
        __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + i), shift));
        weight = _mm512_maskz_mov_ps(lanes_between(i, low, high), weight);
        _mm512_storeu_ps(scores + i, weight);
        sum = _mm512_add_ps(sum, weight);
        i += LANES;
    }
    for (; i + LANES <= high; i += LANES) {
        __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + i), shift));
        _mm512_storeu_ps(scores + i, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    if (i < high) {
        __m512 weight = exponential(_mm512_sub_ps(_mm512_loadu_ps(scores + i), shift));
        weight = _mm512_maskz_mov_ps(lanes_between(i, low, high), weight);
        _mm512_storeu_ps(scores + i, weight);
        sum = _mm512_add_ps(sum, weight);
    }
    *maximum = top;
    *total = reduce(sum);
}

/// Adds a tile's weighted values, to 0 where the sums start, to `rows` rows of `columns` vectors (both known when compiled).
INLINE void accumulate_tile(
    float *sums, const float *weights, const float *values, const size_t rows, const size_t columns, size_t low,
    size_t high, size_t padded, int starts) {
    __m512 all[ROWS][COLUMNS];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < columns; c++)
        all[r][c] = starts ? _mm512_setzero_ps() : _mm512_loadu_ps(sums + r * padded + c * LANES);
    for (size_t t = low; t < high; t++) {
        __m512 value[COLUMNS];
        UNROLL for (size_t c = 0; c < columns; c++) value[c] = _mm512_loadu_ps(values + t * padded + c * LANES);
        UNROLL for (size_t r = 0; r < rows; r++) {
            __m512 weight = _mm512_set1_ps(weights[r * TK_SEGMENT_POSITIONS + t]);
            UNROLL for (size_t c = 0; c < columns; c++) all[r][c] = _mm512_fmadd_ps(weight, value[c], all[r][c]);
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < columns; c++)
        _mm512_storeu_ps(sums + r * padded + c * LANES, all[r][c]);
}

INLINE void accumulate_columns(
    float *sums, const float *weights, const float *values, size_t rows, const size_t columns, size_t low, size_t high,
    size_t padded, int starts) {
    switch (rows) {
    case 1: accumulate_tile(sums, weights, values, 1, columns, low, high, padded, starts); return;
    case 2: accumulate_tile(sums, weights, values, 2, columns, low, high, padded, starts); return;
    case 3: accumulate_tile(sums, weights, values, 3, columns, low, high, padded, starts); return;
    case 4: accumulate_tile(sums, weights, values, 4, columns, low, high, padded, starts); return;
    case 5: accumulate_tile(sums, weights, values, 5, columns, low, high, padded, starts); return;
    default: accumulate_tile(sums, weights, values, 6, columns, low, high, padded, starts); return;
    }
}

static void accumulate_rows(
    float *sums, const float *weights, const float *values, size_t rows, size_t low, size_t high, size_t padded,
    int starts) {
    for (size_t row = 0, taken; row < rows; row += taken) {
        const float *from = weights + row * TK_SEGMENT_POSITIONS;
        float *to = sums + row * padded;
        size_t i = 0;
        taken = next_rows(rows - row);
        for (; i + COLUMNS * LANES <= padded; i += COLUMNS * LANES)
            accumulate_columns(to + i, from, values + i, taken, COLUMNS, low, high, padded, starts);
        for (; i < padded; i += LANES) accumulate_columns(to + i, from, values + i, taken, 1, low, high, padded, starts);
    }
}

/// sums = sums * exp(power) + part * exp(part_power), totals alike.
static void merge_row(
    float *sums, float *total, float power, const float *part, float part_total, float part_power, size_t padded) {
    const __m512 factor = exponential(_mm512_set1_ps(power)), part_factor = exponential(_mm512_set1_ps(part_power));
    for (size_t i = 0; i < padded; i += LANES) {
        __m512 scaled = _mm512_mul_ps(_mm512_loadu_ps(sums + i), factor);
        _mm512_storeu_ps(sums + i, _mm512_fmadd_ps(_mm512_loadu_ps(part + i), part_factor, scaled));
    }
    *total = *total * _mm512_cvtss_f32(factor) + part_total * _mm512_cvtss_f32(part_factor);
}

static void finish_row(float *out, const float *sums, float total, size_t dim) {
    const __m512 totals = _mm512_set1_ps(total);
    for (size_t i = 0; i < dim; i += LANES)
        _mm512_mask_storeu_ps(out + i, first_lanes(dim - i), _mm512_div_ps(_mm512_loadu_ps(sums + i), totals));
}

#include "attention.h"

/// To bf16, nearest, ties to even, in integers (so that it needs no AVX512-BF16); NaN made quiet.
INLINE __m256i narrow_bf16(__m512 v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet));
}

static void store_row(void *row, void *scale, const float *x, tk_kv_element element, size_t dim) {
    switch (element) {
    case TK_KV_F32: memcpy(row, x, dim * sizeof(float)); return;
    case TK_KV_F16:
    case TK_KV_BF16:
        for (size_t i = 0; i < dim; i += LANES) {
            const __mmask16 mask = first_lanes(dim - i);
            __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
            __m256i half = element == TK_KV_BF16 ? narrow_bf16(v) : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
            _mm256_mask_storeu_epi16((uint16_t *)row + i, mask, half);
        }
        return;
    case TK_KV_I8: store_i8(row, scale, x, dim); return;
    }
}

const tk_attention tk_attention_avx512 = {attend, attend_segment, attend_merge, store_row};

#pragma clang attribute pop

#endif
