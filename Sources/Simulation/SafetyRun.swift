import CoordinatorCore
import Scheduling
import ServingTypes

/// What one seed came to.
public struct SafetyResult: Sendable {
    public var seed: UInt64
    /// The first broken promise; nil is a pass.
    public var failure: String?
    public var events: UInt64
    /// Those before all faults were mended.
    public var faultyEvents: UInt64
    /// From then until everything had ended.
    public var restSeconds: Double
    public var virtualSeconds: Double
    public var jobs: Int
    public var digest: UInt64
    /// What happened, by name.
    public var witnessed: [String: Int]
}

/// One seed of the fault model: a cluster, a workload and a plan of faults, all drawn from the seed;
/// first a phase in which anything may break, then one in which everything must end (reliability.md §2).
public enum SafetyRun {
    /// Runs a seed. `trace` receives a line per event.
    public static func run(seed: UInt64, trace: ((String) -> Void)? = nil) -> SafetyResult {
        run(seed: seed, trace: trace, change: { _ in })
    }

    /// `change` and `sabotage` break the simulated world itself, before and after it is made, to see the checks notice.
    static func run(
        seed: UInt64, trace: ((String) -> Void)?, change: (inout SimulationConfiguration) -> Void = { _ in },
        sabotage: (ClusterSimulation) -> Void = { _ in }
    ) -> SafetyResult {
        var plan = SafetyPlan(seed: seed)
        let requests = plan.requests()
        var next = 0
        var configuration = plan.configuration()
        change(&configuration)
        let simulation = ClusterSimulation(configuration) {
            guard next < requests.count else { return nil }
            next += 1
            return requests[next - 1]
        }
        simulation.onTrace = trace
        simulation.eventsMax = eventsMax
        sabotage(simulation)
        for (time, fault) in plan.faults() { simulation.queue.add(.fault(fault), at: time) }
        simulation.queue.add(.fault(.heal), at: SafetyPlan.healAt)
        simulation.begin()
        return finish(simulation, seed: seed, from: SafetyPlan.healAt)
    }

    /// One fault of each kind, at one event of a small fault-free run: swept over all events, it
    /// strikes in every phase of every job.
    public enum Strike: String, CaseIterable, Sendable {
        case killPrefill, killDecode, vanishPrefill, vanishDecode, freezePrefill, freezeDecode, cutPages, holdPages
        case cutPrefillControl, cutDecodeControl, holdDecodeControl, crashCoordinator, freezeCoordinator
        case drainPrefill, drainDecode, corruptPages, cancel
        case suspendPrefill, suspendDecode, clockForwardDecode, clockBackDecode, clockForwardCoordinator

        var fault: Fault? {
            switch self {
            case .killPrefill: .kill(node: 0, restartAfter: .milliseconds(400))
            case .killDecode: .kill(node: 1, restartAfter: .milliseconds(400))
            case .vanishPrefill: .vanish(node: 0, restartAfter: .milliseconds(900))
            case .vanishDecode: .vanish(node: 1, restartAfter: .milliseconds(900))
            case .freezePrefill: .freeze(node: 0, span: .seconds(4))
            case .freezeDecode: .freeze(node: 1, span: .seconds(4))
            case .cutPages: .cutPages(source: 0, target: 1)
            case .holdPages: .holdPages(source: 0, target: 1, span: .seconds(2), outward: true, inward: true)
            case .cutPrefillControl: .cutControl(node: 0)
            case .cutDecodeControl: .cutControl(node: 1)
            case .holdDecodeControl: .holdControl(node: 1, span: .seconds(2), outward: true, inward: true)
            case .crashCoordinator: .crashCoordinator(restartAfter: .milliseconds(300))
            case .freezeCoordinator: .freezeCoordinator(span: .seconds(2))
            case .drainPrefill: .drain(node: 0, deadline: .milliseconds(30))
            case .drainDecode: .drain(node: 1, deadline: .milliseconds(30))
            case .corruptPages: .corruptPages(percent: 60)
            case .cancel: nil
            case .suspendPrefill: .suspend(node: 0, span: .seconds(4))
            case .suspendDecode: .suspend(node: 1, span: .seconds(4))
            case .clockForwardDecode: .stepClock(node: 1, by: .seconds(60))
            case .clockBackDecode: .stepClock(node: 1, by: TimeSpan(nanoseconds: -3_000_000_000))
            case .clockForwardCoordinator: .stepClock(node: nil, by: .seconds(60))
            }
        }
    }

