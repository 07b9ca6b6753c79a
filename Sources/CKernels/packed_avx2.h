// The body of packed_avx2.c, included once with and once without AVX-VNNI: NAME(x) makes the names
// differ, HAS_VNNI says which.

/// Eight outputs times four inputs, as unsigned bytes; `part` counts registers in the panel.
INLINE __m256i NAME(codes_at)(
    const uint8_t *codes, const tk_packed_format format, const size_t quad, const size_t part) {
    const size_t place = part * 32;
    if (format == TK_PACKED_Q8_0) return _mm256_load_si256((const void *)(codes + quad * QUAD_BYTES + place));
    __m256i nibbles = _mm256_load_si256((const void *)(codes + quad % 4 * QUAD_BYTES + place));
    if (quad >= 4) nibbles = _mm256_srli_epi16(nibbles, 4);
    nibbles = _mm256_and_si256(nibbles, _mm256_set1_epi8(15));
    const uint8_t *more = codes + NIBBLE_BYTES;
    if (format == TK_PACKED_Q5_K) {
        // Bit i of the 32 goes to byte i: its byte to all eight of its places, then one bit of each kept.
        int32_t bits;
        memcpy(&bits, more + (quad * QUAD_BYTES + place) / 8, sizeof bits);
        const __m256i spread = _mm256_setr_epi64x(
            0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303);
        const __m256i each = _mm256_set1_epi64x((long long)0x8040201008040201ull);
        __m256i fifth = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32(bits), spread), each);
        fifth = _mm256_and_si256(_mm256_cmpeq_epi8(fifth, each), _mm256_set1_epi8(16));
        return _mm256_or_si256(nibbles, fifth);
    }
    if (format == TK_PACKED_Q6_K) {
        __m256i high = _mm256_load_si256((const void *)(more + quad / 4 * QUAD_BYTES + place));
        const int bit = (int)(quad % 4 * 2);
        high = bit < 4 ? _mm256_slli_epi16(high, 4 - bit) : _mm256_srli_epi16(high, bit - 4);
        return _mm256_or_si256(nibbles, _mm256_and_si256(high, _mm256_set1_epi8(0x30)));
    }
    return nibbles;
}

#if !HAS_VNNI
/// Sums of two products each, in 16 bits.
INLINE __m256i NAME(pairs)(__m256i codes, __m256i inputs, const tk_packed_format format) {
    if (format != TK_PACKED_Q8_0) return _mm256_maddubs_epi16(codes, inputs);
    // Two products of up to 255 * 127 would not fit. So bytes of Q8_0 are made signed again and multiply as
    // magnitude times signed input: 2 * 128 * 127 fits, and inputs are never -128.
    const __m256i weights = _mm256_xor_si256(codes, _mm256_set1_epi8((char)0x80));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(weights), _mm256_sign_epi8(inputs, weights));
}

/// Quads whose pairs may be added in 16 bits: 2 * 127 times the largest code, that often, is below 2^15.
INLINE size_t NAME(quads_in_16_bits)(const tk_packed_format format) {
    switch (format) {
    case TK_PACKED_Q4_0:
    case TK_PACKED_Q4_K: return 8;
    case TK_PACKED_Q5_K: return 4;
    case TK_PACKED_Q6_K: return 2;
    case TK_PACKED_Q8_0:
    case TK_PACKED_BF16: return 1;
    }
    return 1;
}
#endif

INLINE __m256i NAME(four_inputs)(const uint8_t *x, size_t quad) {
    int32_t four;
    memcpy(&four, x + quad * 4, sizeof four);
    return _mm256_set1_epi32(four);
}

/// Adds the products of quads begin ..< end of a block to the rows' sums, exactly.
INLINE void NAME(add_products)(
    __m256i ints[ROWS][PARTS], const uint8_t *codes, const uint8_t *x, size_t x_stride, const tk_packed_format format,
    const size_t rows, const size_t first_part, const size_t begin, const size_t end) {
#if HAS_VNNI
    UNROLL for (size_t quad = begin; quad < end; quad++) {
        __m256i weights[PARTS];
        UNROLL for (size_t p = 0; p < PARTS; p++) weights[p] = NAME(codes_at)(codes, format, quad, first_part + p);
        UNROLL for (size_t r = 0; r < rows; r++) {
            const __m256i inputs = NAME(four_inputs)(x + r * x_stride, quad);
            UNROLL for (size_t p = 0; p < PARTS; p++)
                ints[r][p] = _mm256_dpbusd_avx_epi32(ints[r][p], weights[p], inputs);
        }
    }
#else
    const size_t run = NAME(quads_in_16_bits)(format);
    UNROLL for (size_t start = begin; start < end; start += run) {
        __m256i shorts[ROWS][PARTS];
        UNROLL for (size_t quad = start; quad < start + run; quad++) {
            __m256i weights[PARTS];
            UNROLL for (size_t p = 0; p < PARTS; p++)
                weights[p] = NAME(codes_at)(codes, format, quad, first_part + p);
            UNROLL for (size_t r = 0; r < rows; r++) {
                const __m256i inputs = NAME(four_inputs)(x + r * x_stride, quad);
                UNROLL for (size_t p = 0; p < PARTS; p++) {
                    const __m256i pairs = NAME(pairs)(weights[p], inputs, format);
                    shorts[r][p] = quad == start ? pairs : _mm256_add_epi16(shorts[r][p], pairs);
                }
            }
        }
        UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t p = 0; p < PARTS; p++)
            ints[r][p] = _mm256_add_epi32(ints[r][p], _mm256_madd_epi16(shorts[r][p], _mm256_set1_epi16(1)));
    }
