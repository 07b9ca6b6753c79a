import Messages
import Scheduling
import ServingTypes

/// Workers that take new work now.
public struct ServingCapacity: Hashable, Sendable {
    public var prefillWorkers = 0
    public var decodeWorkers = 0
    public var mixedWorkers = 0
    public var draining = 0

    public init() {}

    /// Decode workers prefill by themselves where no prefill worker lives.
    public var canDecode: Bool { decodeWorkers + mixedWorkers > 0 }
}

extension Coordinator {
    public func snapshot() -> ClusterSnapshot {
        ClusterSnapshot(
            policy: configuration.policy.name, workers: workers.names.compactMap { worker($0) },
            tenants: tenants.keys.sorted().map(tenantView), queuedJobs: queuedJobs, liveJobs: jobs.count,
            counters: counters)
    }

    /// A live job, or one that ended and is remembered.
    public func view(_ job: JobID) -> JobView? {
        if let live = jobs[job] { return view(of: live) }
        return ended[job].map(view)
    }

    /// Newest first.
    public func jobs(limit: Int) -> [JobView] {
        guard limit > 0 else { return [] }
        let live = jobs.values.map { (sequence: $0.sequence, job: $0.id) }
        let past = ended.all.map { (sequence: $0.sequence, job: $0.outcome.job) }
        let newest = (live + past).sorted { $0.sequence > $1.sequence }.prefix(limit)
        return newest.compactMap { view($0.job) }
    }

    /// The token log from an output offset on, empty beyond its end; nil for an unknown job.
    public func tokens(of job: JobID, from offset: Int) -> [SampledToken]? {
        guard let log = jobs[job]?.log ?? ended[job]?.log else { return nil }
        return Array(log.dropFirst(max(offset, 0)))
    }

    /// How a remembered job ended; nil while it lives.
    public func outcome(of job: JobID) -> JobOutcome? { ended[job]?.outcome }

    /// The last dispatch of a live job, for the journal.
    public func attempt(of job: JobID) -> Attempt? { jobs[job]?.attempt }

    public func worker(_ id: WorkerID) -> WorkerView? {
        workers[id].map { worker in
            let register = worker.register
            let endpoint = register.dataHost.isEmpty ? "" : "\(register.dataHost):\(register.dataPort)"
            return WorkerView(
                worker: worker.ref, role: register.role, state: health(worker), processID: register.processID,
                dataEndpoint: endpoint, assignedJobs: worker.jobs.count, blockTokens: register.blockTokens,
                pageBytes: register.pageBytes, load: worker.load)
        }
    }

    /// Service units that a tenant has been charged, lifts left out.
    public func chargedUnits(of tenant: TenantID) -> Int64 { policy.chargedUnits(of: tenant) }

    /// Workers by what they can do for a new job.
    public var capacity: ServingCapacity {
        var capacity = ServingCapacity()
        for worker in workers.all {
            if worker.isDraining {
                capacity.draining += 1
                continue
            }
            switch worker.register.role {
            case .prefill: capacity.prefillWorkers += 1
            case .decode: capacity.decodeWorkers += 1
            case .mixed: capacity.mixedWorkers += 1
            }
        }
        return capacity
    }

    private func health(_ worker: Worker) -> WorkerHealth {
        switch worker.state {
        case .ready: isInhibited(worker.ref.id) ? .inhibited : .ready
        case .suspect: .suspect
        case .draining: .draining
        case .drained: .drained
        }
    }

    func tenantView(_ tenant: TenantID) -> TenantView {
        let record = tenants[tenant] ?? TenantRecord()
        return TenantView(
            tenant: tenant, weight: policy.weight(of: tenant), virtualCounter: policy.virtualCounter(of: tenant),
            queuedJobs: record.queued, runningJobs: record.running, usage: record.usage)
    }

    private func view(of job: Job) -> JobView {
        JobView(
            job: job.id, tenant: job.tenant, phase: phase(of: job), usage: job.usage, stamps: job.stamps,
            route: job.route, ending: nil)
    }

    private func view(_ job: EndedJob) -> JobView {
        let outcome = job.outcome
        return JobView(
            job: outcome.job, tenant: outcome.tenant, phase: .finished, usage: outcome.usage, stamps: outcome.stamps,
            route: outcome.route, ending: outcome.ending)
    }

    private func phase(of job: Job) -> JobPhase {
        switch job.phase {
        case .queued, .held: .queued
        case .reserving, .starting: .placing
        case .assigned: .reserved
        case .prefilling: .prefilling
        case .transferring: .transferring
        case .decoding(let residence):
            !residence.running ? .paused : residence.local && !residence.hasStepped ? .prefilling : .decoding
        }
    }
}
