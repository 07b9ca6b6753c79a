import ServingTypes

extension SchedulingPolicy {
    /// Which resident jobs of one worker run in its next iterations: at most `slots` of them, in
    /// decreasing urgency. Policies that do not preempt keep what runs and fill free slots.
    public mutating func runningSet(of residents: [JobID], slots: Int, at now: Instant) -> [JobID] {
        decisions += 1
        let chosen: [JobID]
        switch configuration.discipline {
        case .fcfs: chosen = keeping(residents, slots: slots) { sortedByRank($0) }
        case .virtualCounters: chosen = keeping(residents, slots: slots) { jobs in fairOrder(jobs, theta: 0) }
        case .skipJoin:
            let promoted = promoteAged(residents, slots: slots, at: now)
            let others = sortedByRank(residents.filter { !promoted.contains($0) })
            chosen = Array((promoted + others).prefix(max(slots, 0)))
        case .fairShare(let inner):
            if inner == .skipJoin { _ = promoteAged(residents, slots: slots, at: now) }
            chosen = Array(fairOrder(residents, theta: configuration.theta).prefix(max(slots, 0)))
        }
        remember(chosen, of: residents, at: now)
        return chosen
    }

    /// The job runs without having been chosen: its worker had room when it became resident.
    public mutating func started(_ job: JobID) {
        if case .dispatched = entries[job]?.state { entries[job]?.state = .dispatched(running: true) }
    }

    private func isRunning(_ job: JobID) -> Bool {
        entries[job]?.state == .dispatched(running: true)
    }

    private func rank(_ job: JobID) -> Rank {
        guard let entry = entries[job] else { return Rank(level: .max, priority: 0, place: .max) }
        return Rank(level: entry.level, priority: entry.priority, place: entry.place)
    }

    private func sortedByRank(_ jobs: [JobID]) -> [JobID] {
        jobs.map { (job: $0, rank: rank($0)) }.sorted { $0.rank < $1.rank }.map(\.job)
    }

    /// Those that run stay; the rest of the slots go to the first of the others.
    private func keeping(_ residents: [JobID], slots: Int, order: ([JobID]) -> [JobID]) -> [JobID] {
        let running = sortedByRank(residents.filter(isRunning)).prefix(max(slots, 0))
        guard running.count < slots else { return Array(running) }
        let others = order(residents.filter { !isRunning($0) }).prefix(slots - running.count)
        return Array(running) + Array(others)
    }

    /// Promotes those that have waited too long, oldest first, within a budget of slots.
    private mutating func promoteAged(_ residents: [JobID], slots: Int, at now: Instant) -> [JobID] {
        let period = max(configuration.promotionPeriod, 1)
        let budget = max(slots / period, decisions.isMultiple(of: period) ? 1 : 0)
        let aged = residents.filter { job in
            guard let entry = entries[job], !isRunning(job) else { return false }
            return now - entry.waitingSince >= configuration.promotionAge
        }
        let oldest = aged.sorted { (entries[$0]?.arrival ?? .max) < (entries[$1]?.arrival ?? .max) }.prefix(budget)
        for job in oldest { promote(job) }
        return Array(oldest)
    }

    /// Batch assembly of design C: again and again the tenant with the least counter, less theta
    /// where its head job runs already, gets a slot for its head job and a provisional charge.
    private func fairOrder(_ residents: [JobID], theta: Int64) -> [JobID] {
        var queues: [TenantID: ArraySlice<JobID>] = [:]
        for job in sortedForTenant(residents) {
            guard let tenant = entries[job]?.tenant else { continue }
            queues[tenant, default: []].append(job)
        }
        var provisional: [TenantID: Int64] = [:]
        var order = KeyedHeap<TenantID, TenantCounters.Key>()
        for (tenant, queue) in queues {
            order.set(tenant, to: fairKey(tenant, head: queue.first, ahead: 0, theta: theta))
        }
        var chosen: [JobID] = []
        while let tenant = order.first?.id {
            guard let job = queues[tenant]?.popFirst() else { break }
            chosen.append(job)
            let ahead = provisional[tenant, default: 0] + configuration.outputWeight * counters.perUnit(of: tenant)
            provisional[tenant] = ahead
            if let head = queues[tenant]?.first {
                order.set(tenant, to: fairKey(tenant, head: head, ahead: ahead, theta: theta))
            } else {
                order.remove(tenant)
            }
        }
        return chosen
    }

    /// Inside a tenant FCFS keeps what runs ahead of what waits; the feedback queue goes by rank.
    private func sortedForTenant(_ residents: [JobID]) -> [JobID] {
        switch configuration.inner {
        case .skipJoin: sortedByRank(residents)
        case .fcfs: sortedByRank(residents.filter(isRunning)) + sortedByRank(residents.filter { !isRunning($0) })
        }
    }

    private func fairKey(_ tenant: TenantID, head: JobID?, ahead: Int64, theta: Int64) -> TenantCounters.Key {
        var value = TenantCounters.adding(counters.value(of: tenant), ahead)
        if let head, isRunning(head) {
            let (credit, overflow) = theta.multipliedReportingOverflow(by: TenantCounters.scale)
            value = TenantCounters.adding(value, overflow ? -.max : -credit)
        }
        return TenantCounters.Key(value: value, tenant: tenant)
    }

    private mutating func remember(_ chosen: [JobID], of residents: [JobID], at now: Instant) {
        let running = Set(chosen)
        for job in residents {
            guard var entry = entries[job], case .dispatched(let was) = entry.state else { continue }
            let runs = running.contains(job)
            if was && !runs { entry.waitingSince = now }
            entry.state = .dispatched(running: runs)
            entries[job] = entry
        }
    }
}
