import CoordinatorCore
import FrontDoor
import KVPaging
import Ledger
import Logging
import Messages
import NIOCore
import Scheduling
import ServingMetrics
import ServingTypes

/// Drives the coordinator core: events in, actions out, all on one event loop. It owns no decision;
/// it owns links, listeners and the journal.
public final class CoordinatorHost {
    private let loop: any EventLoop
    private let clock = MonotonicClock()
    private let log: Logger
    private let naming: SHA256PageNaming
    private let blockTokens: Int
    private let journal: JobJournal?
    private var accounts: CoordinatorAccounts
    /// How long the core took over each event, in seconds.
    private var decisions = Histogram(edges: [
        1e-6, 2e-6, 5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 1e-1,
    ])
    private var core: Coordinator
    private var generator = SystemRandomNumberGenerator()

    /// Events that arrived while another one was being handled: the core is never re-entered.
    private var waiting = EventBacklog<CoordinatorEvent>()
    private var isHandling = false

    private var followers: [JobID: JobFollowers] = [:]
    private var requests: [JobID: JobRequestRecord] = [:]
    /// How many requests there may be before those that nobody can ask for are searched for.
    private var requestsBeforeSearch = 2 * Limits.requestsKept
    private var keys = IdempotencyKeys()
    /// Live jobs that have a record in the journal.
    private var journaled: Set<JobID> = []
    /// Answers given before this process began, for keys that come again.
    private var pastAnswers = BoundedMemory<JobID, PastAnswer>(capacity: Limits.pastAnswersMax)

    private struct PastAnswer: Sendable {
        var outcome: JobOutcome
        var tokens: [SampledToken]
    }

    /// Sends one message to a worker; set by whoever owns the links.
    public var send: (WorkerRef, Message) -> Void = { _, _ in }
    public var closeLink: (WorkerRef) -> Void = { _ in }
    /// Set while the process is being stopped: nothing new is admitted.
    public private(set) var isDraining = false

    public static let tickEvery = TimeAmount.milliseconds(25)
    public static let accountEvery = TimeAmount.seconds(1)

    public init(
        loop: any EventLoop, configuration: CoordinatorConfiguration, naming: SHA256PageNaming, files: LedgerFiles?,
        tenants: [TenantID: TenantSettings] = [:], log: Logger
    ) {
        self.loop = loop
        self.log = log
        self.naming = naming
        journal = files?.journal
        accounts = CoordinatorAccounts(files, settings: tenants)
        blockTokens = configuration.blockTokens
        core = Coordinator(configuration: configuration, naming: naming)
        for (tenant, weight) in accounts.weights { core.setWeight(weight, of: tenant) }
    }

    /// Reads the journal back, then begins to tick. Call before any worker or client is let in.
    public func start() throws(ServingError) {
        try recover()
        let bound = NIOLoopBound(self, eventLoop: loop)
        loop.scheduleRepeatedTask(initialDelay: Self.tickEvery, delay: Self.tickEvery) { _ in
            bound.value.handle(.tick)
        }
        loop.scheduleRepeatedTask(initialDelay: Self.accountEvery, delay: Self.accountEvery) { _ in
            bound.value.everySecond()
        }
    }

    public func handle(_ event: CoordinatorEvent) {
        loop.assertInEventLoop()
        waiting.append(event)
        guard !isHandling else { return }
        isHandling = true
        defer { isHandling = false }
        while let next = waiting.next() {
            let began = clock.now
            let actions = core.handle(next, at: began)
            decisions.observe((clock.now - began).seconds)
            accounts.keepCounters(&core)
            for action in actions { perform(action) }
        }
    }

    private func perform(_ action: CoordinatorAction) {
        switch action {
        case .send(let worker, let message): send(worker, message)
        case .closeLink(let worker): closeLink(worker)
        case .jobAdmitted(let job):
            accounts.admitted(job)
            followers[job]?.sinks.forEach { $0.admitted(job) }
        case .jobRefused(let job, let error): refuse(job, error)
        case .emit(let job, let offset, let tokens): emit(job, offset, tokens)
        case .jobFinished(let outcome): finish(outcome)
        case .workerDrained(let worker): log.info("worker drained", metadata: ["worker": "\(worker)"])
        case .note(let note): logNote(note)
        }
    }

    /// The accounts have the tokens before anybody else does.
    private func emit(_ job: JobID, _ offset: Int, _ tokens: [SampledToken]) {
        accounts.note(job, streamed: offset + tokens.count, core.usage(of: job))
        guard let deliveries = followers[job]?.advance(offset: offset, tokens: tokens) else { return }
        for delivery in deliveries { delivery.sink.tokens(offset: delivery.offset, delivery.tokens) }
    }

