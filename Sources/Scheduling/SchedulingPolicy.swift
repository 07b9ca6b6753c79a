import ServingTypes

/// A job as the policy sees it.
public struct ScheduledJob: Hashable, Sendable {
    public var job: JobID
    public var tenant: TenantID
    /// Inside a tenant, lower first; policies that do not separate tenants ignore it.
    public var priority: Int
    /// Of the first iteration, from the cost model; decides the entry level.
    public var predictedPrefill: TimeSpan

    public init(job: JobID, tenant: TenantID, priority: Int, predictedPrefill: TimeSpan) {
        self.job = job
        self.tenant = tenant
        self.priority = priority
        self.predictedPrefill = predictedPrefill
    }
}

/// The one seam through which every order is decided: which waiting job is dispatched next, which
/// resident jobs of a worker run. A value without clock or randomness; the live coordinator and a
/// simulator run the same one. Each event costs O(log n) in the jobs known; a running set costs
/// O(r log r) in the residents of one worker, and is only asked for when they exceed its slots.
///
/// A job is `waiting` (`arrive`, `requeue`), `withdrawn` (held back for a while), or `dispatched`;
/// `leave` ends it from any state.
public struct SchedulingPolicy: Sendable {
    public let configuration: PolicyConfiguration

    enum State: Hashable, Sendable {
        case waiting
        case withdrawn
        case dispatched(running: Bool)
    }

    struct Entry: Sendable {
        var tenant: TenantID
        var priority: Int
        /// Place by arrival; never changes.
        var arrival: UInt64
        /// Place inside the level.
        var place: UInt64
        var level: Int
        var attained: TimeSpan = .zero
        var state: State
        /// Since when it has not run.
        var waitingSince: Instant
    }

    /// Order inside a pool: level, then the client's hint, then place.
    struct Rank: Comparable, Sendable {
        var level: Int
        var priority: Int
        var place: UInt64

        static func < (a: Rank, b: Rank) -> Bool {
            (a.level, a.priority, a.place) < (b.level, b.priority, b.place)
        }
    }

    /// Waiting jobs that are ordered by the inner discipline: one tenant's, or all.
    struct Pool: Sendable {
        var byRank = KeyedHeap<JobID, Rank>()
        var byArrival = KeyedHeap<JobID, UInt64>()
        /// Dispatches so far, the clock of the promotion budget.
        var picks = 0
    }

    var entries: [JobID: Entry] = [:]
    var pools: [TenantID: Pool] = [:]
    /// Tenants with waiting jobs, least counter first. Unused where tenants are not separated.
    var tenantOrder = KeyedHeap<TenantID, TenantCounters.Key>()
    var counters: TenantCounters
    var nextPlace: UInt64 = 0
    /// Decisions so far, the clock of the promotion budget on decode.
    var decisions = 0
    /// The largest prompt charge so far, in units: with theta the bound on what a newcomer may lag.
    var largestCharge: Int64 = 0

    public init(_ configuration: PolicyConfiguration) {
        self.configuration = configuration
        counters = TenantCounters(tenantsMax: configuration.tenantsMax, weights: configuration.weights)
    }

    // MARK: The queue

    /// A new job waits.
    public mutating func arrive(_ job: ScheduledJob, at now: Instant) {
        guard entries[job.job] == nil else { return }
        let level: Int
        switch configuration.inner {
        case .fcfs: level = 0
        case .skipJoin: level = configuration.level(covering: job.predictedPrefill)
        }
        nextPlace += 1
        entries[job.job] = Entry(
            tenant: job.tenant, priority: configuration.separatesTenants ? job.priority : 0, arrival: nextPlace,
            place: nextPlace, level: level, state: .withdrawn, waitingSince: now)
        if countsWholeLife { counters.joined(job.tenant, slack: slack(of: job.tenant)) }
        wait(job.job, at: now)
    }

    /// A dispatched or withdrawn job waits again, at the place that it had.
    public mutating func requeue(_ job: JobID, at now: Instant) {
        wait(job, at: now)
    }

    /// The job waits but must not be chosen for now.
    public mutating func withdraw(_ job: JobID) {
        guard let entry = entries[job] else { return }
        if entry.state == .waiting { unqueue(job, entry) }
        entries[job]?.state = .withdrawn
    }

    /// The job that is to be dispatched next; nil where none waits. Decides nothing by itself.
    public func next(at now: Instant) -> JobID? {
        guard let pool = poolToServe else { return nil }
        return promoted(in: pool, at: now) ?? pool.byRank.first?.id
    }

    /// The job leaves the queue for a worker.
    public mutating func dispatch(_ job: JobID, at now: Instant) {
        guard let entry = entries[job], entry.state == .waiting else { return }
        let key = poolKey(entry.tenant)
        if let pool = pools[key], promoted(in: pool, at: now) == job { promote(job) }
        unqueue(job, entry)
        entries[job]?.state = .dispatched(running: false)
        entries[job]?.waitingSince = now
        pools[key]?.picks += 1
    }

    /// The job is over.
    public mutating func leave(_ job: JobID) {
        guard let entry = entries[job] else { return }
        if entry.state == .waiting { unqueue(job, entry) }
        entries[job] = nil
        if countsWholeLife { counters.left(entry.tenant) }
        if configuration.separatesTenants, pools[entry.tenant]?.byRank.isEmpty == true, !hasBacklog(entry.tenant) {
            pools[entry.tenant] = nil
        }
    }

    public var waitingJobs: Int { pools.values.reduce(0) { $0 + $1.byRank.count } }
    public var knownJobs: Int { entries.count }

