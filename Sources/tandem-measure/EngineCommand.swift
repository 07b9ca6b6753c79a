import ArgumentParser
import Foundation
import ModelFiles
import ModelRuntime
import ServingTypes

/// The engine alone, without a cluster round it: tokens per second of prefill and of decode.
struct EngineCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "engine", abstract: "Engine throughput: prefill, and decode at several batch sizes.",
        discussion: """
            Rows are `prefill:TOKENS` and `decode:JOBS:CONTEXT`. A short prompt comes before the first. Before and
            after each run of a decode row the weights are read once without computing: the bandwidth of that moment.

              tandem-measure engine --model MODEL.gguf --row prefill:512 --row decode:16:128
            """)

    @Option(help: "Hugging Face model folder or GGUF file.") var model: String
    @Option(help: "Compute threads.") var threads: Int = 2
    @Option(help: "prefill:TOKENS or decode:JOBS:CONTEXT; again for more rows.") var row: [EngineRow] = []
    @Option(help: "Runs of each row.") var rounds: Int = 5
    @Option(help: "Steps of one run of a decode row.") var steps: Int = 32
    @Option(help: "Element type of cached keys and values: \(KVElementType.names).") var kvType: KVElementType = .bf16
    @Option(help: "Quantise 16- and 32-bit matrices while loading: q8_0, q4_0.") var quantize: QuantizeChoice?
    @Option(help: "Kernels: scalar, avx2, avx512 (default: the widest).") var kernels: KernelVariant?
    @Option(help: "Tokens that are prefilled before the first row, for pages and caches; 0: none.") var warmUp: Int = 32
    @Option(help: "Folder of packed weights, written by a first run and mapped by later ones (default: none).")
    var packedCache: String?
    @Option(help: "Cores to pin the compute threads to, such as 0,1 (default: none).") var pinCores: String?
    @Option(help: "When weights are packed: \(PackingTime.allCases.map(\.rawValue).joined(separator: ", ")).")
    var packing: PackingTime = .beforehand
    @Flag(help: "With --packing besides: wait for the packing's end before the first row.") var settle = false
    @Flag(help: "Make room for this user's other engines on the machine, as workers do.") var shareCores = false
    @Flag(help: "Read the tokenizer too, as a server does, before the engine is made.") var withTokenizer = false
    @Flag(help: "A JSON object per line instead of a table.") var json = false

    func validate() throws {
        guard (1...1024).contains(threads), (1...1000).contains(rounds), (1...65_536).contains(steps),
            (0...65_536).contains(warmUp)
        else {
            throw ValidationError("--threads takes 1 to 1024, --rounds 1 to 1000, --steps and --warm-up to 65536")
        }
        guard pinCores == nil || cores != nil else {
            throw ValidationError("--pin-cores takes numbers of cores from 0 to 1023, separated by commas")
        }
    }

    /// nil where they cannot be read.
    var cores: [Int]? {
        let parts = pinCores?.split(separator: ",", omittingEmptySubsequences: false) ?? []
        let cores = parts.compactMap { Int($0) }.filter { (0...1023).contains($0) }
        return cores.count == parts.count ? cores : nil
    }

    func run() throws {
        let rows = row.isEmpty ? EngineRow.standard : row
        let bench = try EngineBench(self, rows: rows)
        json ? print(bench.json) : print(bench.text)
        for row in rows {
            let (seconds, reads) = bench.measure(row, rounds: rounds, steps: steps)
            let tokens = row.tokens(steps: steps)
            if json {
                print(
                    "{\"row\": \"\(row)\", \"tokens\": \(tokens), \"seconds\": \(JSONText.array(seconds)), "
                        + "\"read_GBps\": \(JSONText.array(reads))}")
            } else {
                let rates = Spread(seconds.map { Double(tokens) / $0 }).text(1)
                let title = row.title.padding(toLength: 28, withPad: " ", startingAt: 0)
                print(title + (reads.isEmpty ? rates : "\(rates), reading \(Spread(reads).text(1)) GB/s"))
            }
        }
        if json { print("{\"resident_bytes\": \(Machine.residentBytes), \"peak_bytes\": \(Machine.peakBytes)}") }
    }
}

