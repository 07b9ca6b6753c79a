import ServingTypes

/// The one seam through which every order is decided: which waiting job is dispatched next, which
/// resident jobs of a worker run, which gives way. A value without clock or randomness; the live
/// coordinator and a simulator run the same one. Each event costs O(log n) in the jobs and tenants
/// known; a running set costs O(r log r) in the residents of one worker, and is only asked for when
/// they exceed its slots. (The artifact's feedback queue alone looks at every job, every 1000th decision.)
///
/// A job is waiting (`arrive`, `requeue`), withdrawn (held back for a while), or dispatched, and then
/// on its way, running or paused; `leave` ends it from any state.
public struct SchedulingPolicy: Sendable {
    public let configuration: PolicyConfiguration

    /// Jobs by number; numbers of those that left are used again.
    var entries: ContiguousArray<Entry> = []
    private var numbers: [JobID: Int32] = [:]
    private var freeNumbers: [Int32] = []

    /// By tenant number where tenants are separated, else one.
    var pools: ContiguousArray<Pool> = [Pool()]
    private var rankPositions: ContiguousArray<Int32> = []
    private var arrivalPositions: ContiguousArray<Int32> = []
    /// Tenants with jobs in the queue, least counter first; unused where tenants are not separated.
    private var tenantOrder = SlotHeap<TenantCounters.Key>()
    private var tenantPositions: ContiguousArray<Int32> = []
    private var suspended: [Int32] = []
    /// Waiting jobs with a due instant ahead, and throttled ones by when they are let in.
    private var dueOrder = SlotHeap<Int64>()
    private var duePositions: ContiguousArray<Int32> = []
    private var throttle = SlotHeap<Int64>()
    private var throttlePositions: ContiguousArray<Int32> = []

    var counters: TenantCounters
    /// Lengths of everybody's jobs, for pools that have too few of their own.
    var lengths = LengthTables()
    var nextPlace: Int64 = 0
    /// The front of the artifact's levels.
    var frontPlace: Int64 = 0
    /// Running sets so far, and slots of them that promotion has not used.
    var decisions = 0
    var promotionCredit = 0
    /// The largest growth of a counter at once, in parts of a unit: with theta the bound on what a
    /// newcomer may lag.
    var largestCharge: Int64 = 0
    /// Jobs in the queue, and the weights of the tenants that they belong to, in parts.
    public private(set) var waitingJobs = 0
    var waitingParts: Int64 = 0

    public init(_ configuration: PolicyConfiguration) {
        self.configuration = configuration
        counters = TenantCounters(configuration)
    }

    // MARK: The queue

    /// How long a tenant would have to wait before a request of it is let in; zero lets it in now.
    /// Only a policy of request rates that refuses ever says more.
    public func refusal(of tenant: TenantID, at now: Instant) -> TimeSpan {
        guard configuration.discipline == .requestRate(refuses: true), let number = counters.number(of: tenant) else {
            return .zero
        }
        return max(opening(of: number, at: now) - now, .zero)
    }

    /// A new job waits.
    public mutating func arrive(_ job: ScheduledJob, at now: Instant) {
        guard numbers[job.job] == nil else { return }
        let tenant = admit(job.tenant)
        let slot = newSlot(job.job)
        nextPlace += 1
        entries[Int(slot)] = entry(job, tenant, at: now)
        counters.joined(tenant)
        if case .requestRate = configuration.discipline {
            let opening = accept(tenant, at: now)
            if opening > now {
                entries[Int(slot)].state = .throttled
                return throttle.set(slot, to: opening.nanoseconds, &throttlePositions)
            }
        }
        move(slot, to: .waiting, isNew: true)
    }

    /// A dispatched or withdrawn job waits again, at the place that it had.
    public mutating func requeue(_ job: JobID, at now: Instant) {
        guard let slot = numbers[job] else { return }
        if entries[Int(slot)].state == .running { entries[Int(slot)].waitingSince = now }
        move(slot, to: .waiting)
    }

    /// The job waits but must not be chosen for now.
    public mutating func withdraw(_ job: JobID) {
        guard let slot = numbers[job] else { return }
        move(slot, to: .withdrawn)
    }

