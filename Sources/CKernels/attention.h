// Attention over block tables, once, on top of the including file's own primitives:
//   gather_keys, gather_values, score_rows, softmax_segment, accumulate_rows, merge_row, finish_row.
#ifndef TANDEM_ATTENTION_H
#define TANDEM_ATTENTION_H

static const uint8_t zero_row[4 * TK_DIM_MAX];

/// Where the rows of one tile lie; rows that are not to be read are zeros elsewhere.
typedef struct tile_rows_of {
    const uint8_t *rows[TK_TILE_POSITIONS];
    float scales[TK_TILE_POSITIONS];  // read for TK_KV_I8 only
} tile_rows_of;

/// Positions begin ..< end of the tile at `start`.
static void find_rows(
    tile_rows_of *found, const tk_kv_view *kv, size_t offset, size_t start, size_t begin, size_t end, size_t dim) {
    const size_t row_bytes = tk_kv_row_bytes(kv->element, dim);
    for (size_t i = 0; i < begin - start; i++) found->rows[i] = zero_row;
    for (size_t position = begin; position < end;) {
        size_t inside = position % kv->block_tokens;
        size_t run = min_size(kv->block_tokens - inside, end - position);
        const uint8_t *base =
            kv->pool + kv->block_table[position / kv->block_tokens] * kv->slot_bytes + offset;
        const uint8_t *row = base + inside * row_bytes;
        for (size_t i = 0; i < run; i++, row += row_bytes) found->rows[position - start + i] = row;
        if (kv->element == TK_KV_I8)
            memcpy(found->scales + (position - start), base + kv->block_tokens * dim + inside * 4, run * 4);
        position += run;
    }
    for (size_t i = end - start; i < TK_TILE_POSITIONS; i++) found->rows[i] = zero_row;
    if (kv->element == TK_KV_I8) {
        for (size_t i = 0; i < begin - start; i++) found->scales[i] = 0;
        for (size_t i = end - start; i < TK_TILE_POSITIONS; i++) found->scales[i] = 0;
    }
}

/// First position that a token at `position` sees.
static inline size_t window_start(size_t position, size_t window) {
    return window != 0 && position + 1 > window ? position + 1 - window : 0;
}

/// Sums of weights times values, and the maximum and total of the weights, of some rows.
typedef struct row_sums {
    float *sums;    // [rows][padded dim]
    float *maxima;  // [rows]
    float *totals;  // [rows] 0 where a row has seen nothing yet
} row_sums;

static inline row_sums row_sums_at(float *base, size_t rows, size_t padded) {
    return (row_sums){base, base + rows * padded, base + rows * padded + rows};
}

typedef struct attend_scratch {
    float *keys;    // [dim][TK_TILE_POSITIONS]
    float *values;  // [TK_TILE_POSITIONS][padded dim]
    float *q;       // [rows][dim]
    float *scores;  // [rows][TK_SEGMENT_POSITIONS] scores, then weights
    float *rest;
} attend_scratch;

static inline float *aligned(float *at) { return (float *)(((uintptr_t)at + 63) / 64 * 64); }

static attend_scratch lay_out(float *scratch, const tk_query_view *queries) {
    const size_t rows = queries->tokens * queries->group, dim = queries->dim;
    attend_scratch laid;
    laid.keys = aligned(scratch);
    laid.values = aligned(laid.keys + dim * TK_TILE_POSITIONS);
    laid.scores = aligned(laid.values + TK_TILE_POSITIONS * tk_padded_dim(dim));
    laid.q = laid.scores + rows * TK_SEGMENT_POSITIONS;
    laid.rest = aligned(laid.q + rows * dim);
    for (size_t token = 0; token < queries->tokens; token++)
        memcpy(
            laid.q + token * queries->group * dim, queries->q + token * queries->token_stride,
            queries->group * dim * sizeof(float));
    return laid;
}

/// The tiles of one segment in the order of their use: all keys, then all values. Each is looked up while
/// the one before it is at work, which also asks for its memory.
typedef struct tile_walk {
    const tk_kv_view *kv;
    size_t dim, begin, end;  // positions of the segment that the queries see anything of
    size_t at;               // the current tile
    int values;              // whether it is one of values
    tile_rows_of found[2];
    size_t current;  // which of them
} tile_walk;

