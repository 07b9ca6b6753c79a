#include "CLimits.h"

typedef uint64_t lanes __attribute__((vector_size(64)));

/// Sixteen independent sums hide the latency of the instruction. The text of the instruction takes the
/// sum and two inputs.
#define SIXTEEN_SUMS(type, instruction)                                                               \
    type sum[16];                                                                                     \
    for (int i = 0; i < 16; i++) sum[i] = (type){0};                                                  \
    type left = {0}, right = {0};                                                                     \
    for (size_t round = 0; round < rounds; round++)                                                   \
        _Pragma("clang loop unroll(full)") for (int i = 0; i < 16; i++)                               \
            __asm__ volatile(instruction " %2, %1, %0" : "+v"(sum[i]) : "v"(left), "v"(right));       \
    for (int i = 0; i < 16; i++) __asm__ volatile("" : : "v"(sum[i]))

#define SUM_LANES(start, bytes)                                                                       \
    const lanes *from = (start);                                                                      \
    lanes a = {0}, b = {0}, c = {0}, d = {0};                                                         \
    size_t count = (bytes) / sizeof(lanes), i = 0;                                                    \
    for (; i + 4 <= count; i += 4) {                                                                  \
        a ^= from[i];                                                                                 \
        b ^= from[i + 1];                                                                             \
        c ^= from[i + 2];                                                                             \
        d ^= from[i + 3];                                                                             \
    }                                                                                                 \
    for (; i < count; i++) a ^= from[i];                                                              \
    a ^= b ^ c ^ d;                                                                                   \
    return a[0] ^ a[1] ^ a[2] ^ a[3] ^ a[4] ^ a[5] ^ a[6] ^ a[7]

#if defined(__x86_64__)

__attribute__((target("avx512f"))) static uint64_t read_avx512(const void *base, size_t bytes) {
    SUM_LANES(base, bytes);
}

static uint64_t read_plain(const void *base, size_t bytes) { SUM_LANES(base, bytes); }

uint64_t tk_limit_read(const void *base, size_t bytes) {
    return __builtin_cpu_supports("avx512f") ? read_avx512(base, bytes) : read_plain(base, bytes);
}

__attribute__((target("avx512f,avx512vnni"))) static void int8_sums(size_t rounds) {
    SIXTEEN_SUMS(lanes, "vpdpbusd");
}

__attribute__((target("avx512f,avx512bf16"))) static void bf16_sums(size_t rounds) {
    SIXTEEN_SUMS(lanes, "vdpbf16ps");
}

__attribute__((target("avx512f"))) static void f32_sums(size_t rounds) { SIXTEEN_SUMS(lanes, "vfmadd231ps"); }

uint64_t tk_limit_int8(size_t rounds) {
    if (!__builtin_cpu_supports("avx512vnni")) return 0;
    int8_sums(rounds);
    return (uint64_t)rounds * 16 * 64 * 2;
}

uint64_t tk_limit_bf16(size_t rounds) {
    if (!__builtin_cpu_supports("avx512bf16")) return 0;
    bf16_sums(rounds);
    return (uint64_t)rounds * 16 * 32 * 2;
}

uint64_t tk_limit_f32(size_t rounds) {
    if (!__builtin_cpu_supports("avx512f")) return 0;
    f32_sums(rounds);
    return (uint64_t)rounds * 16 * 16 * 2;
}

#else

uint64_t tk_limit_read(const void *base, size_t bytes) { SUM_LANES(base, bytes); }
uint64_t tk_limit_int8(size_t rounds) { return 0; }
uint64_t tk_limit_bf16(size_t rounds) { return 0; }
uint64_t tk_limit_f32(size_t rounds) { return 0; }

#endif
