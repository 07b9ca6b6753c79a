import KVPaging
import Messages
import ServingTypes

/// Everything that a prefill worker decides: which prompts the next step computes, which pages
/// leave for whom, and when memory goes back. It reads no clock and does nothing itself.
///
/// A job whose first token is its last one is transferred like any other: the coordinator knows
/// from `PrefillDone` that it has ended, and cancels the transfer.
public struct PrefillWorkerCore: Sendable {
    let configuration: PrefillConfiguration
    let naming: any PageNaming

    var now = Instant.zero
    var actions: [PrefillAction] = []

    var pool: BlockPool
    var jobs = SlotTable<TransferID, PrefillJob>(vacant: PrefillJob.vacant)
    /// All jobs by arrival; they are computed in this order.
    var arrivals: [TransferID] = []
    var current: [JobID: TransferID] = [:]
    var attempts = AttemptGuard()
    /// Blocks of given-up transfers that a sender may still read.
    var fences: [TransferID: Fence] = [:]
    var peers = PeerTable()

    var underWay: [StepShare]?
    /// Grows with every sign of progress; a lease is not renewed without.
    var progress: UInt64 = 0
    var stepSeconds = MovingMean()
    var prefillRate = MovingMean()
    var membership: WorkerMembership
    public internal(set) var counters = PrefillCounters()

    struct Fence: Sendable {
        var table: BlockTable
        var target: WorkerRef
        var acknowledge: Bool
    }

    struct StepShare: Sendable {
        var transfer: TransferID
        var tokens: Int
        var samples: Bool
    }

    public init(configuration: PrefillConfiguration, naming: any PageNaming) {
        self.configuration = configuration
        self.naming = naming
        pool = BlockPool(blockCount: configuration.blockCount)
        membership = WorkerMembership(
            register: configuration.register, heartbeatEvery: configuration.heartbeatEvery,
            orphanGrace: configuration.orphanGrace)
    }

    // MARK: Events

    public mutating func handle(_ event: PrefillEvent, at now: Instant) -> [PrefillAction] {
        self.now = now
        switch event {
        case .coordinatorUp: coordinatorUp()
        case .coordinatorDown: membership.linkDown(at: now)
        case .coordinatorMessage(let message): receive(message)
        case .peerUp(let worker): peerUp(worker)
        case .peerDown(let worker): peerDown(worker)
        case .peerMessage(let worker, let message): receive(message, from: worker)
        case .pageSent(let worker, let transfer, let block, let bytes, let crc):
            pageSent(worker, transfer, block, bytes, crc)
        case .pushingStopped(let transfer): openFence(transfer)
        case .stepFinished(let result): finishStep(result)
        case .tick: tick()
        }
        startStep()
        for event in membership.events(pool.takeChanges()) { actions.append(.sendToCoordinator(event)) }
        finishDrain()
        defer { actions.removeAll() }
        return actions
    }

    private mutating func receive(_ message: Message) {
        switch message {
        case .registerAck(let ack): membership.registered(ack)
        case .heartbeat: break
        case .drain(let order): membership.beginDrain(within: order.deadline, at: now)
        case .assignPrefill(let order): assign(order)
        case .cancel(let order): cancel(order.transfer)
        case .hello, .helloAck, .register, .kvEvent, .drainDone, .reservePages, .reserveAck, .reserveNack, .startDecode,
            .startDecodeAck, .setRunning, .tokenSteps, .assignAck, .assignNack, .prefillProgress, .prefillDone,
            .pageOffer, .pageWant, .pagePush, .pageAck, .pageNack, .credit, .transferEnd, .transferCommitted,
            .transferFailed, .leaseRenew, .cancelAck:
            countStale()
        }
    }

