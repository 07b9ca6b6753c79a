import CoordinatorCore
import FrontDoor
import Ledger
import Logging
import Scheduling
import ServingMetrics
import ServingTypes

/// The files in which accounts outlive the process.
public struct LedgerFiles: Sendable {
    public let store: LedgerStore
    public let journal: JobJournal
    public let ledger: TenantLedger
    let marks: MarkFile

    /// Opens or makes `path`, and `path.marks` beside it.
    public init(path: String) throws(ServingError) {
        marks = try MarkFile(path: path + ".marks")
        store = try LedgerStore(path: path)
        journal = JobJournal(store: store)
        ledger = try TenantLedger(store: store)
    }
}

/// The coordinator's books: reservations and settlements, quotas, settings and statistics of tenants.
struct CoordinatorAccounts {
    private let ledger: TenantLedger?
    private var book: AccountBook
    private var quotas = TenantQuotas()
    private var statistics = TenantStatistics()
    /// From flags, and what an operator has set since, which wins.
    private let standing: [TenantID: TenantSettings]
    private var live: [TenantID: TenantSettings] = [:]
    /// Submitted and not yet admitted.
    private var expected: [JobID: Reservation] = [:]
    private var expectedJobs: [TenantID: Int] = [:]
    /// Where stop strings have cut the output of jobs that are open.
    private var cuts: [JobID: Int] = [:]
    /// What SQLite has of the counters.
    private var written: [TenantID: CounterRow] = [:]
    private var caused: [TenantID: Int] = [:]

    init(_ files: LedgerFiles?, settings: [TenantID: TenantSettings]) {
        ledger = files?.ledger
        book = AccountBook(marks: files?.marks, ledger: files?.ledger)
        standing = settings
    }

    // MARK: One job

    /// Why nothing can be admitted now; nil where it can.
    var refusal: ServingError? { book.refusal }

    var openJobs: Int { book.openJobs }

    mutating func expect(_ submission: JobSubmission, at seconds: Int64) {
        expected[submission.job] = Reservation(
            job: submission.job, tenant: submission.tenant, promptTokens: Int64(submission.promptTokens.count),
            outputMax: Int64(submission.sampling.maxTokens), startedAt: seconds)
        expectedJobs[submission.tenant, default: 0] += 1
    }

    mutating func admitted(_ job: JobID) {
        if let reservation = forget(job) { book.open(reservation) }
    }

    mutating func refused(_ job: JobID) {
        if let reservation = forget(job) { giveBack(reservation, used: 0) }
    }

    private mutating func forget(_ job: JobID) -> Reservation? {
        guard let reservation = expected.removeValue(forKey: job) else { return nil }
        let left = (expectedJobs[reservation.tenant] ?? 1) - 1
        expectedJobs[reservation.tenant] = left > 0 ? left : nil
        return reservation
    }

    /// To be called before tokens are handed to anybody: `streamed` is the output's length with them.
    mutating func note(_ job: JobID, streamed: Int, _ usage: JobUsage?) {
        var counts = TokenCounts(usage ?? JobUsage())
        counts.streamed = Int64(streamed)
        counts.decoded = max(counts.decoded, counts.streamed)
        book.note(job, counts)
    }

    /// A stop string ended the text after so many tokens.
    mutating func cut(_ job: JobID, outputTokens: Int) {
        if book.reservation(of: job) != nil { cuts[job] = max(outputTokens, 0) }
    }

    mutating func finished(
        _ outcome: JobOutcome, at now: Instant, wallClock seconds: Int64, with answer: LedgerStore.Write?
    ) {
        let cut = cuts.removeValue(forKey: outcome.job)
        if let first = outcome.stamps.firstToken {
            statistics.observe(outcome.tenant, firstTokenAfter: first - outcome.stamps.received, at: now)
        }
        guard let reservation = book.reservation(of: outcome.job) else { return }
        var counts = TokenCounts(outcome.usage)
        counts.streamed = Int64(outcome.usage.outputTokens)
        giveBack(reservation, used: reservation.promptTokens + counts.streamed)
        book.settle(
            outcome.job, counts, cutAt: cut.map(Int64.init), ending: outcome.ending.word, endedAt: seconds,
            with: answer.map { [$0] } ?? [])
    }

