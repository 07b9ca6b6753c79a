import ServingTypes

/// Orders the jobs of one pool (all jobs, or one tenant's).
public enum InnerDiscipline: String, Hashable, Sendable, CaseIterable {
    /// In order of arrival; a running job is never preempted by another of its pool.
    case fcfs
    /// The job that is predicted to take the least time first; a running job goes on.
    case shortestPredicted
    /// The job with the least remaining time first, preempting; needs the true output length.
    case shortestRemaining
    /// FastServe's skip-join multi-level feedback queue (scheduling.md §1.2, §1.5).
    case skipJoin
    /// By the Gittins index over the output lengths that the pool's jobs turned out to have
    /// (scheduling.md §4.4): first come first served where lengths are alike, short jobs first where
    /// old jobs tend to last.
    case gittins
}

/// What a job's output is charged under virtual counters.
public enum LengthCharge: Hashable, Sendable {
    /// Each token as it is produced.
    case perToken
    /// At selection, the mean of the tenant's last completed lengths; settled exactly later
    /// (Algorithm 3 of VTC).
    case predicted
    /// At selection, the true length; simulation only.
    case known
}

/// Which rule orders everything.
public enum Discipline: Hashable, Sendable {
    /// All jobs in one pool; tenants do not matter.
    case pooled(InnerDiscipline)
    /// First come first served among those that a limit of requests per minute and tenant lets in.
    /// A tenant beyond its limit is refused, as in VTC's baseline, or waits.
    case requestRate(refuses: Bool)
    /// VTC without lifts: credit is hoarded. A baseline.
    case leastCounter
    /// Virtual token counters at admission; nothing is preempted (scheduling.md §3.2, and with an
    /// inner discipline design D of §4.2).
    case virtualCounters(inner: InnerDiscipline, lengths: LengthCharge)
    /// The tenant with the least virtual counter at every slot, with hysteresis theta for tenants
    /// already running; inside a tenant the inner discipline (scheduling.md §4.3, design C).
    case fairShare(inner: InnerDiscipline)
}

/// The two readings of the feedback queue (scheduling.md §1.2 and §1.5).
public enum FeedbackRules: Hashable, Sendable {
    /// First in first out inside a level; a spent job falls to the level that covers its next
    /// iteration; promotion by a budget of slots.
    case paper
    /// Survivors and demoted jobs return to the front one by one, one level a time, strictly beyond
    /// the quantum; every 1000th decision all that have waited for `promotionAge` go to the front of
    /// level 0 and keep their attained time.
    case artifact
}

/// What a tenant's counter counts.
public enum Counting: Hashable, Sendable {
    /// `promptWeight` and `outputWeight` units per token, added up: VTC's service.
    case combined
    /// The larger of its shares of prefill and of decode (dominant resource fairness, scheduling.md
    /// §4.6), in units per token of each, which should be as the inverse throughputs of the roles.
    /// `dovetail` units is how far the smaller share may lag, to be used later.
    case dominantShare(promptUnits: Int64, outputUnits: Int64, dovetail: Int64)
}

/// Every constant of the scheduling policy.
public struct PolicyConfiguration: Hashable, Sendable {
    public var discipline: Discipline = .fairShare(inner: .fcfs)

    // The feedback queue.
    public var feedback: FeedbackRules = .paper
    /// Quantum of level 0; should be near the least decode iteration.
    public var baseQuantum: TimeSpan = .milliseconds(10)
    /// Each level's quantum over that of the level before.
    public var quantumRatio: Int64 = 2
    public var levelsMax = 16

    // Promotion, of the feedback queue and of the Gittins index.
    /// A job that has waited this long in one stretch has aged.
    public var promotionAge: TimeSpan = .milliseconds(300)
    /// One in so many slots and picks goes to the oldest aged job; 0 none, 1 all. A budget, since
    /// promotion by time alone collapses under overload (scheduling.md §2.6). With half of them the slowest jobs of a
    /// sustained load take 1.2 to 1.3 times what they take first come first served (one in four: 1.5), and
    /// seconds per token rise by 5 % at most (ops/simulation/README.md, S5).
    public var promotionPeriod = 2

