import Messages
import Scheduling
import ServingTypes

/// A waiting job, next in the policy's order, that has a right to a slot of a worker and finds no memory
/// there: others give theirs up for it.
struct Claim: Hashable, Sendable {
    var job: JobID
    var worker: WorkerRef
    /// Blocks that it would take.
    var blocks: Int
    /// Running jobs that rest meanwhile, so that their pages can leave.
    var resting: [JobID] = []
    /// How often others' memory was taken for it by computing their work again, and the worker's
    /// iteration at the last time.
    var displacements = 0
    var takenAt: UInt64 = 0
}

/// Who may become resident on a decoding worker, and who gives way.
///
/// Slots are what the policy orders, so a job may come if fewer than the residency would get a slot
/// before it: residents that it would displace do not count, wherever their pages lie. Memory then
/// decides: what is free, else what jobs of less urgency can write to the host tier, and where there is no
/// such tier, what tenants several theta ahead of the job's own hold (scheduling.md §4.3).
extension Coordinator {
    // MARK: Rooms

    /// What a worker says of its memory.
    mutating func learnRoom(available: Int, freeHostPages: Int, of ref: WorkerRef) {
        let grew = workers.change(ref.id) { worker in
            worker.decodes && worker.learn(available: available, freeHostPages: freeHostPages)
        }
        if grew ?? false { wakeHeld() }
    }

    /// Below the residency, or ahead of enough of those who are there. Without a look left at full
    /// workers, the answer is no.
    func hasPlace(_ worker: Worker, for job: Job, _ looks: inout Int) -> Bool {
        let jobsMax = worker.register.jobsMax
        if jobsMax > 0, worker.jobs.count >= jobsMax { return false }
        if !isNextForMemory(job.id, of: worker) { return false }
        let limit = residentsMax(worker)
        if worker.jobs.count - worker.away.count < limit { return true }
        guard configuration.policy.preemptsRunning, looks > 0 else { return false }
        looks -= 1
        return standing(of: job.id, on: worker) < limit
    }

    /// Whether none of those whose pages are away would have memory before this one.
    private func isNextForMemory(_ job: JobID, of worker: Worker) -> Bool {
        worker.away.isEmpty
            || policy.countAhead(of: job, among: worker.residents.filter { worker.away.contains($0) }, at: now) == 0
    }

    /// Jobs that would get a slot before this one: residents that it would not displace, and those that
    /// are on their way.
    private func standing(of job: JobID, on worker: Worker) -> Int {
        policy.countAhead(of: job, among: worker.residents, at: now) + worker.jobs.count - worker.residents.count
    }

    func residentsMax(_ worker: Worker) -> Int {
        max(worker.register.batchJobsMax * max(configuration.decodeResidencyPercent, 1) / 100, 1)
    }

    /// Blocks left for those who run to grow into, one for each, where there is no host tier and a job
    /// that comes would otherwise soon be the reason to compute one of them again.
    func growthReserve(of worker: Worker) -> Int {
        guard configuration.policy.preemptsRunning, !worker.register.reservesWholeJobs, worker.freeHostPages == 0
        else { return 0 }
        return min(worker.residents.count, worker.register.batchJobsMax, worker.register.blockCount / 8)
    }

    /// Whether the next waiting job could go to this worker, or could claim memory there.
    mutating func nextWouldGo(to name: WorkerID) -> Bool {
        guard let id = policy.next(at: now), claim?.job != id, let job = jobs[id], let worker = workers[name],
            worker.state == .ready
        else { return false }
        var looks = 1
        return hasPlace(worker, for: job, &looks)
    }

    // MARK: Claims

    /// The job has to wait. Where that is for memory only, it claims some.
    mutating func claimRoom(for job: Job) {
        guard configuration.policy.preemptsRunning, let (worker, blocks) = worstOff(job) else { return }
        var next = Claim(job: job.id, worker: worker.ref, blocks: blocks)
        if let claim, claim.job == job.id, claim.worker == worker.ref {
            (next.displacements, next.takenAt) = (claim.displacements, claim.takenAt)
        }
        let lacking = blocks - worker.availableBlocks
        if worker.freeHostPages >= lacking {
            guard let resting = restingFor(job.id, worker, lacking) else { return }
            next.resting = resting
        } else {
            takeBack(lacking, from: worker, for: job, &next)
            if next.displacements == 0 { return }
        }
        isClaimed = true
        setClaim(next)
    }

