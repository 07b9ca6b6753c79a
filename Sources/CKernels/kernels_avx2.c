// The AVX2 table: eight lanes per sum, one accumulator per output element. Tails are copied to
// zero-padded vectors, so that a tail goes through the same instructions as the rest.
#include "attention_rows.h"
#include "numbers.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)

enum { LANES = 8, ROWS = 3, COLUMNS = 4 };
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

/// Eight elements from index i, as f32.
INLINE __m256 load(const void *x, tk_element element, size_t i) {
    switch (element) {
    case TK_F32: return _mm256_loadu_ps((const float *)x + i);
    case TK_F16: return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)x + i)));
    case TK_BF16: {
        __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)x + i));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
    }
    }
    return _mm256_setzero_ps();
}

/// The first n (at most 8) of them; the other lanes are 0 and their memory is not read.
INLINE __m256 load_first(const void *x, tk_element element, size_t i, size_t n) {
    if (n >= LANES) return load(x, element, i);
    uint32_t padded[LANES] = {0};
    size_t bytes = element_bytes(element);
    memcpy(padded, (const uint8_t *)x + i * bytes, n * bytes);
    return load(padded, element, 0);
}

INLINE void store_first(float *y, __m256 v, size_t n) {
    if (n >= LANES) {
        _mm256_storeu_ps(y, v);
    } else {
        float padded[LANES];
        _mm256_storeu_ps(padded, v);
        memcpy(y, padded, n * sizeof(float));
    }
}

/// Lanes i and i + 4 added: the first half of every sum over lanes.
INLINE __m128 fold(__m256 v) { return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1)); }

/// (0 + 2) + (1 + 3): the second half.
INLINE float fold_four(__m128 v) {
    __m128 pair = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

INLINE float reduce(__m256 v) { return fold_four(fold(v)); }

/// Four sums at once, each by the very additions of `reduce`.
INLINE __m128 reduce_columns(__m128 a, __m128 b, __m128 c, __m128 d) {
    _MM_TRANSPOSE4_PS(a, b, c, d);
    return _mm_add_ps(_mm_add_ps(a, c), _mm_add_ps(b, d));
}

/// One register tile of `rows` x `columns` outputs (both known when compiled). `ahead` bytes further on
/// lie the columns that come next; 0 where they were asked for before.
INLINE void tile(
    float *y,           // [rows][y_stride]
    const float *x,     // [rows][in]
    const uint8_t *w,   // [columns][in] of element
    const float *bias,  // [columns] or null
    const tk_element element, const size_t rows, const size_t columns, size_t in, size_t y_stride,
    int accumulate, size_t ahead) {
    __m256 sums[ROWS][COLUMNS];
    const size_t w_stride = in * element_bytes(element);
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < columns; c++)
        sums[r][c] = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        __m256 row[ROWS];
        UNROLL for (size_t r = 0; r < rows; r++) row[r] = _mm256_loadu_ps(x + r * in + i);
        UNROLL for (size_t c = 0; c < columns; c++) {
            __m256 column = load(w + c * w_stride, element, i);
            if (ahead != 0)
                _mm_prefetch((const char *)(w + ahead + c * w_stride + i * element_bytes(element)), _MM_HINT_T0);
            UNROLL for (size_t r = 0; r < rows; r++) sums[r][c] = _mm256_fmadd_ps(row[r], column, sums[r][c]);
        }
    }
    if (i < in) {
        UNROLL for (size_t c = 0; c < columns; c++) {
            __m256 column = load_first(w + c * w_stride, element, i, in - i);
            UNROLL for (size_t r = 0; r < rows; r++)
                sums[r][c] = _mm256_fmadd_ps(load_first(x + r * in, TK_F32, i, in - i), column, sums[r][c]);
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) {
        if (columns == COLUMNS) {
            __m128 four = reduce_columns(fold(sums[r][0]), fold(sums[r][1]), fold(sums[r][2]), fold(sums[r][3]));
            if (bias) four = _mm_add_ps(four, _mm_loadu_ps(bias));
            if (accumulate) four = _mm_add_ps(_mm_loadu_ps(y + r * y_stride), four);
            _mm_storeu_ps(y + r * y_stride, four);
        } else {
            float one = reduce(sums[r][0]);
            if (bias) one += bias[0];
            y[r * y_stride] = accumulate ? y[r * y_stride] + one : one;
        }
    }
}

