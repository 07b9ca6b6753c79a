import AllocationCounter
import ServingTypes
import Testing

@testable import ModelRuntime

/// A step in steady state takes nothing from the heap but the outcomes it returns. One thread, so that
/// every part of every region runs on the thread that counts.
struct AllocationTests {
    private func blocksTaken(
        jobs: Int, layers: Int, quantise: BlockFormat? = nil, _ change: (inout SamplingParameters) -> Void = { _ in }
    ) throws -> Int {
        let spec = ModelSpec(
            family: .llama, layerCount: layers, hiddenSize: 64, headCount: 4, kvHeadCount: 2, headDim: 32, ffnSize: 96,
            vocabularySize: 70, contextTokensMax: 64)
        let paged = try Paged(spec, blockTokens: 4, type: .bf16, positions: 64, sequences: jobs)
        var options = EngineOptions()
        options.quantise = quantise
        let engine = try CPUEngine(
            spec: spec, weights: MemoryTensors(random: spec, type: .bf16, seed: 3), store: paged.store,
            options: options)
        let batches = (0..<12).map { position in
            var sample = greedy(promptTokens: 1, outputTokens: position)
            change(&sample.parameters)
            sample.history = (0...16).map { TokenID(UInt32($0 % 5)) }
            return StepBatch(
                entries: (0..<jobs).map { job in
                    entry(
                        [TokenID(UInt32(position))], at: position, paged.table(job, positions: 64), sample: sample)
                })
        }
        // Buffers grow in the first steps.
        for batch in batches.prefix(4) { _ = engine.step(batch) }
        var taken = 0
        for batch in batches.dropFirst(4) {
            allocation_count_start()
            let result = engine.step(batch)
            taken = max(taken, allocation_count_stop())
            #expect(result.outcomes.count == jobs)
        }
        return taken
    }

    /// Without optimisation, the library's iterators and array literals take blocks too; that is no
    /// steady state to hold anything to but a bound far below one block per element.
    private static let blocksMax = _isDebugAssertConfiguration() ? 250 : 1

    @Test(arguments: [nil, BlockFormat.q8_0]) func aStepTakesItsOutcomesAndNothingElse(_ quantise: BlockFormat?) throws
    {
        for (jobs, layers) in [(1, 1), (5, 3), (9, 2)] {
            let taken = try blocksTaken(jobs: jobs, layers: layers, quantise: quantise)
            #expect(taken <= Self.blocksMax, "\(jobs) jobs, \(layers) layers")
        }
    }

    @Test func drawingTakesNothingMore() throws {
        let draws: [(inout SamplingParameters) -> Void] = [
            { $0.temperature = 0.8 },
            { ($0.temperature, $0.topK) = (0.8, 20) },
            { ($0.temperature, $0.topP) = (0.8, 0.9) },
            { ($0.temperature, $0.topK, $0.topP, $0.minP) = (0.8, 20, 0.9, 0.01) },
            { ($0.temperature, $0.repetitionPenalty, $0.presencePenalty) = (0.8, 1.2, 0.5) },
        ]
        for (number, change) in draws.enumerated() {
            let taken = try blocksTaken(jobs: 2, layers: 1, change)
            #expect(taken <= Self.blocksMax, "draw \(number)")
        }
    }
}
