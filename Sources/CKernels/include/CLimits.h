// What the machine can do at most: the figures that the engine's speed is set against. Measured in
// the same run as the engine, because the limits of a shared machine move.
#ifndef TANDEM_CLIMITS_H
#define TANDEM_CLIMITS_H

#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang assume_nonnull begin
#endif

/// Reads `bytes` from a 64-byte aligned address once, in order, with the widest loads there are; the
/// result depends on all of them.
uint64_t tk_limit_read(const void *base, size_t bytes);

/// Dot products of bytes (vpdpbusd, 512 bit) from registers into 16 sums, `rounds` times each.
/// Returns multiplications and additions done, or 0 where the processor has no such instruction.
uint64_t tk_limit_int8(size_t rounds);

/// The same for pairs of bf16 (vdpbf16ps, 512 bit).
uint64_t tk_limit_bf16(size_t rounds);

/// The same for f32 (vfmadd231ps, 512 bit).
uint64_t tk_limit_f32(size_t rounds);

#if defined(__clang__)
#pragma clang assume_nonnull end
#endif

#endif
