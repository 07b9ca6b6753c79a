import DecodeCore
import KVPaging
import Messages
import PrefillCore
import ServingTypes

/// Page links, as `PageSender`, `PageReceiverLink` and `LandingTable` keep them: one sender per
/// incarnation of a target, a fence at each end.
extension ClusterSimulation {
    private func way(_ link: PageLink) -> PathCondition { condition(.pages(link.source, link.target)) }

    /// Whether this end still listens to the link.
    private func isCurrent(_ link: PageLink, _ node: SimulatedNode) -> Bool {
        !link.isReleased && node.peers[link.targetRef] == link.id
    }

    // MARK: Coming up

    func connectPages(_ node: SimulatedNode, _ worker: WorkerRef, _ path: KVPath) {
        guard node.peers[worker] == nil, let index = nodeOfName[worker.id] else { return }
        let target = nodes[index]
        let link = PageLink(id: pageLinks.count, source: node, target: target, targetRef: worker, path: path)
        pageLinks.append(link)
        node.peers[worker] = link.id
        let latency = configuration.network.latency.nanoseconds
        let connectWithin: Int64 = 1_000_000_000
        let way = way(link)
        let blocked = max(way.closedUntil, max(way.heldIn, way.heldOut))
        if blocked <= now + connectWithin {
            queue.add(.pageLinkReachesTarget(link.id), at: max(now, blocked) + latency)
        } else if path != .direct, configuration.network.hasRelay, canRelay(node, target) {
            link.isRelayed = true
            witness("pages.relayed")
            queue.add(.pageLinkReachesTarget(link.id), at: now + connectWithin + 2 * latency)
        } else {
            queue.add(.pageLinkFails(link.id), at: now + connectWithin)
        }
    }

    private func canRelay(_ source: SimulatedNode, _ target: SimulatedNode) -> Bool {
        isCoordinatorAlive && condition(.control(source.index)).closedUntil <= now
            && condition(.control(target.index)).closedUntil <= now
    }

    /// Hello at the target: another incarnation, or none, refuses.
    func pageLinkReachesTarget(_ link: PageLink, _ event: SimulationEvent) {
        let target = nodes[link.target]
        let latency = configuration.network.latency.nanoseconds
        guard target.isAlive, target.ref == link.targetRef, !link.isCut, !link.isReleased else {
            queue.add(.pageLinkFails(link.id), at: now + latency)
            return
        }
        guard living(link.target, target.life, event) != nil else { return }
        link.isUpAtTarget = true
        link.lastToSource = now + latency
        queue.add(.pageLinkUp(link.id), at: link.lastToSource)
    }

    func pageLinkUp(_ link: PageLink, _ event: SimulationEvent) {
        guard !link.isCut, let node = living(link.source, link.sourceLife, event), isCurrent(link, node) else {
            return
        }
        link.isUpAtSource = true
        note(node.id.name, "page link \(link.id) to \(link.targetRef.id) is up")
        perform(prefill: node, .peerUp(link.targetRef))
        pump(link)
    }

    // MARK: Sending

    func enqueue(_ node: SimulatedNode, _ worker: WorkerRef, _ item: PageLink.Item) {
        guard let id = node.peers[worker] else { return }
        pageLinks[id].append(item)
        pump(pageLinks[id])
    }

    private func pump(_ link: PageLink) {
        guard link.isUpAtSource, !link.isCut, link.current == nil, !link.isQueueEmpty else { return }
        let turn = configuration.audits ? random.pick(Array(link.queue[link.head...]))?.transfer : nil
        if let turn, turn != link.queue[link.head].transfer { witness("pages.reordered") }
        guard let item = link.takeNext(turn: turn) else { return }
        link.current = item
        var duration: Int64 = 1000
        if case .page(let transfer, let page, _) = item {
            let way = way(link)
            let slowness = (way.slowUntil > now ? way.slowness : 1) * (link.isRelayed ? 2 : 1)
            let seconds = Double(configuration.pageBytes) / configuration.network.bytesPerSecond * slowness
            duration += TimeSpan(seconds: seconds).nanoseconds
            if configuration.audits {
                let begins = arrival(after: link.lastToTarget, heldUntil: way.heldOut, onPageLink: true)
                link.lastToTarget = begins
                queue.add(.pageBegins(link.id, transfer, page.block), at: begins)
            }
        }
        queue.add(.senderDone(link.id), at: now + duration)
    }

    /// The item in hand is with the kernel.
    func senderDone(_ link: PageLink, _ event: SimulationEvent) {
        guard let node = living(link.source, link.sourceLife, event), let item = link.current else { return }
        link.current = nil
        let wasStopped = link.stopsAfterCurrent
        link.stopsAfterCurrent = false
        if !link.isCut { depart(link, item, node) }
        if wasStopped {
            perform(prefill: node, .pushingStopped(item.transfer))
        }
        if case .page(let transfer, let page, let content) = item, isCurrent(link, node), !link.isCut {
            perform(
                prefill: node,
                .pageSent(
                    link.targetRef, transfer, block: page.block, sentBytes: configuration.pageBytes,
                    crc: content.checksum))
        }
        pump(link)
    }

