import Foundation
import GRDB
import ServingTypes
import Synchronization

/// A tenant's virtual counter as it is kept over a restart: what `Scheduling.CounterRecord` says of it.
public struct CounterRow: Hashable, Sendable {
    public var tenant: TenantID
    /// In the policy's own parts, with what is charged ahead.
    public var value: Int64
    /// What of it lifts, not charges, have added.
    public var lifted: Int64
    /// Work of each role, where dominant shares are counted.
    public var prefillWork: Int64 = 0
    public var decodeWork: Int64 = 0
    /// Tokens in `value` that are expected of jobs under way.
    public var promptAhead: Int64 = 0
    public var outputAhead: Int64 = 0
    /// The tenant with the greatest ceased to wait last.
    public var ceasedWaiting: Int64 = 0
    /// Of two rows the one with the greater is the later. 0 where the counter file has no slot for it.
    public var stamp: Int64 = 0
    /// Tokens that the ledger had of the tenant when this was written; not in the counter file, whose
    /// counters are those of the last event.
    public var computed: Int64
    public var decoded: Int64

    public init(tenant: TenantID, value: Int64, lifted: Int64, computed: Int64 = 0, decoded: Int64 = 0) {
        self.tenant = tenant
        self.value = value
        self.lifted = lifted
        self.computed = computed
        self.decoded = decoded
    }
}

/// Everything that a coordinator takes up where the last one left it.
public struct LedgerContent: Sendable {
    public var totals: [TenantID: TenantTotal] = [:]
    public var open: [(reservation: Reservation, counts: TokenCounts)] = []
    public var counters: [CounterRow] = []
    /// Counter of the tenant that had waited last.
    public var lastWaiting: Int64?
    /// What the counters count, as the policy tells it; nil where it was never said.
    public var counting: Int64?
    public var settings: [TenantID: String] = [:]
}

/// Sums of a tenant's settled jobs.
public struct TenantTotal: Hashable, Sendable {
    public var jobs: Int64 = 0
    public var counts = TokenCounts()

    public init() {}
}

/// Reservations, settlements and their sums, in SQLite.
public final class TenantLedger: Sendable {
    public enum Limits {
        /// Settlements that are kept one by one; older ones live on in the sums.
        public static let settlementsKept: Int64 = 1_000_000
        /// Tenants with sums of their own; the settlements of further ones add to `others`.
        public static let tenantsMax = 65_536
        public static let others = TenantID("*others*")
    }

    private let store: LedgerStore
    private let known: KnownTenants

    public init(store: LedgerStore) throws(ServingError) {
        self.store = store
        known = KnownTenants(
            try store.read { try Row.fetchAll($0, sql: "SELECT tenant FROM total").compactMap { $0.text("tenant") } })
    }

    /// Why nothing can be admitted now; nil where it can.
    public var refusal: ServingError? { store.refusal }

    /// See `LedgerStore`.
    public var failedCommits: Int { store.failedCommits }
    public func probe() { store.probe() }

    public func flush() { store.flush() }

    // MARK: Writing

    /// An admitted job. Nobody waits for it: the mark file has it already.
    public func reserve(_ reservation: Reservation) {
        enqueue { db in
            try db.execute(
                sql: """
                    INSERT INTO reservation (job, tenant, prompt, output_max, started) VALUES (?, ?, ?, ?, ?)
                    ON CONFLICT (job) DO NOTHING
                    """,
                arguments: [
                    reservation.job.description, reservation.tenant.name, reservation.promptTokens,
                    reservation.outputMax, reservation.startedAt,
                ])
        }
    }

    /// What open jobs have come to, against a loss of power. The whole row is written, since the
    /// reservation may have been in a commit that failed.
    public func mark(_ marks: [(reservation: Reservation, counts: TokenCounts)]) {
        guard !marks.isEmpty else { return }
        enqueue { db in
            let statement = try db.cachedStatement(
                sql: """
                    INSERT OR REPLACE INTO reservation (computed, cached, decoded, recomputed, caused, streamed, job,
                        tenant, prompt, output_max, started) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                    """)
            for (reservation, counts) in marks {
                try statement.execute(
                    arguments: Self.arguments(counts) + [
                        reservation.job.description, reservation.tenant.name, reservation.promptTokens,
                        reservation.outputMax, reservation.startedAt,
                    ])
            }
        }
    }

    /// A job that is over, together with what else belongs into the same transaction. A job that is
    /// settled already changes nothing. `done` runs on the writer's queue.
    public func settle(
        _ settlement: Settlement, with others: [LedgerStore.Write] = [],
        done: @escaping @Sendable (ServingError?) -> Void
    ) {
        let write = LedgerStore.Write(apply: { [known] in try Self.insert(settlement, $0, known) }, done: done)
        store.enqueue([write] + others, isUrgent: false, isBounded: false)
    }

    /// What belongs to a job that is settled already.
    func write(_ writes: [LedgerStore.Write]) {
        if !writes.isEmpty { store.enqueue(writes, isUrgent: false, isBounded: false) }
    }

