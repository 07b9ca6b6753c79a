// Packed products with Arm's dot product (sdot, armv8.2-a+dotprod): four outputs to a register. It
// computes the plain table's bits, but has been compiled only, never run, by its authors.
#include "packed_layout.h"

#if defined(__aarch64__) && defined(__linux__)

#include <arm_neon.h>
#include <sys/auxv.h>

#pragma STDC FP_CONTRACT OFF
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

enum {
    LANES = 4,
    ROWS = 4,
    /// Registers of one pass over a panel: a quarter of its outputs.
    PARTS = 2,
    CACHED_BLOCKS = 8,
};

/// 32 rows of 8 groups of four bytes to 8 groups of 32 outputs.
static inline void transpose_codes(uint8_t *target, const uint8_t *rows) {
    for (size_t quad = 0; quad < QUADS; quad++)
        for (size_t o = 0; o < PANEL; o++) memcpy(target + quad * QUAD_BYTES + o * 4, rows + o * BLOCK + quad * 4, 4);
}

#include "packed_pack.h"

/// Four outputs times four inputs. Bytes of Q8_0 come back signed; the other codes are small enough to be
/// taken for signed as they are.
INLINE int8x16_t codes_at(const uint8_t *codes, const tk_packed_format format, const size_t quad, const size_t part) {
    const size_t place = part * 16;
    if (format == TK_PACKED_Q8_0)
        return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(codes + quad * QUAD_BYTES + place), vdupq_n_u8(0x80)));
    uint8x16_t nibbles = vld1q_u8(codes + quad % 4 * QUAD_BYTES + place);
    nibbles = quad >= 4 ? vshrq_n_u8(nibbles, 4) : vandq_u8(nibbles, vdupq_n_u8(15));
    const uint8_t *more = codes + NIBBLE_BYTES;
    if (format == TK_PACKED_Q5_K) {
        // Bit i of 16 goes to byte i.
        const uint8_t *bits = more + (quad * QUAD_BYTES + place) / 8;
        static const uint8_t places[16] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        uint8x16_t spread = vcombine_u8(vdup_n_u8(bits[0]), vdup_n_u8(bits[1]));
        nibbles = vorrq_u8(nibbles, vandq_u8(vtstq_u8(spread, vld1q_u8(places)), vdupq_n_u8(16)));
    }
    if (format == TK_PACKED_Q6_K) {
        uint8x16_t high = vld1q_u8(more + quad / 4 * QUAD_BYTES + place);
        const int8_t shift = (int8_t)(4 - (int)(quad % 4 * 2));
        high = vandq_u8(vshlq_u8(high, vdupq_n_s8(shift)), vdupq_n_u8(0x30));
        nibbles = vorrq_u8(nibbles, high);
    }
    return vreinterpretq_s8_u8(nibbles);
}

INLINE float32x4_t f16_scales(const void *scales) {
    float16x4_t halves;
    memcpy(&halves, scales, sizeof halves);
    return vcvt_f32_f16(halves);
}
INLINE float32x4_t unsigned_scales(const uint8_t *scales) {
    uint8x8_t bytes = vdup_n_u8(0);
    memcpy(&bytes, scales, 4);
    return vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes))));
}
INLINE float32x4_t signed_scales(const uint8_t *scales) {
    int8x8_t bytes = vdup_n_s8(0);
    memcpy(&bytes, scales, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
}

/// Integer sums of quads begin ..< end of a block, added to f32 sums with the scales given.
INLINE void add_quads(
    float *sums, const uint8_t *codes, const uint8_t *x, size_t x_stride, const tk_packed_format format,
    const size_t rows, const size_t part, const size_t begin, const size_t end, const int32_t starts[ROWS],
    const float32x4_t scales[PARTS]) {
    int32x4_t ints[ROWS][PARTS];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t p = 0; p < PARTS; p++)
        ints[r][p] = vdupq_n_s32(starts[r]);
    UNROLL for (size_t quad = begin; quad < end; quad++) {
        int8x16_t weights[PARTS];
        UNROLL for (size_t p = 0; p < PARTS; p++) weights[p] = codes_at(codes, format, quad, part + p);
        UNROLL for (size_t r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * x_stride + quad * 4, sizeof four);
            int8x16_t inputs = vreinterpretq_s8_s32(vdupq_n_s32(four));
            UNROLL for (size_t p = 0; p < PARTS; p++) ints[r][p] = vdotq_s32(ints[r][p], weights[p], inputs);
        }
    }
    UNROLL for (size_t r = 0; r < rows; r++) {
        float32x4_t scale = vdupq_n_f32(((const q8_block *)(const void *)(x + r * x_stride))->scale);
        UNROLL for (size_t p = 0; p < PARTS; p++) {
            float *sum = sums + r * PANEL + (part + p) * LANES;
            vst1q_f32(sum, vfmaq_f32(vld1q_f32(sum), vcvtq_f32_s32(ints[r][p]), vmulq_f32(scales[p], scale)));
        }
    }
}

