/// Latencies of the same requests, served live and simulated, over several seeds and loads. What is judged
/// is taken over all requests of a load: the 95th percentile of one run of some dozens is one request.
public struct LiveComparison: Sendable {
    /// One workload of one seed, played once live; the simulator plays it with several draws.
    public struct Run: Hashable, Sendable {
        public var load: String
        public var seed: UInt64
        /// Which time it was played live.
        public var turn: Int
        public var live: [LiveJob]
        public var simulated: [LiveJob]
    }

    public enum Statistic: Hashable, Sendable {
        case mean
        case p95

        func of(_ values: [Double]) -> Double {
            let spread = Spread(values)
            switch self {
            case .mean: return spread.mean
            case .p95: return spread.p95
            }
        }

        var name: String {
            switch self {
            case .mean: "mean"
            case .p95: "P95"
            }
        }
    }

    /// One measure at one load, milliseconds.
    public struct Row: Hashable, Sendable {
        public var load: String
        public var measure: String
        /// Over all requests.
        public var live: Double
        public var simulated: Double
        /// Simulated over live, less one, of each seed.
        public var errors: [Double]
        /// The same of one live turn against the next: what nobody can predict.
        public var noise: Double?
        /// Whether the coordinator's or the client's clock.
        public var isClient: Bool

        public var error: Double { LiveComparison.error(live, simulated) }

        var cells: [String] {
            func percent(_ value: Double) -> String { Decimals.fixed(value * 100, 1) + " %" }
            return [
                load, measure, Decimals.fixed(live, 2), Decimals.fixed(simulated, 2), percent(error),
                percent(errors.min() ?? 0) + " to " + percent(errors.max() ?? 0), noise.map(percent) ?? "",
            ]
        }
    }

    public private(set) var runs: [Run] = []

    public init() {}

    public static let header = ["LOAD", "MEASURE", "LIVE MS", "SIMULATED MS", "ERROR", "PER SEED", "LIVE AGAIN"]

    public mutating func add(_ load: String, seed: UInt64, turn: Int = 0, live: [LiveJob], simulated: [LiveJob]) {
        runs.append(Run(load: load, seed: seed, turn: turn, live: live, simulated: simulated))
    }

    private static let measures: [(name: String, isClient: Bool, value: @Sendable (LiveJob) -> Double)] = [
        ("TTFT", false, { $0.firstToken }), ("TPOT", false, { $0.timePerToken }), ("JCT", false, { $0.finished }),
        ("client TTFT", true, { $0.clientFirstToken }), ("client JCT", true, { $0.clientCompletion }),
    ]

    public var rows: [Row] {
        var loads: [String] = []
        for run in runs where !loads.contains(run.load) { loads.append(run.load) }
        return loads.flatMap { load -> [Row] in
            let runs = runs.filter { $0.load == load }
            return Self.measures.flatMap { measure in
                [Statistic.mean, .p95].map { Self.row(load, measure, $0, runs) }
            }
        }
    }

    private static func row(
        _ load: String, _ measure: (name: String, isClient: Bool, value: @Sendable (LiveJob) -> Double),
        _ statistic: Statistic, _ runs: [Run]
    ) -> Row {
        func live(_ runs: [Run]) -> Double { statistic.of(runs.flatMap { $0.live.map(measure.value) }) }
        func simulated(_ runs: [Run]) -> Double { statistic.of(runs.flatMap { $0.simulated.map(measure.value) }) }
        let errors = Set(runs.map(\.seed)).sorted().map { seed in
            let own = runs.filter { $0.seed == seed }
            return error(live(own), simulated(own))
        }
        let turns = Set(runs.map(\.turn)).sorted()
        var noise: Double?
        if turns.count > 1 {
            noise = error(live(runs.filter { $0.turn == turns[0] }), live(runs.filter { $0.turn == turns[1] }))
        }
        return Row(
            load: load, measure: "\(statistic.name) \(measure.name)", live: live(runs), simulated: simulated(runs),
            errors: errors, noise: noise, isClient: measure.isClient)
    }

    static func error(_ live: Double, _ simulated: Double) -> Double { live > 0 ? simulated / live - 1 : 0 }

    public var cells: [[String]] { rows.map(\.cells) }

    /// How many of the coordinator's rows are within the aim, in words.
    public var verdict: String {
        let judged = rows.filter { !$0.isClient }
        let held = judged.count { abs($0.error) < Self.aim }
        let worst = judged.max { abs($0.error) < abs($1.error) }
        let most =
            worst.map { "; the worst, \($0.measure) at \($0.load), \(Decimals.fixed($0.error * 100, 1)) %" } ?? ""
        return "\(held) of \(judged.count) rows within \(Decimals.short(Self.aim * 100)) %\(most)"
    }

    static let aim = 0.05

    /// Where prompts were computed, by load: the shares of jobs whose pages never moved, in percent.
    public var localPrompts: String {
        var loads: [String] = []
        for run in runs where !loads.contains(run.load) { loads.append(run.load) }
        func share(_ jobs: [LiveJob]) -> String {
            Decimals.fixed(100 * Double(jobs.count { $0.kvBytes == 0 }) / Double(max(jobs.count, 1)), 1)
        }
        return loads.map { load in
            let own = runs.filter { $0.load == load }
            return "\(load): live \(share(own.flatMap(\.live))) %, simulated \(share(own.flatMap(\.simulated))) %"
        }.joined(separator: "; ")
    }

    public func markdown(_ title: String) -> String {
        var lines = ["## \(title)", "", verdict + ". Prompts computed where they decode: " + localPrompts + ".", ""]
        lines.append("| " + Self.header.map { $0.lowercased() }.joined(separator: " | ") + " |")
        lines.append("|" + String(repeating: " --- |", count: Self.header.count))
        lines += cells.map { "| " + $0.joined(separator: " | ") + " |" }
        return lines.joined(separator: "\n") + "\n"
    }
}

extension LiveReplay {
    /// Draws of the machine's variation with which each held-out workload is simulated.
    static let draws = 4

    /// Every held-out workload of a session, live beside simulated; nil where the simulation broke a promise.
    public func comparison(of session: LiveSession) -> LiveComparison? {
        var result = LiveComparison()
        for experiment in session.experiments where experiment.kind == .heldOut {
            var simulated: [LiveJob] = []
            for draw in 0..<UInt64(Self.draws) {
                var replay = self
                replay.seed = experiment.seed &+ draw &* 1_000_003 &+ UInt64(max(experiment.turn, 0)) &* 7919
                guard let jobs = replay.jobs(experiment.jobs) else { return nil }
                simulated += jobs
            }
            result.add(
                experiment.load, seed: experiment.seed, turn: experiment.turn, live: experiment.jobs,
                simulated: simulated)
        }
        return result
    }

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
