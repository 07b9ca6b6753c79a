// Checks the packed products of every table that this processor runs against the plain one, with random
// shapes, memory of exactly the size asked for, and sanitizers (ops/asan-kernels.sh builds and runs it).
// usage: kernel-check [first seed] [seeds]
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "CPacked.h"

static uint64_t state;

static uint64_t next(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static size_t between(size_t low, size_t high) { return low + next() % (high - low + 1); }
static float number(void) { return (float)((int64_t)(next() >> 40) - (1 << 23)) / (1 << 23); }

/// Exactly this much, at a multiple of 64.
static void *memory(size_t bytes) {
    void *block = NULL;
    if (posix_memalign(&block, 64, bytes ? bytes : 1) != 0) exit(2);
    memset(block, 0xA5, bytes);
    return block;
}

static size_t row_bytes(tk_packed_format format, size_t inputs) {
    if (format == TK_PACKED_BF16) return 2 * inputs;
    tk_block_format block = (tk_block_format)format;  // in the same order
    return inputs / tk_block_values(block) * tk_block_bytes(block);
}

/// Random bytes are valid blocks, once their f16 scales are sane.
static uint8_t *random_rows(tk_packed_format format, size_t outputs, size_t inputs) {
    size_t bytes = row_bytes(format, inputs) * outputs;
    uint8_t *rows = memory(bytes);
    if (format == TK_PACKED_BF16) {
        for (size_t i = 0; i < bytes / 2; i++) {
            float value = number();
            tk_narrow_bf16((uint16_t *)(void *)rows + i, &value, 1);
        }
        return rows;
    }
    for (size_t i = 0; i < bytes; i++) rows[i] = (uint8_t)next();
    size_t size = tk_block_bytes((tk_block_format)format);
    for (size_t block = 0; block < bytes / size; block++) {
        float scale = number() * 0.02f;
        uint16_t half;
        tk_narrow_f16(&half, &scale, 1);
        memcpy(rows + block * size + (format == TK_PACKED_Q6_K ? 208 : 0), &half, 2);
        if (format == TK_PACKED_Q4_K || format == TK_PACKED_Q5_K) memcpy(rows + block * size + 2, &half, 2);
    }
    return rows;
}

static tk_packed pack(
    const tk_packed_kernels *kernels, const uint8_t *rows, tk_packed_format format, size_t outputs, size_t inputs) {
    size_t panel = tk_panel_bytes(format, inputs), bytes = row_bytes(format, inputs);
    uint8_t *panels = memory(panel * tk_panel_count(outputs));
    for (size_t i = 0; i < tk_panel_count(outputs); i++) {
        const void *sources[TK_PANEL_OUTPUTS];
        for (size_t lane = 0; lane < TK_PANEL_OUTPUTS; lane++) {
            size_t row = i * TK_PANEL_OUTPUTS + lane;
            sources[lane] = row < outputs ? rows + row * bytes : NULL;
        }
        kernels->pack(panels + i * panel, sources, format, inputs);
    }
    tk_packed packed = {panels, outputs, inputs, format};
    return packed;
}

static int differ(const char *what, const tk_packed_kernels *kernels, uint64_t seed, int format) {
    printf("%s of %s differs from the plain table's: seed %llu, format %d\n", what, kernels->name,
           (unsigned long long)seed, format);
    return 1;
}

static int check(const tk_packed_kernels *kernels, tk_packed_format format, uint64_t seed) {
    const tk_packed_kernels *plain = tk_packed_scalar();
    state = seed * 16 + format;
    size_t multiple = tk_packed_input_multiple(format);
    size_t inputs = multiple == 1 ? between(1, 400) : multiple * between(1, multiple == 32 ? 12 : 3);
    size_t outputs = between(1, 130), rows = between(1, 70), y_stride = outputs + between(0, 5);
    uint8_t *file = random_rows(format, outputs, inputs);
    tk_packed mine = pack(kernels, file, format, outputs, inputs), other = pack(plain, file, format, outputs, inputs);
    int faults = 0;
    if (memcmp(mine.panels, other.panels, tk_panel_bytes(format, inputs) * tk_panel_count(outputs)) != 0)
        faults += differ("packing", kernels, seed, format);
    tk_input_form form = tk_packed_input_form(format);
    size_t stride = tk_prepared_stride(form, inputs);
    float *x = memory(rows * inputs * sizeof(float));
    for (size_t i = 0; i < rows * inputs; i++) x[i] = number() * 3;
    uint8_t *prepared = memory(rows * stride), *expected = memory(rows * stride);
    memset(prepared, 0, rows * stride);
    memset(expected, 0, rows * stride);
    kernels->prepare(prepared, x, form, rows, inputs, inputs, 0, inputs);
    plain->prepare(expected, x, form, rows, inputs, inputs, 0, inputs);
    if (memcmp(prepared, expected, rows * stride) != 0) faults += differ("preparing", kernels, seed, format);
    float *bias = memory(outputs * sizeof(float)), *row = memory(inputs * sizeof(float));
    float *a = memory(rows * y_stride * sizeof(float)), *b = memory(rows * y_stride * sizeof(float));
    for (size_t i = 0; i < outputs; i++) bias[i] = number();
    for (size_t i = 0; i < rows * y_stride; i++) a[i] = b[i] = number();
    int accumulate = next() % 2, has_bias = next() % 2;
    plain->multiply(b, expected, &other, has_bias ? bias : NULL, accumulate, rows, 0, outputs, y_stride);
    for (size_t first = 0, count; first < outputs; first += count) {
        count = TK_PANEL_OUTPUTS * between(1, 3);
        if (first + count > outputs) count = outputs - first;
        kernels->multiply(a, prepared, &mine, has_bias ? bias : NULL, accumulate, rows, first, count, y_stride);
    }
    for (size_t i = 0; i < rows * y_stride; i++)
        if (format == TK_PACKED_BF16 ? fabsf(a[i] - b[i]) > 1e-4f : memcmp(a + i, b + i, sizeof(float)) != 0) {
            faults += differ("product", kernels, seed, format);
            break;
        }
    for (size_t output = 0; output < outputs; output++) tk_unpack_row(row, &mine, output);
    free(file);
    free((void *)mine.panels);
    free((void *)other.panels);
    free(x);
    free(prepared);
    free(expected);
    free(bias);
    free(row);
    free(a);
    free(b);
    return faults;
}

int main(int count, char **arguments) {
    uint64_t first = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    uint64_t seeds = count > 2 ? strtoull(arguments[2], NULL, 10) : 40;
    const tk_packed_kernels *tables[4] = {tk_packed_scalar()};
    size_t table_count = 1;
    if (tk_packed_avx2()) tables[table_count++] = tk_packed_avx2();
    if (tk_cpu_has_avxvnni() && tk_packed_avxvnni()) tables[table_count++] = tk_packed_avxvnni();
    if (tk_cpu_has_avx512vnni() && tk_packed_avx512vnni()) tables[table_count++] = tk_packed_avx512vnni();
    int faults = 0;
    for (size_t table = 0; table < table_count; table++) {
        for (uint64_t seed = first; seed < first + seeds; seed++)
            for (int format = TK_PACKED_Q8_0; format <= TK_PACKED_BF16; format++) {
                int is_wide = tables[table] == tk_packed_avx512vnni();
                if (format == TK_PACKED_BF16 && is_wide && !tk_cpu_has_avx512bf16()) continue;
                faults += check(tables[table], (tk_packed_format)format, seed);
            }
        printf("%s: seeds %llu to %llu, %d faults\n", tables[table]->name, (unsigned long long)first,
               (unsigned long long)(first + seeds - 1), faults);
    }
    return faults != 0;
}
