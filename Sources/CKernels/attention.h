// Attention over block tables, once, on top of the including table's own primitives:
//   matmul, widen, softmax_tile, accumulate_values, scale_row.
#ifndef TANDEM_ATTENTION_H
#define TANDEM_ATTENTION_H

/// Expands positions begin ..< end of keys and values to f32 rows j = position - tile_start.
static void gather_tile(
    float *keys,    // [TK_TILE_POSITIONS][dim]
    float *values,  // [TK_TILE_POSITIONS][dim]
    const tk_kv_view *kv, size_t tile_start, size_t begin, size_t end, size_t dim) {
    size_t row_bytes = dim * element_bytes(kv->element);
    for (size_t position = begin; position < end;) {
        size_t block = position / kv->block_tokens;
        size_t inside = position % kv->block_tokens;
        size_t run = min_size(kv->block_tokens - inside, end - position);
        const uint8_t *page = kv->pool + kv->block_table[block] * kv->slot_bytes;
        size_t row = (position - tile_start) * dim;
        widen(keys + row, page + kv->key_offset + inside * row_bytes, kv->element, run * dim);
        widen(values + row, page + kv->value_offset + inside * row_bytes, kv->element, run * dim);
        position += run;
    }
}

/// First position that a token at `position` sees.
static inline size_t window_start(size_t position, size_t window) {
    return window != 0 && position + 1 > window ? position + 1 - window : 0;
}

/// One tile for one query row: positions low ..< high of the tile are in its past.
static inline void attend_row(
    float *out,     // [dim] running sum of weights times values
    float *scores,  // [TK_TILE_POSITIONS] in: scores, out: weights
    float *maximum, float *total,
    const float *values,  // [TK_TILE_POSITIONS][dim]
    size_t low, size_t high, size_t dim) {
    float correction;
    softmax_tile(scores, maximum, total, &correction, low, high);
    scale_row(out, correction, dim);
    accumulate_values(out, scores, values, low, high, dim);
}

static void attend(float *out, float *scratch, const tk_query_view *queries, const tk_kv_view *kv) {
    const size_t dim = queries->dim, group = queries->group, rows = queries->tokens * group;
    float *q = scratch;                              // [rows][dim]
    float *sums = q + rows * dim;                    // [rows][dim]
    float *scores = sums + rows * dim;               // [rows][TK_TILE_POSITIONS]
    float *maxima = scores + rows * TK_TILE_POSITIONS;  // [rows]
    float *totals = maxima + rows;                   // [rows]
    float *keys = totals + rows;                     // [TK_TILE_POSITIONS][dim]
    float *values = keys + TK_TILE_POSITIONS * dim;  // [TK_TILE_POSITIONS][dim]

    for (size_t token = 0; token < queries->tokens; token++)
        memcpy(q + token * group * dim, queries->q + token * queries->token_stride, group * dim * sizeof(float));
    memset(sums, 0, rows * dim * sizeof(float));
    for (size_t row = 0; row < rows; row++) {
        maxima[row] = -__builtin_inff();
        totals[row] = 0;
    }

    const size_t oldest = window_start(queries->first_position, queries->window);
    const size_t newest = queries->first_position + queries->tokens;
    for (size_t start = oldest - oldest % TK_TILE_POSITIONS; start < newest; start += TK_TILE_POSITIONS) {
        size_t begin = max_size(start, oldest), end = min_size(start + TK_TILE_POSITIONS, newest);
        gather_tile(keys, values, kv, start, begin, end, dim);
        // Tokens before `start` see nothing of this tile.
        size_t first = start > queries->first_position ? start - queries->first_position : 0;
        size_t first_row = first * group;
        matmul(
            scores + first_row * TK_TILE_POSITIONS + (begin - start), q + first_row * dim, keys + (begin - start) * dim,
            NULL, TK_F32, rows - first_row, dim, end - begin, TK_TILE_POSITIONS);
        for (size_t row = first_row; row < rows; row++) {
            size_t position = queries->first_position + row / group;
            size_t low = max_size(start, window_start(position, queries->window)) - start;
            size_t high = min_size(start + TK_TILE_POSITIONS, position + 1) - start;
            if (low >= high) continue;
            attend_row(
                sums + row * dim, scores + row * TK_TILE_POSITIONS, maxima + row, totals + row, values, low, high, dim);
        }
    }
    for (size_t row = 0; row < rows; row++) {
        float *target = out + row / group * queries->token_stride + row % group * dim;
        float total = totals[row];
        for (size_t i = 0; i < dim; i++) target[i] = sums[row * dim + i] / total;
    }
}

#endif
