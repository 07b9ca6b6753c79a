import ServingTypes

/// The accounts of live jobs and the sums of every tenant. Confined to the coordinator's loop. What it
/// is told of a job is in the mark file when the call returns; SQLite follows off the loop.
///
/// The invariant: each admitted job has one settlement, sooner or later, and its `streamed` is what was
/// handed to clients. A job is noted before its tokens are handed on, so that a coordinator that dies
/// leaves marks that cover them; the next one settles the jobs that died with it by their marks, and
/// goes on with those that are run again.
public struct AccountBook {
    private struct Account {
        var reservation: Reservation
        var slot: Int?
        var counts = TokenCounts()
        /// The counts that SQLite has.
        var written = TokenCounts()
    }

    private let marks: MarkFile?
    private let ledger: TenantLedger?
    private var accounts: [JobID: Account] = [:]
    /// Of settled and open jobs together, since the ledger began.
    public private(set) var totals: [TenantID: TokenCounts] = [:]
    /// The sum of `totals`.
    public private(set) var everything = TokenCounts()
    /// Of `totals`, what an earlier process left.
    public private(set) var inherited: [TenantID: TokenCounts] = [:]
    private var changed: Set<JobID> = []
    /// Jobs that are run again though they are settled: nothing more is to be written of them.
    private var repeats: Set<JobID> = []
    /// What could not be written, to be tried again.
    private let failed = RetryList()
    private var failedCommits = 0

    public enum Limits {
        /// Tenants whose sums are held; further ones count under `TenantLedger.Limits.others`.
        public static let tenantsMax = TenantLedger.Limits.tenantsMax
    }

    /// Without a file the accounts end with the process.
    public init(marks: MarkFile? = nil, ledger: TenantLedger? = nil) {
        self.marks = marks
        self.ledger = ledger
    }

    /// Why no job can be admitted now; nil where one can. `expected` jobs are on their way to `open`.
    public func refusal(besides expected: Int = 0) -> ServingError? {
        if let marks, !marks.hasRoom(besides: expected) {
            return ServingError(
                .queueFull, "\(MarkFile.Limits.slots) jobs are open in the ledger, its limit", retryAfterSeconds: 1)
        }
        return ledger?.refusal
    }

    public var openJobs: Int { accounts.count }

    /// In no order.
    public var openJobIDs: [JobID] { Array(accounts.keys) }

    /// Tokens of others that a tenant's jobs have caused to be computed again. They belong to no job of
    /// its own, so that what was told since the last commit is lost with the process.
    public mutating func caused(_ tenant: TenantID, tokens: Int64) {
        add(TokenCounts(caused: tokens), to: tenant)
        write(caused: tokens, to: tenant)
    }

    private func write(caused tokens: Int64, to tenant: TenantID) {
        ledger?.add(caused: tokens, to: tenant) { [failed] error in
            if error != nil { failed.add(caused: tokens, to: tenant) }
        }
    }

    private mutating func add(_ counts: TokenCounts, to tenant: TenantID) {
        totals[key(tenant), default: TokenCounts()] += counts
        everything += counts
    }

    public func reservation(of job: JobID) -> Reservation? { accounts[job]?.reservation }

    /// The tenant's tokens, of settled and open jobs.
    public func total(of tenant: TenantID) -> TokenCounts { totals[key(tenant)] ?? TokenCounts() }

    // MARK: The life of an account

    /// A job is admitted. One that is open already (taken over from an earlier process) stays as it is.
    public mutating func open(_ reservation: Reservation) {
        guard accounts[reservation.job] == nil, !repeats.contains(reservation.job) else { return }
        accounts[reservation.job] = Account(reservation: reservation, slot: marks?.open(reservation))
        ledger?.reserve(reservation)
    }

    /// What the job has come to so far. To be called before its tokens are handed on.
    public mutating func note(_ job: JobID, _ counts: TokenCounts) {
        guard var account = accounts[job] else { return }
        let grown = account.counts.orMore(counts)
        guard grown != account.counts else { return }
        if let slot = account.slot { marks?.note(slot, grown) }
        add(grown - account.counts, to: account.reservation.tenant)
        account.counts = grown
        accounts[job] = account
        changed.insert(job)
    }

    /// The job is over. `cutAt`: a stop string ended the text after so many tokens, and those behind it
    /// went to nobody; nothing else ever makes a count fall.
    public mutating func settle(
        _ job: JobID, _ last: TokenCounts, cutAt: Int64? = nil, ending: String, endedAt: Int64,
        with others: [LedgerStore.Write] = []
    ) {
        repeats.remove(job)
        guard let account = accounts.removeValue(forKey: job) else {
            // Settled already, and run again for its answer alone.
            ledger?.write(others)
            return
        }
        changed.remove(job)
        var counts = account.counts.orMore(last)
        if let cutAt { counts.streamed = min(counts.streamed, cutAt) }
        add(counts - account.counts, to: account.reservation.tenant)
        let settlement = Settlement(account.reservation, counts, ending: ending, endedAt: endedAt)
        if let slot = account.slot { marks?.end(slot, counts, ending: ending) }
        write(settlement, slot: account.slot, with: others)
    }

