import CoordinatorCore
import DecodeCore
import KVPaging
import Messages
import PrefillCore
import ServingTypes

/// A whole cluster on virtual time: the production cores, driven as `Hosting` drives them, joined by
/// a seeded network. One thread, no clock; the same configuration and requests give the same
/// run, event by event.
public final class ClusterSimulation {
    let configuration: SimulationConfiguration
    var random: SimulationRandom
    /// Nanoseconds of virtual time.
    var now: Int64 = 0
    var queue = EventQueue<SimulationEvent>()
    public private(set) var eventCount: UInt64 = 0
    /// Events at most; a run of the fault model takes some two thousand.
    var eventsMax = UInt64.max
    /// The first broken promise.
    public private(set) var failure: String?
    /// Running hash over everything that was sent: equal runs have equal digests.
    public internal(set) var digest: UInt64 = 0
    /// Called with a line per event, where somebody reads along.
    public var onTrace: ((String) -> Void)?

    var coordinator: Coordinator
    var coordinatorLife = 0
    var isCoordinatorAlive = false
    var coordinatorFrozenUntil: Int64 = 0
    var coordinatorClock: SimulatedClock
    var deferredForCoordinator: [SimulationEvent] = []
    /// Events that came up while an event was being handled: the core is never re-entered.
    var waitingForCoordinator: [CoordinatorEvent] = []
    var isCoordinatorBusy = false
    /// The live link of each incarnation, and whose link each is.
    var links: [WorkerRef: Int] = [:]

    var nodes: [SimulatedNode] = []
    var nodeOfName: [WorkerID: Int] = [:]
    var controlLinks: [ControlLink] = []
    var pageLinks: [PageLink] = []
    /// What is wrong with a way between two processes; empty while nothing is.
    var conditions: [PathKey: PathCondition] = [:]
    var corruptPercent = 0
    var duplicatePercent = 0
    /// A receiver that checks nothing: the engine's reading must notice. For tests of the checks.
    var takesCorruptPages = false
    /// What happened, by name: a fault that never struck proves nothing.
    var witnessed: [String: Int] = [:]

    /// Draws the next request of the workload; nil at its end.
    var nextRequest: () -> SimulatedRequest?
    var pendingRequest: SimulatedRequest?
    var jobs: [JobID: SimulatedJob] = [:]
    var jobCount = 0
    var endedJobs = 0
    var isWorkloadOver = false
    var onEnd: (SimulatedJob, JobOutcome) -> Void = { _, _ in }
    /// Who a job's tenant is, for checks that outlive the job; of runs with audits.
    var owners: [JobID: UInt32] = [:]
    /// Jobs that got tokens from the message at hand.
    var emittedNow: Set<JobID> = []
    /// Resident jobs that the last plan of their worker has paused.
    var paused: Set<JobID> = []
    /// Called after the coordinator has taken a decoding worker's iteration.
    var onIteration: ((ClusterSimulation) -> Void)?
    var books = ChargeBooks()
    var host = HostLoad()

    public init(_ configuration: SimulationConfiguration, requests: @escaping () -> SimulatedRequest?) {
        self.configuration = configuration
        random = SimulationRandom(seed: configuration.seed)
        nextRequest = requests
        coordinator = Coordinator(configuration: configuration.coordinator, naming: configuration.naming)
        coordinatorClock = configuration.clocks.clock(configuration.workers.count)
        var numbers: [WorkerRole: Int] = [:]
        for shape in configuration.workers {
            let number = numbers[shape.role, default: 0]
            numbers[shape.role] = number + 1
            let node = SimulatedNode(
                index: nodes.count, name: "\(shape.role.rawValue)-\(number)", shape: shape,
                configuration: configuration)
            nodes.append(node)
            nodeOfName[node.id] = node.index
        }
    }

    /// Starts every process and the workload.
    func begin() {
        startCoordinator()
        for node in nodes { startWorker(node) }
        scheduleArrival()
    }

    /// Handles one event. False where none is left or a promise was broken.
    func step() -> Bool {
        guard failure == nil, let (time, event) = queue.removeFirst() else { return false }
        now = max(now, time)
        eventCount += 1
        if eventCount >= eventsMax { fail("\(eventCount) events: a storm of messages") }
        handle(event)
        return failure == nil
    }