    /// Strikes just before event `index` of the run of two prefill, two decode workers and five jobs.
    /// The result's `events` tells where the run ended; an index beyond that struck nothing.
    public static func strike(_ strike: Strike, at index: UInt64, trace: ((String) -> Void)? = nil) -> SafetyResult {
        let (configuration, requests) = SafetyPlan.sweep()
        var next = 0
        let simulation = ClusterSimulation(configuration) {
            guard next < requests.count else { return nil }
            next += 1
            return requests[next - 1]
        }
        simulation.onTrace = trace
        simulation.eventsMax = eventsMax
        simulation.begin()
        while simulation.eventCount < index, simulation.step() {}
        if let fault = strike.fault {
            simulation.strike(fault)
        } else {
            for number in 0..<simulation.jobCount { simulation.cancelByClient(number) }
        }
        simulation.queue.add(.fault(.heal), at: simulation.now + 5_000_000_000)
        return finish(simulation, seed: index, from: simulation.now + 5_000_000_000)
    }

    /// Events of the sweep's run until its last job has ended.
    public static func eventsOfSweep() -> UInt64 {
        let (configuration, requests) = SafetyPlan.sweep()
        var waiting = Array(requests.reversed())
        let simulation = ClusterSimulation(configuration) { waiting.popLast() }
        simulation.begin()
        while simulation.endedJobs < requests.count, simulation.step() {}
        return simulation.eventCount
    }

    /// Events of a run at most, a hundred times what most take.
    static let eventsMax: UInt64 = 250_000

    /// How long after the last fault everything must have ended.
    static let livenessLimit: Int64 = 180_000_000_000

    /// Both phases: until `start` anything may break, then everything must end.
    private static func finish(_ simulation: ClusterSimulation, seed: UInt64, from start: Int64) -> SafetyResult {
        var (nextLook, faultyEvents) = (start, UInt64(0))
        while simulation.step() {
            guard simulation.now >= nextLook else { continue }
            if faultyEvents == 0 { faultyEvents = simulation.eventCount }
            nextLook = simulation.now + 100_000_000
            guard let unrest = simulation.unrest else {
                simulation.checkCharges()
                break
            }
            if simulation.now > start + livenessLimit { simulation.fail("never came to rest: \(unrest)") }
        }
        let phase = faultyEvents == 0 ? "safety phase" : "liveness phase"
        return SafetyResult(
            seed: seed, failure: simulation.failure.map { "\(phase), \($0)" }, events: simulation.eventCount,
            faultyEvents: faultyEvents == 0 ? simulation.eventCount : faultyEvents,
            restSeconds: max(Double(simulation.now - start) / 1e9, 0), virtualSeconds: simulation.virtualSeconds,
            jobs: simulation.jobCount, digest: simulation.digest, witnessed: simulation.witnessed)
    }
}

extension ClusterSimulation {
    /// What is still under way, or not given back; nil when every job has ended and every worker
    /// holds nothing.
    var unrest: String? {
        if !isWorkloadOver { return "jobs are still to come" }
        if let job = jobs.values.min(by: { $0.number < $1.number }) {
            return "job \(job.number) has not ended: \(coordinator.view(job.id).map { "\($0.phase)" } ?? "unknown")"
        }
        if !isCoordinatorAlive { return "the coordinator is dead" }
        for node in nodes {
            if !node.isAlive { return "\(node.id) is dead" }
            if !node.heldTransfers.isEmpty { return "\(node.id) holds \(node.heldTransfers.map(Summary.short))" }
            let counts = node.blockCounts
            if counts.available != counts.total { return "\(node.id) leaks blocks: \(counts)" }
            let swap = node.swapCounts
            if swap.free != swap.total { return "\(node.id) leaks pages of its host tier: \(swap)" }
            if !node.landings.isEmpty { return "\(node.id) has open landings" }
            guard let worker = coordinator.worker(node.id), worker.worker == node.ref else {
                return "\(node.id) is not registered"
            }
            if worker.assignedJobs != 0 { return "the coordinator thinks that \(node.id) has jobs" }
        }
        let snapshot = coordinator.snapshot()
        if snapshot.liveJobs != 0 || snapshot.queuedJobs != 0 { return "the coordinator has live jobs" }
        for tenant in snapshot.tenants where tenant.queuedJobs != 0 || tenant.runningJobs != 0 {
            return "the coordinator thinks that \(tenant.tenant) has jobs"
        }
        return nil
    }
}

/// Draws everything of a run from its seed.
struct SafetyPlan {
    let seed: UInt64
    private var random: SimulationRandom
    private var shapes: [SimulatedWorker] = []
    private var swapBytesPerSecond = 12e9
    private var swapFailPercent = 0

