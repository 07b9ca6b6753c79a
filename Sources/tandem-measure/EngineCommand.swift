import ArgumentParser
import Foundation
import ModelFiles
import ModelRuntime
import ServingTypes

/// The engine alone, without a cluster round it: tokens per second of prefill and of decode.
struct EngineCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "engine", abstract: "Engine throughput: prefill, and decode at several batch sizes.")

    @Option(help: "Hugging Face model folder.") var model: String
    @Option(help: "Compute threads.") var threads: Int = 2
    @Option(help: "Prompt tokens.") var prompt: Int = 512
    @Option(help: "Tokens already in the cache when decoding.") var context: Int = 128
    @Option(help: "Runs of each row.") var rounds: Int = 5

    func validate() throws {
        guard (1...1024).contains(threads), (1...65_536).contains(prompt), (1...65_536).contains(context),
            (1...1000).contains(rounds)
        else {
            throw ValidationError("--threads takes 1 to 1024, --prompt and --context 1 to 65536, --rounds 1 to 1000")
        }
    }

    func run() throws {
        let bench = try EngineBench(model: model, threads: threads, positions: max(prompt, context + 33))
        print(Machine.line)
        print(
            "method: \(model), \(threads) threads, kernels \(bench.engine.variantName), \(rounds) runs after one warm-up"
        )
        print("what                       tokens/s, median (min-max)")
        let prefill = bench.rates(rounds) { bench.prefill(prompt) }
        print("prefill \(prompt)                \(prefill.text(1))")
        for jobs in [1, 4, 16, 32] {
            bench.fill(jobs: jobs, context: context)
            let decode = bench.rates(rounds) { bench.decode(jobs: jobs, context: context, steps: 32) }
            print("decode, \(jobs) jobs at \(context)     \(decode.text(1))")
        }
    }
}

private struct EngineBench {
    static let blockTokens = 16
    static let jobsMax = 32

    let engine: CPUEngine
    private let blocksPerJob: Int

    init(model: String, threads: Int, positions: Int) throws {
        let folder = try EngineFolder(path: model)
        let spec = folder.spec
        guard positions <= spec.contextTokensMax else {
            throw ValidationError("\(positions) positions exceed the model's context of \(spec.contextTokensMax)")
        }
        blocksPerJob = positions / Self.blockTokens + 1
        let layout = KVStore.Layout(
            blockTokens: Self.blockTokens, layerCount: spec.layerCount, kvHeadCount: spec.kvHeadCount,
            headDim: spec.headDim, elementType: .bf16)
        let store = try KVStore(layout: layout, slotCount: blocksPerJob * Self.jobsMax)
        var options = EngineOptions()
        options.threads = threads
        engine = try CPUEngine(spec: spec, weights: folder.weights, store: store, options: options)
    }

    /// Tokens per second of `body`, which answers how many tokens it computed.
    func rates(_ rounds: Int, _ body: () -> Int) -> Spread {
        _ = body()
        return Spread(
            (0..<rounds).map { _ in
                var tokens = 0
                let seconds = Machine.seconds { tokens = body() }
                return Double(tokens) / seconds
            })
    }

    func prefill(_ tokens: Int) -> Int {
        _ = engine.step(StepBatch(entries: [entry(job: 0, start: 0, count: tokens, samples: true)]))
        return tokens
    }

    /// Puts `context` tokens of each job into the cache.
    func fill(jobs: Int, context: Int) {
        for job in 0..<jobs {
            _ = engine.step(StepBatch(entries: [entry(job: job, start: 0, count: context, samples: false)]))
        }
    }

    func decode(jobs: Int, context: Int, steps: Int) -> Int {
        for step in 0..<steps {
            let entries = (0..<jobs).map { entry(job: $0, start: context + step, count: 1, samples: true) }
            _ = engine.step(StepBatch(entries: entries))
        }
        return jobs * steps
    }

    private func entry(job: Int, start: Int, count: Int, samples: Bool) -> StepEntry {
        let first = UInt32(job * blocksPerJob)
        var parameters = SamplingParameters()
        parameters.temperature = 0
        let sample = SampleRequest(parameters: parameters, history: [], promptTokens: start + count, outputTokens: 0)
        return StepEntry(
            transfer: TransferID(job: JobID(high: 0, low: UInt64(job)), attempt: .first),
            tokens: (0..<count).map { TokenID(UInt32(($0 * 7 + job) % 1000)) }, startPosition: start,
            blockTable: (first..<first + UInt32(blocksPerJob)).map { BlockSlot($0) }, sample: samples ? sample : nil)
    }
}
