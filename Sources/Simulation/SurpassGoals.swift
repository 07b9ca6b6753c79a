import Scheduling
import ServingTypes

/// The goals beyond the published results (scheduling.md §5.3, S3 to S6), each measured beside what
/// it is to beat, in one run of the same seed.
public struct SurpassGoals {
    public var trace: [TraceEntry]
    public var seed: UInt64
    public var progress: (String) -> Void

    public init(trace: [TraceEntry], seed: UInt64, progress: @escaping (String) -> Void) {
        self.trace = trace
        self.seed = seed
        self.progress = progress
    }

    /// The same goals over several seeds, the rows of all as one: `ours` their mean, and all must hold.
    public static func rows(
        trace: [TraceEntry], seeds: [UInt64], only: String? = nil, progress: @escaping (String) -> Void
    ) -> [ComparisonRow] {
        ComparisonRow.merged(
            seeds.map { seed in
                SurpassGoals(trace: moved(trace, seed: seed), seed: seed) { progress("seed \(seed): \($0)") }.rows(
                    only: only)
            })
    }

    /// A recorded trace of which every seed has its own version: arrivals later by up to half a second.
    static func moved(_ trace: [TraceEntry], seed: UInt64) -> [TraceEntry] {
        var random = SimulationRandom(seed: Hashing.mix(seed ^ 0x6d6f_7665))
        let late = trace.map { entry in
            var entry = entry
            entry.arrivalSeconds += 0.5 * random.unit()
            return entry
        }
        return late.enumerated().sorted { a, b in
            (a.element.arrivalSeconds, a.offset) < (b.element.arrivalSeconds, b.offset)
        }.map(\.element)
    }

    /// `only` names one goal: s3 to s6.
    public func rows(only: String? = nil) -> [ComparisonRow] {
        let goals: [(String, () -> [ComparisonRow])] = [("s3", s3), ("s4", s4), ("s5", s5), ("s6", s6)]
        return goals.filter { only == nil || $0.0 == only }.flatMap { $0.1() }
    }

    func policy(_ name: String, theta: Int64 = 2000) -> PolicyConfiguration {
        var policy = PolicyConfiguration(named: name) ?? PolicyConfiguration()
        policy.theta = theta
        return policy
    }

    struct Measured {
        var report: WorkloadReport
        var gap: Double
    }

    private func measure(_ name: String, _ shape: ClusterShape, _ workload: Workload, seed: UInt64? = nil) -> Measured {
        progress(name)
        let gap = CounterGap()
        let report = WorkloadRun.run(
            shape, workload, seed: seed ?? self.seed, keepsRecords: true, watch: { gap.look($0) })
        if let failure = report.failure { progress("\(name) FAILED: \(failure)") }
        return Measured(report: report, gap: gap.greatest)
    }

    private var recorded: Workload {
        var workload = Workload()
        workload.trace = trace
        workload.jobs = trace.count
        return workload
    }

    // MARK: S3: fairer than VTC on its own trace

    static func s3Shape(_ policy: PolicyConfiguration) -> ClusterShape {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (0, 0, 1)
        shape.profile = .a10GLlama7B
        shape.profile.sharesIterations = false
        shape.policy = policy
        shape.stepTokensMax = 4096
        return shape
    }

    func s3() -> [ComparisonRow] {
        var tiered = Self.s3Shape(policy("fair"))
        tiered.swapTokens = 100_000
        var narrow = tiered
        narrow.policy.theta = 1000
        return s3("S3 VTC's trace, fair sharing with preemption", Self.s3Shape(policy("fair")))
            + s3("S3 likewise, with a host tier", tiered)
            + s3("S3 likewise, with a host tier, theta 1000", narrow)
    }

    private func s3(_ name: String, _ shape: ClusterShape) -> [ComparisonRow] {
        let measured = measure(name, shape, recorded)
        let diff = DiffMetric().measure(measured.report.records)
        let tokens = VTCReproduction.tokensPerSecond(measured.report.records)
        return [
            ComparisonRow(name, "Avg Diff", reference: 215, ours: diff.mean, .atMost),
            ComparisonRow(name, "Max Diff", reference: 340, ours: diff.max, .atMost),
            ComparisonRow(name, "tokens/s", reference: 750, ours: tokens, .atLeast),
            ComparisonRow(name, "stretch: Avg Diff", reference: 200, ours: diff.mean, .atMost),
            ComparisonRow(name, "stretch: tokens/s", reference: 770, ours: tokens, .atLeast),
            ComparisonRow(
                name, "counter gap", reference: Double(Int(shape.policy.theta) + largestPrompt), ours: measured.gap,
                .atMost, note: "theta + u, u the longest prompt"),
        ]
    }