    private func depart(_ link: PageLink, _ item: PageLink.Item, _ node: SimulatedNode) {
        link.lastToTarget = arrival(after: link.lastToTarget, heldUntil: way(link).heldOut, onPageLink: true)
        switch item {
        case .message(_, let message):
            note(node.id.name, "-> \(link.targetRef.id)  \(Summary.of(message))")
            mark(link.id, Summary.code(of: message))
            queue.add(.messageToTarget(link.id, message), at: link.lastToTarget)
        case .page(let transfer, let page, let content):
            if node.engine.slots[Int(page.slot.index)] != content {
                fail("\(node.id): slot \(page.slot) changed while block \(page.block) of \(transfer) was being sent")
            }
            let isCorrupt = corruptPercent > 0 && random.chance(corruptPercent)
            if isCorrupt { witness("page.corrupted") }
            note(node.id.name, "-> \(link.targetRef.id)  page \(page.block) of \(Summary.short(transfer))")
            mark(link.id, UInt64(page.block))
            let flight = PageInFlight(
                transfer: transfer, block: page.block, filledTokens: page.filledTokens, content: content,
                isCorrupt: isCorrupt)
            queue.add(.pageArrives(link.id, flight), at: link.lastToTarget)
        }
    }

    func stopPushing(_ node: SimulatedNode, _ worker: WorkerRef, _ transfer: TransferID) {
        if let id = node.peers[worker] {
            let link = pageLinks[id]
            link.remove(transfer)
            if link.current?.transfer == transfer {
                link.stopsAfterCurrent = true
                witness("fence.sender")
                return
            }
        }
        after(.zero, .pushingStopped(node: node.index, life: node.life, transfer))
    }

    // MARK: Landing

    func openLanding(
        _ node: SimulatedNode, _ transfer: TransferID, _ source: WorkerRef, _ slots: [LandingSlot]
    ) {
        if let open = node.landings[transfer] {
            if open.isClosed { return }
            fail("\(node.id): the landing of \(transfer) was opened twice")
            return
        }
        var landing = SimulatedNode.Landing(source: source, slots: [:])
        for slot in slots {
            landing.slots[slot.block] = slot.slot
            node.writable[Int(slot.slot.index)] += 1
            if node.writable[Int(slot.slot.index)] > 1 {
                fail("\(node.id): slot \(slot.slot) may be written for two transfers")
            }
        }
        node.landings[transfer] = landing
        hear(node, transfer)
    }

    func closeLanding(_ node: SimulatedNode, _ transfer: TransferID) {
        guard let landing = node.landings[transfer], landing.inside != nil else {
            release(node, transfer)
            return
        }
        witness("fence.receiver")
        node.landings[transfer]?.isClosed = true
    }

    private func release(_ node: SimulatedNode, _ transfer: TransferID) {
        if let landing = node.landings.removeValue(forKey: transfer) {
            for (block, slot) in landing.slots where !landing.landed.contains(block) {
                node.writable[Int(slot.index)] -= 1
            }
        }
        after(.zero, .landingReleased(node: node.index, life: node.life, transfer))
    }

    /// A receiver goes into the slot with the first bytes.
    func pageBegins(_ link: PageLink, _ transfer: TransferID, _ block: UInt32, _ event: SimulationEvent) {
        guard let node = receiver(link, event), let landing = node.landings[transfer], landing.source == link.sourceRef,
            !landing.isClosed, landing.slots[block] != nil, !landing.landed.contains(block)
        else { return }
        // The sender has come back on a newer link: the old one is put out of the slot.
        node.landings[transfer]?.inside = (block, link.id)
    }

    private func receiver(_ link: PageLink, _ event: SimulationEvent) -> SimulatedNode? {
        let node = nodes[link.target]
        guard link.isUpAtTarget, !link.isCut, node.ref == link.targetRef else { return nil }
        return living(link.target, node.life, event)
    }

    func pageArrives(_ link: PageLink, _ page: PageInFlight, _ event: SimulationEvent) {
        guard let node = receiver(link, event) else { return }
        let verdict = land(page, link, node)
        hear(node, page.transfer)
        leaveSlot(node, page.transfer, link)
        switch verdict {
        case .landed:
            perform(
                decode: node,
                .pageLanded(
                    page.transfer, block: page.block, filledTokens: page.filledTokens,
                    receivedBytes: configuration.pageBytes, pageCRC: page.content.checksum))
        case .repeated:
            reply(link, .pageAck(PageAck(transfer: page.transfer, blocks: [page.block])))
        case .refused(let reason):
            witness("page.refused.\(reason.rawValue)")
            reply(link, .pageNack(PageNack(transfer: page.transfer, block: page.block, reason: reason)))
        }
    }

    private enum Verdict {
        case landed
        case repeated
        case refused(PageNack.Reason)
    }

