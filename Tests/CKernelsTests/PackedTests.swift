import CKernels
import Testing

/// A table of packed products under test, named for messages.
struct NamedPacked: CustomTestStringConvertible, @unchecked Sendable {
    var table: UnsafePointer<tk_packed_kernels>
    var hasBF16 = false
    var name: String { String(cString: table.pointee.name) }
    var testDescription: String { name }
}

/// The tables that this processor runs.
func packedTables() -> [NamedPacked] {
    var found = [NamedPacked(table: tk_packed_scalar(), hasBF16: true)]
    if tk_cpu_has_avx2() != 0, let table = tk_packed_avx2() { found.append(NamedPacked(table: table)) }
    if tk_cpu_has_avxvnni() != 0, let table = tk_packed_avxvnni() { found.append(NamedPacked(table: table)) }
    if tk_cpu_has_avx512vnni() != 0, let table = tk_packed_avx512vnni() {
        found.append(NamedPacked(table: table, hasBF16: tk_cpu_has_avx512bf16() != 0))
    }
    return found
}

/// A matrix as a file has it.
struct StoredMatrix {
    var format: tk_packed_format
    var outputs: Int
    var inputs: Int
    var bytes: [UInt8]

    static let blockFormats: [tk_packed_format] = [
        TK_PACKED_Q8_0, TK_PACKED_Q4_0, TK_PACKED_Q4_K, TK_PACKED_Q5_K, TK_PACKED_Q6_K,
    ]

    /// What files call the format; nil for bf16.
    static func block(_ format: tk_packed_format) -> tk_block_format? {
        switch format {
        case TK_PACKED_Q8_0: TK_BLOCK_Q8_0
        case TK_PACKED_Q4_0: TK_BLOCK_Q4_0
        case TK_PACKED_Q4_K: TK_BLOCK_Q4_K
        case TK_PACKED_Q5_K: TK_BLOCK_Q5_K
        case TK_PACKED_Q6_K: TK_BLOCK_Q6_K
        default: nil
        }
    }

    static func rowBytes(_ format: tk_packed_format, _ inputs: Int) -> Int {
        guard let block = block(format) else { return 2 * inputs }
        return inputs / tk_block_values(block) * tk_block_bytes(block)
    }

    /// Random bytes are valid blocks of every format, once their f16 scales are sane.
    init(random format: tk_packed_format, outputs: Int, inputs: Int, _ random: inout SeededGenerator) {
        self.format = format
        self.outputs = outputs
        self.inputs = inputs
        guard let block = Self.block(format) else {
            bytes = narrowed(random.floats(outputs * inputs), TK_BF16)
            return
        }
        let (size, count) = (tk_block_bytes(block), outputs * inputs / tk_block_values(block))
        bytes = (0..<count * size).map { _ in UInt8.random(in: 0...255, using: &random) }
        let places: [Int] =
            switch format {
            case TK_PACKED_Q6_K: [208]
            case TK_PACKED_Q4_K, TK_PACKED_Q5_K: [0, 2]
            default: [0]
            }
        for index in 0..<count {
            for place in places {
                let scale = narrowed([Float.random(in: -0.01...0.02, using: &random)], TK_F16)
                bytes.replaceSubrange(index * size + place..<index * size + place + 2, with: scale)
            }
        }
    }

    /// Its values by the file format's definition.
    var values: [Float] {
        guard let block = Self.block(format) else { return widened(bytes, TK_BF16, outputs * inputs) }
        var values = [Float](repeating: 0, count: outputs * inputs)
        tk_dequantise(&values, bytes, block, values.count / tk_block_values(block))
        return values
    }
}

/// A packed matrix with its memory.
final class Packed {
    let matrix: tk_packed
    let byteCount: Int
    private let memory: UnsafeMutableRawPointer

    init(_ stored: StoredMatrix, _ kernels: NamedPacked) {
        let panelBytes = tk_panel_bytes(stored.format, stored.inputs)
        let panels = tk_panel_count(stored.outputs)
        byteCount = panels * panelBytes
        let memory = UnsafeMutableRawPointer.allocate(byteCount: byteCount, alignment: 64)
        self.memory = memory
        memory.initializeMemory(as: UInt8.self, repeating: 0xA5, count: byteCount)
        let rowBytes = StoredMatrix.rowBytes(stored.format, stored.inputs)
        stored.bytes.withUnsafeBytes { bytes in
            for panel in 0..<panels {
                var rows = (0..<32).map { lane -> UnsafeRawPointer? in
                    let row = panel * 32 + lane
                    return row < stored.outputs ? bytes.baseAddress.map { $0 + row * rowBytes } : nil
                }
                let target = (memory + panel * panelBytes).assumingMemoryBound(to: UInt8.self)
                kernels.table.pointee.pack(target, &rows, stored.format, stored.inputs)
            }
        }
        matrix = tk_packed(
            panels: memory.assumingMemoryBound(to: UInt8.self), outputs: stored.outputs, inputs: stored.inputs,
            format: stored.format)
    }

