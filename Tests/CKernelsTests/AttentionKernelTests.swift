import CKernels
import Testing

let storedTypes: [tk_kv_element] = [TK_KV_F32, TK_KV_F16, TK_KV_BF16, TK_KV_I8]

/// One row as the pool stores it, with its scale; and what it then means.
func stored(_ row: [Float], _ element: tk_kv_element, _ table: Table) -> (
    bytes: [UInt8], scale: [UInt8], value: [Float]
) {
    var bytes = [UInt8](repeating: 0xAA, count: tk_kv_row_bytes(element, row.count))
    var scale = [UInt8](repeating: 0xAA, count: 4)
    table.pointee.attention.pointee.store_row(&bytes, &scale, row, element, row.count)
    return (bytes, scale, expanded(bytes, scale, element, row.count))
}

private func expanded(_ bytes: [UInt8], _ scale: [UInt8], _ element: tk_kv_element, _ count: Int) -> [Float] {
    if element == TK_KV_F32 { return widened(bytes, TK_F32, count) }
    if element == TK_KV_F16 { return widened(bytes, TK_F16, count) }
    if element == TK_KV_BF16 { return widened(bytes, TK_BF16, count) }
    let bits = scale.reversed().reduce(UInt32(0)) { $0 << 8 | UInt32($1) }
    return bytes.map { Float(Int8(bitPattern: $0)) * Float(bitPattern: bits) }
}

/// One head's random keys and values, queries over them, and what attention means.
struct AttentionCase: CustomStringConvertible {
    var seed: UInt64
    var positions: Int
    var dim: Int
    var group: Int
    var window: Int
    var element: tk_kv_element
    var keys: [(bytes: [UInt8], scale: [UInt8], value: [Float])]
    var values: [(bytes: [UInt8], scale: [UInt8], value: [Float])]
    var queries: [Float]

    var description: String {
        "seed \(seed): \(positions) positions, dim \(dim), group \(group), window \(window), element \(element.rawValue)"
    }

    init(seed: UInt64, positions: Int, element: tk_kv_element, dim: Int? = nil) {
        var random = SeededGenerator(seed: seed)
        self.seed = seed
        self.positions = positions
        self.element = element
        let drawn = [2, 6, 32, 34, 64, 80, 128, 140, 256][Int.random(in: 0...8, using: &random)]
        self.dim = dim ?? drawn
        group = Int.random(in: 1...9, using: &random)
        window = [0, 0, 1, 7, 33, 40, 200, 300][Int.random(in: 0...7, using: &random)]
        let width = self.dim
        keys = (0..<positions).map { _ in stored(random.floats(width), element, tk_kernels_scalar()) }
        values = (0..<positions).map { _ in stored(random.floats(width), element, tk_kernels_scalar()) }
        let spread = 3 / Float(width).squareRoot()
        queries = random.floats(positions * group * width, -spread...spread)
    }

    /// Calls `body` with queries of positions `range` over a pool with blocks of `blockTokens` at shuffled
    /// slots; what is not written is a NaN in every format, and must not be read.
    private func withViews<T>(
        _ range: Range<Int>, blockTokens: Int, seed: UInt64,
        _ body: (inout tk_query_view, inout tk_kv_view) -> T
    ) -> T? {
        var random = SeededGenerator(seed: seed)
        let blocks = (range.upperBound + blockTokens - 1) / blockTokens
        let slots = (0..<blocks + 3).map { UInt32($0) }.shuffled(using: &random)
        let rowBytes = tk_kv_row_bytes(element, dim)
        let half = blockTokens * (rowBytes + (element == TK_KV_I8 ? 4 : 0))
        var pool = [UInt8](repeating: 0xFF, count: (blocks + 3) * 2 * half)
        func place(_ row: (bytes: [UInt8], scale: [UInt8], value: [Float]), _ start: Int, _ inside: Int) {
            pool.replaceSubrange(start + inside * rowBytes..<start + (inside + 1) * rowBytes, with: row.bytes)
            guard element == TK_KV_I8 else { return }
            let scale = start + blockTokens * rowBytes + inside * 4
            pool.replaceSubrange(scale..<scale + 4, with: row.scale)
        }
        let oldest = window == 0 ? 0 : max(0, range.lowerBound + 1 - window)
        for position in oldest..<range.upperBound {
            let start = Int(slots[position / blockTokens]) * 2 * half
            place(keys[position], start, position % blockTokens)
            place(values[position], start + half, position % blockTokens)
        }
        let width = group * dim
        let own = Array(queries[range.lowerBound * width..<range.upperBound * width])
        return pool.withUnsafeBufferPointer { pool in
            slots.withUnsafeBufferPointer { slots in
                own.withUnsafeBufferPointer { own in
                    guard let pool = pool.baseAddress, let slots = slots.baseAddress, let own = own.baseAddress else {
                        return nil
                    }
                    var query = tk_query_view(
                        q: own, token_stride: width, first_position: range.lowerBound, tokens: range.count,
                        group: group, dim: dim, window: window)
                    var past = tk_kv_view(
                        pool: pool, block_table: slots, slot_bytes: 2 * half, key_offset: 0, value_offset: half,
                        block_tokens: blockTokens, element: element)
                    return body(&query, &past)
                }
            }
        }
    }