    // MARK: S4: one engine, tenants outside, jobs inside

    /// Tenants with at most 50 of the trace's requests.
    private var light: Set<TenantID> {
        var counts: [String: Int] = [:]
        for entry in trace { counts[entry.tenant, default: 0] += 1 }
        return Set(counts.filter { $0.value <= 50 }.keys.map { TenantID($0) })
    }

    private func lightCompletion(_ report: WorkloadReport) -> Double {
        let light = light
        return Spread(report.records.filter { light.contains($0.tenant) }.map(\.completion)).mean
    }

    func s4() -> [ComparisonRow] {
        let fcfs = measure("S4 fcfs", FastServeReproduction.shape(policy("fcfs"), batch: 16), recorded).report
        let mlfq = measure(
            "S4 mlfq", FastServeReproduction.swapping(FastServeReproduction.mlfq(promotes: true), batch: 16), recorded
        ).report
        return ["fair-gittins", "fair-mlfq", "fair"].filter { PolicyConfiguration(named: $0) != nil }.flatMap {
            name -> [ComparisonRow] in
            let measured = measure(
                "S4 \(name)", FastServeReproduction.swapping(policy(name), batch: 16), recorded)
            let report = measured.report
            let goal = "S4 one engine, \(name)"
            let completion = report.completion.mean / fcfs.completion.mean
            return [
                ComparisonRow(
                    goal, "s/token over global MLFQ", reference: 1.05,
                    ours: report.normalized.mean / mlfq.normalized.mean, .atMost),
                ComparisonRow(goal, "mean JCT over FCFS", reference: 1.05, ours: completion, .atMost),
                ComparisonRow(
                    goal, "light tenants' JCT over FCFS", reference: 0.35,
                    ours: lightCompletion(report) / lightCompletion(fcfs), .atMost),
                ComparisonRow(
                    goal, "counter gap", reference: Double(2000 + largestPrompt), ours: measured.gap, .atMost,
                    note: "theta + u, u the longest prompt"),
                ComparisonRow(goal, "stretch: mean JCT over FCFS", reference: 0.8, ours: completion, .atMost),
                ComparisonRow(goal, "mean JCT s", reference: nil, ours: report.completion.mean),
                ComparisonRow(goal, "P99 JCT s", reference: nil, ours: report.completion.p99),
                ComparisonRow(goal, "mean TTFT s", reference: nil, ours: report.timeToFirstToken.mean),
                ComparisonRow(goal, "s/token", reference: nil, ours: report.normalized.mean),
            ]
        }
    }

    private var largestPrompt: Int { trace.map(\.inputTokens).max() ?? 0 }

    // MARK: S5: sustained load

    func s5() -> [ComparisonRow] {
        var burst = Workload()
        burst.jobs = 2000
        burst.rate = 0
        burst.lengths = trace
        let shape = FastServeReproduction.shape(policy("fcfs"), batch: 16)
        let all = measure("S5 capacity", shape, burst).report
        let capacity = Double(all.finished) / max(all.seconds, 1e-9)
        var sustained = burst
        sustained.jobs = 10_000
        sustained.rate = 0.95 * capacity
        let fcfs = measure("S5 fcfs", shape, sustained).report
        return ["fair-gittins", "gittins", "mlfq"].filter { PolicyConfiguration(named: $0) != nil }.flatMap {
            name -> [ComparisonRow] in
            let report = measure(
                "S5 \(name)", FastServeReproduction.swapping(policy(name), batch: 16), sustained
            ).report
            let goal = "S5 0.95 of capacity, \(name)"
            let tail = report.completion.p99 / fcfs.completion.p99
            return [
                ComparisonRow(
                    goal, "s/token over FCFS", reference: 0.6, ours: report.normalized.mean / fcfs.normalized.mean,
                    .atMost),
                ComparisonRow(goal, "P99 JCT over FCFS", reference: 2, ours: tail, .atMost),
                ComparisonRow(goal, "stretch: P99 JCT over FCFS", reference: 1.5, ours: tail, .atMost),
                ComparisonRow(
                    goal, "mean JCT over FCFS", reference: nil, ours: report.completion.mean / fcfs.completion.mean),
                ComparisonRow(goal, "s/token", reference: nil, ours: report.normalized.mean),
                ComparisonRow(goal, "FCFS s/token", reference: nil, ours: fcfs.normalized.mean),
                ComparisonRow(goal, "capacity jobs/s", reference: nil, ours: capacity),
                ComparisonRow(goal, "P99 JCT s", reference: nil, ours: report.completion.p99),
            ]
        }
    }
}