    deinit { memory.deallocate() }

    var bytes: [UInt8] { Array(UnsafeRawBufferPointer(start: memory, count: byteCount)) }

    /// Products of prepared rows, in calls of random columns.
    func multiply(
        _ prepared: [UInt8], rows: Int, bias: [Float]?, onto y: [Float]? = nil, _ kernels: NamedPacked,
        _ random: inout SeededGenerator
    ) -> [Float] {
        let outputs = matrix.outputs
        var result = y ?? [Float](repeating: .nan, count: rows * outputs)
        var matrix = matrix
        var first = 0
        while first < outputs {
            let count = min(outputs - first, 32 * Int.random(in: 1...3, using: &random))
            kernels.table.pointee.multiply(
                &result, prepared, &matrix, bias, y == nil ? 0 : 1, rows, first, count, outputs)
            first += count
        }
        return result
    }
}

func prepared(_ x: [Float], rows: Int, inputs: Int, _ form: tk_input_form, _ kernels: NamedPacked) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: rows * tk_prepared_stride(form, inputs))
    // In two calls, as parts of a region make rows ready.
    let cut = inputs / 64 * 32
    kernels.table.pointee.prepare(&bytes, x, form, rows, inputs, inputs, 0, cut)
    kernels.table.pointee.prepare(&bytes, x, form, rows, inputs, inputs, cut, inputs - cut)
    return bytes
}

struct PackedTests {
    static let cases = packedTables().flatMap { table in
        (StoredMatrix.blockFormats + (table.hasBF16 ? [TK_PACKED_BF16] : [])).map { (table, $0) }
    }
    static let scalar = NamedPacked(table: tk_packed_scalar(), hasBF16: true)

    private func shape(
        _ format: tk_packed_format, _ random: inout SeededGenerator
    ) -> (rows: Int, inputs: Int, outputs: Int) {
        let multiple = tk_packed_input_multiple(format)
        let inputs =
            multiple == 1
            ? Int.random(in: 1...300, using: &random)
            : multiple * Int.random(in: 1...(multiple == 32 ? 11 : 3), using: &random)
        return (Int.random(in: 1...70, using: &random), inputs, Int.random(in: 1...100, using: &random))
    }

    /// Integers add exactly and f32 in one order, so there is no tolerance. Two bf16 products of a pair are
    /// added as the processor does it, which on the machines at hand is the plain table's order.
    @Test(arguments: cases) func everyTableGivesThePlainTablesBits(_ kernels: NamedPacked, _ format: tk_packed_format) {
        for seed in UInt64(1)...4 {
            var random = SeededGenerator(seed: seed * 100 + UInt64(format.rawValue))
            let (rows, inputs, outputs) = shape(format, &random)
            let context = "seed \(seed), \(rows) rows, \(inputs) inputs, \(outputs) outputs"
            let stored = StoredMatrix(random: format, outputs: outputs, inputs: inputs, &random)
            let mine = Packed(stored, kernels), plain = Packed(stored, Self.scalar)
            #expect(mine.bytes == plain.bytes, "\(context)")
            let x = random.floats(rows * inputs, -3...3)
            let form = tk_packed_input_form(format)
            let inputBytes = prepared(x, rows: rows, inputs: inputs, form, kernels)
            #expect(inputBytes == prepared(x, rows: rows, inputs: inputs, form, Self.scalar), "\(context)")
            let bias = seed % 2 == 0 ? random.floats(outputs) : nil
            let onto = seed > 2 ? random.floats(rows * outputs) : nil
            let y = mine.multiply(inputBytes, rows: rows, bias: bias, onto: onto, kernels, &random)
            let expected = plain.multiply(inputBytes, rows: rows, bias: bias, onto: onto, Self.scalar, &random)
            if format == TK_PACKED_BF16 {
                for (value, wanted) in zip(y, expected) { #expect(abs(value - wanted) < 1e-4, "\(context)") }
            } else {
                #expect(y.map(\.bitPattern) == expected.map(\.bitPattern), "\(context)")
            }
        }
    }

    @Test(arguments: cases) func aRowsBitsDoNotDependOnTheRowsBesideIt(
        _ kernels: NamedPacked, _ format: tk_packed_format
    ) {
        for seed in UInt64(1)...3 {
            var random = SeededGenerator(seed: seed * 1000 + UInt64(format.rawValue))
            let (rows, inputs, outputs) = shape(format, &random)
            let packed = Packed(StoredMatrix(random: format, outputs: outputs, inputs: inputs, &random), kernels)
            let x = random.floats(rows * inputs)
            let form = tk_packed_input_form(format)
            let bytes = prepared(x, rows: rows, inputs: inputs, form, kernels)
            let together = packed.multiply(bytes, rows: rows, bias: nil, kernels, &random)
            for _ in 0..<4 {
                let first = Int.random(in: 0..<rows, using: &random)
                let count = Int.random(in: 1...rows - first, using: &random)
                let stride = tk_prepared_stride(form, inputs)
                let alone = packed.multiply(
                    Array(bytes[first * stride..<(first + count) * stride]), rows: count, bias: nil, kernels, &random)
                let same = together[first * outputs..<(first + count) * outputs]
                #expect(
                    alone.map(\.bitPattern) == same.map(\.bitPattern), "seed \(seed), rows \(first) and \(count) on")
            }
        }
    }

