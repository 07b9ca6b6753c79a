import ServingTypes

/// What can go wrong, with all its data, so that a plan of faults is a value.
enum Fault {
    /// SIGKILL; the supervisor starts the process anew.
    case kill(node: Int, restartAfter: TimeSpan)
    /// The machine is gone: nobody is told.
    case vanish(node: Int, restartAfter: TimeSpan)
    /// SIGSTOP, later SIGCONT.
    case freeze(node: Int, span: TimeSpan)
    case freezeCoordinator(span: TimeSpan)
    case crashCoordinator(restartAfter: TimeSpan)
    case cutControl(node: Int)
    /// Bytes are held, one way or both; new links are not made.
    case holdControl(node: Int, span: TimeSpan, outward: Bool, inward: Bool)
    case cutPages(source: Int, target: Int)
    case holdPages(source: Int, target: Int, span: TimeSpan, outward: Bool, inward: Bool)
    case slowPages(source: Int, target: Int, slowness: Double, span: TimeSpan)
    case corruptPages(percent: Int)
    case repeatFrames(percent: Int)
    case drain(node: Int, deadline: TimeSpan)
    /// The reading of a machine's clock jumps, forward or back; a nil node is the coordinator's machine.
    case stepClock(node: Int?, by: TimeSpan)
    /// The machine sleeps, and its clock stands still meanwhile.
    case suspend(node: Int?, span: TimeSpan)
    /// The end of all of it.
    case heal
}

extension ClusterSimulation {
    func strike(_ fault: Fault) {
        note("fault", "\(fault)")
        switch fault {
        case .kill(let node, let span): kill(nodes[node], silently: false, restartAfter: span)
        case .vanish(let node, let span): kill(nodes[node], silently: true, restartAfter: span)
        case .freeze(let node, let span): freeze(nodes[node], span)
        case .freezeCoordinator(let span): freezeCoordinator(span)
        case .crashCoordinator(let span): crashCoordinator(span)
        case .cutControl(let node): cutControlOf(nodes[node])
        case .holdControl(let node, let span, let outward, let inward):
            witness("fault.holdControl")
            hold(.control(node), span, outward, inward)
        case .cutPages(let source, let target): cutPagesBetween(source, target)
        case .holdPages(let source, let target, let span, let outward, let inward):
            witness("fault.holdPages")
            hold(.pages(source, target), span, outward, inward)
        case .slowPages(let source, let target, let slowness, let span):
            witness("fault.slowPages")
            conditions[.pages(source, target), default: PathCondition()].slowness = slowness
            conditions[.pages(source, target), default: PathCondition()].slowUntil = now + span.nanoseconds
        case .corruptPages(let percent): corruptPercent = percent
        case .repeatFrames(let percent): duplicatePercent = percent
        case .drain(let node, let deadline): drain(nodes[node], deadline)
        case .stepClock(let node, let span): stepClock(node.map { nodes[$0] }, span)
        case .suspend(let node, let span): suspend(node.map { nodes[$0] }, span)
        case .heal: heal()
        }
    }

    // MARK: Processes

    private func kill(_ node: SimulatedNode, silently: Bool, restartAfter span: TimeSpan) {
        guard node.isAlive else { return }
        let name = silently ? "fault.vanish" : "fault.kill"
        witness(node.heldTransfers.isEmpty ? "\(name).idle" : "\(name).busy")
        die(node, silently: silently)
        after(span, .startWorker(node.index))
    }

    func die(_ node: SimulatedNode, silently: Bool) {
        note(node.id.name, "process \(node.ref) ends")
        node.isAlive = false
        node.clock.wake(at: now)
        node.deferred = []
        node.landings = [:]
        if let id = node.control { loseControl(controlLinks[id], silently) }
        node.control = nil
        for link in pageLinks where !link.isCut {
            let isSource = link.source == node.index && link.sourceLife == node.life
            let isTarget = link.targetRef == node.ref
            guard isSource || isTarget else { continue }
            if silently {
                cutPages(
                    link, sourceNotices: Silence.keepAlive,
                    targetNotices: isInside(link) ? Silence.minimumProgress : Silence.keepAlive)
            } else {
                cutPages(link, sourceNotices: notice(), targetNotices: notice())
            }
        }
    }

    /// How long a page link waits for a peer that says nothing: inside a frame, and between frames
    /// (`PageLinkConfiguration`, TCP keep-alive).
    private enum Silence {
        static let minimumProgress: Int64 = 5_000_000_000
        static let keepAlive: Int64 = 25_000_000_000
    }

    private func isInside(_ link: PageLink) -> Bool {
        nodes[link.target].landings.values.contains { $0.inside?.link == link.id }
    }

    private func loseControl(_ link: ControlLink, _ silently: Bool) {
        if silently {
            link.isCut = true
        } else {
            cutControl(link, coordinatorNotices: notice(), workerNotices: notice())
        }
    }

    /// How long until the other side's kernel says so.
    private func notice() -> Int64 { Int64(random.within(0...3_000_000)) }

    private func freeze(_ node: SimulatedNode, _ span: TimeSpan) {
        guard node.isAlive, node.frozenUntil <= now else { return }
        witness(node.heldTransfers.isEmpty ? "fault.freeze.idle" : "fault.freeze.busy")
        node.frozenUntil = now + span.nanoseconds
        after(span, .thaw(node.index))
    }

