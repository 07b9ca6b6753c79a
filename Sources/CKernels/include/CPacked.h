// Weight matrices in the layout that the dot-product instructions want, and the products with them.
//
// A matrix is cut into panels of 32 outputs. Inside a panel the inputs go by in blocks of 32; a block
// holds the scales of its 32 outputs and then, for each four inputs (two for bf16), the 32 outputs'
// values beside each other. So a vector register holds 16 outputs times four inputs, no sum is ever
// taken across lanes, and a panel is one stream of memory.
//
// Every output is computed by one fixed sequence of operations: block after block, the products of a
// block added as integers (exactly), the block's sum times (weight scale * input scale) added to an f32
// accumulator with one rounding. Rows, columns and panels computed beside it change nothing, and all
// tables give the same bits for the integer formats.
#ifndef TANDEM_CPACKED_H
#define TANDEM_CPACKED_H

#include <stddef.h>
#include <stdint.h>

#include "CDequant.h"

#if defined(__clang__)
#pragma clang assume_nonnull begin
#endif

enum {
    /// Outputs of a panel.
    TK_PANEL_OUTPUTS = 32,
    /// Inputs that share a scale, in weights and in prepared inputs.
    TK_BLOCK_INPUTS = 32,
};

/// How a packed matrix holds its values.
typedef enum tk_packed_format {
    TK_PACKED_Q8_0 = 0,
    TK_PACKED_Q4_0 = 1,
    TK_PACKED_Q4_K = 2,
    TK_PACKED_Q5_K = 3,
    TK_PACKED_Q6_K = 4,
    TK_PACKED_BF16 = 5,
} tk_packed_format;

/// A packed matrix. `inputs` is a multiple of `tk_packed_input_multiple`; `outputs` is any number.
typedef struct tk_packed {
    const uint8_t *panels;  // [panels][tk_panel_bytes]
    size_t outputs;
    size_t inputs;
    tk_packed_format format;
} tk_packed;

/// Inputs come in multiples of this: 32, 256 for the K formats, 1 for bf16.
size_t tk_packed_input_multiple(tk_packed_format format);
/// Bytes of one panel, a multiple of 64.
size_t tk_panel_bytes(tk_packed_format format, size_t inputs);
/// Panels of a matrix.
static inline size_t tk_panel_count(size_t outputs) { return (outputs + TK_PANEL_OUTPUTS - 1) / TK_PANEL_OUTPUTS; }

/// How a row of inputs is made ready for a product.
typedef enum tk_input_form {
    /// Signed bytes with an f32 scale for each 32, and the sums of the bytes.
    TK_INPUT_Q8 = 0,
    /// bf16, to nearest, ties to even.
    TK_INPUT_BF16 = 1,
    /// As Q8, with the least power of two as scale that holds the largest. Coarser by 1.5 in the mean, which
    /// is nothing beside weights of 4 bits, and it saves a product for each block and output.
    TK_INPUT_Q8_POWERS = 2,
} tk_input_form;

/// The form that a packed format multiplies with.
tk_input_form tk_packed_input_form(tk_packed_format format);
/// Bytes between prepared rows, a multiple of 64. Prepared rows start at multiples of 64.
size_t tk_prepared_stride(tk_input_form form, size_t inputs);

typedef struct tk_packed_kernels {
    const char *name;

    /// Makes inputs first ..< first + count of each row ready; first is a multiple of 32, and so is
    /// count unless the row ends there. Inputs past the row's end become 0.
    void (*prepare)(
        uint8_t *prepared,  // [rows][tk_prepared_stride]
        const float *x,     // [rows][x_stride]
        tk_input_form form, size_t rows, size_t inputs, size_t x_stride, size_t first, size_t count);

    /// y[r][o] = dot(x[r], w[o]) + bias[o] for outputs first ..< first + count; first is a multiple of
    /// 32, and so is count unless the matrix ends there. With `accumulate` this is added to y.
    void (*multiply)(
        float *y,                     // [rows][y_stride], column 0 is output 0
        const uint8_t *prepared,      // [rows][tk_prepared_stride]
        const tk_packed *w,
        const float *_Nullable bias,  // [outputs], or null
        int accumulate, size_t rows, size_t first, size_t count, size_t y_stride);

    /// One panel from its rows as files have them: blocks of the format, or bf16. A null row is all 0.
    void (*pack)(
        uint8_t *panel,                                  // [tk_panel_bytes]
        const void *_Nullable const *_Nonnull rows,      // [32] rows of the file
        tk_packed_format format, size_t inputs);
} tk_packed_kernels;

/// Plain C: what the others are tested against.
const tk_packed_kernels *tk_packed_scalar(void);
/// AVX2 and FMA; null where the build is not for x86-64.
const tk_packed_kernels *_Nullable tk_packed_avx2(void);
/// The same with the 256-bit dot product of AVX-VNNI.
const tk_packed_kernels *_Nullable tk_packed_avxvnni(void);
/// AVX-512 with VNNI; `TK_PACKED_BF16` as well where the processor has AVX512-BF16.
const tk_packed_kernels *_Nullable tk_packed_avx512vnni(void);
/// Arm's dot product; null where the build is not for 64-bit Arm.
const tk_packed_kernels *_Nullable tk_packed_neon(void);

/// Whether this processor runs the table.
int tk_cpu_has_avxvnni(void);
int tk_cpu_has_avx512vnni(void);
int tk_cpu_has_neon_dot(void);
/// Whether this processor multiplies bf16 pairs; only then may `TK_PACKED_BF16` be given to `tk_packed_avx512vnni`.
int tk_cpu_has_avx512bf16(void);

/// One output's weights back as f32: the very values of `tk_dequantise` (or of bf16).
void tk_unpack_row(
    float *values,  // [inputs]
    const tk_packed *w, size_t output);

#if defined(__clang__)
#pragma clang assume_nonnull end
#endif

#endif