INLINE void tile_rows(
    float *y, const float *x, const uint8_t *w, const float *bias, const tk_element element, size_t rows,
    const size_t columns, size_t in, size_t y_stride,
    int accumulate, size_t ahead) {
    switch (rows) {
    case 1: tile(y, x, w, bias, element, 1, columns, in, y_stride, accumulate, ahead); return;
    case 2: tile(y, x, w, bias, element, 2, columns, in, y_stride, accumulate, ahead); return;
    default: tile(y, x, w, bias, element, 3, columns, in, y_stride, accumulate, ahead); return;
    }
}

INLINE void matmul_of(
    float *y, const float *x, const uint8_t *w, const float *bias, const tk_element element, size_t rows, size_t in,
    size_t out, size_t y_stride, int accumulate) {
    const size_t w_stride = in * element_bytes(element), rows_kept = rows_in_cache(in, ROWS);
    for (size_t start = 0; start < rows; start += rows_kept) {
        size_t end = min_size(rows, start + rows_kept), o = 0;
        for (; o + COLUMNS <= out; o += COLUMNS)
            for (size_t r = start; r < end; r += ROWS)
                tile_rows(
                    y + r * y_stride + o, x + r * in, w + o * w_stride, bias ? bias + o : NULL, element,
                    min_size(ROWS, end - r), COLUMNS, in, y_stride, accumulate,
                    r == start && o + 2 * COLUMNS <= out ? COLUMNS * w_stride : 0);
        for (; o < out; o++)
            for (size_t r = start; r < end; r += ROWS)
                tile_rows(
                    y + r * y_stride + o, x + r * in, w + o * w_stride, bias ? bias + o : NULL, element,
                    min_size(ROWS, end - r), 1, in, y_stride, accumulate, 0);
    }
}

static void matmul(
    float *y, const float *x, const void *w, const float *bias, tk_element element, size_t rows, size_t in, size_t out,
    size_t y_stride, int accumulate) {
    switch (element) {
    case TK_F32: matmul_of(y, x, w, bias, TK_F32, rows, in, out, y_stride, accumulate); return;
    case TK_F16: matmul_of(y, x, w, bias, TK_F16, rows, in, out, y_stride, accumulate); return;
    case TK_BF16: matmul_of(y, x, w, bias, TK_BF16, rows, in, out, y_stride, accumulate); return;
    }
}

static void rmsnorm(float *y, const float *x, const float *weight, float epsilon, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; r++) {
        const float *from = x + r * n;
        __m256 squares = _mm256_setzero_ps();
        for (size_t i = 0; i < n; i += LANES) {
            __m256 v = load_first(from, TK_F32, i, n - i);
            squares = _mm256_fmadd_ps(v, v, squares);
        }
        __m256 scale = _mm256_set1_ps(1 / __builtin_sqrtf(reduce(squares) / (float)n + epsilon));
        for (size_t i = 0; i < n; i += LANES) {
            __m256 v = _mm256_mul_ps(load_first(from, TK_F32, i, n - i), scale);
            store_first(y + r * n + i, _mm256_mul_ps(load_first(weight, TK_F32, i, n - i), v), n - i);
        }
    }
}

static void rotate(float *x, const float *cos, const float *sin, float scale, size_t heads, size_t dim) {
    size_t half = dim / 2;
    __m256 s = _mm256_set1_ps(scale);
    for (size_t h = 0; h < heads; h++) {
        float *low = x + h * dim, *high = low + half;
        for (size_t i = 0; i < half; i += LANES) {
            __m256 a = load_first(low, TK_F32, i, half - i), b = load_first(high, TK_F32, i, half - i);
            __m256 c = load_first(cos, TK_F32, i, half - i), d = load_first(sin, TK_F32, i, half - i);
            __m256 first = _mm256_sub_ps(_mm256_mul_ps(a, c), _mm256_mul_ps(b, d));
            __m256 second = _mm256_add_ps(_mm256_mul_ps(b, c), _mm256_mul_ps(a, d));
            store_first(low + i, _mm256_mul_ps(first, s), half - i);
            store_first(high + i, _mm256_mul_ps(second, s), half - i);
        }
    }
}