    static let arrivalsEnd = 2_000_000
    static let faultsEnd = 3_000_000
    static let healAt: Int64 = 6_500_000_000

    init(seed: UInt64) {
        self.seed = seed
        random = SimulationRandom(seed: Hashing.mix(seed ^ 0x7361_6665))
        drawShapes()
    }

    /// A small cluster whose five jobs share prompts and fill its pools, without chance in its steps.
    static func sweep() -> (SimulationConfiguration, [SimulatedRequest]) {
        var plan = SafetyPlan(seed: 5)
        var configuration = plan.configuration()
        func worker(_ role: WorkerRole) -> SimulatedWorker {
            SimulatedWorker(
                role: role, blockCount: 24, batchJobsMax: 2, stepTokensMax: 12, prefillChunkTokens: 6, jobsMax: 8)
        }
        configuration.workers = [worker(.prefill), worker(.decode), worker(.prefill), worker(.decode)]
        configuration.variesSteps = false
        configuration.coordinator = CoordinatorConfiguration()
        configuration.coordinator.blockTokens = 4
        configuration.coordinator.placement.localPrefillThreshold = 0
        configuration.network = SimulatedNetwork()
        configuration.network.latency = .microseconds(500)
        configuration.network.bytesPerSecond = 200_000
        configuration.profile = CostProfile(
            name: "sweep", prefill: .init(5, 0.5, 0), decode: .init(8, 0, 1), bytesPerToken: 256, poolTokens: 0,
            batchJobsMax: 2, stepTokensMax: 12)
        let shared = plan.prompt(9)
        let requests = (0..<5).map { number in
            var request = SimulatedRequest(
                arrival: Instant(nanoseconds: Int64(number) * 20_000_000), tenant: TenantID("tenant-\(number % 2)"),
                prompt: shared + plan.prompt(3 + 4 * number), length: 6 + 5 * number, maxTokens: 64)
            request.isKeyed = number != 3
            return request
        }
        return (configuration, requests)
    }

    private mutating func drawShapes() {
        func shape(_ role: WorkerRole, _ random: inout SimulationRandom) -> SimulatedWorker {
            SimulatedWorker(
                role: role, blockCount: random.within(role == .prefill ? 24...40 : 24...56),
                batchJobsMax: random.within(1...4), stepTokensMax: random.within(6...24),
                prefillChunkTokens: random.within(2...12), jobsMax: random.within(4...16))
        }
        let isMixed = random.chance(10)
        for _ in 0..<(isMixed ? 0 : random.within(1...3)) { shapes.append(shape(.prefill, &random)) }
        for _ in 0..<(isMixed ? 0 : random.within(1...3)) { shapes.append(shape(.decode, &random)) }
        for _ in 0..<(isMixed ? random.within(1...3) : random.chance(15) ? 1 : 0) {
            shapes.append(shape(.mixed, &random))
        }
        drawHostTiers()
    }

    /// From a stream of its own, so that everything else of a seed stays as it was: half of the
    /// clusters have host tiers, some too small, some slow, some failing, and smaller pools to need them.
    private mutating func drawHostTiers() {
        var own = SimulationRandom(seed: Hashing.mix(seed ^ 0x7377_6170))
        guard own.chance(50) else { return }
        for index in shapes.indices where shapes[index].role != .prefill {
            shapes[index].swapPages = own.chance(20) ? own.within(1...12) : own.within(24...200)
            if own.chance(60) { shapes[index].blockCount = own.within(24...30) }
            if own.chance(15) { shapes[index].reservesWholeJobs = true }
        }
        swapBytesPerSecond = own.chance(30) ? Double(own.within(20_000...200_000)) : 10e6
        swapFailPercent = own.chance(25) ? own.within(1...40) : 0
    }