/// What `--quantize` takes.
enum QuantizeChoice: String, CaseIterable, ExpressibleByArgument {
    case q8_0
    case q4_0

    var format: BlockFormat {
        switch self {
        case .q8_0: .q8_0
        case .q4_0: .q4_0
        }
    }
}

extension KVElementType: ExpressibleByArgument {}
extension KernelVariant: ExpressibleByArgument {}
extension PackingTime: ExpressibleByArgument {}

/// One line of the table.
enum EngineRow: Hashable, ExpressibleByArgument, CustomStringConvertible {
    case prefill(tokens: Int)
    case decode(jobs: Int, context: Int)

    static let standard: [EngineRow] = [
        .prefill(tokens: 512), .decode(jobs: 1, context: 128), .decode(jobs: 4, context: 128),
        .decode(jobs: 16, context: 128), .decode(jobs: 32, context: 128),
    ]

    init?(argument: String) {
        let parts = argument.split(separator: ":", omittingEmptySubsequences: false)
        let numbers = parts.dropFirst().compactMap { Int($0) }.filter { (1...65_536).contains($0) }
        switch (parts.first, parts.count, numbers.count) {
        case ("prefill", 2, 1): self = .prefill(tokens: numbers[0])
        case ("decode", 3, 2) where numbers[0] <= 1024: self = .decode(jobs: numbers[0], context: numbers[1])
        default: return nil
        }
    }

    var description: String {
        switch self {
        case .prefill(let tokens): "prefill:\(tokens)"
        case .decode(let jobs, let context): "decode:\(jobs):\(context)"
        }
    }

    var title: String {
        switch self {
        case .prefill(let tokens): "prefill \(tokens)"
        case .decode(let jobs, let context): "decode, \(jobs) jobs at \(context)"
        }
    }

    var jobs: Int {
        switch self {
        case .prefill: 1
        case .decode(let jobs, _): jobs
        }
    }

    func positions(steps: Int) -> Int {
        switch self {
        case .prefill(let tokens): tokens
        case .decode(_, let context): context + steps
        }
    }

    /// Tokens of one run.
    func tokens(steps: Int) -> Int {
        switch self {
        case .prefill(let tokens): tokens
        case .decode(let jobs, _): jobs * steps
        }
    }
}

/// An engine with a pool for the rows at hand.
private struct EngineBench {
    static let blockTokens = 16

    let engine: CPUEngine
    private let model: String
    private let loadSeconds: Double
    private let weightBytes: Int
    private let threads: Int
    private let kvType: KVElementType

    init(_ command: EngineCommand, rows: [EngineRow]) throws {
        let start = DispatchTime.now().uptimeNanoseconds
        if command.withTokenizer { _ = try ModelFolder(path: command.model) }
        let folder = try EngineFolder(path: command.model)
        let spec = folder.spec
        let positions = rows.map { $0.positions(steps: command.steps) }
        guard positions.allSatisfy({ $0 <= spec.contextTokensMax }) else {
            throw ValidationError("a row exceeds the model's context of \(spec.contextTokensMax)")
        }
        let layout = KVStore.Layout(
            blockTokens: Self.blockTokens, layerCount: spec.layerCount, kvHeadCount: spec.kvHeadCount,
            headDim: spec.headDim, elementType: command.kvType)
        let slots = zip(rows, positions).map { $0.jobs * Self.blocks($1) }.max() ?? 1
        let store = try KVStore(layout: layout, slotCount: max(slots, Self.blocks(command.warmUp)))
        var options = EngineOptions()
        options.threads = command.threads
        options.kernels = command.kernels
        options.quantise = command.quantize?.format
        options.packedWeights = command.packedCache.map { folder in
            PackedWeightsCache(folder: folder, bytesMin: 0) { FileHandle.standardError.write(Data("\($0)\n".utf8)) }
        }
        options.pinnedCores = command.cores ?? []
        (options.packing, options.sharesCores) = (command.packing, command.shareCores)
        try folder.weights.load(progress: nil)
        engine = try CPUEngine(spec: spec, weights: folder.weights, store: store, options: options)
        (model, weightBytes) = (command.model, folder.weights.byteCount)
        (threads, kvType) = (command.threads, command.kvType)
        if command.settle { engine.waitUntilSettled() }
        loadSeconds = Double(DispatchTime.now().uptimeNanoseconds - start) / 1e9
        if command.warmUp > 0 { _ = prefill(command.warmUp) }
    }