    /// What the coordinator's clock, or a worker's, reads now.
    var coordinatorInstant: Instant { Instant(nanoseconds: coordinatorClock.reading(at: now)) }
    func instant(of node: SimulatedNode) -> Instant { Instant(nanoseconds: node.clock.reading(at: now)) }
    public var virtualSeconds: Double { Double(now) / 1e9 }

    func fail(_ message: String) {
        guard failure == nil else { return }
        failure = "at \(now / 1000) us: \(message)"
        note("BROKEN", message)
    }

    /// A fault of a workload, at an instant of virtual time.
    func plan(_ fault: WorkloadFault, atSeconds seconds: Double) {
        switch fault {
        case .crash(let worker, let restart):
            guard let node = nodeOfName[WorkerID(worker)] else { return }
            queue.add(
                .fault(.kill(node: node, restartAfter: TimeSpan(seconds: restart))),
                at: TimeSpan(seconds: seconds).nanoseconds)
        }
    }

    func witness(_ name: String, _ count: Int = 1) { witnessed[name, default: 0] += count }

    func note(_ actor: String, _ text: @autoclosure () -> String) {
        guard let onTrace else { return }
        let microseconds = String(now / 1000)
        let padding = String(repeating: " ", count: max(0, 10 - microseconds.utf8.count))
        let gap = String(repeating: " ", count: max(1, 12 - actor.utf8.count))
        onTrace("\(padding)\(microseconds) us  \(actor)\(gap)\(text())")
    }

    /// Everything observable goes into the digest.
    func mark(_ a: Int, _ b: UInt64 = 0) {
        digest = Hashing.fold(Hashing.fold(digest, UInt64(bitPattern: now)), UInt64(bitPattern: Int64(a)) ^ b)
    }

    func after(_ span: TimeSpan, _ event: SimulationEvent) { queue.add(event, at: now + max(span.nanoseconds, 0)) }

    // MARK: Dispatch

    private func handle(_ event: SimulationEvent) {
        switch event {
        case .coordinatorTick(let life): coordinatorTick(event, life)
        case .workerTick(let node, let life):
            guard let node = living(node, life, event) else { return }
            perform(node, .tick)
            if configuration.audits { checkLeases(node) }
            after(configuration.tick, event)
        case .connectControl(let node, let life):
            if let node = living(node, life, event) { connectControl(node) }
        case .controlReachesCoordinator(let id): controlReachesCoordinator(controlLinks[id], event)
        case .controlReachesWorker(let id): controlReachesWorker(controlLinks[id], event)
        case .controlEndsAtCoordinator(let id): controlEndsAtCoordinator(controlLinks[id], event)
        case .controlEndsAtWorker(let id): controlEndsAtWorker(controlLinks[id], event)
        case .messageToCoordinator(let id, let message): messageToCoordinator(controlLinks[id], message, event)
        case .messageToWorker(let id, let message): messageToWorker(controlLinks[id], message, event)
        case .pageLinkUp(let id): pageLinkUp(pageLinks[id], event)
        case .pageLinkReachesTarget(let id): pageLinkReachesTarget(pageLinks[id], event)
        case .pageLinkFails(let id): pageLinkEndsAtSource(pageLinks[id], event)
        case .pageLinkEndsAtSource(let id): pageLinkEndsAtSource(pageLinks[id], event)
        case .pageLinkEndsAtTarget(let id): pageLinkEndsAtTarget(pageLinks[id], event)
        case .senderDone(let id): senderDone(pageLinks[id], event)
        case .pageBegins(let id, let transfer, let block): pageBegins(pageLinks[id], transfer, block, event)
        case .pageArrives(let id, let page): pageArrives(pageLinks[id], page, event)
        case .messageToTarget(let id, let message): messageToTarget(pageLinks[id], message, event)
        case .messageToSource(let id, let message): messageToSource(pageLinks[id], message, event)
        case .pushingStopped(let node, let life, let transfer):
            if let node = living(node, life, event) { perform(prefill: node, .pushingStopped(transfer)) }
        case .landingReleased(let node, let life, let transfer):
            if let node = living(node, life, event) { perform(decode: node, .landingReleased(transfer)) }
        case .swapDone(let node, let life, let move):
            if let node = living(node, life, event) { swapDone(node, move) }
        case .stepFinished(let node, let life, let step):
            if let node = living(node, life, event) { finishStep(node, step) }
        case .arrival: arrive()
        case .submission(let number): resubmit(number)
        case .cancellation(let number): cancelByClient(number)
        case .startCoordinator: startCoordinator()
        case .startWorker(let node): startWorker(nodes[node])
        case .exit(let node, let life):
            guard let node = living(node, life, event) else { return }
            die(node, silently: false)
            after(.milliseconds(300), .startWorker(node.index))
        case .thaw(let node): thaw(nodes[node])
        case .thawCoordinator: thawCoordinator()
        case .fault(let fault): strike(fault)
        }
    }