    mutating func configuration() -> SimulationConfiguration {
        var coordinator = CoordinatorConfiguration()
        coordinator.blockTokens = 4
        coordinator.policy = PolicyConfiguration(named: random.pick(PolicyConfiguration.names) ?? "fcfs") ?? .init()
        coordinator.policy.theta = Int64(random.within(0...200))
        coordinator.placement.localPrefillThreshold = random.chance(60) ? 0 : random.within(1...30)
        coordinator.placement.linkBytesPerSecond = 1e6
        if random.chance(80) { hasten(&coordinator) }
        adapt(&coordinator)
        let profile = CostProfile(
            name: "safety", prefill: .init(Double(random.within(2...25)), Double(random.within(1...10)) / 4, 0),
            decode: .init(Double(random.within(5...50)), 0, 2), bytesPerToken: 256, poolTokens: 0, batchJobsMax: 4,
            stepTokensMax: 24)
        var result = SimulationConfiguration(
            seed: Hashing.mix(seed), workers: shapes, coordinator: coordinator, profile: profile, pageBytes: 1024)
        result.blockTokens = 4
        result.contextTokensMax = 4096
        result.creditPages = random.within(1...4)
        result.tick = .milliseconds(50)
        result.orphanGrace = random.chance(50) ? .seconds(30) : .seconds(2)
        result.bufferedTokensMax = random.within(8...64)
        result.variesSteps = true
        result.audits = true
        result.clocks = clocks
        result.swapBytesPerSecond = swapBytesPerSecond
        result.swapFailPercent = swapFailPercent
        result.network.latency = .microseconds(Int64(random.within(50...2000)))
        result.network.jitter = .microseconds(Int64(random.within(0...3000)))
        result.network.bytesPerSecond = Double(random.within(20_000...1_000_000))
        result.network.hasRelay = random.chance(50)
        return result
    }

    /// From a stream of its own: what `tandem up` starts a cluster with beside that. Decode workers that take prompts
    /// in and cut them, windows, weights.
    private mutating func adapt(_ coordinator: inout CoordinatorConfiguration) {
        var own = SimulationRandom(seed: Hashing.mix(seed ^ 0x7265_6c69_6566))
        if own.chance(50) {
            coordinator.relief = ReliefConfiguration(wait: .milliseconds(Int64(own.within(0...30))))
            coordinator.relief?.jobsPerWorker = own.within(1...2)
        }
        if own.chance(50) { coordinator.prefillWindowJobs = own.within(1...3) }
        if own.chance(30) { coordinator.growthBlocks = own.within(0...4) }
        if own.chance(40) { coordinator.policy.weights[TenantID("tenant-0")] = [0.25, 3][own.within(0...1)] }
        let (stretches, limits) = (own.chance(50), own.chance(20))
        for index in shapes.indices where shapes[index].role == .decode {
            if stretches { shapes[index].stepStretch = Double(own.within(2...8)) / 2 }
            if limits { shapes[index].stepLimit = .milliseconds(Int64(own.within(1...60))) }
        }
    }

    /// Shorter timers, so that detectors race with what they detect.
    private mutating func hasten(_ coordinator: inout CoordinatorConfiguration) {
        coordinator.transferLease = .milliseconds(Int64(random.within(800...3000)))
        coordinator.replyTimeout = .milliseconds(Int64(random.within(200...1000)))
        coordinator.stallFloor = .milliseconds(Int64(random.within(400...1500)))
        coordinator.jobSilenceMax = .milliseconds(Int64(random.within(800...4000)))
        coordinator.transferStall = .milliseconds(Int64(random.within(300...1500)))
        coordinator.inhibitFirst = .milliseconds(200)
        coordinator.inhibitMax = .seconds(3)
    }

    mutating func requests() -> [SimulatedRequest] {
        let count = random.within(4...24)
        var shared = (0..<3).map { _ in prompt(random.within(4...16)) }
        shared.append([])
        var requests: [SimulatedRequest] = []
        for _ in 0..<count {
            let prompt = (random.pick(shared) ?? []) + prompt(random.within(1...24))
            let length = random.within(1...48)
            var request = SimulatedRequest(
                arrival: Instant(nanoseconds: Int64(random.within(0...Self.arrivalsEnd)) * 1000),
                tenant: TenantID("tenant-\(random.within(0...2))"), prompt: prompt, length: length,
                maxTokens: random.chance(20) ? random.within(1...40) : 64)
            request.priority = random.within(-1...1)
            request.isKeyed = random.chance(70)
            if random.chance(10) { request.stopAfter = random.within(1...length) }
            if random.chance(10) { request.cancelAfter = .microseconds(Int64(random.within(0...1_500_000))) }
            requests.append(request)
        }
        hint(&requests)
        return requests.enumerated().sorted {
            ($0.element.arrival, $0.offset) < ($1.element.arrival, $1.offset)
        }.map(\.element)
    }

    /// From a stream of its own: first tokens that clients would like soon, and answers that they want by then or not
    /// at all.
    private func hint(_ requests: inout [SimulatedRequest]) {
        var own = SimulationRandom(seed: Hashing.mix(seed ^ 0x6869_6e74_73))
        guard own.chance(40) else { return }
        for index in requests.indices {
            if own.chance(30) { requests[index].due = .milliseconds(Int64(own.within(1...2000))) }
            if own.chance(6) { requests[index].deadline = .milliseconds(Int64(own.within(20...4000))) }
        }
    }

