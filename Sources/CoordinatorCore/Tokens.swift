import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    /// One iteration of a decode worker.
    mutating func tokenSteps(_ message: TokenSteps, from worker: WorkerRef) {
        let now = now
        let isNew = workers.change(worker.id) { worker in
            worker.progressed(at: now)
            defer { worker.iteration = max(worker.iteration, message.iteration) }
            return message.iteration > worker.iteration
        }
        observe(message)
        for step in message.steps { apply(step, from: worker, computeTime: message.computeTime) }
        guard isCurrent(worker) else { return }
        if isNew ?? false {
            for transfer in message.started { tookSlot(transfer, on: worker) }
            if let room = message.room {
                learnRoom(available: room.freeBlocks, freeHostPages: room.freeHostPages, of: worker)
            }
        }
        guard configuration.policy.preemptsRunning else { return }
        let isCrowded = workers.read(worker.id) { $0.isCrowded } ?? false
        if isCrowded || claim?.resting == .farAheadAnywhere { needReplan(worker.id) }
        guard queuedJobs > 0, !mayPlace else { return }
        mayPlace = isCrowded && nextWouldGo(to: worker.id) || nextMayClaim(from: worker.id)
    }

    private mutating func observe(_ message: TokenSteps) {
        guard !message.steps.isEmpty, message.steps.allSatisfy({ $0.prefilledTokens == 0 }) else { return }
        let context = message.steps.reduce(0) { sum, step in
            sum + (jobs.read(step.transfer.job) { $0.sequenceTokens } ?? 0)
        }
        costs.observeDecode(jobs: message.steps.count, contextTokens: context, time: message.computeTime)
    }

    var decodeIteration: TimeSpan { costs.decodeStep(jobs: 1, contextTokens: 0) }

    /// What one job got in one iteration. Steps may overtake P's first token, since they come on
    /// another link; they wait for it then.
    mutating func apply(_ step: TokenStep, from worker: WorkerRef, computeTime: TimeSpan) {
        let id = step.transfer.job
        let known = jobs.read(id) { job in job.attempt == step.transfer.attempt ? job.phase : nil }
        guard case .some(.some(let phase)) = known, phase.decodeWorker == worker else { return dropStale() }
        switch phase {
        case .assigned(let pair), .prefilling(let pair):
            if let job = jobs[id], step.offset > job.log.count { return keepEarly(step, pair, of: job) }
            workers.change(pair.prefill.id) { $0.removePrefill(id) }
            becomeResident(id, at: worker, local: false)
        case .transferring: becomeResident(id, at: worker, local: false)
        case .starting: becomeResident(id, at: worker, local: true)
        case .decoding: break
        case .queued, .held, .reserving: return dropStale()
        }
        if let notice = step.swap { return moved(id, notice) }
        countLocalPrefill(step, of: id)
        policy.served(id, for: computeTime, nextIteration: decodeIteration)
        switch step.end {
        case nil: give(id, step.tokens, offset: step.offset)
        case .finished(let reason):
            give(id, step.tokens, offset: step.offset)
            guard isStill(step.transfer) else { return }
            switch reason {
            case .stop, .length: end(id, .finished(reason))
            case .cancelled, .failed: requeue(id, reason: "worker ended it: \(reason.rawValue)", avoiding: [worker.id])
            }
        case .failed(let error):
            give(id, step.tokens, offset: step.offset)
            if isStill(step.transfer) { end(id, .failed(error)) }
        case .evicted:
            give(id, step.tokens, offset: step.offset)
            if isStill(step.transfer) { evicted(id, from: worker, for: step.evictedFor) }
        }
    }

    private func isStill(_ transfer: TransferID) -> Bool { isCurrent(transfer) }

    private mutating func evicted(_ id: JobID, from worker: WorkerRef, for cause: TransferID?) {
        guard let state = current(worker) else { return }
        displaced(id, for: cause)
        requeue(id, reason: "evicted", counts: !state.isDraining)
        // Full, until it says otherwise.
        if !state.isDraining { workers.change(worker.id) { $0.availableBlocks = 0 } }
    }

    private mutating func keepEarly(_ step: TokenStep, _ pair: Pairing, of job: Job) {
        guard let base = job.dispatch?.base, step.offset > base, pair.early.count < Limits.earlySteps else {
            return protocolError(job.id, at: pair.decode, "token gap")
        }
        var pair = pair
        pair.committed = true
        pair.early.append(step)
        if case .prefilling = job.phase {
            setPhase(job.id, .prefilling(pair))
        } else {
            setPhase(job.id, .assigned(pair))
        }
    }

    enum Limits {
        /// Steps of one job that may wait for its first token.
        static let earlySteps = 1024
        /// Tenants whose next job finds no room before placing ends.
        static let roomlessTenants = 4
    }

    /// Appends to the log, then emits, then charges: each token once, whatever is repeated.
    mutating func give(_ id: JobID, _ tokens: [SampledToken], offset: Int) {
        let appended = jobs.change(id) { job in
            (outcome: job.append(tokens, from: offset), end: job.endOfLog)
        }
        guard let (outcome, ending) = appended else { return }
        switch outcome {
        case .gap:
            guard let worker = jobs[id]?.phase.decodeWorker else { return }
            protocolError(id, at: worker, "token gap")
        case .appended(let start, let fresh, let repeated):
            counters.duplicateTokensDropped += UInt64(repeated)
            guard !fresh.isEmpty else { return }
            stampTokens(id, from: start, count: fresh.count)
            counters.outputTokens += UInt64(fresh.count)
            policy.produced(id, tokens: fresh.count)
            forgiveRepeated(id, from: start, count: fresh.count)
            actions.append(.emit(id, offset: start, tokens: fresh))
            if let ending {
                cancelAtEnd(id)
                end(id, .finished(ending))
            }
        }
    }

    /// The log ends the job by itself; a worker that has not said so must hear of it.
    private mutating func cancelAtEnd(_ id: JobID) {
        guard let job = jobs[id] else { return }
        cancelWorkers(of: job, except: nil, reason: .stopString)
    }

    private mutating func stampTokens(_ id: JobID, from start: Int, count: Int) {
        let due = now + configuration.jobSilenceMax
        let at = now
        guard let marks = jobs.change(id, { $0.stampTokens(from: start, count: count, at: at, due: due) })
        else { return }
        if let gap = marks.gap { histograms.observe(gap: gap, tokens: count) }
        if let wait = marks.firstTokenAfter { histograms.observeFirstToken(after: wait) }
        if let worker = marks.provenWorker { succeeded(worker) }
    }

    /// Stamps an edge of the lifecycle. A retry before the first token stamps anew, so that the
    /// stamps tell how that token came about; after it the first stamp stays.
    mutating func stamp(_ id: JobID, _ edge: WritableKeyPath<JobStamps, Instant?>) {
        let at = now
        jobs.change(id) { job in
            guard job.stamps.firstToken == nil || job.stamps[keyPath: edge] == nil else { return }
            job.stamps[keyPath: edge] = at
        }
    }

    // MARK: Residency

    /// The job can decode on this worker from now on; it runs unless the next plan pauses it.
    mutating func becomeResident(_ id: JobID, at worker: WorkerRef, local: Bool) {
        guard let job = jobs[id], isCurrent(worker) else { return }
        if case .decoding = job.phase { return }
        for peer in job.phase.workers where peer != worker {
            workers.change(peer.id) { $0.detach(id) }
            mayPlace = true
        }
        let now = now
        workers.change(worker.id) { $0.becomeHome(of: id, local: local, at: now) }
        if local {
            stamp(id, \.reserved)
            stamp(id, \.prefilling)
        } else {
            stamp(id, \.decoding)
        }
        setPhase(id, .decoding(Residence(worker: worker, local: local)))
        if workers.read(worker.id, { $0.isCrowded }) ?? false {
            // The plan says who runs: one that comes does not stand before those who wait already.
            workers.change(worker.id) { $0.hasPaused = true }
        } else {
            policy.started(id)
        }
        let queued = local ? workers.read(worker.id) { $0.queuedTokens } ?? 0 : 0
        expect(id, within: configuration.jobSilenceMax + costs.prefill(tokens: queued) * 3)
        needReplan(worker.id)
    }

    // MARK: Charging the prompt

    /// P says how much of the prompt was cached: the provisional charge becomes the real one. Work
    /// done again after a loss is nobody's charge.
    mutating func settlePrefill(_ id: JobID, cached: Int) {
        guard let job = jobs[id], var dispatch = job.dispatch, !dispatch.prefillReported else { return }
        dispatch.prefillReported = true
        let computed = max(dispatch.sequenceTokens - max(cached, 0), 0)
        dispatch.cachedTokens = cached
        dispatch.computedTokens = max(computed, dispatch.computedTokens)
        jobs[id]?.dispatch = dispatch
        countComputed(id)
        if job.promptSettled {
            jobs[id]?.usage.recomputedTokens += computed
            counters.recomputedTokens += UInt64(computed)
            chargeDisplacer(of: id, computed)
        } else {
            let cachedPrompt = min(max(cached, 0), job.promptTokens)
            jobs[id]?.usage.cachedTokens = cachedPrompt
            counters.promptTokens += UInt64(job.promptTokens)
            counters.cachedTokens += UInt64(cachedPrompt)
            settleCharge(id)
            jobs[id]?.promptSettled = true
        }
    }

    /// D gave tokens, so the prefill was done, though P's word of it never came.
    mutating func settleUnreported(_ id: JobID) {
        guard let job = jobs[id], let dispatch = job.dispatch, job.log.count > dispatch.base else { return }
        settlePrefill(id, cached: dispatch.cachedTokens)
    }

    /// Remembers how much of the prompt has been computed by the most diligent attempt.
    mutating func countComputed(_ id: JobID) {
        guard let job = jobs[id], !job.promptSettled, let computed = job.dispatch?.computedTokens else { return }
        jobs[id]?.computedPrompt = max(job.computedPrompt, min(computed, job.promptTokens))
    }

    mutating func settleCharge(_ id: JobID) {
        guard let job = jobs[id], !job.promptSettled else { return }
        policy.settleAhead(job.tenant, charged: job.chargedPrompt, computed: job.computedPrompt)
        jobs[id]?.chargedPrompt = job.computedPrompt
        jobs[id]?.usage.computedTokens = job.computedPrompt
    }

    private mutating func countLocalPrefill(_ step: TokenStep, of id: JobID) {
        let local = jobs.read(id) { job -> (Residence, Dispatch)? in
            guard case .decoding(let residence) = job.phase, residence.local, let dispatch = job.dispatch,
                !dispatch.prefillReported
            else { return nil }
            return (residence, dispatch)
        }
        guard case .some(.some(let (residence, dispatch))) = local else { return }
        if step.prefilledTokens > 0 {
            jobs[id]?.dispatch?.computedTokens += step.prefilledTokens
            let due = now + configuration.jobSilenceMax
            jobs[id]?.dispatch?.due = due
            countComputed(id)
        }
        if step.tokens.isEmpty {
            let left = max(dispatch.sequenceTokens - dispatch.computedTokens - step.prefilledTokens, 1)
            let now = now
            workers.change(residence.worker.id) { $0.addPrefill(id, tokens: left, at: now) }
        } else {
            workers.change(residence.worker.id) { $0.removePrefill(id) }
            settlePrefill(id, cached: step.cachedTokens)
            mayPlace = true
        }
    }
}