    private func refuse(_ job: JobID, _ error: ServingError) {
        let sinks = followers.removeValue(forKey: job)?.sinks ?? []
        requests[job] = nil
        keys.forget(job)
        accounts.refused(job)
        if journaled.remove(job) != nil { journal?.withdraw(job) }
        for sink in sinks { sink.failed(error) }
    }

    private func finish(_ outcome: JobOutcome) {
        settle(outcome)
        let sinks = followers.removeValue(forKey: outcome.job)?.sinks ?? []
        for sink in sinks { Self.tell(sink, outcome) }
        forgetOldRequests()
    }

    private static func tell(_ sink: any JobSink, _ outcome: JobOutcome) {
        switch outcome.ending {
        case .finished: sink.ended(outcome)
        case .failed(let error): sink.failed(error)
        }
    }

    /// The request of a job is kept as long as the core remembers the job. A keyed one comes back
    /// from the journal when its key does, for as long as the journal keeps it.
    private func forgetOldRequests() {
        guard requests.count > requestsBeforeSearch else { return }
        // As many again may come before the next search: its cost is spread over them.
        defer { requestsBeforeSearch = 2 * max(Limits.requestsKept, requests.count) }
        let gone = requests.keys.filter {
            core.view($0) == nil && pastAnswers[$0] == nil && followers[$0] == nil
        }
        for job in gone { requests[job] = nil }
    }

    public enum Limits {
        public static let requestsKept = 2048
        public static let pastAnswersMax = 1024
    }

    private func logNote(_ note: CoordinatorNote) {
        switch note {
        case .workerJoined(let worker, let role):
            log.info("worker joined", metadata: ["worker": "\(worker)", "role": "\(role.rawValue)"])
        case .workerLost(let worker, let jobs):
            log.warning("worker lost", metadata: ["worker": "\(worker)", "jobs_requeued": "\(jobs)"])
        case .workerSuspected(let worker, let silence):
            log.warning("worker silent", metadata: ["worker": "\(worker)", "ms": "\(silence.nanoseconds / 1_000_000)"])
        case .workerStalled(let worker, let silence):
            log.warning(
                "worker makes no progress",
                metadata: ["worker": "\(worker)", "ms": "\(silence.nanoseconds / 1_000_000)"])
        case .jobRequeued(let transfer, let reason):
            log.notice("job requeued", metadata: ["transfer": "\(transfer)", "reason": "\(reason)"])
        case .jobPoisoned(let job, let deaths):
            log.error("job gave up after killing workers", metadata: ["job": "\(job)", "deaths": "\(deaths)"])
        case .transferFailed(let transfer, let reason):
            log.warning("transfer failed", metadata: ["transfer": "\(transfer)", "reason": "\(reason.rawValue)"])
        }
    }
}

// MARK: - The journal

extension CoordinatorHost {
    /// Open jobs run again under a higher attempt, with the same seed and so the same output; ended
    /// ones answer a repeated key. A job that nobody can ask for any more is dropped.
    private func recover() throws(ServingError) {
        guard let journal else { return }
        journal.trim(at: clock.wallClockSeconds)
        journal.flush()
        let records = try journal.load()
        let open = Set(records.filter { isRunAgain($0) }.map(\.job))
        let carried = try accounts.recover(
            into: &core, wallClock: clock.wallClockSeconds, log: log, isRunAgain: open.contains)
        for record in records {
            do throws(ServingError) {
                try recover(record, accounted: carried[record.job])
            } catch {
                log.error("journal entry skipped: \(error.message)", metadata: ["job": "\(record.job)"])
                accounts.settleLost(record.job, wallClock: clock.wallClockSeconds)
                journal.withdraw(record.job)
            }
        }
    }

    /// Whether somebody may still ask for the job: it has a key, or was to go on by itself.
    private func isRunAgain(_ record: JournalRecord) -> Bool {
        guard record.answer == nil else { return false }
        return record.key != nil || (try? JournalCodec.submission(record).1.detached) == true
    }

    private func recover(_ record: JournalRecord, accounted: TokenCounts?) throws(ServingError) {
        var (submission, request, attempt) = try JournalCodec.submission(record)
        submission.accounted = accounted.map { JobUsage($0) }
        submission.deadline = submission.deadline.map { remaining(of: $0, since: request.created) }
        if let answer = record.answer {
            rememberAnswer(
                record.job,
                try JournalCodec.outcome(record, answer, promptTokens: submission.promptTokens.count))
        } else {
            guard record.key != nil || request.detached else {
                journal?.withdraw(record.job)
                return
            }
            accounts.expect(submission, at: clock.wallClockSeconds)
            journaled.insert(record.job)
            handle(.recovered(submission, attempt: attempt))
        }
        requests[record.job] = request
        if let key = record.key { keys.remember(key, of: record.tenant, job: record.job) }
    }

