import KVPaging
import Messages
import Scheduling
import ServingMetrics
import ServingTypes

/// Decides where every job runs and what its client sees. A value: events in, actions out; it reads
/// no clock and draws no random number, so one log of events always gives the same actions.
public struct Coordinator: Sendable {
    public let configuration: CoordinatorConfiguration
    let naming: (any PageNaming)?
    let placement: PlacementPolicy

    var now = Instant.zero
    var lastTick: Instant?
    var policy: SchedulingPolicy
    var costs = CostModel()
    var counters = CoordinatorCounters()
    /// Latencies and sizes of the jobs served.
    public internal(set) var histograms = ServingHistograms()

    var jobs = SlotTable<JobID, Job>(vacant: Job.vacant)
    var nextSequence: UInt64 = 0
    var queuedJobs = 0
    /// When to look at a job again.
    var jobTimers = KeyedHeap<JobID, JobTimer>()
    var holds = KeyedHeap<JobID, JobTimer>()
    var ended = EndedJobs()

    var workers: WorkerTable
    var inhibitions: [WorkerID: Inhibition] = [:]
    /// Oldest first, at most `workersMax`.
    var suspicions: [Suspicion] = []
    var index: PrefixIndex
    var tenants: [TenantID: TenantRecord] = [:]
    var idleTenants = KeyedHeap<TenantID, UInt64>()
    var tenantClock: UInt64 = 0

    /// Results of the event at hand.
    var actions: [CoordinatorAction] = []
    var mayPlace = false
    /// The waiting job that others give memory up for.
    var claim: Claim?
    var isClaimed = false
    var replans: [WorkerID] = []

    /// `naming` names the blocks of a resumed sequence beyond its prompt; without it a resumed job
    /// carries the names of its prompt only, and finds less of itself in caches.
    public init(configuration: CoordinatorConfiguration, naming: (any PageNaming)? = nil) {
        self.configuration = configuration
        self.naming = naming
        placement = PlacementPolicy(configuration.placement)
        policy = SchedulingPolicy(configuration.policy)
        index = PrefixIndex(entriesMax: configuration.indexedPagesMax)
        workers = WorkerTable(LaneRules(configuration))
    }

    /// Takes one event and says what is to be done, in order. Time never runs backwards here: an
    /// earlier `now` counts as the latest one seen.
    public mutating func handle(_ event: CoordinatorEvent, at now: Instant) -> [CoordinatorAction] {
        self.now = max(self.now, now)
        switch event {
        case .submitted(let submission): submit(submission)
        case .cancelled(let job, let reason): cancel(job, reason)
        case .stopMatched(let job, let outputTokens): stop(job, outputTokens: outputTokens)
        case .recovered(let submission, let attempt): recover(submission, attempt: attempt)
        case .workerUp(let worker, let register): workerUp(worker, register)
        case .workerDown(let worker): workerDown(worker)
        case .workerMessage(let worker, let message): receive(message, from: worker)
        case .drain(let worker, let deadline): drain(worker, deadline: deadline)
        case .tick: tick()
        }
        if mayPlace { placeWaiting() }
        replanRunning()
        defer { actions.removeAll(keepingCapacity: true) }
        return actions
    }

    // MARK: Small tools

    mutating func send(_ worker: WorkerRef, _ message: Message) {
        workers.amend(worker.id) { $0.lastSent = now }
        actions.append(.send(worker, message))
    }

    mutating func note(_ note: CoordinatorNote) { actions.append(.note(note)) }

    /// The worker, if this incarnation of it is the registered one.
    func current(_ ref: WorkerRef) -> Worker? {
        guard let worker = workers[ref.id], worker.ref == ref else { return nil }
        return worker
    }

    func isCurrent(_ ref: WorkerRef) -> Bool { workers.read(ref.id) { $0.ref == ref } ?? false }

    /// The job, if this is its current attempt.
    func current(_ transfer: TransferID) -> Job? {
        guard let job = jobs[transfer.job], job.attempt == transfer.attempt else { return nil }
        return job
    }

    func isCurrent(_ transfer: TransferID) -> Bool {
        jobs.read(transfer.job) { $0.attempt == transfer.attempt } ?? false
    }

    mutating func dropStale() { counters.staleMessagesDropped += 1 }

    /// Moves a job to a phase, and keeps the counts of waiting and running jobs.
    mutating func setPhase(_ id: JobID, _ phase: Phase) {
        let before = jobs.change(id) { job in
            defer { job.phase = phase }
            return (
                wasWaiting: job.phase.isWaiting, wasOnBridge: job.phase.isOnBridge, tenant: job.tenant,
                asked: job.phase.askedForRoom
            )
        }
        guard let (wasWaiting, wasOnBridge, tenant, asked) = before else { return }
        if let asked, phase.askedForRoom == nil { workers.change(asked.id) { $0.answered(id) } }
        if wasOnBridge != phase.isOnBridge { countBridge(id, entering: !wasOnBridge) }
        guard wasWaiting != phase.isWaiting else { return }
        let change = wasWaiting ? -1 : 1
        queuedJobs += change
        tenants[tenant]?.queued += change
        tenants[tenant]?.running -= change
    }

    /// Looks at the job no later than at its dispatch's due instant or its deadline. A timer that is set
    /// for earlier stays: when it fires it is set anew, and due instants mostly move on before that.
    mutating func setTimer(_ id: JobID) {
        let timer = jobs.changeOptional(id) { job -> JobTimer? in
            let at = job.dispatch.map { min($0.due, job.deadline) } ?? job.deadline
            guard at < job.timerAt else { return nil }
            job.timerAt = at
            return JobTimer(at: at, sequence: job.sequence)
        }
        if let timer { jobTimers.set(id, to: timer) }
    }

    mutating func expect(_ id: JobID, within span: TimeSpan) {
        let due = now + span
        jobs.change(id) { $0.dispatch?.due = due }
        setTimer(id)
    }

    mutating func needReplan(_ worker: WorkerID) {
        if !replans.contains(worker) { replans.append(worker) }
    }
}

/// Order by instant, ties by admission.
struct JobTimer: Comparable, Sendable {
    var at: Instant
    var sequence: UInt64

    static func < (a: JobTimer, b: JobTimer) -> Bool { (a.at, a.sequence) < (b.at, b.sequence) }
}
