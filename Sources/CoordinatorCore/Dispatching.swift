import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    /// Gives out waiting jobs in the policy's order until the first that has to wait: nothing is
    /// skipped, so that a job which fits badly is not overtaken for ever.
    mutating func placeWaiting() {
        mayPlace = false
        while let id = policy.next(at: now), let job = jobs[id] {
            switch place(job) {
            case .pair(let prefill, let decode): startPair(id, prefill, decode)
            case .local(let worker): startLocal(id, worker)
            case .wait: return
            case .hold: hold(id, for: configuration.holdAfterRefusals)
            case .never(let error): end(id, .failed(error))
            }
        }
    }

    enum Verdict {
        case pair(WorkerRef, WorkerRef)
        case local(WorkerRef)
        /// Until some worker has room.
        case wait
        /// Only this job cannot go: the workers with room have refused it.
        case hold
        case never(ServingError)
    }

    private func place(_ job: Job) -> Verdict {
        let blocks = blocksNeeded(job.sequenceTokens + 1)
        let sinks = candidates(for: job, blocks: blocks) { $0.decodes }
        if sinks.able == 0, sinks.registered > 0 { return .never(tooLong(job, blocks: blocks)) }
        guard !sinks.open.isEmpty else { return sinks.refused > 0 && sinks.busy == 0 ? .hold : .wait }
        let sources = candidates(for: job, blocks: blocks) { $0.register.role == .prefill }
        let request = PlacementRequest(
            sequenceTokens: job.sequenceTokens, bytesPerToken: bytesPerToken,
            localOnly: sources.living == 0 || job.transferFailures >= configuration.transferFailuresBeforeLocal)
        switch placement.place(request, prefill: sources.open, decode: sinks.open, costs: costs) {
        case .pair(let prefill, let decode): return .pair(prefill, decode)
        case .local(let worker): return .local(worker)
        case .none: return sources.refused > 0 && sources.busy == 0 ? .hold : .wait
        }
    }

    /// Workers of one kind, by what they can do for a job.
    struct Candidates {
        /// With room now.
        var open: [PlacementCandidate] = []
        /// Registered; of them, those whose pool could hold the job at all; of these, those in health.
        var registered = 0
        var able = 0
        var living = 0
        /// Living, but refused this job, or without room.
        var refused = 0
        var busy = 0
    }

    private func candidates(for job: Job, blocks: Int, where suits: (Worker) -> Bool) -> Candidates {
        var result = Candidates()
        for id in workerOrder {
            guard let worker = workers[id], suits(worker) else { continue }
            result.registered += 1
            guard worker.register.blockCount >= blocks, !job.unfit.contains(id) else { continue }
            result.able += 1
            guard worker.state == .ready, !isInhibited(id) else { continue }
            result.living += 1
            let cachedBlocks = index.prefixLength(of: job.names, on: id)
            if job.refusedBy.contains(id) {
                result.refused += 1
            } else if hasRoom(worker, job: job, blocks: blocks - cachedBlocks) {
                result.open.append(
                    PlacementCandidate(
                        worker: worker.ref, role: worker.register.role, queuedTokens: worker.queuedTokens,
                        residentJobs: worker.jobs.count, cachedTokens: cachedBlocks * configuration.blockTokens,
                        avoided: job.avoided.contains(id)))
            } else {
                result.busy += 1
            }
        }
        return result
    }

    private func hasRoom(_ worker: Worker, job: Job, blocks: Int) -> Bool {
        if inhibitions[worker.ref.id] != nil { return worker.jobs.isEmpty }
        switch worker.register.role {
        case .prefill:
            return worker.prefills.count < configuration.prefillWindowJobs
                && (worker.prefills.isEmpty
                    || worker.queuedTokens + job.sequenceTokens <= configuration.prefillWindowTokens)
        case .decode, .mixed:
            return worker.jobs.count < residentsMax(worker) && blocks <= worker.availableBlocks
        }
    }

    private func residentsMax(_ worker: Worker) -> Int {
        max(worker.register.batchJobsMax * max(configuration.decodeResidencyPercent, 1) / 100, 1)
    }

    func blocksNeeded(_ tokens: Int) -> Int {
        (tokens + configuration.blockTokens - 1) / max(configuration.blockTokens, 1)
    }

    private var bytesPerToken: Double {
        for id in workerOrder {
            if let register = workers[id]?.register, register.pageBytes > 0 {
                return Double(register.pageBytes) / Double(max(register.blockTokens, 1))
            }
        }
        return 0
    }

    private func tooLong(_ job: Job, blocks: Int) -> ServingError {
        ServingError(
            .contextTooLong,
            "The sequence has \(job.sequenceTokens) tokens and needs \(blocks) blocks; no worker that decodes can hold"
                + " so many for one job.", field: "prompt")
    }

    // MARK: Sending work

    private mutating func startPair(_ id: JobID, _ prefill: WorkerRef, _ decode: WorkerRef) {
        guard let job = beginAttempt(id, charging: prefill, holdingAt: decode) else { return }
        workers[prefill.id]?.attach(id)
        workers[prefill.id]?.addPrefill(id, tokens: job.sequenceTokens, at: now)
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
        workers[worker.id]?.addPrefill(id, tokens: job.sequenceTokens, at: now)
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
        let blocks = max(blocksNeeded(job.sequenceTokens + 1) - held, 0)
        job.dispatch = Dispatch(
            base: job.log.count, sequenceTokens: job.sequenceTokens, blocks: blocks, due: now, sentAt: now)
        if !job.promptSettled, job.chargedPrompt == 0 {
            let cached = index.prefixLength(of: job.names, on: source.id) * configuration.blockTokens
            job.chargedPrompt = max(job.promptTokens - cached, 1)
            policy.charge(job.tenant, promptTokens: job.chargedPrompt)
        }
        jobs[id] = job
        workers[decode.id]?.attach(id)
        workers[decode.id]?.availableBlocks -= blocks
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
