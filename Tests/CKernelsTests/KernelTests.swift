import CKernels
import Testing

/// SplitMix64, so that a failing seed can be run again.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    mutating func floats(_ count: Int, _ range: ClosedRange<Float> = -1...1) -> [Float] {
        (0..<count).map { _ in Float.random(in: range, using: &self) }
    }
}

typealias Table = UnsafePointer<tk_kernels>

/// A table under test, named for messages.
struct Named: CustomTestStringConvertible, @unchecked Sendable {
    var name: String
    var table: Table
    var testDescription: String { name }
}

/// The tables that this processor runs.
func tables() -> [Named] {
    var found = [Named(name: "scalar", table: tk_kernels_scalar())]
    if tk_cpu_has_avx2() != 0, let table = tk_kernels_avx2() { found.append(Named(name: "avx2", table: table)) }
    if tk_cpu_has_avx512() != 0, let table = tk_kernels_avx512() { found.append(Named(name: "avx512", table: table)) }
    return found
}

let elements: [tk_element] = [TK_F32, TK_F16, TK_BF16]

/// `values` as the element type stores them, by the scalar table.
func narrowed(_ values: [Float], _ element: tk_element) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: values.count * (element == TK_F32 ? 4 : 2))
    tk_kernels_scalar().pointee.narrow(&bytes, values, element, values.count)
    return bytes
}

func widened(_ bytes: [UInt8], _ element: tk_element, _ count: Int) -> [Float] {
    var values = [Float](repeating: 0, count: count)
    tk_kernels_scalar().pointee.widen(&values, bytes, element, count)
    return values
}

struct KernelTests {
    /// Against f64 sums: n products of magnitude 1 stay within n roundings of f32 in the worst case;
    /// 1e-5 per square root of n is what random signs leave.
    @Test(arguments: tables()) func aProductOfMatricesHasTheDefinitionsValue(_ kernels: Named) {
        for seed in UInt64(1)...40 {
            var random = SeededGenerator(seed: seed)
            let (rows, inputs) = (Int.random(in: 1...15, using: &random), Int.random(in: 1...131, using: &random))
            let outputs = Int.random(in: 1...19, using: &random)
            let element = elements[Int(seed % 3)]
            let x = random.floats(rows * inputs)
            let w = narrowed(random.floats(outputs * inputs), element)
            let exact = widened(w, element, outputs * inputs)
            let bias = random.floats(outputs)
            var y = [Float](repeating: .nan, count: rows * outputs)
            kernels.table.pointee.matmul(&y, x, w, seed % 2 == 0 ? bias : nil, element, rows, inputs, outputs, outputs)
            for row in 0..<rows {
                for output in 0..<outputs {
                    var sum = seed % 2 == 0 ? Double(bias[output]) : 0
                    for i in 0..<inputs { sum += Double(x[row * inputs + i]) * Double(exact[output * inputs + i]) }
                    let error = abs(Double(y[row * outputs + output]) - sum)
                    #expect(error < 1e-5, "seed \(seed), row \(row), output \(output)")
                }
            }
        }
    }

    @Test(arguments: tables()) func anOutputHasTheSameBitsWhateverIsComputedBesideIt(_ kernels: Named) {
        for seed in UInt64(1)...30 {
            var random = SeededGenerator(seed: seed)
            let (rows, inputs) = (Int.random(in: 2...40, using: &random), Int.random(in: 1...300, using: &random))
            let outputs = Int.random(in: 2...30, using: &random)
            let element = elements[Int(seed % 3)]
            let x = random.floats(rows * inputs)
            let w = narrowed(random.floats(outputs * inputs), element)
            var together = [Float](repeating: 0, count: rows * outputs)
            kernels.table.pointee.matmul(&together, x, w, nil, element, rows, inputs, outputs, outputs)
            for _ in 0..<20 {
                let row = Int.random(in: 0..<rows, using: &random)
                let output = Int.random(in: 0..<outputs, using: &random)
                let rowBytes = w.count / outputs
                var alone: Float = 0
                kernels.table.pointee.matmul(
                    &alone, Array(x[row * inputs..<(row + 1) * inputs]),
                    Array(w[output * rowBytes..<(output + 1) * rowBytes]), nil, element, 1, inputs, 1, 1)
                #expect(alone.bitPattern == together[row * outputs + output].bitPattern, "seed \(seed)")
            }
        }
    }

    @Test(arguments: tables()) func everyHalfWidensAndNarrowsBack(_ kernels: Named) {
        let all = (0...UInt16.max).map { $0 }
        for element in [TK_F16, TK_BF16] {
            var wide = [Float](repeating: 0, count: all.count)
            kernels.table.pointee.widen(&wide, all, element, all.count)
            var scalar = wide
            tk_kernels_scalar().pointee.widen(&scalar, all, element, all.count)
            var back = [UInt16](repeating: 0, count: all.count)
            kernels.table.pointee.narrow(&back, wide, element, all.count)
            let same = all.indices.allSatisfy { index in
                wide[index].isNaN
                    ? scalar[index].isNaN
                    : wide[index].bitPattern == scalar[index].bitPattern && back[index] == all[index]
            }
            #expect(same)
        }
        var sample: [UInt16] = [0x3C00, 0xC000, 0x0001, 0x7BFF, 0x7C00]
        var values = [Float](repeating: 0, count: 5)
        kernels.table.pointee.widen(&values, &sample, TK_F16, 5)
        #expect(values == [1, -2, 0x1p-24, 65504, .infinity])
    }

