// Checks attention over block tables of every table that this processor runs against the plain one, and
// its bits against other chunks and shared segments, with random shapes, memory of exactly the size asked
// for, and sanitizers (ops/asan-kernels.sh builds and runs it).
// usage: attention-check [first seed] [seeds]
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "CKernels.h"

static uint64_t state;

static uint64_t next(void) {
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

static size_t between(size_t low, size_t high) { return low + next() % (high - low + 1); }
static size_t one_of(const size_t *values, size_t count) { return values[next() % count]; }
static float number(void) { return (float)((int64_t)(next() >> 40) - (1 << 23)) / (1 << 23); }

/// Exactly this much.
static void *memory(size_t bytes) {
    void *block = malloc(bytes ? bytes : 1);
    if (block == NULL) exit(2);
    memset(block, 0xFF, bytes);  // NaN in every format
    return block;
}

typedef struct shape {
    uint64_t seed;
    size_t positions, dim, group, window, block_tokens, blocks;
    tk_kv_element element;
} shape;

static shape draw(uint64_t seed) {
    static const size_t dims[] = {2, 6, 32, 34, 64, 80, 96, 128, 140, 256};
    static const size_t blocks[] = {1, 5, 16, 64}, windows[] = {0, 0, 0, 1, 33, 200, 300};
    state = seed;
    shape drawn = {.seed = seed};
    drawn.positions = between(1, next() % 2 ? 70 : 600);
    drawn.dim = one_of(dims, 10);
    drawn.group = between(1, 9);
    drawn.window = one_of(windows, 7);
    drawn.block_tokens = one_of(blocks, 4);
    drawn.blocks = (drawn.positions + drawn.block_tokens - 1) / drawn.block_tokens;
    drawn.element = (tk_kv_element)(next() % 4);
    return drawn;
}

static tk_query_view queries(const shape *s, const float *q, size_t first, size_t tokens) {
    size_t stride = s->group * s->dim;
    return (tk_query_view){q + first * stride, stride, first, tokens, s->group, s->dim, s->window};
}

static void attend(const tk_kernels *table, const shape *s, float *out, const float *q, const tk_kv_view *kv, size_t first, size_t tokens) {
    float *scratch = memory(tk_attend_scratch(tokens, s->group, s->dim) * sizeof(float));
    tk_query_view view = queries(s, q, first, tokens);
    table->attention->attend(out, scratch, &view, kv);
    free(scratch);
}

/// By segments in descending order.
static void attend_shared(const tk_kernels *table, const shape *s, float *out, const float *q, const tk_kv_view *kv, size_t first, size_t tokens) {
    size_t size = tk_attend_partial(tokens, s->group, s->dim);
    size_t from = tk_first_segment(first, s->window), to = tk_end_segment(first, tokens);
    float *scratch = memory(tk_attend_scratch(tokens, s->group, s->dim) * sizeof(float));
    float *partials = memory((to - from) * size * sizeof(float));
    tk_query_view view = queries(s, q, first, tokens);
    for (size_t segment = to; segment-- > from;)
        table->attention->attend_segment(partials + (segment - from) * size, scratch, &view, kv, segment);
    table->attention->attend_merge(out, partials, &view, to - from);
    free(partials);
    free(scratch);
}

static int check(const tk_kernels *table, uint64_t seed) {
    const shape s = draw(seed);
    const size_t row_bytes = tk_kv_row_bytes(s.element, s.dim), width = s.group * s.dim;
    const size_t half = s.block_tokens * (row_bytes + (s.element == TK_KV_I8 ? 4 : 0));
    uint32_t *slots = memory(s.blocks * sizeof *slots);
    for (size_t i = 0; i < s.blocks; i++) slots[i] = (uint32_t)i;
    for (size_t i = s.blocks; i > 1; i--) {
        size_t other = next() % i;
        uint32_t slot = slots[i - 1];
        slots[i - 1] = slots[other];
        slots[other] = slot;
    }
    uint8_t *pool = memory(s.blocks * 2 * half);
    float *row = memory(s.dim * sizeof(float));
    for (size_t position = 0; position < s.positions; position++)
        for (size_t part = 0; part < 2; part++) {
            for (size_t i = 0; i < s.dim; i++) row[i] = number();
            uint8_t *base = pool + slots[position / s.block_tokens] * 2 * half + part * half;
            size_t inside = position % s.block_tokens;
            table->attention->store_row(
                base + inside * row_bytes, s.element == TK_KV_I8 ? base + s.block_tokens * row_bytes + inside * 4 : NULL,
                row, s.element, s.dim);
        }
    float *q = memory(s.positions * width * sizeof(float));
    for (size_t i = 0; i < s.positions * width; i++) q[i] = number() * 2 / sqrtf((float)s.dim);
    const tk_kv_view kv = {pool, slots, 2 * half, 0, half, s.block_tokens, s.element};
    float *whole = memory(s.positions * width * sizeof(float)), *part = memory(s.positions * width * sizeof(float));
    attend(table, &s, whole, q, &kv, 0, s.positions);
    int faults = 0;
    for (int round = 0; round < 6; round++) {
        size_t first = next() % s.positions, tokens = between(1, s.positions - first);
        if (round % 2) tokens = 1;
        float *out = memory(tokens * width * sizeof(float));
        (round < 3 ? attend : attend_shared)(table, &s, out, q, &kv, first, tokens);
        if (memcmp(out, whole + first * width, tokens * width * sizeof(float)) != 0) faults++;
        free(out);
    }
    attend(tk_kernels_scalar(), &s, part, q, &kv, 0, s.positions);
    for (size_t i = 0; i < s.positions * width; i++)
        if (!(fabsf(part[i] - whole[i]) < 2e-6f)) {
            faults++;
            break;
        }
    if (faults)
        printf(
            "%s: seed %llu: %d faults, %zu positions, dim %zu, group %zu, window %zu, block %zu, element %d\n",
            table->name, (unsigned long long)seed, faults, s.positions, s.dim, s.group, s.window, s.block_tokens,
            (int)s.element);
    free(slots);
    free(pool);
    free(row);
    free(q);
    free(whole);
    free(part);
    return faults;
}

int main(int count, char **arguments) {
    uint64_t first = count > 1 ? strtoull(arguments[1], NULL, 10) : 1;
    uint64_t seeds = count > 2 ? strtoull(arguments[2], NULL, 10) : 40;
    const tk_kernels *tables[3] = {tk_kernels_scalar()};
    size_t table_count = 1;
    if (tk_cpu_has_avx2() && tk_kernels_avx2()) tables[table_count++] = tk_kernels_avx2();
    if (tk_cpu_has_avx512() && tk_kernels_avx512()) tables[table_count++] = tk_kernels_avx512();
    int faults = 0;
    for (size_t table = 0; table < table_count; table++) {
        for (uint64_t seed = first; seed < first + seeds; seed++) faults += check(tables[table], seed);
        printf("attention, %s: seeds %llu to %llu, %d faults\n", tables[table]->name, (unsigned long long)first,
               (unsigned long long)(first + seeds - 1), faults);
    }
    return faults != 0;
}
