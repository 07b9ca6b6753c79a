import ServingTypes
import Testing

@testable import ModelRuntime

/// A random small architecture with random weights and a few random sequences.
struct RandomModel {
    var spec: ModelSpec
    var weights: MemoryTensors
    var kvType: KVElementType
    var sequences: [[TokenID]]

    init(seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let kvHeads = Int.random(in: 1...3, using: &random)
        spec = ModelSpec(
            family: .llama, layerCount: Int.random(in: 1...2, using: &random),
            hiddenSize: Int.random(in: 20...70, using: &random),
            headCount: kvHeads * Int.random(in: 1...3, using: &random), kvHeadCount: kvHeads,
            headDim: 2 * Int.random(in: 3...20, using: &random), ffnSize: Int.random(in: 20...90, using: &random),
            vocabularySize: Int.random(in: 30...90, using: &random), contextTokensMax: 128,
            slidingWindow: [nil, 5, 40].randomElement(using: &random) ?? nil, attentionBias: .random(using: &random),
            outputBias: .random(using: &random), mlpBias: .random(using: &random), qkNorm: .random(using: &random),
            tiedEmbeddings: .random(using: &random))
        weights = MemoryTensors(
            random: spec, type: ElementType.allCases.randomElement(using: &random) ?? .f32, seed: seed)
        kvType = KVElementType.allCases.randomElement(using: &random) ?? .f32
        let vocabulary = UInt32(spec.vocabularySize)
        sequences = (0..<3).map { _ in
            (0..<Int.random(in: 1...70, using: &random)).map { _ in
                TokenID(UInt32.random(in: 0..<vocabulary, using: &random))
            }
        }
    }

    struct Way {
        var variant: KernelVariant
        var chunk = 1000
        var blockTokens = 16
        var threads = 1
        var rowsMax = 512
        /// All sequences in each step, or each alone.
        var together = false
        var slotSeed: UInt64 = 1
        var quantise: BlockFormat?
        var bf16Products = true
        var packing = PackingTime.beforehand
    }

    /// Logits of all rows of all sequences, as bits.
    func logits(_ way: Way, _ source: (any TensorSource)? = nil) throws -> [[[UInt32]]] {
        let paged = try Paged(
            spec, blockTokens: way.blockTokens, type: kvType, positions: 70, sequences: sequences.count,
            seed: way.slotSeed)
        var options = EngineOptions()
        options.kernels = way.variant
        options.threads = way.threads
        options.rowsMax = way.rowsMax
        options.quantise = way.quantise
        options.bf16Products = way.bf16Products
        options.packing = way.packing
        let engine = try CPUEngine(spec: spec, weights: source ?? weights, store: paged.store, options: options)
        var rows = [[[UInt32]]](repeating: [], count: sequences.count)
        let groups = way.together ? [Array(sequences.indices)] : sequences.indices.map { [$0] }
        for group in groups {
            var done = [Int](repeating: 0, count: sequences.count)
            while true {
                let live = group.filter { done[$0] < sequences[$0].count }
                if live.isEmpty { break }
                let entries = live.map { index in
                    let end = min(sequences[index].count, done[index] + way.chunk)
                    return entry(
                        sequences[index][done[index]..<end], at: done[index], paged.table(index, positions: 70))
                }
                var answer = try engine.logits(StepBatch(entries: entries), rows: .all)[...]
                for (index, entry) in zip(live, entries) {
                    rows[index] += answer.prefix(entry.tokens.count).map { $0.map(\.bitPattern) }
                    answer = answer.dropFirst(entry.tokens.count)
                    done[index] += entry.tokens.count
                }
            }
        }
        return rows
    }
}

struct InvarianceTests {
    static let variants = KernelVariant.allCases.filter(\.isSupported)

    @Test(arguments: variants) func batchChunkBlockSlotsAndThreadsChangeNoBit(_ variant: KernelVariant) throws {
        for seed in UInt64(1)...5 {
            let model = RandomModel(seed: seed)
            let plain = try model.logits(.init(variant: variant, slotSeed: 3))
            var ways: [RandomModel.Way] = []
            for chunk in [1, 3, 7, 1000] { ways.append(.init(variant: variant, chunk: chunk, together: true)) }
            for block in [1, 5, 64] {
                ways.append(.init(variant: variant, chunk: 9, blockTokens: block, slotSeed: seed))
            }
            for threads in [2, 3] {
                ways.append(.init(variant: variant, chunk: 11, threads: threads, together: true, slotSeed: 9))
            }
            ways.append(.init(variant: variant, rowsMax: 13, together: true))
            for way in ways {
                #expect(try model.logits(way) == plain, "seed \(seed), \(way)")
            }
        }
    }

    /// Large enough that regions are really shared among threads.
    @Test func threadsShareAWiderModelWithoutChangingABit() throws {
        var model = RandomModel(seed: 77)
        model.spec.hiddenSize = 256
        model.spec.ffnSize = 300
        model.spec.slidingWindow = nil
        model.weights = MemoryTensors(random: model.spec, type: .bf16, seed: 77)
        let variant = KernelVariant.best
        let plain = try model.logits(.init(variant: variant))
        for threads in [2, 3, 5] {
            #expect(try model.logits(.init(variant: variant, chunk: 40, threads: threads, together: true)) == plain)
        }
    }

    @Test(arguments: variants) func randomModelsAgreeWithTheReference(_ variant: KernelVariant) throws {
        for seed in UInt64(20)...23 {
            var model = RandomModel(seed: seed)
            model.kvType = .f32
            model.sequences = [Array(model.sequences[0].prefix(40))]
            let mine = try model.logits(.init(variant: variant, chunk: 6, bf16Products: false))[0]
            let paged = try Paged(model.spec, blockTokens: 3, type: .f32, positions: 70)
            let reference = try ReferenceEngine(spec: model.spec, weights: model.weights, store: paged.store)
            let batch = StepBatch(entries: [entry(model.sequences[0], at: 0, paged.table(0, positions: 70))])
            for (row, expected) in zip(mine, try reference.logits(batch, rows: .all)) {
                #expect(relativeError(row.map(Float.init(bitPattern:)), expected) < 2e-4, "seed \(seed)")
            }
        }
    }

    @Test func sampledTokensAreTheSameAloneAndTogether() throws {
        let model = RandomModel(seed: 5)
        let alone = try (0..<3).map { try draw(model, [$0], threads: 1) }
        let together = try draw(model, [0, 1, 2], threads: 2)
        #expect(alone.flatMap { $0 } == together)
        #expect(together.count == 3)
    }

    private func draw(_ model: RandomModel, _ indices: [Int], threads: Int) throws -> [StepOutcome] {
        let paged = try Paged(model.spec, blockTokens: 4, type: .bf16, positions: 70, sequences: 3, seed: 8)
        var options = EngineOptions()
        options.threads = threads
        let engine = try CPUEngine(spec: model.spec, weights: model.weights, store: paged.store, options: options)
        let entries = indices.map { index in
            var parameters = SamplingParameters()
            parameters.temperature = 1.3
            parameters.seed = 42 + UInt64(index)
            parameters.wantsLogprobs = true
            parameters.topLogprobs = 3
            let tokens = model.sequences[index]
            return entry(
                tokens, at: 0, paged.table(index, positions: 70),
                sample: SampleRequest(
                    parameters: parameters, history: [], promptTokens: tokens.count, outputTokens: 0))
        }
        return engine.step(StepBatch(entries: entries)).outcomes
    }
}
