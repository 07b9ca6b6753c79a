#include "tandem_crc32c.h"

#include <pthread.h>
#include <string.h>

// Reflected polynomial. A CRC register is a polynomial over GF(2) whose highest bit is x^0.
#define POLYNOMIAL 0x82f63b78u

// The hardware loop runs three streams at once, because the instruction's latency is three times
// its cycle; blocks of these sizes are then joined (after Mark Adler's crc32c.c).
enum { LONG_BYTES = 8192, SHORT_BYTES = 256 };

static uint32_t byte_table[8][256];
static uint32_t power_table[64]; // x^(2^k)
static uint32_t long_shift[4][256];
static uint32_t short_shift[4][256];
static int hardware;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static uint32_t multiply(uint32_t a, uint32_t b) {
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
        if (a & bit) product ^= b;
        b = b & 1 ? (b >> 1) ^ POLYNOMIAL : b >> 1;
    }
    return product;
}

// x^(8 * bytes).
static uint32_t shift_of(uint64_t bytes) {
    uint32_t power = 1u << 31;
    for (int k = 3; bytes != 0; bytes >>= 1, k++) {
        // The order of x is 2^31 - 1, so x^(2^(k + 31)) = x^(2^k): the index wraps within the table.
        if (bytes & 1) power = multiply(power_table[k < 64 ? k : k - 31], power);
    }
    return power;
}

static void fill_shift(uint32_t table[4][256], uint64_t bytes) {
    uint32_t power = shift_of(bytes);
    for (int lane = 0; lane < 4; lane++)
        for (uint32_t n = 0; n < 256; n++) table[lane][n] = multiply(power, n << (8 * lane));
}

static void prepare(void) {
    for (uint32_t n = 0; n < 256; n++) {
        uint32_t crc = n;
        for (int bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >> 1) ^ POLYNOMIAL : crc >> 1;
        byte_table[0][n] = crc;
    }
    for (uint32_t n = 0; n < 256; n++)
        for (int k = 1; k < 8; k++)
            byte_table[k][n] = (byte_table[k - 1][n] >> 8) ^ byte_table[0][byte_table[k - 1][n] & 0xff];
    power_table[0] = 1u << 30;
    for (int k = 1; k < 64; k++) power_table[k] = multiply(power_table[k - 1], power_table[k - 1]);
    fill_shift(long_shift, LONG_BYTES);
    fill_shift(short_shift, SHORT_BYTES);
#if defined(__x86_64__)
    __builtin_cpu_init();
    hardware = __builtin_cpu_supports("sse4.2") != 0;
#endif
}

static uint32_t portable(uint32_t seed, const unsigned char *next, size_t count) {
    uint32_t crc = ~seed;
    while (count >= 8) {
        uint64_t word = 0;
        for (int k = 0; k < 8; k++) word |= (uint64_t)next[k] << (8 * k);
        word ^= crc;
        crc = 0;
        for (int k = 0; k < 8; k++) crc ^= byte_table[7 - k][(word >> (8 * k)) & 0xff];
        next += 8;
        count -= 8;
    }
    while (count-- > 0) crc = (crc >> 8) ^ byte_table[0][(crc ^ *next++) & 0xff];
    return ~crc;
}

#if defined(__x86_64__)
static inline uint32_t shifted(uint32_t table[4][256], uint32_t crc) {
    return table[0][crc & 0xff] ^ table[1][(crc >> 8) & 0xff] ^ table[2][(crc >> 16) & 0xff] ^ table[3][crc >> 24];
}

static inline uint64_t word_at(const unsigned char *bytes) {
    uint64_t word;
    memcpy(&word, bytes, 8);
    return word;
}

__attribute__((target("sse4.2"))) static const unsigned char *three_streams(
    uint64_t *crc, const unsigned char *next, size_t *count, size_t block, uint32_t table[4][256]) {
    uint64_t a = *crc;
    while (*count >= 3 * block) {
        uint64_t b = 0, c = 0;
        const unsigned char *end = next + block;
        for (; next < end; next += 8) {
            a = __builtin_ia32_crc32di(a, word_at(next));
            b = __builtin_ia32_crc32di(b, word_at(next + block));
            c = __builtin_ia32_crc32di(c, word_at(next + 2 * block));
        }
        a = shifted(table, (uint32_t)a) ^ (uint32_t)b;
        a = shifted(table, (uint32_t)a) ^ (uint32_t)c;
        next += 2 * block;
        *count -= 3 * block;
    }
    *crc = a;
    return next;
}

__attribute__((target("sse4.2"))) static uint32_t accelerated(uint32_t seed, const unsigned char *next, size_t count) {
    uint64_t crc = (uint32_t)~seed;
    while (count > 0 && ((uintptr_t)next & 7) != 0) {
        crc = __builtin_ia32_crc32qi((uint32_t)crc, *next++);
        count--;
    }
    next = three_streams(&crc, next, &count, LONG_BYTES, long_shift);
    next = three_streams(&crc, next, &count, SHORT_BYTES, short_shift);
    for (; count >= 8; next += 8, count -= 8) crc = __builtin_ia32_crc32di(crc, word_at(next));
    while (count-- > 0) crc = __builtin_ia32_crc32qi((uint32_t)crc, *next++);
    return ~(uint32_t)crc;
}
#endif

uint32_t tandem_crc32c(uint32_t seed, const void *bytes, size_t count) {
    pthread_once(&once, prepare);
#if defined(__x86_64__)
    if (hardware) return accelerated(seed, bytes, count);
#endif
    return portable(seed, bytes, count);
}

uint32_t tandem_crc32c_portable(uint32_t seed, const void *bytes, size_t count) {
    pthread_once(&once, prepare);
    return portable(seed, bytes, count);
}

uint32_t tandem_crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t count_b) {
    if (crc_a == 0) return crc_b;
    pthread_once(&once, prepare);
    return multiply(shift_of(count_b), crc_a) ^ crc_b;
}
