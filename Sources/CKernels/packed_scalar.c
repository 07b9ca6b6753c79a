// The plain table of packed products, and what is the same for every instruction set.
#include <math.h>

#include "packed_layout.h"

#pragma STDC FP_CONTRACT OFF

/// 32 rows of 8 groups of four bytes to 8 groups of 32 outputs.
static inline void transpose_codes(uint8_t *target, const uint8_t *rows) {
    for (size_t quad = 0; quad < QUADS; quad++)
        for (size_t o = 0; o < PANEL; o++) memcpy(target + quad * QUAD_BYTES + o * 4, rows + o * BLOCK + quad * 4, 4);
}

#include "packed_pack.h"

size_t tk_packed_input_multiple(tk_packed_format format) {
    switch (format) {
    case TK_PACKED_Q8_0:
    case TK_PACKED_Q4_0: return BLOCK;
    case TK_PACKED_Q4_K:
    case TK_PACKED_Q5_K:
    case TK_PACKED_Q6_K: return BLOCK * SUPER;
    case TK_PACKED_BF16: return 1;
    }
    return 1;
}

size_t tk_panel_bytes(tk_packed_format format, size_t inputs) {
    if (format == TK_PACKED_BF16) return (inputs + 1) / 2 * QUAD_BYTES;
    return block_offset(format, inputs / BLOCK) - super_bytes(format);
}

tk_input_form tk_packed_input_form(tk_packed_format format) {
    switch (format) {
    case TK_PACKED_BF16: return TK_INPUT_BF16;
    case TK_PACKED_Q4_0: return TK_INPUT_Q8_POWERS;
    case TK_PACKED_Q8_0:
    case TK_PACKED_Q4_K:
    case TK_PACKED_Q5_K:
    case TK_PACKED_Q6_K: return TK_INPUT_Q8;
    }
    return TK_INPUT_Q8;
}

size_t tk_prepared_stride(tk_input_form form, size_t inputs) {
    size_t bytes = form == TK_INPUT_BF16 ? (inputs + 1) / 2 * 4 : inputs / BLOCK * sizeof(q8_block);
    return (bytes + 63) / 64 * 64;
}

int tk_cpu_has_avxvnni(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")
        && __builtin_cpu_supports("avxvnni");
#else
    return 0;
#endif
}

int tk_cpu_has_avx512vnni(void) {
#if defined(__x86_64__)
    return tk_cpu_has_avx512() && __builtin_cpu_supports("avx512vnni");
#else
    return 0;
#endif
}

int tk_cpu_has_avx512bf16(void) {
#if defined(__x86_64__)
    return tk_cpu_has_avx512vnni() && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}

/// The code of one output and one input of a block.
static inline int code_at(const uint8_t *codes, tk_packed_format format, size_t output, size_t input) {
    size_t quad = input / 4, place = output * 4 + input % 4;
    if (format == TK_PACKED_Q8_0) return codes[quad * QUAD_BYTES + place];
    int nibble = codes[quad % 4 * QUAD_BYTES + place] >> (quad / 4 * 4) & 15;
    const uint8_t *more = codes + NIBBLE_BYTES;
    size_t index = quad * QUAD_BYTES + place;
    if (format == TK_PACKED_Q5_K) return nibble | (more[index / 8] >> (index % 8) & 1) << 4;
    if (format == TK_PACKED_Q6_K) return nibble | (more[quad / 4 * QUAD_BYTES + place] >> (quad % 4 * 2) & 3) << 4;
    return nibble;
}

/// The scales of one output in one block: value = scale * (code - offset) - minimum, with a scale for
/// each half.
typedef struct output_scales {
    float scale[2];
    float minimum;
} output_scales;

static inline float f16_at(const uint8_t *bytes) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return f16_float(half);
}

static inline output_scales scales_at(const uint8_t *block, tk_packed_format format, size_t b, size_t output) {
    const uint8_t *super = block - b % SUPER * block_bytes(format) - super_bytes(format);
    output_scales found = {{0, 0}, 0};
    switch (format) {
    case TK_PACKED_Q8_0:
    case TK_PACKED_Q4_0: found.scale[0] = found.scale[1] = f16_at(block + 2 * output); break;
    case TK_PACKED_Q4_K:
    case TK_PACKED_Q5_K:
        found.scale[0] = found.scale[1] = f16_at(super + 2 * output) * (float)block[output];
        found.minimum = f16_at(super + SCALE_BYTES + 2 * output) * (float)block[PANEL + output];
        break;
    case TK_PACKED_Q6_K:
        found.scale[0] = f16_at(super + 2 * output) * (float)(int8_t)block[output];
        found.scale[1] = f16_at(super + 2 * output) * (float)(int8_t)block[PANEL + output];
        break;
    case TK_PACKED_BF16: break;
    }
    return found;
}