    /// The job that is to be dispatched next; nil where none waits. Decides nothing by itself, but
    /// lets in whom time has let in, and forgets due instants that have passed.
    public mutating func next(at now: Instant) -> JobID? {
        passTime(now)
        guard let pool = poolToServe, let slot = promoted(in: pool, at: now) ?? best(in: pool) else { return nil }
        return entries[Int(slot)].job
    }

    /// The next job as things stand: who is let in or forgotten by now is not looked at, nor who is promoted.
    public func peek() -> JobID? {
        poolToServe.flatMap { best(in: $0) }.map { entries[Int($0)].job }
    }

    /// The job leaves the queue for a worker.
    public mutating func dispatch(_ job: JobID, at now: Instant) {
        guard let slot = numbers[job], entries[Int(slot)].state == .waiting else { return }
        let pool = pool(of: slot)
        if promoted(in: pool, at: now) == slot { promote(slot) }
        pools[pool].picks += 1
        entries[Int(slot)].waitingSince = now
        move(slot, to: .placed)
        prepay(slot)
    }

    /// The job is over. `completed` says that it came to its natural end, so that its length is one
    /// to learn from.
    public mutating func leave(_ job: JobID, completed: Bool = true) {
        guard let slot = numbers[job] else { return }
        let entry = entries[Int(slot)]
        if entry.state == .throttled { throttle.remove(slot, &throttlePositions) }
        if entry.state == .waiting { unqueue(slot) }
        if makesWait(entry.state) { counters.waitsNoMore(entry.tenant) }
        settle(entry)
        if completed { learn(entry) }
        counters.left(entry.tenant)
        numbers[job] = nil
        freeNumbers.append(slot)
    }

    /// The tenant that is next lets the others go first until `resumeTenants`, as long as the next of
    /// them is no more than theta ahead of it: the order of tenants may bend to what workers can take by
    /// as much as it does for those who run already. False, and nothing done, where none is so near.
    public mutating func standBack(_ tenant: TenantID) -> Bool {
        guard configuration.separatesTenants, let number = counters.number(of: tenant) else { return false }
        suspended.append(number)
        tenantOrder.remove(number, &tenantPositions)
        if poolToServe != nil { return true }
        suspended.removeLast()
        refreshOrder(of: number)
        return false
    }

    public mutating func resumeTenants() {
        let resumed = suspended
        suspended.removeAll()
        for number in resumed { refreshOrder(of: number) }
    }

    /// Whether time alone lets a job in by `now`.
    public func wakes(by now: Instant) -> Bool { throttle.firstKey.map { $0 <= now.nanoseconds } ?? false }

    public var knownJobs: Int { numbers.count }

    /// Level of a job, for people and tests.
    public func level(of job: JobID) -> Int? { numbers[job].map { Int(entries[Int($0)].level) } }

    // MARK: Jobs by number

    func slot(of job: JobID) -> Int32? { numbers[job] }

    private mutating func newSlot(_ job: JobID) -> Int32 {
        let slot: Int32
        if let reused = freeNumbers.popLast() {
            slot = reused
        } else {
            slot = Int32(truncatingIfNeeded: entries.count)
            entries.append(
                Entry(
                    job: job, tenant: 0, state: .withdrawn, produced: 0, base: 0, predictedOutput: -1, knownOutput: -1,
                    priority: 0, arrival: 0, place: 0, prefillTime: 0, tokenTime: 1, due: .max, waitingSince: .zero))
            rankPositions.append(SlotHeap<Rank>.absent)
            duePositions.append(SlotHeap<Rank>.absent)
            if configuration.promotes { arrivalPositions.append(SlotHeap<Rank>.absent) }
            if case .requestRate = configuration.discipline { throttlePositions.append(SlotHeap<Rank>.absent) }
        }
        numbers[job] = slot
        return slot
    }

