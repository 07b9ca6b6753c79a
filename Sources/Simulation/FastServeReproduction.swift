import Scheduling
import ServingTypes

/// FastServe's evaluation on the production cores (scheduling.md §2): OPT-13B on an A100, one mixed
/// worker, the lengths of VTC's trace in place of ShareGPT's, which its artifact does not hold.
public struct FastServeReproduction {
    public var trace: [TraceEntry]
    public var seeds: [UInt64]
    public var jobs = 400
    public var progress: (String) -> Void

    public init(trace: [TraceEntry], seeds: [UInt64], progress: @escaping (String) -> Void) {
        self.trace = trace
        self.seeds = seeds
        self.progress = progress
    }

    /// Mean completion time over output length at which FastServe draws its line, seconds per token.
    static let line = 0.3
    /// Blocks of 16 of OPT-13B on an A100-40GB, our estimate (scheduling.md §2.5).
    static let poolTokens = 10_400

    /// One point of a curve: means over the seeds.
    public struct Point: Hashable, Sendable {
        public var rate: Double
        public var normalized = 0.0
        public var normalizedP95 = 0.0
        public var completion = 0.0
        public var completionP99 = 0.0
        public var firstToken = 0.0
        public var preemptions = 0.0
    }

    /// Skip-join MLFQ as the paper has it, with the measured least iteration as first quantum.
    /// Promotion by a budget of slots rather than by pure time, which collapses (scheduling.md §2.6).
    static func mlfq(promotes: Bool) -> PolicyConfiguration {
        var policy = PolicyConfiguration(named: "mlfq") ?? PolicyConfiguration()
        policy.baseQuantum = .milliseconds(20)
        policy.promotionAge = promotes ? .seconds(3) : .seconds(1_000_000)
        policy.promotionPeriod = 16
        return policy
    }

    static func shape(_ policy: PolicyConfiguration, batch: Int) -> ClusterShape {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (0, 0, 1)
        shape.profile = .a100OPT13B
        shape.policy = policy
        shape.batchJobsMax = batch
        shape.stepTokensMax = 2048
        shape.poolTokens = poolTokens
        return shape
    }

    public func point(_ shape: ClusterShape, rate: Double) -> Point {
        var point = Point(rate: rate)
        for seed in seeds {
            var workload = Workload()
            workload.jobs = jobs
            workload.rate = rate
            workload.lengths = trace
            let report = WorkloadRun.run(shape, workload, seed: seed)
            let share = 1 / Double(seeds.count)
            point.normalized += report.normalized.mean * share
            point.normalizedP95 += report.normalized.p95 * share
            point.completion += report.completion.mean * share
            point.completionP99 += report.completion.p99 * share
            point.firstToken += report.timeToFirstToken.mean * share
            point.preemptions += Double(report.preemptions) * share
        }
        return point
    }

    public func curve(_ name: String, _ shape: ClusterShape, rates: [Double]) -> [Point] {
        rates.map { rate in
            progress("\(name) at \(rate) jobs/s")
            return point(shape, rate: rate)
        }
    }

    /// The rate at which a curve first rises over the line, between its points linearly; nil where it never does.
    static func crossing(_ curve: [Point], line: Double = line) -> Double? {
        for (before, after) in zip(curve, curve.dropFirst()) where before.normalized < line && after.normalized >= line
        {
            let share = (line - before.normalized) / (after.normalized - before.normalized)
            return before.rate + share * (after.rate - before.rate)
        }
        return nil
    }
}

extension FastServeReproduction {
    // MARK: Rows of scheduling.md §2.7

    /// The whole comparison.
    public func rows() -> [ComparisonRow] {
        let fcfs = curve("FCFS, batch 16", Self.shape(Self.fcfs, batch: 16), rates: [1, 1.5, 2, 2.25, 2.5, 3, 4, 5])
        let mlfq = curve(
            "skip-join MLFQ, batch 16", Self.swapping(Self.mlfq(promotes: true), batch: 16),
            rates: [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10])
        return shapeRows(fcfs, mlfq) + published(fcfs, mlfq) + everything(fcfs, mlfq)
    }

