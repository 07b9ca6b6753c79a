/// How the next token is drawn. The draw is a pure function of (logits, parameters, history,
/// seed, position), so a job resumes on any worker with the same continuation.
public struct SamplingParameters: Hashable, Sendable {
    /// 0 is greedy: the largest logit, ties to the lowest id.
    public var temperature: Float = 1
    /// Keep the k most likely tokens; 0 keeps all.
    public var topK: Int = 0
    /// Keep the smallest set whose probability reaches p; 1 keeps all.
    public var topP: Float = 1
    /// Drop tokens below this fraction of the most likely one's probability; 0 drops none.
    public var minP: Float = 0
    /// Divides (or multiplies, if negative) logits of tokens seen in prompt or output; 1 is off.
    public var repetitionPenalty: Float = 1
    /// Subtracted once from logits of tokens seen in the output.
    public var presencePenalty: Float = 0
    /// Subtracted per occurrence in the output.
    public var frequencyPenalty: Float = 0
    /// Added to logits before everything else, sorted by token.
    public var logitBias: [TokenBias] = []
    /// With the position of the token being drawn, the only source of randomness.
    public var seed: UInt64 = 0
    /// End the stream after these; the stop token itself is not text.
    public var stopTokens: [TokenID] = []
    /// Output tokens at most.
    public var maxTokens: Int = 16
    /// Stop tokens are barred before this many output tokens.
    public var minTokens: Int = 0
    /// Whether each token's own logprob is reported.
    public var wantsLogprobs: Bool = false
    /// Alternatives reported per token (0 to `SamplingLimits.topLogprobsMax`).
    public var topLogprobs: Int = 0

    public init() {}

    /// Whether drawing needs the tokens so far.
    public var needsHistory: Bool {
        repetitionPenalty != 1 || presencePenalty != 0 || frequencyPenalty != 0
    }
}

/// One entry of a logit bias.
public struct TokenBias: Hashable, Sendable {
    public var token: TokenID
    public var bias: Float

    public init(token: TokenID, bias: Float) {
        self.token = token
        self.bias = bias
    }
}

/// The ranges that the front door enforces and that workers enforce again.
public enum SamplingLimits {
    public static let temperatureMax: Float = 100
    public static let topLogprobsMax = 20
    public static let logitBiasMax = 1024
    public static let stopTokensMax = 128
    public static let stopStringsMax = 16
    public static let stopStringBytesMax = 1024
    public static let choicesMax = 8
}
