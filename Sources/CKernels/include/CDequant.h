// Block formats of GGUF files: their definition as plain C, bit for bit that of ggml's reference.
//
// Each block holds a fixed number of values of one row. These functions are what every faster path
// is tested against; they allocate nothing and keep no state. Blocks may lie at any address.
#ifndef TANDEM_CDEQUANT_H
#define TANDEM_CDEQUANT_H

#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang assume_nonnull begin
#endif

/// A block format.
typedef enum tk_block_format {
    TK_BLOCK_Q8_0 = 0,  // f16 scale, 32 signed bytes
    TK_BLOCK_Q4_0 = 1,  // f16 scale, 32 nibbles less 8
    TK_BLOCK_Q4_K = 2,  // f16 scale and minimum, 8 pairs of 6 bit, 256 nibbles
    TK_BLOCK_Q5_K = 3,  // as Q4_K with a fifth bit each
    TK_BLOCK_Q6_K = 4,  // 256 values of 6 bit less 32, 16 signed byte scales, f16 scale
} tk_block_format;

/// Values in a block.
size_t tk_block_values(tk_block_format format);
/// Bytes of a block.
size_t tk_block_bytes(tk_block_format format);

/// Blocks to f32.
void tk_dequantise(
    float *values,       // [blocks][tk_block_values]
    const void *packed,  // [blocks][tk_block_bytes]
    tk_block_format format, size_t blocks);

/// f32 to blocks of 32, as ggml's reference quantiser does it. Values that are no numbers give
/// blocks without meaning, but defined ones.
void tk_quantise_q8_0(
    void *packed,         // [blocks][34]
    const float *values,  // [blocks][32]
    size_t blocks);
void tk_quantise_q4_0(
    void *packed,         // [blocks][18]
    const float *values,  // [blocks][32]
    size_t blocks);

/// f32 to f16 or bf16, to nearest, ties to even; NaN stays NaN.
void tk_narrow_f16(uint16_t *narrow, const float *values, size_t count);
void tk_narrow_bf16(uint16_t *narrow, const float *values, size_t count);

/// What a rounding cost: the sums go up by those of these values, the largest error where it is larger.
typedef struct tk_rounding_error {
    double squared_error;
    double squared_value;
    double largest_error;
} tk_rounding_error;
void tk_add_rounding_error(tk_rounding_error *sums, const float *exact, const float *rounded, size_t count);

#if defined(__clang__)
#pragma clang assume_nonnull end
#endif

#endif
