import Messages
import ServingTypes

/// Links to decode workers: brought up when a prompt is assigned, again when one breaks, and given
/// back when nobody has needed one for a while.
extension PrefillWorkerCore {
    func peerIndex(_ worker: WorkerRef) -> Int? { peers.firstIndex { $0.worker == worker } }

    /// Whether a sender may be at work for this peer.
    func isLinked(_ worker: WorkerRef) -> Bool { peerIndex(worker).map { peers[$0].state == .up } ?? false }

    private func transfers(to worker: WorkerRef) -> [TransferID] {
        arrivals.filter { jobs[$0]?.target == worker }
    }

    mutating func connect(for order: AssignPrefill) {
        guard let index = peerIndex(order.target) else {
            peers.append(
                Peer(worker: order.target, host: order.targetHost, port: order.targetPort, path: order.path))
            actions.append(
                .connectPeer(order.target, host: order.targetHost, port: order.targetPort, path: order.path))
            return
        }
        peers[index].idleSince = nil
        if peers[index].state == .up { linkUp(order.transfer) }
    }

    mutating func peerUp(_ worker: WorkerRef) {
        guard let index = peerIndex(worker) else { return countStale() }
        peers[index].state = .up
        peers[index].wasUp = true
        for transfer in transfers(to: worker) { linkUp(transfer) }
    }

    /// First a word, so that the target knows whose link this is; then, where pages had left
    /// already, the question which of them arrived.
    private mutating func linkUp(_ transfer: TransferID) {
        guard let job = jobs[transfer], job.ending == nil else { return }
        jobs[transfer]?.outgoing.expires = now + job.outgoing.lease
        renew(transfer)
        let gone = job.outgoing.pages.filter { $0.state != .waiting && $0.state != .ready }.map(\.block)
        if gone.isEmpty && !job.outgoing.endSent {
            jobs[transfer]?.outgoing.link = .up
            push(transfer)
            endIfAllSent(transfer)
        } else {
            jobs[transfer]?.outgoing.link = .resuming
            actions.append(
                .sendToPeer(job.target, transfer, .pageOffer(PageOffer(transfer: transfer, blocks: gone))))
        }
    }

    /// The sender reads no slot any more, so every fence on it is open.
    mutating func peerDown(_ worker: WorkerRef) {
        for transfer in fences.keys.sorted() where fences[transfer]?.target == worker { openFence(transfer) }
        guard let index = peerIndex(worker) else { return }
        let needy = transfers(to: worker)
        for transfer in needy { jobs[transfer]?.outgoing.link = .connecting }
        peers[index].failures += 1
        let peer = peers[index]
        if needy.isEmpty {
            peers.remove(at: index)
        } else if peer.failures >= configuration.connectTriesMax {
            peers[index].state = .connecting
            for transfer in needy { fail(transfer, peer.wasUp ? .linkLost : .cannotConnect) }
            peers.removeAll { $0.worker == worker }
        } else {
            let rest = configuration.connectBackoff * (Int64(1) << Int64(min(peer.failures - 1, 20)))
            peers[index].state = .resting(until: now + rest)
        }
    }

    mutating func tendPeers() {
        let busy = Set(jobs.values.map(\.target) + fences.values.map(\.target))
        var released: [WorkerRef] = []
        for index in peers.indices {
            let peer = peers[index]
            if busy.contains(peer.worker) {
                peers[index].idleSince = nil
                guard case .resting(let until) = peer.state, now >= until else { continue }
                peers[index].state = .connecting
                actions.append(.connectPeer(peer.worker, host: peer.host, port: peer.port, path: peer.path))
            } else if let since = peer.idleSince {
                if now - since >= configuration.peerLinger { released.append(peer.worker) }
            } else {
                peers[index].idleSince = now
            }
        }
        for worker in released { actions.append(.releasePeer(worker)) }
        peers.removeAll { released.contains($0.worker) }
    }
}