    func thaw(_ node: SimulatedNode) {
        guard node.isAlive, node.frozenUntil <= now else { return }
        node.clock.wake(at: now)
        let waiting = node.deferred
        node.deferred = []
        if !waiting.isEmpty { note(node.id.name, "goes on; \(waiting.count) events waited") }
        for event in waiting { queue.add(event, at: now) }
    }

    private func freezeCoordinator(_ span: TimeSpan) {
        guard isCoordinatorAlive, coordinatorFrozenUntil <= now else { return }
        witness("fault.freezeCoordinator")
        coordinatorFrozenUntil = now + span.nanoseconds
        after(span, .thawCoordinator)
    }

    func thawCoordinator() {
        guard isCoordinatorAlive, coordinatorFrozenUntil <= now else { return }
        coordinatorClock.wake(at: now)
        let waiting = deferredForCoordinator
        deferredForCoordinator = []
        for event in waiting { queue.add(event, at: now) }
    }

    private func crashCoordinator(_ span: TimeSpan) {
        guard isCoordinatorAlive else { return }
        witness(jobs.isEmpty ? "fault.crashCoordinator.idle" : "fault.crashCoordinator.busy")
        isCoordinatorAlive = false
        coordinatorClock.wake(at: now)
        deferredForCoordinator = []
        links = [:]
        for link in controlLinks where !link.isCut {
            link.isUpAtCoordinator = false
            cutControl(link, coordinatorNotices: 0, workerNotices: notice())
        }
        for link in pageLinks where link.isRelayed && !link.isCut {
            cutPages(link, sourceNotices: notice(), targetNotices: notice())
        }
        after(span, .startCoordinator)
    }

    private func drain(_ node: SimulatedNode, _ deadline: TimeSpan) {
        guard node.isAlive, isCoordinatorAlive, coordinatorFrozenUntil <= now, coordinator.worker(node.id) != nil else {
            return
        }
        witness(node.heldTransfers.isEmpty ? "fault.drain.idle" : "fault.drain.busy")
        tell(.drain(node.id, deadline: deadline))
    }

    // MARK: Clocks

    private func stepClock(_ node: SimulatedNode?, _ span: TimeSpan) {
        let isBusy = node.map { !$0.heldTransfers.isEmpty } ?? !jobs.isEmpty
        let name = span.nanoseconds < 0 ? "fault.clockBack" : "fault.clockForward"
        witness("\(name).\(node == nil ? "coordinator" : "worker").\(isBusy ? "busy" : "idle")")
        if let node {
            node.clock.step(by: span.nanoseconds)
        } else {
            coordinatorClock.step(by: span.nanoseconds)
        }
    }

    private func suspend(_ node: SimulatedNode?, _ span: TimeSpan) {
        if let node {
            guard node.isAlive, node.frozenUntil <= now else { return }
            node.clock.sleep(at: now)
            witness(node.heldTransfers.isEmpty ? "fault.suspend.worker.idle" : "fault.suspend.worker.busy")
            node.frozenUntil = now + span.nanoseconds
            after(span, .thaw(node.index))
        } else {
            guard isCoordinatorAlive, coordinatorFrozenUntil <= now else { return }
            coordinatorClock.sleep(at: now)
            witness("fault.suspend.coordinator")
            coordinatorFrozenUntil = now + span.nanoseconds
            after(span, .thawCoordinator)
        }
    }

    // MARK: Links

    private func cutControlOf(_ node: SimulatedNode) {
        guard node.isAlive, let id = node.control, controlLinks[id].isUpAtWorker, !controlLinks[id].isCut else {
            return
        }
        witness("fault.cutControl")
        cutControl(
            controlLinks[id], coordinatorNotices: Int64(random.within(0...300_000_000)),
            workerNotices: Int64(random.within(0...300_000_000)))
    }

    private func cutPagesBetween(_ source: Int, _ target: Int) {
        for link in pageLinks where link.source == source && link.target == target && link.isUpAtSource && !link.isCut {
            witness(link.current == nil ? "fault.cutPages.idle" : "fault.cutPages.busy")
            cutPages(
                link, sourceNotices: Int64(random.within(0...100_000_000)),
                targetNotices: Int64(random.within(0...100_000_000)))
        }
    }

    private func hold(_ key: PathKey, _ span: TimeSpan, _ outward: Bool, _ inward: Bool) {
        let until = now + span.nanoseconds
        var condition = conditions[key] ?? PathCondition()
        if outward { condition.heldOut = until }
        if inward { condition.heldIn = until }
        condition.closedUntil = until
        conditions[key] = condition
    }

    /// From here on nothing goes wrong any more; what was broken is mended.
    private func heal() {
        conditions = [:]
        corruptPercent = 0
        duplicatePercent = 0
        for node in nodes where node.isAlive && node.frozenUntil > now {
            node.frozenUntil = now
            thaw(node)
        }
        if isCoordinatorAlive, coordinatorFrozenUntil > now {
            coordinatorFrozenUntil = now
            thawCoordinator()
        }
    }
}
