import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    /// Every message of a worker passes here; those of another incarnation than the registered one
    /// are dropped and counted, and one that only the coordinator may send costs the link.
    mutating func receive(_ message: Message, from worker: WorkerRef) {
        guard isCurrent(worker) else { return dropStale() }
        heard(worker)
        switch message {
        case .heartbeat(let beat): heartbeat(beat, from: worker)
        case .kvEvent(let event): pagesChanged(event, at: worker)
        case .drainDone: drainDone(worker)
        case .reserveAck(let ack): reserved(ack, by: worker)
        case .reserveNack(let nack):
            refused(nack.transfer, by: worker, nack.reason, freeBlocks: nack.freeBlocks)
        case .startDecodeAck(let reply): startReply(reply, from: worker)
        case .tokenSteps(let steps): tokenSteps(steps, from: worker)
        case .assignAck(let reply):
            if let refusal = reply.refusal {
                refused(reply.transfer, by: worker, refusal, freeBlocks: reply.freeBlocks)
            } else {
                prefillBegan(reply.transfer, on: worker)
            }
        case .assignNack(let nack): refused(nack.transfer, by: worker, nack.reason, freeBlocks: nack.freeBlocks)
        case .prefillProgress(let progress): prefillProgressed(progress, on: worker)
        case .prefillDone(let done): prefillDone(done, on: worker)
        case .transferCommitted(let commit): committed(commit, at: worker)
        case .transferFailed(let failure): transferFailed(failure, from: worker)
        case .cancelAck, .leaseRenew: break
        case .hello, .helloAck, .register, .registerAck, .drain, .reservePages, .startDecode, .setRunning,
            .assignPrefill, .pageOffer, .pageWant, .pagePush, .pageAck, .pageNack, .credit, .transferEnd, .cancel:
            actions.append(.closeLink(worker))
            lose(worker, diedUnderJobs: false, reason: "unlawful message")
        }
    }

    private mutating func heartbeat(_ beat: Heartbeat, from ref: WorkerRef) {
        let now = now
        workers.change(ref.id) { worker in
            if beat.load.stepsFinished != worker.load.stepsFinished { worker.lastProgress = now }
            worker.load = beat.load
        }
        learnRoom(available: beat.load.blocks.available, freeHostPages: beat.load.swap.free, of: ref)
        refreshOrder(at: ref)
    }

    private mutating func pagesChanged(_ event: KVEvent, at worker: WorkerRef) {
        switch event.change {
        case .stored(let pages): index.apply(.stored(pages), sequence: event.sequence, from: worker.id)
        case .removed(let pages): index.apply(.removed(pages), sequence: event.sequence, from: worker.id)
        case .snapshot(let pages): index.apply(.snapshot(pages), sequence: event.sequence, from: worker.id)
        }
    }

    // MARK: Reservation and assignment

    private mutating func reserved(_ ack: ReserveAck, by worker: WorkerRef) {
        guard let job = current(ack.transfer), case .reserving(let pair) = job.phase, pair.decode == worker,
            let target = current(worker)
        else { return dropStale() }
        stamp(job.id, \.reserved)
        setPhase(job.id, .assigned(pair))
        expect(job.id, within: configuration.replyTimeout)
        let isUrgent = workers.read(pair.prefill.id) { precedes(job.id, prefillsOf: $0) } ?? false
        send(
            pair.prefill,
            .assignPrefill(
                AssignPrefill(
                    transfer: job.transfer, tenant: job.pageSpace, tokens: job.sequenceSoFar,
                    promptTokens: job.promptTokens, pageIDs: job.names, sampling: job.submission.sampling,
                    wanted: ack.wanted, target: worker, targetHost: target.register.dataHost,
                    targetPort: target.register.dataPort, path: configuration.kvPath, creditBytes: ack.creditBytes,
                    lease: configuration.transferLease, precedes: isUrgent)))
    }

    /// A typed no: the job goes to another worker, or is held once enough have been asked.
    private mutating func refused(
        _ transfer: TransferID, by worker: WorkerRef, _ reason: Refusal, freeBlocks: Int
    ) {
        guard let job = current(transfer), isAsked(worker, in: job.phase) else { return dropStale() }
        let id = job.id
        cancelWorkers(of: job, except: worker, reason: .superseded)
        release(id)
        switch reason {
        case .noMemory: workers.change(worker.id) { $0.availableBlocks = freeBlocks }
        case .tooLong, .malformed: jobs[id]?.unfit.append(worker.id)
        case .draining: learnsOfDrain(worker)
        case .tooManyJobs, .staleEpoch, .staleAttempt, .unknownTransfer: break
        }
        // A worker that has seen a higher attempt is asked again under a higher number.
        if reason != .staleAttempt { jobs[id]?.refusedBy.append(worker.id) }
        jobs[id]?.refusals += 1
        setPhase(id, .queued)
        if (jobs[id]?.refusals ?? 0) >= configuration.candidatesMax {
            hold(id, for: configuration.holdAfterRefusals)
        } else {
            policy.requeue(id, at: now)
        }
        mayPlace = true
    }

    private func isAsked(_ worker: WorkerRef, in phase: Phase) -> Bool {
        switch phase {
        case .reserving(let pair): pair.decode == worker
        case .assigned(let pair): pair.prefill == worker
        case .starting(let asked): asked == worker
        case .queued, .held, .prefilling, .transferring, .decoding: false
        }
    }

    private mutating func startReply(_ reply: TransferReply, from worker: WorkerRef) {
        if let refusal = reply.refusal {
            return refused(reply.transfer, by: worker, refusal, freeBlocks: reply.freeBlocks)
        }
        guard let job = current(reply.transfer), case .starting(worker) = job.phase else { return }
        becomeResident(job.id, at: worker, local: true)
    }

    // MARK: Prefill

    private mutating func prefillBegan(_ transfer: TransferID, on worker: WorkerRef) {
        guard let job = current(transfer), case .assigned(let pair) = job.phase, pair.prefill == worker else { return }
        stamp(job.id, \.prefilling)
        setPhase(job.id, .prefilling(pair))
        expectPrefill(job.id, on: worker)
    }

    private mutating func expectPrefill(_ id: JobID, on worker: WorkerRef) {
        let queued = workers.read(worker.id) { $0.queuedTokens } ?? 0
        expect(id, within: configuration.jobSilenceMax + costs.prefill(tokens: queued) * 3)
    }

    private mutating func prefillProgressed(_ progress: PrefillProgress, on worker: WorkerRef) {
        prefillBegan(progress.transfer, on: worker)
        guard let job = current(progress.transfer), case .prefilling(let pair) = job.phase, pair.prefill == worker,
            let dispatch = job.dispatch
        else { return dropStale() }
        let now = now
        workers.change(worker.id) { $0.progressed(at: now) }
        let fresh = progress.computedTokens - max(dispatch.reachedTokens, progress.cachedTokens)
        jobs[job.id]?.dispatch?.cachedTokens = progress.cachedTokens
        guard fresh > 0 else { return }
        jobs[job.id]?.dispatch?.reachedTokens = progress.computedTokens
        jobs[job.id]?.dispatch?.computedTokens += fresh
        countComputed(job.id)
        let left = max(dispatch.sequenceTokens - progress.computedTokens, 0)
        workers.change(worker.id) { $0.addPrefill(job.id, tokens: left, at: now) }
        costs.observePrefill(tokens: fresh, time: progress.computeTime)
        policy.served(job.id, for: progress.computeTime, nextIteration: decodeIteration)
        expectPrefill(job.id, on: worker)
        mayPlace = true
    }

    private mutating func prefillDone(_ done: PrefillDone, on worker: WorkerRef) {
        prefillBegan(done.transfer, on: worker)
        guard let job = current(done.transfer), let base = job.dispatch?.base else { return dropStale() }
        let id = job.id
        switch job.phase {
        case .prefilling(let pair) where pair.prefill == worker:
            let now = now
            workers.change(worker.id) { $0.progressed(at: now) }
            workers.change(worker.id) { $0.removePrefill(id) }
            succeeded(worker.id)
            mayPlace = true
            settlePrefill(id, cached: done.cachedTokens)
            stamp(id, \.transferring)
            setPhase(id, .transferring(pair))
            expectTransfer(id)
            give(id, [done.firstToken], offset: base)
            guard jobs[id] != nil else { return }
            if pair.committed { becomeResident(id, at: pair.decode, local: false) }
            for step in pair.early where jobs[id]?.attempt == done.transfer.attempt {
                apply(step, from: pair.decode, computeTime: .zero)
            }
        case .decoding(let residence) where !residence.local:
            // D told the first token before P did.
            settlePrefill(id, cached: done.cachedTokens)
        case .queued, .held, .reserving, .starting, .assigned, .prefilling, .transferring, .decoding:
            dropStale()
        }
    }

    private mutating func expectTransfer(_ id: JobID) {
        guard let job = jobs[id] else { return }
        var bytes = 0.0
        if let decode = job.phase.decodeWorker, let register = workers[decode.id]?.register {
            bytes = Double(register.pageBytes) * Double(blocksNeeded(job.sequenceTokens))
        }
        let transfer = TimeSpan(seconds: bytes / max(configuration.transferRateMin, 1))
        expect(id, within: configuration.transferStall + transfer)
    }

    // MARK: Transfer

    private mutating func committed(_ commit: TransferCommitted, at worker: WorkerRef) {
        guard let job = current(commit.transfer), job.phase.decodeWorker == worker, let dispatch = job.dispatch else {
            return dropStale()
        }
        let id = job.id
        if !dispatch.commitCounted {
            jobs[id]?.dispatch?.commitCounted = true
            jobs[id]?.route.kvBytesMoved &+= commit.receivedBytes
            jobs[id]?.route.blocksReused += commit.reusedBlocks
            counters.transfersCommitted += 1
            counters.kvBytesMoved &+= commit.receivedBytes
            succeeded(worker.id)
        }
        switch job.phase {
        case .assigned(var pair):
            pair.committed = true
            setPhase(id, .assigned(pair))
        case .prefilling(var pair):
            pair.committed = true
            setPhase(id, .prefilling(pair))
        case .transferring: becomeResident(id, at: worker, local: false)
        case .decoding: break
        case .queued, .held, .reserving, .starting: dropStale()
        }
    }

    private mutating func transferFailed(_ failure: TransferFailed, from worker: WorkerRef) {
        guard let job = current(failure.transfer), job.phase.workers.contains(worker) else { return dropStale() }
        counters.transfersFailed += 1
        note(.transferFailed(job.transfer, failure.reason))
        switch failure.reason {
        case .engine: inhibit(worker.id)
        case .linkLost, .cannotConnect, .checksum, .incomplete, .leaseExpired, .targetRefused, .stalled: break
        }
        let leaving = job.phase.workers.contains { current($0)?.isDraining ?? true }
        if !leaving { jobs[job.id]?.transferFailures += 1 }
        requeue(
            job.id, reason: "transfer failed: \(failure.reason.rawValue)", avoiding: job.phase.workers.map(\.id),
            counts: !leaving, tell: .superseded)
    }
}
