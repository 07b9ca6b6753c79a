// The AVX-512 table: sixteen lanes per sum, one accumulator per output element.
#include "attention_rows.h"
#include "numbers.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"))), apply_to = function)

enum { LANES = 16, ROWS = 6, COLUMNS = 4 };
#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

INLINE __mmask16 tail_mask(size_t n) { return (__mmask16)((1u << n) - 1); }

/// Sixteen elements from index i, as f32.
INLINE __m512 load(const void *x, tk_element element, size_t i) {
    switch (element) {
    case TK_F32: return _mm512_loadu_ps((const float *)x + i);
    case TK_F16: return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)x + i)));
    case TK_BF16: {
        __m256i half = _mm256_loadu_si256((const __m256i *)((const uint16_t *)x + i));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    }
    return _mm512_setzero_ps();
}

/// The same for fewer: lanes outside the mask are 0 and their memory is not read.
INLINE __m512 load_masked(const void *x, tk_element element, size_t i, __mmask16 mask) {
    switch (element) {
    case TK_F32: return _mm512_maskz_loadu_ps(mask, (const float *)x + i);
    case TK_F16: return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + i));
    case TK_BF16: {
        __m256i half = _mm256_maskz_loadu_epi16(mask, (const uint16_t *)x + i);
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
    }
    }
    return _mm512_setzero_ps();
}

/// Lanes i, i + 4, i + 8, i + 12 added: the first half of every sum over lanes.
INLINE __m128 fold(__m512 v) {
    __m256 eight = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}

/// (0 + 2) + (1 + 3): the second half.
INLINE float fold_four(__m128 v) {
    __m128 pair = _mm_add_ps(v, _mm_movehl_ps(v, v));
    return _mm_cvtss_f32(_mm_add_ss(pair, _mm_movehdup_ps(pair)));
}

INLINE float reduce(__m512 v) { return fold_four(fold(v)); }

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
    __m512 sums[ROWS][COLUMNS];
    const size_t w_stride = in * element_bytes(element);
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < columns; c++)
        sums[r][c] = _mm512_setzero_ps();
    size_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        __m512 column[COLUMNS];
        UNROLL for (size_t c = 0; c < columns; c++) column[c] = load(w + c * w_stride, element, i);
        if (ahead != 0)
            UNROLL for (size_t c = 0; c < columns; c++)
                _mm_prefetch((const char *)(w + ahead + c * w_stride + i * element_bytes(element)), _MM_HINT_T0);
        UNROLL for (size_t r = 0; r < rows; r++) {
            __m512 row = _mm512_loadu_ps(x + r * in + i);
            UNROLL for (size_t c = 0; c < columns; c++) sums[r][c] = _mm512_fmadd_ps(row, column[c], sums[r][c]);
        }
    }
    if (i < in) {
        __mmask16 mask = tail_mask(in - i);
        __m512 column[COLUMNS];
        UNROLL for (size_t c = 0; c < columns; c++) column[c] = load_masked(w + c * w_stride, element, i, mask);
        UNROLL for (size_t r = 0; r < rows; r++) {
            __m512 row = _mm512_maskz_loadu_ps(mask, x + r * in + i);
            UNROLL for (size_t c = 0; c < columns; c++) sums[r][c] = _mm512_fmadd_ps(row, column[c], sums[r][c]);
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
    case 3: tile(y, x, w, bias, element, 3, columns, in, y_stride, accumulate, ahead); return;
    case 4: tile(y, x, w, bias, element, 4, columns, in, y_stride, accumulate, ahead); return;
    case 5: tile(y, x, w, bias, element, 5, columns, in, y_stride, accumulate, ahead); return;
    default: tile(y, x, w, bias, element, 6, columns, in, y_stride, accumulate, ahead); return;
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

/// Runs `body` on each group of sixteen indices with the mask of those below n.
#define FOR_LANES(i, mask, n)                                                                                          \
    for (size_t i = 0; i < (n); i += LANES)                                                                               \
        for (__mmask16 mask = (n) - i >= LANES ? 0xffff : tail_mask((n) - i), once = 1; once; once = 0)

static void rmsnorm(float *y, const float *x, const float *weight, float epsilon, size_t rows, size_t n) {
    for (size_t r = 0; r < rows; r++) {
        const float *from = x + r * n;
        __m512 squares = _mm512_setzero_ps();
        FOR_LANES(i, mask, n) {
            __m512 v = _mm512_maskz_loadu_ps(mask, from + i);
            squares = _mm512_fmadd_ps(v, v, squares);
        }
        __m512 scale = _mm512_set1_ps(1 / __builtin_sqrtf(reduce(squares) / (float)n + epsilon));
        FOR_LANES(i, mask, n) {
            __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, from + i), scale);
            _mm512_mask_storeu_ps(y + r * n + i, mask, _mm512_mul_ps(_mm512_maskz_loadu_ps(mask, weight + i), v));
        }
    }
}