    /// The node, if that process still runs; an event for a frozen one waits for its thaw.
    func living(_ index: Int, _ life: Int, _ event: SimulationEvent) -> SimulatedNode? {
        let node = nodes[index]
        guard node.isAlive, node.life == life else { return nil }
        guard node.frozenUntil <= now else {
            node.deferred.append(event)
            return nil
        }
        return node
    }

    /// Whether the coordinator can take this now; else the event waits, or is nobody's.
    func coordinatorTakes(_ event: SimulationEvent, life: Int) -> Bool {
        guard isCoordinatorAlive, coordinatorLife == life else { return false }
        guard coordinatorFrozenUntil <= now else {
            deferredForCoordinator.append(event)
            return false
        }
        return true
    }

    // MARK: The coordinator

    func startCoordinator() {
        guard !isCoordinatorAlive else { return }
        isCoordinatorAlive = true
        coordinatorLife += 1
        coordinatorFrozenUntil = 0
        if coordinatorLife > 1 {
            coordinator = Coordinator(configuration: configuration.coordinator, naming: configuration.naming)
        }
        books = ChargeBooks()
        links = [:]
        note("coordinator", "process starts")
        recoverJobs()
        after(configuration.tick, .coordinatorTick(life: coordinatorLife))
    }

    private func coordinatorTick(_ event: SimulationEvent, _ life: Int) {
        guard coordinatorTakes(event, life: life) else { return }
        tell(.tick)
        after(configuration.tick, event)
    }

    /// One event to the core, and whatever its actions bring about, in order.
    func tell(_ event: CoordinatorEvent) {
        waitingForCoordinator.append(event)
        guard !isCoordinatorBusy else { return }
        isCoordinatorBusy = true
        defer { isCoordinatorBusy = false }
        var next = 0
        while next < waitingForCoordinator.count, failure == nil {
            let event = waitingForCoordinator[next]
            next += 1
            for action in coordinator.handle(event, at: coordinatorInstant) { perform(action) }
        }
        waitingForCoordinator.removeAll(keepingCapacity: true)
        if configuration.audits { checkOutputCharges() }
    }

    private func perform(_ action: CoordinatorAction) {
        switch action {
        case .send(let worker, let message): sendToWorker(worker, message)
        case .closeLink(let worker): closeControl(worker)
        case .jobAdmitted(let job): admitted(job)
        case .jobRefused(let job, let error): refused(job, error)
        case .emit(let job, let offset, let tokens): emitted(job, offset, tokens)
        case .jobFinished(let outcome): finished(outcome)
        case .workerDrained(let worker): drained(worker)
        case .note(let text): noted(text)
        }
    }

    /// The supervisor stops the process of a drained worker, if it has not left by itself.
    private func drained(_ worker: WorkerID) {
        note("coordinator", "\(worker) is drained")
        guard let index = nodeOfName[worker] else { return }
        after(.milliseconds(200), .exit(node: index, life: nodes[index].life))
    }

    private func noted(_ edge: CoordinatorNote) {
        note("coordinator", "\(edge)")
        switch edge {
        case .workerLost: witness("worker.lost")
        case .workerSuspected: witness("worker.suspected")
        case .workerStalled: witness("worker.stalled")
        case .jobRequeued(let transfer, _):
            paused.remove(transfer.job)
            witness("job.requeued")
        case .jobPoisoned: witness("job.poisoned")
        case .transferFailed(_, let reason): witness("transfer.failed.\(reason.rawValue)")
        case .workerJoined: break
        }
    }

    // MARK: Workers

    func startWorker(_ node: SimulatedNode) {
        guard !node.isAlive else { return }
        node.start(epoch: random.next() | 1, configuration: configuration)
        note(node.id.name, "process starts as \(node.ref)")
        after(.zero, .connectControl(node: node.index, life: node.life))
        after(firstTick(node.index), .workerTick(node: node.index, life: node.life))
    }

