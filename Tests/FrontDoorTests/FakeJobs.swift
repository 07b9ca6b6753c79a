import CoordinatorCore
import FrontDoor
import Messages
import ServingTypes

/// A coordinator whose jobs do what the test says.
final class FakeJobs: JobService {
    final class Job {
        let submission: JobSubmission
        let request: JobRequestRecord
        var sinks: [any JobSink] = []
        var log: [SampledToken] = []
        var outcome: JobOutcome?
        var isAdmitted = false

        init(submission: JobSubmission, request: JobRequestRecord) {
            self.submission = submission
            self.request = request
        }
    }

    /// What happens by itself on a submission; nil leaves everything to the test.
    var onSubmit: ((FakeJobs, Job) -> Void)?
    private(set) var all: [Job] = []
    private(set) var left: [JobID] = []
    private(set) var cancelled: [JobID] = []
    private(set) var stopped: [(job: JobID, outputTokens: Int)] = []
    private(set) var drainedWorkers: [(WorkerID, TimeSpan)] = []
    var readiness = Readiness.ready
    var now = Instant.zero
    var wallClockSeconds: Int64 = 1_700_000_000
    private var idsDrawn: UInt64 = 0
    private var byKey: [String: Job] = [:]

    func makeJobID() -> JobID {
        idsDrawn += 1
        return JobID(high: 0, low: idsDrawn)
    }

    func pageIDs(of tokens: [TokenID], tenant: TenantID) -> [PageID] { [] }

    func submit(_ submission: JobSubmission, request: JobRequestRecord, sink: any JobSink) {
        if let key = submission.idempotencyKey, let known = byKey["\(submission.tenant)\n\(key)"] {
            guard known.request.digest == request.digest else {
                return sink.failed(
                    ServingError(
                        .conflict, "This idempotency key belongs to another request.", field: "idempotency-key"))
            }
            return follow(known, sink)
        }
        let job = Job(submission: submission, request: request)
        job.sinks = [sink]
        all.append(job)
        if let key = submission.idempotencyKey { byKey["\(submission.tenant)\n\(key)"] = job }
        onSubmit?(self, job)
    }

    func attach(_ job: JobID, fromOffset offset: Int, sink: any JobSink) {
        guard let known = find(job) else { return sink.failed(ServingError(.notFound, "There is no such job.")) }
        follow(known, sink)
    }

    private func follow(_ job: Job, _ sink: any JobSink) {
        job.sinks.append(sink)
        sink.admitted(job.submission.job)
        if !job.log.isEmpty { sink.tokens(offset: 0, job.log) }
        if let outcome = job.outcome { sink.ended(outcome) }
    }

    func leave(_ job: JobID, sink: any JobSink) {
        left.append(job)
        guard let known = find(job) else { return }
        known.sinks.removeAll { $0 === sink }
        if known.sinks.isEmpty, !known.request.detached { end(known, .finished(.cancelled)) }
    }

    func cancel(_ job: JobID) {
        cancelled.append(job)
        if let known = find(job) { end(known, .finished(.cancelled)) }
    }

    func stopMatched(_ job: JobID, outputTokens: Int) {
        stopped.append((job, outputTokens))
        if let known = find(job), known.outcome == nil { end(known, .finished(.stop), outputTokens: outputTokens) }
    }

    func view(_ job: JobID) -> (view: JobView, request: JobRequestRecord)? {
        find(job).map { (view(of: $0), $0.request) }
    }

    func jobs(limit: Int) -> [JobView] { all.reversed().prefix(limit).map { view(of: $0) } }

    func snapshot() -> ClusterSnapshot {
        ClusterSnapshot(
            policy: "fcfs",
            workers: [
                WorkerView(
                    worker: WorkerRef(id: WorkerID("decode-0"), epoch: Epoch(7)), role: .decode, state: .ready,
                    processID: 42, dataEndpoint: "127.0.0.1:1", assignedJobs: 1, blockTokens: 16, pageBytes: 64,
                    load: LoadReport())
            ], tenants: [], queuedJobs: 2, liveJobs: 3, counters: CoordinatorCounters())
    }

