import CKernels
import ServingTypes

/// A transformer over block tables on the processor's vector units.
///
/// Every number is computed by a fixed sequence of operations that depends on its own sequence of
/// tokens only; threads share columns, heads and rows, never a sum. So results are bit-identical
/// whatever the batch, the chunks, the block size, the slots or the thread count.
///
/// Unchecked because `scratch` and `pool` are used by `step` and `logits` alone, which callers run
/// from one thread at a time, as the protocol says.
public final class CPUEngine: InferenceEngine, @unchecked Sendable {
    enum Limits {
        static let rowsMax = 1 << 16
        /// Rows of logits held at once.
        static let logitRowsMax = 16
        /// Query rows (tokens times heads of a group) per attention part.
        static let attentionRows = 64
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
    var scratch = StepScratch()
    private let rowsMax: Int
    private let checker: StepChecker
    private let sampler: Sampler

    /// Checks the spec, the pool's layout and every tensor's shape; reads the weights once where
    /// `options.progress` is set.
    public init(
        spec: ModelSpec, weights source: any TensorSource, store: KVStore, options: EngineOptions = EngineOptions()
    ) throws(ServingError) {
        try spec.validate()
        try spec.validate(store.layout)
        try check("threads", options.threads, 1...ComputePool.Limits.workersMax)
        try check("rows", options.rowsMax, 1...Limits.rowsMax)
        let variant = options.kernels ?? .best
        guard let kernels = Kernels(variant) else {
            throw ServingError(
                .unsupported, "kernels: this processor does not run \(variant.rawValue)", field: "kernels",
                blast: .process)
        }
        self.spec = spec
        self.store = store
        self.kernels = kernels
        variantName = "\(variant.rawValue)-1"
        weights = try ModelWeights(spec: spec, source: source, progress: options.progress)
        frequencies = RotaryFrequencies(spec: spec)
        pool = ComputePool(workers: options.threads)
        rowsMax = options.rowsMax
        sampler = Sampler(kernels: kernels)
        checker = StepChecker(spec: spec, slotCount: store.slotCount, blockTokens: store.layout.blockTokens)
    }

    public func step(_ batch: StepBatch) -> StepResult {
        let watch = Stopwatch()
        var outcomes = batch.entries.map { checker.fault($0).map(StepOutcome.failed) ?? .extended }
        let plan = slices(batch) { outcomes[$0] == .extended }
        for spans in plan {
            let hidden = forward(batch, spans)
            let wanted = spans.filter { $0.endsEntry && batch.entries[$0.entry].sample != nil }
            drawTokens(batch, wanted, hidden, &outcomes)
        }
        return StepResult(outcomes: outcomes, computeTime: watch.elapsed)
    }

    /// The logits themselves, `vocabularySize` per row. Writes keys and values just as `step` does.
    public func logits(_ batch: StepBatch, rows: LogitRows) throws(ServingError) -> [[Float]] {
        for entry in batch.entries {
            if let fault = checker.fault(entry) { throw fault }
        }
        var result: [[Float]] = []
        for spans in slices(batch, include: { _ in true }) {
            let hidden = forward(batch, spans)
            let wanted = spans.flatMap { span in
                switch rows {
                case .all: Array(span.rows)
                case .last: span.endsEntry ? [span.rows.upperBound - 1] : []
                }
            }
            for start in stride(from: 0, to: wanted.count, by: Limits.logitRowsMax) {
                let group = Array(wanted[start..<min(start + Limits.logitRowsMax, wanted.count)])
                let logits = computeLogits(hidden, rows: group)
                for index in group.indices {
                    let row = UnsafeBufferPointer(
                        start: logits + index * spec.vocabularySize, count: spec.vocabularySize)
                    result.append(Array(row))
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
        /// Their rows in the slice.
        var rows: Range<Int>
        var endsEntry: Bool
    }

    /// Cuts the batch into slices of at most `rowsMax` tokens, in order.
    private func slices(_ batch: StepBatch, include: (Int) -> Bool) -> [[Span]] {
        var slices: [[Span]] = []
        var spans: [Span] = []
        var row = 0
        for entry in batch.entries.indices where include(entry) {
            let count = batch.entries[entry].tokens.count
            var offset = 0
            while offset < count {
                let taken = min(count - offset, rowsMax - row)
                spans.append(
                    Span(entry: entry, offset: offset, rows: row..<row + taken, endsEntry: offset + taken == count))
                offset += taken
                row += taken
                if row == rowsMax {
                    slices.append(spans)
                    spans = []
                    row = 0
                }
            }
        }
        if !spans.isEmpty { slices.append(spans) }
        return slices
    }

    // MARK: - Logits and tokens

    /// Final norm and output projection of the given rows, `[rows.count][vocabularySize]`.
    private func computeLogits(_ hidden: UnsafeMutablePointer<Float>, rows: [Int]) -> UnsafeMutablePointer<Float> {
        let width = spec.hiddenSize
        let normed = scratch.sampled.reserve(rows.count * width)
        for (index, row) in rows.enumerated() {
            kernels.table.pointee.rmsnorm(
                normed + index * width, hidden + row * width, weights.finalNorm, spec.rmsNormEpsilon, 1, width)
        }
        let logits = scratch.logits.reserve(rows.count * spec.vocabularySize)
        project(normed, rows: rows.count, [Output(target: logits, projection: weights.head)])
        return logits
    }

    private func drawTokens(
        _ batch: StepBatch, _ spans: [Span], _ hidden: UnsafeMutablePointer<Float>, _ outcomes: inout [StepOutcome]
    ) {
        let width = spec.vocabularySize
        for start in stride(from: 0, to: spans.count, by: Limits.logitRowsMax) {
            let group = Array(spans[start..<min(start + Limits.logitRowsMax, spans.count)])
            let logits = computeLogits(hidden, rows: group.map { $0.rows.upperBound - 1 })
            let probabilities = scratch.probabilities.reserve(group.count * width)
            let drawn = UnsafeMutableBufferPointer<StepOutcome>.allocate(capacity: group.count)
            drawn.initialize(repeating: .extended)
            pool.run(group.count) { [sampler] index, _ in
                guard let sample = batch.entries[group[index].entry].sample else { return }
                drawn[index] = sampler.draw(
                    UnsafeMutableBufferPointer(start: logits + index * width, count: width), sample,
                    scratch: UnsafeMutableBufferPointer(start: probabilities + index * width, count: width))
            }
            for (index, span) in group.enumerated() { outcomes[span.entry] = drawn[index] }
            drawn.deinitialize()
            drawn.deallocate()
        }
    }
}
