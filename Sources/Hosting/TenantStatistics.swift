import CoordinatorCore
import ServingTypes

/// What tenants were served in the last seconds, and how long their first tokens took. Bounded: those
/// idle for longest are forgotten, and while too many are active further ones have no statistics.
struct TenantStatistics {
    struct Sample {
        var at: Instant
        var units: Int64
        var tokens: JobUsage
    }

    private struct Record {
        /// Once a second where something changed, oldest first.
        var samples: [Sample] = []
        /// The last first-token times in nanoseconds, a ring.
        var waits: [Int64] = []
        var nextWait = 0
        var lastActive = Instant.zero
    }

    enum Limits {
        static let tenants = 1024
        static let samples = 121
        static let waits = 512
        /// Records that `makeRoom` leaves free.
        static let room = 128
        /// A tenant that was active so lately keeps its record.
        static let activeWithin = TimeSpan.seconds(Int64(samples))
    }

    private var records: [TenantID: Record] = [:]
    /// Whether a record was ever forgotten, or not made: what a tenant without one was served before is
    /// then not known.
    private var isPartial = false

    /// Tenants with a record.
    var count: Int { records.count }

    /// What the tenant has been served so far. To be told about once a second.
    mutating func sample(_ tenant: TenantID, units: Int64, tokens: JobUsage, at now: Instant) {
        if let last = records[tenant]?.samples.last, last.units == units, last.tokens == tokens { return }
        touch(tenant, at: now) { record in
            record.samples.append(Sample(at: now, units: units, tokens: tokens))
            if record.samples.count > Limits.samples { record.samples.removeFirst() }
        }
    }

    /// How long a job's first token took.
    mutating func observe(_ tenant: TenantID, firstTokenAfter wait: TimeSpan, at now: Instant) {
        touch(tenant, at: now) { record in
            if record.waits.count < Limits.waits {
                record.waits.append(wait.nanoseconds)
            } else {
                record.waits[record.nextWait] = wait.nanoseconds
                record.nextWait = (record.nextWait + 1) % Limits.waits
            }
        }
    }

    /// Once a second: where room is short, forgets tenants that were idle for longest. A search for
    /// each newcomer would cost the loop a look at every record.
    mutating func makeRoom(at now: Instant) {
        guard records.count > Limits.tenants - Limits.room else { return }
        let idle = records.filter { now - $0.value.lastActive > Limits.activeWithin }
            .sorted { ($0.value.lastActive, $0.key) < ($1.value.lastActive, $1.key) }
        for (tenant, _) in idle.prefix(records.count - (Limits.tenants - Limits.room)) { records[tenant] = nil }
        if !idle.isEmpty { isPartial = true }
    }

    private mutating func touch(_ tenant: TenantID, at now: Instant, _ change: (inout Record) -> Void) {
        guard records[tenant] != nil || records.count < Limits.tenants else {
            isPartial = true
            return
        }
        var record = records[tenant] ?? Record()
        record.lastActive = now
        change(&record)
        records[tenant] = record
    }

    /// What a tenant had been served when a window began.
    enum Start {
        case sample(Sample)
        /// It has come since, or the process has begun since.
        case nothing
        /// Its record was forgotten, as it was idle, or there is no room for one.
        case unknown
    }

    func start(_ tenant: TenantID, window: TimeSpan, at now: Instant) -> Start {
        guard let samples = records[tenant]?.samples, let first = samples.first else {
            return isPartial ? .unknown : .nothing
        }
        if let last = samples.last(where: { $0.at <= Instant(nanoseconds: now.nanoseconds - window.nanoseconds) }) {
            return .sample(last)
        }
        return samples.count == Limits.samples || isPartial ? .sample(first) : .nothing
    }

    /// Quantiles of the last first-token times, nearest rank; nil without any.
    func waits(_ tenant: TenantID) -> (median: TimeSpan, p99: TimeSpan, count: Int)? {
        guard let waits = records[tenant]?.waits.sorted(), !waits.isEmpty else { return nil }
        func quantile(_ fraction: Double) -> TimeSpan {
            let rank = Int((fraction * Double(waits.count)).rounded(.up))
            return TimeSpan(nanoseconds: waits[min(max(rank, 1), waits.count) - 1])
        }
        return (quantile(0.5), quantile(0.99), waits.count)
    }
}