    /// Inputs lose 1 part in 254 of their block's largest at most (bf16: 2^-9 of themselves); products of
    /// random signs stay within 2 % of what weights and inputs of that size give.
    @Test(arguments: cases) func productsAreNearTheDefinitions(_ kernels: NamedPacked, _ format: tk_packed_format) {
        for seed in UInt64(1)...2 {
            var random = SeededGenerator(seed: seed * 77 + UInt64(format.rawValue))
            let (inputs, outputs, rows) = (512, 40, 3)
            let stored = StoredMatrix(random: format, outputs: outputs, inputs: inputs, &random)
            let packed = Packed(stored, kernels)
            let x = random.floats(rows * inputs)
            let bytes = prepared(x, rows: rows, inputs: inputs, tk_packed_input_form(format), kernels)
            let y = packed.multiply(bytes, rows: rows, bias: nil, kernels, &random)
            let w = stored.values
            for row in 0..<rows {
                for output in 0..<outputs {
                    var (sum, squares) = (0.0, 0.0)
                    for i in 0..<inputs {
                        let product = Double(x[row * inputs + i]) * Double(w[output * inputs + i])
                        sum += product
                        squares += product * product
                    }
                    let error = abs(Double(y[row * outputs + output]) - sum)
                    #expect(error < 0.05 * squares.squareRoot() + 1e-6, "seed \(seed), row \(row), output \(output)")
                }
            }
        }
    }

    @Test(arguments: cases) func aRowUnpacksToItsDefinition(_ kernels: NamedPacked, _ format: tk_packed_format) {
        var random = SeededGenerator(seed: 5)
        let (_, inputs, outputs) = shape(format, &random)
        let stored = StoredMatrix(random: format, outputs: outputs, inputs: inputs, &random)
        let packed = Packed(stored, kernels)
        var matrix = packed.matrix
        let values = stored.values
        for output in [0, outputs / 2, outputs - 1] {
            var row = [Float](repeating: .nan, count: inputs)
            tk_unpack_row(&row, &matrix, output)
            let wanted = values[output * inputs..<(output + 1) * inputs]
            // 0 and -0 are the same value.
            #expect(row.elementsEqual(wanted), "output \(output)")
        }
    }

