import ServingTypes

/// One request to be sent.
public struct PlannedRequest: Hashable, Sendable {
    /// Seconds after the start; nil in a closed loop, where it is sent as soon as a client is free.
    public var arrivalSeconds: Double?
    public var inputTokens: Int
    public var outputTokens: Int
    public var tenant: String?

    public init(arrivalSeconds: Double?, inputTokens: Int, outputTokens: Int, tenant: String? = nil) {
        self.arrivalSeconds = arrivalSeconds
        self.inputTokens = inputTokens
        self.outputTokens = outputTokens
        self.tenant = tenant
    }
}

/// When requests come.
public enum ArrivalProcess: Hashable, Sendable, CustomStringConvertible {
    /// As fast as the concurrency allows.
    case closedLoop
    /// Gaps of a gamma distribution with mean 1 / rate. Burstiness is its shape, as in vLLM: 1 is Poisson,
    /// less comes in bursts, more is evener.
    case open(rate: Double, burstiness: Double)

    public var description: String {
        switch self {
        case .closedLoop: "closed loop"
        case .open(let rate, 1): "Poisson arrivals, \(rate)/s"
        case .open(let rate, let burstiness): "gamma arrivals, \(rate)/s, burstiness \(burstiness)"
        }
    }

    /// Seconds after the start, ascending; nils for the closed loop.
    func times(_ count: Int, using generator: inout SplitMix64) -> [Double?] {
        switch self {
        case .closedLoop: return Array(repeating: nil, count: count)
        case .open(let rate, let burstiness):
            var time = 0.0
            return (0..<count).map { _ in
                defer { time += generator.gamma(shape: burstiness) / rate }
                return time
            }
        }
    }
}

/// All requests of a run, decided before it begins: the same for the same seed.
public enum LoadPlan {
    public enum Limits {
        public static let requestsMax = 1_000_000
    }

    public static func make(
        count: Int, arrivals: ArrivalProcess, input: LengthDistribution, output: LengthDistribution, seed: UInt64
    ) -> [PlannedRequest] {
        // A generator each: another distribution of outputs leaves prompts and arrivals as they were.
        var generators = (0..<3).map { SplitMix64(state: seed &+ UInt64($0) &* 0xD1B5_4A32_D192_ED03) }
        let times = arrivals.times(count, using: &generators[0])
        let inputs = input.draw(count, using: &generators[1])
        let outputs = output.draw(count, using: &generators[2])
        return (0..<count).map {
            PlannedRequest(arrivalSeconds: times[$0], inputTokens: inputs[$0], outputTokens: outputs[$0])
        }
    }

    /// The first `count` requests of a trace that fit, `speed` times as fast, the first at 0.
    public static func replay(
        _ trace: [PlannedRequest], count: Int, speed: Double, tokensMax: Int
    ) -> [PlannedRequest] {
        let fitting = trace.filter { $0.inputTokens + $0.outputTokens <= tokensMax }.prefix(count)
        let first = fitting.first?.arrivalSeconds ?? 0
        return fitting.map { request in
            var request = request
            request.arrivalSeconds = request.arrivalSeconds.map { ($0 - first) / speed }
            return request
        }
    }
}

/// What a request must reach to count for goodput: `ttft:500`, in milliseconds.
public struct ServiceObjective: Hashable, Sendable, CustomStringConvertible {
    public enum Measure: String, CaseIterable, Sendable { case ttft, tpot, e2el }

    public var measure: Measure
    public var milliseconds: Double

    /// nil for anything but `MEASURE:MILLISECONDS`.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false)
        guard parts.count == 2, let measure = Measure(rawValue: String(parts[0])), let limit = Double(parts[1]),
            limit > 0, limit.isFinite
        else { return nil }
        (self.measure, milliseconds) = (measure, limit)
    }

    public var description: String { "\(measure.rawValue):\(milliseconds)" }

    func isMet(by outcome: RequestOutcome) -> Bool {
        let seconds: Double? =
            switch measure {
            case .ttft: outcome.timeToFirstToken
            case .tpot: outcome.timePerOutputToken
            case .e2el: outcome.latency
            }
        // One token has no time per token that it could miss.
        return seconds.map { $0 * 1000 <= milliseconds } ?? true
    }
}