static inline size_t tile_start(size_t position) { return position - position % TK_TILE_POSITIONS; }

static void look_up(tile_walk *walk, size_t index, size_t tile, int values) {
    find_rows(
        &walk->found[index], walk->kv, values ? walk->kv->value_offset : walk->kv->key_offset, tile,
        max_size(tile, walk->begin), min_size(tile + TK_TILE_POSITIONS, walk->end), walk->dim);
}

static void start_walk(tile_walk *walk, const tk_kv_view *kv, size_t dim, size_t begin, size_t end) {
    walk->kv = kv, walk->dim = dim, walk->begin = begin, walk->end = end;
    walk->at = tile_start(begin), walk->values = 0, walk->current = 0;
    look_up(walk, 0, walk->at, 0);
}

/// The current tile; `next` is the one after it, itself at the end.
static const tile_rows_of *take_tile(tile_walk *walk, const tile_rows_of **next) {
    const tile_rows_of *taken = &walk->found[walk->current];
    *next = taken;
    walk->at += TK_TILE_POSITIONS;
    if (walk->at >= walk->end && !walk->values) walk->at = tile_start(walk->begin), walk->values = 1;
    if (walk->at < walk->end) {
        walk->current ^= 1;
        look_up(walk, walk->current, walk->at, walk->values);
        *next = &walk->found[walk->current];
    }
    return taken;
}

/// Scores of the walk's positions, in the segment at `start`.
static void score_segment(
    const attend_scratch *work, const tk_query_view *queries, tile_walk *walk, size_t start) {
    const size_t dim = queries->dim, rows = queries->tokens * queries->group;
    for (size_t tile = tile_start(walk->begin); tile < walk->end; tile += TK_TILE_POSITIONS) {
        const tile_rows_of *next, *found = take_tile(walk, &next);
        gather_keys(work->keys, found, next, walk->kv->element, dim);
        // Tokens before the tile see nothing of it.
        size_t first = tile > queries->first_position ? (tile - queries->first_position) * queries->group : 0;
        score_rows(
            work->scores + first * TK_SEGMENT_POSITIONS + (tile - start), work->q + first * dim, work->keys,
            rows - first, dim);
    }
}

/// Sums of weights times values of the walk's positions, in the segment at `start`.
static void accumulate_segment(
    const attend_scratch *work, float *sums, const tk_query_view *queries, tile_walk *walk, size_t start) {
    const size_t dim = queries->dim, padded = tk_padded_dim(dim), group = queries->group;
    const size_t oldest_of_last = window_start(queries->first_position + queries->tokens - 1, queries->window);
    for (size_t tile = tile_start(walk->begin); tile < walk->end; tile += TK_TILE_POSITIONS) {
        const size_t tile_begin = max_size(tile, walk->begin), tile_end = min_size(tile + TK_TILE_POSITIONS, walk->end);
        const tile_rows_of *next, *found = take_tile(walk, &next);
        gather_values(work->values, found, next, walk->kv->element, tile_begin - tile, tile_end - tile, dim, padded);
        // Tokens from `whole` on see the whole tile; those before it, or cut by a window, each a part. Sums
        // start with the first position that a token sees.
        const int is_first = tile_begin == walk->begin;
        size_t whole = tile_end > queries->first_position + 1 ? tile_end - queries->first_position - 1 : 0;
        if (is_first ? oldest_of_last > tile_begin : oldest_of_last >= tile_begin) whole = queries->tokens;
        whole = min_size(whole, queries->tokens);
        for (size_t token = 0; token < whole; token++) {
            size_t position = queries->first_position + token;
            size_t oldest = max_size(walk->begin, window_start(position, queries->window));
            size_t low = max_size(tile_begin, oldest), high = min_size(tile_end, position + 1);
            if (low >= high) continue;
            accumulate_rows(
                sums + token * group * padded, work->scores + token * group * TK_SEGMENT_POSITIONS + (tile - start),
                work->values, group, low - tile, high - tile, padded, low == oldest);
        }
        accumulate_rows(
            sums + whole * group * padded, work->scores + whole * group * TK_SEGMENT_POSITIONS + (tile - start),
            work->values, (queries->tokens - whole) * group, tile_begin - tile, tile_end - tile, padded, is_first);
    }
}