    /// All queries of positions `range` in one call.
    func attend(_ table: Table, _ range: Range<Int>, blockTokens: Int, seed: UInt64) -> [Float] {
        var out = [Float](repeating: .nan, count: range.count * group * dim)
        var scratch = [Float](repeating: .nan, count: tk_attend_scratch(range.count, group, dim))
        _ = withViews(range, blockTokens: blockTokens, seed: seed) { query, past in
            table.pointee.attention.pointee.attend(&out, &scratch, &query, &past)
        }
        return out
    }

    /// The same by segments, in descending order, merged at the end.
    func attendBySegments(_ table: Table, _ range: Range<Int>, blockTokens: Int, seed: UInt64) -> [Float] {
        var out = [Float](repeating: .nan, count: range.count * group * dim)
        let size = tk_attend_partial(range.count, group, dim)
        let first = tk_first_segment(range.lowerBound, window)
        let end = tk_end_segment(range.lowerBound, range.count)
        var partials = [Float](repeating: .nan, count: (end - first) * size)
        _ = withViews(range, blockTokens: blockTokens, seed: seed) { query, past in
            for segment in (first..<end).reversed() {
                var scratch = [Float](repeating: .nan, count: tk_attend_scratch(range.count, group, dim))
                partials.withUnsafeMutableBufferPointer { partials in
                    guard let base = partials.baseAddress else { return }
                    table.pointee.attention.pointee.attend_segment(
                        base + (segment - first) * size, &scratch, &query, &past, segment)
                }
            }
            table.pointee.attention.pointee.attend_merge(&out, &partials, &query, end - first)
        }
        return out
    }

    /// Softmax by its definition, in f64.
    func expected(position: Int, head: Int) -> [Double] {
        let query = queries[(position * group + head) * dim..<(position * group + head + 1) * dim]
        let first = window == 0 ? 0 : max(0, position + 1 - window)
        let scores = (first...position).map { past in
            zip(query, keys[past].value).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
        }
        let weights = scores.map { exponential($0 - (scores.max() ?? 0)) }
        let total = weights.reduce(0, +)
        return (0..<dim).map { i in
            zip(weights, first...position).reduce(0.0) { $0 + $1.0 / total * Double(values[$1.1].value[i]) }
        }
    }

    private func exponential(_ x: Double) -> Double {
        // (1 + y + y^2/2 + ... ) of y = x / 1024, squared ten times: no library needed here.
        let y = x / 1024
        var result = 1 + y * (1 + y / 2 * (1 + y / 3 * (1 + y / 4 * (1 + y / 5))))
        for _ in 0..<10 { result *= result }
        return result
    }
}

private func sameBits(_ a: [Float], _ b: [Float]) -> Bool {
    a.count == b.count && zip(a, b).allSatisfy { $0.bitPattern == $1.bitPattern }
}

struct AttentionKernelTests {
    /// f32 throughout: a few roundings per position, weights summing to 1 and values of magnitude 1.
    @Test(arguments: tables()) func attentionHasTheDefinitionsValue(_ kernels: Named) {
        for seed in UInt64(1)...8 {
            let positions = seed % 2 == 0 ? 75 : 290
            let attention = AttentionCase(seed: seed, positions: positions, element: storedTypes[Int(seed / 2 % 4)])
            let out = attention.attend(kernels.table, 0..<positions, blockTokens: 16, seed: seed)
            for position in [0, 1, 63, 64, 255, 256, 289] where position < positions {
                for head in Set([0, attention.group - 1]) {
                    let start = (position * attention.group + head) * attention.dim
                    let mine = out[start..<start + attention.dim]
                    let worst =
                        zip(mine, attention.expected(position: position, head: head))
                        .map { abs(Double($0) - $1) }.max() ?? 0
                    #expect(worst < 5e-6, "\(attention), position \(position), head \(head)")
                }
            }
        }
    }

