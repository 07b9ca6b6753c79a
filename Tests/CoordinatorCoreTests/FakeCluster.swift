import KVPaging
import Messages
import Scheduling
import ServingTypes

@testable import CoordinatorCore

/// What goes wrong in a run, in percent or counts.
struct FaultPlan {
    var kills = 0
    var freezes = 0
    var stalls = 0
    var linkCuts = 0
    var pushFailurePercent = 0
    var refusalPercent = 0
    var duplicatePercent = 0
    var cancels = 0
    var stops = 0
    var drains = 0
}

/// A whole cluster on virtual microseconds: the coordinator's core and fake workers, links that are
/// FIFO while they last, and faults drawn from one seed.
final class FakeCluster {
    struct JobRun {
        var submission: JobSubmission
        var oracle: [TokenID]
        var emitted: [TokenID] = []
        /// Emitted before a stop string cut the log.
        var charged = 0
        var outcome: JobOutcome?
    }

    var random: SeededGenerator
    var core: Coordinator
    var workers: [FakeWorker] = []
    var runs: [JobID: JobRun] = [:]
    var order: [JobID] = []
    var complaints: [String] = []
    var drained: [WorkerID] = []
    let faults: FaultPlan
    let chunk: Int

    private(set) var now: Int64 = 0
    private var agenda = KeyedHeap<Int, Appointment>()
    private var deeds: [Int: () -> Void] = [:]
    private var nextDeed = 0
    private var nextLink = 0
    /// The link that the coordinator's side takes to be that worker's.
    private var coordinatorLinks: [WorkerID: Int] = [:]
    private var lastDelivery: [Int: Int64] = [:]

    struct Appointment: Comparable {
        var at: Int64
        var order: Int
        static func < (a: Self, b: Self) -> Bool { (a.at, a.order) < (b.at, b.order) }
    }

    init(seed: UInt64, configuration: CoordinatorConfiguration, faults: FaultPlan) {
        random = SeededGenerator(seed: seed)
        core = Coordinator(configuration: configuration, naming: TestNaming())
        self.faults = faults
        chunk = random.pick(3...16)
    }

    func add(_ name: String, _ role: WorkerRole, blockCount: Int, batchJobsMax: Int) {
        let worker = FakeWorker(
            id: WorkerID(name), role: role, epoch: Epoch(random.next()), blockCount: blockCount,
            batchJobsMax: batchJobsMax, repeatsFirstToken: random.chance(50), refusalPercent: faults.refusalPercent)
        workers.append(worker)
        connect(worker)
        after(random.pick(0...200_000)) { [unowned self] in beat(worker) }
    }

    // MARK: Time

    func after(_ delay: Int, _ deed: @escaping () -> Void) {
        nextDeed += 1
        deeds[nextDeed] = deed
        agenda.set(nextDeed, to: Appointment(at: now + Int64(delay), order: nextDeed))
    }

    /// Runs until every job has ended and things have calmed down, or time is up.
    func run(limitSeconds: Int64) {
        after(0) { [unowned self] in tick() }
        var calmAt = Int64.max
        while let next = agenda.removeFirst(), let deed = deeds.removeValue(forKey: next.id) {
            now = next.key.at
            deed()
            if calmAt == .max, order.allSatisfy({ runs[$0]?.outcome != nil }) { calmAt = now + 7_000_000 }
            if now > calmAt || now > limitSeconds * 1_000_000 { return }
        }
    }

    private func tick() {
        handle(.tick)
        after(50_000) { [unowned self] in tick() }
    }

    // MARK: The coordinator's driver

    func handle(_ event: CoordinatorEvent) {
        var later: [CoordinatorEvent] = []
        for action in core.handle(event, at: Instant(nanoseconds: now * 1000)) {
            switch action {
            case .send(let ref, let message): transmit(message, to: ref)
            case .closeLink(let ref): closeLink(ref)
            case .jobAdmitted: break
            case .jobRefused(let job, let error): complaints.append("\(job) refused: \(error)")
            case .emit(let job, let offset, let tokens): emitted(job, offset, tokens, &later)
            case .jobFinished(let outcome): finished(outcome)
            case .workerDrained(let id): drained.append(id)
            case .note(let note): witness(note)
            }
        }
        for event in later { handle(event) }
    }

    /// How often each kind of edge was met, to know that the faults were real.
    var witnessed: [String: Int] = [:]
    var slowest: Int64 = 0

    private func witness(_ note: CoordinatorNote) {
        switch note {
        case .workerJoined: witnessed["joined", default: 0] += 1
        case .workerLost: witnessed["lost", default: 0] += 1
        case .workerSuspected: witnessed["suspected", default: 0] += 1
        case .workerStalled: witnessed["stalled", default: 0] += 1
        case .jobRequeued(_, let reason):
            let words = reason.split(separator: " ").filter { !$0.contains("-") }
            witnessed["requeued: " + words.joined(separator: " "), default: 0] += 1
        case .jobPoisoned: witnessed["poisoned", default: 0] += 1
        case .transferFailed: witnessed["transfer failed", default: 0] += 1
        }
    }

