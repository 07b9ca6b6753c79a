import KVPaging
import Messages
import ServingTypes

extension DecodeWorkerCore {
    // MARK: Cancelling

    /// At the next iteration's border at the latest. What is not held (any more) is acknowledged at
    /// once: the coordinator only wants to know that it is gone.
    mutating func cancel(_ transfer: TransferID) {
        if jobs[transfer] != nil { return drop(transfer, acknowledge: true) }
        if fences[transfer] != nil {
            fences[transfer]?.acknowledge = true
            return
        }
        countStale()
        tellCoordinator(.cancelAck(CancelAck(transfer: transfer)))
    }

    /// Gives everything of a job back without another word about its tokens: after the step that
    /// includes it, behind the fence where pages may still come, else now.
    mutating func drop(_ transfer: TransferID, acknowledge: Bool) {
        guard let job = jobs[transfer] else { return }
        if job.isInStep || job.isMoving {
            var acknowledges = acknowledge
            if case .dropped(true) = job.ending { acknowledges = true }
            jobs[transfer]?.ending = .dropped(acknowledge: acknowledges)
            return
        }
        if case .landing(let landing) = job.phase, !landing.wanted.isEmpty {
            let slots = jobs[transfer]?.table.releaseFencing(in: &pool) ?? []
            fences[transfer] = Fence(slots: slots, acknowledge: acknowledge)
            actions.append(.closeLanding(transfer))
            return forget(transfer)
        }
        forget(transfer)
        if acknowledge { tellCoordinator(.cancelAck(CancelAck(transfer: transfer))) }
        tellOfRoom()
    }

    /// Frees what the job holds and takes it off every list. No step and no writer may use it.
    mutating func forget(_ transfer: TransferID) {
        guard var job = jobs.removeValue(forKey: transfer) else { return }
        job.table.release(in: &pool)
        for place in job.hostSlots ?? [] { host.release(place) }
        if !job.isInPool { away.removeAll { $0 == transfer } }
        arrivals.removeAll { $0 == transfer }
        turns.removeAll { $0 == transfer }
        if current[transfer.job] == transfer { current[transfer.job] = nil }
    }

    // MARK: Ending

    mutating func finish(_ transfer: TransferID, _ end: StepEnd, for cause: TransferID? = nil) -> TokenStep {
        let offset = jobs[transfer]?.outputTokens ?? 0
        forget(transfer)
        return TokenStep(transfer: transfer, offset: offset, tokens: [], end: end, evictedFor: cause)
    }

    /// Outside a step.
    mutating func end(_ transfer: TransferID, _ end: StepEnd, for cause: TransferID? = nil) {
        emit([finish(transfer, end, for: cause)])
    }

    /// Gives the job's memory back for another's sake: it will be computed again.
    mutating func evict(_ transfer: TransferID, for cause: TransferID) {
        counters.jobsEvicted &+= 1
        end(transfer, .evicted, for: cause == transfer ? nil : cause)
    }

    // MARK: Leaving

    /// The drain's deadline: running jobs go on elsewhere from their tokens.
    mutating func handBackEverything() {
        for transfer in arrivals {
            guard let job = jobs[transfer] else { continue }
            if job.isLanding {
                fail(transfer, .targetRefused)
            } else if job.isInStep || job.isMoving {
                if job.ending == nil { jobs[transfer]?.ending = .evicted }
            } else {
                counters.jobsEvicted &+= 1
                end(transfer, .evicted)
            }
        }
    }

    /// No coordinator for the whole grace: nobody will ask for these tokens.
    mutating func abandonEverything() {
        for transfer in arrivals { drop(transfer, acknowledge: false) }
        buffered.removeAll()
        saidLately.removeAll()
        bufferedTokens = 0
    }

    mutating func finishDrain() {
        guard membership.isDraining, jobs.isEmpty, fences.isEmpty, buffered.isEmpty, underWay == nil,
            membership.finishDrain()
        else { return }
        tellCoordinator(.drainDone(DrainDone()))
        actions.append(.exitAfterDrain)
    }
}
