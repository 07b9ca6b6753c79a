import KVPaging
import Messages
import ServingTypes

/// Pages on their way out: what is computed and wanted leaves under credit, chunk by chunk.
extension PrefillWorkerCore {
    private func job(_ transfer: TransferID, to worker: WorkerRef) -> PrefillJob? {
        jobs[transfer].flatMap { $0.target == worker ? $0 : nil }
    }

    private func isHere(_ transfer: TransferID, to worker: WorkerRef) -> Bool {
        jobs.read(transfer) { $0.target == worker } ?? false
    }

    private mutating func moved(_ transfer: TransferID) {
        progress &+= 1
        let now = now
        jobs.change(transfer) { $0.outgoing.expires = now + $0.outgoing.lease }
    }

    // MARK: Pushing

    /// Pages whose positions have all been computed may go.
    mutating func ripen(_ transfer: TransferID) {
        let blockTokens = configuration.blockTokens
        jobs.change(transfer) { job in
            let full = job.computed / blockTokens
            let isWhole = job.computed == job.order.tokens.count
            for index in job.outgoing.pages.indices where job.outgoing.pages[index].state == .waiting {
                guard isWhole || Int(job.outgoing.pages[index].block) < full else { continue }
                job.outgoing.pages[index].state = .ready
            }
        }
        push(transfer)
    }

    mutating func push(_ transfer: TransferID) {
        guard jobs.read(transfer, { $0.outgoing.isUp && $0.ending == nil && $0.outgoing.hasReady }) ?? false,
            let job = jobs[transfer]
        else { return }
        let pageBytes = UInt64(configuration.pageBytes)
        var outgoing = job.outgoing
        var leaving: [OutgoingPage] = []
        for index in outgoing.pages.indices where outgoing.pages[index].state == .ready {
            // With nothing on its way the window is open, whatever became of the credit.
            guard outgoing.credit >= pageBytes || !outgoing.hasUnacknowledged else { break }
            outgoing.credit -= min(outgoing.credit, pageBytes)
            outgoing.pages[index].state = .pushed
            let block = Int(outgoing.pages[index].block)
            leaving.append(
                OutgoingPage(
                    block: outgoing.pages[index].block, slot: job.table.slots[block],
                    filledTokens: min(
                        configuration.blockTokens, job.order.tokens.count - block * configuration.blockTokens)))
        }
        jobs[transfer]?.outgoing = outgoing
        if !leaving.isEmpty { actions.append(.pushPages(job.target, transfer, pages: leaving)) }
    }

    mutating func pageSent(_ worker: WorkerRef, _ transfer: TransferID, _ block: UInt32, _ bytes: Int, _ crc: UInt32) {
        counters.pagesSent &+= 1
        counters.pageBytesSent &+= UInt64(max(bytes, 0))
        let isKnown = jobs.change(transfer) { job -> Bool in
            guard job.target == worker, let index = job.outgoing.index(of: block) else { return false }
            job.outgoing.pages[index].crc = crc
            if job.outgoing.pages[index].state == .pushed { job.outgoing.pages[index].state = .sent }
            return true
        }
        guard isKnown ?? false else { return }
        moved(transfer)
        endIfAllSent(transfer)
    }

    mutating func endIfAllSent(_ transfer: TransferID) {
        guard jobs.read(transfer, { !$0.outgoing.endSent && $0.outgoing.isAllSent }) ?? false, let job = jobs[transfer],
            let first = job.firstToken, job.ending == nil, job.outgoing.isUp,
            !job.outgoing.endSent
        else { return }
        jobs.change(transfer) { $0.outgoing.endSent = true }
        let end = TransferEnd(
            transfer: transfer, pages: job.outgoing.sums, firstToken: first, cachedTokens: job.cachedTokens)
        actions.append(.sendToPeer(job.target, transfer, .transferEnd(end)))
    }

    // MARK: What the target says

    mutating func acknowledged(_ ack: PageAck, by worker: WorkerRef) {
        guard isHere(ack.transfer, to: worker) else { return countStale() }
        moved(ack.transfer)
        jobs.change(ack.transfer) { job in
            for block in ack.blocks {
                guard let index = job.outgoing.index(of: block), job.outgoing.pages[index].state == .sent else {
                    continue
                }
                job.outgoing.pages[index].state = .acknowledged
            }
        }
    }

    mutating func credited(_ credit: Credit, by worker: WorkerRef) {
        guard isHere(credit.transfer, to: worker) else { return countStale() }
        jobs.change(credit.transfer) { job in
            let (sum, overflow) = job.outgoing.credit.addingReportingOverflow(credit.bytes)
            job.outgoing.credit = overflow ? job.order.creditBytes : min(sum, job.order.creditBytes)
        }
        push(credit.transfer)
    }

    /// Blocks that the target lacks. After a reconnect this says what has arrived of what was sent;
    /// else it asks again for what got lost, and what is on its way anyway is not sent twice.
    mutating func wanted(_ want: PageWant, by worker: WorkerRef) {
        guard let job = job(want.transfer, to: worker), !job.outgoing.pages.isEmpty || job.outgoing.isResuming else {
            return countStale()
        }
        moved(want.transfer)
        var outgoing = job.outgoing
        let isResuming = outgoing.isResuming
        for index in outgoing.pages.indices {
            let isWanted = want.blocks.contains(outgoing.pages[index].block)
            switch outgoing.pages[index].state {
            case .waiting, .ready: break
            case .pushed where !isResuming: break
            case .pushed, .sent, .acknowledged:
                if isWanted {
                    outgoing.pages[index].state = .ready
                    outgoing.endSent = false
                    counters.pagesSentAgain &+= 1
                    if !isResuming {
                        outgoing.credit = min(
                            outgoing.credit &+ UInt64(configuration.pageBytes), job.order.creditBytes)
                    }
                } else if isResuming {
                    outgoing.pages[index].state = .acknowledged
                }
            }
        }
        if isResuming {
            outgoing.link = .up
            outgoing.endSent = false
            outgoing.credit = job.order.creditBytes
        }
        jobs[want.transfer]?.outgoing = outgoing
        push(want.transfer)
        endIfAllSent(want.transfer)
    }

