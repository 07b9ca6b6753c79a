// What is the same for every instruction set.
#include <math.h>

#include "numbers.h"

#pragma STDC FP_CONTRACT OFF

int tk_cpu_has_avx2(void) {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
#else
    return 0;
#endif
}

int tk_cpu_has_avx512(void) {
#if defined(__x86_64__)
    return tk_cpu_has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
    return 0;
#endif
}

void tk_rotary_table(
    float *cosines, float *sines, const float *frequencies, const uint32_t *positions, float factor, size_t count,
    size_t half) {
    for (size_t row = 0; row < count; row++)
        for (size_t i = 0; i < half; i++) {
            float angle = (float)positions[row] * frequencies[i];
            cosines[row * half + i] = (float)cos((double)angle) * factor;
            sines[row * half + i] = (float)sin((double)angle) * factor;
        }
}

size_t tk_argmax_finite(const float *x, size_t n) {
    size_t best = 0;
    float spoiled = 0;  // becomes NaN at the first value that is not finite
    for (size_t i = 0; i < n; i++) {
        spoiled += x[i] * 0;
        if (x[i] > x[best]) best = i;
    }
    return spoiled == 0 ? best : n;
}

uint64_t tk_touch(const void *base, size_t bytes) {
    const volatile uint8_t *bytes_of = base;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += 4096) sum += bytes_of[i];
    return sum;
}