    @Test(arguments: tables()) func narrowingRoundsToTheNearestAndTiesToEven(_ kernels: Named) {
        var random = SeededGenerator(seed: 7)
        var values = (0..<20_001).map { _ in
            Float(bitPattern: UInt32(truncatingIfNeeded: random.next()))
        }
        values += [1 + 0x1p-11, 1 + 3 * 0x1p-11, 1 + 0x1p-8, 1 + 3 * 0x1p-8, 65519, 65520, 0x1p-25, -0x1p-25, 0]
        for element in [TK_F16, TK_BF16] {
            var mine = [UInt16](repeating: 0, count: values.count)
            var plain = mine
            kernels.table.pointee.narrow(&mine, values, element, values.count)
            tk_kernels_scalar().pointee.narrow(&plain, values, element, values.count)
            let wrong = values.indices.first { !values[$0].isNaN && mine[$0] != plain[$0] }
            #expect(wrong == nil)
        }
        var halves = [UInt16](repeating: 0, count: 3)
        kernels.table.pointee.narrow(&halves, [1 + 0x1p-11, 1 + 3 * 0x1p-11, .nan], TK_F16, 3)
        #expect(halves[0] == 0x3C00 && halves[1] == 0x3C02 && halves[2] & 0x7C00 == 0x7C00 && halves[2] & 0x3FF != 0)
    }

    @Test(arguments: tables()) func elementwiseKernelsAgreeWithThePlainOnes(_ kernels: Named) {
        let plain = tk_kernels_scalar()
        for n in [2, 6, 16, 34, 50, 130] {
            var random = SeededGenerator(seed: UInt64(n))
            let a = random.floats(3 * n, -9...9)
            let b = random.floats(3 * n)
            var mine = a
            var other = a
            kernels.table.pointee.rmsnorm(&mine, a, b, 1e-5, 3, n)
            plain.pointee.rmsnorm(&other, a, b, 1e-5, 3, n)
            expectClose(mine, other, 2e-6, "rmsnorm of \(n)")
            kernels.table.pointee.silu_multiply(&mine, a, b, 3 * n)
            plain.pointee.silu_multiply(&other, a, b, 3 * n)
            expectClose(mine, other, 2e-6, "silu of \(n)")
            mine = a
            other = a
            kernels.table.pointee.rotate(&mine, b, Array(b.reversed()), 0.25, 3, n)
            plain.pointee.rotate(&other, b, Array(b.reversed()), 0.25, 3, n)
            expectClose(mine, other, 2e-6, "rotation of \(n)")
            kernels.table.pointee.add(&mine, a, 3 * n)
            plain.pointee.add(&other, a, 3 * n)
            expectClose(mine, other, 2e-6, "sum of \(n)")
            let sum = kernels.table.pointee.exp_shifted(&mine, a, 9, 3, 3 * n)
            let plainSum = plain.pointee.exp_shifted(&other, a, 9, 3, 3 * n)
            expectClose(mine, other, 2e-6, "exponential of \(n)")
            #expect(abs(sum - plainSum) <= 1e-5 * plainSum)
        }
    }

    @Test(arguments: tables()) func notANumberAndInfinityAreNotHidden(_ kernels: Named) {
        var y: [Float] = [0, 0, 0]
        kernels.table.pointee.silu_multiply(&y, [.nan, 1, -1000], [1, .nan, 1], 3)
        #expect(y[0].isNaN && y[1].isNaN && abs(y[2]) < 1e-30)
        _ = kernels.table.pointee.exp_shifted(&y, [.nan, -.infinity, 0], 0, 1, 3)
        #expect(y[0].isNaN && y[1] == 0 && y[2] == 1)
    }

    @Test func theLargestFiniteValueIsFoundAndSpoiltOnesAreRefused() {
        #expect(tk_argmax_finite([1, 3, 3, 2], 4) == 1)
        #expect(tk_argmax_finite([1, .nan, 3], 3) == 3)
        #expect(tk_argmax_finite([1, -.infinity, 3], 3) == 3)
    }

    func expectClose(_ a: [Float], _ b: [Float], _ tolerance: Float, _ what: String) {
        let worst = zip(a, b).map { abs($0 - $1) / max(1, abs($1)) }.max() ?? 0
        #expect(worst <= tolerance, "\(what): \(worst)")
    }
}

/// A pool of pages with one head's random keys and values, and what attention over them means.
struct AttentionCase {
    var dim: Int
    var group: Int
    var window: Int
    var element: tk_element
    var keys: [Float]
    var values: [Float]
    var queries: [Float]

