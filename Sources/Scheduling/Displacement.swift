import ServingTypes

/// A resident job and the memory that it holds, in units of the caller's choice, as blocks.
public struct Holding: Hashable, Sendable {
    public var job: JobID
    public var units: Int

    public init(job: JobID, units: Int) {
        self.job = job
        self.units = units
    }
}

/// Who gives way, and in which order jobs that lie elsewhere are wanted back.
extension SchedulingPolicy {
    /// Jobs whose memory is to be taken so that `need` units become free: a minimal set, none of
    /// which could be spared, and none at all where they would not suffice.
    ///
    /// Without `incoming` the memory is needed by a running job: the worst job of the tenant with the
    /// greatest counter goes first. With it, only jobs that the policy would displace for that job:
    /// those of a tenant that is more than theta ahead of its tenant, and worse ones of its own
    /// tenant where the inner discipline preempts. `theta` takes the place of the configuration's.
    public func victims(
        among holdings: [Holding], freeing need: Int, for incoming: JobID?, theta: Int64? = nil, at now: Instant
    ) -> [JobID] {
        let theta = theta ?? configuration.theta
        guard need > 0 else { return [] }
        var candidates: [(resident: Resident, units: Int)] = holdings.compactMap { holding in
            slot(of: holding.job).map { (resident($0, at: now), max(holding.units, 0)) }
        }
        if let incoming {
            guard let slot = slot(of: incoming) else { return [] }
            candidates.removeAll { !mayDisplace($0.resident, for: slot, theta: theta, at: now) }
        }
        candidates.sort { isWorse($0.resident, $1.resident) }
        var chosen: [(resident: Resident, units: Int)] = []
        var freed = 0
        for candidate in candidates where freed < need && candidate.units > 0 {
            chosen.append(candidate)
            freed += candidate.units
        }
        guard freed >= need else { return [] }
        for index in chosen.indices.reversed() where freed - chosen[index].units >= need {
            freed -= chosen[index].units
            chosen.remove(at: index)
        }
        return chosen.map { entries[Int($0.resident.slot)].job }
    }

    /// The one job that is to give way, where one is enough.
    public func victim(among jobs: [JobID], for incoming: JobID? = nil, at now: Instant) -> JobID? {
        victims(among: jobs.map { Holding(job: $0, units: 1) }, freeing: 1, for: incoming, at: now).first
    }

    /// How many of these residents a waiting job would not displace from a slot, were it resident
    /// itself: memory is not looked at, so a paused job enjoys no hysteresis. `displacesOwn`: whether it counts that it
    /// would displace jobs of its own tenant.
    public func countAhead(of incoming: JobID, among jobs: [JobID], displacesOwn: Bool = true, at now: Instant) -> Int {
        guard configuration.preemptsRunning, let newcomer = slot(of: incoming) else { return jobs.count }
        return jobs.reduce(0) { count, job in
            guard let slot = slot(of: job) else { return count }
            if !displacesOwn, pool(of: slot) == pool(of: newcomer) { return count + 1 }
            let theta = isRunning(slot) ? configuration.theta : 0
            return count + (mayDisplace(resident(slot, at: now), for: newcomer, theta: theta, at: now) ? 0 : 1)
        }
    }

    /// Of these jobs those of tenants whose counters are more than `units` above that of a job's tenant.
    public func ahead(of incoming: JobID, by units: Int64, among jobs: [JobID]) -> [JobID] {
        jobs.filter { isAhead($0, of: incoming, by: units) }
    }

    /// Whether a job's tenant is another than the other job's, and more than `units` ahead of it.
    public func isAhead(_ job: JobID, of other: JobID, by units: Int64) -> Bool {
        guard let slot = slot(of: job), let otherSlot = self.slot(of: other) else { return false }
        return isAhead(entries[Int(slot)].tenant, of: entries[Int(otherSlot)].tenant, by: units)
    }

    /// Whether any tenant with jobs is so far above a waiting job's tenant.
    public func isAnyAhead(of incoming: JobID, by units: Int64) -> Bool {
        guard configuration.separatesTenants, let newcomer = slot(of: incoming), let top = counters.top else {
            return false
        }
        let ahead = top.addingClamped(-counters[entries[Int(newcomer)].tenant].value)
        return ahead > units.multipliedClamped(by: TenantCounters.scale)
    }

    private func isAhead(_ tenant: Int32, of other: Int32, by units: Int64) -> Bool {
        guard configuration.separatesTenants, tenant != other else { return false }
        let ahead = counters[tenant].value.addingClamped(-counters[other].value)
        return ahead > units.multipliedClamped(by: TenantCounters.scale)
    }

    private func isWorse(_ a: Resident, _ b: Resident) -> Bool {
        if configuration.separatesTenants, a.tenant != b.tenant {
            return counters.key(of: b.tenant) < counters.key(of: a.tenant)
        }
        let (runsA, runsB) = (isRunning(a.slot), isRunning(b.slot))
        return runsA == runsB ? b.rank < a.rank : runsB
    }

    private func mayDisplace(_ resident: Resident, for incoming: Int32, theta: Int64, at now: Instant) -> Bool {
        guard resident.slot != incoming, configuration.preemptsRunning else { return false }
        let newcomer = entries[Int(incoming)]
        if configuration.separatesTenants, resident.tenant != newcomer.tenant {
            return isAhead(resident.tenant, of: newcomer.tenant, by: theta)
        }
        guard configuration.inner.preempts else { return false }
        var (new, old) = (queueRank(newcomer), resident.rank)
        if configuration.inner == .gittins {
            new.value = new.value.addingClamped(gittins(of: incoming))
        }
        (new.place, old.place) = (0, 0)
        return new < old
    }

    /// Jobs that do not run, by when each is likely to run next, soonest first: those to fetch back
    /// first stand first, those to write out first stand last. For the feedback queue FastServe's
    /// estimate, the lesser of the time until it ages and of what the jobs above it can still burn
    /// (scheduling.md §1.3); otherwise the order in which slots are given.
    public func wakeOrder(of jobs: [JobID], slots: Int, at now: Instant) -> [JobID] {
        let residents = jobs.compactMap(slot(of:)).map { resident($0, at: now) }
        let order = order(residents, limit: residents.count)
        guard configuration.discipline == .pooled(.skipJoin) else { return order.map { entries[Int($0)].job } }
        let waits = nextRuns(order, slots: slots, at: now)
        return order.indices.sorted { waits[$0] == waits[$1] ? $0 < $1 : waits[$0] < waits[$1] }
            .map { entries[Int(order[$0])].job }
    }

    /// Nanoseconds until each job, in order of urgency, is likely to run.
    private func nextRuns(_ order: [Int32], slots: Int, at now: Instant) -> [Int64] {
        var burned = [Int64](repeating: 0, count: configuration.levelsMax + 1)
        for level in 0..<configuration.levelsMax {
            burned[level + 1] = burned[level].addingClamped(configuration.quantum(ofLevel: level).nanoseconds)
        }
        var (above, aboveCount) = (Int64(0), Int64(0))
        return order.map { slot in
            let entry = entries[Int(slot)]
            let own = burned[min(Int(entry.level), configuration.levelsMax)]
            let left = own.multipliedClamped(by: aboveCount).addingClamped(-above)
            above = above.addingClamped(own)
            aboveCount += 1
            let execute = max(left, 0) / Int64(max(slots, 1))
            guard configuration.promotes else { return execute }
            let age = configuration.promotionAge - (now - entry.waitingSince)
            return min(execute, max(age.nanoseconds, 0))
        }
    }
}
