// The reference definition of GGUF's block formats. No product is fused with a sum, so that every
// machine gives the same bits.
#include "CDequant.h"

#include <math.h>

#include "numbers.h"

#pragma STDC FP_CONTRACT OFF

enum { SMALL_VALUES = 32, SUPER_VALUES = 256 };

size_t tk_block_values(tk_block_format format) {
    switch (format) {
    case TK_BLOCK_Q8_0:
    case TK_BLOCK_Q4_0: return SMALL_VALUES;
    case TK_BLOCK_Q4_K:
    case TK_BLOCK_Q5_K:
    case TK_BLOCK_Q6_K: return SUPER_VALUES;
    }
    return SMALL_VALUES;
}

size_t tk_block_bytes(tk_block_format format) {
    switch (format) {
    case TK_BLOCK_Q8_0: return 34;
    case TK_BLOCK_Q4_0: return 18;
    case TK_BLOCK_Q4_K: return 144;
    case TK_BLOCK_Q5_K: return 176;
    case TK_BLOCK_Q6_K: return 210;
    }
    return 34;
}

static inline float scale_at(const uint8_t *bytes) {
    return f16_float((uint16_t)(bytes[0] | (uint16_t)bytes[1] << 8));
}

static inline void put_scale(uint8_t *bytes, float scale) {
    uint16_t half = float_f16(scale);
    bytes[0] = (uint8_t)half;
    bytes[1] = (uint8_t)(half >> 8);
}

// f16 scale, 32 int8.
static void q8_0(float *y, const uint8_t *block) {
    float d = scale_at(block);
    for (size_t i = 0; i < SMALL_VALUES; i++) y[i] = d * (float)(int8_t)block[2 + i];
}

// f16 scale, 16 bytes: low nibbles are values 0 to 15, high ones 16 to 31.
static void q4_0(float *y, const uint8_t *block) {
    float d = scale_at(block);
    for (size_t i = 0; i < SMALL_VALUES / 2; i++) {
        y[i] = d * (float)((int)(block[2 + i] & 15) - 8);
        y[i + SMALL_VALUES / 2] = d * (float)((int)(block[2 + i] >> 4) - 8);
    }
}

// The 6-bit scale and minimum of one of 8 groups, packed into 12 bytes.
static inline void group_scale(const uint8_t *packed, size_t group, float *scale, float *minimum) {
    if (group < 4) {
        *scale = (float)(packed[group] & 63);
        *minimum = (float)(packed[group + 4] & 63);
    } else {
        *scale = (float)((packed[group + 4] & 15) | (packed[group - 4] >> 6) << 4);
        *minimum = (float)((packed[group + 4] >> 4) | (packed[group] >> 6) << 4);
    }
}

// f16 scale, f16 minimum, 12 bytes of group scales, 128 bytes: each 32 of them two groups of 32.
static void q4_k(float *y, const uint8_t *block) {
    float d = scale_at(block), dmin = scale_at(block + 2);
    const uint8_t *scales = block + 4, *nibbles = block + 16;
    for (size_t group = 0; group < 8; group++) {
        float scale, minimum;
        group_scale(scales, group, &scale, &minimum);
        float step = d * scale, base = dmin * minimum;
        const uint8_t *q = nibbles + group / 2 * 32;
        int shift = group % 2 ? 4 : 0;
        for (size_t i = 0; i < 32; i++) y[group * 32 + i] = step * (float)(q[i] >> shift & 15) - base;
    }
}

// As Q4_K with 32 bytes of fifth bits before the nibbles: bit g of byte i is value i of group g.
static void q5_k(float *y, const uint8_t *block) {
    float d = scale_at(block), dmin = scale_at(block + 2);
    const uint8_t *scales = block + 4, *high = block + 16, *nibbles = block + 48;
    for (size_t group = 0; group < 8; group++) {
        float scale, minimum;
        group_scale(scales, group, &scale, &minimum);
        float step = d * scale, base = dmin * minimum;
        const uint8_t *q = nibbles + group / 2 * 32;
        int shift = group % 2 ? 4 : 0;
        for (size_t i = 0; i < 32; i++) {
            int value = (q[i] >> shift & 15) | (high[i] >> group & 1) << 4;
            y[group * 32 + i] = step * (float)value - base;
        }
    }
}