    private func emitted(
        _ job: JobID, _ offset: Int, _ tokens: [SampledToken], _ later: inout [CoordinatorEvent]
    ) {
        guard var run = runs[job] else { return complaints.append("tokens of unknown job \(job)") }
        if run.outcome != nil { complaints.append("\(job) got tokens after its end") }
        if offset != run.emitted.count {
            complaints.append("\(job) has \(run.emitted.count) tokens, got offset \(offset)")
        }
        run.emitted += tokens.map(\.token)
        run.charged = run.emitted.count
        runs[job] = run
        if stopAt[job].map({ run.emitted.count >= $0 }) == true, let at = stopAt.removeValue(forKey: job) {
            later.append(.stopMatched(job, outputTokens: at))
        }
    }

    /// Output lengths at which the front door meets a stop string.
    var stopAt: [JobID: Int] = [:]

    private func finished(_ outcome: JobOutcome) {
        if runs[outcome.job]?.outcome != nil { complaints.append("\(outcome.job) ended twice") }
        runs[outcome.job]?.outcome = outcome
        slowest = max(slowest, now)
    }

    func submit(_ submission: JobSubmission, after delay: Int) {
        runs[submission.job] = JobRun(
            submission: submission, oracle: HashModel.output(of: submission.promptTokens, submission.sampling))
        order.append(submission.job)
        after(delay) { [unowned self] in handle(.submitted(submission)) }
    }

    // MARK: Links

    private func connect(_ worker: FakeWorker) {
        guard worker.alive, worker.link == nil, worker.frozenUntil <= now else { return }
        nextLink += 1
        let link = nextLink
        worker.link = link
        if coordinatorLinks[worker.id] != nil, random.chance(50) {
            handle(.workerDown(lastRef[worker.id] ?? worker.ref))
        }
        coordinatorLinks[worker.id] = link
        lastRef[worker.id] = worker.ref
        handle(.workerUp(worker.ref, worker.register()))
    }

    private var lastRef: [WorkerID: WorkerRef] = [:]

    private func closeLink(_ ref: WorkerRef) {
        guard let worker = workers.first(where: { $0.id == ref.id }), lastRef[ref.id] == ref else { return }
        coordinatorLinks[ref.id] = nil
        guard worker.ref == ref, worker.link != nil else { return }
        worker.link = nil
        after(random.pick(100_000...700_000)) { [unowned self] in reconnect(worker, epoch: ref.epoch) }
    }

    private func reconnect(_ worker: FakeWorker, epoch: Epoch) {
        guard worker.alive, worker.epoch == epoch, worker.link == nil else { return }
        if worker.frozenUntil > now {
            after(Int(worker.frozenUntil - now) + 1000) { [unowned self] in reconnect(worker, epoch: epoch) }
        } else {
            connect(worker)
        }
    }

    /// A FIFO link: later messages never arrive earlier, some arrive twice, none after it is cut.
    private func travel(_ link: Int, _ deed: @escaping () -> Void) {
        let arrival = max(now + Int64(random.pick(50...4000)), lastDelivery[link] ?? 0)
        lastDelivery[link] = arrival
        after(Int(arrival - now), deed)
        if random.chance(faults.duplicatePercent) { after(Int(arrival - now), deed) }
    }

    private func transmit(_ message: Message, to ref: WorkerRef) {
        guard let worker = workers.first(where: { $0.id == ref.id }), let link = coordinatorLinks[ref.id],
            worker.link == link, worker.ref == ref
        else { return }
        travel(link * 2) { [unowned self] in deliver(message, to: worker, link) }
    }

    private func deliver(_ message: Message, to worker: FakeWorker, _ link: Int) {
        guard worker.alive, worker.link == link else { return }
        if worker.frozenUntil > now {
            return after(Int(worker.frozenUntil - now)) { [unowned self] in deliver(message, to: worker, link) }
        }
        for reply in worker.receive(message, at: now, &random) { report(reply, from: worker) }
        wake(worker)
    }

    func report(_ message: Message, from worker: FakeWorker) {
        guard let link = worker.link else { return }
        let ref = worker.ref
        travel(link * 2 + 1) { [unowned self] in
            guard coordinatorLinks[ref.id] == link else { return }
            handle(.workerMessage(ref, message))
        }
    }

    // MARK: Workers at work

    private func beat(_ worker: FakeWorker) {
        if worker.alive, worker.frozenUntil <= now {
            report(.heartbeat(Heartbeat(load: worker.load())), from: worker)
            for transfer in worker.expiredReservations(at: now) {
                report(.transferFailed(TransferFailed(transfer: transfer, reason: .leaseExpired)), from: worker)
            }
            if worker.draining, now >= worker.drainBy {
                for message in worker.evictAll() { report(message, from: worker) }
            }
            if worker.draining, worker.holdsNothing, !worker.drainReported {
                worker.drainReported = true
                report(.drainDone(DrainDone()), from: worker)
            }
        }
        after(250_000) { [unowned self] in beat(worker) }
    }

