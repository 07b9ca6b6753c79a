import CoordinatorCore
import KVPaging
import Messages
import ServingTypes

/// One request under way: what its client has received, and what it must receive. Read and changed
/// once per token, hence a reference.
final class SimulatedJob {
    let number: Int
    let request: SimulatedRequest
    let submission: JobSubmission
    /// The next token that the client lacks.
    var oracle: TokenOracle
    /// Everything received; kept only where a restart of the coordinator may repeat it.
    var received: [TokenID] = []
    var isSubmitted = false
    /// What this coordinator's process has logged.
    var logged = 0
    var wasStopped = false
    var wasCancelled = false
    let arrived: Int64
    var firstToken: Int64?
    var lastToken: Int64?

    init(number: Int, request: SimulatedRequest, submission: JobSubmission, oracle: TokenOracle, arrived: Int64) {
        self.number = number
        self.request = request
        self.submission = submission
        self.oracle = oracle
        self.arrived = arrived
    }

    var id: JobID { submission.job }
    var receivedTokens: Int { oracle.outputTokens }
}

/// What one process of the coordinator must have charged by now, per tenant.
struct ChargeBooks {
    struct Book {
        var outputTokens: Int64 = 0
        /// Bounds of the prompt tokens charged for ended jobs.
        var promptLeast: Int64 = 0
        var promptMost: Int64 = 0
    }

    var books: [TenantID: Book] = [:]
}

/// The front door's side: clients come, read, stop, leave, and check every token.
extension ClusterSimulation {
    // MARK: Coming

    func scheduleArrival() {
        pendingRequest = nextRequest()
        guard let pendingRequest else {
            isWorkloadOver = true
            return
        }
        queue.add(.arrival, at: max(now, pendingRequest.arrival.nanoseconds))
    }

    func arrive() {
        guard let request = pendingRequest else { return }
        let number = jobCount
        jobCount += 1
        var sampling = SamplingParameters()
        sampling.maxTokens = request.maxTokens
        sampling.stopTokens = [TokenOracle.endToken]
        let id = JobID(high: 1, low: UInt64(number))
        var submission = JobSubmission(
            job: id, tenant: request.tenant, promptTokens: request.prompt,
            pageIDs: configuration.naming.names(
                of: request.prompt, blockTokens: configuration.blockTokens, tenant: request.tenant),
            sampling: sampling, priority: request.priority, deadline: request.deadline,
            idempotencyKey: request.isKeyed ? "key-\(number)" : nil, due: request.due)
        if configuration.coordinator.policy.isClairvoyant { submission.knownOutputTokens = request.outputTokens }
        jobs[id] = SimulatedJob(
            number: number, request: request, submission: submission,
            oracle: TokenOracle(prompt: request.prompt, length: request.length), arrived: now)
        if configuration.audits { owners[id] = Self.owner(request.tenant) }
        configuration.reservation?.arrived(id, input: request.prompt.count, output: request.outputTokens)
        note("client", "job \(number): \(request.prompt.count) + \(request.outputTokens) tokens of \(request.tenant)")
        if let span = request.cancelAfter { after(span, .cancellation(number)) }
        resubmit(number)
        host.add(configuration.profile.hostSecondsPerToken * HostLoad.tokensPerEdge, at: now)
        scheduleArrival()
    }

    /// Stands for a job's tenant where that is checked.
    func owner(of job: JobID) -> UInt32 { configuration.audits ? owners[job] ?? 0 : 0 }

    private static func owner(_ tenant: TenantID) -> UInt32 {
        UInt32(truncatingIfNeeded: SimulatedNaming().root(tenant: tenant).words.0)
    }

    /// A client that finds nobody tries again.
    func resubmit(_ number: Int) {
        let id = JobID(high: 1, low: UInt64(number))
        guard let job = jobs[id], !job.isSubmitted else { return }
        guard isCoordinatorAlive, coordinatorFrozenUntil <= now else {
            return after(.milliseconds(100), .submission(number))
        }
        job.isSubmitted = true
        tell(.submitted(job.submission))
    }

    func cancelByClient(_ number: Int) {
        let id = JobID(high: 1, low: UInt64(number))
        guard let job = jobs[id] else { return }
        guard job.isSubmitted, isCoordinatorAlive, coordinatorFrozenUntil <= now else {
            return after(.milliseconds(100), .cancellation(number))
        }
        job.wasCancelled = true
        witness("client.cancel")
        tell(.cancelled(id, .client))
    }

    /// Keyed jobs run on after a restart of the coordinator, from what its journal knows; the
    /// clients of the others see a broken connection.
    func recoverJobs() {
        for job in jobs.values.sorted(by: { $0.number < $1.number }) where job.isSubmitted {
            guard job.request.isKeyed else {
                witness("job.lost")
                jobs[job.id] = nil
                endedJobs += 1
                continue
            }
            witness("job.recovered")
            var submission = job.submission
            let known = random.chance(50) ? 0 : random.within(0...job.received.count)
            submission.emitted = job.received.prefix(known).map { SampledToken(token: $0) }
            job.logged = known
            tell(.recovered(submission, attempt: .first))
        }
    }

    // MARK: Answers

    func admitted(_ id: JobID) {
        if jobs[id] == nil { fail("job \(id.low) was admitted and is unknown") }
    }

    func refused(_ id: JobID, _ error: ServingError) {
        guard let job = jobs[id] else { return fail("job \(id.low) was refused and is unknown") }
        witness("job.refused.\(error.code)")
        note("coordinator", "refuses job \(job.number): \(error.message)")
        if ![.queueFull, .noWorker, .rateLimited].contains(error.code) { fail("job \(job.number): \(error.message)") }
        jobs[id] = nil
        endedJobs += 1
    }

