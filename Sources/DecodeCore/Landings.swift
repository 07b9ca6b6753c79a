import KVPaging
import Messages
import ServingTypes

/// Pages that come from P: verified one by one, committed together, decoded only then.
extension DecodeWorkerCore {
    private func landing(of transfer: TransferID, from source: WorkerRef?) -> Landing? {
        guard case .landing(let landing) = jobs[transfer]?.phase else { return nil }
        if let source, source != landing.source { return nil }
        return landing
    }

    private mutating func update(_ transfer: TransferID, _ landing: Landing) {
        jobs[transfer]?.phase = .landing(landing)
    }

    mutating func renew(_ transfer: TransferID, from source: WorkerRef?) {
        guard var landing = landing(of: transfer, from: source) else {
            if jobs[transfer] == nil { countStale() }
            return
        }
        landing.expires = now + landing.lease
        update(transfer, landing)
    }

    // MARK: Pages

    mutating func landed(_ transfer: TransferID, _ block: UInt32, _ bytes: Int, _ crc: UInt32) {
        let now = now
        let outcome = jobs.changeOptional(transfer) { job -> (source: WorkerRef, fresh: BlockSlot?, isEnding: Bool)? in
            guard case .landing(var landing) = job.phase, landing.wanted.contains(block) else { return nil }
            // Out of its place meanwhile: one owner, so that nothing of it is copied.
            job.phase = .prefilling
            defer { job.phase = .landing(landing) }
            landing.expires = now + landing.lease
            guard landing.landed[block] == nil else { return (landing.source, nil, landing.end != nil) }
            landing.landed[block] = crc
            landing.receivedBytes &+= UInt64(max(bytes, 0))
            return (landing.source, job.table.slots[Int(block)], landing.end != nil)
        }
        guard let (source, fresh, isEnding) = outcome else { return countStale() }
        if let fresh {
            pool.verify(fresh)
            counters.pageBytesReceived &+= UInt64(max(bytes, 0))
        }
        tell(source, .pageAck(PageAck(transfer: transfer, blocks: [block])))
        tell(source, .credit(Credit(transfer: transfer, bytes: UInt64(configuration.pageBytes))))
        if isEnding, let landing = landing(of: transfer, from: nil), let end = landing.end {
            settle(transfer, landing, end)
        }
    }

    /// After a broken link P asks what has arrived.
    mutating func offered(_ offer: PageOffer, from source: WorkerRef) {
        if let commit = commits[offer.transfer] { return tell(source, .transferCommitted(commit)) }
        guard let landing = landing(of: offer.transfer, from: source) else {
            return refuse(offer.transfer, source)
        }
        renew(offer.transfer, from: source)
        let lacking = landing.missing.filter { offer.blocks.contains($0) }
        tell(source, .pageWant(PageWant(transfer: offer.transfer, blocks: lacking)))
    }

    private mutating func refuse(_ transfer: TransferID, _ source: WorkerRef) {
        countStale()
        tell(source, .transferFailed(TransferFailed(transfer: transfer, reason: .targetRefused)))
    }

    // MARK: The end of a transfer

    mutating func transferEnded(_ end: TransferEnd, from source: WorkerRef) {
        if let commit = commits[end.transfer] { return tell(source, .transferCommitted(commit)) }
        guard var landing = landing(of: end.transfer, from: source) else { return refuse(end.transfer, source) }
        landing.expires = now + landing.lease
        landing.end = end
        let missing = landing.missing
        if missing.isEmpty || landing.contradicts(end) {
            update(end.transfer, landing)
            return settle(end.transfer, landing, end)
        }
        landing.wantRounds += 1
        update(end.transfer, landing)
        if landing.wantRounds > configuration.wantRoundsMax { return fail(end.transfer, .incomplete) }
        tell(source, .pageWant(PageWant(transfer: end.transfer, blocks: missing)))
    }

    /// Fail closed: bytes that are not those that P sent are never decoded. P's list may lack a
    /// block whose sending it did not see confirmed; its slices were checked as they came.
    private mutating func settle(_ transfer: TransferID, _ landing: Landing, _ end: TransferEnd) {
        if landing.contradicts(end) { return fail(transfer, .checksum) }
        if landing.missing.isEmpty { commit(transfer, landing, end) }
    }

    private mutating func commit(_ transfer: TransferID, _ landing: Landing, _ end: TransferEnd) {
        guard let count = jobs[transfer]?.tokens.count else { return }
        let reused = jobs[transfer]?.table.sealed ?? 0
        jobs[transfer]?.table.commitReceived(through: count, in: &pool)
        jobs[transfer]?.computed = count
        jobs[transfer]?.phase = .decoding
        turns.append(transfer)
        if !landing.wanted.isEmpty { actions.append(.closeLanding(transfer)) }
        counters.transfersCommitted &+= 1
        let commit = TransferCommitted(
            transfer: transfer, receivedBytes: landing.receivedBytes, receivedBlocks: landing.wanted.count,
            reusedBlocks: reused)
        commits.remember(commit, for: transfer)
        tell(landing.source, .transferCommitted(commit))
        tellCoordinator(.transferCommitted(commit))
        // Repeated for a coordinator that has not heard of it from P; the offset makes it harmless.
        emit([accept(end.firstToken, for: transfer)])
    }

    // MARK: Giving up

    /// No progress for a lease: nobody holds the other end any more.
    mutating func expireLeases() {
        for transfer in arrivals where jobs[transfer]?.isLanding ?? false {
            guard let landing = landing(of: transfer, from: nil), now >= landing.expires else { continue }
            counters.leasesExpired &+= 1
            fail(transfer, .leaseExpired)
        }
    }

    mutating func fail(_ transfer: TransferID, _ reason: TransferFailed.Reason) {
        guard let landing = landing(of: transfer, from: nil) else { return }
        counters.transfersFailed &+= 1
        let failure = TransferFailed(transfer: transfer, reason: reason)
        tell(landing.source, .transferFailed(failure))
        tellCoordinator(.transferFailed(failure))
        drop(transfer, acknowledge: false)
    }

    /// P has told the coordinator itself.
    mutating func sourceGaveUp(_ transfer: TransferID, _ source: WorkerRef) {
        guard landing(of: transfer, from: source) != nil else { return countStale() }
        counters.transfersFailed &+= 1
        drop(transfer, acknowledge: false)
    }

    mutating func landingReleased(_ transfer: TransferID) {
        guard let fence = fences.removeValue(forKey: transfer) else { return }
        for slot in fence.slots { pool.unfence(slot) }
        if fence.acknowledge { tellCoordinator(.cancelAck(CancelAck(transfer: transfer))) }
    }
}