static void segment_sums(
    row_sums target, const attend_scratch *work, const tk_query_view *queries, const tk_kv_view *kv, size_t segment) {
    const size_t start = segment * TK_SEGMENT_POSITIONS;
    const size_t begin = max_size(start, window_start(queries->first_position, queries->window));
    const size_t end = min_size(start + TK_SEGMENT_POSITIONS, queries->first_position + queries->tokens);
    tile_walk walk;
    start_walk(&walk, kv, queries->dim, begin, end);
    score_segment(work, queries, &walk, start);
    for (size_t token = 0; token < queries->tokens; token++) {
        size_t position = queries->first_position + token;
        size_t low = max_size(start, window_start(position, queries->window));
        size_t high = min_size(start + TK_SEGMENT_POSITIONS, position + 1);
        for (size_t row = token * queries->group; row < (token + 1) * queries->group; row++) {
            target.maxima[row] = -__builtin_inff();
            target.totals[row] = 0;
            if (low < high)
                softmax_segment(
                    work->scores + row * TK_SEGMENT_POSITIONS, target.maxima + row, target.totals + row, low - start,
                    high - start);
        }
    }
    accumulate_segment(work, target.sums, queries, &walk, start);
}

/// Adds a segment to the ones before it.
static void merge_sums(row_sums target, row_sums part, size_t rows, size_t padded) {
    for (size_t row = 0; row < rows; row++) {
        if (part.totals[row] == 0) continue;
        if (target.totals[row] == 0) {
            memcpy(target.sums + row * padded, part.sums + row * padded, padded * sizeof(float));
            target.maxima[row] = part.maxima[row];
            target.totals[row] = part.totals[row];
            continue;
        }
        float largest = part.maxima[row] > target.maxima[row] ? part.maxima[row] : target.maxima[row];
        merge_row(
            target.sums + row * padded, target.totals + row, target.maxima[row] - largest, part.sums + row * padded,
            part.totals[row], part.maxima[row] - largest, padded);
        target.maxima[row] = largest;
    }
}

static void finish(float *out, row_sums sums, const tk_query_view *queries) {
    const size_t group = queries->group, dim = queries->dim, padded = tk_padded_dim(dim);
    for (size_t row = 0; row < queries->tokens * group; row++)
        finish_row(
            out + row / group * queries->token_stride + row % group * dim, sums.sums + row * padded, sums.totals[row],
            dim);
}

static void attend(float *out, float *scratch, const tk_query_view *queries, const tk_kv_view *kv) {
    const size_t rows = queries->tokens * queries->group, padded = tk_padded_dim(queries->dim);
    attend_scratch work = lay_out(scratch, queries);
    row_sums sums = row_sums_at(work.rest, rows, padded);
    row_sums part = row_sums_at(aligned(work.rest + rows * (padded + 2)), rows, padded);
    const size_t first = tk_first_segment(queries->first_position, queries->window);
    segment_sums(sums, &work, queries, kv, first);
    for (size_t segment = first + 1; segment < tk_end_segment(queries->first_position, queries->tokens); segment++) {
        segment_sums(part, &work, queries, kv, segment);
        merge_sums(sums, part, rows, padded);
    }
    finish(out, sums, queries);
}

static void attend_segment(
    float *partial, float *scratch, const tk_query_view *queries, const tk_kv_view *kv, size_t segment) {
    attend_scratch work = lay_out(scratch, queries);
    row_sums target = row_sums_at(partial, queries->tokens * queries->group, tk_padded_dim(queries->dim));
    segment_sums(target, &work, queries, kv, segment);
}

static void attend_merge(float *out, float *partials, const tk_query_view *queries, size_t segments) {
    const size_t rows = queries->tokens * queries->group, padded = tk_padded_dim(queries->dim);
    const size_t stride = tk_attend_partial(queries->tokens, queries->group, queries->dim);
    row_sums sums = row_sums_at(partials, rows, padded);
    for (size_t segment = 1; segment < segments; segment++)
        merge_sums(sums, row_sums_at(partials + segment * stride, rows, padded), rows, padded);
    finish(out, sums, queries);
}

#endif
