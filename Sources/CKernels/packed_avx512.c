// Packed products with AVX-512: sixteen outputs to a register, VNNI for bytes, AVX512-BF16 for bf16.
#include "packed_layout.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push( \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

enum {
    LANES = 16,
    /// Rows of a register tile.
    CODE_ROWS = 6,
    BF16_ROWS = 12,
    /// Blocks of a panel that stay in the first-level cache while a chunk of rows passes by.
    CACHED_BLOCKS = 8,
    LINE = 64,
};

#include "packed_transpose_x86.h"

/// As `packed_pack.h` has it, in vectors.
INLINE void prepare_block(q8_block *block, const float *x, const int is_power) {
    const __m512 first = _mm512_loadu_ps(x), second = _mm512_loadu_ps(x + LANES);
    const __m512i all_but_sign = _mm512_set1_epi32(0x7fffffff);
    const uint32_t largest = _mm512_reduce_max_epu32(_mm512_max_epu32(
        _mm512_and_si512(_mm512_castps_si512(first), all_but_sign),
        _mm512_and_si512(_mm512_castps_si512(second), all_but_sign)));
    if (__builtin_expect(largest >= 0x7f800000 || largest < 0x0d800000, 0)) {  // not finite, or below 2^-100
        memset(block, 0, sizeof *block);
        block->scale = block->product = largest >= 0x7f800000 ? bits_float(0x7fc00000) : 0;
        return;
    }
    const float most = bits_float(largest);
    const float scale = input_scale(most, is_power);
    const __m512 inverse = _mm512_set1_ps(is_power ? 1 / scale : 127 / most);
    const __m128i low = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(first, inverse)));
    const __m128i high = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(_mm512_mul_ps(second, inverse)));
    const __m256i codes = _mm256_set_m128i(high, low);
    _mm256_storeu_si256((void *)block->codes, codes);
    const __m256i fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes);
    __m128i sums = _mm_hadd_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    sums = _mm_hadd_epi32(sums, sums);
    const int32_t first_half = _mm_cvtsi128_si32(sums), sum = first_half + _mm_extract_epi32(sums, 1);
    block->scale = scale;
    block->product = is_power ? power_of(scale) : scale * (float)sum;
    block->start = -128 * sum;
    block->half_start = -128 * first_half;
}
#define HAS_PREPARE_BLOCK

#include "packed_pack.h"

/// Memory to ask for while a tile computes: `lines` lines for each block.
typedef struct ahead {
    const uint8_t *from;
    size_t lines;
} ahead;

INLINE void ask(ahead *next) {
    for (size_t i = 0; i < next->lines; i++) _mm_prefetch((const char *)(next->from + i * LINE), _MM_HINT_T0);
    next->from += next->lines * LINE;
}

// MARK: Codes

/// Sixteen outputs times four inputs, as unsigned bytes.
INLINE __m512i codes_at(const uint8_t *codes, const tk_packed_format format, const size_t quad, const size_t half) {
    const size_t place = half * LINE;
    if (format == TK_PACKED_Q8_0) return _mm512_load_si512(codes + quad * QUAD_BYTES + place);
    const __m512i low = _mm512_set1_epi8(15);
    __m512i nibbles = _mm512_load_si512(codes + quad % 4 * QUAD_BYTES + place);
    if (quad >= 4) nibbles = _mm512_srli_epi16(nibbles, 4);
    nibbles = _mm512_and_si512(nibbles, low);
    const uint8_t *more = codes + NIBBLE_BYTES;
    if (format == TK_PACKED_Q5_K) {
        __mmask64 fifth;
        memcpy(&fifth, more + (quad * QUAD_BYTES + place) / 8, sizeof fifth);
        return _mm512_mask_add_epi8(nibbles, fifth, nibbles, _mm512_set1_epi8(16));
    }
    if (format == TK_PACKED_Q6_K) {
        __m512i high = _mm512_load_si512(more + quad / 4 * QUAD_BYTES + place);
        const int bit = (int)(quad % 4 * 2);
        high = bit < 4 ? _mm512_slli_epi16(high, 4 - bit) : _mm512_srli_epi16(high, bit - 4);
        // nibbles | (high & 0x30)
        return _mm512_ternarylogic_epi32(nibbles, high, _mm512_set1_epi8(0x30), 0xf8);
    }
    return nibbles;
}

INLINE __m512 f16_scales(const void *scales) { return _mm512_cvtph_ps(_mm256_load_si256(scales)); }
INLINE __m512 unsigned_scales(const void *scales) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_load_si128(scales)));
}
INLINE __m512 signed_scales(const void *scales) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128(scales)));
}

