import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    mutating func submit(_ submission: JobSubmission) {
        if let refusal = refusal(of: submission) {
            counters.refused += 1
            actions.append(.jobRefused(submission.job, refusal))
            return
        }
        admit(submission, attempt: Attempt(0))
    }

    /// After a restart: the log goes on where it was, under a higher attempt than any before.
    mutating func recover(_ submission: JobSubmission, attempt: Attempt) {
        guard jobs[submission.job] == nil, ended[submission.job] == nil else { return }
        admit(submission, attempt: attempt)
        guard let job = jobs[submission.job], !job.log.isEmpty, let reason = job.endOfLog else { return }
        end(job.id, .finished(reason))
    }

    private mutating func admit(_ submission: JobSubmission, attempt: Attempt) {
        nextSequence += 1
        let deadline = now + (submission.deadline ?? configuration.defaultDeadline)
        var job = Job(submission, sequence: nextSequence, attempt: attempt, deadline: deadline, at: now)
        job.stamps.queued = now
        jobs[job.id] = job
        queuedJobs += 1
        touchTenant(job.tenant) { $0.queued += 1 }
        counters.admitted += 1
        actions.append(.jobAdmitted(job.id))
        setTimer(job.id)
        policy.arrive(
            ScheduledJob(
                job: job.id, tenant: job.tenant, priority: submission.priority,
                predictedPrefill: costs.prefill(tokens: uncachedTokens(job)), due: submission.due.map { now + $0 },
                predictedToken: decodeIteration, predictedOutput: submission.predictedOutputTokens,
                outputMax: submission.sampling.maxTokens, knownOutput: submission.knownOutputTokens,
                produced: job.log.count, promptTokens: job.promptTokens), at: now)
        mayPlace = true
    }

    /// What the policy has against the submission.
    private func policyRefusal(_ submission: JobSubmission) -> ServingError? {
        if configuration.policy.isClairvoyant, submission.knownOutputTokens == nil {
            let name = configuration.policy.name
            return ServingError(
                .invalidValue,
                "The policy \(name) must know how long each output will be; only simulated jobs say so.",
                field: "policy")
        }
        let wait = policy.refusal(of: submission.tenant, at: now)
        guard wait > .zero else { return nil }
        let limit = configuration.policy.requestsPerMinute
        return ServingError(
            .rateLimited, "Tenant \(submission.tenant) has had its \(limit) requests of this minute.",
            retryAfterSeconds: Int(wait.seconds.rounded(.up)))
    }

    /// Tokens that no worker's cache is known to spare.
    private func uncachedTokens(_ job: Job) -> Int {
        let blocks = index.prefixLengths(of: job.names).longest
        return max(job.sequenceTokens - blocks * configuration.blockTokens, 1)
    }

    private func refusal(of submission: JobSubmission) -> ServingError? {
        if jobs[submission.job] != nil || ended[submission.job] != nil {
            return ServingError(.conflict, "Job \(submission.job) exists already.")
        }
        if submission.promptTokens.isEmpty {
            return ServingError(.invalidValue, "The prompt has 0 tokens; at least 1 is needed.", field: "prompt")
        }
        if submission.sampling.maxTokens < 1 {
            let value = submission.sampling.maxTokens
            return ServingError(
                .invalidValue, "max_tokens is \(value); at least 1 is needed.", field: "max_tokens")
        }
        if configuration.refuseWithoutWorkers, !capacity.canDecode {
            return ServingError(
                .noWorker, "No worker that decodes is connected.", retryAfterSeconds: configuration.retryAfterSeconds)
        }
        return queueRefusal(tenant: submission.tenant) ?? policyRefusal(submission)
    }

    private func queueRefusal(tenant: TenantID) -> ServingError? {
        let record = tenants[tenant]
        if queuedJobs >= configuration.queuedJobsMax {
            return ServingError(
                .queueFull, "\(queuedJobs) jobs wait, the limit is \(configuration.queuedJobsMax).",
                retryAfterSeconds: configuration.retryAfterSeconds)
        }
        if let queued = record?.queued, queued >= configuration.queuedJobsPerTenantMax {
            return ServingError(
                .queueFull,
                "\(queued) jobs of tenant \(tenant) wait, the limit is \(configuration.queuedJobsPerTenantMax).",
                retryAfterSeconds: configuration.retryAfterSeconds)
        }
        if record == nil, tenants.count >= configuration.tenantsMax, idleTenants.isEmpty {
            return ServingError(
                .queueFull, "\(tenants.count) tenants have jobs, the limit is \(configuration.tenantsMax).",
                retryAfterSeconds: configuration.retryAfterSeconds)
        }
        return nil
    }

    // MARK: Tenants

    /// Changes a tenant's record; those without jobs are forgotten, longest unseen first, where
    /// the table is full.
    mutating func touchTenant(_ tenant: TenantID, _ change: (inout TenantRecord) -> Void) {
        tenantClock += 1
        var record = tenants[tenant] ?? TenantRecord()
        change(&record)
        record.lastSeen = tenantClock
        tenants[tenant] = record
        if record.queued + record.running == 0 {
            idleTenants.set(tenant, to: tenantClock)
        } else {
            idleTenants.remove(tenant)
        }
        while tenants.count > configuration.tenantsMax, let oldest = idleTenants.removeFirst() {
            tenants[oldest.id] = nil
        }
    }
}