    /// Tokens of others that a tenant's jobs have caused to be computed again. `done` runs on the
    /// writer's queue.
    public func add(caused tokens: Int64, to tenant: TenantID, done: @escaping @Sendable (ServingError?) -> Void) {
        let apply = { @Sendable [known] (db: Database) in
            try Self.add(TokenCounts(caused: tokens), jobs: 0, to: known.name(for: tenant.name), db)
        }
        store.enqueue([LedgerStore.Write(apply: apply, done: done)], isUrgent: false, isBounded: false)
    }

    /// Counters that have changed. Of more tenants than have sums, those with the least are forgotten.
    public func write(counters: [CounterRow], counting: Int64, lastWaiting: Int64?) {
        enqueue { db in
            try Self.note("counting", counting, db)
            try db.execute(
                sql: """
                    DELETE FROM counter WHERE tenant IN (SELECT tenant FROM counter ORDER BY value
                        LIMIT MAX(0, (SELECT COUNT(*) FROM counter) - ?))
                    """, arguments: [Limits.tenantsMax])
            let statement = try db.cachedStatement(
                sql: """
                    INSERT OR REPLACE INTO counter (tenant, value, lifted, computed, decoded, prefill_work, decode_work,
                        prompt_ahead, output_ahead, ceased_waiting, stamp) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                    """)
            for row in counters {
                try statement.execute(
                    arguments: [
                        row.tenant.name, row.value, row.lifted, row.computed, row.decoded, row.prefillWork,
                        row.decodeWork, row.promptAhead, row.outputAhead, row.ceasedWaiting, row.stamp,
                    ])
            }
            if let lastWaiting { try Self.note("last waiting", lastWaiting, db) }
        }
    }

    /// Forgets every counter: they order nobody any more, or count something else.
    public func clearCounters() {
        enqueue { db in
            try db.execute(sql: "DELETE FROM counter")
            try db.execute(sql: "DELETE FROM note WHERE name IN ('counting', 'last waiting')")
        }
    }

    private static func note(_ name: String, _ value: Int64, _ db: Database) throws {
        try db.execute(sql: "INSERT OR REPLACE INTO note (name, value) VALUES (?, ?)", arguments: [name, value])
    }

    /// What an operator has set for a tenant while the cluster ran. `done` runs on the writer's queue.
    public func write(
        settings: String, of tenant: TenantID, done: @escaping @Sendable (ServingError?) -> Void = { _ in }
    ) {
        let apply = { @Sendable (db: Database) in
            try db.execute(
                sql: "INSERT OR REPLACE INTO tenant (name, settings) VALUES (?, ?)",
                arguments: [tenant.name, settings])
        }
        store.enqueue([LedgerStore.Write(apply: apply, done: done)], isUrgent: true, isBounded: true)
    }

    private func enqueue(_ apply: @escaping @Sendable (Database) throws -> Void) {
        store.enqueue([LedgerStore.Write(apply: apply, done: nil)], isUrgent: false, isBounded: false)
    }

    private static func arguments(_ counts: TokenCounts) -> StatementArguments {
        [counts.computed, counts.cached, counts.decoded, counts.recomputed, counts.caused, counts.streamed]
    }

    private static func insert(_ settlement: Settlement, _ db: Database, _ known: KnownTenants) throws {
        let reservation = settlement.reservation
        let (job, tenant) = (reservation.job.description, reservation.tenant.name)
        try db.execute(sql: "DELETE FROM reservation WHERE job = ?", arguments: [job])
        try db.execute(
            sql: """
                INSERT INTO settlement (computed, cached, decoded, recomputed, caused, streamed, job, tenant, prompt,
                    output_max, ending, started, ended) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (job) DO NOTHING
                """,
            arguments: arguments(settlement.counts) + [
                job, tenant, reservation.promptTokens, reservation.outputMax, settlement.ending,
                reservation.startedAt, settlement.endedAt,
            ])
        guard db.changesCount > 0 else { return }
        try add(settlement.counts, jobs: 1, to: known.name(for: tenant), db)
        try db.execute(
            sql: "DELETE FROM settlement WHERE number <= (SELECT MAX(number) FROM settlement) - ?",
            arguments: [Limits.settlementsKept])
    }

    private static func add(_ counts: TokenCounts, jobs: Int64, to tenant: String, _ db: Database) throws {
        try db.execute(
            sql: """
                INSERT INTO total (computed, cached, decoded, recomputed, caused, streamed, jobs, tenant)
                    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
                ON CONFLICT (tenant) DO UPDATE SET jobs = jobs + excluded.jobs, computed = computed + excluded.computed,
                    cached = cached + excluded.cached, decoded = decoded + excluded.decoded,
                    recomputed = recomputed + excluded.recomputed, caused = caused + excluded.caused,
                    streamed = streamed + excluded.streamed
                """, arguments: arguments(counts) + [jobs, tenant])
    }

    // MARK: Reading

