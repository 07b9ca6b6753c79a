import CoordinatorCore
import Scheduling
import ServingTypes

/// A cluster's shape and rules for a workload without faults.
public struct ClusterShape: Sendable {
    public var prefill = 1
    public var decode = 1
    public var mixed = 0
    public var profile = CostProfile.a100OPT13B
    public var policy = PolicyConfiguration()
    public var blockTokens = 16
    /// Jobs in one iteration; nil takes the profile's. Likewise the others.
    public var batchJobsMax: Int?
    public var stepTokensMax: Int?
    public var poolTokens: Int?
    /// Prompts with fewer uncached tokens are prefilled where they decode; 0 never.
    public var localPrefillThreshold = 0
    public var tick: TimeSpan = .milliseconds(100)

    public init() {}

    func configuration(seed: UInt64) -> SimulationConfiguration {
        let blocks = max((poolTokens ?? profile.poolTokens) / max(blockTokens, 1), 1)
        let steps = stepTokensMax ?? profile.stepTokensMax
        func workers(_ role: WorkerRole, _ count: Int) -> [SimulatedWorker] {
            Array(
                repeating: SimulatedWorker(
                    role: role, blockCount: blocks, batchJobsMax: batchJobsMax ?? profile.batchJobsMax,
                    stepTokensMax: steps, prefillChunkTokens: steps, jobsMax: 1024), count: count)
        }
        var result = SimulationConfiguration(
            seed: seed, workers: workers(.prefill, prefill) + workers(.decode, decode) + workers(.mixed, mixed),
            coordinator: coordinator, profile: profile, pageBytes: profile.bytesPerToken * blockTokens)
        result.blockTokens = blockTokens
        result.tick = tick
        result.network.latency = profile.linkLatency
        result.network.bytesPerSecond = profile.linkBytesPerSecond
        return result
    }

    private var coordinator: CoordinatorConfiguration {
        var coordinator = CoordinatorConfiguration()
        coordinator.policy = policy
        coordinator.blockTokens = blockTokens
        coordinator.placement.localPrefillThreshold = localPrefillThreshold
        coordinator.placement.linkBytesPerSecond = profile.linkBytesPerSecond
        coordinator.queuedJobsMax = .max
        coordinator.queuedJobsPerTenantMax = .max
        coordinator.workersMax = max(prefill + decode + mixed, 1)
        coordinator.defaultDeadline = .seconds(1_000_000_000)
        coordinator.endedJobsMax = 16
        coordinator.endedTokensMax = 1 << 16
        return coordinator
    }
}

/// Mean and percentiles of a sample; percentiles are values of the sample (nearest rank).
public struct Spread: Hashable, Sendable {
    public var count: Int
    public var mean: Double
    public var p50: Double
    public var p90: Double
    public var p95: Double
    public var p99: Double
    public var max: Double

    public init(_ values: [Double]) {
        let sorted = values.sorted()
        func rank(_ share: Double) -> Double {
            guard !sorted.isEmpty else { return 0 }
            let rank = Int((share * Double(sorted.count)).rounded(.up))
            return sorted[Swift.min(Swift.max(rank - 1, 0), sorted.count - 1)]
        }
        count = sorted.count
        mean = sorted.isEmpty ? 0 : sorted.reduce(0, +) / Double(sorted.count)
        (p50, p90, p95, p99) = (rank(0.5), rank(0.9), rank(0.95), rank(0.99))
        max = sorted.last ?? 0
    }
}

/// Limits that a served job must meet to count, in seconds.
public struct ServiceObjective: Hashable, Sendable {
    public var timeToFirstToken: Double
    public var timePerToken: Double

    public init(timeToFirstToken: Double, timePerToken: Double) {
        self.timeToFirstToken = timeToFirstToken
        self.timePerToken = timePerToken
    }
}

/// What a workload came to. Times in seconds.
public struct WorkloadReport: Sendable {
    public var jobs = 0
    public var finished = 0
    public var failed = 0
    /// From the first arrival to the last end.
    public var seconds = 0.0
    public var promptTokens = 0
    public var outputTokens = 0
    public var cachedTokens = 0
    public var recomputedTokens = 0
    public var timeToFirstToken = Spread([])
    public var timePerToken = Spread([])
    public var completion = Spread([])
    /// Completion time over output tokens, per job.
    public var normalized = Spread([])
    /// Jobs that met both limits, and these per second.
    public var metObjective = 0
    public var goodput = 0.0
    /// Share of the time that the workers of a role were in a step.
    public var utilisation: [(role: WorkerRole, workers: Int, share: Double)] = []
    public var preemptions: UInt64 = 0
    public var requeues: UInt64 = 0
    public var transfers: UInt64 = 0
    public var kvBytes: UInt64 = 0
    /// Prompt and output tokens served per tenant, by name.
    public var tenants: [(tenant: String, jobs: Int, tokens: Int, meanFirstToken: Double)] = []
    public var events: UInt64 = 0
    public var digest: UInt64 = 0
    /// A broken promise of the simulator's checks; nil in every sound run.
    public var failure: String?

