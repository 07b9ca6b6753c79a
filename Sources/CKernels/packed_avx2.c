// Packed products with 256-bit registers: eight outputs to a register. One source for two tables, with
// AVX2's multiply-and-add of bytes and with AVX-VNNI's dot product; both are exact.
#include "packed_layout.h"

#if defined(__x86_64__)

#include <immintrin.h>

#pragma STDC FP_CONTRACT OFF

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("clang loop unroll(full)")

enum {
    LANES = 8,
    /// Rows of a register tile, at most.
    ROWS = 4,
    /// Registers of one pass over a panel: half of its outputs.
    PARTS = 2,
    CACHED_BLOCKS = 8,
};

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#include "packed_transpose_x86.h"
#include "packed_pack.h"

#define NAME(name) name##_avx2
#define HAS_VNNI 0
#include "packed_avx2.h"
#undef NAME
#undef HAS_VNNI
#pragma clang attribute pop

#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avxvnni"))), apply_to = function)
#define NAME(name) name##_avxvnni
#define HAS_VNNI 1
#include "packed_avx2.h"
#undef NAME
#undef HAS_VNNI
#pragma clang attribute pop

static const tk_packed_kernels avx2 = {"avx2", prepare, multiply_avx2, pack};
static const tk_packed_kernels avxvnni = {"avxvnni", prepare, multiply_avxvnni, pack};

const tk_packed_kernels *tk_packed_avx2(void) { return &avx2; }
const tk_packed_kernels *tk_packed_avxvnni(void) { return &avxvnni; }

#else

const tk_packed_kernels *tk_packed_avx2(void) { return NULL; }
const tk_packed_kernels *tk_packed_avxvnni(void) { return NULL; }

#endif
