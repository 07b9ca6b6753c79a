import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    // MARK: Ends

    /// The client's, the operator's or the deadline's wish.
    mutating func cancel(_ id: JobID, _ reason: Cancel.Reason) {
        guard let job = jobs[id] else { return }
        cancelWorkers(of: job, except: nil, reason: reason)
        switch reason {
        case .deadline: end(id, .failed(deadlineError(job)))
        case .client, .superseded, .peerLost, .stopString, .drain: end(id, .finished(.cancelled))
        }
    }

    func deadlineError(_ job: Job) -> ServingError {
        let limit = job.deadline - job.stamps.received
        return ServingError(
            .deadline,
            "The job was not done within its deadline of \(limit.seconds) s; it gave \(job.log.count) tokens.")
    }

    /// A stop string ended the text: the first `outputTokens` tokens count. Also corrects a job
    /// that ended by itself in the very step that completed the stop string.
    mutating func stop(_ id: JobID, outputTokens: Int) {
        guard let job = jobs[id] else { return ended.truncate(id, to: outputTokens) }
        let kept = min(max(outputTokens, 0), job.log.count)
        jobs[id]?.log.removeLast(job.log.count - kept)
        jobs[id]?.usage.outputTokens = kept
        cancelWorkers(of: job, except: nil, reason: .stopString)
        end(id, .finished(.stop))
    }

    /// The one way out of the table of live jobs. Workers that must hear of it have been told.
    mutating func end(_ id: JobID, _ ending: JobEnding) {
        settleUnreported(id)
        settleCharge(id)
        release(id)
        if jobs[id]?.phase.isOnBridge ?? false { countBridge(id, entering: false) }
        guard var job = jobs.removeValue(forKey: id) else { return }
        job.stamps.finished = now
        policy.leave(id, completed: ending.isCompletion)
        jobTimers.remove(id)
        holds.remove(id)
        if job.phase.isWaiting { queuedJobs -= 1 }
        count(ending)
        touchTenant(job.tenant) { record in
            if job.phase.isWaiting { record.queued -= 1 } else { record.running -= 1 }
            record.usage.add(job.usage)
        }
        let outcome = JobOutcome(
            job: id, tenant: job.tenant, ending: ending, usage: job.usage, stamps: job.stamps, route: job.route)
        ended.add(
            EndedJob(sequence: job.sequence, outcome: outcome, log: job.log), jobsMax: configuration.endedJobsMax,
            tokensMax: configuration.endedTokensMax)
        histograms.observe(outcome)
        actions.append(.jobFinished(outcome))
        mayPlace = true
    }

    private mutating func count(_ ending: JobEnding) {
        switch ending {
        case .finished(.stop): counters.finishedStop += 1
        case .finished(.length): counters.finishedLength += 1
        case .finished(.cancelled): counters.cancelled += 1
        case .finished(.failed), .failed: counters.failed += 1
        }
    }

    // MARK: Giving back

    /// Tells the workers that know of the job to drop it.
    mutating func cancelWorkers(of job: Job, except spared: WorkerRef?, reason: Cancel.Reason) {
        for worker in job.phase.informedWorkers where worker != spared && isCurrent(worker) {
            send(worker, .cancel(Cancel(transfer: job.transfer, reason: reason)))
        }
    }

    /// Takes the job off its workers' books.
    mutating func release(_ id: JobID) {
        guard let job = jobs[id] else { return }
        for ref in job.phase.workers {
            guard isCurrent(ref) else { continue }
            workers.change(ref.id) { $0.detach(id) }
            if ref == job.phase.decodeWorker {
                let blocks = job.dispatch?.blocks ?? 0
                workers.change(ref.id) { $0.availableBlocks += blocks }
            }
            if workers.read(ref.id, { $0.decodes }) ?? false { needReplan(ref.id) }
        }
        if !job.phase.isWaiting { wakeHeld() }
    }

    // MARK: Again

    /// A failed attempt goes back to the queue with what it has emitted; the next one has a higher
    /// number. Too many in a row without a token end the job.
    mutating func requeue(
        _ id: JobID, reason: String, avoiding failed: [WorkerID] = [], counts: Bool = true,
        tell cancelReason: Cancel.Reason? = nil
    ) {
        guard let job = jobs[id] else { return }
        if let cancelReason { cancelWorkers(of: job, except: nil, reason: cancelReason) }
        note(.jobRequeued(job.transfer, reason: reason))
        counters.requeued += 1
        settleUnreported(id)
        release(id)
        jobs[id]?.avoided = failed
        jobs[id]?.refusedBy = []
        jobs[id]?.refusals = 0
        jobs[id]?.dispatch = nil
        setPhase(id, .queued)
        setTimer(id)
        let redispatches = job.redispatches + (counts ? 1 : 0)
        jobs[id]?.redispatches = redispatches
        if redispatches > configuration.redispatchMax {
            return end(id, .failed(exhausted(job, reason)))
        }
        if redispatches > 1 {
            hold(id, for: backoff(redispatches))
        } else {
            policy.requeue(id, at: now)
        }
        mayPlace = true
    }

    private func backoff(_ redispatches: Int) -> TimeSpan {
        let doubled = configuration.requeueBackoff * (Int64(1) << Int64(min(redispatches - 2, 20)))
        return min(doubled, configuration.requeueBackoffMax)
    }

    private func exhausted(_ job: Job, _ reason: String) -> ServingError {
        ServingError(
            .noWorker,
            "The job failed \(configuration.redispatchMax + 1) times in a row without a new token; last: \(reason).",
            retryAfterSeconds: configuration.retryAfterSeconds)
    }

    /// A worker contradicted the protocol: it is avoided, the job resumes elsewhere.
    mutating func protocolError(_ id: JobID, at worker: WorkerRef, _ what: String) {
        inhibit(worker.id)
        requeue(id, reason: "\(what) from \(worker.id)", avoiding: [worker.id], tell: .superseded)
    }
}

