// Eight lanes of 64 bits, each fed by 8 bytes of every 64: the product of the halves of (data xor key)
// and the neighbour's data are added, keys step from stripe to stripe so that none may be exchanged, and
// lanes are mixed after every 16 stripes. The mix is that of xxHash's XXH3, whose primes it borrows.
#include "CChecksum.h"

#include <string.h>

#include "CKernels.h"

#define INLINE static inline __attribute__((always_inline))

enum { LANES = 8, STRIPE = 64, STRIPES = 16 };

#define PRIME32 0x9E3779B1u
#define PRIME64 0x9E3779B185EBCA87ull

/// The state between stripes.
typedef struct sums {
    uint64_t lane[LANES];
    uint64_t key[LANES];
} sums;

INLINE void begin(sums *state) {
    for (uint64_t i = 0; i < LANES; i++) {
        state->lane[i] = PRIME64 * (i + 1);
        state->key[i] = (PRIME64 ^ i << 32) * (2 * i + 3);
    }
}

INLINE void add_stripe(sums *state, const uint8_t *bytes) {
    uint64_t data[LANES];
    memcpy(data, bytes, sizeof data);
    for (size_t i = 0; i < LANES; i++) {
        const uint64_t mixed = data[i] ^ state->key[i];
        state->lane[i] += (mixed & 0xffffffff) * (mixed >> 32) + data[i ^ 1];
        state->key[i] += PRIME64;
    }
}

INLINE void mix(sums *state) {
    for (size_t i = 0; i < LANES; i++) {
        const uint64_t lane = state->lane[i];
        state->lane[i] = (lane ^ lane >> 47 ^ state->key[i]) * PRIME32;
    }
}

INLINE uint64_t avalanche(uint64_t value) {
    value = (value ^ value >> 33) * 0xff51afd7ed558ccdull;
    value = (value ^ value >> 33) * 0xc4ceb9fe1a85ec53ull;
    return value ^ value >> 33;
}

INLINE uint64_t finish(const sums *state, size_t count) {
    uint64_t sum = avalanche(count + PRIME64);
    for (size_t i = 0; i < LANES; i++) sum = avalanche(sum ^ state->lane[i]) + PRIME64;
    return avalanche(sum);
}

INLINE uint64_t checksum(const void *from, size_t count) {
    const uint8_t *bytes = from;
    sums state;
    begin(&state);
    size_t place = 0;
    for (; place + STRIPE * STRIPES <= count; place += STRIPE * STRIPES) {
        for (size_t i = 0; i < STRIPES; i++) {
            __builtin_prefetch(bytes + place + i * STRIPE + 2048);
            add_stripe(&state, bytes + place + i * STRIPE);
        }
        mix(&state);
    }
    for (; place + STRIPE <= count; place += STRIPE) add_stripe(&state, bytes + place);
    if (place < count) {
        uint8_t rest[STRIPE] = {0};
        memcpy(rest, bytes + place, count - place);
        add_stripe(&state, rest);
    }
    mix(&state);
    return finish(&state, count);
}

uint64_t tk_checksum_scalar(const void *bytes, size_t count) { return checksum(bytes, count); }

#if defined(__x86_64__)

__attribute__((target("avx2"))) static uint64_t checksum_avx2(const void *bytes, size_t count) {
    return checksum(bytes, count);
}

__attribute__((target("avx512f,avx512dq"))) static uint64_t checksum_avx512(const void *bytes, size_t count) {
    return checksum(bytes, count);
}

uint64_t tk_checksum(const void *bytes, size_t count) {
    if (tk_cpu_has_avx512()) return checksum_avx512(bytes, count);
    if (tk_cpu_has_avx2()) return checksum_avx2(bytes, count);
    return checksum(bytes, count);
}

#else

uint64_t tk_checksum(const void *bytes, size_t count) { return checksum(bytes, count); }

#endif
