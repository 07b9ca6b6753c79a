/// An index into the model's vocabulary. Layout is one UInt32, so an array of these is an array of
/// 32-bit ids on the wire and in kernels.
public struct TokenID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var value: UInt32

    public init(_ value: UInt32) { self.value = value }

    public static func < (a: TokenID, b: TokenID) -> Bool { a.value < b.value }
    public var description: String { String(value) }
}

/// One token with what its step measured. `logprob` and `top` are of the model's raw distribution
/// (before temperature and truncation, after nothing), as OpenAI's `logprobs` field defines them.
public struct SampledToken: Hashable, Sendable {
    public var token: TokenID
    /// Natural logarithm of the token's probability; nil where the job asked for no logprobs.
    public var logprob: Float?
    /// The most likely tokens, best first, at most `SamplingParameters.topLogprobs` of them.
    public var top: [TokenLogprob]

    public init(token: TokenID, logprob: Float? = nil, top: [TokenLogprob] = []) {
        self.token = token
        self.logprob = logprob
        self.top = top
    }
}

/// One alternative and the natural logarithm of its probability.
public struct TokenLogprob: Hashable, Sendable {
    public var token: TokenID
    public var logprob: Float

    public init(token: TokenID, logprob: Float) {
        self.token = token
        self.logprob = logprob
    }
}

/// Why a stream ended, in OpenAI's words plus `cancelled` and `failed`, which only jobs show.
public enum FinishReason: String, Hashable, Sendable, CaseIterable {
    case stop
    case length
    case cancelled
    case failed
}
