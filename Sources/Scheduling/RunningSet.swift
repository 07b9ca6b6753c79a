import ServingTypes

extension SchedulingPolicy {
    /// A resident job with what orders it.
    struct Resident {
        var slot: Int32
        var tenant: Int32
        /// Promoted jobs first, then, where a running job is not preempted by its own pool, those.
        var group: Int8
        var rank: Rank
    }

    /// Which resident jobs of one worker run in its next iterations: at most `slots` of them, in
    /// decreasing urgency. Policies that do not preempt keep what runs and fill free slots.
    public mutating func runningSet(of residents: [JobID], slots: Int, at now: Instant) -> [JobID] {
        let chosen = ranking(of: residents, slots: slots, limit: slots, at: now)
        run(chosen, of: residents, at: now)
        return chosen
    }

    /// The first `limit` residents in the order in which they get slots, of which there are `slots`: who
    /// runs, and who stands by. To be followed by `run`.
    public mutating func ranking(of residents: [JobID], slots: Int, limit: Int, at now: Instant) -> [JobID] {
        decisions += 1
        sweepAsArtifact(at: now)
        let known = residents.compactMap(slot(of:))
        let promoted = promoteAged(known, slots: slots, at: now)
        return order(known.map { resident($0, promoted: promoted, at: now) }, limit: max(limit, 0))
            .map { entries[Int($0)].job }
    }

    /// Of these residents those chosen run from now on, and the others do not.
    public mutating func run(_ chosen: [JobID], of residents: [JobID], at now: Instant) {
        remember(chosen.compactMap(slot(of:)), of: residents.compactMap(slot(of:)), at: now)
    }

    /// The job runs without having been chosen: its worker had room when it became resident.
    public mutating func started(_ job: JobID) {
        guard let slot = slot(of: job) else { return }
        switch entries[Int(slot)].state {
        case .placed, .paused: move(slot, to: .running)
        case .waiting, .withdrawn, .throttled, .running: break
        }
    }

    /// Whether it counts as running, with what that is worth in the order.
    public func isRunning(_ job: JobID) -> Bool { slot(of: job).map { isRunning($0) } ?? false }

    func isRunning(_ slot: Int32) -> Bool { entries[Int(slot)].state == .running }

    // MARK: Order

    func resident(_ slot: Int32, promoted: [Int32] = [], at now: Instant) -> Resident {
        let entry = entries[Int(slot)]
        let runs = entry.state == .running
        let keeps = runs && !configuration.inner.preempts
        let group: Int8 = promoted.contains(slot) ? 0 : keeps ? 1 : 2
        return Resident(slot: slot, tenant: entry.tenant, group: group, rank: residentRank(slot, at: now))
    }

    /// Rank of a job whose sequence is in memory: its prompt costs nothing any more.
    func residentRank(_ slot: Int32, at now: Instant) -> Rank {
        let entry = entries[Int(slot)]
        var rank = queueRank(entry)
        if entry.due <= now.nanoseconds { rank.due = .max }
        switch configuration.inner {
        case .fcfs, .skipJoin: break
        case .shortestPredicted: rank.value = timeLeft(entry, of: entry.predictedOutput)
        case .shortestRemaining: rank.value = timeLeft(entry, of: entry.knownOutput)
        case .gittins:
            rank.value = gittins(of: slot)
            if entry.state == .running {
                let bonus = configuration.runningBonus.nanoseconds.multipliedClamped(by: LengthTable.unitsPerToken)
                rank.value = rank.value.addingClamped(-(bonus / max(entry.tokenTime, 1)))
            }
        }
        return rank
    }

    static func inPoolOrder(_ a: Resident, _ b: Resident) -> Bool {
        a.group == b.group ? a.rank < b.rank : a.group < b.group
    }

    /// The first `limit` residents in the order in which they get slots.
    func order(_ residents: [Resident], limit: Int) -> [Int32] {
        switch configuration.discipline {
        case .pooled, .requestRate:
            return residents.sorted(by: Self.inPoolOrder).prefix(limit).map(\.slot)
        case .fairShare:
            return fairOrder(residents, theta: configuration.theta, limit: limit)
        case .leastCounter, .virtualCounters:
            let running = residents.filter { isRunning($0.slot) }.sorted { $0.rank < $1.rank }.prefix(limit).map(\.slot)
            let others = residents.filter { !isRunning($0.slot) }
            return running + fairOrder(others, theta: 0, limit: limit - running.count)
        }
    }