    private func write(_ settlement: Settlement, slot: Int?, with others: [LedgerStore.Write]) {
        guard let ledger else {
            if let slot { marks?.free(slot) }
            return
        }
        ledger.settle(settlement, with: others) { [marks, failed] error in
            if error == nil {
                if let slot { marks?.free(slot) }
            } else {
                failed.add((settlement, slot, others))
            }
        }
    }

    /// Once a second: what has changed goes to SQLite, and what it did not take is tried again. Says
    /// whether a commit has failed since the last time: what nobody waited for was lost with it.
    @discardableResult
    public mutating func checkpoint() -> Bool {
        let commits = ledger?.failedCommits ?? 0
        let hasLost = commits != failedCommits
        failedCommits = commits
        if hasLost {
            for job in accounts.keys { accounts[job]?.written = .unknown }
            changed = Set(accounts.keys)
        }
        var marks: [(reservation: Reservation, counts: TokenCounts)] = []
        for job in changed {
            guard let account = accounts[job], account.counts != account.written else { continue }
            accounts[job]?.written = account.counts
            marks.append((account.reservation, account.counts))
        }
        changed.removeAll(keepingCapacity: true)
        ledger?.mark(marks)
        let refused = failed.take()
        for (settlement, slot, others) in refused.settlements { write(settlement, slot: slot, with: others) }
        for (tenant, tokens) in refused.caused { write(caused: tokens, to: tenant) }
        ledger?.probe()
        return hasLost
    }

    private func key(_ tenant: TenantID) -> TenantID {
        totals[tenant] != nil || totals.count < Limits.tenantsMax ? tenant : TenantLedger.Limits.others
    }

    // MARK: After a restart

    /// What was found open.
    public struct Recovery: Sendable {
        /// Jobs that are run again, with what they had come to: nobody is charged for it a second time. Those that
        /// had ended are settled besides.
        public var carried: [JobID: TokenCounts] = [:]
        /// Jobs that went with their coordinator, settled by their marks.
        public var lost: [Settlement] = []
        /// Slots of the mark file that hold what nobody wrote.
        public var unreadableSlots = 0
        /// Whether the whole file was foreign and was set aside.
        public var marksSetAside = false
    }

    /// Takes up what an earlier process left. `isRunAgain` says of an open job whether it will be
    /// submitted again; the others are settled here, each once, however often this is repeated.
    public mutating func recover(
        _ content: LedgerContent, at seconds: Int64, isRunAgain: (JobID) -> Bool
    ) throws(ServingError) -> Recovery {
        for (tenant, total) in content.totals {
            totals[tenant] = total.counts
            everything += total.counts
        }
        defer { inherited = totals }
        var open: [JobID: (reservation: Reservation, counts: TokenCounts, slot: Int?, ending: String?)] = [:]
        for (reservation, counts) in content.open { open[reservation.job] = (reservation, counts, nil, nil) }
        for mark in marks?.marks ?? [] {
            let written = open[mark.reservation.job]?.counts ?? TokenCounts()
            let counts = mark.ending == nil ? mark.counts.orMore(written) : mark.counts
            open[mark.reservation.job] = (mark.reservation, counts, mark.slot, mark.ending)
        }
        let settled = try ledger?.settled(among: Array(open.keys)) ?? [:]
        var recovery = Recovery()
        recovery.unreadableSlots = marks?.unreadableSlots ?? 0
        recovery.marksSetAside = marks?.setAside ?? false
        for (job, found) in open.sorted(by: { $0.key < $1.key }) {
            if let counts = settled[job] {
                // Settled, and its slot had not been given back.
                if let slot = found.slot { marks?.free(slot) }
                if isRunAgain(job) {
                    repeats.insert(job)
                    recovery.carried[job] = counts
                }
                continue
            }
            var account = Account(reservation: found.reservation, slot: found.slot ?? marks?.open(found.reservation))
            account.counts = found.counts
            accounts[job] = account
            add(found.counts, to: found.reservation.tenant)
            ledger?.reserve(found.reservation)
            if found.ending == nil, isRunAgain(job) {
                if let slot = account.slot { marks?.note(slot, found.counts) }
                recovery.carried[job] = found.counts
            } else {
                let ending = found.ending ?? Settlement.lost
                if found.ending == nil {
                    recovery.lost.append(
                        Settlement(found.reservation, found.counts, ending: ending, endedAt: seconds))
                }
                settle(job, found.counts, ending: ending, endedAt: seconds)
                if isRunAgain(job) {
                    // It had ended, and its answer was not on disk: it is run again and settled no second time.
                    repeats.insert(job)
                    recovery.carried[job] = found.counts
                }
            }
        }
        return recovery
    }
}
