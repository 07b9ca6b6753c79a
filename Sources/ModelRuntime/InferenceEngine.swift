import Glibc
import ServingTypes

/// Runs steps. Called from one thread at a time.
public protocol InferenceEngine: Sendable {
    /// Computes keys and values of every entry's tokens into its blocks and draws a token where one
    /// is asked for. Outcomes are in the order of the entries; a bad entry fails alone.
    func step(_ batch: StepBatch) -> StepResult
}

/// What a CPU engine may be told beside its model.
public struct EngineOptions: Sendable {
    /// Compute threads, the caller included.
    public var threads = 1
    /// Cores that the compute threads are pinned to, the caller's to the first; none where empty.
    public var pinnedCores: [Int] = []
    /// The kernels to use; nil for the widest that the processor runs.
    public var kernels: KernelVariant?
    /// Called while loading with (bytes so far, bytes in all), from the loading thread.
    public var progress: (@Sendable (_ loadedBytes: Int, _ totalBytes: Int) -> Void)?
    /// Tokens computed at once; a larger batch is worked off in parts of this many. Bounds scratch
    /// memory and changes no result.
    public var rowsMax = 512

    /// What 16- and 32-bit matrices become while they are loaded: `q8_0` or `q4_0`, as
    /// `BlockFormat.quantised` makes them; nil to keep them. Norms and biases stay as they are, and so do
    /// matrices whose rows are no multiple of 32.
    public var quantise: BlockFormat?
    /// Whether bf16 matrices multiply with inputs rounded to bf16 where the processor has instructions
    /// for that: about three times as fast, with a relative error of a few thousandths. Otherwise, and on
    /// other processors, they multiply with f32 inputs.
    public var bf16Products = true
    /// Where packed weights are kept in files that later engines map and share; nil to pack in private
    /// memory every time. Changes no result.
    public var packedWeights: PackedWeightsCache?
    /// When matrices are packed. Changes no result.
    public var packing = PackingTime.beforehand
    /// Whether the compute threads make room for those of this user's other engines on the machine, so that
    /// they take no more than there are cores together. Changes no result.
    public var sharesCores = false
    /// Where engines tell each other how many threads they compute with.
    var coreSharePath = CoreShare.standardPath

    public init() {}

    /// nil where nothing is to be shared, or cannot be.
    func coreShare() -> CoreShare? {
        sharesCores && threads > 1 ? CoreShare(path: coreSharePath, pinned: pinnedCores) : nil
    }
}

/// Which rows of logits a caller wants.
public enum LogitRows: Hashable, Sendable {
    /// One row for every token of every entry, in order.
    case all
    /// One row for the last token of every entry.
    case last
}

/// Checks of a step's input, shared by the engines.
struct StepChecker {
    var spec: ModelSpec
    var slotCount: Int
    var blockTokens: Int

    /// Why the entry cannot be computed; nil where it can.
    func fault(_ entry: StepEntry) -> ServingError? {
        if entry.tokens.isEmpty { return fault("tokens", "0 tokens, at least 1 is needed") }
        guard entry.startPosition >= 0, entry.startPosition <= spec.contextTokensMax - entry.tokens.count else {
            return ServingError(
                .contextTooLong,
                "tokens: positions \(entry.startPosition) and on, \(entry.tokens.count) of them, exceed the context of "
                    + "\(spec.contextTokensMax) tokens", field: "tokens")
        }
        let blocks = (entry.startPosition + entry.tokens.count + blockTokens - 1) / blockTokens
        if entry.blockTable.count < blocks {
            return fault("blockTable", "\(entry.blockTable.count) blocks, the positions need \(blocks)")
        }
        if let slot = entry.blockTable.prefix(blocks).first(where: { $0.index >= slotCount }) {
            return fault("blockTable", "slot \(slot) of a pool of \(slotCount)")
        }
        if let token = entry.tokens.first(where: { $0.value >= spec.vocabularySize }) {
            return fault("tokens", "token \(token) of a vocabulary of \(spec.vocabularySize)")
        }
        return nil
    }

    private func fault(_ field: String, _ text: String) -> ServingError {
        ServingError(.invalidValue, "\(field): \(text)", field: field)
    }
}

extension ModelSpec {
    /// Refuses sizes that no engine here computes.
    func validate() throws(ServingError) {
        try check("num_hidden_layers", layerCount, 1...ModelLimits.layerCountMax)
        try check("hidden_size", hiddenSize, 1...ModelLimits.hiddenSizeMax)
        try check("num_attention_heads", headCount, 1...ModelLimits.headCountMax)
        try check("num_key_value_heads", kvHeadCount, 1...headCount)
        try check("head_dim", headDim, 2...ModelLimits.headDimMax)
        try check("intermediate_size", ffnSize, 1...ModelLimits.ffnSizeMax)
        try check("vocab_size", vocabularySize, 1...ModelLimits.vocabularySizeMax)
        try check("max_position_embeddings", contextTokensMax, 1...ModelLimits.contextTokensMax)
        if let slidingWindow { try check("sliding_window", slidingWindow, 1...Int(Int32.max)) }
        guard headCount.isMultiple(of: kvHeadCount) else {
            throw ServingError(
                .invalidValue, "num_key_value_heads: \(kvHeadCount) does not divide \(headCount) heads",
                field: "num_key_value_heads", blast: .process)
        }
        guard headDim.isMultiple(of: 2) else {
            throw ServingError(
                .invalidValue, "head_dim: \(headDim) is odd, rotary pairs need an even one", field: "head_dim",
                blast: .process)
        }
    }

    /// Refuses a pool whose pages are cut for another model.
    func validate(_ layout: KVStore.Layout) throws(ServingError) {
        let mine = (layerCount, kvHeadCount, headDim)
        let its = (layout.layerCount, layout.kvHeadCount, layout.headDim)
        guard mine == its else {
            throw ServingError(
                .invalidValue, "page layout: (layers, KV heads, head dim) are \(its), the model has \(mine)",
                field: "page layout", blast: .process)
        }
    }
}

/// Measures one step.
struct Stopwatch {
    private let start = Self.now

    var elapsed: TimeSpan { TimeSpan(nanoseconds: Self.now - start) }

    private static var now: Int64 {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec)
    }
}