    /// Batch assembly of design C: again and again the tenant with the least counter, less theta
    /// where its head job runs already, gets a slot for its head job and a provisional charge.
    private func fairOrder(_ residents: [Resident], theta: Int64, limit: Int) -> [Int32] {
        let sorted = residents.sorted { a, b in
            a.tenant == b.tenant ? Self.inPoolOrder(a, b) : a.tenant < b.tenant
        }
        var queues = Queues(sorted)
        let credit = theta.multipliedClamped(by: TenantCounters.scale)
        for queue in queues.ranges.indices { queues.place(queue, key(of: queues, queue, credit)) }
        var chosen: [Int32] = []
        while chosen.count < limit, let queue = queues.first {
            let head = queues.takeHead(of: queue)
            chosen.append(head.slot)
            let charge = configuration.outputWeight.multipliedClamped(by: counters[head.tenant].perUnit)
            queues.ahead[queue] = queues.ahead[queue].addingClamped(charge)
            queues.place(queue, key(of: queues, queue, credit))
        }
        return chosen
    }

    private func key(of queues: Queues, _ queue: Int, _ credit: Int64) -> TenantCounters.Key? {
        queues.head(of: queue).map { head in
            let ahead = queues.ahead[queue].addingClamped(isRunning(head.slot) ? -credit : 0)
            return counters.key(of: head.tenant, ahead: ahead)
        }
    }

    /// Residents by tenant, and the tenants by key.
    private struct Queues {
        let residents: [Resident]
        var ranges: [Range<Int>] = []
        /// Charged in this assembly.
        var ahead: [Int64]
        private var order = SlotHeap<TenantCounters.Key>()
        private var positions: ContiguousArray<Int32>

        init(_ sorted: [Resident]) {
            residents = sorted
            var start = 0
            for index in sorted.indices
            where index + 1 == sorted.count || sorted[index + 1].tenant != sorted[index].tenant {
                ranges.append(start..<index + 1)
                start = index + 1
            }
            ahead = Array(repeating: 0, count: ranges.count)
            positions = ContiguousArray(repeating: SlotHeap<TenantCounters.Key>.absent, count: ranges.count)
        }

        var first: Int? { order.first.map { Int($0) } }

        func head(of queue: Int) -> Resident? { ranges[queue].isEmpty ? nil : residents[ranges[queue].lowerBound] }

        mutating func takeHead(of queue: Int) -> Resident {
            let head = residents[ranges[queue].lowerBound]
            ranges[queue] = ranges[queue].dropFirst()
            return head
        }

        mutating func place(_ queue: Int, _ key: TenantCounters.Key?) {
            let slot = Int32(truncatingIfNeeded: queue)
            if let key { order.set(slot, to: key, &positions) } else { order.remove(slot, &positions) }
        }
    }

    private mutating func remember(_ chosen: [Int32], of residents: [Int32], at now: Instant) {
        let runs = Set(chosen)
        for slot in residents {
            switch entries[Int(slot)].state {
            case .waiting, .withdrawn, .throttled: continue
            case .placed, .running, .paused: break
            }
            if runs.contains(slot) {
                move(slot, to: .running)
            } else {
                if isRunning(slot) { entries[Int(slot)].waitingSince = now }
                move(slot, to: .paused)
            }
        }
    }

    // MARK: Promotion

    /// Of the oldest jobs, as many as the budget of slots allows, those that have aged. One that does
    /// not run returns to level 0; one that does keeps its slot as long as the budget has it. So a
    /// share of the slots serves in order of arrival, and no job waits for ever.
    private mutating func promoteAged(_ residents: [Int32], slots: Int, at now: Instant) -> [Int32] {
        guard configuration.promotes, slots > 0 else { return [] }
        let period = configuration.promotionPeriod
        promotionCredit = min(promotionCredit + slots, max(slots, period))
        for slot in residents where !isRunning(slot) && !entries[Int(slot)].hasAged {
            entries[Int(slot)].hasAged = now - entries[Int(slot)].waitingSince >= configuration.promotionAge
        }
        let oldest = residents.sorted { entries[Int($0)].arrival < entries[Int($1)].arrival }
        let promoted = oldest.prefix(promotionCredit / period).filter { entries[Int($0)].hasAged }
        promotionCredit -= promoted.count * period
        for slot in promoted where !isRunning(slot) { promote(slot) }
        return promoted
    }

    /// FastServe's `prevent_starvation`: seldom, everybody who has waited long, to the front of level
    /// 0, and what a job has attained stays.
    private mutating func sweepAsArtifact(at now: Instant) {
        guard configuration.inner == .skipJoin, configuration.feedback == .artifact,
            decisions.isMultiple(of: ArtifactLimits.sweepPeriod)
        else { return }
        var starved = Set(pools.flatMap(\.unordered)).union(pausedSlots).filter { slot in
            now - entries[Int(slot)].waitingSince >= configuration.promotionAge
        }.sorted { entries[Int($0)].arrival < entries[Int($1)].arrival }
        while let slot = starved.popLast() {
            frontPlace -= 1
            let place = frontPlace
            reorder(slot) { entry in
                entry.level = 0
                entry.place = place
            }
        }
    }

    private var pausedSlots: [Int32] {
        entries.indices.filter { entries[$0].state == .paused }.map { Int32(truncatingIfNeeded: $0) }
    }

    enum ArtifactLimits {
        /// Decisions between two looks at who starves.
        static let sweepPeriod = 1000
    }
}
