import ServingTypes
import Testing

@testable import Scheduling

/// A request of the test engine. Times in milliseconds.
struct Request {
    var number: Int
    var tenant: String
    var at: Int64
    var input: Int
    var output: Int
    var priority = 0
    var due: Int64?
}

/// One engine with continuous batching around the production policy, in whole milliseconds and
/// without randomness: the oracle of the property tests. Memory is tokens; a preempted job keeps its
/// progress, an evicted one too (as if swapped out at no cost).
struct Engine {
    struct Live {
        var request: Request
        var made = 0
        var isPrefilled = false
        var firstToken: Int64?
    }

    var policy: SchedulingPolicy
    /// Jobs of one iteration, jobs resident at once, and tokens of memory reserved for their full length.
    var slots = 4
    var residentsMax = Int.max
    var memory = Int.max
    /// Time of an iteration: base, a part per decoding job, and a part per hundred prompt tokens.
    var base: Int64 = 10
    var perHundred: Int64 = 10

    private(set) var now: Int64 = 0
    var live: [JobID: Live] = [:]
    var residents: [JobID] = []
    var running: Set<JobID> = []
    private(set) var iterations = 0
    private(set) var preemptions = 0
    private(set) var evictions = 0
    /// Completion and first-token time by request number, in milliseconds from arrival.
    private(set) var completion: [Int: Int64] = [:]
    private(set) var firstToken: [Int: Int64] = [:]
    private(set) var tokens: [String: Int64] = [:]
    private(set) var units: [String: Int64] = [:]
    /// FNV-1a over everything that happened.
    private(set) var digest: UInt64 = 0xcbf2_9ce4_8422_2325
    /// Ids are drawn from this, so that hash orders differ from one salt to the next.
    var salt: UInt64 = 0

    init(_ policy: SchedulingPolicy) { self.policy = policy }

    func name(_ number: Int) -> JobID {
        JobID(high: (UInt64(number) &+ salt) &* 0x9E37_79B9_7F4A_7C15, low: UInt64(number))
    }

    var clock: Instant { .zero + .milliseconds(now) }

    private mutating func mark(_ values: Int64...) {
        for value in values { digest = (digest ^ UInt64(bitPattern: value)) &* 0x100_0000_01b3 }
    }

    func prefillTime(_ input: Int) -> TimeSpan { .milliseconds(base + Int64(input) * perHundred / 100) }

    /// Runs until all are done or time is up. `look` sees the state after every assembly.
    mutating func run(
        _ requests: [Request], until end: Int64 = .max, look: (inout Engine, _ chosen: [JobID]) -> Void = { _, _ in }
    ) {
        var waiting = requests.sorted { $0.at == $1.at ? $0.number < $1.number : $0.at < $1.at }[...]
        while now < end {
            while let next = waiting.first, next.at <= now {
                arrive(next)
                waiting.removeFirst()
            }
            admit()
            let chosen = assemble()
            look(&self, chosen)
            if chosen.isEmpty {
                guard let next = waiting.first else {
                    if live.isEmpty { return }
                    now += 1000
                    continue
                }
                now = max(next.at, now)
            } else {
                iterate(chosen)
            }
        }
    }

    mutating func arrive(_ request: Request) {
        let job = name(request.number)
        if policy.refusal(of: TenantID(request.tenant), at: clock) > .zero { return }
        live[job] = Live(request: request)
        policy.arrive(
            ScheduledJob(
                job: job, tenant: TenantID(request.tenant), priority: request.priority,
                predictedPrefill: prefillTime(request.input), due: request.due.map { .zero + .milliseconds($0) },
                predictedToken: .milliseconds(base), knownOutput: request.output), at: clock)
        mark(1, Int64(request.number))
    }

    private func held(_ job: JobID) -> Int { live[job].map { $0.request.input + $0.request.output } ?? 0 }

    /// Under design C a waiting job is let in when it would get a slot, as if it were resident; with
    /// few residents, whenever one may come.
    private func wouldRun(_ job: JobID) -> Bool {
        guard case .fairShare = policy.configuration.discipline, residentsMax == .max else { return true }
        var trial = policy
        trial.dispatch(job, at: clock)
        for resident in residents where residents.count <= slots { trial.started(resident) }
        return trial.runningSet(of: residents + [job], slots: slots, at: clock).contains(job)
    }