    private func entry(_ job: ScheduledJob, _ tenant: Int32, at now: Instant) -> Entry {
        func small(_ number: Int?) -> Int32 { number.map { Int32(clamping: max($0, 0)) } ?? -1 }
        let isHinted = configuration.separatesTenants
        var entry = Entry(
            job: job.job, tenant: tenant, state: .withdrawn, produced: small(job.produced), base: small(job.produced),
            predictedOutput: small(job.predictedOutput), knownOutput: small(job.knownOutput),
            priority: isHinted ? job.priority : 0, arrival: nextPlace, place: nextPlace,
            prefillTime: max(job.predictedPrefill.nanoseconds, 0),
            tokenTime: max((job.predictedToken ?? ScheduledJob.defaultTokenTime).nanoseconds, 1), due: .max,
            waitingSince: now)
        entry.outputMax = small(job.outputMax)
        entry.promptTokens = small(job.promptTokens)
        entry.promptClass = Int8(truncatingIfNeeded: LengthTables.promptClass(ofTokens: job.promptTokens))
        if isHinted, job.produced == 0, let due = job.due, due > now { entry.due = due.nanoseconds }
        switch configuration.inner {
        case .skipJoin: entry.level = Int32(configuration.level(covering: job.predictedPrefill))
        case .shortestPredicted where entry.predictedOutput < 0:
            entry.predictedOutput = predictedLength(of: tenant) ?? small(job.outputMax ?? 0)
        case .fcfs, .shortestPredicted, .shortestRemaining, .gittins: break
        }
        return entry
    }

    // MARK: Places in the queue

    func pool(of slot: Int32) -> Int { configuration.separatesTenants ? Int(entries[Int(slot)].tenant) : 0 }

    private var poolToServe: Int? {
        guard configuration.separatesTenants else { return pools[0].isEmpty ? nil : 0 }
        guard let first = tenantOrder.firstKey else { return nil }
        let theta = configuration.theta.multipliedClamped(by: TenantCounters.scale)
        for number in suspended where first.value.addingClamped(-counters[number].value) > theta { return nil }
        return tenantOrder.first.map { Int($0) }
    }

    private func best(in pool: Int) -> Int32? {
        pools[pool].best {
            gittins(pool, step: $0 / LengthTables.promptClasses, promptClass: $0 % LengthTables.promptClasses)
        }
    }

    /// The one way from state to state: queue, counters and orders follow.
    mutating func move(_ slot: Int32, to state: Entry.State, isNew: Bool = false) {
        let old = entries[Int(slot)].state
        guard old != state || isNew else { return }
        if old == .throttled { throttle.remove(slot, &throttlePositions) }
        if old == .waiting, !isNew { unqueue(slot) }
        entries[Int(slot)].state = state
        let tenant = entries[Int(slot)].tenant
        let waited = !isNew && makesWait(old)
        if !waited, makesWait(state) {
            let lifts = isNew || old == .throttled || !configuration.countsPaused
            counters.waits(tenant, lift: lifts ? configuration.lift : .none, slack: slack(of: slot))
        } else if waited, !makesWait(state) {
            counters.waitsNoMore(tenant)
        }
        if state == .waiting { enqueue(slot) }
    }

    private func makesWait(_ state: Entry.State) -> Bool {
        switch state {
        case .waiting: true
        case .withdrawn, .paused: configuration.countsPaused
        case .throttled, .placed, .running: false
        }
    }

    private mutating func enqueue(_ slot: Int32) {
        let entry = entries[Int(slot)]
        let pool = pool(of: slot)
        waitingJobs += 1
        pools[pool].set(slot, bin: bin(entry), queueRank(entry), &rankPositions)
        if configuration.promotes { pools[pool].setArrival(slot, entry.arrival, &arrivalPositions) }
        if entry.due != .max { dueOrder.set(slot, to: entry.due, &duePositions) }
        if pools[pool].count == 1 { waitingParts += weightParts(entry.tenant) }
        refreshOrder(of: entry.tenant)
    }

    private mutating func unqueue(_ slot: Int32) {
        let entry = entries[Int(slot)]
        let pool = pool(of: slot)
        waitingJobs -= 1
        pools[pool].remove(slot, bin: bin(entry), &rankPositions)
        if configuration.promotes { pools[pool].removeArrival(slot, &arrivalPositions) }
        dueOrder.remove(slot, &duePositions)
        if pools[pool].isEmpty { waitingParts -= weightParts(entry.tenant) }
        refreshOrder(of: entry.tenant)
    }

