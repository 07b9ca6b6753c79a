import CoordinatorCore
import Messages
import ServingTypes

/// A way between two processes, whatever links use it.
enum PathKey: Hashable {
    case control(Int)
    case pages(Int, Int)
}

/// What is wrong with a way: instants until which it holds.
struct PathCondition {
    /// Everything is held back, per direction: away from the worker or source, and towards it.
    var heldOut: Int64 = 0
    var heldIn: Int64 = 0
    /// No new link comes about.
    var closedUntil: Int64 = 0
    /// Pages take this many times as long.
    var slowness = 1.0
    var slowUntil: Int64 = 0
}

/// Control links, as `ControlClient`, `ControlServer` and `CoordinatorLinks` keep them.
extension ClusterSimulation {
    /// When a message sent now arrives, behind those before it.
    func arrival(after last: Int64, heldUntil: Int64, onPageLink: Bool = false) -> Int64 {
        let jitter = configuration.network.jitter.nanoseconds
        let latency = (onPageLink ? configuration.network.pageLatency : nil) ?? configuration.network.latency
        let delay =
            latency.nanoseconds
            + (jitter > 0 ? Int64(random.within(0...Int(clamping: jitter))) : 0)
        var time = now + delay
        if heldUntil > now {
            witness("message.held")
            time = max(time, heldUntil + delay)
        }
        return max(time, last)
    }

    func condition(_ key: PathKey) -> PathCondition {
        conditions.isEmpty ? PathCondition() : conditions[key] ?? PathCondition()
    }

    // MARK: Coming up

    func connectControl(_ node: SimulatedNode) {
        guard node.control == nil else { return }
        let way = condition(.control(node.index))
        let connectWithin: Int64 = 2_000_000_000
        let blocked = max(way.closedUntil, max(way.heldIn, way.heldOut))
        if !isCoordinatorAlive || blocked > now + connectWithin {
            let wait = isCoordinatorAlive ? connectWithin : configuration.network.latency.nanoseconds * 2
            return retryControl(node, after: wait)
        }
        let link = ControlLink(id: controlLinks.count, node: node, coordinatorLife: coordinatorLife)
        controlLinks.append(link)
        node.control = link.id
        link.lastToCoordinator = arrival(after: 0, heldUntil: blocked)
        queue.add(.controlReachesCoordinator(link.id), at: link.lastToCoordinator)
    }

    private func retryControl(_ node: SimulatedNode, after wait: Int64) {
        let half = node.backoff / 2
        let pause = node.backoff - half + Int64(random.within(0...Int(half)))
        node.backoff = min(node.backoff * 2, SimulatedNode.backoffMax)
        queue.add(.connectControl(node: node.index, life: node.life), at: now + wait + pause)
    }

    /// Hello is there: a second link of an incarnation replaces the first.
    func controlReachesCoordinator(_ link: ControlLink, _ event: SimulationEvent) {
        guard !link.isCut, coordinatorTakes(event, life: link.coordinatorLife) else { return }
        if let older = links[link.ref] {
            let before = controlLinks[older]
            before.isUpAtCoordinator = false
            before.isCut = true
            queue.add(.controlEndsAtWorker(older), at: arrival(after: before.lastToWorker, heldUntil: 0))
            links[link.ref] = nil
            tell(.workerDown(link.ref))
        }
        links[link.ref] = link.id
        link.isUpAtCoordinator = true
        let held = condition(.control(link.node)).heldIn
        link.lastToWorker = arrival(after: link.lastToWorker, heldUntil: held)
        queue.add(.controlReachesWorker(link.id), at: link.lastToWorker)
    }

    /// HelloAck is there.
    func controlReachesWorker(_ link: ControlLink, _ event: SimulationEvent) {
        guard !link.isCut, let node = living(link.node, link.life, event), node.control == link.id else { return }
        link.isUpAtWorker = true
        node.backoff = SimulatedNode.backoffFirst
        note(node.id.name, "control link \(link.id) is up")
        perform(node, .coordinatorUp)
    }

    // MARK: Messages

    func sendToWorker(_ worker: WorkerRef, _ message: Message) {
        guard let id = links[worker] else { return }
        if case .setRunning(let plan) = message {
            paused.formUnion(plan.pause.map(\.job))
            paused.subtract(plan.run.map(\.job))
        }
        if configuration.audits { witnessPrompt(worker, message) }
        let link = controlLinks[id]
        note("coordinator", "-> \(worker.id)  \(Summary.of(message))")
        mark(link.node, Summary.code(of: message))
        guard !link.isCut else { return witness("message.lost") }
        for copy in 0..<copies(of: message) {
            if copy > 0 { witness("message.repeated") }
            link.lastToWorker = arrival(
                after: link.lastToWorker, heldUntil: condition(.control(link.node)).heldIn)
            queue.add(.messageToWorker(id, message), at: link.lastToWorker)
        }
    }

