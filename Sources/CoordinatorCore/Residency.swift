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
    var resting = Resting.here([])
    /// How often others' memory was taken for it by computing their work again, and the worker's
    /// iteration at the last time, and how often it had told its free blocks by then.
    var displacements = 0
    var takenAt: UInt64 = 0
    var toldAt: UInt64 = 0

    /// Who rests for its sake.
    enum Resting: Hashable, Sendable {
        /// These running jobs of the worker, so that their pages can leave.
        case here([JobID])
        /// Jobs of tenants far ahead, wherever they run: all that they hold is not enough.
        case farAheadAnywhere
    }
}

/// Who may become resident on a decoding worker, and who gives way.
///
/// Slots are what the policy orders, so a job may come if fewer than the residency would get a slot
/// before it: residents that it would displace do not count, wherever their pages lie. Memory then
/// decides: what is free, else what jobs of less urgency can write to the host tier, and where there is no
/// such tier, what tenants several theta ahead of the job's own hold (scheduling.md §4.3).
///
/// **The bound without a host tier.** Let g be the tenant with the least counter among those that wait, its
/// next job one that lacks nothing but memory, f any other tenant, and T = `recomputingThetas` theta. While g
/// waits, c_f - c_g is at most max(T, theta + u) + 2 w_q s, where u is the longest prompt, w_q the units of a token and
/// s the slots of all decoding workers. Counted out is what is no service: how far f
/// is lifted meanwhile (to the clamp, below a tenant that was charged so), and what f is charged for others' work that
/// is computed again because of f (`causedTokens`).
/// - c_g does not fall: jobs are charged their prompts when they leave the queue, and that charge is only lowered by
///   what a prefix cache saves, which has to be added where there is one.
/// - f can be charged a prompt only where its job leaves the queue, hence while it is no more than theta ahead (g is
///   next, and stands back for those within theta only): then c_f <= c_g + theta + u.
/// - f can be charged tokens only while its jobs run. The coordinator looks at every iteration told
///   (`nextMayClaim`). As soon as f is more than T ahead, f's jobs give their memory to g's (`takeBack`) or, where
///   all that such tenants hold is not enough or was taken twice already, they rest on all workers until g's job has
///   gone. Until then c_f <= c_g + T held before the iteration, which brings w_q s at most; and so does the next one,
///   which every worker has begun before it hears of the plan.
/// Nobody rests for ever: those who are not so far ahead run on, end or come to be so far ahead as well, and where
/// all who hold memory are, it is taken however often it was before, as soon as the worker has told what came free of the
/// last time. Where even that is not enough (blocks that nobody holds, behind a fence say), all run on: resting would
/// bring no memory (`restingHelps`), and no iteration at which to look again.
///
/// Not bounded so is a g that waits for something else: for a prefill worker's window (then by what runs until it
/// opens), or held back after refusals (`holdAfterRefusals`).
/// `RecomputingBoundTests` look at every iteration of random runs.
extension Coordinator {
    // MARK: Rooms

    /// What a worker says of its memory.
    mutating func learnRoom(available: Int, freeHostPages: Int, of ref: WorkerRef) {
        let grew = workers.change(ref.id) { worker in
            worker.decodes && worker.learn(available: available, freeHostPages: freeHostPages)
        }
        if grew ?? false { wakeHeld() }
    }

    /// Below the residency, or ahead of enough of those who are there.
    func hasPlace(_ worker: Worker, for job: Job, blocks: Int) -> Bool {
        let jobsMax = worker.register.jobsMax
        if jobsMax > 0, worker.jobs.count >= jobsMax { return false }
        if !isNextForMemory(job.id, of: worker) { return false }
        let limit = workers.rules.residentsMax(worker)
        if worker.jobs.count - worker.away.count < limit { return true }
        guard configuration.policy.preemptsRunning else { return false }
        return standing(of: job.id, on: worker) < limit && keepsSpare(worker, beside: job, blocks, limit)
    }

    /// Those displaced by their own tenant's younger jobs keep their memory, and where there is no host tier nothing
    /// else frees it: beyond the residency such jobs leave some for other tenants, and for growth.
    private func keepsSpare(_ worker: Worker, beside job: Job, _ blocks: Int, _ limit: Int) -> Bool {
        guard worker.freeHostPages == 0, !worker.register.reservesWholeJobs else { return true }
        let spare = worker.register.blockCount / ResidencyLimits.spareShare
        if worker.availableBlocks - blocks >= spare { return true }
        return standing(of: job.id, on: worker, displacesOwn: false) < limit
    }