    /// Changes what orders a job, and its place with it.
    mutating func reorder(_ slot: Int32, _ change: (inout Entry) -> Void) {
        let isQueued = entries[Int(slot)].state == .waiting
        let pool = pool(of: slot)
        if isQueued { pools[pool].remove(slot, bin: bin(entries[Int(slot)]), &rankPositions) }
        change(&entries[Int(slot)])
        guard isQueued else { return }
        let entry = entries[Int(slot)]
        pools[pool].set(slot, bin: bin(entry), queueRank(entry), &rankPositions)
    }

    private func bin(_ entry: Entry) -> Int {
        guard configuration.inner == .gittins else { return 0 }
        return LengthTable.step(after: Int(entry.produced)) * LengthTables.promptClasses + Int(entry.promptClass)
    }

    /// Rank of a job that has no memory anywhere: its whole sequence is to be computed first.
    func queueRank(_ entry: Entry) -> Rank {
        let value: Int64
        switch configuration.inner {
        case .fcfs: value = 0
        case .skipJoin: value = Int64(entry.level)
        case .shortestPredicted: value = entry.prefillTime.addingClamped(timeLeft(entry, of: entry.predictedOutput))
        case .shortestRemaining: value = entry.prefillTime.addingClamped(timeLeft(entry, of: entry.knownOutput))
        case .gittins: value = prefillUnits(entry)
        }
        return Rank(priority: entry.priority, due: entry.due, value: value, place: entry.place)
    }

    func timeLeft(_ entry: Entry, of output: Int32) -> Int64 {
        entry.tokenTime.multipliedClamped(by: Int64(max(output - entry.produced, 0)))
    }

    /// The prompt's time in parts of a token, in whole quanta: equal prompts stay in order of arrival
    /// though the cost model moves between them.
    private func prefillUnits(_ entry: Entry) -> Int64 {
        let quantum = max(configuration.baseQuantum.nanoseconds, 1)
        let time = (entry.prefillTime / quantum).multipliedClamped(by: quantum)
        return time.multipliedClamped(by: LengthTable.unitsPerToken) / max(entry.tokenTime, 1)
    }

    /// Rank of a class under the Gittins index: of the pool's own jobs with such prompts, else of all its jobs, else
    /// of everybody's likewise, else all alike.
    func gittins(_ pool: Int, step: Int, promptClass: Int) -> Int64 {
        guard configuration.inner == .gittins else { return 0 }
        return pools[pool].lengths?.rank(ofStep: step, promptClass: promptClass)
            ?? pools[pool].lengths?.all.rank(ofStep: step) ?? lengths.rank(ofStep: step, promptClass: promptClass)
            ?? lengths.all.rank(ofStep: step) ?? 0
    }

    /// Rank of one job: what is left of its limit is the most that it can still take.
    func gittins(of slot: Int32) -> Int64 {
        let entry = entries[Int(slot)]
        let rank = gittins(
            pool(of: slot), step: LengthTable.step(after: Int(entry.produced)), promptClass: Int(entry.promptClass))
        guard entry.outputMax >= 0, configuration.inner == .gittins else { return rank }
        let left = max(Int64(entry.outputMax) - Int64(entry.produced), 1)
        return min(rank, left.multipliedClamped(by: LengthTable.unitsPerToken))
    }

    mutating func refreshOrder(of tenant: Int32) {
        guard configuration.separatesTenants else { return }
        if pools[Int(tenant)].isEmpty || (!suspended.isEmpty && suspended.contains(tenant)) {
            tenantOrder.remove(tenant, &tenantPositions)
        } else {
            tenantOrder.set(tenant, to: counters.key(of: tenant), &tenantPositions)
        }
    }

    mutating func admit(_ tenant: TenantID) -> Int32 {
        let (number, forgotten) = counters.admit(tenant)
        guard configuration.separatesTenants else { return number }
        for old in forgotten { pools[Int(old)] = Pool() }
        while pools.count <= Int(number) { pools.append(Pool()) }
        while tenantPositions.count <= Int(number) { tenantPositions.append(SlotHeap<Rank>.absent) }
        return number
    }

    // MARK: Time

