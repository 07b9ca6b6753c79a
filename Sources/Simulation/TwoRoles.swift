import Scheduling
import ServingTypes

/// S6: a tenant of long prompts and one of long outputs, both always backlogged, over one prefill and
/// one decode worker (scheduling.md §4.6). Can one order of tenants keep both roles busy, and what
/// does each tenant get?
///
/// What the tenants are entitled to under dominant resource fairness is the fluid optimum at the costs that engines
/// have (`FluidRoles`): prompts share steps, and a token's cost grows with its own job's context. With scheduling.md's
/// lengths (`Mix.toy`) decode is full first, at shares of 0.904: a long prompt's few tokens carry much context. In full
/// steps 0.935 of prefill would do then; engines that begin a step with what is there take a little more. With longer
/// prompts of the talkative tenant (`Mix.balanced`) the optimum fills both roles.
public struct TwoRoles {
    public var seed: UInt64
    public var from = 60.0
    public var to = 300.0
    public var policy: PolicyConfiguration
    public var mix = Mix.toy
    /// The decode worker's process dies here, and comes back two seconds later.
    public var crashAt: Double?

    static let profile = CostProfile.a100OPT13B
    static let batch = 64
    /// Seconds after the window, in which its jobs end.
    static let tail = 60.0

    /// Tokens of each tenant's jobs.
    public struct Mix: Hashable, Sendable {
        public struct Lengths: Hashable, Sendable {
            public var input: Int
            public var output: Int
        }

        public var long = Lengths(input: 1500, output: 16)
        public var talkative: Lengths

        /// Lengths of scheduling.md §4.6.
        public static let toy = Mix(talkative: Lengths(input: 64, output: 400))
        /// Likewise, with prompts at which the fluid optimum fills both roles.
        public static let balanced = Mix(talkative: Lengths(input: 256, output: 400))
    }

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

    /// What the cost model says.
    var fluid: FluidRoles {
        FluidRoles(profile: Self.profile, batch: Self.batch, stepTokens: Self.profile.stepTokensMax, mix: mix)
    }

    /// What a token costs of each role, in microseconds; `dovetailSeconds` is how far the smaller share may lag.
    static func dominantShare(_ fluid: FluidRoles, dovetailSeconds: Double) -> Counting {
        let prompt = fluid.long.prefill / Double(fluid.mix.long.input)
        return .dominantShare(
            promptUnits: Int64(prompt * unitsPerSecond), outputUnits: Int64(fluid.talkative.token * unitsPerSecond),
            dovetail: Int64(dovetailSeconds * unitsPerSecond))
    }

    /// Of counters that count seconds.
    static let unitsPerSecond = 1e6

    // MARK: The run

