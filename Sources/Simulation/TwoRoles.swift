import Scheduling
import ServingTypes

/// S6: a tenant of long prompts and one of long outputs, both always backlogged, over one prefill and
/// one decode worker (scheduling.md §4.6). Can one order of tenants keep both roles busy, and what
/// does each tenant get?
public struct TwoRoles {
    public var seed: UInt64
    public var from = 60.0
    public var to = 300.0
    public var policy: PolicyConfiguration
    /// The decode worker's process dies here, and comes back two seconds later.
    public var crashAt: Double?

    static let profile = CostProfile.a100OPT13B
    static let batch = 64
    static let long = (input: 1500, output: 16)
    static let talkative = (input: 64, output: 400)
    /// Seconds after the window, in which its jobs end.
    static let tail = 60.0

    public init(policy: PolicyConfiguration, seed: UInt64) {
        self.policy = policy
        self.seed = seed
    }

    public struct Result: Sendable {
        /// Shares of the window in which a role was in a step.
        public var prefill = 0.0
        public var decode = 0.0
        /// Service units per second.
        public var longUnits = 0.0
        public var talkativeUnits = 0.0
        /// Share of the prefill role used by the one, of the decode role by the other.
        public var longShare = 0.0
        public var talkativeShare = 0.0
        public var gap = 0.0
        public var failure: String?
    }

    // MARK: What the cost model says

    static var prefillSeconds: (long: Double, talkative: Double) {
        func seconds(_ tokens: Int) -> Double {
            var work = CostProfile.Work()
            work.prefillTokens = tokens
            work.prefillSquares = Double(tokens) * Double(tokens)
            return profile.time(of: work).seconds
        }
        return (seconds(long.input), seconds(talkative.input))
    }

    /// Of one output token in a full batch.
    static var decodeSeconds: Double {
        var work = CostProfile.Work()
        work.decodeJobs = batch
        work.contextTokens = batch * (talkative.input + talkative.output / 2)
        return profile.time(of: work).seconds / Double(batch)
    }

    /// Dominant resource fairness of two fluid tenants: equal dominant shares, as great as both roles allow.
    static var fluidShare: Double {
        let prompt = prefillSeconds
        let (longDecode, talkativeDecode) = (
            Double(long.output - 1) * decodeSeconds, Double(talkative.output - 1) * decodeSeconds
        )
        return min(1 / (1 + prompt.talkative / talkativeDecode), 1 / (1 + longDecode / prompt.long))
    }

    /// Nanoseconds of each role that a token costs.
    static func dominantShare(dovetailSeconds: Double) -> Counting {
        let prompt = prefillSeconds.long / Double(long.input)
        return .dominantShare(
            promptUnits: Int64(prompt * 1e6), outputUnits: Int64(decodeSeconds * 1e6),
            dovetail: Int64(dovetailSeconds * 1e6))
    }

    // MARK: The run

    private var workload: Workload {
        var workload = Workload()
        let jobs = Int(to * 8)
        var random = SimulationRandom(seed: Hashing.mix(seed ^ 0x726f_6c65))
        workload.trace = (0..<jobs).flatMap { index in
            let time = Double(index) / 20 + 0.05 * random.unit()
            return [
                TraceEntry(
                    arrivalSeconds: time, tenant: "long", inputTokens: Self.long.input, outputTokens: Self.long.output),
                TraceEntry(
                    arrivalSeconds: time, tenant: "talkative", inputTokens: Self.talkative.input,
                    outputTokens: Self.talkative.output),
            ]
        }
        workload.jobs = workload.trace.count
        return workload
    }

