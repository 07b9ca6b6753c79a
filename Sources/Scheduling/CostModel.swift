import ServingTypes

/// How long an iteration takes, in seconds, as a linear model of its work (scheduling.md §2.5).
/// Starts from defaults of a small machine and follows the workers' reports.
public struct CostModel: Hashable, Sendable {
    /// Prefill of n tokens takes `prefillBase + prefillPerToken * n`.
    public var prefillBase = 0.002
    public var prefillPerToken = 0.0005
    /// A decode iteration takes `decodeBase + decodePerContext * (tokens held) + decodePerJob * (jobs)`.
    public var decodeBase = 0.002
    public var decodePerContext = 1e-7
    public var decodePerJob = 0.0005
    /// Weight of the newest report in the running estimate.
    public var smoothing = 0.1

    public init() {}

    public func prefill(tokens: Int) -> TimeSpan {
        TimeSpan(seconds: prefillBase + prefillPerToken * Double(max(tokens, 0)))
    }

    public func decodeStep(jobs: Int, contextTokens: Int) -> TimeSpan {
        TimeSpan(seconds: decodeBase + decodePerContext * Double(contextTokens) + decodePerJob * Double(jobs))
    }

    /// A chunk of `tokens` tokens took `time`.
    public mutating func observePrefill(tokens: Int, time: TimeSpan) {
        guard tokens > 0, time > .zero else { return }
        let scale = correction(observed: time, predicted: prefill(tokens: tokens))
        prefillBase *= scale
        prefillPerToken *= scale
    }

    /// An iteration over `jobs` jobs took `time`.
    public mutating func observeDecode(jobs: Int, contextTokens: Int, time: TimeSpan) {
        guard jobs > 0, time > .zero else { return }
        let scale = correction(observed: time, predicted: decodeStep(jobs: jobs, contextTokens: contextTokens))
        decodeBase *= scale
        decodePerContext *= scale
        decodePerJob *= scale
    }

    /// One report moves the estimate a tenth of the way, and an absurd one no further than a
    /// hundredfold would.
    private func correction(observed: TimeSpan, predicted: TimeSpan) -> Double {
        guard predicted > .zero else { return 1 }
        let ratio = min(max(observed.seconds / predicted.seconds, 0.01), 100)
        return 1 + smoothing * (ratio - 1)
    }
}