    /// A job of which nothing can be made after all.
    mutating func settleLost(_ job: JobID, wallClock seconds: Int64) {
        book.settle(job, TokenCounts(), cutAt: nil, ending: Settlement.lost, endedAt: seconds)
    }

    // MARK: Quotas and settings

    mutating func takeQuota(_ tenant: TenantID, jobs: Int, tokens: Int, live: Int, at now: Instant) -> ServingError? {
        quotas.take(
            tenant, settings(of: tenant), jobs: jobs, tokens: tokens, live: live + (expectedJobs[tenant] ?? 0),
            at: now)
    }

    func quota(of tenant: TenantID, at now: Instant) -> QuotaState {
        quotas.state(tenant, settings(of: tenant), at: now)
    }

    /// A submission that joined another job needs nothing of its own.
    mutating func giveBack(_ submission: JobSubmission) {
        quotas.giveBack(submission.tenant, tokens: submission.promptTokens.count + submission.sampling.maxTokens)
    }

    private mutating func giveBack(_ reservation: Reservation, used: Int64) {
        quotas.giveBack(
            reservation.tenant, tokens: Int(clamping: reservation.promptTokens + reservation.outputMax - used))
    }

    func settings(of tenant: TenantID) -> TenantSettings { ownSettings(of: tenant).over(everybody) }

    /// What is set for this tenant alone.
    func ownSettings(of tenant: TenantID) -> TenantSettings { live[tenant] ?? standing[tenant] ?? TenantSettings() }

    /// Quotas of those that have none of their own; a weight for everybody would mean nothing.
    private var everybody: TenantSettings? {
        var all = live[TenantSettings.everybody] ?? standing[TenantSettings.everybody]
        all?.weight = nil
        return all
    }

    /// `done` runs on the ledger's thread.
    mutating func set(
        _ settings: TenantSettings, of tenant: TenantID, done: @escaping @Sendable (ServingError?) -> Void
    ) throws(ServingError) {
        guard live[tenant] != nil || live.count < TenantSettings.tenantsMax else {
            throw ServingError(
                .invalidValue, "\(live.count) tenants have settings, the limit is \(TenantSettings.tenantsMax).",
                field: "tenant")
        }
        live[tenant] = settings
        guard let ledger else { return done(nil) }
        ledger.write(settings: settings.text, of: tenant, done: done)
    }

    /// Weights that differ from 1.
    var weights: [(tenant: TenantID, weight: Double)] {
        Set(live.keys).union(standing.keys).sorted().compactMap { tenant in
            guard tenant != TenantSettings.everybody else { return nil }
            return settings(of: tenant).weight.map { (tenant, $0) }
        }
    }

    // MARK: Once a second

    mutating func everySecond(_ core: Coordinator, at now: Instant) {
        for job in book.openJobIDs {
            if let usage = core.usage(of: job) { note(job, streamed: usage.outputTokens, usage) }
        }
        let tenants = core.snapshot().tenants
        for view in tenants {
            let sum = core.causedTokens(of: view.tenant)
            let more = sum - (caused[view.tenant] ?? 0)
            if more != 0 {
                caused[view.tenant] = sum
                if more > 0 { book.caused(view.tenant, tokens: Int64(more)) }
            }
            statistics.sample(
                view.tenant, units: core.chargedUnits(of: view.tenant),
                tokens: JobUsage(book.total(of: view.tenant)), at: now)
        }
        if caused.count > tenants.count {
            let known = Set(tenants.map(\.tenant))
            caused = caused.filter { known.contains($0.key) }
        }
        book.checkpoint()
        writeCounters(core)
    }

