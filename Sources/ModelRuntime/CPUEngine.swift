import CKernels
import ServingTypes

/// A transformer over block tables on the processor's vector units.
///
/// Every number is computed by a fixed sequence of operations that depends on its own sequence of
/// tokens only; threads share columns, heads and rows, never a sum. So results are bit-identical
/// whatever the batch, the chunks, the block size, the slots or the thread count.
///
/// Unchecked because scratch, slice and pool are used by `step` and `logits` alone, which callers run
/// from one thread at a time, as the protocol says; inside a region its workers only read them.
public final class CPUEngine: InferenceEngine, PartRunner, @unchecked Sendable {
    enum Limits {
        static let rowsMax = 1 << 16
        /// Rows of logits held at once.
        static let logitRowsMax = 32
        /// Query rows (tokens times heads of a group) per attention part.
        static let attentionRows = 128
        /// Parts that a worker should find in a region of attention, so that a slow one delays little.
        static let attentionPartsPerWorker = 4
        /// Elements of rows below which a second worker costs more than it brings.
        static let elementsPerRowPart = 1 << 14
        /// Multiplications below which a second thread costs more than it brings.
        static let multipliesPerRegionMin = 1 << 16
    }

    public let spec: ModelSpec
    public let store: KVStore
    /// Names the kernels and their order of additions; part of the compatibility digest.
    public let variantName: String
    let kernels: Kernels
    let weights: ModelWeights
    let frequencies: RotaryFrequencies
    let pool: ComputePool
    let layers: UnsafeBufferPointer<LayerWeights>
    let headAlignment: Int
    let attendedIsPreparedByParts: Bool
    let scratch = StepScratch()
    var prepared = PreparedInputs()

    // What the current slice and region are; written between regions by the caller of `step` alone.
    var spans: [Span] = []
    var frame: SliceFrame
    var attentionPlan = AttentionPlan()
    var region = Region.embed
    var layer = 0
    var chunk = 1
    var normedInput: PreparedRows?
    var attendedInput: PreparedRows?
    var gatedInput: PreparedRows?
    var headInput: PreparedRows?
    var headTarget: UnsafeMutablePointer<Float>
    var batch = StepBatch(entries: [])
    private var draws: [Draw] = []
    private var firstDraw = 0
    private let drawn: UnsafeMutableBufferPointer<StepOutcome>
    private let rowsMax: Int
    private let checker: StepChecker
    private let sampler: Sampler
    /// One for each worker.
    private let samplerMemory: [SamplerMemory]

    /// Checks the spec, the pool's layout and every tensor's shape; reads the weights once where
    /// `options.progress` is set.
    public init(
        spec: ModelSpec, weights source: any TensorSource, store: KVStore, options: EngineOptions = EngineOptions()
    ) throws(ServingError) {
        try spec.validate()
        try spec.validate(store.layout)
        try check("threads", options.threads, 1...ComputePool.Limits.workersMax)
        try check("rows", options.rowsMax, 1...Limits.rowsMax)
        pool = ComputePool(workers: options.threads, cores: options.pinnedCores, share: options.coreShare())
        let packing = try ModelWeights.Packing(options, pool: pool)
        self.spec = spec
        self.store = store
        kernels = packing.kernels
        weights = try ModelWeights(spec: spec, source: source, packing: packing, progress: options.progress)
        variantName = Self.variantName(kernels, weights)
        frequencies = RotaryFrequencies(spec: spec)
        let layers = UnsafeMutableBufferPointer<LayerWeights>.allocate(capacity: weights.layers.count)
        _ = layers.initialize(from: weights.layers)
        self.layers = UnsafeBufferPointer(layers)
        headAlignment = leastCommonMultiple(spec.headDim, Self.columnAlignment)
        attendedIsPreparedByParts = (spec.headCount / spec.kvHeadCount * spec.headDim).isMultiple(of: 32)
        frame = SliceFrame(spec: spec, scratch: scratch, rows: 0)
        headTarget = scratch.logits.reserve(0)
        drawn = .allocate(capacity: Limits.logitRowsMax)
        drawn.initialize(repeating: .extended)
        rowsMax = options.rowsMax
        sampler = Sampler(kernels: kernels)
        samplerMemory = (0..<pool.workerCount).map { _ in SamplerMemory() }
        checker = StepChecker(spec: spec, slotCount: store.slotCount, blockTokens: store.layout.blockTokens)
    }

    deinit {
        layers.deallocate()
        drawn.deinitialize()
        drawn.deallocate()
    }

    /// Bytes of the packed weights, which are all of the model's that stay resident.
    public var weightBytes: Int { weights.packedBytes }

    /// Whether no thread is packing weights beside the steps (any more).
    public var isSettled: Bool { weights.isSettled }

    /// Returns once that is so.
    public func waitUntilSettled() { weights.waitUntilSettled() }

    private func beginStep() {
        pool.begin()
        weights.packed?.beginStep()
    }

    private func endStep() {
        weights.packed?.endStep()
        pool.end()
    }

    /// The table, the version of its order of operations, and the formats of the weights.
    private static func variantName(_ kernels: Kernels, _ weights: ModelWeights) -> String {
        let products = String(cString: kernels.packed.pointee.name)
        return "\(kernels.variant.rawValue)-3+\(products):\(weights.formatNames.joined(separator: ","))"
    }

