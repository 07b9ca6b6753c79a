/// Latencies of the same requests, served live and simulated, over several seeds and loads.
public struct LiveComparison: Sendable {
    /// One measure at one load; a value per seed, milliseconds.
    public struct Row: Hashable, Sendable {
        public var load: String
        public var measure: String
        public var live: [Double] = []
        public var simulated: [Double] = []

        /// Of the means over the seeds: simulated over live, less one.
        public var error: Double {
            let (a, b) = (ProfileFit.mean(live), ProfileFit.mean(simulated))
            return a > 0 ? b / a - 1 : 0
        }

        /// Of each seed.
        public var errors: [Double] { zip(live, simulated).map { $0 > 0 ? $1 / $0 - 1 : 0 } }

        var cells: [String] {
            func percent(_ value: Double) -> String { Decimals.fixed(value * 100, 1) + " %" }
            return [
                load, measure, Decimals.fixed(ProfileFit.mean(live), 2), Decimals.fixed(ProfileFit.mean(simulated), 2),
                percent(error), percent(errors.min() ?? 0) + " to " + percent(errors.max() ?? 0),
            ]
        }
    }

    public private(set) var rows: [Row] = []

    public init() {}

    public static let header = ["LOAD", "MEASURE", "LIVE MS", "SIMULATED MS", "ERROR", "PER SEED"]

    public mutating func add(_ load: String, seed: UInt64, live: [LiveJob], simulated: [LiveJob]) {
        let measures: [(String, (LiveJob) -> Double)] = [
            ("TTFT", \.firstToken), ("TPOT", \.timePerToken), ("JCT", \.finished),
            ("client TTFT", \.clientFirstToken), ("client JCT", \.clientCompletion),
        ]
        for (name, value) in measures {
            let (one, other) = (Spread(live.map(value)), Spread(simulated.map(value)))
            add(load, "mean \(name)", one.mean, other.mean)
            add(load, "P95 \(name)", one.p95, other.p95)
        }
    }

    private mutating func add(_ load: String, _ measure: String, _ live: Double, _ simulated: Double) {
        let index =
            rows.firstIndex { $0.load == load && $0.measure == measure }
            ?? {
                rows.append(Row(load: load, measure: measure))
                return rows.count - 1
            }()
        rows[index].live.append(live)
        rows[index].simulated.append(simulated)
    }

    public var cells: [[String]] { rows.map(\.cells) }

    public func markdown(_ title: String) -> String {
        var lines = ["## \(title)", ""]
        lines.append("| " + Self.header.map { $0.lowercased() }.joined(separator: " | ") + " |")
        lines.append("|" + String(repeating: " --- |", count: Self.header.count))
        lines += cells.map { "| " + $0.joined(separator: " | ") + " |" }
        return lines.joined(separator: "\n") + "\n"
    }
}

extension LiveReplay {
    /// Requests per second that the profile says the cluster takes at most, for requests of these lengths,
    /// its roles in each other's way.
    public func capacity(input: Double, output: Double) -> Double {
        var prompt = CostProfile.Work()
        prompt.prefillTokens = Int(input)
        prompt.prefillSquares = input * input
        var step = CostProfile.Work()
        step.decodeJobs = cluster.batchJobs
        step.contextTokens = Int(Double(cluster.batchJobs) * (input + output / 2))
        let others = cluster.prefill > 0 && cluster.decode > 0 ? 1.0 : 0.0
        let prefill = profile.time(of: prompt).seconds * (1 + profile.prefillInterference * others)
        let decode =
            profile.time(of: step).seconds * (1 + profile.decodeInterference * others) * output
            / Double(cluster.batchJobs)
        if cluster.mixed > 0 { return Double(cluster.mixed) / max(prefill + decode, 1e-9) }
        return min(Double(cluster.prefill) / max(prefill, 1e-9), Double(cluster.decode) / max(decode, 1e-9))
    }
}