// 128 bytes of low nibbles, 64 bytes of two high bits, 16 int8 scales, f16 scale. Each half of the
// block is four runs of 32 values.
static void q6_k(float *y, const uint8_t *block) {
    const uint8_t *scales = block + 192;
    float d = scale_at(block + 208);
    for (size_t run = 0; run < 8; run++) {
        size_t half = run / 4, quarter = run % 4;
        const uint8_t *low = block + half * 64 + quarter % 2 * 32;
        const uint8_t *high = block + 128 + half * 32;
        int low_shift = quarter < 2 ? 0 : 4, high_shift = (int)quarter * 2;
        for (size_t i = 0; i < 32; i++) {
            int value = ((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32;
            float step = d * (float)(int8_t)scales[run * 2 + i / 16];
            y[run * 32 + i] = step * (float)value;
        }
    }
}

void tk_dequantise(float *values, const void *packed, tk_block_format format, size_t blocks) {
    const uint8_t *block = packed;
    size_t count = tk_block_values(format), bytes = tk_block_bytes(format);
    for (size_t i = 0; i < blocks; i++, values += count, block += bytes) switch (format) {
        case TK_BLOCK_Q8_0: q8_0(values, block); break;
        case TK_BLOCK_Q4_0: q4_0(values, block); break;
        case TK_BLOCK_Q4_K: q4_k(values, block); break;
        case TK_BLOCK_Q5_K: q5_k(values, block); break;
        case TK_BLOCK_Q6_K: q6_k(values, block); break;
        }
}

// The value cut to a range; NaN becomes its low end, so that no conversion is undefined.
static inline int within(float value, int low, int high) {
    if (!(value > (float)low)) return low;
    if (value > (float)high) return high;
    return (int)value;
}

// roundf of what lies within -128 to 127, NaN taken for -128: to nearest, ties away from zero, in steps
// that compilers put into vectors.
static inline int nearest(float value) {
    value = value >= -128 ? value : -128;
    value = value > 127 ? 127 : value;
    int whole = (int)value;
    float rest = value - (float)whole;
    return whole + (rest >= 0.5f) - (rest <= -0.5f);
}

void tk_quantise_q8_0(void *packed, const float *values, size_t blocks) {
    uint8_t *block = packed;
    for (size_t b = 0; b < blocks; b++, block += 34, values += SMALL_VALUES) {
        // Magnitudes compare as their bits do.
        int32_t largest = 0;
        for (size_t i = 0; i < SMALL_VALUES; i++) {
            int32_t magnitude = (int32_t)(float_bits(values[i]) & 0x7fffffff);
            largest = magnitude > largest ? magnitude : largest;
        }
        float d = bits_float((uint32_t)largest) / 127, inverse = d == 0 ? 0 : 1 / d;
        put_scale(block, d);
        for (size_t i = 0; i < SMALL_VALUES; i++) block[2 + i] = (uint8_t)(int8_t)nearest(values[i] * inverse);
    }
}

void tk_quantise_q4_0(void *packed, const float *values, size_t blocks) {
    uint8_t *block = packed;
    for (size_t b = 0; b < blocks; b++, block += 18, values += SMALL_VALUES) {
        // The value furthest from zero, the first of equals, becomes -8.
        float furthest = values[0];
        for (size_t i = 1; i < SMALL_VALUES; i++)
            if (fabsf(values[i]) > fabsf(furthest)) furthest = values[i];
        float d = furthest / -8, inverse = d == 0 ? 0 : 1 / d;
        put_scale(block, d);
        for (size_t i = 0; i < SMALL_VALUES / 2; i++) {
            int low = within(values[i] * inverse + 8.5f, 0, 15);
            int high = within(values[i + SMALL_VALUES / 2] * inverse + 8.5f, 0, 15);
            block[2 + i] = (uint8_t)(low | high << 4);
        }
    }
}

void tk_narrow_f16(uint16_t *narrow, const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) narrow[i] = float_f16(values[i]);
}

void tk_narrow_bf16(uint16_t *narrow, const float *values, size_t count) {
    for (size_t i = 0; i < count; i++) narrow[i] = float_bf16(values[i]);
}

void tk_add_rounding_error(tk_rounding_error *sums, const float *exact, const float *rounded, size_t count) {
    for (size_t i = 0; i < count; i++) {
        double error = (double)rounded[i] - (double)exact[i];
        sums->squared_error += error * error;
        sums->squared_value += (double)exact[i] * (double)exact[i];
        if (fabs(error) > sums->largest_error) sums->largest_error = fabs(error);
    }
}