    /// What an earlier process has left of a deadline: at least a moment, so that the job ends in order.
    private func remaining(of deadline: TimeSpan, since created: Int64) -> TimeSpan {
        let now = clock.wallClockSeconds
        // No later than now, and no earlier than any deadline reaches, whatever the file says.
        let elapsed = now - min(max(created, now - 86_400), now)
        return max(deadline - .seconds(elapsed), .milliseconds(1))
    }

    /// Settles the account and records the answer in one transaction.
    private func settle(_ outcome: JobOutcome) {
        accounts.finished(
            outcome, at: clock.now, wallClock: clock.wallClockSeconds, with: answerWrite(outcome))
    }

    private func answerWrite(_ outcome: JobOutcome) -> LedgerStore.Write? {
        guard let journal, journaled.remove(outcome.job) != nil else { return nil }
        let tokens = core.tokens(of: outcome.job, from: 0) ?? []
        do throws(ServingError) {
            let answer = try JournalCodec.answer(outcome, tokens: tokens)
            return journal.settling(outcome.job, answer: answer, endedAtSeconds: clock.wallClockSeconds)
        } catch {
            log.error("the journal does not take an answer: \(error.message)", metadata: ["job": "\(outcome.job)"])
            journal.withdraw(outcome.job)
            return nil
        }
    }

    private func everySecond() { accounts.everySecond(core, at: clock.now) }
}

// MARK: - Workers

extension CoordinatorHost {
    /// A worker asks to be drained itself when it is told to stop.
    public func workerMessage(_ worker: WorkerRef, _ message: Message) {
        switch message {
        case .drain(let drain): handle(.drain(worker.id, deadline: drain.deadline))
        case .register(let register): handle(.workerUp(worker, register))
        default: handle(.workerMessage(worker, message))
        }
    }

    public func workerDown(_ worker: WorkerRef) { handle(.workerDown(worker)) }

    /// Where this incarnation of a worker listens for pages; nil where it is not registered or does
    /// not decode.
    func decodeEndpoint(of worker: WorkerRef) -> HostPort? {
        guard let view = core.worker(worker.id), view.worker == worker, view.role != .prefill else { return nil }
        return try? HostPort(view.dataEndpoint, field: "data endpoint")
    }

    /// Where a worker listens for pages, for the relay.
    public func dataEndpoint(of worker: WorkerID) -> String? { core.worker(worker)?.dataEndpoint }
}

// MARK: - The front door's side

extension CoordinatorHost: JobService {
    public func makeJobID() -> JobID { JobID(using: &generator) }

    public func pageIDs(of tokens: [TokenID], tenant: TenantID) -> [PageID] {
        naming.names(of: tokens, blockTokens: blockTokens, tenant: tenant)
    }

    public func knows(key: String, of tenant: TenantID) -> Bool { keys.job(of: key, of: tenant) != nil }

    public func submit(_ submission: JobSubmission, request: JobRequestRecord, sink: any JobSink) {
        let isKnown = submission.idempotencyKey.map { knows(key: $0, of: submission.tenant) } ?? false
        submit(submission, request, sink, hasQuota: !isKnown)
    }

    private func submit(
        _ submission: JobSubmission, _ request: JobRequestRecord, _ sink: any JobSink, hasQuota: Bool
    ) {
        if let key = submission.idempotencyKey, let first = keys.job(of: key, of: submission.tenant) {
            if isRemembered(first) { return joinOrConflict(first, request, sink) }
            if let journal { return submitAgain(submission, request, sink, afterFinding: first, in: journal) }
            keys.forget(first)
        }
        if let refusal = refusal(of: submission, hasQuota: hasQuota) {
            if hasQuota { accounts.giveBack(submission) }
            return sink.failed(refusal)
        }
        accounts.expect(submission, at: clock.wallClockSeconds)
        var listeners = JobFollowers()
        listeners.add(sink, nextOffset: 0)
        followers[submission.job] = listeners
        requests[submission.job] = request
        if let key = submission.idempotencyKey {
            keys.remember(key, of: submission.tenant, job: submission.job)
            admitDurably(submission, request)
        } else {
            if request.detached { admitLazily(submission, request) }
            handle(.submitted(submission))
        }
    }