static inline size_t codes_after(tk_packed_format format) {
    return format == TK_PACKED_Q8_0 || format == TK_PACKED_Q4_0 ? SCALE_BYTES : 2 * PANEL;
}

void tk_unpack_row(float *values, const tk_packed *w, size_t output) {
    const tk_packed_format format = w->format;
    const uint8_t *panel = w->panels + output / PANEL * tk_panel_bytes(format, w->inputs);
    const size_t lane = output % PANEL;
    if (format == TK_PACKED_BF16) {
        for (size_t i = 0; i < w->inputs; i++) {
            uint16_t half;
            memcpy(&half, panel + i / 2 * QUAD_BYTES + lane * 4 + i % 2 * 2, sizeof half);
            values[i] = bf16_float(half);
        }
        return;
    }
    for (size_t b = 0; b < w->inputs / BLOCK; b++) {
        const uint8_t *block = panel + block_offset(format, b);
        output_scales scales = scales_at(block, format, b, lane);
        for (size_t i = 0; i < BLOCK; i++) {
            int code = code_at(block + codes_after(format), format, lane, i) - code_offset(format);
            values[b * BLOCK + i] = scales.scale[i / 16] * (float)code - scales.minimum;
        }
    }
}

static float dot_codes(const q8_block *x, const uint8_t *panel, tk_packed_format format, size_t lane, size_t blocks) {
    float sum = 0;
    for (size_t b = 0; b < blocks; b++) {
        const uint8_t *block = panel + block_offset(format, b);
        output_scales scales = scales_at(block, format, b, lane);
        int32_t halves[2] = {0, 0};
        for (size_t i = 0; i < BLOCK; i++)
            halves[i / 16] += x[b].codes[i]
                * (code_at(block + codes_after(format), format, lane, i) - code_offset(format));
        if (format == TK_PACKED_Q6_K) {
            sum = fmaf((float)halves[0], scales.scale[0] * x[b].scale, sum);
            sum = fmaf((float)halves[1], scales.scale[1] * x[b].scale, sum);
        } else {
            sum = fmaf((float)(halves[0] + halves[1]), scales.scale[0] * x[b].scale, sum);
        }
        if (format == TK_PACKED_Q4_K || format == TK_PACKED_Q5_K) sum = fmaf(-scales.minimum, x[b].product, sum);
    }
    return sum;
}

/// Two products of a pair after each other, each added with one rounding: the odd one first.
static float dot_bf16(const uint16_t *x, const uint8_t *panel, size_t lane, size_t inputs) {
    float sum = 0;
    for (size_t pair = 0; pair < (inputs + 1) / 2; pair++) {
        uint16_t w[2];
        memcpy(w, panel + pair * QUAD_BYTES + lane * 4, sizeof w);
        sum = fmaf(bf16_float(x[2 * pair + 1]), bf16_float(w[1]), sum);
        sum = fmaf(bf16_float(x[2 * pair]), bf16_float(w[0]), sum);
    }
    return sum;
}

static void multiply(
    float *y, const uint8_t *prepared, const tk_packed *w, const float *bias, int accumulate, size_t rows, size_t first,
    size_t count, size_t y_stride) {
    const size_t stride = tk_prepared_stride(tk_packed_input_form(w->format), w->inputs);
    const size_t panel_bytes = tk_panel_bytes(w->format, w->inputs);
    for (size_t o = first; o < first + count; o++)
        for (size_t r = 0; r < rows; r++) {
            const uint8_t *row = prepared + r * stride, *panel = w->panels + o / PANEL * panel_bytes;
            float sum = w->format == TK_PACKED_BF16
                ? dot_bf16((const uint16_t *)(const void *)row, panel, o % PANEL, w->inputs)
                : dot_codes((const q8_block *)(const void *)row, panel, w->format, o % PANEL, w->inputs / BLOCK);
            write_row(y + r * y_stride + o, &sum, bias ? bias + o : NULL, accumulate, 1);
        }
}

static const tk_packed_kernels table = {"scalar", prepare, multiply, pack};

const tk_packed_kernels *tk_packed_scalar(void) { return &table; }