extension JobUsage {
    mutating func add(_ other: JobUsage) {
        promptTokens += other.promptTokens
        outputTokens += other.outputTokens
        computedTokens += other.computedTokens
        cachedTokens += other.cachedTokens
        recomputedTokens += other.recomputedTokens
        causedTokens += other.causedTokens
    }
}

/// Jobs that are over: the newest ones, up to a number of jobs and of tokens.
struct EndedJobs: Sendable {
    private var jobs: [JobID: EndedJob] = [:]
    /// In order of ending; entries before `oldest` are forgotten.
    private var order: [JobID] = []
    private var oldest = 0
    private(set) var tokens = 0

    var count: Int { jobs.count }
    var all: [EndedJob] { order[oldest...].compactMap { jobs[$0] } }

    subscript(id: JobID) -> EndedJob? { jobs[id] }

    mutating func add(_ job: EndedJob, jobsMax: Int, tokensMax: Int) {
        jobs[job.outcome.job] = job
        order.append(job.outcome.job)
        tokens += job.log.count
        while jobs.count > max(jobsMax, 0) || tokens > max(tokensMax, 0), oldest < order.count {
            if let forgotten = jobs.removeValue(forKey: order[oldest]) { tokens -= forgotten.log.count }
            oldest += 1
        }
        if oldest > 64, oldest * 2 > order.count {
            order.removeFirst(oldest)
            oldest = 0
        }
    }

    mutating func truncate(_ id: JobID, to outputTokens: Int) {
        guard var job = jobs[id], outputTokens >= 0, outputTokens <= job.log.count else { return }
        switch job.outcome.ending {
        case .finished(.stop), .finished(.length):
            tokens -= job.log.count - outputTokens
            job.log.removeLast(job.log.count - outputTokens)
            job.outcome.ending = .finished(.stop)
            job.outcome.usage.outputTokens = outputTokens
            jobs[id] = job
        case .finished(.cancelled), .finished(.failed), .failed: break
        }
    }
}