    init(seed: UInt64, positions: Int) {
        var random = SeededGenerator(seed: seed)
        dim = 2 * Int.random(in: 1...70, using: &random)
        group = Int.random(in: 1...5, using: &random)
        window = [0, 1, 7, 33, 40][Int.random(in: 0...4, using: &random)]
        element = elements[Int.random(in: 0...2, using: &random)]
        keys = widened(narrowed(random.floats(positions * dim), element), element, positions * dim)
        values = widened(narrowed(random.floats(positions * dim), element), element, positions * dim)
        queries = random.floats(positions * group * dim, -0.6...0.6)
    }

    /// Queries of positions `range`, their keys in blocks of `blockTokens` at shuffled slots.
    func attend(_ table: Table, _ range: Range<Int>, blockTokens: Int, seed: UInt64) -> [Float] {
        var random = SeededGenerator(seed: seed)
        let blocks = (range.upperBound + blockTokens - 1) / blockTokens
        let slots = (0..<blocks + 3).map { UInt32($0) }.shuffled(using: &random)
        let elementBytes = element == TK_F32 ? 4 : 2
        let half = blockTokens * dim * elementBytes
        // What is not written is a NaN in every format, and must not be read.
        var pool = [UInt8](repeating: 0xFF, count: (blocks + 3) * 2 * half)
        for position in 0..<range.upperBound {
            let start =
                Int(slots[position / blockTokens]) * 2 * half + position % blockTokens * dim * elementBytes
            let row = position * dim..<(position + 1) * dim
            pool.replaceSubrange(start..<start + dim * elementBytes, with: narrowed(Array(keys[row]), element))
            pool.replaceSubrange(
                start + half..<start + half + dim * elementBytes, with: narrowed(Array(values[row]), element))
        }
        let width = group * dim
        let own = Array(queries[range.lowerBound * width..<range.upperBound * width])
        var out = [Float](repeating: .nan, count: own.count)
        var scratch = [Float](repeating: .nan, count: tk_attend_scratch(range.count, group, dim))
        pool.withUnsafeBufferPointer { pool in
            slots.withUnsafeBufferPointer { slots in
                own.withUnsafeBufferPointer { own in
                    guard let pool = pool.baseAddress, let slots = slots.baseAddress, let own = own.baseAddress else {
                        return
                    }
                    var query = tk_query_view(
                        q: own, token_stride: width, first_position: range.lowerBound, tokens: range.count,
                        group: group, dim: dim, window: window)
                    var past = tk_kv_view(
                        pool: pool, block_table: slots, slot_bytes: 2 * half, key_offset: 0, value_offset: half,
                        block_tokens: blockTokens, element: element)
                    table.pointee.attend(&out, &scratch, &query, &past)
                }
            }
        }
        return out
    }

    /// Softmax by its definition, in f64.
    func expected(position: Int, head: Int) -> [Double] {
        let query = queries[(position * group + head) * dim..<(position * group + head + 1) * dim]
        let first = window == 0 ? 0 : max(0, position + 1 - window)
        let scores = (first...position).map { past in
            zip(query, keys[past * dim..<(past + 1) * dim]).reduce(0.0) { $0 + Double($1.0) * Double($1.1) }
        }
        let weights = scores.map { exponential($0 - (scores.max() ?? 0)) }
        let total = weights.reduce(0, +)
        return (0..<dim).map { i in
            zip(weights, first...position).reduce(0.0) { $0 + $1.0 / total * Double(values[$1.1 * dim + i]) }
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

struct AttentionKernelTests {
    @Test(arguments: tables()) func attentionHasTheDefinitionsValue(_ kernels: Named) {
        for seed in UInt64(1)...8 {
            let attention = AttentionCase(seed: seed, positions: 75)
            let out = attention.attend(kernels.table, 0..<75, blockTokens: 16, seed: seed)
            for position in [0, 1, 31, 32, 63, 64, 74] {
                for head in 0..<attention.group {
                    let start = (position * attention.group + head) * attention.dim
                    let mine = out[start..<start + attention.dim]
                    let worst =
                        zip(mine, attention.expected(position: position, head: head))
                        .map { abs(Double($0) - $1) }.max() ?? 0
                    #expect(worst < 5e-6, "seed \(seed), position \(position), head \(head)")
                }
            }
        }
    }

    @Test(arguments: tables()) func chunksBlocksAndSlotsChangeNoBitOfAttention(_ kernels: Named) {
        for seed in UInt64(1)...6 {
            let attention = AttentionCase(seed: 100 + seed, positions: 70)
            let whole = attention.attend(kernels.table, 0..<70, blockTokens: 16, seed: 1)
            for (chunk, block) in [(1, 1), (3, 16), (7, 64), (33, 5)] {
                var parts: [Float] = []
                for start in stride(from: 0, to: 70, by: chunk) {
                    let range = start..<min(70, start + chunk)
                    parts += attention.attend(kernels.table, range, blockTokens: block, seed: seed + UInt64(start))
                }
                let same = zip(parts, whole).allSatisfy { $0.bitPattern == $1.bitPattern }
                #expect(same && parts.count == whole.count, "seed \(seed), chunk \(chunk), block \(block)")
            }
        }
    }
}