    /// The worker where the job would run at once had it the memory, and the blocks it would take there:
    /// of several the one with the most of them free.
    private func worstOff(_ job: Job) -> (worker: Worker, blocks: Int)? {
        let prefixes = index.prefixLengths(of: job.names)
        var best: (worker: Worker, blocks: Int)?
        for worker in workers.all where worker.decodes && worker.state == .ready && !isInhibited(worker.ref.id) {
            guard !job.unfit.contains(worker.ref.id), !job.refusedBy.contains(worker.ref.id),
                worker.register.jobsMax == 0 || worker.jobs.count < worker.register.jobsMax
            else { continue }
            let blocks = max(blocksTaken(job, by: worker.register) - prefixes[worker.ref.id], 0)
            guard blocks <= worker.register.blockCount, blocks + growthReserve(of: worker) > worker.availableBlocks
            else { continue }
            if let best, best.worker.availableBlocks >= worker.availableBlocks { continue }
            guard isNextForMemory(job.id, of: worker),
                standing(of: job.id, on: worker) < worker.register.batchJobsMax
            else { continue }
            best = (worker, blocks)
        }
        return best
    }

    /// Running jobs that have to rest so that enough can be written out; nil where even so it is not
    /// enough, or the policy would not have it.
    private func restingFor(_ job: JobID, _ worker: Worker, _ lacking: Int) -> [JobID]? {
        var (paused, running) = (0, [Holding]())
        for id in worker.residents where !worker.away.contains(id) {
            let holding = jobs.readOptional(id) { job -> (runs: Bool, tokens: Int)? in
                guard case .decoding(let residence) = job.phase else { return nil }
                return (residence.running, job.sequenceTokens)
            }
            guard let holding else { continue }
            let blocks = blocksNeeded(holding.tokens)
            if holding.runs { running.append(Holding(job: id, units: blocks)) } else { paused += blocks }
        }
        if paused >= lacking { return [] }
        let resting = policy.victims(among: running, freeing: lacking - paused, for: job, at: now)
        return resting.isEmpty ? nil : resting
    }

    /// Without a host tier: takes memory of tenants that are far ahead, whose work the
    /// claimant's tenant then pays to have done again. At most `Limits.displacements` times for one job.
    private mutating func takeBack(_ blocks: Int, from worker: Worker, for job: Job, _ claim: inout Claim) {
        let lacking = blocks + growthReserve(of: worker)
        guard configuration.policy.separatesTenants, claim.displacements < ResidencyLimits.displacements,
            claim.displacements == 0 || worker.iteration > claim.takenAt + 1
        else { return }
        let holdings = worker.residents.compactMap { id -> Holding? in
            guard let (tenant, tokens) = jobs.read(id, { ($0.tenant, $0.sequenceTokens) }), tenant != job.tenant
            else { return nil }
            return Holding(job: id, units: blocksNeeded(tokens))
        }
        let theta = configuration.policy.theta.multipliedReportingOverflow(by: ResidencyLimits.recomputingThetas)
        let victims = policy.victims(
            among: holdings, freeing: lacking, for: job.id, theta: theta.overflow ? .max : theta.partialValue, at: now)
        guard !victims.isEmpty else { return }
        claim.displacements += 1
        claim.takenAt = worker.iteration
        for victim in victims {
            jobs.change(victim) { $0.displacedBy = job.tenant }
            requeue(victim, reason: "its memory was needed", counts: false, tell: .superseded)
        }
        // Free once the worker says so.
        let available = worker.availableBlocks
        workers.change(worker.ref.id) { $0.availableBlocks = min($0.availableBlocks, available) }
    }

    mutating func setClaim(_ next: Claim?) {
        guard claim != next else { return }
        for worker in [claim?.worker, next?.worker] {
            if let worker, isCurrent(worker) { needReplan(worker.id) }
        }
        claim = next
    }

    enum ResidencyLimits {
        /// How many theta a tenant must be ahead before its work is thrown away for another's sake, which
        /// costs both: more than for a slot.
        static let recomputingThetas: Int64 = 4
        /// Times that memory is taken for one claim.
        static let displacements = 2
        /// Jobs told to stand by, at most, and of the slots.
        static let standby = 8
        static let standbyShare = 4
    }
}
