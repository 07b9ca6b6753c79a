/// One iteration of an engine, as data: cores plan it, an engine runs it (design §7). The cores
/// never see a tensor and the engine never sees a queue.

/// Index of a block's storage in a worker's pool.
public struct BlockSlot: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var index: UInt32

    public init(_ index: UInt32) { self.index = index }

    public static func < (a: BlockSlot, b: BlockSlot) -> Bool { a.index < b.index }
    public var description: String { String(index) }
}

/// The new tokens of one job in one step.
public struct StepEntry: Sendable {
    public var transfer: TransferID
    /// Tokens whose keys and values this step computes; position of `tokens[i]` is `start + i`.
    public var tokens: [TokenID]
    public var startPosition: Int
    /// Slot of block b holds positions `b * blockTokens ..< (b + 1) * blockTokens`. Covers at least
    /// `startPosition + tokens.count` positions.
    public var blockTable: [BlockSlot]
    /// How to draw the token after the last one; nil where the prompt goes on in a later chunk.
    public var sample: SampleRequest?

    public init(
        transfer: TransferID, tokens: [TokenID], startPosition: Int, blockTable: [BlockSlot], sample: SampleRequest?
    ) {
        self.transfer = transfer
        self.tokens = tokens
        self.startPosition = startPosition
        self.blockTable = blockTable
        self.sample = sample
    }
}

/// What sampling needs beside the logits.
public struct SampleRequest: Sendable {
    public var parameters: SamplingParameters
    /// Prompt and output so far, only where `parameters.needsHistory`; else empty.
    public var history: [TokenID]
    /// How many of the job's tokens are prompt; the rest is output.
    public var promptTokens: Int
    /// Output tokens before this one; the position of the drawn token is `promptTokens + outputTokens`.
    public var outputTokens: Int

    public init(parameters: SamplingParameters, history: [TokenID], promptTokens: Int, outputTokens: Int) {
        self.parameters = parameters
        self.history = history
        self.promptTokens = promptTokens
        self.outputTokens = outputTokens
    }
}

/// A ragged batch: jobs times new tokens.
public struct StepBatch: Sendable {
    public var entries: [StepEntry]

    public init(entries: [StepEntry]) { self.entries = entries }

    public var tokenCount: Int { entries.reduce(0) { $0 + $1.tokens.count } }
}

/// What one entry of a step came to.
public enum StepOutcome: Hashable, Sendable {
    /// Keys and values are in their blocks; no token was asked for.
    case extended
    case sampled(SampledToken)
    /// This job cannot go on (say, logits that are not numbers); others are unharmed.
    case failed(ServingError)
}

/// Outcomes in the order of the batch's entries, and how long the engine computed.
public struct StepResult: Sendable {
    public var outcomes: [StepOutcome]
    public var computeTime: TimeSpan

    public init(outcomes: [StepOutcome], computeTime: TimeSpan) {
        self.outcomes = outcomes
        self.computeTime = computeTime
    }
}
