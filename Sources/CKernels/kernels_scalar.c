// The plain table. Sums run in eight lanes, which a compiler may put in vectors without changing a bit.
#include <math.h>

#include "attention_rows.h"
#include "numbers.h"

#pragma STDC FP_CONTRACT OFF

enum { LANES = 8 };

static inline float element_at(const void *x, tk_element element, size_t i) {
    switch (element) {
    case TK_F32: return ((const float *)x)[i];
    case TK_F16: return f16_float(((const uint16_t *)x)[i]);
    case TK_BF16: return bf16_float(((const uint16_t *)x)[i]);
    }
    return 0;
}

static inline float reduce(const float lanes[LANES]) {
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]));
}

static inline __attribute__((always_inline)) float dot(
    const float *x, const void *w, tk_element element, size_t start, size_t n) {
    float lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] += x[i + lane] * element_at(w, element, start + i + lane);
    for (size_t lane = 0; i + lane < n; lane++) lanes[lane] += x[i + lane] * element_at(w, element, start + i + lane);
    return reduce(lanes);
}

static inline __attribute__((always_inline)) void matmul_of(
    float *y, const float *x, const void *w, const float *bias, tk_element element, size_t rows, size_t in, size_t out,
    size_t y_stride, int accumulate) {
    for (size_t o = 0; o < out; o++)
        for (size_t r = 0; r < rows; r++) {
            float value = dot(x + r * in, w, element, o * in, in);
            if (bias) value += bias[o];
            y[r * y_stride + o] = accumulate ? y[r * y_stride + o] + value : value;
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
        float scale = 1 / sqrtf(dot(from, from, TK_F32, 0, n) / (float)n + epsilon);
        for (size_t i = 0; i < n; i++) y[r * n + i] = weight[i] * (from[i] * scale);
    }
}

static void rotate(float *x, const float *cos, const float *sin, float scale, size_t heads, size_t dim) {
    size_t half = dim / 2;
    for (size_t h = 0; h < heads; h++) {
        float *low = x + h * dim, *high = low + half;
        for (size_t i = 0; i < half; i++) {
            float a = low[i], b = high[i];
            low[i] = (a * cos[i] - b * sin[i]) * scale;
            high[i] = (b * cos[i] + a * sin[i]) * scale;
        }
    }
}

static void silu_multiply(float *y, const float *gate, const float *up, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

static void add(float *y, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] += x[i];
}

static void widen(float *y, const void *x, tk_element element, size_t n) {
    for (size_t i = 0; i < n; i++) y[i] = element_at(x, element, i);
}

static void narrow(void *y, const float *x, tk_element element, size_t n) {
    switch (element) {
    case TK_F32: memcpy(y, x, n * sizeof(float)); return;
    case TK_F16:
        for (size_t i = 0; i < n; i++) ((uint16_t *)y)[i] = float_f16(x[i]);
        return;
    case TK_BF16:
        for (size_t i = 0; i < n; i++) ((uint16_t *)y)[i] = float_bf16(x[i]);
        return;
    }
}

static float exp_shifted(float *y, const float *x, float shift, float scale, size_t n) {
    float lanes[LANES] = {0};
    for (size_t i = 0; i < n; i++) {
        float power = (x[i] - shift) * scale;
        y[i] = power < -87.3f ? 0 : expf(power);  // as the vector tables have it
        lanes[i % LANES] += y[i];
    }
    return reduce(lanes);
}

static const tk_kernels table = {"scalar", matmul, rmsnorm, rotate,      silu_multiply,
                                 add,      widen,  narrow,  exp_shifted, &tk_attention_scalar};

const tk_kernels *tk_kernels_scalar(void) { return &table; }