    // Fairness.
    /// Service units per computed prompt token and per output token.
    public var promptWeight: Int64 = 1
    public var outputWeight: Int64 = 2
    public var counting = Counting.combined
    /// Units by which a waiting tenant's counter must be lower before it displaces a running one.
    public var theta: Int64 = 2000
    /// Whether a newcomer whom nobody waits beside is lifted to who waited last. VTC's artifact does
    /// not, and exceeds its bound (scheduling.md §3.4).
    public var liftsWhenNobodyWaits = true
    /// Of `fairShare`, where it is on by name: a tenant that begins to wait beside others is raised to the clamp (theta
    /// and its prompt below the greatest counter) and no further, so that it gets a slot at once instead
    /// of when the others are theta ahead again. The bound of theta and one charge is the clamp's, and holds.
    public var liftsToClampOnly = false
    /// Entitlements of tenants that are not 1; a counter grows by units / weight.
    public var weights: [TenantID: Double] = [:]
    /// Tenants whose counters are remembered.
    public var tenantsMax = 4096
    /// Of `requestRate`: accepted requests of one tenant in any 60 seconds.
    public var requestsPerMinute = 30

    // Learning of output lengths.
    /// Completions between two builds of a pool's table, and before its first.
    public var rebuildCompletions = 64
    public var samplesMin = 32
    /// Each build keeps all but one in `2^decayShift` of the older weight.
    public var decayShift = 3
    /// How much sooner a running job counts as done than one that waits: what an exchange costs.
    public var runningBonus: TimeSpan = .milliseconds(500)
    /// Completed lengths whose mean predicts the next one (`vtc-predict`, `sjf`).
    public var predictionWindow = 5

    public init() {}

    /// A policy by name, of `names` or `clairvoyantNames`; nil for anything else.
    public init?(named name: String) {
        guard let named = Self.table.first(where: { $0.name == name }) else { return nil }
        discipline = named.discipline
        feedback = named.feedback
        counting = named.counting
        if feedback == .artifact { promotionAge = .seconds(3) }
        if case .fairShare = discipline { liftsToClampOnly = true }
        if case .fairShare(let inner) = discipline, inner.preempts {
            // Tenants already bound what a job can wait; a larger budget costs short jobs more than it gives old
            // ones (ops/simulation/README.md, S5), and its turns need memory that the tenant may not have.
            promotionAge = .seconds(3)
            promotionPeriod = inner == .gittins ? 3 : 8
        }
    }

    /// Those that a live coordinator can run.
    public static let names = table.filter { !isClairvoyant($0.discipline) }.map(\.name)
    /// Those that must be told each job's true output length: for simulations.
    public static let clairvoyantNames = table.filter { isClairvoyant($0.discipline) }.map(\.name)

    /// The name that `init(named:)` reads.
    public var name: String {
        let isDominant = counting != .combined
        let exact = Self.table.first {
            $0.discipline == discipline && $0.feedback == feedback && ($0.counting != .combined) == isDominant
        }
        return (exact ?? Self.table.first { $0.discipline == discipline })?.name ?? "custom"
    }

    /// Units of a token of each role under `drf`, near the inverse throughputs of a prefill and a decode
    /// worker of one machine; better ones come from a profile of one's own.
    public static let dominantShare = Counting.dominantShare(promptUnits: 1, outputUnits: 4, dovetail: 4000)

    private struct Named {
        var name: String
        var discipline: Discipline
        var feedback = FeedbackRules.paper
        var counting = Counting.combined
    }