    private mutating func writeCounters(_ core: Coordinator) {
        guard let ledger else { return }
        var changed: [CounterRow] = []
        var rows: [TenantID: CounterRow] = [:]
        for record in core.counterRecords {
            let total = book.total(of: record.tenant)
            let row = CounterRow(
                tenant: record.tenant, value: record.value, lifted: record.lifted, computed: total.computed,
                decoded: total.decoded)
            if written[record.tenant] != row { changed.append(row) }
            rows[record.tenant] = row
        }
        written = rows
        if !changed.isEmpty { ledger.write(counters: changed, lastWaiting: core.lastWaitingCounter) }
    }

    // MARK: After a restart

    /// Takes up sums, counters and settings, and settles the jobs that went with the last coordinator.
    mutating func recover(
        into core: inout Coordinator, wallClock seconds: Int64, log: Logger, isRunAgain: (JobID) -> Bool
    ) throws(ServingError) -> [JobID: TokenCounts] {
        guard let ledger else { return [:] }
        let content = try ledger.load()
        let recovery = try book.recover(content, at: seconds, isRunAgain: isRunAgain)
        for (tenant, text) in content.settings {
            do throws(ServingError) { live[tenant] = try TenantSettings(text) } catch {
                log.error("settings skipped: \(error.message)", metadata: ["tenant": "\(tenant)"])
            }
        }
        for (tenant, weight) in weights { core.setWeight(weight, of: tenant) }
        core.restoreCounters(counters(content, core), lastWaiting: content.lastWaiting)
        if !recovery.lost.isEmpty || !recovery.carried.isEmpty {
            log.notice(
                "accounts taken up",
                metadata: [
                    "jobs_settled": "\(recovery.lost.count)", "jobs_carried": "\(recovery.carried.count)",
                    "tokens_settled": "\(recovery.lost.reduce(0) { $0 + $1.counts.streamed })",
                ])
        }
        if recovery.unreadableSlots > 0 {
            log.error("slots of the mark file are unreadable", metadata: ["slots": "\(recovery.unreadableSlots)"])
        }
        return recovery.carried
    }

    /// What was written last, moved by what the ledger has seen since.
    private func counters(_ content: LedgerContent, _ core: Coordinator) -> [CounterRecord] {
        var rows: [TenantID: CounterRow] = [:]
        for row in content.counters { rows[row.tenant] = row }
        for tenant in book.totals.keys where rows[tenant] == nil {
            rows[tenant] = CounterRow(tenant: tenant, value: 0, lifted: 0, computed: 0, decoded: 0)
        }
        return rows.values.sorted { $0.tenant < $1.tenant }.map { row in
            let total = book.total(of: row.tenant)
            let since = core.counterParts(
                promptTokens: total.computed - row.computed, outputTokens: total.decoded - row.decoded,
                of: row.tenant)
            return CounterRecord(tenant: row.tenant, value: row.value + max(since, 0), lifted: row.lifted)
        }
    }

    // MARK: For people

    func table(_ core: Coordinator, over window: TimeSpan, at now: Instant) -> TenantTable {
        let snapshot = core.snapshot()
        var views: [TenantID: TenantView] = [:]
        for view in snapshot.tenants { views[view.tenant] = view }
        let names = Set(views.keys).union(book.totals.keys).union(live.keys).union(standing.keys)
            .subtracting([TenantSettings.everybody])
        var reports = names.sorted().prefix(Limits.tenantsListed).map { report($0, views[$0], core, window, now) }
        let served = reports.reduce(0) { $0 + $1.servedUnits }
        let active = reports.map { $0.servedUnits > 0 || $0.waitingJobs + $0.runningJobs > 0 }
        let weights = zip(reports, active).reduce(0) { $0 + ($1.1 ? $1.0.weight : 0) }
        for index in reports.indices {
            if served > 0 { reports[index].servedShare = Double(reports[index].servedUnits) / Double(served) }
            if active[index], weights > 0 { reports[index].entitledShare = reports[index].weight / weights }
        }
        return TenantTable(policy: snapshot.policy, window: window, tenants: reports)
    }

    enum Limits {
        static let tenantsListed = 4096
        /// Tenants that get samples of their own in the metrics, first by name.
        static let tenantsMeasured = 200
    }