    private func wake(_ worker: FakeWorker) {
        guard worker.alive, !worker.stepping, worker.hasWork else { return }
        worker.stepping = true
        let epoch = worker.epoch
        after(random.pick(1000...9000)) { [unowned self] in step(worker, epoch) }
    }

    private func step(_ worker: FakeWorker, _ epoch: Epoch) {
        guard worker.alive, worker.epoch == epoch else { return }
        let pausedUntil = max(worker.frozenUntil, worker.stalledUntil)
        if pausedUntil > now {
            return after(Int(pausedUntil - now)) { [unowned self] in step(worker, epoch) }
        }
        worker.stepping = false
        let (messages, pushes) = worker.step(chunk: chunk)
        for message in messages { report(message, from: worker) }
        for (assignment, token) in pushes { push(assignment, token, from: worker) }
        wake(worker)
    }

    private func push(_ assignment: AssignPrefill, _ token: SampledToken, from source: FakeWorker) {
        let epoch = source.epoch
        let fails = random.chance(faults.pushFailurePercent)
        after(random.pick(500...30_000)) { [unowned self] in
            guard source.alive, source.epoch == epoch,
                source.sending.removeValue(forKey: assignment.transfer) != nil
            else { return }
            let target = workers.first { $0.id == assignment.target.id }
            guard !fails, let target, target.land(assignment, first: token) else {
                let reason: TransferFailed.Reason = fails ? .linkLost : .targetRefused
                return report(
                    .transferFailed(TransferFailed(transfer: assignment.transfer, reason: reason)), from: source)
            }
            let commit = TransferCommitted(
                transfer: assignment.transfer, receivedBytes: 4096, receivedBlocks: assignment.wanted.count,
                reusedBlocks: 0)
            report(.transferCommitted(commit), from: target)
            wake(target)
        }
    }

    // MARK: Faults

    /// Draws the times of all faults within a span.
    func scheduleFaults(within span: Int) {
        for _ in 0..<faults.kills { strike(span) { [unowned self] in kill($0) } }
        for _ in 0..<faults.linkCuts { strike(span) { [unowned self] in cut($0) } }
        for _ in 0..<faults.freezes {
            strike(span) { [unowned self] in
                $0.frozenUntil = max($0.frozenUntil, now + Int64(random.pick(200_000...6_000_000)))
            }
        }
        for _ in 0..<faults.stalls {
            strike(span) { [unowned self] in
                $0.stalledUntil = max($0.stalledUntil, now + Int64(random.pick(1_000_000...8_000_000)))
            }
        }
        for _ in 0..<faults.drains {
            strike(span) { [unowned self] in
                handle(.drain($0.id, deadline: .milliseconds(Int64(random.pick(0...2000)))))
                let worker = $0
                after(9_000_000) { [unowned self] in kill(worker) }
            }
        }
        for _ in 0..<faults.cancels {
            after(random.pick(0...span)) { [unowned self] in
                if let job = order.randomElement(using: &random) { handle(.cancelled(job, .client)) }
            }
        }
    }

    private func strike(_ span: Int, _ blow: @escaping (FakeWorker) -> Void) {
        after(random.pick(0...span)) { [unowned self] in
            let living = workers.filter(\.alive)
            if let victim = living.randomElement(using: &random) { blow(victim) }
        }
    }

    private func kill(_ worker: FakeWorker) {
        guard worker.alive else { return }
        let ref = worker.ref
        worker.die()
        // The socket closes at once, or, rarely, only silence tells.
        if random.chance(80) { loseLink(ref) }
        after(random.pick(100_000...3_000_000)) { [unowned self] in
            worker.alive = true
            worker.epoch = Epoch(random.next())
            worker.frozenUntil = 0
            worker.stalledUntil = 0
            connect(worker)
        }
    }

    private func cut(_ worker: FakeWorker) {
        guard worker.alive, worker.link != nil else { return }
        worker.link = nil
        let ref = worker.ref
        if random.chance(70) { loseLink(ref) }
        after(random.pick(1000...2_000_000)) { [unowned self] in reconnect(worker, epoch: ref.epoch) }
    }

    private func loseLink(_ ref: WorkerRef) {
        let link = coordinatorLinks[ref.id]
        after(random.pick(100...5000)) { [unowned self] in
            guard link != nil, coordinatorLinks[ref.id] == link else { return }
            coordinatorLinks[ref.id] = nil
            handle(.workerDown(ref))
        }
    }
}

/// Names blocks by a cheap hash; good enough for tests.
struct TestNaming: PageNaming {
    func root(tenant: TenantID) -> PageID {
        PageID(tenant.name.utf8.reduce(7) { ($0 &* 31) &+ UInt64($1) }, 1, 2, 3)
    }

    func child(of parent: PageID, tokens: ArraySlice<TokenID>) -> PageID {
        let hash = tokens.reduce(parent.words.0 &* 0x9E37_79B9_7F4A_7C15) { ($0 ^ UInt64($1.value)) &* 0x100_0000_01B3 }
        return PageID(hash, parent.words.1 &+ 1, 2, 3)
    }
}