    /// Whether none of those whose pages are away would have memory before this one.
    private func isNextForMemory(_ job: JobID, of worker: Worker) -> Bool {
        worker.away.isEmpty
            || policy.countAhead(of: job, among: worker.residents.filter { worker.away.contains($0) }, at: now) == 0
    }

    /// Jobs that would get a slot before this one: residents that it would not displace, and those that
    /// are on their way.
    private func standing(of job: JobID, on worker: Worker, displacesOwn: Bool = true) -> Int {
        policy.countAhead(of: job, among: worker.residents, displacesOwn: displacesOwn, at: now) + worker.jobs.count
            - worker.residents.count
    }

    /// See `LaneRules.growthReserve`.
    func growthReserve(of worker: Worker) -> Int { workers.rules.growthReserve(of: worker) }

    /// Whether the next waiting job could go to this worker, or could claim memory there.
    mutating func nextWouldGo(to name: WorkerID) -> Bool {
        guard let id = policy.next(at: now), claim?.job != id, let job = jobs[id], let worker = workers[name],
            worker.state == .ready
        else { return false }
        return hasPlace(worker, for: job, blocks: 0)
    }

    /// Whether the next waiting job may find tenants that are so far ahead of its own that they give it memory of this
    /// worker. What others hold is not looked at.
    func nextMayClaim(from name: WorkerID) -> Bool {
        guard configuration.policy.separatesTenants, let id = policy.peek() else { return false }
        let hasTier = workers.read(name) { $0.state == .ready ? $0.freeHostPages > 0 : nil } ?? nil
        guard let hasTier else { return false }
        if hasTier, claim?.job == id { return false }
        return policy.isAnyAhead(of: id, by: hasTier ? configuration.policy.theta : recomputingTheta)
    }

    /// Units that a tenant must be ahead before its work is thrown away for another's sake.
    var recomputingTheta: Int64 {
        let (product, overflow) = configuration.policy.theta.multipliedReportingOverflow(
            by: ResidencyLimits.recomputingThetas)
        return overflow ? .max : product
    }

    // MARK: Claims

    /// The job has to wait. Where that is for memory only, it claims some.
    mutating func claimRoom(for job: Job) {
        guard configuration.policy.preemptsRunning, let (worker, blocks) = worstOff(job) else { return }
        var next = Claim(job: job.id, worker: worker.ref, blocks: blocks)
        if let claim, claim.job == job.id {
            next.displacements = claim.displacements
            if claim.worker == worker.ref { (next.takenAt, next.toldAt) = (claim.takenAt, claim.toldAt) }
        }
        let lacking = blocks - worker.availableBlocks
        if worker.freeHostPages >= max(lacking, 1) {
            guard let resting = restingFor(job.id, worker, lacking) else { return }
            next.resting = .here(resting)
        } else if !takeBack(lacking, from: worker, for: job, &next) {
            let isAnyFarAhead = policy.isAnyAhead(of: job.id, by: recomputingTheta)
            if next.displacements == 0, !isAnyFarAhead { return }
            if isAnyFarAhead, restingHelps(next, on: worker) { next.resting = .farAheadAnywhere }
        }
        isClaimed = true
        setClaim(next)
    }

    /// The worker where the job would run at once had it the memory, and the blocks it would take there:
    /// of several the one with the most of them free. At most `claimLooks` are looked at closely.
    private func worstOff(_ job: Job) -> (worker: Worker, blocks: Int)? {
        let roomiestFirst = lackingRoom(for: job).sorted {
            $0.available == $1.available ? $0.position < $1.position : $0.available > $1.available
        }
        for place in roomiestFirst.prefix(ResidencyLimits.claimLooks) {
            let worker = workers.all[place.position]
            if isNextForMemory(job.id, of: worker), standing(of: job.id, on: worker) < worker.register.batchJobsMax {
                return (worker, place.blocks)
            }
        }
        return nil
    }

