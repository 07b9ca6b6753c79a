import CKernels
import ServingTypes
import Testing

@testable import ModelRuntime

/// Sequences of several segments, where decode steps share one sequence's segments among the workers.
struct LongContextTests {
    private static let positions = 700

    private struct Case: CustomStringConvertible {
        var seed: UInt64
        var spec: ModelSpec
        var kvType: KVElementType
        var tokens: [[TokenID]]

        init(seed: UInt64, kvType: KVElementType) {
            var random = SeededGenerator(seed: seed)
            let kvHeads = Int.random(in: 1...2, using: &random)
            let headDim = [32, 64, 80, 96, 128, 256].randomElement(using: &random) ?? 32
            spec = ModelSpec(
                family: .llama, layerCount: 1, hiddenSize: 32,
                headCount: kvHeads * Int.random(in: 1...4, using: &random),
                kvHeadCount: kvHeads, headDim: headDim, ffnSize: 32, vocabularySize: 40, contextTokensMax: positions,
                slidingWindow: [nil, nil, 300].randomElement(using: &random) ?? nil)
            self.seed = seed
            self.kvType = kvType
            tokens = (0..<2).map { _ in
                (0..<Int.random(in: 520...positions, using: &random)).map { _ in
                    TokenID(UInt32.random(in: 0..<40, using: &random))
                }
            }
        }

        var description: String {
            "seed \(seed), \(kvType), heads \(spec.headCount)/\(spec.kvHeadCount) of \(spec.headDim), "
                + "window \(spec.slidingWindow ?? 0), \(tokens.map(\.count)) tokens"
        }
    }

    /// Logits of the last six tokens of each sequence, as bits: prefilled whole, or decoded one by one.
    private func logits(
        _ test: Case, variant: KernelVariant, threads: Int, blockTokens: Int, decoded: Bool
    ) throws -> [[UInt32]] {
        let paged = try Paged(
            test.spec, blockTokens: blockTokens, type: test.kvType, positions: Self.positions, sequences: 2,
            seed: test.seed)
        let weights = MemoryTensors(random: test.spec, type: .f32, seed: test.seed)
        var options = EngineOptions()
        options.kernels = variant
        options.threads = threads
        options.rowsMax = decoded ? 512 : 4096
        let engine = try CPUEngine(spec: test.spec, weights: weights, store: paged.store, options: options)
        var result: [[UInt32]] = []
        let prefilled = test.tokens.map { $0.count - (decoded ? 6 : 0) }
        let prompts = test.tokens.indices.map { index in
            entry(test.tokens[index].prefix(prefilled[index]), at: 0, paged.table(index, positions: Self.positions))
        }
        let rows = try engine.logits(StepBatch(entries: prompts), rows: decoded ? .last : .all)
        guard decoded else {
            let first = rows[..<prefilled[0]].suffix(6)
            return (first + rows.suffix(6)).map { $0.map(\.bitPattern) }
        }
        var steps = [[[UInt32]]](repeating: [], count: 2)
        for step in 0..<6 {
            let entries = test.tokens.indices.map { index in
                let position = prefilled[index] + step
                return entry(
                    [test.tokens[index][position]], at: position, paged.table(index, positions: Self.positions))
            }
            for (index, row) in try engine.logits(StepBatch(entries: entries), rows: .all).enumerated() {
                steps[index].append(row.map(\.bitPattern))
            }
        }
        for step in steps { result += step }
        return result
    }

    @Test(arguments: InvarianceTests.variants) func decodedTokensHaveTheBitsOfPrefilledOnes(
        _ variant: KernelVariant
    ) throws {
        for (index, kvType) in KVElementType.allCases.enumerated() {
            let test = Case(seed: UInt64(500 + index), kvType: kvType)
            let whole = try logits(test, variant: variant, threads: 1, blockTokens: 16, decoded: false)
            #expect(whole.count == 12)
            for (threads, block) in [(1, 64), (2, 16), (5, 1)] {
                let decoded = try logits(test, variant: variant, threads: threads, blockTokens: block, decoded: true)
                #expect(decoded == whole, "\(test), \(threads) threads, block \(block)")
            }
        }
    }

    /// Narrower keys and values against f32 ones on random models: what the logits differ by, root mean
    /// square, in units of the logits' own. Measured 2.7e-4 (f16), 2.4e-3 (bf16), 8.2e-3 (int8); the bounds
    /// leave a factor of two.
    @Test(arguments: [KVElementType.f16, .bf16, .int8])
    func narrowerKeysAndValuesChangeLogitsByLittle(_ kvType: KVElementType) throws {
        let bound: Float = kvType == .f16 ? 6e-4 : kvType == .bf16 ? 5e-3 : 1.7e-2
        var worst: Float = 0
        for seed in UInt64(600)...603 {
            let exact = Case(seed: seed, kvType: .f32)
            let rounded = Case(seed: seed, kvType: kvType)
            let a = try logits(exact, variant: .best, threads: 2, blockTokens: 16, decoded: true).flatMap { $0 }
            let b = try logits(rounded, variant: .best, threads: 2, blockTokens: 16, decoded: true).flatMap { $0 }
            let (x, y) = (a.map(Float.init(bitPattern:)), b.map(Float.init(bitPattern:)))
            let difference = zip(x, y).reduce(Float(0)) { $0 + ($1.0 - $1.1) * ($1.0 - $1.1) }
            worst = max(worst, (difference / x.reduce(0) { $0 + $1 * $1 }).squareRoot())
            #expect(worst > 0 && worst < bound, "\(rounded): \(worst)")
        }
    }
}