    func drain(_ worker: WorkerID, deadline: TimeSpan) -> Bool {
        guard worker.name == "decode-0" else { return false }
        drainedWorkers.append((worker, deadline))
        return true
    }

    // MARK: Tenants

    var quotas = TenantQuotas()
    var tenantSettings: [TenantID: TenantSettings] = [:]
    var reports: [TenantReport] = []

    func knows(key: String, of tenant: TenantID) -> Bool { byKey["\(tenant)\n\(key)"] != nil }

    func giveBackQuota(_ tenant: TenantID, tokens: Int) { quotas.giveBack(tenant, tokens: tokens) }

    func takeQuota(_ tenant: TenantID, jobs: Int, tokens: Int) -> ServingError? {
        let live = all.filter { $0.submission.tenant == tenant && $0.outcome == nil }.count
        return quotas.take(tenant, settings(of: tenant), jobs: jobs, tokens: tokens, live: live, at: now)
    }

    func quota(of tenant: TenantID) -> QuotaState { quotas.state(tenant, settings(of: tenant), at: now) }

    func tenants(over window: TimeSpan) -> TenantTable {
        TenantTable(policy: "fcfs", window: window, tenants: reports)
    }

    func settings(of tenant: TenantID) -> TenantSettings { tenantSettings[tenant] ?? TenantSettings() }

    func set(
        _ settings: TenantSettings, of tenant: TenantID, done: @escaping @Sendable (ServingError?) -> Void
    ) throws(ServingError) {
        tenantSettings[tenant] = settings
        done(nil)
    }

    // MARK: What the test does

    func find(_ job: JobID) -> Job? { all.first { $0.submission.job == job } }

    func admit(_ job: Job) {
        job.isAdmitted = true
        for sink in job.sinks { sink.admitted(job.submission.job) }
    }

    func emit(_ job: Job, _ tokens: [SampledToken]) {
        let offset = job.log.count
        job.log += tokens
        for sink in job.sinks { sink.tokens(offset: offset, tokens) }
    }

    /// One token per byte.
    func emit(_ job: Job, _ text: String) { emit(job, text.utf8.map { SampledToken(token: TokenID(UInt32($0))) }) }

    func end(_ job: Job, _ ending: JobEnding, outputTokens: Int? = nil) {
        guard job.outcome == nil else { return }
        var usage = JobUsage()
        usage.promptTokens = job.submission.promptTokens.count
        usage.outputTokens = outputTokens ?? job.log.count
        usage.cachedTokens = 2
        var stamps = JobStamps(received: .zero)
        stamps.firstToken = Instant(nanoseconds: 5_000_000)
        stamps.finished = Instant(nanoseconds: 25_000_000)
        var route = JobRoute()
        route.prefill = WorkerID("prefill-0")
        route.decode = WorkerID("decode-0")
        route.kvBytesMoved = 4096
        let outcome = JobOutcome(
            job: job.submission.job, tenant: job.submission.tenant, ending: ending, usage: usage, stamps: stamps,
            route: route)
        job.outcome = outcome
        for sink in job.sinks { sink.ended(outcome) }
        job.sinks = []
    }

    func refuse(_ job: Job, _ error: ServingError) {
        for sink in job.sinks { sink.failed(error) }
        job.sinks = []
    }

    /// Admits and answers every job at once.
    func answerEverything(with text: String, reason: FinishReason = .length) {
        onSubmit = { jobs, job in
            jobs.admit(job)
            jobs.emit(job, text)
            jobs.end(job, .finished(reason))
        }
    }

    private func view(of job: Job) -> JobView {
        let outcome = job.outcome
        return JobView(
            job: job.submission.job, tenant: job.submission.tenant,
            phase: outcome == nil ? (job.isAdmitted ? .decoding : .queued) : .finished,
            usage: outcome?.usage ?? JobUsage(), stamps: outcome?.stamps ?? JobStamps(received: .zero),
            route: outcome?.route ?? JobRoute(), ending: outcome?.ending)
    }
}
