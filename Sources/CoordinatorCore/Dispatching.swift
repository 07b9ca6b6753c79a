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
        let prefixes = index.prefixLengths(of: job.names)
        let sinks = candidates(for: job, blocks: blocks, prefixes: prefixes) { $0 != .prefill }
        if sinks.able == 0, sinks.registered > 0 { return .never(tooLong(job, blocks: blocks)) }
        guard !sinks.open.isEmpty else { return sinks.refused > 0 && sinks.busy == 0 ? .hold : .wait }
        let sources = candidates(for: job, blocks: blocks, prefixes: prefixes) { $0 == .prefill }
        let request = PlacementRequest(
            sequenceTokens: job.sequenceTokens, bytesPerToken: bytesPerToken,
            localOnly: sources.living == 0 || job.transferFailures >= configuration.transferFailuresBeforeLocal)
        switch placement.place(request, prefill: sources.open, decode: sinks.open, costs: costs) {
        case .pair(let prefill, let decode): return .pair(prefill, decode)
        case .local(let worker): return .local(worker)
        case .none:
            if let worker = relief(for: job, sources: sources, sinks: sinks) { return .local(worker) }
            return sources.refused > 0 && sources.busy == 0 ? .hold : .wait
        }
    }

    /// Workers of one kind, by what they can do for a job.
    struct Candidates {
        /// With room now, those left out that another one stands for.
        var open: [PlacementCandidate] = []
        var front = Front()
        /// Registered; of them, those whose pool could hold the job at all; of these, those in health.
        var registered = 0
        var able = 0
        var living = 0
        /// Living, but refused this job, or without room.
        var refused = 0
        var busy = 0
        /// Full workers that may still be looked at for residents that the job would displace.
        var looks = 8
    }

    private func candidates(
        for job: Job, blocks: Int, prefixes: PrefixLengths, where suits: (WorkerRole) -> Bool
    ) -> Candidates {
        var result = Candidates()
        let isPlain =
            prefixes.longest == 0 && inhibitions.isEmpty && job.unfit.isEmpty && job.refusedBy.isEmpty
            && job.avoided.isEmpty
        for position in 0..<workers.count {
            let lane = workers.lanes[position]
            guard suits(lane.role) else { continue }
            result.registered += 1
            if isPlain, lane.blockCount >= blocks, result.front.covers(lane.queuedTokens, lane.jobs, lane.role) {
                // Another one stands for it, whether it has room or not.
                result.able += 1
                if lane.isReady { result.living += 1 }
            } else {
                consider(position, job, blocks, prefixes, &result)
            }
        }
        return result
    }

    private func consider(
        _ position: Int, _ job: Job, _ blocks: Int, _ prefixes: PrefixLengths, _ result: inout Candidates
    ) {
        let id = workers.names[position]
        guard workers.all[position].register.blockCount >= blocks,
            job.unfit.isEmpty || !job.unfit.contains(id)
        else { return }
        result.able += 1
        guard workers.all[position].state == .ready, !isInhibited(id) else { return }
        result.living += 1
        if !job.refusedBy.isEmpty, job.refusedBy.contains(id) {
            result.refused += 1
            return
        }
        let cachedBlocks = prefixes[id]
        let avoided = !job.avoided.isEmpty && job.avoided.contains(id)
        let taken = blocksTaken(job, by: workers.all[position].register)
        guard hasRoom(workers.all[position], job: job, blocks: taken - cachedBlocks, &result.looks) else {
            result.busy += 1
            return
        }
        let (queued, residents) = (workers.all[position].queuedTokens, workers.all[position].jobs.count)
        let role = workers.all[position].register.role
        if cachedBlocks == 0, !avoided, !result.front.admits(queued, residents, role) { return }
        result.open.append(
            PlacementCandidate(
                worker: workers.all[position].ref, role: role, queuedTokens: queued, residentJobs: residents,
                cachedTokens: cachedBlocks * configuration.blockTokens, avoided: avoided))
    }

    /// Of workers that differ in nothing but their load, one is enough that no other has less of
    /// either kind: a placement can never be better on a worker that another one is below.
    struct Front {
        private var least: [(queued: Int, residents: Int, role: WorkerRole)] = []

        func covers(_ queued: Int, _ residents: Int, _ role: WorkerRole) -> Bool {
            least.contains { $0.role == role && $0.queued <= queued && $0.residents <= residents }
        }

        mutating func admits(_ queued: Int, _ residents: Int, _ role: WorkerRole) -> Bool {
            if covers(queued, residents, role) { return false }
            least.append((queued, residents, role))
            return true
        }
    }

    private func hasRoom(_ worker: Worker, job: Job, blocks: Int, _ looks: inout Int) -> Bool {
        if inhibitions[worker.ref.id] != nil { return worker.jobs.isEmpty }
        switch worker.register.role {
        case .prefill:
            if worker.prefills.isEmpty { return true }
            if worker.prefills.count < configuration.prefillWindowJobs,
                worker.queuedTokens + job.sequenceTokens <= configuration.prefillWindowTokens
            {
                return true
            }
            // One more for whom the others would wait.
            return worker.prefills.count <= configuration.prefillWindowJobs && precedes(job.id, prefillsOf: worker)
        case .decode, .mixed:
            return blocks + growthReserve(of: worker) <= worker.availableBlocks
                && hasPlace(worker, for: job, blocks: blocks, &looks)
                && configuration.roomRule?.admits(job.id, on: worker.ref) ?? true
        }
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

    private var bytesPerToken: Double {
        for position in 0..<workers.count where workers.all[position].register.pageBytes > 0 {
            let register = workers.all[position].register
            return Double(register.pageBytes) / Double(max(register.blockTokens, 1))
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