/// exp by Cephes' polynomial on [-ln 2 / 2, ln 2 / 2], within 2 units in the last place; NaN stays NaN.
INLINE __m256 exponential(__m256 x) {
    x = _mm256_max_ps(_mm256_set1_ps(-87.33654f), x);
    x = _mm256_min_ps(_mm256_set1_ps(88.37626f), x);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)), 8);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.9875691500e-4f);
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_fmadd_ps(p, _mm256_mul_ps(r, r), _mm256_add_ps(r, _mm256_set1_ps(1)));
    __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(exponent));
}

static void silu_multiply(float *y, const float *gate, const float *up, size_t n) {
    const __m256 one = _mm256_set1_ps(1);
    for (size_t i = 0; i < n; i += LANES) {
        __m256 g = load_first(gate, TK_F32, i, n - i), u = load_first(up, TK_F32, i, n - i);
        __m256 below = _mm256_add_ps(one, exponential(_mm256_sub_ps(_mm256_setzero_ps(), g)));
        store_first(y + i, _mm256_mul_ps(_mm256_div_ps(g, below), u), n - i);
    }
}

static void add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

INLINE void widen_of(float *y, const void *x, const tk_element element, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm256_storeu_ps(y + i, load(x, element, i));
    if (i < n) store_first(y + i, load_first(x, element, i, n - i), n - i);
}

static void widen(float *y, const void *x, tk_element element, size_t n) {
    switch (element) {
    case TK_F32: memcpy(y, x, n * sizeof(float)); return;
    case TK_F16: widen_of(y, x, TK_F16, n); return;
    case TK_BF16: widen_of(y, x, TK_BF16, n); return;
    }
}

static void narrow(void *y, const float *x, tk_element element, size_t n) {
    switch (element) {
    case TK_F32: memcpy(y, x, n * sizeof(float)); return;
    case TK_F16:
        for (size_t i = 0; i < n; i += LANES) {
            __m128i half = _mm256_cvtps_ph(load_first(x, TK_F32, i, n - i), _MM_FROUND_TO_NEAREST_INT);
            uint16_t halves[LANES];
            _mm_storeu_si128((__m128i *)halves, half);
            memcpy((uint16_t *)y + i, halves, min_size(LANES, n - i) * sizeof(uint16_t));
        }
        return;
    case TK_BF16:
        for (size_t i = 0; i < n; i++) ((uint16_t *)y)[i] = float_bf16(x[i]);
        return;
    }
}

/// Lanes low ..< high kept, the rest 0.
INLINE __m256 keep_range(__m256 v, size_t low, size_t high) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256i from = _mm256_cmpgt_epi32(lanes, _mm256_set1_epi32((int)min_size(low, LANES) - 1));
    __m256i below = _mm256_cmpgt_epi32(_mm256_set1_epi32((int)min_size(high, LANES)), lanes);
    return _mm256_and_ps(v, _mm256_castsi256_ps(_mm256_and_si256(from, below)));
}

static float exp_shifted(float *y, const float *x, float shift, float scale, size_t n) {
    const __m256 shifts = _mm256_set1_ps(shift), scales = _mm256_set1_ps(scale);
    __m256 sums = _mm256_setzero_ps();
    for (size_t i = 0; i < n; i += LANES) {
        __m256 v = _mm256_mul_ps(_mm256_sub_ps(load_first(x, TK_F32, i, n - i), shifts), scales);
        // Not less than, or not a number: what underflows is 0, not the clamp's smallest number.
        __m256 kept = _mm256_cmp_ps(v, _mm256_set1_ps(-87.3f), _CMP_NLT_UQ);
        v = keep_range(_mm256_and_ps(exponential(v), kept), 0, n - i);
        sums = _mm256_add_ps(sums, v);
        store_first(y + i, v, n - i);
    }
    return reduce(sums);
}

static const tk_kernels table = {"avx2", matmul, rmsnorm, rotate,      silu_multiply,
                                 add,    widen,  narrow,  exp_shifted, &tk_attention_avx2};

#pragma clang attribute pop

const tk_kernels *tk_kernels_avx2(void) { return &table; }

#else

const tk_kernels *tk_kernels_avx2(void) { return NULL; }

#endif