    private static func blocks(_ positions: Int) -> Int { (positions + blockTokens - 1) / blockTokens }

    var text: String {
        """
        \(Machine.line)
        method: \(model), \(threads) threads, kernels \(engine.variantName), KV \(kvType.rawValue); loaded in \
        \(String(format: "%.2f", loadSeconds)) s
        what                        tokens/s, median (min-max)
        """
    }

    /// The facts that rooflines are made of.
    var json: String {
        let spec = engine.spec
        let matrices = RandomModel.tensors(of: spec).filter { $0.shape.count > 1 }
        let layers = matrices.filter { $0.name.hasPrefix("model.layers.") }.reduce(0) { $0 + $1.shape.reduce(1, *) }
        return """
            {"model": "\(model)", "variant": "\(engine.variantName)", "threads": \(threads), \
            "load_seconds": \(loadSeconds), "file_bytes": \(weightBytes), "layer_weights": \(layers), \
            "head_weights": \(spec.vocabularySize * spec.hiddenSize), "layers": \(spec.layerCount), \
            "heads": \(spec.headCount), "head_dim": \(spec.headDim), "kv_type": "\(kvType.rawValue)", \
            "kv_bytes_per_token": \(engine.store.layout.pageBytes / engine.store.layout.blockTokens)}
            """
    }

    /// Seconds of each run of a row, and for decode rows the bandwidth of reading the weights, in GB/s, around it.
    func measure(_ row: EngineRow, rounds: Int, steps: Int) -> (seconds: [Double], reads: [Double]) {
        switch row {
        case .prefill(let tokens):
            return ((0..<rounds).map { _ in Machine.seconds { _ = prefill(tokens) } }, [])
        case .decode(let jobs, let context):
            let blocks = Self.blocks(context + steps)
            fill(jobs: jobs, context: context, blocksPerJob: blocks)
            decode(jobs: jobs, context: context, steps: 1, blocksPerJob: blocks)
            var (seconds, reads): ([Double], [Double]) = ([], [])
            var before = engine.readWeights()
            for _ in 0..<rounds {
                seconds.append(
                    Machine.seconds { decode(jobs: jobs, context: context, steps: steps, blocksPerJob: blocks) })
                let after = engine.readWeights()
                if let before, let after {
                    let nanoseconds = before.time.nanoseconds + after.time.nanoseconds
                    reads.append(Double(before.bytes + after.bytes) / Double(max(1, nanoseconds)))
                }
                before = after
            }
            return (seconds, reads)
        }
    }

    private func prefill(_ tokens: Int) -> StepResult {
        engine.step(
            StepBatch(
                entries: [entry(job: 0, start: 0, count: tokens, blocksPerJob: Self.blocks(tokens), samples: true)]))
    }

    /// Puts `context` tokens of each job into the cache: computed for the first, copied for the others,
    /// each into pages of its own.
    private func fill(jobs: Int, context: Int, blocksPerJob: Int) {
        _ = engine.step(
            StepBatch(
                entries: [entry(job: 0, start: 0, count: context, blocksPerJob: blocksPerJob, samples: false)]))
        for job in 1..<max(1, jobs) {
            for block in 0..<blocksPerJob {
                let target = engine.store.page(BlockSlot(UInt32(job * blocksPerJob + block)))
                target.copyMemory(from: UnsafeRawBufferPointer(engine.store.page(BlockSlot(UInt32(block)))))
            }
        }
    }

    private func decode(jobs: Int, context: Int, steps: Int, blocksPerJob: Int) {
        for step in 0..<steps {
            _ = engine.step(
                StepBatch(
                    entries: (0..<jobs).map {
                        entry(job: $0, start: context + step, count: 1, blocksPerJob: blocksPerJob, samples: true)
                    }))
        }
    }

    private func entry(job: Int, start: Int, count: Int, blocksPerJob: Int, samples: Bool) -> StepEntry {
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