    /// Why the job cannot be admitted; takes quota for it where that was not done.
    private func refusal(of submission: JobSubmission, hasQuota: Bool) -> ServingError? {
        guard !isDraining else {
            return ServingError(.draining, "the cluster is stopping and takes no new job", retryAfterSeconds: 5)
        }
        if let refusal = accounts.refusal { return refusal }
        guard !hasQuota else { return nil }
        return takeQuota(
            submission.tenant, jobs: 1, tokens: submission.promptTokens.count + submission.sampling.maxTokens)
    }

    /// Whether a job can be joined or replayed at once: it lives, or its answer is in memory.
    private func isRemembered(_ job: JobID) -> Bool {
        followers[job] != nil || core.view(job) != nil || pastAnswers[job] != nil
    }

    /// The key's first job is out of memory: the journal is asked for its answer, off the loop, and the
    /// submission begins anew with what was found.
    private func submitAgain(
        _ submission: JobSubmission, _ request: JobRequestRecord, _ sink: any JobSink, afterFinding first: JobID,
        in journal: JobJournal
    ) {
        let waiting = NIOLoopBound((host: self, sink: sink), eventLoop: loop)
        journal.find(first) { [loop] record in
            loop.execute {
                let (host, sink) = waiting.value
                if !host.isRemembered(first), !host.rememberAnswer(record) { host.keys.forget(first) }
                host.submit(submission, request, sink, hasQuota: false)
            }
        }
    }

    /// Takes an answer back into memory; false where there is none to take.
    private func rememberAnswer(_ record: JournalRecord?) -> Bool {
        guard let record, let answer = record.answer,
            let (submission, request, _) = try? JournalCodec.submission(record),
            let past = try? JournalCodec.outcome(record, answer, promptTokens: submission.promptTokens.count)
        else { return false }
        requests[record.job] = request
        rememberAnswer(record.job, past)
        return true
    }

    private func rememberAnswer(_ job: JobID, _ past: (JobOutcome, [SampledToken])) {
        pastAnswers.remember(PastAnswer(outcome: past.0, tokens: past.1), for: job)
    }

    private func joinOrConflict(_ first: JobID, _ request: JobRequestRecord, _ sink: any JobSink) {
        guard requests[first]?.digest == request.digest else {
            return sink.failed(
                ServingError(
                    .conflict, "this idempotency key was used with another request body", field: "Idempotency-Key"))
        }
        attach(first, fromOffset: 0, sink: sink)
    }

    /// The client hears of a keyed job only once the job is on disk.
    private func admitDurably(_ submission: JobSubmission, _ request: JobRequestRecord) {
        guard let journal else { return handle(.submitted(submission)) }
        do throws(ServingError) {
            let record = try JournalCodec.record(submission, request, attempt: .first)
            let host = NIOLoopBound(self, eventLoop: loop)
            journaled.insert(submission.job)
            journal.admit(record) { [loop] error in
                loop.execute {
                    if let error {
                        host.value.refuse(submission.job, error)
                    } else {
                        host.value.handle(.submitted(submission))
                    }
                }
            }
        } catch {
            refuse(submission.job, error)
        }
    }

    private func admitLazily(_ submission: JobSubmission, _ request: JobRequestRecord) {
        guard let journal, let record = try? JournalCodec.record(submission, request, attempt: .first) else { return }
        journaled.insert(submission.job)
        journal.admit(record, done: nil)
    }

    public func attach(_ job: JobID, fromOffset offset: Int, sink: any JobSink) {
        if let past = pastAnswers[job] {
            sink.admitted(job)
            if offset < past.tokens.count { sink.tokens(offset: offset, Array(past.tokens[offset...])) }
            return Self.tell(sink, past.outcome)
        }
        guard let tokens = core.tokens(of: job, from: offset) else { return attachBeforeAdmission(job, offset, sink) }
        sink.admitted(job)
        if !tokens.isEmpty { sink.tokens(offset: offset, tokens) }
        if let outcome = core.outcome(of: job) { return Self.tell(sink, outcome) }
        follow(job, nextOffset: offset + tokens.count, sink)
    }

    /// A keyed job whose record is still on its way to the disk is known here, not in the core.
    private func attachBeforeAdmission(_ job: JobID, _ offset: Int, _ sink: any JobSink) {
        guard followers[job] != nil else {
            return sink.failed(ServingError(.notFound, "no job \(job) is known", field: "job"))
        }
        follow(job, nextOffset: offset, sink)
    }

    private func follow(_ job: JobID, nextOffset: Int, _ sink: any JobSink) {
        var listeners = followers[job] ?? JobFollowers()
        guard !listeners.isFull else {
            return sink.failed(
                ServingError(
                    .rateLimited, "job \(job) has \(JobFollowers.max) listeners, its limit", retryAfterSeconds: 1))
        }
        listeners.add(sink, nextOffset: nextOffset)
        followers[job] = listeners
    }

