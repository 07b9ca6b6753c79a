import CoordinatorCore
import Scheduling
import ServingTypes

/// Runs a workload through the production cores on virtual time.
public enum WorkloadRun {
    /// A run in which no job ends for this long is stuck.
    static let stuckAfter: Int64 = 24 * 3600 * 1_000_000_000

    /// `progress` is told ended jobs, virtual seconds and events, now and then; `watch` sees the
    /// cluster whenever a decoding worker's iteration has been accounted for. Ends early once more
    /// than `missesMax` jobs, the first `warmupJobs` left out, have missed the objective, or at
    /// `until` seconds of virtual time. Without `keepsSamples` there are means and maxima, no quantiles, and a job
    /// that has ended leaves nothing behind.
    public static func run(
        _ shape: ClusterShape, _ workload: Workload, seed: UInt64,
        objective: ServiceObjective = ServiceObjective(timeToFirstToken: 2, timePerToken: 0.2),
        keepsRecords: Bool = false, keepsSamples: Bool = true, missesMax: Int = .max, warmupJobs: Int = 0,
        until: Double = .infinity, watch: ((ClusterSimulation) -> Void)? = nil,
        progress: ((Int, Double, UInt64) -> Void)? = nil
    ) -> WorkloadReport {
        let simulation = ClusterSimulation(shape.configuration(seed: seed), requests: workload.requests(seed: seed))
        var tally = WorkloadTally(
            objective: objective, keepsRecords: keepsRecords, warmupJobs: warmupJobs, keepsSamples: keepsSamples)
        simulation.onIteration = watch
        for fault in shape.faults { simulation.plan(fault.fault, atSeconds: fault.seconds) }
        simulation.onEnd = { job, outcome in tally.add(job, outcome, at: simulation.now) }
        simulation.begin()
        var lastEnd = (jobs: 0, at: Int64(0))
        while simulation.step() {
            if simulation.endedJobs != lastEnd.jobs { lastEnd = (simulation.endedJobs, simulation.now) }
            if simulation.isWorkloadOver, simulation.jobs.isEmpty { break }
            if tally.misses > missesMax || simulation.virtualSeconds >= until { break }
            if missesMax != .max, simulation.eventCount.isMultiple(of: 1 << 11),
                tally.misses + tally.overdue(simulation) > missesMax
            {
                break
            }
            if simulation.now - lastEnd.at > stuckAfter { simulation.fail("no job has ended for a day") }
            if simulation.eventCount.isMultiple(of: 1 << 20) {
                progress?(simulation.endedJobs, simulation.virtualSeconds, simulation.eventCount)
            }
        }
        simulation.onEnd = { _, _ in }
        simulation.onIteration = nil
        return tally.report(simulation)
    }
}

/// Sums of a run, and where they are wanted samples of each finished job.
struct WorkloadTally {
    let objective: ServiceObjective
    let keepsRecords: Bool
    private var report = WorkloadReport()
    var misses: Int { report.missedObjective }
    private let warmupJobs: Int
    private var firstTokens: Samples
    private var perToken: Samples
    private var completions: Samples
    private var normalized: Samples
    private var firstArrival: Int64 = .max
    private var lastEnd: Int64 = 0
    private var tenants: [TenantID: (jobs: Int, tokens: Int, firstTokens: Double)] = [:]

    /// Samples of one kind; without quantiles their sum is enough.
    struct Samples {
        let areKept: Bool
        private var values: [Double] = []
        private var count = 0
        private var sum = 0.0
        private var greatest = 0.0

        init(areKept: Bool) { self.areKept = areKept }

        mutating func append(_ value: Double) {
            if areKept { return values.append(value) }
            count += 1
            sum += value
            greatest = max(greatest, value)
        }

        var spread: Spread {
            areKept
                ? Spread(values) : Spread(count: count, mean: count > 0 ? sum / Double(count) : 0, max: greatest)
        }
    }

    init(objective: ServiceObjective, keepsRecords: Bool, warmupJobs: Int, keepsSamples: Bool = true) {
        let none = Samples(areKept: keepsSamples)
        (firstTokens, perToken, completions, normalized) = (none, none, none, none)
        self.warmupJobs = warmupJobs
        self.objective = objective
        self.keepsRecords = keepsRecords
    }

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
        if keepsRecords {
            report.records.append(
                JobRecord(
                    tenant: job.request.tenant, arrival: Double(job.arrived) / 1e9, firstToken: Double(first) / 1e9,
                    end: Double(last) / 1e9, inputTokens: job.request.prompt.count, outputTokens: job.receivedTokens))
        }
        if firstToken <= objective.timeToFirstToken, gap <= objective.timePerToken {
            report.metObjective += 1
        } else if job.number >= warmupJobs {
            report.missedObjective += 1
        }
        let tokens = job.request.prompt.count + job.receivedTokens
        let before = tenants[job.request.tenant] ?? (0, 0, 0)
        tenants[job.request.tenant] = (before.jobs + 1, before.tokens + tokens, before.firstTokens + firstToken)
    }

    /// Live jobs that have missed the objective already: no first token in time, or tokens so slow
    /// that the rest, come at once, could not make up for it.
    func overdue(_ simulation: ClusterSimulation) -> Int {
        simulation.jobs.values.reduce(0) { count, job in
            guard job.number >= warmupJobs else { return count }
            let waited = Double((job.firstToken ?? simulation.now) - job.arrived) / 1e9
            if waited > objective.timeToFirstToken { return count + 1 }
            guard let first = job.firstToken else { return count }
            let gaps = max(job.request.outputTokens - 1, 1)
            let spent = Double(simulation.now - first) / 1e9
            return spent > objective.timePerToken * Double(gaps) ? count + 1 : count
        }
    }

    func report(_ simulation: ClusterSimulation) -> WorkloadReport {
        var result = report
        result.jobs = simulation.jobCount
        result.refused = simulation.witnessed.filter { $0.key.hasPrefix("job.refused") }.values.reduce(0, +)
        result.seconds = firstArrival == .max ? 0 : Double(lastEnd - firstArrival) / 1e9
        result.timeToFirstToken = firstTokens.spread
        result.timePerToken = perToken.spread
        result.completion = completions.spread
        result.normalized = normalized.spread
        result.goodput = result.seconds > 0 ? Double(result.metObjective) / result.seconds : 0
        for role in WorkerRole.allCases {
            let nodes = simulation.nodes.filter { $0.shape.role == role }
            guard !nodes.isEmpty, result.seconds > 0 else { continue }
            let busy = nodes.reduce(0) { $0 + $1.busySeconds }
            result.utilisation.append((role, nodes.count, busy / result.seconds / Double(nodes.count)))
        }
        result.swapWaitSeconds = simulation.nodes.reduce(0) { $0 + $1.swapWaitSeconds }
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
