import KVPaging
import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

/// Placing by load against placing by looking at everybody.
struct PlacingTests {
    @Test(arguments: 0..<12)
    func findsWhatLookingAtEveryWorkerFinds(_ run: Int) {
        var (compared, kinds) = (0, Set<String>())
        for seed in UInt64(run * 50)..<UInt64(run * 50 + 50) {
            var state = RandomState(seed: seed)
            for round in 0..<6 {
                state.change()
                for _ in 0..<4 {
                    let job = state.drawJob()
                    guard state.isWithinLooks else { continue }
                    let found = text(state.core.place(job), state.core)
                    let expected = text(PlacingByScan(core: state.core, job: job).place(), state.core)
                    #expect(found == expected, "seed \(seed) round \(round)")
                    compared += 1
                    kinds.insert(String(expected.prefix(4)))
                }
            }
        }
        #expect(compared >= 400, "of 1200 drawn")
        #expect(kinds.isSuperset(of: ["pair", "loca", "wait"]))
    }

    @Test func ofManyFullWorkersTheCheapestAreLookedAt() {
        var bench = Bench {
            $0.policy = PolicyConfiguration(named: "fair") ?? PolicyConfiguration()
            $0.policy.theta = 1
            $0.prefillWindowJobs = 1000
        }
        bench.up("prefill-0", blocks: 4096)
        let count = 2 * PlacingLimits.fullLooks
        for number in 0..<count { bench.up("decode-\(10 + number)", blocks: 4096, batch: 1) }
        // Every worker gets a resident of a tenant with much service; the last ones get the fewest jobs.
        for number in 0..<count {
            let id = WorkerID("decode-\(10 + number)")
            for job in 0..<(count - number + 1) {
                bench.core.workers.change(id) { $0.jobs.append(JobID(high: UInt64(number), low: UInt64(job))) }
            }
        }
        let job = Job(Bench.submission(1), sequence: 1, attempt: Attempt(0), deadline: .zero, at: .zero)
        bench.core.workers.settle()
        // Jobs that the policy does not know are never displaced: all are full.
        #expect(text(bench.core.place(job), bench.core) == "wait")
        bench.core.workers.change(WorkerID("decode-25")) { $0.jobs = [] }
        #expect(text(bench.core.place(job), bench.core).hasSuffix("decode-25"))
    }

    @Test func aWorkerThatComesOrGoesIsSeenByTheNextPlacing() {
        var bench = Bench()
        bench.up("prefill-0")
        bench.up("decode-1")
        let job = Job(Bench.submission(1), sequence: 1, attempt: Attempt(0), deadline: .zero, at: .zero)
        bench.core.workers.settle()
        #expect(text(bench.core.place(job), bench.core) == "pair prefill-0 decode-1")
        bench.up("decode-0")
        bench.core.workers.settle()
        #expect(text(bench.core.place(job), bench.core) == "pair prefill-0 decode-0")
        bench.core.workers.remove(WorkerID("decode-0"))
        bench.core.workers.remove(WorkerID("prefill-0"))
        bench.core.workers.settle()
        #expect(text(bench.core.place(job), bench.core) == "local decode-1")
    }

    private func text(_ verdict: Verdict, _ core: Coordinator) -> String {
        switch verdict {
        case .pair(let prefill, let decode): "pair \(prefill.id) \(decode.id)"
        case .local(let worker): "local \(worker.id)"
        case .wait: "wait"
        case .hold: "hold"
        case .never: "never"
        }
    }
}

/// A coordinator in a state that no events need have led to.
private struct RandomState {
    var core: Coordinator
    var random: SeededGenerator
    private var nextJob: UInt64 = 0
    private var known: [JobID] = []
    private let tenants = ["a", "b", "c", "d"]
    private let isCalm: Bool

