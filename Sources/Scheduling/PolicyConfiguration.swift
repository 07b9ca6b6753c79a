import ServingTypes

/// Orders the jobs of one pool (all jobs, or one tenant's).
public enum InnerDiscipline: String, Hashable, Sendable, CaseIterable {
    /// In order of arrival; a running job is never preempted by another of its pool.
    case fcfs
    /// FastServe's skip-join multi-level feedback queue (scheduling.md §1.2).
    case skipJoin
}

/// Which rule orders everything.
public enum Discipline: Hashable, Sendable {
    case fcfs
    case skipJoin
    /// Virtual token counters at admission; nothing is preempted (scheduling.md §3.2).
    case virtualCounters
    /// The tenant with the least virtual counter at every slot, with hysteresis theta for tenants
    /// already running; inside a tenant the inner discipline (scheduling.md §4.3, design C).
    case fairShare(inner: InnerDiscipline)
}

/// Every constant of the scheduling policy.
public struct PolicyConfiguration: Hashable, Sendable {
    public var discipline: Discipline = .fairShare(inner: .fcfs)

    /// Quantum of level 0; should be near the least decode iteration.
    public var baseQuantum: TimeSpan = .milliseconds(10)
    /// Each level's quantum over that of the level before.
    public var quantumRatio: Int64 = 2
    public var levelsMax = 16
    /// A job that has waited this long may be promoted.
    public var promotionAge: TimeSpan = .milliseconds(300)
    /// At most every n-th pick is a promotion: a budget of slots, since promotion by time alone
    /// collapses under overload (scheduling.md §2.6).
    public var promotionPeriod = 4

    /// Service units per computed prompt token and per output token.
    public var promptWeight: Int64 = 1
    public var outputWeight: Int64 = 2
    /// Units by which a waiting tenant's counter must be lower before it displaces a running one.
    public var theta: Int64 = 2000
    /// Entitlements of tenants that are not 1; a counter grows by units / weight.
    public var weights: [TenantID: Double] = [:]
    /// Tenants whose counters are remembered.
    public var tenantsMax = 4096

    public init() {}

    /// Reads `fcfs`, `mlfq`, `vtc`, `fair` or `fair-mlfq`; nil for anything else.
    public init?(named name: String) {
        switch name {
        case "fcfs": discipline = .fcfs
        case "mlfq": discipline = .skipJoin
        case "vtc": discipline = .virtualCounters
        case "fair": discipline = .fairShare(inner: .fcfs)
        case "fair-mlfq": discipline = .fairShare(inner: .skipJoin)
        default: return nil
        }
    }

    public static let names = ["fcfs", "mlfq", "vtc", "fair", "fair-mlfq"]

    /// The name that `init(named:)` reads.
    public var name: String {
        switch discipline {
        case .fcfs: "fcfs"
        case .skipJoin: "mlfq"
        case .virtualCounters: "vtc"
        case .fairShare(.fcfs): "fair"
        case .fairShare(.skipJoin): "fair-mlfq"
        }
    }

    /// Quantum of a level, saturating.
    public func quantum(ofLevel level: Int) -> TimeSpan {
        var quantum = baseQuantum
        for _ in 0..<max(0, min(level, levelsMax)) { quantum = quantum * quantumRatio }
        return quantum
    }

    /// The first level whose quantum covers `time`; the last one where none does.
    public func level(covering time: TimeSpan) -> Int {
        var level = 0
        var quantum = baseQuantum
        while quantum < time, level < levelsMax - 1 {
            quantum = quantum * quantumRatio
            level += 1
        }
        return level
    }

    var inner: InnerDiscipline {
        switch discipline {
        case .fcfs, .virtualCounters: .fcfs
        case .skipJoin: .skipJoin
        case .fairShare(let inner): inner
        }
    }

    var separatesTenants: Bool {
        switch discipline {
        case .fcfs, .skipJoin: false
        case .virtualCounters, .fairShare: true
        }
    }

    /// Whether a running job may have to give its slot to another.
    public var preemptsRunning: Bool {
        switch discipline {
        case .fcfs, .virtualCounters: false
        case .skipJoin, .fairShare: true
        }
    }
}
