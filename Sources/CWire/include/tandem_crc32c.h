#pragma once
#include <stddef.h>
#include <stdint.h>

// CRC-32C (Castagnoli; RFC 3720 appendix B.4) of `count` bytes that follow bytes whose CRC is
// `seed`; 0 begins. Uses the processor's instruction where there is one.
uint32_t tandem_crc32c(uint32_t seed, const void *bytes, size_t count);

// The same from tables, for processors without the instruction, and to test the other against.
uint32_t tandem_crc32c_portable(uint32_t seed, const void *bytes, size_t count);

// CRC of A followed by B, from their CRCs and B's length.
uint32_t tandem_crc32c_combine(uint32_t crc_a, uint32_t crc_b, uint64_t count_b);