    mutating func prompt(_ count: Int) -> [TokenID] {
        (0..<count).map { _ in TokenID(UInt32(random.within(1...400))) }
    }

    mutating func faults() -> [(Int64, Fault)] {
        var faults: [(Int64, Fault)] = []
        if random.chance(30) { faults.append((0, .repeatFrames(percent: random.within(1...30)))) }
        if random.chance(25) { faults.append((0, .corruptPages(percent: random.within(1...25)))) }
        for _ in 0..<random.within(0...8) {
            faults.append((Int64(random.within(0...Self.faultsEnd)) * 1000, drawFault()))
        }
        return faults + clockFaults()
    }

    // MARK: Clocks, from a stream of their own

    /// Machines were booted up to thirty years apart; most clocks keep time to 200 millionths, some are
    /// off by five in a hundred.
    private var clocks: ClockPlan {
        var own = SimulationRandom(seed: Hashing.mix(seed ^ 0x636c_6f63_6b73))
        var clocks = ClockPlan()
        let isBad = own.chance(15)
        for _ in 0...shapes.count {
            clocks.ahead.append(own.chance(20) ? 0 : Int64(own.within(0...1_000_000_000)) * 1_000_000_000)
            clocks.driftPPM.append(Int64(own.within(-200...200)) * (isBad ? 250 : 1))
        }
        return clocks
    }

    /// In two of five seeds: a step forward of up to an hour, most often within what timers take, a step
    /// back of up to three seconds, or a machine that sleeps with its clock.
    private func clockFaults() -> [(Int64, Fault)] {
        var own = SimulationRandom(seed: Hashing.mix(seed ^ 0x7374_6570_73))
        guard own.chance(40) else { return [] }
        return (0..<own.within(1...3)).map { _ in
            let at = Int64(own.within(0...Self.faultsEnd)) * 1000
            let node = own.chance(30) ? nil : own.within(0...shapes.count - 1)
            func span(_ milliseconds: ClosedRange<Int>) -> TimeSpan { .milliseconds(Int64(own.within(milliseconds))) }
            switch own.within(0...9) {
            case 0...2: return (at, .stepClock(node: node, by: span(1...2000)))
            case 3, 4: return (at, .stepClock(node: node, by: span(2000...60_000)))
            case 5: return (at, .stepClock(node: node, by: span(60_000...3_600_000)))
            case 6, 7: return (at, .stepClock(node: node, by: TimeSpan(nanoseconds: -span(1...3000).nanoseconds)))
            default: return (at, .suspend(node: node, span: span(20...3000)))
            }
        }
    }

    private mutating func drawFault() -> Fault {
        let node = random.within(0...shapes.count - 1)
        let (source, target) = (pick(.prefill, else: node), pickDecode(else: node))
        let (outward, inward) = random.chance(50) ? (true, true) : random.chance(50) ? (true, false) : (false, true)
        switch random.within(0...12) {
        case 0, 1: return .kill(node: node, restartAfter: span(10...1500))
        case 2: return .vanish(node: node, restartAfter: span(10...3000))
        case 3: return .freeze(node: node, span: span(20...3000))
        case 4: return .freezeCoordinator(span: span(20...2000))
        case 5: return .crashCoordinator(restartAfter: span(10...1500))
        case 6: return .cutControl(node: node)
        case 7: return .holdControl(node: node, span: span(20...3000), outward: outward, inward: inward)
        case 8, 9: return .cutPages(source: source, target: target)
        case 10:
            return .holdPages(source: source, target: target, span: span(20...3000), outward: outward, inward: inward)
        case 11:
            return .slowPages(
                source: source, target: target, slowness: Double(random.within(2...100)), span: span(100...3000))
        default: return .drain(node: node, deadline: span(10...1000))
        }
    }

    private mutating func span(_ milliseconds: ClosedRange<Int>) -> TimeSpan {
        .milliseconds(Int64(random.within(milliseconds)))
    }

    private mutating func pick(_ role: WorkerRole, else other: Int) -> Int {
        random.pick(shapes.indices.filter { shapes[$0].role == role }) ?? other
    }

    private mutating func pickDecode(else other: Int) -> Int {
        random.pick(shapes.indices.filter { shapes[$0].role != .prefill }) ?? other
    }
}