    public func run() -> Result {
        var shape = ClusterShape()
        shape.profile = Self.profile
        shape.policy = policy
        shape.batchJobsMax = Self.batch
        shape.tick = .milliseconds(25)
        // Room for both tenants' jobs beside those that run, so that slots are what is scarce.
        shape.residencyPercent = 200
        if let crashAt { shape.faults = [(crashAt, .crash(worker: "decode-0", restartAfter: 2))] }
        let gap = CounterGap()
        var busy: [(at: Double, prefill: Double, decode: Double)] = []
        var result = Result()
        let report = WorkloadRun.run(
            // Jobs that run over the end of the window have a record only once they have ended.
            shape, workload, seed: seed, keepsRecords: true, until: to + Self.tail,
            watch: { simulation in
                gap.look(simulation)
                guard (from...to).contains(simulation.virtualSeconds) else { return }
                busy.append(
                    (simulation.virtualSeconds, simulation.nodes[0].busySeconds, simulation.nodes[1].busySeconds))
            })
        result.failure = report.failure
        result.gap = gap.greatest
        guard let first = busy.first, let last = busy.last, last.at > first.at else { return result }
        result.prefill = (last.prefill - first.prefill) / (last.at - first.at)
        result.decode = (last.decode - first.decode) / (last.at - first.at)
        shares(report.records, &result)
        return result
    }

    /// What each tenant got between `from` and `to`; a job that ran over the edge counts by its part.
    private func shares(_ records: [JobRecord], _ result: inout Result) {
        var prompts: [String: Double] = [:]
        var outputs: [String: Double] = [:]
        for record in records {
            if (from..<to).contains(record.firstToken) { prompts[record.tenant.name, default: 0] += 1 }
            let span = max(record.end - record.firstToken, 1e-9)
            let overlap = max(min(to, record.end) - max(from, record.firstToken), 0)
            outputs[record.tenant.name, default: 0] += Double(record.outputTokens) * overlap / span
        }
        let seconds = to - from
        func units(_ name: String, _ input: Int) -> Double {
            (prompts[name, default: 0] * Double(input) + 2 * outputs[name, default: 0]) / seconds
        }
        result.longUnits = units("long", Self.long.input)
        result.talkativeUnits = units("talkative", Self.talkative.input)
        result.longShare = prompts["long", default: 0] * Self.prefillSeconds.long / seconds
        result.talkativeShare = outputs["talkative", default: 0] * Self.decodeSeconds / seconds
    }
}

extension SurpassGoals {
    func s6() -> [ComparisonRow] {
        var fair = policy("fair")
        let bound = Double(fair.theta) + Double(TwoRoles.long.input) + 2 * Double(TwoRoles.batch)
        progress("S6 combined")
        let combined = TwoRoles(policy: fair, seed: seed).run()
        progress("S6 with a crash")
        var crashing = TwoRoles(policy: fair, seed: seed)
        crashing.crashAt = 150
        let crashed = crashing.run()
        fair.counting = TwoRoles.dominantShare(dovetailSeconds: 2)
        fair.theta = 2_000_000
        progress("S6 dominant share")
        let dominant = TwoRoles(policy: fair, seed: seed).run()
        let (one, other, fluid) = ("S6 two roles, combined", "S6 two roles, dominant share", TwoRoles.fluidShare)
        return [
            ComparisonRow(other, "prefill utilised", reference: 0.95, ours: dominant.prefill, .atLeast),
            ComparisonRow(other, "decode utilised", reference: 0.95, ours: dominant.decode, .atLeast),
            ComparisonRow(
                other, "long tenant's share of prefill", reference: fluid, ours: dominant.longShare, .relative(0.03),
                note: "stretch: fluid DRF"),
            ComparisonRow(
                other, "talkative tenant's share of decode", reference: fluid, ours: dominant.talkativeShare,
                .relative(0.03), note: "stretch: fluid DRF"),
            ComparisonRow(one, "decode utilised", reference: 0.95, ours: combined.decode, .atLeast),
            ComparisonRow(one, "prefill utilised", reference: nil, ours: combined.prefill),
            ComparisonRow(one, "units/s of the long tenant", reference: nil, ours: combined.longUnits),
            ComparisonRow(one, "units/s of the talkative tenant", reference: nil, ours: combined.talkativeUnits),
            ComparisonRow(
                one, "counter gap", reference: bound, ours: combined.gap, .atMost,
                note: "theta + u + w_q * slots in flight"),
            ComparisonRow(
                "\(one), a crash of the decode worker", "counter gap", reference: bound, ours: crashed.gap, .atMost,
                note: crashed.failure ?? "theta + u + w_q * slots in flight"),
        ]
    }
}