    public init() {}
}

/// Runs a workload through the production cores on virtual time.
public enum WorkloadRun {
    /// A run in which no job ends for this long is stuck.
    static let stuckAfter: Int64 = 24 * 3600 * 1_000_000_000

    /// `progress` is told ended jobs, virtual seconds and events, now and then.
    public static func run(
        _ shape: ClusterShape, _ workload: Workload, seed: UInt64, objective: ServiceObjective,
        progress: ((Int, Double, UInt64) -> Void)? = nil
    ) -> WorkloadReport {
        let simulation = ClusterSimulation(shape.configuration(seed: seed), requests: workload.requests(seed: seed))
        var tally = WorkloadTally(objective: objective)
        simulation.onEnd = { job, outcome in tally.add(job, outcome, at: simulation.now) }
        simulation.begin()
        var lastEnd = (jobs: 0, at: Int64(0))
        while simulation.step() {
            if simulation.endedJobs != lastEnd.jobs { lastEnd = (simulation.endedJobs, simulation.now) }
            if simulation.isWorkloadOver, simulation.jobs.isEmpty { break }
            if simulation.now - lastEnd.at > stuckAfter { simulation.fail("no job has ended for a day") }
            if simulation.eventCount.isMultiple(of: 1 << 20) {
                progress?(simulation.endedJobs, simulation.virtualSeconds, simulation.eventCount)
            }
        }
        simulation.onEnd = { _, _ in }
        return tally.report(simulation)
    }
}

/// Sums of a run, and a sample per finished job.
struct WorkloadTally {
    let objective: ServiceObjective
    private var report = WorkloadReport()
    private var firstTokens: [Double] = []
    private var perToken: [Double] = []
    private var completions: [Double] = []
    private var normalized: [Double] = []
    private var firstArrival: Int64 = .max
    private var lastEnd: Int64 = 0
    private var tenants: [TenantID: (jobs: Int, tokens: Int, firstTokens: Double)] = [:]

    init(objective: ServiceObjective) { self.objective = objective }

    mutating func add(_ job: SimulatedJob, _ outcome: JobOutcome, at now: Int64) {
        firstArrival = min(firstArrival, job.arrived)
        lastEnd = max(lastEnd, now)
        report.promptTokens += job.request.prompt.count
        report.outputTokens += job.receivedTokens
        report.cachedTokens += outcome.usage.cachedTokens
        report.recomputedTokens += outcome.usage.recomputedTokens
        guard case .finished = outcome.ending, let first = job.firstToken, let last = job.lastToken else {
            report.failed += 1
            return
        }
        report.finished += 1
        let firstToken = Double(first - job.arrived) / 1e9
        let completion = Double(last - job.arrived) / 1e9
        let gaps = job.receivedTokens - 1
        let gap = gaps > 0 ? Double(last - first) / 1e9 / Double(gaps) : 0
        firstTokens.append(firstToken)
        completions.append(completion)
        normalized.append(completion / Double(max(job.receivedTokens, 1)))
        if gaps > 0 { perToken.append(gap) }
        if firstToken <= objective.timeToFirstToken, gap <= objective.timePerToken { report.metObjective += 1 }
        let tokens = job.request.prompt.count + job.receivedTokens
        let before = tenants[job.request.tenant] ?? (0, 0, 0)
        tenants[job.request.tenant] = (before.jobs + 1, before.tokens + tokens, before.firstTokens + firstToken)
    }

    func report(_ simulation: ClusterSimulation) -> WorkloadReport {
        var result = report
        result.jobs = simulation.jobCount
        result.seconds = firstArrival == .max ? 0 : Double(lastEnd - firstArrival) / 1e9
        result.timeToFirstToken = Spread(firstTokens)
        result.timePerToken = Spread(perToken)
        result.completion = Spread(completions)
        result.normalized = Spread(normalized)
        result.goodput = result.seconds > 0 ? Double(result.metObjective) / result.seconds : 0
        for role in WorkerRole.allCases {
            let nodes = simulation.nodes.filter { $0.shape.role == role }
            guard !nodes.isEmpty, result.seconds > 0 else { continue }
            let busy = nodes.reduce(0) { $0 + $1.busySeconds }
            result.utilisation.append((role, nodes.count, busy / result.seconds / Double(nodes.count)))
        }
        let counters = simulation.coordinator.snapshot().counters
        result.preemptions = counters.preempted
        result.requeues = counters.requeued
        result.transfers = counters.transfersCommitted
        result.kvBytes = counters.kvBytesMoved
        result.tenants = tenants.sorted { $0.key < $1.key }.map {
            ($0.key.name, $0.value.jobs, $0.value.tokens, $0.value.firstTokens / Double(max($0.value.jobs, 1)))
        }
        result.events = simulation.eventCount
        result.digest = simulation.digest
        result.failure = simulation.failure
        return result
    }
}