    private mutating func admit() {
        while let next = policy.next(at: clock) {
            guard wouldRun(next) else { return }
            let free = memory - residents.reduce(0) { $0 + held($1) }
            if residents.count >= residentsMax || free < held(next) {
                let byCount = residents.count >= residentsMax
                let holdings = residents.map { Holding(job: $0, units: byCount ? 1 : held($0)) }
                let need = byCount ? 1 : held(next) - free
                let victims = policy.victims(among: holdings, freeing: need, for: next, at: clock)
                guard !victims.isEmpty else { return }
                for victim in victims { evict(victim) }
            }
            policy.dispatch(next, at: clock)
            if live[next]?.isPrefilled == false, live[next]?.made == 0, let request = live[next]?.request {
                policy.charge(TenantID(request.tenant), promptTokens: request.input)
                units[request.tenant, default: 0] += Int64(request.input)
                live[next]?.made = -1
            }
            residents.append(next)
            mark(2, Int64(next.low))
        }
    }

    private mutating func evict(_ job: JobID) {
        residents.removeAll { $0 == job }
        running.remove(job)
        evictions += 1
        policy.requeue(job, at: clock)
        mark(3, Int64(job.low))
    }

    private mutating func assemble() -> [JobID] {
        let chosen: [JobID]
        if residents.count > slots {
            chosen = policy.runningSet(of: residents, slots: slots, at: clock)
        } else {
            chosen = residents
            for job in residents { policy.started(job) }
        }
        preemptions += running.subtracting(chosen).count
        running = Set(chosen)
        return chosen
    }

    private mutating func iterate(_ chosen: [JobID]) {
        iterations += 1
        var span = base
        for job in chosen where live[job]?.isPrefilled == false {
            span += Int64(live[job]?.request.input ?? 0) * perHundred / 100
        }
        now += span
        for job in chosen {
            guard var state = live[job] else { continue }
            state.isPrefilled = true
            state.made = max(state.made, 0) + 1
            if state.firstToken == nil {
                state.firstToken = now
                firstToken[state.request.number] = now - state.request.at
            }
            live[job] = state
            tokens[state.request.tenant, default: 0] += 1
            units[state.request.tenant, default: 0] += 2
            mark(4, Int64(job.low), now)
            policy.produced(job, tokens: 1)
            policy.served(job, for: .milliseconds(span), nextIteration: .milliseconds(base))
            if state.made >= state.request.output { finish(job, state) }
        }
    }

    private mutating func finish(_ job: JobID, _ state: Live) {
        policy.leave(job, completed: true)
        residents.removeAll { $0 == job }
        running.remove(job)
        live[job] = nil
        completion[state.request.number] = now - state.request.at
    }

    // MARK: What came of it

    var meanCompletion: Double {
        completion.isEmpty ? 0 : Double(completion.values.reduce(0, +)) / Double(completion.count)
    }

    func counter(_ tenant: String) -> Double { policy.virtualCounter(of: TenantID(tenant)) }

    /// Tenants that want more than they got in this assembly: a job waits, or lies paused.
    func backlogged(_ chosen: [JobID]) -> [String] {
        var tenants: Set<String> = []
        let runs = Set(chosen)
        for (job, state) in live where !runs.contains(job) { tenants.insert(state.request.tenant) }
        return tenants.sorted()
    }
}

/// Random requests: `tenants` of them, arrivals on average `gap` ms apart.
func requests(
    _ random: inout SeededGenerator, count: Int, tenants: Int = 3, gap: Int, input: ClosedRange<Int> = 1...200,
    output: ClosedRange<Int> = 1...40
) -> [Request] {
    var at: Int64 = 0
    return (0..<count).map { number in
        at += Int64(random.pick(0...2 * gap))
        return Request(
            number: number, tenant: "t\(random.pick(0...tenants - 1))", at: at, input: random.pick(input),
            output: random.pick(output))
    }
}

/// Lengths of which few are very long: old jobs tend to last.
func skewed(_ random: inout SeededGenerator, count: Int, gap: Int, tenants: Int = 1) -> [Request] {
    requests(&random, count: count, tenants: tenants, gap: gap, input: 10...100).map { request in
        var request = request
        request.output = random.chance(85) ? random.pick(1...8) : random.pick(80...160)
        return request
    }
}

func engine(
    _ name: String, slots: Int = 4, _ change: (inout PolicyConfiguration) -> Void = { _ in }
) -> Engine {
    var engine = Engine(policy(name, change))
    engine.slots = slots
    if !engine.policy.configuration.preemptsRunning { engine.residentsMax = slots }
    return engine
}

let everyName = PolicyConfiguration.names + PolicyConfiguration.clairvoyantNames
