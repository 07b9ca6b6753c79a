import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    /// Gives out waiting jobs in the policy's order until the first that has to wait: no job is skipped
    /// for ever, so that one which fits badly goes at last. Tenants that have their share of the bridge
    /// stand back while others have not, and under fair sharing those whose next job finds no room, both
    /// only for tenants within theta; they are looked at again where others went.
    mutating func placeWaiting() {
        (mayPlace, isClaimed) = (false, false)
        workers.settle()
        var again = true
        while again {
            again = placeRound()
            policy.resumeTenants()
        }
        if !isClaimed { setClaim(nil) }
    }

    /// Whether a tenant stood back and others went, so that its share may have grown.
    private mutating func placeRound() -> Bool {
        var (stoodBack, went) = (false, false)
        var looks = Limits.roomlessTenants
        while let id = policy.next(at: now), let job = jobs[id] {
            switch place(job) {
            case .pair(let prefill, let decode):
                if hasItsShare(job), policy.standBack(job.tenant) {
                    stoodBack = true
                } else {
                    startPair(id, prefill, decode)
                    went = true
                }
            case .local(let worker):
                startLocal(id, worker)
                went = true
            case .wait:
                if !isClaimed { claimRoom(for: job) }
                looks -= 1
                guard configuration.policy.bendsToRoom, looks > 0, policy.standBack(job.tenant) else { return false }
            case .hold: hold(id, for: configuration.holdAfterRefusals)
            case .never(let error): end(id, .failed(error))
            }
        }
        return stoodBack && went
    }

    /// Whether all prompts that a prefill worker has belong to tenants more than theta ahead of the job's: then it goes
    /// before them.
    func precedes(_ job: JobID, prefillsOf worker: borrowing Worker) -> Bool {
        guard configuration.policy.separatesTenants, configuration.policy.preemptsRunning else { return false }
        var others = 0
        for id in worker.jobs where id != job && worker.prefills[id] != nil {
            guard policy.isAhead(id, of: job, by: configuration.policy.theta) else { return false }
            others += 1
        }
        return others > 0
    }

    /// Blocks that a worker takes a job with: for its next token, or, where it promises room to the
    /// end, for all that the job may bring.
    func blocksTaken(_ job: Job, by register: Register) -> Int {
        let next = blocksNeeded(job.sequenceTokens + 1)
        guard register.reservesWholeJobs else { return next }
        let (whole, overflow) = job.promptTokens.addingReportingOverflow(job.submission.sampling.maxTokens)
        return overflow
            ? register.blockCount : max(min(blocksNeeded(min(whole, Int.max / 2)), register.blockCount), next)
    }

    func blocksNeeded(_ tokens: Int) -> Int {
        (tokens + configuration.blockTokens - 1) / max(configuration.blockTokens, 1)
    }

    // MARK: Sending work

    private mutating func startPair(_ id: JobID, _ prefill: WorkerRef, _ decode: WorkerRef) {
        guard let job = beginAttempt(id, charging: prefill, holdingAt: decode) else { return }
        workers.change(prefill.id) { $0.attach(id) }
        let now = now
        workers.change(prefill.id) { $0.addPrefill(id, tokens: job.sequenceTokens, at: now) }
        jobs[id]?.route.prefill = prefill.id
        jobs[id]?.route.decode = decode.id
        setPhase(id, .reserving(Pairing(prefill: prefill, decode: decode)))
        expect(id, within: configuration.replyTimeout)
        send(
            decode,
            .reservePages(
                ReservePages(
                    transfer: job.transfer, tenant: job.pageSpace, tokens: job.sequenceSoFar,
                    promptTokens: job.promptTokens, pageIDs: job.names, sampling: job.submission.sampling,
                    source: prefill, lease: configuration.transferLease)))
    }

    private mutating func startLocal(_ id: JobID, _ worker: WorkerRef) {
        guard let job = beginAttempt(id, charging: worker, holdingAt: worker) else { return }
        let now = now
        workers.change(worker.id) { $0.addPrefill(id, tokens: job.sequenceTokens, at: now) }
        jobs[id]?.route.prefill = worker.id
        jobs[id]?.route.decode = worker.id
        setPhase(id, .starting(worker))
        expect(id, within: configuration.replyTimeout)
        counters.decodedLocally += 1
        send(
            worker,
            .startDecode(
                StartDecode(
                    transfer: job.transfer, tenant: job.pageSpace, tokens: job.sequenceSoFar,
                    promptTokens: job.promptTokens, pageIDs: job.names, sampling: job.submission.sampling)))
    }

    /// Opens a new attempt: books, stamps, the provisional charge, and the place at D.
    private mutating func beginAttempt(_ id: JobID, charging source: WorkerRef, holdingAt decode: WorkerRef) -> Job? {
        nameBlocks(id)
        guard var job = jobs[id] else { return nil }
        policy.dispatch(id, at: now)
        job.attempt = job.attempt.next
        job.route.attempts += 1
        if job.stamps.firstToken == nil { job.stamps.placed = now }
        let held = index.prefixLength(of: job.names, on: decode.id)
        let taken = workers.read(decode.id) { $0.register }.map { blocksTaken(job, by: $0) }
        let blocks = max((taken ?? blocksNeeded(job.sequenceTokens + 1)) - held, 0)
        job.dispatch = Dispatch(
            base: job.log.count, sequenceTokens: job.sequenceTokens, blocks: blocks, due: now, sentAt: now)
        if !job.promptSettled, job.chargedPrompt == 0 {
            let cached = index.prefixLength(of: job.names, on: source.id) * configuration.blockTokens
            job.chargedPrompt = max(job.promptTokens - cached, 1)
            policy.chargeAhead(job.tenant, promptTokens: job.chargedPrompt)
        }
        jobs[id] = job
        workers.change(decode.id) { $0.attach(id) }
        workers.change(decode.id) { $0.ask(id, blocks: blocks) }
        return job
    }

    /// Names every full block of the sequence so far.
    private mutating func nameBlocks(_ id: JobID) {
        guard let job = jobs[id] else { return }
        let full = job.sequenceTokens / max(configuration.blockTokens, 1)
        guard job.names.count != full else { return }
        guard let naming, job.names.count < full else {
            jobs[id]?.names = Array(job.names.prefix(full))
            return
        }
        let tokens = job.sequenceSoFar
        var names = job.names
        while names.count < full {
            let start = names.count * configuration.blockTokens
            let parent = names.last ?? naming.root(tenant: job.pageSpace)
            names.append(naming.child(of: parent, tokens: tokens[start..<start + configuration.blockTokens]))
        }
        jobs[id]?.names = names
    }

    // MARK: Holding

    /// Keeps a job out of the queue for a while; room that becomes free ends the wait early.
    mutating func hold(_ id: JobID, for span: TimeSpan) {
        guard let job = jobs[id] else { return }
        policy.withdraw(id)
        jobs[id]?.refusedBy = []
        jobs[id]?.refusals = 0
        jobs[id]?.dispatch = nil
        setPhase(id, .held(until: now + span))
        holds.set(id, to: JobTimer(at: now + span, sequence: job.sequence))
        setTimer(id)
    }

    mutating func endHold(_ id: JobID) {
        holds.remove(id)
        guard case .held = jobs[id]?.phase else { return }
        setPhase(id, .queued)
        policy.requeue(id, at: now)
        mayPlace = true
    }

    /// Memory has become free somewhere: those that waited for it may try again.
    mutating func wakeHeld() {
        mayPlace = true
        guard !holds.isEmpty, let least = holds.first?.id, let job = jobs[least], job.redispatches < 2 else { return }
        endHold(least)
    }
}