    private var workload: Workload {
        var workload = Workload()
        let jobs = Int(to * 8)
        var random = SimulationRandom(seed: Hashing.mix(seed ^ 0x726f_6c65))
        workload.trace = (0..<jobs).flatMap { index in
            let time = Double(index) / 20 + 0.05 * random.unit()
            return [
                TraceEntry(
                    arrivalSeconds: time, tenant: "long", inputTokens: mix.long.input, outputTokens: mix.long.output),
                TraceEntry(
                    arrivalSeconds: time, tenant: "talkative", inputTokens: mix.talkative.input,
                    outputTokens: mix.talkative.output),
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
        let fluid = fluid
        result.longUnits = units("long", mix.long.input)
        result.talkativeUnits = units("talkative", mix.talkative.input)
        result.longShare = prompts["long", default: 0] * fluid.long.prefill / seconds
        result.talkativeShare = outputs["talkative", default: 0] * fluid.talkative.token / seconds
    }
}

/// Two fluid tenants, one of which needs a prefill role most and the other a decode role: costs of their jobs where
/// both roles work in full steps, and what dominant resource fairness gives them.
struct FluidRoles {
    let mix: TwoRoles.Mix
    let long: Cost
    let talkative: Cost

    /// Seconds of each role that one job of a tenant takes.
    struct Cost {
        /// Its prompt's part of full steps: prompts share a step's base by their tokens.
        var prefill: Double
        /// Of one output token: its part of an iteration of a full batch, with its own mean context.
        var token: Double
        /// Of all output tokens but the first, which the prompt's last step brings.
        var decode: Double
    }

    init(profile: CostProfile, batch: Int, stepTokens: Int, mix: TwoRoles.Mix) {
        func cost(_ lengths: TwoRoles.Mix.Lengths) -> Cost {
            var prompts = CostProfile.Work()
            prompts.prefillTokens = stepTokens
            prompts.prefillSquares = Double(stepTokens) * Double(lengths.input)
            var iteration = CostProfile.Work()
            iteration.decodeJobs = batch
            iteration.contextTokens = batch * (lengths.input + lengths.output / 2)
            let token = profile.time(of: iteration).seconds / Double(batch)
            return Cost(
                prefill: profile.time(of: prompts).seconds * Double(lengths.input) / Double(stepTokens), token: token,
                decode: token * Double(lengths.output - 1))
        }
        self.mix = mix
        long = cost(mix.long)
        talkative = cost(mix.talkative)
    }

    /// What each tenant takes of the role that it needs less, over its share of the other.
    private var beside: (prefill: Double, decode: Double) {
        (talkative.prefill / talkative.decode, long.decode / long.prefill)
    }

    /// Equal dominant shares, as great as both roles allow.
    var share: Double { 1 / (1 + max(beside.prefill, beside.decode)) }

    /// How much of each role these take.
    var prefillUtilised: Double { share * (1 + beside.prefill) }
    var decodeUtilised: Double { share * (1 + beside.decode) }
}

extension SurpassGoals {
    func s6() -> [ComparisonRow] {
        dominantShares("S6 two roles, dominant share", .toy)
            + dominantShares("S6 likewise, longer prompts of the talkative tenant", .balanced) + combined()
    }

    private func dominantShares(_ name: String, _ mix: TwoRoles.Mix) -> [ComparisonRow] {
        progress(name)
        var roles = TwoRoles(policy: policy("fair"), seed: seed)
        roles.mix = mix
        let fluid = roles.fluid
        roles.policy.counting = TwoRoles.dominantShare(fluid, dovetailSeconds: 2)
        roles.policy.theta = Int64(2 * TwoRoles.unitsPerSecond)
        let result = roles.run()
        let stretch = result.failure ?? "stretch: fluid DRF"
        return [
            ComparisonRow(name, "prefill utilised", reference: 0.95, ours: result.prefill, .atLeast),
            ComparisonRow(name, "decode utilised", reference: 0.95, ours: result.decode, .atLeast),
            ComparisonRow(
                name, "long tenant's share of prefill", reference: fluid.share, ours: result.longShare,
                .relative(0.03), note: stretch),
            ComparisonRow(
                name, "talkative tenant's share of decode", reference: fluid.share, ours: result.talkativeShare,
                .relative(0.03), note: stretch),
            ComparisonRow(name, "prefill in full steps, fluid DRF", reference: nil, ours: fluid.prefillUtilised),
            ComparisonRow(name, "decode in full steps, fluid DRF", reference: nil, ours: fluid.decodeUtilised),
        ]
    }

    private func combined() -> [ComparisonRow] {
        let name = "S6 two roles, combined"
        var roles = TwoRoles(policy: policy("fair"), seed: seed)
        let bound = Double(roles.policy.theta) + Double(roles.mix.long.input) + 2 * Double(TwoRoles.batch)
        progress(name)
        let result = roles.run()
        progress("\(name), with a crash")
        roles.crashAt = 150
        let crashed = roles.run()
        let note = "theta + u + w_q * slots in flight"
        return [
            ComparisonRow(name, "decode utilised", reference: 0.95, ours: result.decode, .atLeast),
            ComparisonRow(name, "prefill utilised", reference: nil, ours: result.prefill),
            ComparisonRow(name, "units/s of the long tenant", reference: nil, ours: result.longUnits),
            ComparisonRow(name, "units/s of the talkative tenant", reference: nil, ours: result.talkativeUnits),
            ComparisonRow(name, "counter gap", reference: bound, ours: result.gap, .atMost, note: note),
            ComparisonRow(
                "\(name), a crash of the decode worker", "counter gap", reference: bound, ours: crashed.gap, .atMost,
                note: crashed.failure ?? note),
        ]
    }
}