    /// A job with an idempotency key outlives its client: the key is how the client comes back.
    public func leave(_ job: JobID, sink: any JobSink) {
        guard followers[job]?.remove(sink) == true, followers[job]?.isEmpty == true else { return }
        guard requests[job]?.detached != true, !keys.holds(job) else { return }
        handle(.cancelled(job, .client))
    }

    public func cancel(_ job: JobID) { handle(.cancelled(job, .client)) }

    public func stopMatched(_ job: JobID, outputTokens: Int) {
        accounts.cut(job, outputTokens: outputTokens)
        handle(.stopMatched(job, outputTokens: outputTokens))
    }

    public func view(_ job: JobID) -> (view: JobView, request: JobRequestRecord)? {
        guard let request = requests[job] else { return nil }
        if let view = core.view(job) { return (view, request) }
        guard let outcome = pastAnswers[job]?.outcome else { return nil }
        let view = JobView(
            job: job, tenant: outcome.tenant, phase: .finished, usage: outcome.usage, stamps: outcome.stamps,
            route: outcome.route, ending: outcome.ending)
        return (view, request)
    }

    public func jobs(limit: Int) -> [JobView] { core.jobs(limit: limit) }

    public func snapshot() -> ClusterSnapshot { core.snapshot() }

    public func drain(_ worker: WorkerID, deadline: TimeSpan) -> Bool {
        guard core.worker(worker) != nil else { return false }
        handle(.drain(worker, deadline: deadline))
        return true
    }

    public var readiness: Readiness {
        if isDraining { return .draining }
        let capacity = core.capacity
        if capacity.decodeWorkers + capacity.mixedWorkers == 0 { return .notReady("no decode worker is connected") }
        return .ready
    }

    public var now: Instant { clock.now }
    public var wallClockSeconds: Int64 { clock.wallClockSeconds }

    /// Live jobs, for an orderly end.
    public var liveJobs: Int { core.snapshot().liveJobs }

    public func metricsText(model: String) -> String {
        var page = MetricsPage()
        page.histogram(
            "tandem_coordinator_decision_seconds", "Time of the coordinator's core over one event.", decisions)
        return core.metricsText(model: model) + accounts.metricsText(core, at: clock.now) + page.text
    }

    // MARK: Tenants

    public func giveBackQuota(_ tenant: TenantID, tokens: Int) { accounts.giveBack(tenant, tokens: tokens) }

    public func takeQuota(_ tenant: TenantID, jobs: Int, tokens: Int) -> ServingError? {
        accounts.takeQuota(tenant, jobs: jobs, tokens: tokens, live: core.liveJobs(of: tenant), at: clock.now)
    }

    public func quota(of tenant: TenantID) -> QuotaState { accounts.quota(of: tenant, at: clock.now) }

    public func tenants(over window: TimeSpan) -> TenantTable {
        accounts.table(core, over: window, at: clock.now)
    }

    public func settings(of tenant: TenantID) -> TenantSettings { accounts.ownSettings(of: tenant) }

    public func set(
        _ settings: TenantSettings, of tenant: TenantID, done: @escaping @Sendable (ServingError?) -> Void
    ) throws(ServingError) {
        try accounts.set(settings, of: tenant) { [loop] error in loop.execute { done(error) } }
        if tenant != TenantSettings.everybody { core.setWeight(settings.weight ?? 1, of: tenant) }
        handle(.tick)
    }

    public func beginDraining() { isDraining = true }
}

/// Idempotency keys of living and remembered jobs, per tenant.
struct IdempotencyKeys {
    private struct Name: Hashable {
        var tenant: TenantID
        var key: String
    }

    private var jobs: [Name: JobID] = [:]
    private var names: [JobID: Name] = [:]
    /// In order of arrival, forgotten ones with them.
    private var order = FrontQueue<JobID>()

    static let max = 65_536

    func job(of key: String, of tenant: TenantID) -> JobID? { jobs[Name(tenant: tenant, key: key)] }
    func holds(_ job: JobID) -> Bool { names[job] != nil }

    mutating func remember(_ key: String, of tenant: TenantID, job: JobID) {
        if order.count >= Self.max, let oldest = order.first {
            order.removeFirst()
            forget(oldest)
        }
        let name = Name(tenant: tenant, key: key)
        jobs[name] = job
        names[job] = name
        order.append(job)
    }

    mutating func forget(_ job: JobID) {
        if let name = names.removeValue(forKey: job) { jobs[name] = nil }
    }
}
