import KVPaging
import Messages
import ServingTypes

/// Everything that a decode (or mixed) worker decides: what it holds for whom, which jobs the next
/// iteration runs, and when memory goes back. It reads no clock and does nothing itself.
///
/// The token that ends a job (a stop token, or the last of `maxTokens`) is part of its output; the
/// front door leaves a stop token out of the text. Stop tokens before `minTokens` are barred by
/// the sampler, so one that comes is an end.
public struct DecodeWorkerCore: Sendable {
    let configuration: DecodeConfiguration
    let naming: any PageNaming

    var now = Instant.zero
    var actions: [DecodeAction] = []

    var pool: BlockPool
    var jobs = SlotTable<TransferID, DecodeJob>(vacant: DecodeJob.vacant)
    /// All jobs by arrival.
    var arrivals: [TransferID] = []
    /// Decoding jobs in the order in which their turn comes.
    var turns: [TransferID] = []
    /// The attempt of each job that is held.
    var current: [JobID: TransferID] = [:]
    var nextOrder: UInt64 = 0
    var attempts = AttemptGuard()

    /// The host tier's books; jobs whose pages are not in the pool, as they left; pages under way.
    var host: HostTier
    var away: [TransferID] = []
    var moves: [Move] = []
    var nextTicket: UInt64 = 0
    var moveSeconds = MovingMean()
    var swapStall = TimeSpan.zero
    /// After a failure nothing is written out for a while.
    var swapRestsUntil: Instant?
    var swapRest = Limits.swapRestFirst
    /// A new order may bring one job back at the price of another.
    var mayExchange = false
    /// Blocks that admitted jobs brought, and that the last refused one wanted.
    var admittedBlocks = MovingMean()
    var wantedBlocks = 0
    /// Blocks that the coordinator would have for a job that waits.
    var claimedBlocks = 0
    /// Paused jobs that may take a slot that falls free, in order.
    var standby: [TransferID] = []

    /// Slots of given-up transfers that a receiver may still write.
    var fences: [TransferID: Fence] = [:]
    var links: [WorkerRef: PageLinkID] = [:]
    /// For repeats of an end, and for a P whose link broke before it heard.
    var commits = BoundedMemory<TransferID, TransferCommitted>(capacity: Limits.rememberedCommits)

    var underWay: [StepShare]?
    var iteration: UInt64 = 0
    var stepSeconds = MovingMean()
    var prefillRate = MovingMean()
    var pace = StepPace()

    var membership: WorkerMembership
    /// Steps for a coordinator that is away.
    var buffered: [TokenSteps] = []
    var bufferedTokens = 0
    /// Steps that were said lately, oldest first: a link that broke may have lost them.
    var saidLately = FrontQueue<SaidSteps>()
    public internal(set) var counters = DecodeCounters()

    struct Fence: Sendable {
        var slots: [BlockSlot]
        var acknowledge: Bool
    }

    struct Move: Sendable {
        var ticket: UInt64
        var transfer: TransferID
        var isOut: Bool
    }

    /// What one job has in the step under way.
    struct StepShare: Sendable {
        var transfer: TransferID
        var tokens: Int
        var samples: Bool
    }

    struct SaidSteps: Sendable {
        var at: Instant
        var steps: TokenSteps
    }

    enum Limits {
        static let rememberedCommits = 4096
        static let stepsSaidLately = 256
        /// How long nothing is written out after a failure: the first time, and at most.
        static let swapRestFirst = TimeSpan.milliseconds(500)
        static let swapRestMax = TimeSpan.seconds(60)
    }

    public init(configuration: DecodeConfiguration, naming: any PageNaming) {
        self.configuration = configuration
        self.naming = naming
        pool = BlockPool(blockCount: configuration.blockCount)
        host = HostTier(pages: max(configuration.swapPages, 0))
        membership = WorkerMembership(
            register: configuration.register, heartbeatEvery: configuration.heartbeatEvery,
            orphanGrace: configuration.orphanGrace)
    }

    // MARK: Events