    func sendToCoordinator(_ node: SimulatedNode, _ message: Message) {
        guard let id = node.control, controlLinks[id].isUpAtWorker else { return }
        if configuration.audits {
            checkAccepted(node, message)
            witnessPool(message)
        }
        let link = controlLinks[id]
        note(node.id.name, "-> coordinator  \(Summary.of(message))")
        mark(node.index, Summary.code(of: message))
        guard !link.isCut else { return witness("message.lost") }
        for copy in 0..<copies(of: message) {
            if copy > 0 { witness("message.repeated") }
            link.lastToCoordinator = arrival(
                after: link.lastToCoordinator, heldUntil: condition(.control(link.node)).heldOut)
            queue.add(.messageToCoordinator(id, message), at: link.lastToCoordinator)
        }
    }

    /// A registration begins a session; every other control frame may come twice.
    private func copies(of message: Message) -> Int {
        if duplicatePercent == 0 { return 1 }
        if case .register = message { return 1 }
        return random.chance(duplicatePercent) ? 2 : 1
    }

    func messageToWorker(_ link: ControlLink, _ message: Message, _ event: SimulationEvent) {
        guard !link.isCut, let node = living(link.node, link.life, event), node.control == link.id else { return }
        if configuration.audits, let transfer = Self.renewed(by: message) { hear(node, transfer) }
        perform(node, .coordinatorMessage(message))
    }

    func messageToCoordinator(_ link: ControlLink, _ message: Message, _ event: SimulationEvent) {
        guard !link.isCut, link.isUpAtCoordinator, coordinatorTakes(event, life: link.coordinatorLife) else { return }
        switch message {
        case .drain(let drain): tell(.drain(link.ref.id, deadline: drain.deadline))
        case .register(let register): tell(.workerUp(link.ref, register))
        case .hello, .helloAck, .registerAck, .heartbeat, .kvEvent, .drainDone, .reservePages, .reserveAck,
            .reserveNack, .startDecode, .startDecodeAck, .setRunning, .tokenSteps, .assignPrefill, .assignAck,
            .assignNack, .prefillProgress, .prefillDone, .pageOffer, .pageWant, .pagePush, .pageAck, .pageNack,
            .credit, .transferEnd, .transferCommitted, .transferFailed, .leaseRenew, .cancel, .cancelAck:
            let stale = configuration.audits ? staleWords(message) : []
            emittedNow.removeAll(keepingCapacity: true)
            if case .tokenSteps(let steps) = message {
                paused.subtract(steps.started.map(\.job))
                configuration.reservation?.heard(steps)
            }
            tell(.workerMessage(link.ref, message))
            checkStale(stale, emitted: emittedNow)
            if case .tokenSteps = message { onIteration?(self) }
        }
    }

    // MARK: Going down

    /// The coordinator's core wants it gone.
    func closeControl(_ worker: WorkerRef) {
        guard let id = links[worker] else { return }
        cutControl(controlLinks[id], coordinatorNotices: 0, workerNotices: nil)
    }

    /// Nothing passes any more; each side notices in its time (nil: with the next message's delay).
    func cutControl(_ link: ControlLink, coordinatorNotices: Int64?, workerNotices: Int64?) {
        guard !link.isCut else { return }
        link.isCut = true
        let way = condition(.control(link.node))
        let atCoordinator = coordinatorNotices.map { now + $0 } ?? arrival(after: now, heldUntil: way.heldOut)
        let atWorker = workerNotices.map { now + $0 } ?? arrival(after: now, heldUntil: way.heldIn)
        queue.add(.controlEndsAtCoordinator(link.id), at: atCoordinator)
        queue.add(.controlEndsAtWorker(link.id), at: atWorker)
    }

    func controlEndsAtCoordinator(_ link: ControlLink, _ event: SimulationEvent) {
        guard link.isUpAtCoordinator, coordinatorTakes(event, life: link.coordinatorLife) else { return }
        link.isUpAtCoordinator = false
        guard links[link.ref] == link.id else { return }
        links[link.ref] = nil
        note("coordinator", "control link of \(link.ref) is lost")
        tell(.workerDown(link.ref))
    }

    func controlEndsAtWorker(_ link: ControlLink, _ event: SimulationEvent) {
        guard let node = living(link.node, link.life, event), node.control == link.id else { return }
        let wasUp = link.isUpAtWorker
        link.isUpAtWorker = false
        node.control = nil
        retryControl(node, after: 0)
        guard wasUp else { return }
        note(node.id.name, "control link \(link.id) is lost")
        perform(node, .coordinatorDown)
    }
}
