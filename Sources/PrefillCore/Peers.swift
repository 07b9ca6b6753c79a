import Messages
import ServingTypes

/// Links to decode workers: brought up when a prompt is assigned, again when one breaks, and given
/// back when nobody has needed one for a while.
extension PrefillWorkerCore {
    func peerIndex(_ worker: WorkerRef) -> Int? { peers.index(of: worker) }

    /// Whether a sender may be at work for this peer.
    func isLinked(_ worker: WorkerRef) -> Bool { peerIndex(worker).map { peers[$0].state == .up } ?? false }

    private func transfers(to worker: WorkerRef) -> [TransferID] {
        arrivals.filter { jobs.read($0) { $0.target == worker } ?? false }
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
            peers.remove([worker])
        } else if peer.failures >= configuration.connectTriesMax {
            peers[index].state = .connecting
            for transfer in needy { fail(transfer, peer.wasUp ? .linkLost : .cannotConnect) }
            peers.remove([worker])
        } else {
            let rest = configuration.connectBackoff * (Int64(1) << Int64(min(peer.failures - 1, 20)))
            peers[index].state = .resting(until: now + rest)
        }
    }

    mutating func tendPeers() {
        let targets = arrivals.compactMap { jobs.read($0) { $0.target } } + fences.values.map(\.target)
        var isBusy = [Bool](repeating: false, count: peers.count)
        for target in targets {
            if let index = peerIndex(target) { isBusy[index] = true }
        }
        var released: [WorkerRef] = []
        for index in 0..<peers.count {
            if isBusy[index] {
                peers[index].idleSince = nil
                guard case .resting(let until) = peers[index].state, now >= until else { continue }
                peers[index].state = .connecting
                let peer = peers[index]
                actions.append(.connectPeer(peer.worker, host: peer.host, port: peer.port, path: peer.path))
            } else if let since = peers[index].idleSince {
                if now - since >= configuration.peerLinger { released.append(peers[index].worker) }
            } else {
                peers[index].idleSince = now
            }
        }
        for worker in released { actions.append(.releasePeer(worker)) }
        peers.remove(released)
    }
}

/// Peers in the order in which they were first needed, found by name.
struct PeerTable: Sendable {
    private var all: ContiguousArray<Peer> = []
    private var places: [WorkerRef: Int] = [:]

    var count: Int { all.count }

    func index(of worker: WorkerRef) -> Int? { places[worker] }

    /// The worker of a peer stays.
    subscript(index: Int) -> Peer {
        _read { yield all[index] }
        _modify { yield &all[index] }
    }

    mutating func append(_ peer: Peer) {
        places[peer.worker] = all.count
        all.append(peer)
    }

    mutating func remove(_ workers: [WorkerRef]) {
        guard !workers.isEmpty else { return }
        for worker in workers { places[worker] = nil }
        all.removeAll { places[$0.worker] == nil }
        for (index, peer) in all.enumerated() { places[peer.worker] = index }
    }

    /// The first broken invariant, or nil.
    func audit() -> String? {
        for (index, peer) in all.enumerated() where places[peer.worker] != index { return "a peer is not where it is" }
        return places.count == all.count ? nil : "a peer is known twice"
    }
}