    private func report(
        _ tenant: TenantID, _ view: TenantView?, _ core: Coordinator, _ window: TimeSpan, _ now: Instant
    ) -> TenantReport {
        var report = TenantReport(tenant: tenant, settings: settings(of: tenant), weight: core.weight(of: tenant))
        let total = book.total(of: tenant)
        report.tokens = JobUsage(total)
        report.streamedTokens = total.streamed
        report.virtualCounter = core.virtualCounter(of: tenant)
        report.waitingJobs = view?.queuedJobs ?? 0
        report.runningJobs = view?.runningJobs ?? 0
        let start = statistics.start(tenant, window: window, at: now)
        report.servedUnits = max(core.chargedUnits(of: tenant) - (start?.units ?? 0), 0)
        report.windowTokens = JobUsage(total - TokenCounts(start?.tokens ?? base(tenant)))
        if let waits = statistics.waits(tenant) {
            (report.firstTokenMedian, report.firstTokenP99) = (waits.median, waits.p99)
            report.firstTokenSamples = waits.count
        }
        return report
    }

    /// What a tenant had when this process began.
    private func base(_ tenant: TenantID) -> JobUsage { JobUsage(book.inherited[tenant] ?? TokenCounts()) }

    /// Per-tenant series beside the core's.
    func metricsText(_ core: Coordinator, at now: Instant) -> String {
        let reports = table(core, over: .seconds(60), at: now).tenants.prefix(Limits.tenantsMeasured)
        var page = MetricsPage()
        func samples(_ value: (TenantReport) -> Double) -> [MetricsPage.Sample] {
            reports.map { .init(value($0), [("tenant", $0.tenant.name)]) }
        }
        page.gauge("tandem_tenant_entitled_share", "Part of the weights of active tenants.", samples(\.entitledShare))
        page.gauge("tandem_tenant_served_share", "Part of the service of the last minute.", samples(\.servedShare))
        page.counter(
            "tandem_tenant_ledger_tokens_total", "Tokens since the ledger began, by what was done with them.",
            reports.flatMap { report -> [MetricsPage.Sample] in
                [
                    ("computed", report.tokens.computedTokens), ("cached", report.tokens.cachedTokens),
                    ("decoded", report.tokens.outputTokens), ("recomputed", report.tokens.recomputedTokens),
                    ("caused", report.tokens.causedTokens), ("streamed", Int(report.streamedTokens)),
                ].map { .init($0.1, [("tenant", report.tenant.name), ("kind", $0.0)]) }
            })
        page.gauge(
            "tandem_tenant_first_token_seconds", "First-token times of a tenant's last 512 jobs.",
            reports.flatMap { report -> [MetricsPage.Sample] in
                guard let median = report.firstTokenMedian, let p99 = report.firstTokenP99 else { return [] }
                return [
                    .init(median.seconds, [("tenant", report.tenant.name), ("quantile", "0.5")]),
                    .init(p99.seconds, [("tenant", report.tenant.name), ("quantile", "0.99")]),
                ]
            })
        page.gauge("tandem_ledger_open_jobs", "Jobs reserved and not settled.", [.init(book.openJobs)])
        return page.text
    }
}

extension TokenCounts {
    init(_ usage: JobUsage) {
        self.init(
            computed: Int64(usage.computedTokens), cached: Int64(usage.cachedTokens),
            decoded: Int64(usage.outputTokens), recomputed: Int64(usage.recomputedTokens),
            caused: Int64(usage.causedTokens))
    }
}

extension JobUsage {
    init(_ counts: TokenCounts) {
        self.init()
        computedTokens = Int(clamping: counts.computed)
        cachedTokens = Int(clamping: counts.cached)
        outputTokens = Int(clamping: counts.decoded)
        recomputedTokens = Int(clamping: counts.recomputed)
        causedTokens = Int(clamping: counts.caused)
    }
}

extension JobEnding {
    /// As a settlement says it.
    var word: String {
        switch self {
        case .finished(let reason): reason.rawValue
        case .failed(let error): error.code.name
        }
    }
}
