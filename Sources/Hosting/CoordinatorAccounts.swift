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
    let counters: CounterFile

    /// Opens or makes `path`, and `path.marks` and `path.counters` beside it.
    public init(path: String) throws(ServingError) {
        marks = try MarkFile(path: path + ".marks")
        counters = try CounterFile(path: path + ".counters")
        store = try LedgerStore(path: path)
        journal = JobJournal(store: store)
        ledger = try TenantLedger(store: store)
    }
}

/// The coordinator's books: reservations and settlements, quotas, settings and statistics of tenants.
///
/// What is durable when. Counters and marks are in mapped files: they are stored after each event of the
/// core, before a token of it is handed on, and a killed coordinator leaves them as they are. So after a
/// kill (1) a settlement covers every token that its client was handed, and those beyond are no more than
/// the event in which the coordinator died gave and `HTTP1Connection.Limits.unflushedMax` held back;
/// (2) a tenant's counter is what it was, every charge and lift in it, but for what was charged ahead for
/// prompts that were not computed yet, which is charged anew where the job runs again; it may hold the
/// charge of the one event in which the coordinator died though nobody got its tokens; (3) who is lifted
/// to whom is decided as it would have been. Lost are the work on prompts that had brought forth nothing
/// (it is charged to nobody), the tokens that a tenant has caused others to compute again in the last
/// second (in the sums, not in the counter), statistics, and requests of the last minute under `rpm`.
/// SQLite has all of it once a second and a commit later, against a loss of power, which loses no more
/// than that; counters are then moved by what the ledger has seen since they were written.
struct CoordinatorAccounts {
    private let ledger: TenantLedger?
    private let counterFile: CounterFile?
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
        counterFile = files?.counters
        book = AccountBook(marks: files?.marks, ledger: files?.ledger)
        standing = settings
    }

    // MARK: One job

    /// Why nothing can be admitted now; nil where it can.
    var refusal: ServingError? { book.refusal(besides: expected.count) }

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
        var counts = TokenCounts(outcome.usage)
        counts.streamed = Int64(outcome.usage.outputTokens)
        if let reservation = book.reservation(of: outcome.job) {
            giveBack(reservation, used: reservation.promptTokens + counts.streamed)
        }
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

    /// A submission that was not admitted needs nothing.
    mutating func giveBack(_ submission: JobSubmission) {
        giveBack(submission.tenant, tokens: submission.promptTokens.count + submission.sampling.maxTokens)
    }

    mutating func giveBack(_ tenant: TenantID, tokens: Int) { quotas.giveBack(tenant, tokens: tokens) }

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
        statistics.makeRoom(at: now)
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
        // Counters that a failed commit held are written again, whether they change or not.
        if book.checkpoint() { written = [:] }
        writeCounters(core)
    }

    /// To be called after each event, before its actions are performed: counters are nowhere behind what
    /// anybody was handed.
    func keepCounters(_ core: inout Coordinator) {
        let changed = core.takeChangedCounters()
        guard let counterFile, !changed.isEmpty else { return }
        for record in changed where !counterFile.keep(CounterRow(record)) {
            // The core forgets tenants, and so does the file where it needs their room.
            counterFile.forget(allBut: Set(core.counterRecords.map(\.tenant)))
            counterFile.keep(CounterRow(record))
        }
    }

    private mutating func writeCounters(_ core: Coordinator) {
        guard let ledger, let counting = core.countingTag else { return }
        var changed: [CounterRow] = []
        var rows: [TenantID: CounterRow] = [:]
        for record in core.counterRecords {
            let total = book.total(of: record.tenant)
            var row = CounterRow(record)
            row.stamp = counterFile?.stamp(of: record.tenant) ?? 0
            (row.computed, row.decoded) = (total.computed, total.decoded)
            if written[record.tenant] != row { changed.append(row) }
            rows[record.tenant] = row
        }
        written = rows
        if !changed.isEmpty {
            ledger.write(counters: changed, counting: counting, lastWaiting: core.lastWaitingCounter)
        }
    }

    // MARK: After a restart

    /// Takes up sums, counters and settings, and settles the jobs that went with the last coordinator.
    mutating func recover(
        into core: inout Coordinator, wallClock seconds: Int64, log: Logger, isRunAgain: (JobID) -> Bool
    ) throws(ServingError) -> [JobID: TokenCounts] {
        guard let ledger else { return [:] }
        let content = try ledger.load()
        let settled = content.totals.mapValues(\.counts)
        let recovery = try book.recover(content, at: seconds, isRunAgain: isRunAgain)
        for (tenant, text) in content.settings {
            do throws(ServingError) { live[tenant] = try TenantSettings(text) } catch {
                log.error("settings skipped: \(error.message)", metadata: ["tenant": "\(tenant)"])
            }
        }
        for (tenant, weight) in weights { core.setWeight(weight, of: tenant) }
        restoreCounters(content, settled, into: &core)
        ledger.flush()
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
        if recovery.marksSetAside {
            log.error("the mark file was none of this version's and was set aside as <ledger>.marks.unreadable")
        }
        return recovery.carried
    }

    /// The counters of the file, and where it has none of a tenant, or an older one than SQLite (after a
    /// loss of power), what was written last, moved by what the ledger has seen since. A tenant whose counter
    /// was never kept, or was forgotten, owes what its open jobs had come to: what it was served in its life
    /// is no debt to those that came after, who would be lifted to it or served alone until they have it.
    private mutating func restoreCounters(
        _ content: LedgerContent, _ settled: [TenantID: TokenCounts], into core: inout Coordinator
    ) {
        guard let counting = core.countingTag else { return clearCounters() }
        // Counters from before this was noted count what is counted now.
        let kept = counterFile?.counting ?? content.counting ?? counting
        if kept != counting { clearCounters() }
        counterFile?.setCounting(counting)
        let rows = kept == counting ? content.counters : []
        let slots = kept == counting ? counterFile?.found ?? [] : []
        counterFile?.stampsFollow(rows.map(\.stamp).max() ?? 0)
        core.restoreCounters(
            records(rows, slots, settled).sorted { $0.tenant < $1.tenant },
            lastWaiting: kept == counting ? content.lastWaiting : nil)
        // At once, with what was settled above: another crash within the second would find the sums moved
        // and the counters not.
        keepCounters(&core)
        writeCounters(core)
    }

    private func clearCounters() {
        counterFile?.clear()
        ledger?.clearCounters()
    }

    private func records(
        _ rows: [CounterRow], _ slots: [CounterRow], _ settled: [TenantID: TokenCounts]
    ) -> [CounterRecord] {
        var records: [TenantID: CounterRecord] = [:]
        var written: [TenantID: CounterRow] = [:]
        for row in rows { written[row.tenant] = row }
        for slot in slots where slot.stamp >= written[slot.tenant]?.stamp ?? 0 {
            records[slot.tenant] = CounterRecord(slot)
        }
        for tenant in Set(written.keys).union(book.totals.keys) where records[tenant] == nil {
            let total = book.total(of: tenant)
            let before = settled[tenant] ?? TokenCounts()
            guard written[tenant] != nil || total != before else { continue }
            let row =
                written[tenant]
                ?? CounterRow(tenant: tenant, value: 0, lifted: 0, computed: before.computed, decoded: before.decoded)
            var record = CounterRecord(row)
            record.promptAhead -= TokenCounts.since(row.computed, total.computed)
            record.outputAhead -= TokenCounts.since(row.decoded, total.decoded)
            records[tenant] = record
        }
        return Array(records.values)
    }

    // MARK: For people

    /// Of these tenants, or of all that are known. Shares are parts of what all tenants of the core have.
    func table(_ core: Coordinator, over window: TimeSpan, at now: Instant, names: [TenantID]? = nil) -> TenantTable {
        let snapshot = core.snapshot()
        var views: [TenantID: TenantView] = [:]
        var (served, weights): (Int64, Double) = (0, 0)
        for view in snapshot.tenants {
            views[view.tenant] = view
            let units = servedUnits(view.tenant, core, window, now)
            served += units
            if units > 0 || view.queuedJobs + view.runningJobs > 0 { weights += view.weight }
        }
        let listed = names ?? listedTenants(views)
        let reports = listed.map { tenant -> TenantReport in
            var report = report(tenant, views[tenant], core, window, now)
            if served > 0 { report.servedShare = Double(report.servedUnits) / Double(served) }
            let isActive = report.servedUnits > 0 || report.waitingJobs + report.runningJobs > 0
            if isActive, weights > 0 { report.entitledShare = report.weight / weights }
            return report
        }
        return TenantTable(policy: snapshot.policy, window: window, tenants: reports)
    }

    /// By name; of too many, those that the core or an operator knows before those of the past.
    private func listedTenants(_ views: [TenantID: TenantView]) -> [TenantID] {
        let present = Set(views.keys).union(live.keys).union(standing.keys).subtracting([TenantSettings.everybody])
        guard present.count < Limits.tenantsListed else { return Array(present.sorted().prefix(Limits.tenantsListed)) }
        let past = book.totals.lazy.filter { !present.contains($0.key) }
            .map { (tokens: $0.value.computed + $0.value.decoded, tenant: $0.key) }
            .greatest(Limits.tenantsListed - present.count) { ($0.tokens, $1.tenant) < ($1.tokens, $0.tenant) }
        return (present + past.map(\.tenant)).sorted()
    }

    enum Limits {
        static let tenantsListed = 4096
        /// Tenants that get samples of their own in the metrics.
        static let tenantsMeasured = 200
    }

    private func servedUnits(_ tenant: TenantID, _ core: Coordinator, _ window: TimeSpan, _ now: Instant) -> Int64 {
        switch statistics.start(tenant, window: window, at: now) {
        case .sample(let start): max(core.chargedUnits(of: tenant) - start.units, 0)
        case .nothing: core.chargedUnits(of: tenant)
        case .unknown: 0
        }
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
        report.servedUnits = servedUnits(tenant, core, window, now)
        switch statistics.start(tenant, window: window, at: now) {
        case .sample(let start): report.windowTokens = JobUsage(total - TokenCounts(start.tokens))
        case .nothing: report.windowTokens = JobUsage(total - (book.inherited[tenant] ?? TokenCounts()))
        case .unknown: break
        }
        if let waits = statistics.waits(tenant) {
            (report.firstTokenMedian, report.firstTokenP99) = (waits.median, waits.p99)
            report.firstTokenSamples = waits.count
        }
        return report
    }

    /// Per-tenant series beside the core's.
    func metricsText(_ core: Coordinator, at now: Instant) -> String {
        let reports = table(core, over: .seconds(60), at: now, names: measuredTenants).tenants
        var page = MetricsPage()
        func samples(_ value: (TenantReport) -> Double) -> [MetricsPage.Sample] {
            reports.map { .init(value($0), [("tenant", $0.tenant.name)]) }
        }
        page.gauge("tandem_tenant_entitled_share", "Part of the weights of active tenants.", samples(\.entitledShare))
        page.gauge("tandem_tenant_served_share", "Part of the service of the last minute.", samples(\.servedShare))
        page.counter(
            "tandem_tenant_ledger_tokens_total", "Tokens since the ledger began, by what was done with them.",
            reports.flatMap { report -> [MetricsPage.Sample] in
                Self.kinds(book.total(of: report.tenant)).map {
                    .init($0.1, [("tenant", report.tenant.name), ("kind", $0.0)])
                }
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
        page.counter(
            "tandem_ledger_tokens_total", "Tokens of all tenants since the ledger began, by what was done with them.",
            Self.kinds(book.everything).map { .init($0.1, [("kind", $0.0)]) })
        page.gauge("tandem_ledger_open_jobs", "Jobs reserved and not settled.", [.init(book.openJobs)])
        page.gauge("tandem_ledger_tenants", "Tenants with sums of their own.", [.init(book.totals.count)])
        page.counter(
            "tandem_ledger_failed_commits_total", "Commits that the disk refused.", [.init(ledger?.failedCommits ?? 0)])
        return page.text
    }

    private static func kinds(_ counts: TokenCounts) -> [(String, Int)] {
        [
            ("computed", counts.computed), ("cached", counts.cached), ("decoded", counts.decoded),
            ("recomputed", counts.recomputed), ("caused", counts.caused), ("streamed", counts.streamed),
        ].map { ($0.0, Int(clamping: $0.1)) }
    }

    /// Those whom an operator has named first, then those with most tokens: a name that anybody may
    /// make up keeps nobody's out.
    private var measuredTenants: [TenantID] {
        let named = Set(live.keys).union(standing.keys).subtracting([TenantSettings.everybody])
        let first = named.sorted().prefix(Limits.tenantsMeasured)
        let room = Limits.tenantsMeasured - first.count
        let most = book.totals.lazy.filter { !named.contains($0.key) }
            .map { (tokens: $0.value.computed + $0.value.decoded, tenant: $0.key) }
            .greatest(room) { ($0.tokens, $1.tenant) < ($1.tokens, $0.tenant) }
        return (first + most.map(\.tenant)).sorted()
    }
}

extension Sequence {
    /// Its greatest elements, least first, without putting all in order.
    func greatest(_ count: Int, by isLess: (Element, Element) -> Bool) -> [Element] {
        var best: [Element] = []
        guard count > 0 else { return best }
        for element in self {
            if best.count == count {
                guard isLess(best[0], element) else { continue }
                best.removeFirst()
            }
            var (low, high) = (0, best.count)
            while low < high {
                let middle = (low + high) / 2
                if isLess(best[middle], element) { low = middle + 1 } else { high = middle }
            }
            best.insert(element, at: low)
        }
        return best
    }
}

extension CounterRow {
    init(_ record: CounterRecord) {
        self.init(tenant: record.tenant, value: record.value, lifted: record.lifted)
        (prefillWork, decodeWork) = (record.prefillWork, record.decodeWork)
        (promptAhead, outputAhead) = (record.promptAhead, record.outputAhead)
        ceasedWaiting = record.ceasedWaiting
    }
}

extension CounterRecord {
    init(_ row: CounterRow) {
        self.init(tenant: row.tenant, value: row.value, lifted: row.lifted)
        (prefillWork, decodeWork) = (row.prefillWork, row.decodeWork)
        // What is under way is no more than a coordinator can hold, whatever the file says.
        promptAhead = min(max(row.promptAhead, 0), 1 << 40)
        outputAhead = min(max(row.outputAhead, 0), 1 << 40)
        ceasedWaiting = row.ceasedWaiting
    }
}

extension TokenCounts {
    /// Tokens between two sums that only grow.
    static func since(_ earlier: Int64, _ later: Int64) -> Int64 {
        min(max(later.subtractingReportingOverflow(earlier).partialValue, 0), 1 << 50)
    }

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