#endif
}

/// What unsigned codes add too much of: see `q8_block`.
INLINE int32_t NAME(start_of)(const q8_block *x, const tk_packed_format format) {
    if (format == TK_PACKED_Q8_0) return HAS_VNNI ? x->start : 0;
    return format == TK_PACKED_Q4_0 ? x->start / 16 : 0;
}

INLINE __m256 NAME(f16_scales)(const void *scales) { return _mm256_cvtph_ps(_mm_load_si128(scales)); }
INLINE __m256 NAME(unsigned_scales)(const void *scales) {
    return _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(scales)));
}
INLINE __m256 NAME(signed_scales)(const void *scales) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(scales)));
}

/// Integer sums of quads begin ..< end of a block, added to f32 sums with the scales given.
INLINE void NAME(add_quads)(
    float *sums, const uint8_t *codes, const uint8_t *x, size_t x_stride, const tk_packed_format format,
    const size_t rows, const size_t first_part, const size_t begin, const size_t end, const int32_t starts[ROWS],
    const __m256 scales[PARTS]) {
    __m256i ints[ROWS][PARTS];
    UNROLL for (size_t r = 0; r < rows; r++) UNROLL for (size_t p = 0; p < PARTS; p++)
        ints[r][p] = _mm256_set1_epi32(starts[r]);
    NAME(add_products)(ints, codes, x, x_stride, format, rows, first_part, begin, end);
    UNROLL for (size_t r = 0; r < rows; r++) {
        __m256 scale = _mm256_set1_ps(((const q8_block *)(const void *)(x + r * x_stride))->scale);
        UNROLL for (size_t p = 0; p < PARTS; p++) {
            float *sum = sums + r * PANEL + (first_part + p) * LANES;
            __m256 product = _mm256_mul_ps(scales[p], scale);
            _mm256_store_ps(sum, _mm256_fmadd_ps(_mm256_cvtepi32_ps(ints[r][p]), product, _mm256_load_ps(sum)));
        }
    }
}

/// `rows` rows times half a panel, one block.
INLINE void NAME(add_block)(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *block, const uint8_t *super,
    const tk_packed_format format, const size_t rows, const size_t part) {
    const size_t head = super_bytes(format), header = head == 0 ? SCALE_BYTES : 2 * PANEL;
    int32_t starts[ROWS];
    __m256 scales[PARTS];
    if (format == TK_PACKED_Q6_K) {
        UNROLL for (size_t half = 0; half < 2; half++) {
            UNROLL for (size_t r = 0; r < rows; r++) {
                const q8_block *input = (const q8_block *)(const void *)(x + r * x_stride);
                starts[r] = (half == 0 ? input->half_start : input->start - input->half_start) / 4;
            }
            UNROLL for (size_t p = 0; p < PARTS; p++)
                scales[p] = _mm256_mul_ps(
                    NAME(f16_scales)(super + (part + p) * LANES * 2),
                    NAME(signed_scales)(block + half * PANEL + (part + p) * LANES));
            NAME(add_quads)(
                sums, block + header, x, x_stride, format, rows, part, half * 4, half * 4 + 4, starts, scales);
        }
        return;
    }
    UNROLL for (size_t r = 0; r < rows; r++)
        starts[r] = NAME(start_of)((const q8_block *)(const void *)(x + r * x_stride), format);
    UNROLL for (size_t p = 0; p < PARTS; p++)
        scales[p] = head == 0 ? NAME(f16_scales)(block + (part + p) * LANES * 2)
                              : _mm256_mul_ps(
                                    NAME(f16_scales)(super + (part + p) * LANES * 2),
                                    NAME(unsigned_scales)(block + (part + p) * LANES));
    NAME(add_quads)(sums, block + header, x, x_stride, format, rows, part, 0, QUADS, starts, scales);
    if (head == 0) return;
    UNROLL for (size_t p = 0; p < PARTS; p++) {
        __m256 minimum = _mm256_mul_ps(
            NAME(f16_scales)(super + SCALE_BYTES + (part + p) * LANES * 2),
            NAME(unsigned_scales)(block + PANEL + (part + p) * LANES));
        UNROLL for (size_t r = 0; r < rows; r++) {
            float *sum = sums + r * PANEL + (part + p) * LANES;
            __m256 product = _mm256_set1_ps(((const q8_block *)(const void *)(x + r * x_stride))->product);
            _mm256_store_ps(sum, _mm256_fnmadd_ps(minimum, product, _mm256_load_ps(sum)));
        }
    }
}

