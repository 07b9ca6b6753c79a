import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    /// One iteration of a decode worker.
    mutating func tokenSteps(_ message: TokenSteps, from worker: WorkerRef) {
        workers[worker.id]?.progressed(at: now)
        observe(message)
        for step in message.steps { apply(step, from: worker, computeTime: message.computeTime) }
        guard let state = current(worker) else { return }
        if configuration.policy.preemptsRunning, state.residents.count > state.register.batchJobsMax {
            needReplan(worker.id)
        }
    }

    private mutating func observe(_ message: TokenSteps) {
        guard !message.steps.isEmpty, message.steps.allSatisfy({ $0.prefilledTokens == 0 }) else { return }
        let context = message.steps.reduce(0) { $0 + (jobs[$1.transfer.job]?.sequenceTokens ?? 0) }
        costs.observeDecode(jobs: message.steps.count, contextTokens: context, time: message.computeTime)
    }

    var decodeIteration: TimeSpan { costs.decodeStep(jobs: 1, contextTokens: 0) }

    /// What one job got in one iteration. Steps may overtake P's first token, since they come on
    /// another link; they wait for it then.
    mutating func apply(_ step: TokenStep, from worker: WorkerRef, computeTime: TimeSpan) {
        guard let job = current(step.transfer), job.phase.decodeWorker == worker else { return dropStale() }
        let id = job.id
        switch job.phase {
        case .assigned(let pair), .prefilling(let pair):
            if step.offset > job.log.count { return keepEarly(step, pair, of: job) }
            workers[pair.prefill.id]?.removePrefill(id)
            becomeResident(id, at: worker, local: false)
        case .transferring: becomeResident(id, at: worker, local: false)
        case .starting: becomeResident(id, at: worker, local: true)
        case .decoding: break
        case .queued, .held, .reserving: return dropStale()
        }
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
            if isStill(step.transfer) { evicted(id, from: worker) }
        }
    }

    private func isStill(_ transfer: TransferID) -> Bool { current(transfer) != nil }

    private mutating func evicted(_ id: JobID, from worker: WorkerRef) {
        guard let state = current(worker) else { return }
        requeue(id, reason: "evicted", counts: !state.isDraining)
        // Full, until it says otherwise.
        if !state.isDraining { workers[worker.id]?.availableBlocks = 0 }
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
    }

    /// Appends to the log, then emits, then charges: each token once, whatever is repeated.
    mutating func give(_ id: JobID, _ tokens: [SampledToken], offset: Int) {
        guard let transfer = jobs[id]?.transfer, let outcome = jobs[id]?.append(tokens, from: offset) else { return }
        switch outcome {
        case .gap:
            guard let worker = jobs[id]?.phase.decodeWorker else { return }
            protocolError(id, at: worker, "token gap")
        case .appended(let start, let fresh, let repeated):
            counters.duplicateTokensDropped += UInt64(repeated)
            guard !fresh.isEmpty else { return }
            stampTokens(id, from: start, count: fresh.count)
            counters.outputTokens += UInt64(fresh.count)
            if let tenant = jobs[id]?.tenant { policy.charge(tenant, outputTokens: fresh.count) }
            actions.append(.emit(id, offset: start, tokens: fresh))
            jobs[id]?.redispatches = 0
            jobs[id]?.avoided = []
            jobs[id]?.transferFailures = 0
            if let reason = jobs[id]?.endOfLog, isStill(transfer) {
                cancelAtEnd(id)
                end(id, .finished(reason))
            }
        }
    }

    /// The log ends the job by itself; a worker that has not said so must hear of it.
    private mutating func cancelAtEnd(_ id: JobID) {
        guard let job = jobs[id] else { return }
        cancelWorkers(of: job, except: nil, reason: .stopString)
    }

    private mutating func stampTokens(_ id: JobID, from start: Int, count: Int) {
        guard let job = jobs[id] else { return }
        let at = now
        jobs[id]?.lastTokenAt = at
        if let before = job.lastTokenAt { histograms.observe(gap: at - before, tokens: count) }
        if start == 0 {
            stamp(id, \.firstToken)
            histograms.observeFirstToken(after: at - job.stamps.received)
        }
        if start <= 1, start + count >= 2, job.stamps.secondToken == nil { stamp(id, \.secondToken) }
        guard case .decoding(var residence) = job.phase else { return }
        let due = now + configuration.jobSilenceMax
        jobs[id]?.dispatch?.due = due
        guard !residence.hasStepped else { return }
        residence.hasStepped = true
        jobs[id]?.phase = .decoding(residence)
        if residence.local { stamp(id, \.decoding) }
        succeeded(residence.worker.id)
    }

    /// Stamps an edge of the lifecycle. A retry before the first token stamps anew, so that the
    /// stamps tell how that token came about; after it the first stamp stays.
    mutating func stamp(_ id: JobID, _ edge: WritableKeyPath<JobStamps, Instant?>) {
        guard let stamps = jobs[id]?.stamps, stamps.firstToken == nil || stamps[keyPath: edge] == nil else { return }
        let at = now
        jobs[id]?.stamps[keyPath: edge] = at
    }

    // MARK: Residency

    /// The job can decode on this worker from now on; it runs unless the next plan pauses it.
    mutating func becomeResident(_ id: JobID, at worker: WorkerRef, local: Bool) {
        guard let job = jobs[id], var state = current(worker) else { return }
        if case .decoding = job.phase { return }
        for peer in job.phase.workers where peer != worker {
            workers[peer.id]?.detach(id)
            mayPlace = true
        }
        if state.residents.isEmpty && state.prefills.isEmpty { state.lastProgress = now }
        if !local { state.removePrefill(id) }
        state.residents.append(id)
        workers[worker.id] = state
        if local {
            stamp(id, \.reserved)
            stamp(id, \.prefilling)
        } else {
            stamp(id, \.decoding)
        }
        setPhase(id, .decoding(Residence(worker: worker, local: local)))
        policy.started(id)
        let queued = local ? state.queuedTokens : 0
        expect(id, within: configuration.jobSilenceMax + costs.prefill(tokens: queued) * 3)
        needReplan(worker.id)
    }

    /// Sends plan deltas to the workers whose residents or counters have changed.
    mutating func replanRunning() {
        let names = replans
        replans.removeAll(keepingCapacity: true)
        for name in names {
            if let worker = workers[name] { replan(worker) }
        }
    }

    private mutating func replan(_ worker: Worker) {
        let slots = worker.register.batchJobsMax
        var chosen = worker.residents
        if chosen.count > slots {
            chosen = policy.runningSet(of: worker.residents, slots: slots, at: now)
        }
        let running = Set(chosen)
        var plan = SetRunning(run: [], pause: [])
        for id in worker.residents {
            guard let job = jobs[id], case .decoding(var residence) = job.phase else { continue }
            let runs = running.contains(id)
            guard runs != residence.running else { continue }
            residence.running = runs
            jobs[id]?.phase = .decoding(residence)
            if runs {
                plan.run.append(job.transfer)
                policy.started(id)
                expect(id, within: configuration.jobSilenceMax)
            } else {
                plan.pause.append(job.transfer)
                if residence.hasStepped {
                    jobs[id]?.route.preemptions += 1
                    counters.preempted += 1
                }
            }
        }
        if !plan.run.isEmpty || !plan.pause.isEmpty { send(worker.ref, .setRunning(plan)) }
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
        policy.charge(job.tenant, promptTokens: job.computedPrompt - job.chargedPrompt)
        jobs[id]?.chargedPrompt = job.computedPrompt
    }

    private mutating func countLocalPrefill(_ step: TokenStep, of id: JobID) {
        guard let job = jobs[id], let dispatch = job.dispatch, case .decoding(let residence) = job.phase,
            residence.local, !dispatch.prefillReported
        else { return }
        if step.prefilledTokens > 0 {
            jobs[id]?.dispatch?.computedTokens += step.prefilledTokens
            let due = now + configuration.jobSilenceMax
            jobs[id]?.dispatch?.due = due
            countComputed(id)
        }
        if step.tokens.isEmpty {
            let left = max(dispatch.sequenceTokens - dispatch.computedTokens - step.prefilledTokens, 1)
            workers[residence.worker.id]?.addPrefill(id, tokens: left, at: now)
        } else {
            workers[residence.worker.id]?.removePrefill(id)
            settlePrefill(id, cached: step.cachedTokens)
            mayPlace = true
        }
    }
}
