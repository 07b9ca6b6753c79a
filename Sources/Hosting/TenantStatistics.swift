import CoordinatorCore
import ServingTypes

/// What tenants were served in the last seconds, and how long their first tokens took. Bounded: the
/// tenant that was idle for longest is forgotten first.
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
    }

    private var records: [TenantID: Record] = [:]

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

    private mutating func touch(_ tenant: TenantID, at now: Instant, _ change: (inout Record) -> Void) {
        if records[tenant] == nil, records.count >= Limits.tenants,
            let oldest = records.min(by: { ($0.value.lastActive, $0.key) < ($1.value.lastActive, $1.key) })
        {
            records[oldest.key] = nil
        }
        var record = records[tenant] ?? Record()
        record.lastActive = now
        change(&record)
        records[tenant] = record
    }

    /// What the tenant had been served when the window began; nil where it was not known then.
    func start(_ tenant: TenantID, window: TimeSpan, at now: Instant) -> Sample? {
        guard let samples = records[tenant]?.samples else { return nil }
        return samples.last { $0.at <= Instant(nanoseconds: now.nanoseconds - window.nanoseconds) }
            ?? (samples.count == Limits.samples ? samples.first : nil)
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
