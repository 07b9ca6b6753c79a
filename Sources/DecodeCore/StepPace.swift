import KVPaging
import ServingTypes

/// How long steps take, to keep those that hold prompt beside decoding jobs within a limit.
struct StepPace: Sendable {
    /// Of steps that only decode.
    private var decode = MovingMean()
    /// Of one prompt token, over what decoding alone would have taken.
    private var token = MovingMean()

    mutating func observe(decoders: Int, prefilled: Int, time: TimeSpan) {
        guard time > .zero else { return }
        if prefilled == 0 {
            decode.add(time.seconds)
        } else {
            token.add(max(time.seconds - (decoders > 0 ? decode.value : 0), 0) / Double(prefilled))
        }
    }

    /// Prompt tokens with which a step takes about `limit`, or `stretch` times as long as one that only
    /// decodes, whichever is less; never so few that prompts starve.
    func tokens(within limit: TimeSpan?, stretch: Double?) -> Int {
        guard token.value > 0 else { return Self.tokensMin }
        let stretched = stretch.map { $0 * decode.value } ?? .infinity
        let seconds = min(limit?.seconds ?? .infinity, decode.value > 0 ? stretched : .infinity)
        return max(Int(min((seconds - decode.value) / token.value, 1e6)), Self.tokensMin)
    }

    /// Fewer cost as much, since the weights are read whatever the number.
    static let tokensMin = 16
}

extension DecodeWorkerCore {
    /// Prompt tokens that a step with so many decoding jobs may hold.
    func chunkTokens(besides decoders: Int) -> Int {
        let most = max(configuration.stepTokensMax, 1) - decoders
        let (limit, stretch) = (configuration.stepLimit, configuration.stepStretch)
        guard decoders > 0, limit != nil || stretch != nil else { return most }
        return min(most, pace.tokens(within: limit, stretch: stretch))
    }
}
