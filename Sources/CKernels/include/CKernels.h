// The engine's arithmetic, one table of functions per instruction set.
//
// Every function writes its first argument, takes sizes last, allocates nothing and keeps no state.
// Every output element is computed by ONE fixed sequence of operations that depends on the sizes of
// its own reduction only, never on how many rows or columns are computed beside it. That is what
// makes tokens bit-identical whatever the batch, the chunk, the block size or the thread count.
// Sums differ between tables (lanes add in different orders), so the table's name goes into digests.
#ifndef TANDEM_CKERNELS_H
#define TANDEM_CKERNELS_H

#include <stddef.h>
#include <stdint.h>

#include "CAttention.h"
#include "CChecksum.h"
#include "CDequant.h"
#include "CPacked.h"
#include "CLimits.h"

#if defined(__clang__)
#pragma clang assume_nonnull begin
#endif

/// How a number is stored.
typedef enum tk_element { TK_F32 = 0, TK_F16 = 1, TK_BF16 = 2 } tk_element;

typedef struct tk_kernels {
    const char *name;

    /// y[r][o] = dot(x[r], w[o]) + bias[o]; with `accumulate` this is added to y.
    void (*matmul)(
        float *y,                           // [rows][y_stride], columns 0 ..< out written
        const float *x,                     // [rows][in]
        const void *w,                      // [out][in] of element
        const float *_Nullable bias,        // [out], or null
        tk_element element, size_t rows, size_t in, size_t out, size_t y_stride, int accumulate);

    /// y[r] = x[r] / sqrt(mean(x[r]^2) + epsilon) * weight. y may be x.
    void (*rmsnorm)(
        float *y,             // [rows][n]
        const float *x,       // [rows][n]
        const float *weight,  // [n]
        float epsilon, size_t rows, size_t n);

    /// Rotates pairs (i, i + dim / 2) of each head in place and multiplies by scale.
    void (*rotate)(
        float *x,          // [heads][dim]
        const float *cos,  // [dim / 2]
        const float *sin,  // [dim / 2]
        float scale, size_t heads, size_t dim);

    /// y = gate * sigmoid(gate) * up. y may be gate.
    void (*silu_multiply)(float *y, const float *gate, const float *up, size_t n);

    /// y += x.
    void (*add)(float *y, const float *x, size_t n);

    /// Element to f32 (exact).
    void (*widen)(float *y, const void *x, tk_element element, size_t n);

    /// f32 to element, to nearest, ties to even; NaN stays NaN.
    void (*narrow)(void *y, const float *x, tk_element element, size_t n);

    /// y = exp((x - shift) * scale), 0 below exp(-87.3); returns the sum of y. y may be x.
    float (*exp_shifted)(float *y, const float *x, float shift, float scale, size_t n);

    /// Attention and the rows it reads.
    const tk_attention *attention;
} tk_kernels;

/// Plain C: the fallback, and what the others are tested against.
const tk_kernels *tk_kernels_scalar(void);
/// AVX2, FMA and F16C; null where the build is not for x86-64.
const tk_kernels *_Nullable tk_kernels_avx2(void);
/// AVX-512 F, BW, DQ and VL; null where the build is not for x86-64.
const tk_kernels *_Nullable tk_kernels_avx512(void);

/// Whether this processor runs the table.
int tk_cpu_has_avx2(void);
int tk_cpu_has_avx512(void);

/// cos and sin of position * frequency, times factor: the product in f32 as Hugging Face has it, the
/// function in f64.
void tk_rotary_table(
    float *cos,                   // [count][half]
    float *sin,                   // [count][half]
    const float *frequencies,     // [half]
    const uint32_t *positions,    // [count]
    float factor, size_t count, size_t half);

/// Index of the largest value, the lowest of equals; n where any value is NaN or infinite.
size_t tk_argmax_finite(const float *x, size_t n);

/// The same of whatever values; NaNs are passed over.
size_t tk_argmax(const float *x, size_t n);

/// Index at which the running sum of weights (none negative) passes `draw` times their sum; n where
/// rounding keeps it from passing.
size_t tk_pick(const float *weights, size_t n, double draw);

/// Reads one byte of each memory page, so that a mapped file is resident; the sum keeps the reads.
uint64_t tk_touch(const void *base, size_t bytes);

/// Keeps the calling thread on one core; 0 where the system allowed it.
int tk_pin_thread(size_t core);

/// Cores that this process may use; at least 1.
size_t tk_core_count(void);

/// Those cores as a set of 64: core c is bit c % 64. 0 where the system does not tell.
uint64_t tk_core_set(void);

/// Makes the calling thread nicer to all others; 0 where the system allowed it.
int tk_lower_priority(int niceness);

/// Tells the processor that a loop waits.
static inline void tk_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

#if defined(__clang__)
#pragma clang assume_nonnull end
#endif

#endif