    @Test(arguments: tables()) func chunksBlocksSlotsAndSegmentsChangeNoBitOfAttention(_ kernels: Named) {
        for seed in UInt64(101)...108 {
            var random = SeededGenerator(seed: seed)
            let positions = Int.random(in: 1...(seed % 2 == 0 ? 600 : 80), using: &random)
            let attention = AttentionCase(seed: seed, positions: positions, element: storedTypes[Int(seed % 4)])
            let width = attention.group * attention.dim
            let whole = attention.attend(kernels.table, 0..<positions, blockTokens: 16, seed: 1)
            for block in [1, 5, 16, 64] {
                for _ in 0..<3 {
                    let start = Int.random(in: 0..<positions, using: &random)
                    let count = [1, 3, 7, 33][Int.random(in: 0...3, using: &random)]
                    let range = start..<min(positions, start + count)
                    let expected = Array(whole[range.lowerBound * width..<range.upperBound * width])
                    let part = attention.attend(kernels.table, range, blockTokens: block, seed: seed)
                    #expect(sameBits(part, expected), "\(attention), positions \(range), block \(block)")
                    let merged = attention.attendBySegments(kernels.table, range, blockTokens: block, seed: seed)
                    #expect(sameBits(merged, expected), "\(attention), positions \(range), block \(block), segments")
                }
            }
        }
    }

    /// Same definition, other order of additions and another exponential.
    @Test(arguments: tables()) func tablesAgreeWithThePlainOne(_ kernels: Named) {
        for (index, element) in storedTypes.enumerated() {
            for dim in [32, 80, 128, 256] {
                let seed = UInt64(1000 + 10 * dim + index)
                let attention = AttentionCase(seed: seed, positions: 90, element: element, dim: dim)
                let mine = attention.attend(kernels.table, 60..<90, blockTokens: 16, seed: seed)
                let plain = attention.attend(tk_kernels_scalar(), 60..<90, blockTokens: 16, seed: seed)
                let worst = zip(mine, plain).map { abs($0 - $1) }.max() ?? 0
                #expect(worst < 2e-6, "\(attention): \(worst)")
            }
        }
    }

    @Test(arguments: tables()) func aStoredRowHasTheSameBytesInEveryTable(_ kernels: Named) {
        for seed in UInt64(1)...30 {
            var random = SeededGenerator(seed: seed)
            let dim = 2 * Int.random(in: 1...130, using: &random)
            var row = random.floats(dim, -5...5)
            if seed % 5 == 0 { row = row.map { $0 * 1e-38 } }
            if seed % 7 == 0 { row = row.map { _ in 0 } }
            for element in storedTypes {
                let mine = stored(row, element, kernels.table)
                let plain = stored(row, element, tk_kernels_scalar())
                #expect(mine.bytes == plain.bytes && mine.scale == plain.scale, "seed \(seed), \(element.rawValue)")
            }
        }
    }

    /// Half a step of the scale is the definition's bound on the error of one element.
    @Test(arguments: tables()) func integersAreWithinHalfAStepAndHideNothing(_ kernels: Named) {
        for seed in UInt64(1)...20 {
            var random = SeededGenerator(seed: seed)
            let row = random.floats(2 * Int.random(in: 1...130, using: &random), -4...4)
            let largest = row.map(abs).max() ?? 0
            let value = stored(row, TK_KV_I8, kernels.table).value
            let worst = zip(row, value).map { abs($0 - $1) }.max() ?? 0
            #expect(worst <= largest / 254 * 1.0001, "seed \(seed)")
        }
        for bad in [Float.nan, .infinity, -.infinity] {
            let value = stored([1, bad, 2, 3], TK_KV_I8, kernels.table).value
            #expect(value.allSatisfy { $0.isNaN })
        }
        #expect(stored([0, 0, 0, 0], TK_KV_I8, kernels.table).value == [0, 0, 0, 0])
    }

    /// What int8 keys and values cost in the result, against f32 ones: random keys and values of
    /// magnitude 1 with scores of spread about 1. Measured 4.8e-3 at most; the bound leaves a factor of two.
    @Test(arguments: tables()) func integersChangeAttentionByLittle(_ kernels: Named) {
        for seed in UInt64(300)...305 {
            let exact = AttentionCase(seed: seed, positions: 300, element: TK_KV_F32, dim: 64)
            let rounded = AttentionCase(seed: seed, positions: 300, element: TK_KV_I8, dim: 64)
            let a = exact.attend(kernels.table, 290..<300, blockTokens: 16, seed: 1)
            let b = rounded.attend(kernels.table, 290..<300, blockTokens: 16, seed: 1)
            let worst = zip(a, b).map { abs($0 - $1) }.max() ?? 0
            #expect(worst < 1e-2 && worst > 0, "\(exact): \(worst)")
        }
    }
}