    static let fcfs = PolicyConfiguration(named: "fcfs") ?? PolicyConfiguration()

    /// With the artifact's host tier of 56 GB behind PCIe 4.0.
    static func swapping(_ policy: PolicyConfiguration, batch: Int) -> ClusterShape {
        var shape = shape(policy, batch: batch)
        shape.swapTokens = 68_000
        // The coordinator hears of room that a job's leaving made within an iteration.
        shape.heartbeatEvery = .milliseconds(20)
        shape.tick = .milliseconds(20)
        shape.residencyPercent = 10_000
        shape.swapBytesPerSecond = 25e9
        return shape
    }

    private func shapeRows(_ fcfs: [Point], _ mlfq: [Point]) -> [ComparisonRow] {
        let knee = Self.crossing(fcfs)
        let ratio =
            Self.crossing(mlfq).flatMap { above in knee.map { above / $0 } }
            ?? knee.map { (mlfq.last?.rate ?? 0) / $0 }
        func at(_ curve: [Point], _ rate: Double) -> Double? { curve.first { $0.rate == rate }?.normalized }
        return [
            ComparisonRow("(a) FCFS, batch 16", "jobs/s at 0.3 s/token", reference: 2.65, ours: knee, .absolute(0.35)),
            ComparisonRow(
                "(b) FCFS at 2.5 jobs/s", "s/token", reference: 0.12, ours: at(fcfs, 2.5), .absolute(0.05)),
            ComparisonRow("(b) FCFS at 3 jobs/s", "s/token", reference: 0.32, ours: at(fcfs, 3), .absolute(0.1)),
            ComparisonRow("(c) MLFQ over FCFS", "ratio of rates at 0.3 s/token", reference: 1.6, ours: ratio, .atLeast),
        ]
    }

    /// Fig. 11's curve for OPT-13B: its lengths are ShareGPT's, ours are not, so it is not judged.
    private func published(_ fcfs: [Point], _ mlfq: [Point]) -> [ComparisonRow] {
        let figure: [(Double, Double, Double)] = [
            (1, 0.038, 0.039), (1.5, 0.045, 0.045), (2, 0.091, 0.047), (2.5, 0.403, 0.048), (3, 0.849, 0.063),
            (4, 1.459, 0.106), (5, 1.9, 0.331),
        ]
        return figure.flatMap { rate, first, second -> [ComparisonRow] in
            let note = "other lengths than ours"
            return [
                ComparisonRow(
                    "Fig. 11, FCFS at \(Decimals.short(rate)) jobs/s", "s/token", reference: rate < 5 ? first : nil,
                    ours: fcfs.first { $0.rate == rate }?.normalized, note: note),
                ComparisonRow(
                    "Fig. 11, FastServe at \(Decimals.short(rate)) jobs/s", "s/token", reference: second,
                    ours: mlfq.first { $0.rate == rate }?.normalized, note: note),
            ]
        }
    }

    /// (f) Completion time and time to first token are always shown beside the normalised latency:
    /// MLFQ buys the one with the other.
    private func everything(_ fcfs: [Point], _ mlfq: [Point]) -> [ComparisonRow] {
        (fcfs.map { ("FCFS", $0) } + mlfq.map { ("MLFQ", $0) }).flatMap { name, point -> [ComparisonRow] in
            let experiment = "(f) \(name) at \(Decimals.short(point.rate)) jobs/s"
            return [
                ComparisonRow(experiment, "s/token P95", reference: nil, ours: point.normalizedP95),
                ComparisonRow(experiment, "mean JCT s", reference: nil, ours: point.completion),
                ComparisonRow(experiment, "P99 JCT s", reference: nil, ours: point.completionP99),
                ComparisonRow(experiment, "mean TTFT s", reference: nil, ours: point.firstToken),
                ComparisonRow(experiment, "preemptions", reference: nil, ours: point.preemptions),
            ]
        }
    }
}
