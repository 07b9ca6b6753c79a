// The transposition that packing needs, with 256-bit shuffles.
#ifndef TANDEM_PACKED_TRANSPOSE_X86_H
#define TANDEM_PACKED_TRANSPOSE_X86_H

/// Eight rows of eight words of 32 bit to columns every `stride` bytes.
static inline __attribute__((always_inline)) void put_transposed(uint8_t *to, __m256i a[8], size_t stride) {
    __m256i b[8];
    for (size_t i = 0; i < 4; i++) {
        b[2 * i] = _mm256_unpacklo_epi32(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm256_unpackhi_epi32(a[2 * i], a[2 * i + 1]);
    }
    for (size_t i = 0; i < 2; i++) {
        a[4 * i] = _mm256_unpacklo_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 1] = _mm256_unpackhi_epi64(b[4 * i], b[4 * i + 2]);
        a[4 * i + 2] = _mm256_unpacklo_epi64(b[4 * i + 1], b[4 * i + 3]);
        a[4 * i + 3] = _mm256_unpackhi_epi64(b[4 * i + 1], b[4 * i + 3]);
    }
    for (size_t i = 0; i < 4; i++) {
        __m256i low = _mm256_permute2x128_si256(a[i], a[4 + i], 0x20);
        __m256i high = _mm256_permute2x128_si256(a[i], a[4 + i], 0x31);
        _mm256_storeu_si256((__m256i *)(void *)(to + i * stride), low);
        _mm256_storeu_si256((__m256i *)(void *)(to + (4 + i) * stride), high);
    }
}

/// The same from rows every 32 bytes.
static inline __attribute__((always_inline)) void transpose_eight(uint8_t *to, const uint8_t *from, size_t stride) {
    __m256i a[8];
    for (size_t i = 0; i < 8; i++) a[i] = _mm256_loadu_si256((const __m256i *)(const void *)(from + i * 32));
    put_transposed(to, a, stride);
}

/// One block of 32 rows of Q8_0, straight from the file's blocks to a panel. Loading is at the speed of
/// memory with it; what takes the long way round is a third as fast.
static inline __attribute__((always_inline)) void pack_q8_0_block(
    uint8_t *block, const void *const *rows, size_t offset) {
    const __m256i sign = _mm256_set1_epi8((char)0x80);
    for (size_t part = 0; part < PANEL / 8; part++) {
        __m256i a[8];
        for (size_t i = 0; i < 8; i++) {
            const uint8_t *from = (const uint8_t *)rows[part * 8 + i] + offset;
            memcpy(block + 2 * (part * 8 + i), from, 2);
            a[i] = _mm256_xor_si256(_mm256_loadu_si256((const __m256i *)(const void *)(from + 2)), sign);
        }
        put_transposed(block + SCALE_BYTES + part * 32, a, QUAD_BYTES);
    }
}
#define HAS_PACK_Q8_0

/// 32 rows of 8 groups of four bytes to 8 groups of 32 outputs.
static inline __attribute__((always_inline)) void transpose_codes(uint8_t *target, const uint8_t *rows) {
    for (size_t part = 0; part < PANEL / 8; part++)
        transpose_eight(target + part * 32, rows + part * 8 * BLOCK, QUAD_BYTES);
}

#endif