    private static let table: [Named] = [
        Named(name: "fcfs", discipline: .pooled(.fcfs)),
        Named(name: "sjf", discipline: .pooled(.shortestPredicted)),
        Named(name: "srpt", discipline: .pooled(.shortestRemaining)),
        Named(name: "mlfq", discipline: .pooled(.skipJoin)),
        Named(name: "mlfq-artifact", discipline: .pooled(.skipJoin), feedback: .artifact),
        Named(name: "gittins", discipline: .pooled(.gittins)),
        Named(name: "rpm", discipline: .requestRate(refuses: true)),
        Named(name: "rpm-queue", discipline: .requestRate(refuses: false)),
        Named(name: "lcf", discipline: .leastCounter),
        Named(name: "vtc", discipline: .virtualCounters(inner: .fcfs, lengths: .perToken)),
        Named(name: "vtc-predict", discipline: .virtualCounters(inner: .fcfs, lengths: .predicted)),
        Named(name: "vtc-oracle", discipline: .virtualCounters(inner: .fcfs, lengths: .known)),
        Named(name: "vtc-mlfq", discipline: .virtualCounters(inner: .skipJoin, lengths: .perToken)),
        Named(name: "fair", discipline: .fairShare(inner: .fcfs)),
        Named(name: "fair-mlfq", discipline: .fairShare(inner: .skipJoin)),
        Named(name: "fair-gittins", discipline: .fairShare(inner: .gittins)),
        Named(name: "drf", discipline: .fairShare(inner: .fcfs), counting: dominantShare),
        Named(name: "drf-gittins", discipline: .fairShare(inner: .gittins), counting: dominantShare),
        Named(name: "fair-srpt", discipline: .fairShare(inner: .shortestRemaining)),
    ]

    /// Whether jobs must carry their true output length.
    public var isClairvoyant: Bool { Self.isClairvoyant(discipline) }

    private static func isClairvoyant(_ discipline: Discipline) -> Bool {
        switch discipline {
        case .pooled(let inner), .fairShare(let inner): inner == .shortestRemaining
        case .virtualCounters(let inner, let lengths): inner == .shortestRemaining || lengths == .known
        case .requestRate, .leastCounter: false
        }
    }

    /// What a counter grows by for one prompt token, of a tenant of weight 1, at most.
    var promptUnits: Int64 {
        switch counting {
        case .combined: promptWeight
        case .dominantShare(let promptUnits, _, _): promptUnits
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
        case .pooled(let inner), .virtualCounters(let inner, _), .fairShare(let inner): inner
        case .requestRate, .leastCounter: .fcfs
        }
    }

    /// Whether tenants are ordered by their counters; hints then hold inside a tenant.
    public var separatesTenants: Bool {
        switch discipline {
        case .pooled, .requestRate: false
        case .leastCounter, .virtualCounters, .fairShare: true
        }
    }

    /// Whether a running job may have to give its slot to another.
    public var preemptsRunning: Bool {
        switch discipline {
        case .pooled(let inner): inner.preempts
        case .fairShare: true
        case .requestRate, .leastCounter, .virtualCounters: false
        }
    }

    /// Whether a tenant whose next job finds no room lets others within theta go first: work goes on, and
    /// the bound stays. Plain counters stop at the first misfit, as VTC does.
    public var bendsToRoom: Bool { countsPaused }

    /// Whether preempted and held jobs count as waiting, as design C needs; plain counters look at
    /// the queue alone (Algorithm 2 of VTC).
    var countsPaused: Bool {
        if case .fairShare = discipline { return true }
        return false
    }

    var lengthCharge: LengthCharge {
        if case .virtualCounters(_, let lengths) = discipline { return lengths }
        return .perToken
    }

    var lift: Lift {
        switch discipline {
        case .pooled, .requestRate, .leastCounter: .none
        case .fairShare where liftsToClampOnly: liftsWhenNobodyWaits ? .whenNobodyWaits : .none
        case .virtualCounters, .fairShare: liftsWhenNobodyWaits ? .full : .besideOthers
        }
    }

    /// Whether aged jobs have a budget of slots and picks.
    var promotes: Bool {
        promotionPeriod > 0 && (inner == .skipJoin || inner == .gittins) && feedback == .paper
    }
}

extension InnerDiscipline {
    /// Whether a waiting job of the same pool may take a running one's slot.
    var preempts: Bool {
        switch self {
        case .fcfs, .shortestPredicted: false
        case .shortestRemaining, .skipJoin, .gittins: true
        }
    }
}

/// What happens to the counter of a tenant that begins to wait.
enum Lift: Hashable, Sendable {
    case none
    /// To the least counter of those that wait, if any does.
    case besideOthers
    /// Where nobody waits, to that of the tenant that waited last.
    case whenNobodyWaits
    /// And where none does, to that of the tenant that waited last.
    case full
}
