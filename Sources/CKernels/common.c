// What is the same for every instruction set.
#if defined(__linux__)
#define _GNU_SOURCE
#include <sched.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
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

enum { SUM_LANES = 16, PICK_BLOCK = 256 };

/// The largest value, and whether any was a NaN or infinite, in lanes that a compiler may put in vectors.
static float largest_of(const float *x, size_t n, int *is_finite) {
    float best[SUM_LANES], spoiled[SUM_LANES] = {0};  // spoiled becomes NaN at a value that is not finite
    for (size_t lane = 0; lane < SUM_LANES; lane++) best[lane] = -__builtin_inff();
    size_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (size_t lane = 0; lane < SUM_LANES; lane++) {
            spoiled[lane] += x[i + lane] * 0;
            best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
        }
    for (size_t lane = 0; i + lane < n; lane++) {
        spoiled[lane] += x[i + lane] * 0;
        best[lane] = x[i + lane] > best[lane] ? x[i + lane] : best[lane];
    }
    *is_finite = 1;
    for (size_t lane = 0; lane < SUM_LANES; lane++) {
        if (spoiled[lane] != 0) *is_finite = 0;
        best[0] = best[lane] > best[0] ? best[lane] : best[0];
    }
    return best[0];
}

static size_t first_equal(const float *x, float value, size_t n) {
    size_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES) {
        int found = 0;
        for (size_t lane = 0; lane < SUM_LANES; lane++) found |= x[i + lane] == value;
        if (found) break;
    }
    while (i < n && x[i] != value) i++;
    return i;
}

size_t tk_argmax(const float *x, size_t n) {
    int is_finite;
    size_t best = first_equal(x, largest_of(x, n, &is_finite), n);
    return best < n ? best : 0;
}

size_t tk_argmax_finite(const float *x, size_t n) {
    int is_finite;
    float largest = largest_of(x, n, &is_finite);
    return is_finite ? first_equal(x, largest, n) : n;
}

/// Sum in lanes, which depends on the values alone.
static double block_sum(const float *x, size_t n) {
    double lanes[SUM_LANES] = {0}, sum = 0;
    size_t i = 0;
    for (; i + SUM_LANES <= n; i += SUM_LANES)
        for (size_t lane = 0; lane < SUM_LANES; lane++) lanes[lane] += (double)x[i + lane];
    for (size_t lane = 0; i + lane < n; lane++) lanes[lane] += (double)x[i + lane];
    for (size_t lane = 0; lane < SUM_LANES; lane++) sum += lanes[lane];
    return sum;
}

size_t tk_pick(const float *weights, size_t n, double draw) {
    double total = 0, sum = 0;
    for (size_t i = 0; i < n; i += PICK_BLOCK) total += block_sum(weights + i, n - i < PICK_BLOCK ? n - i : PICK_BLOCK);
    const double target = draw * total;
    for (size_t i = 0; i < n; i += PICK_BLOCK) {
        const size_t count = n - i < PICK_BLOCK ? n - i : PICK_BLOCK;
        const double after = sum + block_sum(weights + i, count);
        if (after > target)
            for (size_t k = 0; k < count; k++) {
                sum += (double)weights[i + k];
                if (sum > target) return i + k;
            }
        sum = after;
    }
    return n;
}

uint64_t tk_touch(const void *base, size_t bytes) {
    const volatile uint8_t *bytes_of = base;
    uint64_t sum = 0;
    for (size_t i = 0; i < bytes; i += 4096) sum += bytes_of[i];
    return sum;
}

int tk_pin_thread(size_t core) {
#if defined(__linux__)
    cpu_set_t set;
    if (core >= CPU_SETSIZE) return -1;
    CPU_ZERO(&set);
    CPU_SET(core, &set);
    return sched_setaffinity(0, sizeof set, &set);
#else
    return core == 0 ? 0 : -1;
#endif
}

size_t tk_core_count(void) {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0) return (size_t)CPU_COUNT(&set);
#endif
    return 1;
}

uint64_t tk_core_set(void) {
    uint64_t cores = 0;
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) != 0) return 0;
    for (size_t core = 0; core < CPU_SETSIZE; core++)
        if (CPU_ISSET(core, &set)) cores |= (uint64_t)1 << core % 64;
#endif
    return cores;
}

int tk_lower_priority(int niceness) {
#if defined(__linux__)
    const id_t thread = (id_t)syscall(SYS_gettid);
    return setpriority(PRIO_PROCESS, thread, getpriority(PRIO_PROCESS, thread) + niceness);
#else
    return niceness == 0 ? 0 : -1;
#endif
}