    public func step(_ batch: StepBatch) -> StepResult {
        let watch = Stopwatch()
        beginStep()
        self.batch = batch
        var outcomes = batch.entries.map { checker.fault($0).map(StepOutcome.failed) ?? .extended }
        forEachSlice(include: { outcomes[$0] == .extended }) {
            forward()
            drawTokens(&outcomes)
        }
        self.batch.entries = []
        endStep()
        return StepResult(outcomes: outcomes, computeTime: watch.elapsed)
    }

    /// The logits themselves, `vocabularySize` per row. Writes keys and values just as `step` does.
    public func logits(_ batch: StepBatch, rows: LogitRows) throws(ServingError) -> [[Float]] {
        for entry in batch.entries {
            if let fault = checker.fault(entry) { throw fault }
        }
        beginStep()
        defer { endStep() }
        self.batch = batch
        defer { self.batch.entries = [] }
        var result: [[Float]] = []
        forEachSlice(include: { _ in true }) {
            forward()
            draws.removeAll(keepingCapacity: true)
            for span in spans {
                switch rows {
                case .all: draws += span.rows.map { Draw(entry: span.entry, row: $0) }
                case .last: if span.endsEntry { draws.append(Draw(entry: span.entry, row: span.rows.upperBound - 1)) }
                }
            }
            for start in stride(from: 0, to: draws.count, by: Limits.logitRowsMax) {
                let group = start..<min(start + Limits.logitRowsMax, draws.count)
                computeLogits(group)
                for index in group.indices {
                    let row = headTarget + (index - start) * spec.vocabularySize
                    result.append(Array(UnsafeBufferPointer(start: row, count: spec.vocabularySize)))
                }
            }
        }
        return result
    }

    // MARK: - Slices

    /// A run of one entry's tokens inside one slice.
    struct Span {
        var entry: Int
        /// Index of the first of them in the entry's tokens.
        var offset: Int
        /// Position of the first of them in the entry's sequence.
        var position: Int
        /// Their rows in the slice.
        var rows: Range<Int>
        var endsEntry: Bool
        /// The entry's block table, in memory that lasts as long as the slice.
        var table: UnsafePointer<UInt32>?
    }

    /// Cuts the batch into slices of at most `rowsMax` tokens, in order, and runs `body` with `spans` set
    /// to each.
    private func forEachSlice(include: (Int) -> Bool, _ body: () -> Void) {
        spans.removeAll(keepingCapacity: true)
        var row = 0
        for entry in batch.entries.indices where include(entry) {
            let (count, position) = (batch.entries[entry].tokens.count, batch.entries[entry].startPosition)
            var offset = 0
            while offset < count {
                let taken = min(count - offset, rowsMax - row)
                spans.append(
                    Span(
                        entry: entry, offset: offset, position: position + offset, rows: row..<row + taken,
                        endsEntry: offset + taken == count))
                offset += taken
                row += taken
                guard row == rowsMax else { continue }
                body()
                spans.removeAll(keepingCapacity: true)
                row = 0
            }
        }
        if !spans.isEmpty { body() }
    }

    // MARK: - Logits and tokens

    /// A row whose logits are wanted, and for whom.
    struct Draw {
        var entry: Int
        var row: Int
    }

    /// Final norm and output projection of some of `draws`, into `headTarget`, `[group.count][vocabularySize]`.
    private func computeLogits(_ group: Range<Int>) {
        let width = spec.hiddenSize
        let normed = scratch.sampled.reserve(group.count * width)
        headTarget = scratch.logits.reserve(group.count * spec.vocabularySize)
        headInput = preparedRows(.normed, normed, rows: group.count, width: width, forms: weights.head.matrix.inputForm)
        for (index, draw) in draws[group].enumerated() {
            kernels.table.pointee.rmsnorm(
                normed + index * width, frame.hidden + draw.row * width, weights.finalNorm, spec.rmsNormEpsilon, 1,
                width)
        }
        if let headInput { prepare(headInput, rows: 0..<group.count, columns: 0..<width) }
        chunk = columnsPerPart(spec.vocabularySize, rows: group.count, width: width, alignment: Self.columnAlignment)
        run(.head, parts: parts(spec.vocabularySize))
    }

    /// Draws a token for each entry that ends in this slice and asks for one.
    private func drawTokens(_ outcomes: inout [StepOutcome]) {
        draws.removeAll(keepingCapacity: true)
        for span in spans where span.endsEntry && batch.entries[span.entry].sample != nil {
            draws.append(Draw(entry: span.entry, row: span.rows.upperBound - 1))
        }
        _ = scratch.probabilities.reserve(pool.workerCount * spec.vocabularySize)
        for start in stride(from: 0, to: draws.count, by: Limits.logitRowsMax) {
            let group = start..<min(start + Limits.logitRowsMax, draws.count)
            computeLogits(group)
            firstDraw = start
            run(.draw, parts: group.count)
            for index in group { outcomes[draws[index].entry] = drawn[index - start] }
        }
    }

    /// Draws the token of one row of logits; a part of its region.
    func drawPart(_ part: Int, worker: Int) {
        let width = spec.vocabularySize
        guard let sample = batch.entries[draws[firstDraw + part].entry].sample else { return }
        drawn[part] = sampler.draw(
            UnsafeMutableBufferPointer(start: headTarget + part * width, count: width), sample,
            scratch: UnsafeMutableBufferPointer(start: scratch.probabilities.reserve(0) + worker * width, count: width),
            memory: samplerMemory[worker])
    }
}

/// Smallest number that both divide.
func leastCommonMultiple(_ a: Int, _ b: Int) -> Int {
    var (x, y) = (a, b)
    while y != 0 { (x, y) = (y, x % y) }
    return a / x * b
}