    /// Ticks of many workers do not come at one instant.
    private func firstTick(_ index: Int) -> TimeSpan {
        let step = configuration.tick.nanoseconds / Int64(max(nodes.count, 1))
        return TimeSpan(nanoseconds: configuration.tick.nanoseconds + step * Int64(index))
    }

    enum WorkerEvent {
        case tick
        case coordinatorUp
        case coordinatorDown
        case coordinatorMessage(Message)
        case stepFinished(StepResult)
    }

    /// Events that both roles know.
    func perform(_ node: SimulatedNode, _ event: WorkerEvent) {
        if node.prefill != nil {
            switch event {
            case .tick: perform(prefill: node, .tick)
            case .coordinatorUp: perform(prefill: node, .coordinatorUp)
            case .coordinatorDown: perform(prefill: node, .coordinatorDown)
            case .coordinatorMessage(let message): perform(prefill: node, .coordinatorMessage(message))
            case .stepFinished(let result): perform(prefill: node, .stepFinished(result))
            }
        } else {
            switch event {
            case .tick: perform(decode: node, .tick)
            case .coordinatorUp: perform(decode: node, .coordinatorUp)
            case .coordinatorDown: perform(decode: node, .coordinatorDown)
            case .coordinatorMessage(let message): perform(decode: node, .coordinatorMessage(message))
            case .stepFinished(let result): perform(decode: node, .stepFinished(result))
            }
        }
    }

    func perform(prefill node: SimulatedNode, _ event: PrefillEvent) {
        guard let actions = node.prefill?.handle(event, at: instant(of: node)) else { return }
        if case .tick = event, actions.isEmpty { return }
        audit(node)
        for action in actions {
            switch action {
            case .sendToCoordinator(let message): sendToCoordinator(node, message)
            case .connectPeer(let worker, _, _, let path): connectPages(node, worker, path)
            case .releasePeer(let worker): releasePages(node, worker)
            case .sendToPeer(let worker, let transfer, let message):
                enqueue(node, worker, .message(transfer, message))
            case .pushPages(let worker, let transfer, let pages):
                for page in pages {
                    enqueue(node, worker, .page(transfer, page, node.engine.slots[Int(page.slot.index)]))
                }
            case .stopPushing(let worker, let transfer): stopPushing(node, worker, transfer)
            case .runStep(let batch): runStep(node, batch)
            case .exitAfterDrain: exitSoon(node)
            }
        }
    }

    func perform(decode node: SimulatedNode, _ event: DecodeEvent) {
        guard let actions = node.decode?.handle(event, at: instant(of: node)) else { return }
        if case .tick = event, actions.isEmpty { return }
        audit(node)
        for action in actions {
            switch action {
            case .sendToCoordinator(let message): sendToCoordinator(node, message)
            case .sendToPeer(let link, let message): sendToSource(node, link, message)
            case .openLanding(let transfer, let source, let slots): openLanding(node, transfer, source, slots)
            case .closeLanding(let transfer): closeLanding(node, transfer)
            case .runStep(let batch): runStep(node, batch)
            case .swapOut(let order): swapOut(node, order)
            case .swapIn(let order): swapIn(node, order)
            case .exitAfterDrain: exitSoon(node)
            }
        }
    }

    private func audit(_ node: SimulatedNode) {
        guard configuration.audits else { return }
        if let broken = node.audit() { fail("\(node.id): \(broken)") }
        let counts = node.blockCounts
        if counts.total != node.shape.blockCount { fail("\(node.id): blocks are not conserved: \(counts)") }
        let swap = node.swapCounts
        if node.decode != nil, swap.total != node.shape.swapPages {
            fail("\(node.id): the host tier is not conserved: \(swap)")
        }
    }

    private func exitSoon(_ node: SimulatedNode) {
        note(node.id.name, "drained, leaves")
        witness("worker.drained")
        after(.milliseconds(100), .exit(node: node.index, life: node.life))
    }

    /// A slot that a receiver may still write has no other user (I1).
    func checkNobodyWrites(_ node: SimulatedNode, _ batch: StepBatch) {
        for entry in batch.entries {
            for slot in entry.blockTable where node.writable[Int(slot.index)] > 0 {
                fail("\(node.id): the step of \(entry.transfer) uses slot \(slot), which pages may still land in")
            }
        }
    }
}