    // MARK: Service

    /// Charges computed prompt tokens and output tokens, each once; negative counts take back what
    /// was charged ahead and not computed.
    public mutating func charge(_ tenant: TenantID, promptTokens: Int = 0, outputTokens: Int = 0) {
        let prompt = Int64(promptTokens) * configuration.promptWeight
        largestCharge = max(largestCharge, prompt)
        counters.charge(tenant, units: prompt + Int64(outputTokens) * configuration.outputWeight)
        refreshOrder(of: tenant)
    }

    /// The job was served for a time; its next iteration is expected to take `nextIteration`.
    /// Demotes it once its quantum is spent, to a level that covers that iteration.
    public mutating func served(_ job: JobID, for time: TimeSpan, nextIteration: TimeSpan) {
        guard configuration.inner == .skipJoin, var entry = entries[job] else { return }
        entry.attained = entry.attained + time
        if entry.attained >= configuration.quantum(ofLevel: entry.level), entry.level < configuration.levelsMax - 1 {
            entry.level = max(entry.level + 1, configuration.level(covering: nextIteration))
            entry.attained = .zero
            nextPlace += 1
            entry.place = nextPlace
        }
        entries[job] = entry
        if entry.state == .waiting { enqueue(job, entry) }
    }

    /// In units over weight, as shown to people.
    public func virtualCounter(of tenant: TenantID) -> Double {
        Double(counters.value(of: tenant)) / Double(TenantCounters.scale)
    }

    /// Units charged to the tenant so far, lifts left out.
    public func chargedUnits(of tenant: TenantID) -> Int64 {
        guard let counter = counters.counters[tenant] else { return 0 }
        return TenantCounters.adding(counter.value, -counter.lifted) / counter.perUnit
    }

    public func weight(of tenant: TenantID) -> Double { counters.weight(of: tenant) }

    /// Level of a job, for people and tests.
    public func level(of job: JobID) -> Int? { entries[job]?.level }

    // MARK: Inside

    /// The pool of policies that do not separate tenants.
    static let everyone = TenantID("")

    func poolKey(_ tenant: TenantID) -> TenantID {
        configuration.separatesTenants ? tenant : Self.everyone
    }

    /// Design C counts a tenant as backlogged while any of its jobs lives, plain counters (Algorithm
    /// 2 of VTC) while one waits in the queue.
    var countsWholeLife: Bool {
        switch configuration.discipline {
        case .fairShare: true
        case .fcfs, .skipJoin, .virtualCounters: false
        }
    }

    /// How far below the greatest backlogged counter a newcomer may start: theta plus the largest
    /// charge made at once.
    private func slack(of tenant: TenantID) -> Int64? {
        guard countsWholeLife else { return nil }
        let units = TenantCounters.adding(configuration.theta, max(largestCharge, configuration.outputWeight))
        let (slack, overflow) = units.multipliedReportingOverflow(by: TenantCounters.scale)
        return overflow ? .max : slack
    }

    private var poolToServe: Pool? {
        configuration.separatesTenants ? tenantOrder.first.flatMap { pools[$0.id] } : pools[Self.everyone]
    }

    private func hasBacklog(_ tenant: TenantID) -> Bool {
        (counters.counters[tenant]?.backlog ?? 0) > 0
    }

    private mutating func wait(_ job: JobID, at now: Instant) {
        guard var entry = entries[job], entry.state != .waiting else { return }
        if case .dispatched(running: true) = entry.state { entry.waitingSince = now }
        entry.state = .waiting
        entries[job] = entry
        if !countsWholeLife { counters.joined(entry.tenant, slack: nil) }
        enqueue(job, entry)
    }

    private mutating func enqueue(_ job: JobID, _ entry: Entry) {
        let key = poolKey(entry.tenant)
        pools[key, default: Pool()].byRank.set(
            job, to: Rank(level: entry.level, priority: entry.priority, place: entry.place))
        pools[key]?.byArrival.set(job, to: entry.arrival)
        refreshOrder(of: entry.tenant)
    }

    private mutating func unqueue(_ job: JobID, _ entry: Entry) {
        let key = poolKey(entry.tenant)
        pools[key]?.byRank.remove(job)
        pools[key]?.byArrival.remove(job)
        if !countsWholeLife { counters.left(entry.tenant) }
        refreshOrder(of: entry.tenant)
    }

    private mutating func refreshOrder(of tenant: TenantID) {
        guard configuration.separatesTenants else { return }
        if let pool = pools[tenant], !pool.byRank.isEmpty {
            tenantOrder.set(tenant, to: TenantCounters.Key(value: counters.value(of: tenant), tenant: tenant))
        } else {
            tenantOrder.remove(tenant)
        }
    }

    /// The oldest waiting job of the pool where the budget allows a promotion and it has aged.
    private func promoted(in pool: Pool, at now: Instant) -> JobID? {
        guard configuration.inner == .skipJoin, configuration.promotionPeriod > 0,
            (pool.picks + 1).isMultiple(of: configuration.promotionPeriod), let oldest = pool.byArrival.first?.id,
            let entry = entries[oldest], now - entry.waitingSince >= configuration.promotionAge
        else { return nil }
        return oldest
    }

    /// Back to level 0, at the place of its arrival: ahead of the younger ones there.
    mutating func promote(_ job: JobID) {
        guard var entry = entries[job], entry.level > 0 else { return }
        entry.level = 0
        entry.attained = .zero
        entry.place = entry.arrival
        entries[job] = entry
    }
}
