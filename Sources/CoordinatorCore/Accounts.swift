import Scheduling
import ServingTypes

/// What is charged to whom, and what of it outlives the process.
extension Coordinator {
    /// Tokens that an earlier coordinator has charged come again: they are charged to nobody.
    mutating func forgiveRepeated(_ id: JobID, from start: Int, count: Int) {
        guard let job = jobs[id], start < job.accountedOutput else { return }
        let repeated = min(start + count, job.accountedOutput) - start
        policy.charge(job.tenant, outputTokens: -repeated)
        jobs[id]?.usage.recomputedTokens += repeated
        counters.recomputedTokens += UInt64(repeated)
    }

    /// What had to be computed again because another tenant's job took the memory is that one's
    /// (scheduling.md §4.3); after a failure it is nobody's.
    mutating func chargeDisplacer(of id: JobID, _ computed: Int) {
        guard computed > 0, let tenant = jobs[id]?.displacedBy else { return }
        jobs[id]?.displacedBy = nil
        policy.charge(tenant, promptTokens: computed)
        touchTenant(tenant) { $0.usage.causedTokens += computed }
    }

    /// What a job has come to, live or remembered.
    public func usage(of job: JobID) -> JobUsage? {
        jobs.read(job) { $0.usage } ?? ended[job]?.outcome.usage
    }

    /// Jobs of a tenant that are admitted and not ended.
    public func liveJobs(of tenant: TenantID) -> Int {
        tenants[tenant].map { $0.queued + $0.running } ?? 0
    }

    /// Tokens of others that a tenant's jobs have caused to be computed again.
    public func causedTokens(of tenant: TenantID) -> Int { tenants[tenant]?.usage.causedTokens ?? 0 }

    /// The virtual counters, with what is charged ahead for jobs that are under way, and how much that is.
    public var counterRecords: [CounterRecord] { policy.counterRecords }

    /// Counters that have changed since this was last asked. A driver that keeps them after each event,
    /// before it performs the event's actions, can be killed at any time: no token has been handed to
    /// anybody that its successor's counters do not hold.
    public mutating func takeChangedCounters() -> [CounterRecord] { policy.takeChangedCounters() }

    /// See `SchedulingPolicy.countingTag`.
    public var countingTag: Int64? { policy.countingTag }

    public var lastWaitingCounter: Int64? { policy.lastWaitingValue }

    /// Takes up the counters that an earlier coordinator left, so that a crash gives nobody credit.
    /// To be called before any job is submitted.
    public mutating func restoreCounters(_ records: [CounterRecord], lastWaiting: Int64?) {
        policy.restore(records, lastWaiting: lastWaiting)
    }

    /// How far a tenant's counter moves for these tokens.
    public func counterParts(promptTokens: Int64, outputTokens: Int64, of tenant: TenantID) -> Int64 {
        policy.parts(promptTokens: promptTokens, outputTokens: outputTokens, of: tenant)
    }

    public mutating func setWeight(_ weight: Double, of tenant: TenantID) {
        policy.setWeight(weight, of: tenant)
        mayPlace = true
    }

    public func virtualCounter(of tenant: TenantID) -> Double { policy.virtualCounter(of: tenant) }

    public func weight(of tenant: TenantID) -> Double { policy.weight(of: tenant) }

    /// One tenant's standing; nil where it is not known.
    public func tenant(_ tenant: TenantID) -> TenantView? {
        tenants[tenant] == nil ? nil : tenantView(tenant)
    }
}
