import CoordinatorCore
import Scheduling
import ServingTypes

/// Plays a live cluster's jobs through the simulator, at the instants at which they were sent.
public struct LiveReplay: Sendable {
    public var cluster: LiveCluster
    public var profile: CostProfile
    public var seed: UInt64 = 1

    public init(cluster: LiveCluster, profile: CostProfile) {
        self.cluster = cluster
        self.profile = profile
    }

    var shape: ClusterShape {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (cluster.prefill, cluster.decode, cluster.mixed)
        shape.profile = profile
        shape.policy = PolicyConfiguration(named: cluster.policy) ?? PolicyConfiguration()
        shape.blockTokens = cluster.blockTokens
        shape.poolTokens = cluster.blocks * cluster.blockTokens
        (shape.batchJobsMax, shape.stepTokensMax) = (cluster.batchJobs, cluster.stepTokens)
        shape.localPrefillThreshold = cluster.localPrefill
        shape.prefillWindowJobs = max(cluster.prefillWindow, 1)
        if cluster.reliefWait > 0 { shape.relief = .init(wait: .milliseconds(Int64(cluster.reliefWait))) }
        if cluster.stepStretch > 0 { shape.stepStretch = Double(cluster.stepStretch) / 100 }
        shape.tick = .milliseconds(25)
        return shape
    }

    /// The same jobs in the same order, as the simulator serves them; nil where a job did not end well.
    public func jobs(_ jobs: [LiveJob]) -> [LiveJob]? {
        let start = (jobs.map(\.sent).min() ?? 0) - 100
        let order = jobs.indices.sorted { (jobs[$0].sent, $0) < (jobs[$1].sent, $1) }
        var workload = Workload()
        workload.trace = order.map {
            TraceEntry(
                arrivalSeconds: (jobs[$0].sent - start + doorMilliseconds / 2) / 1000, tenant: "default",
                inputTokens: jobs[$0].inputTokens, outputTokens: jobs[$0].outputTokens)
        }
        workload.jobs = jobs.count
        var ended: [LiveJob?] = Array(repeating: nil, count: jobs.count)
        let simulation = ClusterSimulation(
            shape.configuration(seed: seed), requests: workload.requests(seed: Hashing.mix(seed)))
        simulation.onEnd = { job, outcome in
            guard case .finished = outcome.ending, order.indices.contains(job.number) else { return }
            let index = order[job.number]
            ended[index] = simulated(jobs[index], outcome)
        }
        simulation.begin()
        while simulation.step(), !(simulation.isWorkloadOver && simulation.jobs.isEmpty) {}
        guard simulation.failure == nil else { return nil }
        let result = ended.compactMap(\.self)
        return result.count == jobs.count ? result : nil
    }

    /// A session, each experiment by itself: what took longer than live does not run into the next one.
    public func session(_ session: LiveSession) -> LiveSession? {
        var result = session
        for (index, experiment) in session.experiments.enumerated() {
            let played: [LiveJob]?
            switch experiment.kind {
            case .single: played = jobs(apart(experiment.jobs))
            case .together, .traffic: played = jobs(experiment.jobs)
            case .disturbed, .crowded, .heldOut: continue
            case .disturbing, .crowding:
                // With the decoding jobs, which come just before.
                let others = index > 0 ? session.experiments[index - 1].jobs : []
                guard let both = jobs(others + experiment.jobs) else { return nil }
                if index > 0 { result.experiments[index - 1].jobs = Array(both.prefix(others.count)) }
                played = Array(both.dropFirst(others.count))
            }
            guard let played else { return nil }
            result.experiments[index].jobs = played
        }
        return result
    }

    private func apart(_ jobs: [LiveJob]) -> [LiveJob] {
        jobs.enumerated().map { index, job in
            var job = job
            job.sent = Double(index) * 20_000
            return job
        }
    }

    private var doorMilliseconds: Double { profile.frontDoorSeconds * 1000 }

    private func simulated(_ live: LiveJob, _ outcome: JobOutcome) -> LiveJob {
        let stamps = outcome.stamps
        func after(_ instant: Instant?) -> Double? { instant.map { ($0 - stamps.received).milliseconds } }
        var job = LiveJob()
        (job.sent, job.inputTokens, job.outputTokens) = (live.sent, live.inputTokens, outcome.usage.outputTokens)
        (job.placed, job.reserved) = (after(stamps.placed), after(stamps.reserved))
        (job.prefilling, job.transferring) = (after(stamps.prefilling), after(stamps.transferring))
        (job.decoding, job.secondToken) = (after(stamps.decoding), after(stamps.secondToken))
        job.firstToken = after(stamps.firstToken) ?? 0
        job.finished = after(stamps.finished) ?? 0
        job.kvBytes = Int(clamping: outcome.route.kvBytesMoved)
        job.clientFirstToken = job.firstToken + doorMilliseconds
        job.clientCompletion = job.finished + doorMilliseconds
        return job
    }
}