/// Where the integer sum of a row and block starts, so that unsigned codes give the signed sum.
INLINE __m512i start_of(const q8_block *x, const tk_packed_format format) {
    switch (format) {
    case TK_PACKED_Q8_0: return _mm512_set1_epi32(x->start);
    case TK_PACKED_Q4_0: return _mm512_srai_epi32(_mm512_set1_epi32(x->start), 4);
    case TK_PACKED_Q6_K:
    case TK_PACKED_Q4_K:
    case TK_PACKED_Q5_K:
    case TK_PACKED_BF16: return _mm512_setzero_si512();
    }
    return _mm512_setzero_si512();
}

/// Adds the products of quads begin ..< end of a block to the rows' integer sums.
INLINE void add_quads(
    __m512i ints[CODE_ROWS][2], const uint8_t *codes, const uint8_t *x, size_t x_stride, const tk_packed_format format,
    const size_t rows, const size_t begin, const size_t end) {
    UNROLL for (size_t quad = begin; quad < end; quad++) {
        __m512i first = codes_at(codes, format, quad, 0), second = codes_at(codes, format, quad, 1);
        UNROLL for (size_t r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_stride + quad * 4, sizeof four);
            __m512i inputs = _mm512_set1_epi32(four);
            ints[r][0] = _mm512_dpbusd_epi32(ints[r][0], first, inputs);
            ints[r][1] = _mm512_dpbusd_epi32(ints[r][1], second, inputs);
        }
    }
}

/// sum += integer sum * (weight scale * input scale).
INLINE __m512 add_scaled(__m512 sum, __m512i ints, __m512 scales, float scale) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints), _mm512_mul_ps(scales, _mm512_set1_ps(scale)), sum);
}

/// The same for an input scale that is a power of two, given by its exponent: the same bits, and no work for
/// the units that multiply.
INLINE __m512 add_powered(__m512 sum, __m512i ints, __m512 scales, float power) {
    return _mm512_fmadd_ps(_mm512_cvtepi32_ps(ints), _mm512_scalef_ps(scales, _mm512_set1_ps(power)), sum);
}

/// `rows` rows (known when compiled) times one panel, over blocks begin ..< end, onto `sums` unless
/// begin is 0.
INLINE void codes_tile(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const tk_packed_format format,
    const size_t rows, size_t begin, size_t end, ahead next) {
    __m512 totals[CODE_ROWS][2];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < 2; c++)
        totals[r][c] = begin == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * PANEL + c * LANES);
    const size_t head = super_bytes(format), header = head == 0 ? SCALE_BYTES : 2 * PANEL;
    const uint8_t *block = panel + block_offset(format, begin);
    __m512 steps[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()}, bases[2] = {steps[0], steps[0]};
    x += begin * sizeof(q8_block);
    for (size_t b = begin; b < end; b++, x += sizeof(q8_block)) {
        if (head != 0 && (b == begin || b % SUPER == 0)) {
            if (b != begin) block += head;
            const uint8_t *super = block - b % SUPER * block_bytes(format) - head;
            UNROLL for (size_t c = 0; c < 2; c++) {
                steps[c] = f16_scales(super + c * LANES * 2);
                if (head == 2 * SCALE_BYTES) bases[c] = f16_scales(super + SCALE_BYTES + c * LANES * 2);
            }
        }
        ask(&next);
        __m512i ints[CODE_ROWS][2];
        if (format == TK_PACKED_Q6_K) {
            UNROLL for (size_t half = 0; half < 2; half++) {
                UNROLL for (size_t r = 0; r < rows; r++) {
                    const q8_block *input = (const q8_block *)(const void *)(x + r * x_stride);
                    int32_t start = half == 0 ? input->half_start : input->start - input->half_start;
                    ints[r][0] = ints[r][1] = _mm512_srai_epi32(_mm512_set1_epi32(start), 2);
                }
                add_quads(ints, block + header, x, x_stride, format, rows, half * 4, half * 4 + 4);
                __m512 first = _mm512_mul_ps(steps[0], signed_scales(block + half * PANEL));
                __m512 second = _mm512_mul_ps(steps[1], signed_scales(block + half * PANEL + LANES));
                UNROLL for (size_t r = 0; r < rows; r++) {
                    const q8_block *input = (const q8_block *)(const void *)(x + r * x_stride);
                    totals[r][0] = add_scaled(totals[r][0], ints[r][0], first, input->scale);
                    totals[r][1] = add_scaled(totals[r][1], ints[r][1], second, input->scale);
                }
            }
        } else {
            UNROLL for (size_t r = 0; r < rows; r++)
                ints[r][0] = ints[r][1] = start_of((const q8_block *)(const void *)(x + r * x_stride), format);
            add_quads(ints, block + header, x, x_stride, format, rows, 0, QUADS);
            __m512 scales[2];
            UNROLL for (size_t c = 0; c < 2; c++)
                scales[c] = head == 0 ? f16_scales(block + c * LANES * 2)
                                      : _mm512_mul_ps(steps[c], unsigned_scales(block + c * LANES));
            UNROLL for (size_t r = 0; r < rows; r++) {
                const q8_block *input = (const q8_block *)(const void *)(x + r * x_stride);
                UNROLL for (size_t c = 0; c < 2; c++)
                    totals[r][c] = format == TK_PACKED_Q4_0
                                       ? add_powered(totals[r][c], ints[r][c], scales[c], input->product)
                                       : add_scaled(totals[r][c], ints[r][c], scales[c], input->scale);
            }
            if (head != 0) {
                UNROLL for (size_t c = 0; c < 2; c++)
                    scales[c] = _mm512_mul_ps(bases[c], unsigned_scales(block + PANEL + c * LANES));
                UNROLL for (size_t r = 0; r < rows; r++) {
                    const q8_block *input = (const q8_block *)(const void *)(x + r * x_stride);
                    UNROLL for (size_t c = 0; c < 2; c++)
                        totals[r][c] = _mm512_fnmadd_ps(scales[c], _mm512_set1_ps(input->product), totals[r][c]);
                }
            }
        }
        block += block_bytes(format);
    }
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < 2; c++)
        _mm512_store_ps(sums + r * PANEL + c * LANES, totals[r][c]);
}

