// Attention over block tables, and the rows of keys and values it reads.
//
// Scores and sums of one query are made of segments: TK_SEGMENT_POSITIONS positions from an absolute
// multiple of it. Each segment has its own maximum, total and sum of values; segments are combined in
// ascending order. So a query's result has the same bits whatever is computed beside it, in whatever
// chunk, and whether one thread computes all its segments or several share them.
#ifndef TANDEM_CATTENTION_H
#define TANDEM_CATTENTION_H

#include <stddef.h>
#include <stdint.h>

#if defined(__clang__)
#pragma clang assume_nonnull begin
#endif

/// How cached keys and values are stored. TK_KV_I8 has one f32 scale per row (one token, one head):
/// value = scale * integer, scale = largest magnitude / 127.
typedef enum tk_kv_element { TK_KV_F32 = 0, TK_KV_F16 = 1, TK_KV_BF16 = 2, TK_KV_I8 = 3 } tk_kv_element;

enum {
    /// Positions per segment.
    TK_SEGMENT_POSITIONS = 256,
    /// Positions whose keys or values are expanded at once; divides a segment.
    TK_TILE_POSITIONS = 64,
    /// Rows are padded to a multiple of this in scratch, whatever the instruction set.
    TK_DIM_STEP = 16,
    /// Largest head dimension.
    TK_DIM_MAX = 1024,
};

/// Keys and values of one KV head in one layer, in a pool of pages.
typedef struct tk_kv_view {
    /// Key of slot s, token t: pool + s * slot_bytes + key_offset + t * dim * element size. The scales of
    /// TK_KV_I8 follow the block's rows: + block_tokens * dim + t * 4.
    const uint8_t *pool;
    const uint32_t *block_table;  // [blocks] slot of each block of the sequence
    size_t slot_bytes;            // distance between pages
    size_t key_offset;            // to this layer's and head's keys inside a page
    size_t value_offset;          // to its values
    size_t block_tokens;
    tk_kv_element element;
} tk_kv_view;

/// Queries of one KV head: consecutive tokens of one sequence, `group` heads each.
typedef struct tk_query_view {
    const float *q;       // [tokens][group][dim], already rotated and scaled
    size_t token_stride;  // floats between tokens, in q and in out
    size_t first_position;
    size_t tokens;
    size_t group;
    size_t dim;
    size_t window;  // positions a token sees, itself included; 0 for all
} tk_query_view;

/// Softmax attention of each query over its own past. A position outside a query's past never touches
/// its result, and what the sequence has not written is not read.
typedef void tk_attend(
    float *out,      // [tokens][group][dim] with the query's token stride
    float *scratch,  // tk_attend_scratch(tokens, group, dim) floats
    const tk_query_view *queries, const tk_kv_view *kv);

/// One segment of it, for `tk_attend_merge`.
typedef void tk_attend_segment(
    float *partial,  // tk_attend_partial(tokens, group, dim) floats
    float *scratch,  // tk_attend_scratch(tokens, group, dim) floats
    const tk_query_view *queries, const tk_kv_view *kv, size_t segment);

/// Combines segments in ascending order; the same bits as `tk_attend` gives.
typedef void tk_attend_merge(
    float *out,       // [tokens][group][dim] with the query's token stride
    float *partials,  // [segments][tk_attend_partial]; the first is overwritten
    const tk_query_view *queries, size_t segments);

/// Stores one row of keys or values (one token, one head).
typedef void tk_store_row(
    void *row,                 // [dim] of element
    void *_Nullable scale,     // 4 bytes, any alignment; read for TK_KV_I8 only
    const float *x,            // [dim]
    tk_kv_element element, size_t dim);

/// What one instruction set has of the above.
typedef struct tk_attention {
    tk_attend *attend;
    tk_attend_segment *attend_segment;
    tk_attend_merge *attend_merge;
    tk_store_row *store_row;
} tk_attention;

static inline size_t tk_padded_dim(size_t dim) { return (dim + TK_DIM_STEP - 1) / TK_DIM_STEP * TK_DIM_STEP; }

/// Bytes of one stored row, without its scale.
static inline size_t tk_kv_row_bytes(tk_kv_element element, size_t dim) {
    return element == TK_KV_F32 ? 4 * dim : element == TK_KV_I8 ? dim : 2 * dim;
}

/// Floats of one segment's partial result: sums, maxima, totals.
static inline size_t tk_attend_partial(size_t tokens, size_t group, size_t dim) {
    return tokens * group * (tk_padded_dim(dim) + 2);
}

/// Floats of scratch that attention needs; any alignment.
static inline size_t tk_attend_scratch(size_t tokens, size_t group, size_t dim) {
    size_t rows = tokens * group, tile = TK_TILE_POSITIONS * tk_padded_dim(dim);
    return rows * (dim + TK_SEGMENT_POSITIONS) + 2 * tk_attend_partial(tokens, group, dim) + 2 * tile + 4 * TK_DIM_STEP;
}

/// First and last-plus-one segment that the queries see anything of.
static inline size_t tk_first_segment(size_t first_position, size_t window) {
    size_t oldest = window != 0 && first_position + 1 > window ? first_position + 1 - window : 0;
    return oldest / TK_SEGMENT_POSITIONS;
}
static inline size_t tk_end_segment(size_t first_position, size_t tokens) {
    return (first_position + tokens + TK_SEGMENT_POSITIONS - 1) / TK_SEGMENT_POSITIONS;
}

#if defined(__clang__)
#pragma clang assume_nonnull end
#endif

#endif