    /// Every token is the one that the model gives, once, in order.
    func emitted(_ id: JobID, _ offset: Int, _ tokens: [SampledToken]) {
        guard let job = jobs[id] else { return fail("job \(id.low) got tokens after its end") }
        if configuration.audits { emittedNow.insert(id) }
        note("client", "job \(job.number) tokens \(offset)..<\(offset + tokens.count)")
        if offset != job.logged { fail("job \(job.number) got offset \(offset), expected \(job.logged)") }
        for (index, token) in tokens.enumerated() {
            check(job, at: offset + index, token.token)
            mark(job.number, UInt64(token.token.value))
        }
        job.logged = offset + tokens.count
        host.add(configuration.profile.hostSecondsPerToken * Double(tokens.count), at: now)
        books.books[job.request.tenant, default: .init()].outputTokens += Int64(tokens.count)
        if job.firstToken == nil { job.firstToken = now }
        job.lastToken = now
        let stops = !job.wasStopped && job.request.stopAfter.map { job.receivedTokens >= $0 } ?? false
        if stops { job.wasStopped = true }
        if stops, let count = job.request.stopAfter {
            witness("client.stop")
            tell(.stopMatched(id, outputTokens: count))
        }
    }

    private func check(_ job: SimulatedJob, at offset: Int, _ token: TokenID) {
        if offset < job.receivedTokens {
            if offset >= job.received.count || job.received[offset] != token {
                fail("job \(job.number): token \(offset) was repeated as \(token)")
            }
            witness("token.repeated")
            return
        }
        guard offset == job.receivedTokens else {
            return fail("job \(job.number): token \(offset) came after \(job.receivedTokens)")
        }
        guard offset < job.request.outputTokens else {
            return fail("job \(job.number): token \(offset) of \(job.request.outputTokens)")
        }
        let expected = job.oracle.next()
        if token != expected { fail("job \(job.number): token \(offset) is \(token), the model gives \(expected)") }
        if job.request.isKeyed { job.received.append(token) }
    }

    // MARK: Ends

    func finished(_ outcome: JobOutcome) {
        guard let job = jobs.removeValue(forKey: outcome.job) else {
            return fail("job \(outcome.job.low) ended twice")
        }
        endedJobs += 1
        host.add(configuration.profile.hostSecondsPerToken * HostLoad.tokensPerEdge, at: now)
        paused.remove(outcome.job)
        configuration.reservation?.left(outcome.job)
        mark(job.number, 77)
        note("coordinator", "job \(job.number) ends: \(outcome.ending)")
        book(job, outcome)
        switch outcome.ending {
        case .finished(.stop): checkStop(job, outcome)
        case .finished(.length):
            witness("job.length")
            if job.logged != job.request.maxTokens { fail("job \(job.number) ended by length at \(job.logged)") }
        case .finished(.cancelled):
            witness("job.cancelled")
            if !job.wasCancelled { fail("job \(job.number) was cancelled by nobody") }
        case .finished(.failed): fail("job \(job.number) finished as failed")
        case .failed(let error): checkFailure(job, error)
        }
        onEnd(job, outcome)
    }

    private func checkStop(_ job: SimulatedJob, _ outcome: JobOutcome) {
        witness("job.stop")
        if job.wasStopped {
            let kept = min(job.request.stopAfter ?? 0, job.logged)
            if outcome.usage.outputTokens == kept { return }
        }
        if job.logged != job.request.length {
            fail("job \(job.number) stopped at \(job.logged) of \(job.request.length)")
        }
        if outcome.usage.outputTokens != job.logged {
            fail("job \(job.number) has \(job.logged) tokens and a usage of \(outcome.usage.outputTokens)")
        }
    }

    /// Honest failures are counted; any other code is a bug.
    private func checkFailure(_ job: SimulatedJob, _ error: ServingError) {
        witness("job.failed.\(error.code)")
        let lawful: [ServingError.Code] = [.poisoned, .noWorker, .deadline]
        if configuration.audits, !lawful.contains(error.code) {
            fail("job \(job.number) failed: \(error.code): \(error.message)")
        }
    }

    private func book(_ job: SimulatedJob, _ outcome: JobOutcome) {
        var book = books.books[job.request.tenant] ?? .init()
        book.promptMost += Int64(job.request.prompt.count)
        switch outcome.ending {
        case .finished(.stop), .finished(.length):
            if job.logged > 0, !job.wasStopped {
                book.promptLeast += Int64(job.request.prompt.count - outcome.usage.cachedTokens)
            }
        case .finished, .failed: break
        }
        books.books[job.request.tenant] = book
    }

    /// At every instant each tenant has been charged for all that it was given; for nothing twice, says
    /// `checkCharges` at the end (S2).
    func checkOutputCharges() {
        let weight = configuration.coordinator.policy.outputWeight
        for (tenant, book) in books.books where coordinator.chargedUnits(of: tenant) < weight * book.outputTokens {
            fail("\(tenant) was charged \(coordinator.chargedUnits(of: tenant)) for \(book.outputTokens) tokens")
        }
    }

    /// With no job left, each tenant has been charged once for what it got (S2).
    func checkCharges() {
        let policy = configuration.coordinator.policy
        for (tenant, book) in books.books.sorted(by: { $0.key < $1.key }) {
            let caused = policy.promptWeight * Int64(coordinator.causedTokens(of: tenant))
            let prompt = coordinator.chargedUnits(of: tenant) - policy.outputWeight * book.outputTokens - caused
            let range = (policy.promptWeight * book.promptLeast)...(policy.promptWeight * book.promptMost)
            if !range.contains(prompt) {
                fail("\(tenant) was charged \(prompt) units for prompts, lawful are \(range)")
            }
        }
    }
}
