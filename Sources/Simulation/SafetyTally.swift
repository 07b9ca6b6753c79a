/// What many seeds of the fault model came to.
public struct SafetyTally: Sendable {
    public private(set) var seeds = 0
    public private(set) var failed: [UInt64] = []
    public private(set) var faultyEvents: UInt64 = 0
    public private(set) var healedEvents: UInt64 = 0
    public private(set) var virtualSeconds = 0.0
    /// The most events of one seed, and whose.
    public private(set) var mostEvents = (events: UInt64(0), seed: UInt64(0))
    /// From the end of all faults until everything had ended: the longest, and whose it was.
    public private(set) var longestRest = (seconds: 0.0, seed: UInt64(0))
    public private(set) var jobs = 0
    public private(set) var digest: UInt64 = 0
    public private(set) var witnessed: [String: Int] = [:]

    public init() {}

    public var events: UInt64 { faultyEvents + healedEvents }

    public mutating func add(_ result: SafetyResult) {
        seeds += 1
        if result.failure != nil { failed.append(result.seed) }
        faultyEvents += result.faultyEvents
        healedEvents += result.events - result.faultyEvents
        virtualSeconds += result.virtualSeconds
        if result.events > mostEvents.events { mostEvents = (result.events, result.seed) }
        if result.restSeconds > longestRest.seconds { longestRest = (result.restSeconds, result.seed) }
        jobs += result.jobs
        digest = digest &* 31 &+ result.digest
        witnessed.merge(result.witnessed, uniquingKeysWith: +)
    }

    /// Every kind of fault, and what must follow from it: a run of many seeds in which one of these
    /// never happened has not shown anything about it.
    public static let kinds = [
        "fault.kill.idle", "fault.kill.busy", "fault.vanish.idle", "fault.vanish.busy", "fault.freeze.idle",
        "fault.freeze.busy", "fault.freezeCoordinator", "fault.crashCoordinator.idle", "fault.crashCoordinator.busy",
        "fault.cutControl", "fault.holdControl", "fault.cutPages.idle", "fault.cutPages.busy", "fault.holdPages",
        "fault.slowPages", "fault.drain.idle", "fault.drain.busy", "fault.clockForward.worker.busy",
        "fault.clockForward.worker.idle", "fault.clockForward.coordinator.busy", "fault.clockBack.worker.busy",
        "fault.clockBack.worker.idle", "fault.clockBack.coordinator.busy", "fault.suspend.worker.busy",
        "fault.suspend.worker.idle", "fault.suspend.coordinator", "message.held", "message.lost", "message.repeated",
        "message.stale", "pages.reordered", "pages.relayed", "page.corrupted", "page.refused.checksum",
        "pool.evicted", "reserve.refused.noMemory", "swap.out", "swap.in", "swap.out.failed", "swap.in.failed",
        "fence.sender", "fence.receiver", "prompt.precedes", "prompt.relieved", "job.failed.deadline_exceeded",
        "client.cancel", "client.stop", "token.repeated", "job.lost", "job.recovered", "job.requeued", "job.stop",
        "job.length", "worker.drained", "worker.lost", "worker.stalled", "worker.suspected",
        "transfer.failed.checksum", "transfer.failed.leaseExpired", "transfer.failed.stalled",
    ]

    /// Seeds from which on each of these is expected.
    public static let seedsForAllKinds: UInt64 = 1000

    public var neverHappened: [String] { Self.kinds.filter { witnessed[$0, default: 0] == 0 } }

    /// Names and counts, those that never happened included.
    public var counts: [(name: String, count: Int)] {
        Set(witnessed.keys).union(Self.kinds).sorted().map { ($0, witnessed[$0, default: 0]) }
    }

    /// Both phases in a line each.
    public var phases: [String] {
        [
            "safety phase: \(faultyEvents) events, anything may break until "
                + "\(Decimals.short(Double(SafetyPlan.healAt) / 1e9)) s of virtual time",
            "liveness phase: \(healedEvents) events, nothing breaks any more; everything was at rest within "
                + "\(Decimals.short(longestRest.seconds)) s (seed \(longestRest.seed)), the limit is "
                + "\(Decimals.short(Double(SafetyRun.livenessLimit) / 1e9)) s",
            "the most events of a seed: \(mostEvents.events) (seed \(mostEvents.seed)); more than "
                + "\(SafetyRun.eventsMax) are a storm",
        ]
    }
}