    /// The largest codes against the largest inputs, where 16-bit sums of pairs would saturate.
    @Test(arguments: cases) func theLargestProductsDoNotSaturate(_ kernels: NamedPacked, _ format: tk_packed_format) {
        guard let block = StoredMatrix.block(format), block == TK_BLOCK_Q8_0 || block == TK_BLOCK_Q4_0 else { return }
        for extreme in [UInt8(0x7f), 0x80, 0xff, 0x00, 0x81] {
            var random = SeededGenerator(seed: 1)
            var stored = StoredMatrix(random: format, outputs: 33, inputs: 64, &random)
            let size = tk_block_bytes(block)
            for index in stored.bytes.indices where index % size >= 2 { stored.bytes[index] = extreme }
            // Codes of 127 where the scale is a power of two as well.
            let most = Float(127) / 64
            let x = (0..<3 * 64).map { $0 < 64 ? most : $0 < 128 ? -most : $0 % 2 == 0 ? most : -most }
            let bytes = prepared(x, rows: 3, inputs: 64, tk_packed_input_form(format), kernels)
            let y = Packed(stored, kernels).multiply(bytes, rows: 3, bias: nil, kernels, &random)
            let w = stored.values
            for row in 0..<3 {
                for output in 0..<33 {
                    let sum = (0..<64).reduce(0.0) { $0 + Double(x[row * 64 + $1]) * Double(w[output * 64 + $1]) }
                    #expect(abs(Double(y[row * 33 + output]) - sum) <= abs(sum) * 1e-5 + 1e-5, "code \(extreme)")
                }
            }
        }
    }

    /// A value that is no number, or infinite, must show in every product of its row and in no other.
    @Test(arguments: cases) func whatIsNotFiniteSpoilsItsRowOnly(_ kernels: NamedPacked, _ format: tk_packed_format) {
        for bad in [Float.nan, .infinity, -.infinity] {
            var random = SeededGenerator(seed: 9)
            let inputs = 256, outputs = 35
            let packed = Packed(StoredMatrix(random: format, outputs: outputs, inputs: inputs, &random), kernels)
            var x = random.floats(3 * inputs)
            x[inputs + 77] = bad
            let bytes = prepared(x, rows: 3, inputs: inputs, tk_packed_input_form(format), kernels)
            let y = packed.multiply(bytes, rows: 3, bias: nil, kernels, &random)
            for output in 0..<outputs {
                #expect(y[output].isFinite && !y[outputs + output].isFinite && y[2 * outputs + output].isFinite)
            }
        }
    }

    @Test(arguments: packedTables()) func tinyAndZeroInputsGiveZero(_ kernels: NamedPacked) {
        var random = SeededGenerator(seed: 3)
        for format in [TK_PACKED_Q8_0, TK_PACKED_Q4_0] {
            let packed = Packed(StoredMatrix(random: format, outputs: 32, inputs: 64, &random), kernels)
            for value in [Float(0), -0, 1e-40, -1e-38] {
                let x = [Float](repeating: value, count: 64)
                let bytes = prepared(x, rows: 1, inputs: 64, tk_packed_input_form(format), kernels)
                #expect(packed.multiply(bytes, rows: 1, bias: nil, kernels, &random).allSatisfy { $0 == 0 })
            }
        }
    }

    /// Scales that are powers of two are the least that hold the largest magnitude, at every magnitude.
    @Test(arguments: packedTables()) func aScaleOfPowersIsTheLeastThatHolds(_ kernels: NamedPacked) {
        var random = SeededGenerator(seed: 13)
        for trial in 0..<400 {
            let size =
                Float.random(in: 1..<2, using: &random) * Float(sign: .plus, exponent: trial % 200 - 90, significand: 1)
            var x = (0..<32).map { _ in Float.random(in: -size...size, using: &random) }
            x[trial % 32] = trial % 3 == 0 ? -size : size
            let bytes = prepared(x, rows: 1, inputs: 32, TK_INPUT_Q8_POWERS, kernels)
            let scale = bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 32, as: Float.self) }
            let exponent = bytes.withUnsafeBytes { $0.loadUnaligned(fromByteOffset: 36, as: Float.self) }
            #expect(scale.significand == 1 && Float(scale.exponent) == exponent, "seed 13, trial \(trial)")
            #expect(scale >= size / 127 && scale / 2 < size / 127, "seed 13, trial \(trial)")
            for (value, code) in zip(x, bytes) {
                let error = abs(value / scale - Float(Int8(bitPattern: code)))
                #expect(error <= 0.5, "seed 13, trial \(trial)")
            }
        }
    }

    @Test func eightBitQuantisingRoundsAsRoundfDoes() {
        // Halves go away from zero, and what is just below a half goes down.
        for (value, code) in [
            (Float(127), Int8(127)), (0.5, 1), (-0.5, -1), (2.5, 3), (-2.5, -3), (0.49999997, 0), (-126.5, -127),
        ] {
            var block = [UInt8](repeating: 0, count: 34)
            var values = [Float](repeating: 0, count: 32)
            values[0] = 127
            values[1] = value
            tk_quantise_q8_0(&block, values, 1)
            #expect(Int8(bitPattern: block[3]) == code, "\(value)")
        }
    }
}