    init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
        var configuration = CoordinatorConfiguration()
        let name = PolicyConfiguration.names[random.pick(0...PolicyConfiguration.names.count - 1)]
        configuration.policy = PolicyConfiguration(named: name) ?? PolicyConfiguration()
        configuration.policy.theta = 40
        configuration.blockTokens = 4
        configuration.placement.localPrefillThreshold = random.chance(50) ? 16 : 0
        configuration.prefillWindowTokens = 120
        if random.chance(50) { configuration.relief = ReliefConfiguration(wait: .milliseconds(1)) }
        core = Coordinator(configuration: configuration, naming: TestNaming())
        isCalm = random.chance(60)
        let mixed = random.chance(25)
        for _ in 0..<random.pick(1...24) {
            let roles: [WorkerRole] = mixed ? [.mixed, .decode, .prefill] : [.decode, .decode, .prefill]
            add(roles[random.pick(0...2)])
        }
        for _ in 0..<random.pick(0...40) { addJob() }
    }

    /// Full workers are no more than a search looks at.
    var isWithinLooks: Bool {
        core.workers.lanes.count { $0.decodes && $0.opening == .full } <= PlacingLimits.fullLooks
    }

    private mutating func add(_ role: WorkerRole) {
        let name = "\(random.pick(0...999))-\(role.rawValue)"
        var register = Register(
            role: role, dataHost: "", dataPort: 0, blockTokens: 4,
            blockCount: random.chance(80) ? 64 : random.pick(2...16),
            pageBytes: 256, batchJobsMax: random.pick(1...4), stepTokensMax: 64, processID: 1, held: [],
            swapPages: random.chance(20) ? 32 : 0, reservesWholeJobs: random.chance(10))
        if random.chance(20) { register.jobsMax = random.pick(1...6) }
        let worker = WorkerRef(id: WorkerID(name), epoch: Epoch(1))
        core.workers.set(Worker(ref: worker, register: register, at: .zero))
    }

    private mutating func addJob() {
        nextJob += 1
        let id = JobID(high: 7, low: nextJob)
        let tenant = TenantID(tenants[random.pick(0...tenants.count - 1)])
        core.policy.arrive(
            ScheduledJob(job: id, tenant: tenant, priority: 0, predictedPrefill: .milliseconds(5), outputMax: 40),
            at: core.now)
        if random.chance(80) { core.policy.dispatch(id, at: core.now) }
        if random.chance(40) { core.policy.started(id) }
        core.policy.charge(tenant, outputTokens: random.pick(0...60))
        known.append(id)
    }

    /// Some workers' books change, as events would change them, and some come and go.
    mutating func change() {
        if random.chance(10) { add(.decode) }
        if random.chance(10), core.workers.count > 1 {
            core.workers.remove(core.workers.names[random.pick(0...core.workers.count - 1)])
        }
        core.workers.settle()
        for _ in 0..<random.pick(1...core.workers.count) {
            let id = core.workers.names[random.pick(0...core.workers.count - 1)]
            var worker = core.workers[id]
            if var changed = worker {
                redraw(&changed)
                worker = changed
            }
            core.workers.change(id) { if let worker { $0 = worker } }
        }
        core.inhibitions = [:]
        if random.chance(20) {
            let id = core.workers.names[random.pick(0...core.workers.count - 1)]
            core.inhibitions[id] = Inhibition(failures: 1, until: random.chance(50) ? .zero : .zero + .seconds(5))
        }
    }

    private mutating func redraw(_ worker: inout Worker) {
        var jobs: [JobID] = []
        for _ in 0..<random.pick(0...(isCalm ? 3 : 7)) where !known.isEmpty {
            let id = known[random.pick(0...known.count - 1)]
            if !jobs.contains(id) { jobs.append(id) }
        }
        var fresh = Worker(ref: worker.ref, register: worker.register, at: .zero)
        fresh.state = random.chance(90) ? .ready : random.chance(50) ? .suspect : .drained
        for id in jobs {
            fresh.attach(id)
            if fresh.register.role == .prefill || random.chance(isCalm ? 10 : 30) {
                fresh.addPrefill(id, tokens: random.pick(0...50), at: .zero)
            } else if random.chance(80) {
                fresh.residents.append(id)
                if fresh.register.swapPages > 0, random.chance(20) { fresh.away.insert(id) }
            }
        }
        fresh.availableBlocks = random.chance(isCalm ? 80 : 40) ? fresh.register.blockCount : random.pick(-2...20)
        fresh.freeHostPages = min(fresh.register.swapPages, random.pick(0...32))
        worker = fresh
    }

    mutating func drawJob() -> Job {
        nextJob += 1
        let tenant = tenants[random.pick(0...tenants.count - 1)]
        let length = random.chance(80) ? random.pick(1...60) : random.pick(60...300)
        var job = Job(
            Bench.submission(Int(nextJob), prompt: length, tenant: tenant), sequence: nextJob, attempt: Attempt(0),
            deadline: .zero, at: .zero)
        core.policy.arrive(
            ScheduledJob(
                job: job.id, tenant: TenantID(tenant), priority: 0, predictedPrefill: .milliseconds(5), outputMax: 40),
            at: core.now)
        func some(_ percent: Int) -> [WorkerID] {
            core.workers.names.filter { _ in random.chance(percent) }
        }
        if random.chance(20) { job.refusedBy = some(20) }
        if random.chance(10) { job.unfit = some(20) }
        if random.chance(20) { job.avoided = some(20) }
        if random.chance(10) { job.transferFailures = 2 }
        for id in core.workers.names { core.index.forget(id) }
        if random.chance(40), !job.names.isEmpty {
            for id in some(30) {
                core.index.apply(
                    .snapshot(Array(job.names.prefix(random.pick(1...job.names.count)))), sequence: 1, from: id)
            }
        }
        return job
    }
}
