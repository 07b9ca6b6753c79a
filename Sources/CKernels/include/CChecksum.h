// A checksum at the speed of memory, for files that a later program maps.
#ifndef TANDEM_CCHECKSUM_H
#define TANDEM_CCHECKSUM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang assume_nonnull begin
#endif

/// A 64-bit checksum of `count` bytes at any address: the same on every little-endian machine and with every
/// instruction set. It notices accidents (cut, torn, zeroed, exchanged or flipped data), not malice.
uint64_t tk_checksum(const void *bytes, size_t count);

/// The plain definition, which `tk_checksum` is tested against.
uint64_t tk_checksum_scalar(const void *bytes, size_t count);

#if defined(__clang__)
#pragma clang assume_nonnull end
#endif

#endif