    private mutating func receive(_ message: Message, from worker: WorkerRef) {
        if let index = peerIndex(worker), peers[index].failures > 0 { peers[index].failures = 0 }
        switch message {
        case .pageWant(let want): wanted(want, by: worker)
        case .pageAck(let ack): acknowledged(ack, by: worker)
        case .pageNack(let nack): refused(nack, by: worker)
        case .credit(let credit): credited(credit, by: worker)
        case .transferCommitted(let commit): committed(commit, by: worker)
        case .transferFailed(let failure): targetGaveUp(failure, worker)
        case .leaseRenew, .cancelAck: break
        case .hello, .helloAck, .register, .registerAck, .heartbeat, .kvEvent, .drain, .drainDone, .reservePages,
            .reserveAck, .reserveNack, .startDecode, .startDecodeAck, .setRunning, .tokenSteps, .assignPrefill,
            .assignAck, .assignNack, .prefillProgress, .prefillDone, .pageOffer, .pagePush, .transferEnd, .cancel:
            countStale()
        }
    }

    private mutating func tick() {
        if membership.becameOrphan(at: now) {
            for transfer in arrivals { drop(transfer, acknowledge: false) }
        }
        if membership.drainIsDue(at: now) {
            for transfer in arrivals { fail(transfer, .targetRefused) }
        }
        expireLeases()
        renewLeases()
        tendPeers()
        guard membership.owesHeartbeat(at: now) else { return }
        let load = load
        if let beat = membership.heartbeat(at: now, load: load) { actions.append(.sendToCoordinator(beat)) }
    }

    private mutating func coordinatorUp() {
        _ = pool.takeChanges()
        for message in membership.linkUp(held: heldTransfers, pages: pool.indexedPages, at: now) {
            actions.append(.sendToCoordinator(message))
        }
    }

    /// What C hears now or not at all: after a loss it asks anew for everything.
    mutating func tellCoordinator(_ message: Message) {
        if membership.isUp { actions.append(.sendToCoordinator(message)) }
    }

    mutating func countStale() { counters.staleMessagesDropped &+= 1 }

    private mutating func finishDrain() {
        guard membership.isDraining, jobs.isEmpty, fences.isEmpty, underWay == nil, membership.finishDrain() else {
            return
        }
        tellCoordinator(.drainDone(DrainDone()))
        actions.append(.exitAfterDrain)
    }

    // MARK: Telling

    public var blockCounts: BlockCounts { pool.counts() }

    /// Transfers that are held in any way, ascending.
    public var heldTransfers: [TransferID] { (Array(jobs.keys) + Array(fences.keys)).sorted() }

    /// What the next heartbeat says.
    public var load: LoadReport {
        var report = LoadReport()
        for job in jobs.values { report.queuedTokens += job.order.tokens.count - job.computed }
        report.runningJobs = jobs.count
        report.blocks = pool.counts()
        report.stepsFinished = counters.stepsFinished
        report.stepTime = TimeSpan(seconds: stepSeconds.value)
        report.prefillTokensPerSecond = prefillRate.value
        report.pageBytesSent = counters.pageBytesSent
        report.staleMessagesDropped = counters.staleMessagesDropped
        return report
    }

    /// The first broken invariant, or nil.
    public func audit() -> String? {
        if let broken = pool.audit(tables: jobs.values.map(\.table) + fences.values.map(\.table)) { return broken }
        if Set(arrivals) != Set(jobs.keys) || arrivals.count != jobs.count { return "arrivals differ from jobs" }
        if arrivals.count > configuration.jobsMax { return "\(arrivals.count) jobs, \(configuration.jobsMax) allowed" }
        if let broken = peers.audit() { return broken }
        for job in jobs.values {
            if job.computed > job.table.capacityTokens { return "\(job.transfer) computed beyond its blocks" }
            if job.isInStep != (underWay?.contains { $0.transfer == job.transfer } ?? false) {
                return "\(job.transfer) is wrong about the step under way"
            }
            if job.ending != nil, !job.isInStep { return "\(job.transfer) should have ended" }
            if job.isQueued, !job.table.slots.isEmpty { return "\(job.transfer) is queued and holds blocks" }
            if job.ending == nil, peerIndex(job.target) == nil { return "\(job.transfer) has no peer" }
            for page in job.outgoing.pages where page.state != .waiting {
                let end = min((Int(page.block) + 1) * configuration.blockTokens, job.order.tokens.count)
                if end > job.computed { return "\(job.transfer) offers block \(page.block) before it is computed" }
            }
        }
        return nil
    }
}