    public func load() throws(ServingError) -> LedgerContent {
        try store.read { db in
            var content = LedgerContent()
            for row in try Row.fetchAll(db, sql: "SELECT * FROM total") {
                guard let tenant = row.text("tenant"), let jobs = row.integer("jobs"), let counts = Self.counts(row)
                else { continue }
                var total = TenantTotal()
                (total.jobs, total.counts) = (jobs, counts)
                content.totals[TenantID(tenant)] = total
            }
            content.open = try Row.fetchAll(db, sql: "SELECT * FROM reservation").compactMap { row in
                guard let reservation = Self.reservation(row), let counts = Self.counts(row) else { return nil }
                return (reservation, counts)
            }
            content.counters = try Row.fetchAll(db, sql: "SELECT * FROM counter").compactMap { row in
                guard let tenant = row.text("tenant"), let value = row.integer("value"),
                    let lifted = row.integer("lifted"), let computed = row.integer("computed"),
                    let decoded = row.integer("decoded")
                else { return nil }
                var counter = CounterRow(
                    tenant: TenantID(tenant), value: value, lifted: lifted, computed: computed, decoded: decoded)
                counter.prefillWork = row.integer("prefill_work") ?? 0
                counter.decodeWork = row.integer("decode_work") ?? 0
                counter.promptAhead = row.integer("prompt_ahead") ?? 0
                counter.outputAhead = row.integer("output_ahead") ?? 0
                counter.ceasedWaiting = row.integer("ceased_waiting") ?? 0
                counter.stamp = row.integer("stamp") ?? 0
                return counter
            }
            content.lastWaiting = try Self.note("last waiting", db)
            content.counting = try Self.note("counting", db)
            for row in try Row.fetchAll(db, sql: "SELECT * FROM tenant") {
                guard let name = row.text("name"), let settings = row.text("settings") else { continue }
                content.settings[TenantID(name)] = settings
            }
            return content
        }
    }

    private static func note(_ name: String, _ db: Database) throws -> Int64? {
        try Row.fetchOne(db, sql: "SELECT value FROM note WHERE name = ?", arguments: [name])?.integer("value")
    }

    /// Those of these jobs that are settled, with what they came to.
    public func settled(among jobs: [JobID]) throws(ServingError) -> [JobID: TokenCounts] {
        try store.read { db in
            var found: [JobID: TokenCounts] = [:]
            for job in jobs {
                let row = try Row.fetchOne(
                    db, sql: "SELECT * FROM settlement WHERE job = ?", arguments: [job.description])
                if let row { found[job] = Self.counts(row) ?? TokenCounts() }
            }
            return found
        }
    }

    /// Newest first.
    public func settlements(limit: Int) throws(ServingError) -> [Settlement] {
        try store.read { db in
            try Row.fetchAll(
                db, sql: "SELECT * FROM settlement ORDER BY number DESC LIMIT ?", arguments: [limit]
            ).compactMap { row in
                guard let reservation = Self.reservation(row), let counts = Self.counts(row),
                    let ending = row.text("ending"), let ended = row.integer("ended")
                else { return nil }
                return Settlement(reservation, counts, ending: ending, endedAt: ended)
            }
        }
    }

    private static func reservation(_ row: Row) -> Reservation? {
        guard let job = row.text("job").flatMap({ JobID($0) }), let tenant = row.text("tenant"),
            let prompt = row.integer("prompt"), let outputMax = row.integer("output_max"),
            let started = row.integer("started"), TokenCounts.range.contains(prompt),
            TokenCounts.range.contains(outputMax)
        else { return nil }
        return Reservation(
            job: job, tenant: TenantID(tenant), promptTokens: prompt, outputMax: outputMax, startedAt: started)
    }

    private static func counts(_ row: Row) -> TokenCounts? {
        guard let computed = row.integer("computed"), let cached = row.integer("cached"),
            let decoded = row.integer("decoded"), let recomputed = row.integer("recomputed"),
            let caused = row.integer("caused"), let streamed = row.integer("streamed")
        else { return nil }
        return TokenCounts(
            computed: computed, cached: cached, decoded: decoded, recomputed: recomputed, caused: caused,
            streamed: streamed)
    }
}

/// Columns as they are, nil where they hold another type: SQLite keeps any type in any column, and
/// GRDB's own conversions end the process.
extension Row {
    func integer(_ name: String) -> Int64? {
        let value: DatabaseValue? = self[name]
        return value.flatMap { Int64.fromDatabaseValue($0) }
    }

    func text(_ name: String) -> String? {
        let value: DatabaseValue? = self[name]
        return value.flatMap { String.fromDatabaseValue($0) }
    }

    func data(_ name: String) -> Data? {
        let value: DatabaseValue? = self[name]
        return value.flatMap { Data.fromDatabaseValue($0) }
    }
}

/// Names that have a sum of their own.
private final class KnownTenants: Sendable {
    private let names: Mutex<Set<String>>

    init(_ names: [String]) { self.names = Mutex(Set(names)) }

    /// Under which name a tenant's tokens are added up.
    func name(for tenant: String) -> String {
        names.withLock { names in
            if names.contains(tenant) { return tenant }
            guard names.count < TenantLedger.Limits.tenantsMax else { return TenantLedger.Limits.others.name }
            names.insert(tenant)
            return tenant
        }
    }
}