INLINE void codes_rows(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const tk_packed_format format, size_t rows,
    size_t begin, size_t end, ahead next) {
    switch (rows) {
    case 1: codes_tile(sums, x, x_stride, panel, format, 1, begin, end, next); return;
    case 2: codes_tile(sums, x, x_stride, panel, format, 2, begin, end, next); return;
    case 3: codes_tile(sums, x, x_stride, panel, format, 3, begin, end, next); return;
    case 4: codes_tile(sums, x, x_stride, panel, format, 4, begin, end, next); return;
    case 5: codes_tile(sums, x, x_stride, panel, format, 5, begin, end, next); return;
    default: codes_tile(sums, x, x_stride, panel, format, 6, begin, end, next); return;
    }
}

// MARK: bf16

INLINE __m512bh pairs_at(const uint8_t *pairs) { return (__m512bh)_mm512_load_si512(pairs); }

/// `rows` rows times one panel, over pairs begin ..< end.
INLINE void bf16_tile(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const size_t rows, size_t begin, size_t end,
    ahead next) {
    __m512 totals[BF16_ROWS][2];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < 2; c++)
        totals[r][c] = begin == 0 ? _mm512_setzero_ps() : _mm512_load_ps(sums + r * PANEL + c * LANES);
    for (size_t pair = begin; pair < end; pair++) {
        if (pair % 8 == 0) ask(&next);
        __m512bh first = pairs_at(panel + pair * QUAD_BYTES), second = pairs_at(panel + pair * QUAD_BYTES + LINE);
        UNROLL for (size_t r = 0; r < rows; r++) {
            int32_t two;
            memcpy(&two, x + r * x_stride + pair * 4, sizeof two);
            __m512bh inputs = (__m512bh)_mm512_set1_epi32(two);
            totals[r][0] = _mm512_dpbf16_ps(totals[r][0], first, inputs);
            totals[r][1] = _mm512_dpbf16_ps(totals[r][1], second, inputs);
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t c = 0; c < 2; c++)
        _mm512_store_ps(sums + r * PANEL + c * LANES, totals[r][c]);
}

INLINE void bf16_rows(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, size_t rows, size_t begin, size_t end,
    ahead next) {
    switch (rows) {
    case 1: bf16_tile(sums, x, x_stride, panel, 1, begin, end, next); return;
    case 2: bf16_tile(sums, x, x_stride, panel, 2, begin, end, next); return;
    case 3: bf16_tile(sums, x, x_stride, panel, 3, begin, end, next); return;
    case 4: bf16_tile(sums, x, x_stride, panel, 4, begin, end, next); return;
    case 5: bf16_tile(sums, x, x_stride, panel, 5, begin, end, next); return;
    case 6: bf16_tile(sums, x, x_stride, panel, 6, begin, end, next); return;
    case 7: bf16_tile(sums, x, x_stride, panel, 7, begin, end, next); return;
    case 8: bf16_tile(sums, x, x_stride, panel, 8, begin, end, next); return;
    case 9: bf16_tile(sums, x, x_stride, panel, 9, begin, end, next); return;
    case 10: bf16_tile(sums, x, x_stride, panel, 10, begin, end, next); return;
    case 11: bf16_tile(sums, x, x_stride, panel, 11, begin, end, next); return;
    default: bf16_tile(sums, x, x_stride, panel, 12, begin, end, next); return;
    }
}