    private mutating func passTime(_ now: Instant) {
        while let slot = dueOrder.first, let due = dueOrder.firstKey, due <= now.nanoseconds { forgetDue(slot) }
        while let slot = throttle.first, let at = throttle.firstKey, at <= now.nanoseconds {
            move(slot, to: .waiting)
        }
    }

    mutating func forgetDue(_ slot: Int32) {
        dueOrder.remove(slot, &duePositions)
        reorder(slot) { $0.due = .max }
    }

    /// When the tenant's next request may come in: a minute after the one that fills its limit.
    private func opening(of tenant: Int32, at now: Instant) -> Instant {
        let accepted = counters[tenant].accepted
        let limit = max(configuration.requestsPerMinute, 1)
        guard accepted.count >= limit else { return now }
        return max(now, Instant(nanoseconds: accepted[accepted.count - limit]) + .seconds(60))
    }

    private mutating func accept(_ tenant: Int32, at now: Instant) -> Instant {
        let opening = opening(of: tenant, at: now)
        let limit = max(configuration.requestsPerMinute, 1)
        counters[tenant].accepted.append(opening.nanoseconds)
        if counters[tenant].accepted.count > limit { counters[tenant].accepted.removeFirst() }
        return opening
    }

    // MARK: Promotion

    /// The oldest waiting job of the pool where the budget allows a promotion and it has aged.
    private func promoted(in pool: Int, at now: Instant) -> Int32? {
        guard configuration.promotes, (pools[pool].picks + 1).isMultiple(of: configuration.promotionPeriod),
            let oldest = pools[pool].byArrival.first
        else { return nil }
        let entry = entries[Int(oldest)]
        return entry.hasAged || now - entry.waitingSince >= configuration.promotionAge ? oldest : nil
    }

    /// Back to level 0, at the place of its arrival: ahead of the younger ones there.
    mutating func promote(_ slot: Int32) {
        reorder(slot) { entry in
            entry.hasAged = true
            guard entry.level > 0 else { return }
            entry.level = 0
            entry.attained = 0
            entry.place = entry.arrival
        }
    }

    /// How far below the greatest counter a tenant may begin to wait with this job: theta and what the job is charged
    /// for its prompt, so that it displaces another at once and, unless its prompt is long, still does after that
    /// charge: up to a quarter of theta, so that the gap leaves room under theta + u for what is under way. Where
    /// nobody says how long the prompt is, the largest charge made at once. Nil where there is no such clamp.
    private func slack(of slot: Int32) -> Int64? {
        guard configuration.countsPaused else { return nil }
        let entry = entries[Int(slot)]
        let theta = configuration.theta.multipliedClamped(by: TenantCounters.scale)
        let perUnit = counters[entry.tenant].perUnit
        let least = configuration.outputWeight.multipliedClamped(by: perUnit)
        guard entry.promptTokens >= 0 else { return theta.addingClamped(max(largestCharge, least)) }
        let prompt = configuration.promptUnits.multipliedClamped(by: Int64(entry.promptTokens))
        return theta.addingClamped(min(prompt.multipliedClamped(by: perUnit), theta / 4).addingClamped(least))
    }

    func weightParts(_ tenant: Int32) -> Int64 {
        guard configuration.separatesTenants else { return 0 }
        return Int64(min(counters.weight(of: counters[tenant].name), 1e9) * Double(TenantCounters.scale))
    }

    // MARK: For people

    /// In units over weight.
    public func virtualCounter(of tenant: TenantID) -> Double {
        counters.number(of: tenant).map { Double(counters[$0].value) / Double(TenantCounters.scale) } ?? 0
    }

    /// Service units charged to the tenant so far, lifts left out: `promptWeight` per prompt token and
    /// `outputWeight` per output token, whatever is counted.
    public func chargedUnits(of tenant: TenantID) -> Int64 {
        counters.number(of: tenant).map { counters[$0].charged } ?? 0
    }

    public func weight(of tenant: TenantID) -> Double { counters.weight(of: tenant) }

    /// Sum of the weights of the tenants that have jobs in the queue; zero where tenants are not
    /// separated.
    public var waitingWeight: Double { Double(waitingParts) / Double(TenantCounters.scale) }
}