/// `rows` rows times eight outputs of a panel, one block.
INLINE void add_block(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *block, const uint8_t *super,
    const tk_packed_format format, const size_t rows, const size_t part) {
    const size_t head = super_bytes(format), header = head == 0 ? SCALE_BYTES : 2 * PANEL;
    int32_t starts[ROWS];
    float32x4_t scales[PARTS];
    if (format == TK_PACKED_Q6_K) {
        UNROLL for (size_t half = 0; half < 2; half++) {
            UNROLL for (size_t r = 0; r < rows; r++) {
                const q8_block *input = (const q8_block *)(const void *)(x + r * x_stride);
                starts[r] = (half == 0 ? input->half_start : input->start - input->half_start) / 4;
            }
            UNROLL for (size_t p = 0; p < PARTS; p++)
                scales[p] = vmulq_f32(
                    f16_scales(super + (part + p) * LANES * 2), signed_scales(block + half * PANEL + (part + p) * LANES));
            add_quads(sums, block + header, x, x_stride, format, rows, part, half * 4, half * 4 + 4, starts, scales);
        }
        return;
    }
    UNROLL for (size_t r = 0; r < rows; r++)
        starts[r] = format == TK_PACKED_Q4_0 ? ((const q8_block *)(const void *)(x + r * x_stride))->start / 16 : 0;
    UNROLL for (size_t p = 0; p < PARTS; p++)
        scales[p] = head == 0 ? f16_scales(block + (part + p) * LANES * 2)
                              : vmulq_f32(
                                    f16_scales(super + (part + p) * LANES * 2),
                                    unsigned_scales(block + (part + p) * LANES));
    add_quads(sums, block + header, x, x_stride, format, rows, part, 0, QUADS, starts, scales);
    if (head == 0) return;
    UNROLL for (size_t p = 0; p < PARTS; p++) {
        float32x4_t minimum = vmulq_f32(
            f16_scales(super + SCALE_BYTES + (part + p) * LANES * 2),
            unsigned_scales(block + PANEL + (part + p) * LANES));
        UNROLL for (size_t r = 0; r < rows; r++) {
            float *sum = sums + r * PANEL + (part + p) * LANES;
            float32x4_t product = vdupq_n_f32(((const q8_block *)(const void *)(x + r * x_stride))->product);
            vst1q_f32(sum, vfmsq_f32(vld1q_f32(sum), minimum, product));
        }
    }
}

INLINE void tile(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const tk_packed_format format,
    const size_t rows, size_t begin, size_t end) {
    for (size_t b = begin; b < end; b++) {
        const uint8_t *block = panel + block_offset(format, b);
        const uint8_t *super = block - b % SUPER * block_bytes(format) - super_bytes(format);
        for (size_t part = 0; part < PANEL / LANES; part += PARTS)
            add_block(sums, x + b * sizeof(q8_block), x_stride, block, super, format, rows, part);
    }
}

INLINE void chunk(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const tk_packed_format format, size_t rows,
    size_t blocks) {
    memset(sums, 0, rows * PANEL * sizeof(float));
    for (size_t begin = 0; begin < blocks; begin += CACHED_BLOCKS) {
        const size_t end = min_size(blocks, begin + CACHED_BLOCKS);
        for (size_t r = 0; r < rows; r += ROWS) {
            const uint8_t *row = x + r * x_stride;
            float *to = sums + r * PANEL;
            switch (rows - r) {
            case 1: tile(to, row, x_stride, panel, format, 1, begin, end); break;
            case 2: tile(to, row, x_stride, panel, format, 2, begin, end); break;
            case 3: tile(to, row, x_stride, panel, format, 3, begin, end); break;
            default: tile(to, row, x_stride, panel, format, 4, begin, end); break;
            }
        }
    }
}

INLINE void multiply_of(
    float *y, const uint8_t *x, const tk_packed *w, const float *bias, int accumulate, const tk_packed_format format,
    size_t rows, size_t first, size_t count, size_t y_stride) {
    _Alignas(64) float sums[CHUNK_ROWS * PANEL];
    const size_t x_stride = tk_prepared_stride(TK_INPUT_Q8, w->inputs), panel_bytes = tk_panel_bytes(format, w->inputs);
    for (size_t o = first; o < first + count; o += PANEL)
        for (size_t r = 0; r < rows; r += CHUNK_ROWS) {
            const size_t here = min_size(CHUNK_ROWS, rows - r);
            const uint8_t *panel = w->panels + o / PANEL * panel_bytes;
            chunk(sums, x + r * x_stride, x_stride, panel, format, here, w->inputs / BLOCK);
            write_out(
                y + r * y_stride + o, sums, bias ? bias + o : NULL, accumulate, here, min_size(PANEL, first + count - o),
                y_stride);
        }
}

static void multiply(
    float *y, const uint8_t *x, const tk_packed *w, const float *bias, int accumulate, size_t rows, size_t first,
    size_t count, size_t y_stride) {
#define CASE(format) \
    case format: multiply_of(y, x, w, bias, accumulate, format, rows, first, count, y_stride); return
    switch (w->format) {
        CASE(TK_PACKED_Q8_0);
        CASE(TK_PACKED_Q4_0);
        CASE(TK_PACKED_Q4_K);
        CASE(TK_PACKED_Q5_K);
        CASE(TK_PACKED_Q6_K);
    case TK_PACKED_BF16:
        tk_packed_scalar()->multiply(y, x, w, bias, accumulate, rows, first, count, y_stride);
        return;
    }
#undef CASE
}

static const tk_packed_kernels table = {"neon", prepare, multiply, pack};

#pragma clang attribute pop

int tk_cpu_has_neon_dot(void) { return (getauxval(AT_HWCAP) & (1ul << 20)) != 0; }  // HWCAP_ASIMDDP

const tk_packed_kernels *tk_packed_neon(void) { return &table; }

#else

int tk_cpu_has_neon_dot(void) { return 0; }
const tk_packed_kernels *tk_packed_neon(void) { return NULL; }

#endif