    public mutating func handle(_ event: DecodeEvent, at now: Instant) -> [DecodeAction] {
        self.now = now
        switch event {
        case .coordinatorUp: coordinatorUp()
        case .coordinatorDown: membership.linkDown(at: now)
        case .coordinatorMessage(let message): receive(message)
        case .peerMessage(let link, let source, let message): receive(message, on: link, from: source)
        case .peerDown(let link, let source):
            if links[source] == link { links[source] = nil }
        case .pageLanded(let transfer, let block, _, let bytes, let crc): landed(transfer, block, bytes, crc)
        case .landingReleased(let transfer): landingReleased(transfer)
        case .stepFinished(let result): finishStep(result)
        case .swappedOut(let ticket, let outcome): wroteOut(ticket, outcome)
        case .swappedIn(let ticket, let outcome): readBack(ticket, outcome)
        case .tick: tick()
        }
        let started = fillSlots()
        if !started.isEmpty { emit([], started: started) }
        tendSwaps()
        startStep()
        if underWay == nil, !away.isEmpty {
            // Planning may have ended a job, and left its memory to one outside.
            tendSwaps()
            startStep()
        }
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
        case .reservePages(let order): reserve(order)
        case .startDecode(let order): start(order)
        case .setRunning(let plan): apply(plan)
        case .cancel(let order): cancel(order.transfer)
        case .leaseRenew(let renewal): renew(renewal.transfer, from: nil)
        case .hello, .helloAck, .register, .kvEvent, .drainDone, .reserveAck, .reserveNack, .startDecodeAck,
            .tokenSteps,
            .assignPrefill, .assignAck, .assignNack, .prefillProgress, .prefillDone, .pageOffer, .pageWant, .pagePush,
            .pageAck, .pageNack, .credit, .transferEnd, .transferCommitted, .transferFailed, .cancelAck:
            countStale()
        }
    }

    private mutating func receive(_ message: Message, on link: PageLinkID, from source: WorkerRef) {
        links[source] = link
        switch message {
        case .pageOffer(let offer): offered(offer, from: source)
        case .transferEnd(let end): transferEnded(end, from: source)
        case .leaseRenew(let renewal): renew(renewal.transfer, from: source)
        case .transferFailed(let failure): sourceGaveUp(failure.transfer, source)
        case .cancel(let order):
            sourceGaveUp(order.transfer, source)
            tell(source, .cancelAck(CancelAck(transfer: order.transfer)))
        case .hello, .helloAck, .register, .registerAck, .heartbeat, .kvEvent, .drain, .drainDone, .reservePages,
            .reserveAck, .reserveNack, .startDecode, .startDecodeAck, .setRunning, .tokenSteps, .assignPrefill,
            .assignAck, .assignNack, .prefillProgress, .prefillDone, .pageWant, .pagePush, .pageAck, .pageNack, .credit,
            .transferCommitted, .cancelAck:
            countStale()
        }
    }

    private mutating func tick() {
        if membership.becameOrphan(at: now) { abandonEverything() }
        if membership.drainIsDue(at: now) { handBackEverything() }
        expireLeases()
        guard membership.owesHeartbeat(at: now) else { return }
        let load = load
        if let beat = membership.heartbeat(at: now, load: load) { actions.append(.sendToCoordinator(beat)) }
    }

    // MARK: The coordinator's link

    private mutating func coordinatorUp() {
        _ = pool.takeChanges()
        forgetOldSteps()
        let waiting = saidLately.all.map(\.steps) + buffered
        for message in membership.linkUp(held: reportedTransfers(waiting), pages: pool.indexedPages, at: now) {
            actions.append(.sendToCoordinator(message))
        }
        for steps in waiting { actions.append(.sendToCoordinator(.tokenSteps(steps))) }
        for steps in buffered { remember(steps) }
        buffered.removeAll()
        bufferedTokens = 0
    }

    /// Held ones, and those that ended with nobody listening, or hardly: their last tokens are on the way.
    private func reportedTransfers(_ waiting: [TokenSteps]) -> [TransferID] {
        let ended = waiting.flatMap { $0.steps.filter { $0.end != nil }.map(\.transfer) }
        return Set(heldTransfers + ended).sorted()
    }

    /// What was said may still be on a link that is breaking; offsets make repeats harmless.
    private mutating func remember(_ steps: TokenSteps) {
        forgetOldSteps()
        saidLately.append(SaidSteps(at: now, steps: steps))
    }

    private mutating func forgetOldSteps() {
        while let oldest = saidLately.first {
            guard now - oldest.at > configuration.repeatWindow || saidLately.count >= Limits.stepsSaidLately
            else { return }
            saidLately.removeFirst()
        }
    }

    /// What C hears now or not at all: after a loss it asks anew for everything but tokens.
    mutating func tellCoordinator(_ message: Message) {
        if membership.isUp { actions.append(.sendToCoordinator(message)) }
    }

    mutating func tell(_ peer: WorkerRef, _ message: Message) {
        if let link = links[peer] { actions.append(.sendToPeer(link, message)) }
    }

    /// Tokens are never dropped: they wait for the coordinator.
    mutating func emit(_ steps: [TokenStep], computeTime: TimeSpan = .zero, started: [TransferID] = []) {
        guard !steps.isEmpty || membership.isUp && !started.isEmpty else { return }
        iteration += 1
        var message = TokenSteps(iteration: iteration, computeTime: computeTime, steps: steps)
        if membership.isUp {
            if !steps.isEmpty { remember(message) }
            // Of this moment only: what is told again after a link broke says nothing of room or slots.
            message.room = room
            message.started = started
            return actions.append(.sendToCoordinator(.tokenSteps(message)))
        }
        buffered.append(message)
        bufferedTokens += steps.reduce(0) { $0 + max($1.tokens.count, 1) }
    }

    /// Jobs and pool at once: two parts of the core that a job's memory ties together.
    @inline(__always) @discardableResult
    mutating func withPool<Result>(_ body: (inout SlotTable<TransferID, DecodeJob>, inout BlockPool) -> Result)
        -> Result
    {
        body(&jobs, &pool)
    }

    mutating func countStale() { counters.staleMessagesDropped &+= 1 }

    // MARK: Telling

    private var room: Room { Room(freeBlocks: admissible, freeHostPages: host.counts().free) }

    public var blockCounts: BlockCounts { pool.counts() }

    /// Pages of the host tier by state; the sum is its budget.
    public var swapCounts: SwapCounts { host.counts() }

    /// Transfers that are held in any way, ascending.
    public var heldTransfers: [TransferID] { (Array(jobs.keys) + Array(fences.keys)).sorted() }

    /// What the next heartbeat says.
    public var load: LoadReport {
        var report = LoadReport()
        for job in jobs.values {
            if job.isPrefilling { report.queuedTokens += job.tokens.count - job.computed }
            if job.isPaused { report.pausedJobs += 1 } else { report.runningJobs += 1 }
        }
        report.blocks = pool.counts()
        report.swap = host.counts()
        report.swapBytesOut = counters.swapBytesOut
        report.swapBytesIn = counters.swapBytesIn
        report.swapStall = swapStall
        report.stepsFinished = counters.stepsFinished
        report.stepTime = TimeSpan(seconds: stepSeconds.value)
        report.prefillTokensPerSecond = prefillRate.value
        report.pageBytesReceived = counters.pageBytesReceived
        report.staleMessagesDropped = counters.staleMessagesDropped
        return report
    }

    /// The first broken invariant, or nil.
    public func audit() -> String? {
        if let broken = pool.audit(tables: jobs.values.map(\.table)) { return broken }
        if Set(arrivals) != Set(jobs.keys) || arrivals.count != jobs.count { return "arrivals differ from jobs" }
        if arrivals.count > configuration.jobsMax { return "\(arrivals.count) jobs, \(configuration.jobsMax) allowed" }
        let decoding = Set(jobs.values.filter(\.isDecoding).map(\.transfer))
        if Set(turns) != decoding || turns.count != decoding.count { return "turns differ from decoding jobs" }
        let fenced = fences.values.reduce(0) { $0 + $1.slots.count }
        if fenced != pool.counts().fencing { return "\(pool.counts().fencing) slots fencing, \(fenced) known" }
        for job in jobs.values {
            if job.isInPool, job.computed > job.table.capacityTokens {
                return "\(job.transfer) computed beyond its blocks"
            }
            if job.isDecoding, job.computed != job.tokens.count - 1 { return "\(job.transfer) lost a position" }
            if job.isInStep != (underWay?.contains { $0.transfer == job.transfer } ?? false) {
                return "\(job.transfer) is wrong about the step under way"
            }
            if job.ending != nil, !job.isInStep, !job.isMoving { return "\(job.transfer) should have ended" }
        }
        return auditSwaps()
    }
}
