import CoordinatorCore
import ServingTypes

/// What a simulated cluster keeps: bytes in use, as the caller measures them, with one thing varied at a time. The
/// simulator's own books (the client's prompt, the oracle, samples) count as well as the cores'.
public struct ScaleProbe {
    public var shape: ClusterShape
    public var workload: Workload
    public var seed: UInt64
    /// Bytes that are allocated now.
    public var bytesInUse: () -> Int

    public init(shape: ClusterShape, workload: Workload, seed: UInt64, bytesInUse: @escaping () -> Int) {
        (self.shape, self.workload, self.seed, self.bytesInUse) = (shape, workload, seed, bytesInUse)
    }

    /// Virtual nanoseconds after which a cluster without faults has long been up.
    private static let upAfter: Int64 = 2_000_000_000

    /// Per worker of a cluster of so many that have registered and had no job.
    public func idleWorker(workers: Int) -> Int {
        let before = bytesInUse()
        let simulation = cluster(workers: workers, jobs: 0)
        while simulation.now < Self.upAfter, simulation.step() {}
        return measure(simulation, since: before, things: workers)
    }

    /// Per job that waits: so many, all come before any worker.
    public func waitingJob(jobs: Int) -> Int {
        var probe = self
        probe.workload.rate = 0
        let idle = probe.cluster(workers: 2, jobs: 0)
        let before = bytesInUse()
        let simulation = probe.cluster(workers: 2, jobs: jobs)
        while simulation.jobCount < jobs, simulation.step() {}
        return withExtendedLifetime(idle) { measure(simulation, since: before, things: jobs) }
    }

    /// Per job that decodes: so many at once, `jobsPerWorker` on each decoding worker.
    public func decodingJob(jobs: Int, jobsPerWorker: Int = 64) -> Int {
        var probe = self
        probe.workload.rate = 0
        probe.workload.output = .fixed(probe.workload.outputMax)
        probe.shape.batchJobsMax = 2 * jobsPerWorker
        let simulation = probe.cluster(workers: (jobs / jobsPerWorker) * 5 / 4, jobs: jobs)
        while simulation.now < Self.upAfter / 1000, simulation.step() {}
        let before = bytesInUse()
        while !Self.allDecode(simulation), simulation.step() {}
        return measure(simulation, since: before, things: jobs)
    }

    /// Per job that has ended: what a run of twice as many jobs holds more, halfway and at the end.
    public func endedJob(jobs: Int) -> Int {
        let simulation = cluster(workers: 10, jobs: 2 * jobs)
        var tally = WorkloadTally(
            objective: ServiceObjective(timeToFirstToken: 1, timePerToken: 1), keepsRecords: false, warmupJobs: 0,
            keepsSamples: false)
        simulation.onEnd = { job, outcome in tally.add(job, outcome, at: simulation.now) }
        while simulation.endedJobs < jobs, simulation.step() {}
        let before = bytesInUse()
        while simulation.endedJobs < 2 * jobs, simulation.step() {}
        defer { simulation.onEnd = { _, _ in } }
        return measure(simulation, since: before, things: jobs)
    }

    private static func allDecode(_ simulation: ClusterSimulation) -> Bool {
        simulation.isWorkloadOver && simulation.eventCount.isMultiple(of: 1024)
            && simulation.jobs.values.allSatisfy { $0.receivedTokens >= 2 }
    }

    private func cluster(workers: Int, jobs: Int) -> ClusterSimulation {
        var (shape, workload) = (shape, workload)
        shape.prefill = max(workers / 5, 1)
        shape.decode = max(workers - shape.prefill, 1)
        workload.jobs = jobs
        let simulation = ClusterSimulation(shape.configuration(seed: seed), requests: workload.requests(seed: seed))
        simulation.begin()
        return simulation
    }

    private func measure(_ simulation: ClusterSimulation, since before: Int, things: Int) -> Int {
        withExtendedLifetime(simulation) { (bytesInUse() - before) / max(things, 1) }
    }
}