    /// Workers in health that could take the job at all and have not the memory, with what it would take there.
    private func lackingRoom(for job: Job) -> [(position: Int, available: Int, blocks: Int)] {
        let prefixes = index.prefixLengths(of: job.names)
        let next = blocksNeeded(job.sequenceTokens + 1)
        var lacking: [(position: Int, available: Int, blocks: Int)] = []
        for (position, lane) in workers.lanes.enumerated() where lane.decodes && lane.isReady && lane.opening != .shut {
            guard lane.spareBlocks < next || lane.reservesWholeJobs else { continue }
            let id = workers.names[position]
            guard !isInhibited(id), !job.unfit.contains(id), !job.refusedBy.contains(id) else { continue }
            let taken = lane.reservesWholeJobs ? blocksTaken(job, by: workers.all[position].register) : next
            let blocks = max(taken - prefixes[id], 0)
            if blocks <= lane.blockCount, blocks > lane.spareBlocks {
                lacking.append((position, lane.availableBlocks, blocks))
            }
        }
        return lacking
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

    /// Whether memory comes free while those who are far ahead rest: by others who hold some, or by what was taken and
    /// has not been told. Else nobody would run, and nothing would ever change.
    private func restingHelps(_ claim: Claim, on worker: Worker) -> Bool {
        let isAwaited = claim.displacements > 0 && !hasTold(worker, since: claim)
        return isAwaited
            || policy.ahead(of: claim.job, by: recomputingTheta, among: worker.residents).count < worker.jobs.count
    }

    /// Whether a worker's free blocks are those after memory was taken last: of the second iteration since, as the
    /// first was under way, or, where nobody runs that could bring one, of the second word since.
    private func hasTold(_ worker: Worker, since claim: Claim) -> Bool {
        if worker.iteration > claim.takenAt + 1 { return true }
        let runs = worker.residents.contains { id in
            guard case .decoding(let residence) = jobs.readOptional(id, { $0.phase }) else { return false }
            return residence.running
        }
        return !runs && worker.timesTold > claim.toldAt + 1
    }

    /// Blocks of a worker's pool that a resident has: all that it may come to need where that is promised.
    private func blocksHeld(_ id: JobID, on worker: Worker) -> Int? {
        guard worker.register.reservesWholeJobs else { return jobs.read(id) { $0.sequenceTokens }.map(blocksNeeded) }
        return jobs[id].map { blocksTaken($0, by: worker.register) }
    }

    /// Without a host tier: takes memory of tenants that are far ahead, whose work the
    /// claimant's tenant then pays to have done again. At most `Limits.displacements` times for one job, or
    /// as long as nobody but tenants that far ahead holds memory. False where nothing was taken.
    private mutating func takeBack(_ blocks: Int, from worker: Worker, for job: Job, _ claim: inout Claim) -> Bool {
        guard configuration.policy.separatesTenants, claim.displacements == 0 || hasTold(worker, since: claim)
        else { return false }
        let far = policy.ahead(of: job.id, by: recomputingTheta, among: worker.residents)
        let everybody = far.count == worker.jobs.count
        guard !far.isEmpty, everybody || claim.displacements < ResidencyLimits.displacements else { return false }
        let holdings = far.compactMap { id -> Holding? in
            blocksHeld(id, on: worker).map { Holding(job: id, units: $0) }
        }
        var victims = victims(among: holdings, freeing: blocks + growthReserve(of: worker), for: job.id)
        if victims.isEmpty, everybody { victims = self.victims(among: holdings, freeing: blocks, for: job.id) }
        guard !victims.isEmpty else { return false }
        claim.displacements += 1
        (claim.takenAt, claim.toldAt) = (worker.iteration, worker.timesTold)
        for victim in victims {
            jobs.change(victim) { $0.displacedBy = job.tenant }
            requeue(victim, reason: "its memory was needed", counts: false, tell: .superseded)
        }
        // Free once the worker says so.
        let available = worker.availableBlocks
        workers.change(worker.ref.id) { $0.availableBlocks = min($0.availableBlocks, available) }
        return true
    }

    private func victims(among holdings: [Holding], freeing blocks: Int, for job: JobID) -> [JobID] {
        policy.victims(among: holdings, freeing: blocks, for: job, theta: recomputingTheta, at: now)
    }

    mutating func setClaim(_ next: Claim?) {
        guard claim != next else { return }
        for worker in [claim?.worker, next?.worker] {
            if let worker, isCurrent(worker) { needReplan(worker.id) }
        }
        if claim?.resting == .farAheadAnywhere || next?.resting == .farAheadAnywhere {
            for worker in workers.all where worker.decodes { needReplan(worker.ref.id) }
        }
        claim = next
    }

    enum ResidencyLimits {
        /// How many theta a tenant must be ahead before its work is thrown away for another's sake, which
        /// costs both: more than for a slot.
        static let recomputingThetas: Int64 = 4
        /// Times that memory is taken for one claim.
        static let displacements = 2
        /// Workers without memory for a job that are looked at closely, those with the most of it first.
        static let claimLooks = 32
        /// Of a pool without a host tier, what is left where a tenant's jobs displace each other.
        static let spareShare = 4
        /// Jobs told to stand by, at most, and of the slots.
        static let standby = 8
        static let standbyShare = 4
    }
}
