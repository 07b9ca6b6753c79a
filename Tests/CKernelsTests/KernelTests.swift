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
            kernels.table.pointee.matmul(
                &y, x, w, seed % 2 == 0 ? bias : nil, element, rows, inputs, outputs, outputs, 0)
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
            kernels.table.pointee.matmul(&together, x, w, nil, element, rows, inputs, outputs, outputs, 0)
            for _ in 0..<20 {
                let row = Int.random(in: 0..<rows, using: &random)
                let output = Int.random(in: 0..<outputs, using: &random)
                let rowBytes = w.count / outputs
                var alone: Float = 0
                kernels.table.pointee.matmul(
                    &alone, Array(x[row * inputs..<(row + 1) * inputs]),
                    Array(w[output * rowBytes..<(output + 1) * rowBytes]), nil, element, 1, inputs, 1, 1, 0)
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