static void rotate(float *x, const float *cos, const float *sin, float scale, size_t heads, size_t dim) {
    size_t half = dim / 2;
    __m512 s = _mm512_set1_ps(scale);
    for (size_t h = 0; h < heads; h++) {
        float *low = x + h * dim, *high = low + half;
        FOR_LANES(i, mask, half) {
            __m512 a = _mm512_maskz_loadu_ps(mask, low + i), b = _mm512_maskz_loadu_ps(mask, high + i);
            __m512 c = _mm512_maskz_loadu_ps(mask, cos + i), d = _mm512_maskz_loadu_ps(mask, sin + i);
            __m512 first = _mm512_sub_ps(_mm512_mul_ps(a, c), _mm512_mul_ps(b, d));
            __m512 second = _mm512_add_ps(_mm512_mul_ps(b, c), _mm512_mul_ps(a, d));
            _mm512_mask_storeu_ps(low + i, mask, _mm512_mul_ps(first, s));
            _mm512_mask_storeu_ps(high + i, mask, _mm512_mul_ps(second, s));
        }
    }
}

/// exp by Cephes' polynomial on [-ln 2 / 2, ln 2 / 2], within 2 units in the last place; NaN stays NaN.
INLINE __m512 exponential(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-87.33654f), x);
    x = _mm512_min_ps(_mm512_set1_ps(88.72283f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504088896341f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(p, _mm512_mul_ps(r, r), _mm512_add_ps(r, _mm512_set1_ps(1)));
    return _mm512_scalef_ps(p, n);
}

static void silu_multiply(float *y, const float *gate, const float *up, size_t n) {
    const __m512 one = _mm512_set1_ps(1);
    FOR_LANES(i, mask, n) {
        __m512 g = _mm512_maskz_loadu_ps(mask, gate + i), u = _mm512_maskz_loadu_ps(mask, up + i);
        __m512 below = _mm512_add_ps(one, exponential(_mm512_sub_ps(_mm512_setzero_ps(), g)));
        _mm512_mask_storeu_ps(y + i, mask, _mm512_mul_ps(_mm512_div_ps(g, below), u));
    }
}

static void add(float *y, const float *x, size_t n) {
    FOR_LANES(i, mask, n) {
        __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, y + i), _mm512_maskz_loadu_ps(mask, x + i));
        _mm512_mask_storeu_ps(y + i, mask, sum);
    }
}

INLINE void widen_of(float *y, const void *x, const tk_element element, size_t n) {
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) _mm512_storeu_ps(y + i, load(x, element, i));
    if (i < n) {
        __mmask16 mask = tail_mask(n - i);
        _mm512_mask_storeu_ps(y + i, mask, load_masked(x, element, i, mask));
    }
}

static void widen(float *y, const void *x, tk_element element, size_t n) {
    switch (element) {
    case TK_F32: memcpy(y, x, n * sizeof(float)); return;
    case TK_F16: widen_of(y, x, TK_F16, n); return;
    case TK_BF16: widen_of(y, x, TK_BF16, n); return;
    }
}

/// To bf16, nearest, ties to even, in integers (so that it needs no AVX512-BF16); NaN made quiet.
INLINE __m256i narrow_bf16(__m512 v) {
    __m512i bits = _mm512_castps_si512(v);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    __m512i quiet = _mm512_or_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(0x40));
    return _mm512_cvtepi32_epi16(_mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q), quiet));
}

static void narrow(void *y, const float *x, tk_element element, size_t n) {
    if (element == TK_F32) {
        memcpy(y, x, n * sizeof(float));
        return;
    }
    FOR_LANES(i, mask, n) {
        __m512 v = _mm512_maskz_loadu_ps(mask, x + i);
        __m256i half = element == TK_BF16 ? narrow_bf16(v) : _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
        _mm256_mask_storeu_epi16((uint16_t *)y + i, mask, half);
    }
}

static float exp_shifted(float *y, const float *x, float shift, float scale, size_t n) {
    const __m512 shifts = _mm512_set1_ps(shift), scales = _mm512_set1_ps(scale);
    __m512 sums = _mm512_setzero_ps();
    FOR_LANES(i, mask, n) {
        __m512 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, x + i), shifts), scales);
        // Not less than, or not a number: what underflows is 0, not the clamp's smallest number.
        __mmask16 kept = _mm512_mask_cmp_ps_mask(mask, v, _mm512_set1_ps(-87.3f), _CMP_NLT_UQ);
        v = _mm512_maskz_mov_ps(kept, exponential(v));
        sums = _mm512_add_ps(sums, v);
        _mm512_mask_storeu_ps(y + i, mask, v);
    }
    return reduce(sums);
}

static const tk_kernels table = {"avx512", matmul, rmsnorm, rotate,      silu_multiply,
                                 add,      widen,  narrow,  exp_shifted, &tk_attention_avx512};

#pragma clang attribute pop

const tk_kernels *tk_kernels_avx512(void) { return &table; }

#else

const tk_kernels *tk_kernels_avx512(void) { return NULL; }

#endif