    mutating func refused(_ nack: PageNack, by worker: WorkerRef) {
        guard let job = job(nack.transfer, to: worker), let index = job.outgoing.index(of: nack.block) else {
            return countStale()
        }
        if job.outgoing.pages[index].state == .acknowledged { return countStale() }
        switch nack.reason {
        case .checksum:
            jobs[nack.transfer]?.outgoing.pages[index].checksumFailures += 1
            guard job.outgoing.pages[index].checksumFailures < configuration.checksumResendsMax else {
                return fail(nack.transfer, .checksum)
            }
            counters.pagesSentAgain &+= 1
            jobs[nack.transfer]?.outgoing.endSent = false
            jobs[nack.transfer]?.outgoing.pages[index].state = .ready
            credited(Credit(transfer: nack.transfer, bytes: UInt64(configuration.pageBytes)), by: worker)
        case .noSlot, .staleEpoch, .cancelled, .badRange: fail(nack.transfer, .targetRefused)
        }
    }

    /// The pages stay as cache.
    mutating func committed(_ commit: TransferCommitted, by worker: WorkerRef) {
        guard let job = job(commit.transfer, to: worker), job.firstToken != nil else { return countStale() }
        progress &+= 1
        counters.transfersCommitted &+= 1
        drop(commit.transfer, acknowledge: false)
    }

    mutating func targetGaveUp(_ failure: TransferFailed, _ worker: WorkerRef) {
        guard job(failure.transfer, to: worker) != nil else { return countStale() }
        giveUp(failure.transfer, failure.reason)
    }

    // MARK: Leases

    /// Tells the target that its reservation is still wanted, as long as this worker moves.
    mutating func renewLeases() {
        for transfer in arrivals {
            let owes = jobs.read(transfer) { job in
                job.outgoing.isUp && job.ending == nil && now - job.outgoing.renewed >= job.outgoing.lease / 3
                    && job.outgoing.renewedProgress != progress
            }
            if owes ?? false { renew(transfer) }
        }
    }

    mutating func renew(_ transfer: TransferID) {
        guard let job = jobs[transfer] else { return }
        jobs[transfer]?.outgoing.renewed = now
        jobs[transfer]?.outgoing.renewedProgress = progress
        actions.append(
            .sendToPeer(
                job.target, transfer, .leaseRenew(LeaseRenew(transfer: transfer, lease: job.outgoing.lease))))
    }

    /// A transfer that is computed and does not move is over; the pages stay as cache.
    mutating func expireLeases() {
        for transfer in arrivals {
            guard let job = jobs[transfer], job.firstToken != nil, now >= job.outgoing.expires else { continue }
            fail(transfer, job.outgoing.endSent ? .leaseExpired : .stalled)
        }
    }

    // MARK: Ending

    mutating func fail(_ transfer: TransferID, _ reason: TransferFailed.Reason) {
        guard let job = jobs[transfer], job.ending == nil else { return }
        if job.outgoing.isUp {
            // A courtesy that a fence may swallow: else the coordinator or the lease ends it there.
            actions.append(
                .sendToPeer(
                    job.target, transfer, .transferFailed(TransferFailed(transfer: transfer, reason: reason))))
        }
        giveUp(transfer, reason)
    }

    private mutating func giveUp(_ transfer: TransferID, _ reason: TransferFailed.Reason) {
        counters.transfersFailed &+= 1
        tellCoordinator(.transferFailed(TransferFailed(transfer: transfer, reason: reason)))
        drop(transfer, acknowledge: false)
    }

    mutating func cancel(_ transfer: TransferID) {
        if jobs[transfer] != nil { return drop(transfer, acknowledge: true) }
        if fences[transfer] != nil {
            fences[transfer]?.acknowledge = true
            return
        }
        countStale()
        tellCoordinator(.cancelAck(CancelAck(transfer: transfer)))
    }

    /// Gives everything of a job back: after the step that includes it, behind the fence where a
    /// sender may still read its slots, else now.
    mutating func drop(_ transfer: TransferID, acknowledge: Bool) {
        guard let job = jobs[transfer] else { return }
        if job.isInStep {
            jobs[transfer]?.ending = .init(acknowledge: acknowledge || job.ending?.acknowledge ?? false)
            return
        }
        jobs[transfer] = nil
        arrivals.removeAll { $0 == transfer }
        if current[transfer.job] == transfer { current[transfer.job] = nil }
        guard job.outgoing.isBeingRead, isLinked(job.target) else {
            var table = job.table
            table.release(in: &pool)
            if acknowledge { tellCoordinator(.cancelAck(CancelAck(transfer: transfer))) }
            return
        }
        fences[transfer] = Fence(table: job.table, target: job.target, acknowledge: acknowledge)
        actions.append(.stopPushing(job.target, transfer))
    }

    mutating func openFence(_ transfer: TransferID) {
        guard var fence = fences.removeValue(forKey: transfer) else { return }
        fence.table.release(in: &pool)
        if fence.acknowledge { tellCoordinator(.cancelAck(CancelAck(transfer: transfer))) }
    }
}