    private func land(_ page: PageInFlight, _ link: PageLink, _ node: SimulatedNode) -> Verdict {
        guard let landing = node.landings[page.transfer], let slot = landing.slots[page.block] else {
            return .refused(.noSlot)
        }
        guard landing.source == link.sourceRef else {
            return .refused(landing.source.id == link.sourceRef.id ? .staleEpoch : .noSlot)
        }
        if landing.isClosed { return .refused(.cancelled) }
        if landing.landed.contains(page.block) { return .repeated }
        if page.isCorrupt, !takesCorruptPages { return .refused(.checksum) }
        node.engine.slots[Int(slot.index)] = page.content
        if page.isCorrupt { node.engine.slots[Int(slot.index)].after ^= 1 }
        node.landings[page.transfer]?.landed.insert(page.block)
        node.writable[Int(slot.index)] -= 1
        return .landed
    }

    /// The last one out of a closed landing reports its release.
    private func leaveSlot(_ node: SimulatedNode, _ transfer: TransferID, _ link: PageLink) {
        guard let inside = node.landings[transfer]?.inside, inside.link == link.id else { return }
        node.landings[transfer]?.inside = nil
        if node.landings[transfer]?.isClosed == true { release(node, transfer) }
    }

    // MARK: Messages

    func messageToTarget(_ link: PageLink, _ message: Message, _ event: SimulationEvent) {
        guard let node = receiver(link, event) else { return }
        if configuration.audits, let transfer = Self.renewed(by: message) { hear(node, transfer) }
        perform(decode: node, .peerMessage(PageLinkID(UInt64(link.id)), from: link.sourceRef, message))
    }

    func sendToSource(_ node: SimulatedNode, _ id: PageLinkID, _ message: Message) {
        guard id.value < UInt64(pageLinks.count) else { return }
        reply(pageLinks[Int(id.value)], message)
    }

    private func reply(_ link: PageLink, _ message: Message) {
        guard link.isUpAtTarget else { return }
        note(link.targetRef.id.name, "-> \(link.sourceRef.id)  \(Summary.of(message))")
        mark(link.id, Summary.code(of: message))
        guard !link.isCut else { return }
        link.lastToSource = arrival(after: link.lastToSource, heldUntil: way(link).heldIn, onPageLink: true)
        queue.add(.messageToSource(link.id, message), at: link.lastToSource)
    }

    func messageToSource(_ link: PageLink, _ message: Message, _ event: SimulationEvent) {
        guard !link.isCut, let node = living(link.source, link.sourceLife, event), isCurrent(link, node) else {
            return
        }
        perform(prefill: node, .peerMessage(link.targetRef, message))
    }

    // MARK: Going down

    /// This end closes it: no more events of it, though the target is told.
    func releasePages(_ node: SimulatedNode, _ worker: WorkerRef) {
        guard let id = node.peers.removeValue(forKey: worker) else { return }
        let link = pageLinks[id]
        link.isReleased = true
        if link.stopsAfterCurrent, let item = link.current {
            after(.zero, .pushingStopped(node: node.index, life: node.life, item.transfer))
            link.stopsAfterCurrent = false
        }
        link.clear()
        cutPages(link, sourceNotices: nil, targetNotices: nil)
    }

    func cutPages(_ link: PageLink, sourceNotices: Int64?, targetNotices: Int64?) {
        guard !link.isCut else { return }
        link.isCut = true
        let way = way(link)
        let atSource = sourceNotices.map { now + $0 } ?? arrival(after: now, heldUntil: way.heldIn, onPageLink: true)
        let atTarget = targetNotices.map { now + $0 } ?? arrival(after: now, heldUntil: way.heldOut, onPageLink: true)
        queue.add(.pageLinkEndsAtSource(link.id), at: atSource)
        queue.add(.pageLinkEndsAtTarget(link.id), at: atTarget)
    }

    /// The sender's last event: it reads no slot any more.
    func pageLinkEndsAtSource(_ link: PageLink, _ event: SimulationEvent) {
        guard let node = living(link.source, link.sourceLife, event) else { return }
        link.isCut = true
        link.isUpAtSource = false
        let item = link.current
        link.current = nil
        link.clear()
        if link.stopsAfterCurrent, let item {
            link.stopsAfterCurrent = false
            perform(prefill: node, .pushingStopped(item.transfer))
        }
        guard isCurrent(link, node) else { return }
        node.peers[link.targetRef] = nil
        note(node.id.name, "page link \(link.id) to \(link.targetRef.id) is lost")
        perform(prefill: node, .peerDown(link.targetRef))
    }

    func pageLinkEndsAtTarget(_ link: PageLink, _ event: SimulationEvent) {
        let node = nodes[link.target]
        guard link.isUpAtTarget, node.ref == link.targetRef, living(link.target, node.life, event) != nil else {
            return
        }
        link.isUpAtTarget = false
        for transfer in node.landings.keys.sorted() where node.landings[transfer]?.inside?.link == link.id {
            leaveSlot(node, transfer, link)
        }
        perform(decode: node, .peerDown(PageLinkID(UInt64(link.id)), from: link.sourceRef))
    }
}