// MARK: Products

/// Up to CHUNK_ROWS rows times one panel, cut so that weights and inputs stay in the first-level cache:
/// all rows pass by some blocks of the panel before the next blocks come. Meanwhile those are asked for.
INLINE void chunk(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const tk_packed_format format, size_t rows,
    size_t inputs) {
    const int is_bf16 = format == TK_PACKED_BF16;
    const size_t tile_rows = is_bf16 ? BF16_ROWS : CODE_ROWS, tiles = (rows + tile_rows - 1) / tile_rows;
    // Steps are blocks of 32 inputs, for bf16 half blocks of 8 pairs.
    const size_t steps = is_bf16 ? (inputs + 15) / 16 : inputs / BLOCK;
    const size_t step_bytes = is_bf16 ? CODE_BYTES : block_bytes(format) + super_bytes(format) / SUPER;
    const size_t cached = tiles == 1 ? steps : is_bf16 ? 2 * CACHED_BLOCKS : CACHED_BLOCKS;
    for (size_t begin = 0; begin < steps; begin += cached) {
        const size_t end = min_size(steps, begin + cached);
        // Each tile asks for its share of what comes next; a single tile for what comes 4 KiB later.
        const size_t lines = (step_bytes / LINE + tiles - 1) / tiles;
        ahead next = {panel + begin * step_bytes + (tiles == 1 ? 4096 : cached * step_bytes), lines};
        size_t row = 0;
        for (size_t tile = 0; tile < tiles; tile++) {
            const size_t here = (rows - row + tiles - tile - 1) / (tiles - tile);
            if (is_bf16)
                bf16_rows(
                    sums + row * PANEL, x + row * x_stride, x_stride, panel, here, begin * 8,
                    min_size(end * 8, (inputs + 1) / 2), next);
            else
                codes_rows(sums + row * PANEL, x + row * x_stride, x_stride, panel, format, here, begin, end, next);
            next.from += (end - begin) * lines * LINE;
            row += here;
        }
    }
}

INLINE void multiply_of(
    float *y, const uint8_t *x, const tk_packed *w, const float *bias, int accumulate, const tk_packed_format format,
    size_t rows, size_t first, size_t count, size_t y_stride) {
    _Alignas(64) float sums[CHUNK_ROWS * PANEL];
    const size_t x_stride = tk_prepared_stride(tk_packed_input_form(format), w->inputs);
    const size_t panel_bytes = tk_panel_bytes(format, w->inputs);
    const size_t rows_kept = max_size(1, 512 * 1024 / (x_stride * CHUNK_ROWS)) * CHUNK_ROWS;
    for (size_t start = 0; start < rows; start += rows_kept)
        for (size_t o = first; o < first + count; o += PANEL)
            for (size_t r = start; r < min_size(rows, start + rows_kept); r += CHUNK_ROWS) {
                const size_t here = min_size(CHUNK_ROWS, rows - r);
                chunk(sums, x + r * x_stride, x_stride, w->panels + o / PANEL * panel_bytes, format, here, w->inputs);
                write_out(
                    y + r * y_stride + o, sums, bias ? bias + o : NULL, accumulate, here,
                    min_size(PANEL, first + count - o), y_stride);
            }
}

static void multiply(
    float *y, const uint8_t *x, const tk_packed *w, const float *bias, int accumulate, size_t rows, size_t first,
    size_t count, size_t y_stride) {
#define CASE(format)                                                                    \
    case format: multiply_of(y, x, w, bias, accumulate, format, rows, first, count, y_stride); return
    switch (w->format) {
        CASE(TK_PACKED_Q8_0);
        CASE(TK_PACKED_Q4_0);
        CASE(TK_PACKED_Q4_K);
        CASE(TK_PACKED_Q5_K);
        CASE(TK_PACKED_Q6_K);
        CASE(TK_PACKED_BF16);
    }
#undef CASE
}

static const tk_packed_kernels table = {"avx512vnni", prepare, multiply, pack};

#pragma clang attribute pop

const tk_packed_kernels *tk_packed_avx512vnni(void) { return &table; }

#else

const tk_packed_kernels *tk_packed_avx512vnni(void) { return NULL; }

#endif