INLINE void NAME(codes_tile)(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const tk_packed_format format,
    const size_t rows, size_t begin, size_t end) {
    const size_t head = super_bytes(format);
    for (size_t b = begin; b < end; b++) {
        const uint8_t *block = panel + block_offset(format, b);
        const uint8_t *super = block - b % SUPER * block_bytes(format) - head;
        for (size_t part = 0; part < PANEL / LANES; part += PARTS)
            NAME(add_block)(sums, x + b * sizeof(q8_block), x_stride, block, super, format, rows, part);
    }
}

INLINE void NAME(chunk)(
    float *sums, const uint8_t *x, size_t x_stride, const uint8_t *panel, const tk_packed_format format, size_t rows,
    size_t blocks) {
    // Signs take a register more.
    const size_t tile_rows = format == TK_PACKED_Q8_0 && !HAS_VNNI ? ROWS - 1 : ROWS;
    memset(sums, 0, rows * PANEL * sizeof(float));
    for (size_t begin = 0; begin < blocks; begin += CACHED_BLOCKS) {
        const size_t end = min_size(blocks, begin + CACHED_BLOCKS);
        for (size_t r = 0; r < rows; r += tile_rows) {
            const uint8_t *row = x + r * x_stride;
            float *to = sums + r * PANEL;
            switch (min_size(tile_rows, rows - r)) {
            case 1: NAME(codes_tile)(to, row, x_stride, panel, format, 1, begin, end); break;
            case 2: NAME(codes_tile)(to, row, x_stride, panel, format, 2, begin, end); break;
            case 3: NAME(codes_tile)(to, row, x_stride, panel, format, 3, begin, end); break;
            default: NAME(codes_tile)(to, row, x_stride, panel, format, 4, begin, end); break;
            }
        }
    }
}

INLINE void NAME(multiply_of)(
    float *y, const uint8_t *x, const tk_packed *w, const float *bias, int accumulate, const tk_packed_format format,
    size_t rows, size_t first, size_t count, size_t y_stride) {
    _Alignas(64) float sums[CHUNK_ROWS * PANEL];
    const size_t x_stride = tk_prepared_stride(TK_INPUT_Q8, w->inputs);
    const size_t panel_bytes = tk_panel_bytes(format, w->inputs);
    const size_t rows_kept = max_size(1, 512 * 1024 / (x_stride * CHUNK_ROWS)) * CHUNK_ROWS;
    for (size_t start = 0; start < rows; start += rows_kept)
        for (size_t o = first; o < first + count; o += PANEL)
            for (size_t r = start; r < min_size(rows, start + rows_kept); r += CHUNK_ROWS) {
                const size_t here = min_size(CHUNK_ROWS, rows - r);
                const uint8_t *panel = w->panels + o / PANEL * panel_bytes;
                NAME(chunk)(sums, x + r * x_stride, x_stride, panel, format, here, w->inputs / BLOCK);
                write_out(
                    y + r * y_stride + o, sums, bias ? bias + o : NULL, accumulate, here,
                    min_size(PANEL, first + count - o), y_stride);
            }
}

static void NAME(multiply)(
    float *y, const uint8_t *x, const tk_packed *w, const float *bias, int accumulate, size_t rows, size_t first,
    size_t count, size_t y_stride) {
#define CASE(format) \
    case format: NAME(multiply_of)(y, x, w, bias, accumulate, format, rows, first, count, y_stride); return
    switch (w->format) {
        CASE(TK_PACKED_Q8_0);
        CASE(TK_PACKED_Q4_0);
        CASE(TK_PACKED_Q4_K);
        CASE(TK_PACKED_Q5_K);
        CASE(TK_PACKED_Q6_K);
    case TK_PACKED_BF16:
        // No bf16 products here; the plain table has them.
        tk_packed_scalar()->multiply(y, x, w, bias, accumulate, rows, first, count, y_stride);
        return;
    }
#undef CASE
}
