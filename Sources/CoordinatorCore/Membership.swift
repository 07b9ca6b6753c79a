import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    // MARK: Coming

    mutating func workerUp(_ ref: WorkerRef, _ register: Register) {
        guard register.blockTokens == configuration.blockTokens, register.blockCount > 0, register.batchJobsMax > 0,
            workers[ref.id] != nil || workers.count < configuration.workersMax
        else {
            actions.append(.closeLink(ref))
            return
        }
        if let before = workers[ref.id] {
            if before.ref == ref { return registerAgain(before, register) }
            actions.append(.closeLink(before.ref))
            lose(before.ref, diedUnderJobs: true, reason: "replaced by a new incarnation")
        }
        workers.set(Worker(ref: ref, register: register, at: now))
        acquit(ref)
        note(.workerJoined(ref, register.role))
        acknowledge(ref)
        dropUnknown(register.held, at: ref)
        mayPlace = true
    }

    /// The same process on a new link: what both sides know of stays, the rest is settled.
    private mutating func registerAgain(_ before: Worker, _ register: Register) {
        let held = Set(register.held)
        workers[before.ref.id] = Worker(before, register: register, at: now)
        index.forget(before.ref.id)
        acknowledge(before.ref)
        for id in before.jobs {
            guard let job = jobs[id], !survivesNewLink(job, held: held) else { continue }
            requeue(id, reason: "its link to \(before.ref.id) was replaced", tell: .superseded)
        }
        repeatPlan(before.ref)
        dropUnknown(register.held, at: before.ref)
        mayPlace = true
    }

    /// Messages of the old link may be lost. A decoding job notices by its offsets; one that is on
    /// its way from P to D would wait for them.
    private func survivesNewLink(_ job: Job, held: Set<TransferID>) -> Bool {
        guard held.contains(job.transfer), case .decoding = job.phase else { return false }
        return true
    }

    private mutating func repeatPlan(_ ref: WorkerRef) {
        var plan = SetRunning(run: [], pause: [])
        for id in current(ref)?.residents ?? [] {
            guard let job = jobs[id], case .decoding(let residence) = job.phase else { continue }
            if residence.running { plan.run.append(job.transfer) } else { plan.pause.append(job.transfer) }
        }
        if !plan.run.isEmpty || !plan.pause.isEmpty, let worker = current(ref) { sendPlan(plan, to: worker) }
    }

    private mutating func acknowledge(_ ref: WorkerRef) {
        send(
            ref,
            .registerAck(RegisterAck(heartbeatEvery: configuration.heartbeatEvery, lease: configuration.workerLease)))
    }

    private mutating func dropUnknown(_ held: [TransferID], at ref: WorkerRef) {
        for transfer in held {
            if let job = current(transfer), job.phase.workers.contains(ref) { continue }
            if let job = jobs[transfer.job], job.phase.isWaiting, job.attempt < transfer.attempt {
                // From before this coordinator's start: the next attempt must be higher still.
                jobs[transfer.job]?.attempt = transfer.attempt
            }
            send(ref, .cancel(Cancel(transfer: transfer, reason: .superseded)))
        }
    }

    // MARK: Going

    mutating func workerDown(_ ref: WorkerRef) {
        guard current(ref) != nil else { return }
        lose(ref, diedUnderJobs: true, reason: "lost \(ref.id)")
    }

    /// Removes a worker; its jobs go on elsewhere. `diedUnderJobs`: the process may have died of a
    /// job that it was computing, so each of these is under suspicion.
    mutating func lose(_ ref: WorkerRef, diedUnderJobs: Bool, reason: String) {
        guard let worker = current(ref) else { return }
        workers.remove(ref.id)
        index.forget(ref.id)
        counters.workersLost += 1
        if worker.isDraining {
            if worker.state != .drained { actions.append(.workerDrained(ref.id)) }
        } else {
            inhibit(ref.id)
        }
        var requeued = 0
        var suspects: [JobID] = []
        for id in worker.jobs {
            guard let job = jobs[id] else { continue }
            let suspect = diedUnderJobs && computes(job, on: ref)
            if suspect {
                suspects.append(id)
                if convict(id, deathOf: ref) { continue }
            }
            requeued += 1
            requeue(id, reason: reason, avoiding: [ref.id], counts: !worker.isDraining, tell: .peerLost)
        }
        if !suspects.isEmpty {
            suspicions.append(Suspicion(worker: ref, jobs: suspects))
            if suspicions.count > configuration.workersMax { suspicions.removeFirst() }
        }
        note(.workerLost(ref, jobsRequeued: requeued))
        mayPlace = true
    }

    /// Whether the worker was at work on the job, as opposed to holding something for it.
    private func computes(_ job: Job, on ref: WorkerRef) -> Bool {
        switch job.phase {
        case .prefilling(let pair): pair.prefill == ref
        case .decoding(let residence): residence.running && !residence.isAway && residence.worker == ref
        case .queued, .held, .reserving, .starting, .assigned, .transferring: false
        }
    }

    /// Counts a process death under a job; true where that makes it a poison, and ends it. Outputs
    /// are reproducible, so a job that kills workers kills them at the same position; a death
    /// after new tokens starts the count anew, up to a limit in all.
    private mutating func convict(_ id: JobID, deathOf ref: WorkerRef) -> Bool {
        guard var job = jobs[id] else { return false }
        if job.deathPosition != job.log.count { job.deaths = [] }
        job.deaths.append(ref)
        job.deathPosition = job.log.count
        job.deathsTotal += 1
        jobs[id] = job
        guard job.deaths.count >= configuration.poisonDeaths || job.deathsTotal >= configuration.poisonDeathsTotal
        else {
            return false
        }
        note(.jobPoisoned(id, deaths: job.deathsTotal))
        cancelWorkers(of: job, except: nil, reason: .superseded)
        end(
            id,
            .failed(
                ServingError(
                    .poisoned,
                    "\(job.deathsTotal) worker processes died while they computed this job; the limit is"
                        + " \(configuration.poisonDeaths) at one position, \(configuration.poisonDeathsTotal) in all."))
        )
        return true
    }

    /// A process thought dead is back on a new link: no job has killed it.
    private mutating func acquit(_ ref: WorkerRef) {
        guard let position = suspicions.firstIndex(where: { $0.worker == ref }) else { return }
        for id in suspicions.remove(at: position).jobs {
            guard let death = jobs[id]?.deaths.firstIndex(of: ref) else { continue }
            jobs[id]?.deaths.remove(at: death)
            jobs[id]?.deathsTotal -= 1
        }
    }

    // MARK: Inhibition

    func isInhibited(_ id: WorkerID) -> Bool {
        (inhibitions[id]?.until).map { now < $0 } ?? false
    }

    /// No work for a while, twice as long as the last time; then one job at a time until one succeeds.
    /// What fails while the worker rests belongs to the same incident.
    mutating func inhibit(_ id: WorkerID) {
        guard !isInhibited(id) else { return }
        let failures = (inhibitions[id]?.failures ?? 0) + 1
        let span = configuration.inhibitFirst * (Int64(1) << Int64(min(failures - 1, 20)))
        inhibitions[id] = Inhibition(failures: failures, until: now + min(span, configuration.inhibitMax))
        guard inhibitions.count > 2 * configuration.workersMax else { return }
        let (present, known) = (now, workers)
        inhibitions = inhibitions.filter { present < $0.value.until || known[$0.key] != nil }
    }

    mutating func succeeded(_ id: WorkerID) {
        if inhibitions.removeValue(forKey: id) != nil { mayPlace = true }
    }

    // MARK: Draining

    mutating func drain(_ id: WorkerID, deadline: TimeSpan) {
        guard let worker = workers[id], !worker.isDraining else { return }
        let forceAt = now + deadline + configuration.drainGrace
        workers.change(id) { $0.state = .draining(forceAt: forceAt) }
        send(worker.ref, .drain(Drain(deadline: deadline)))
    }

    /// The worker was told by an earlier coordinator, or by its own supervisor while there was none.
    mutating func learnsOfDrain(_ ref: WorkerRef) {
        guard let worker = current(ref), !worker.isDraining else { return }
        let forceAt = now + configuration.drainUnknown + configuration.drainGrace
        workers.change(ref.id) { $0.state = .draining(forceAt: forceAt) }
    }

    mutating func drainDone(_ ref: WorkerRef) {
        guard let worker = current(ref) else { return }
        switch worker.state {
        case .draining: finishDrain(worker)
        case .ready, .suspect, .drained: dropStale()
        }
    }

    func mustEndDrain(_ worker: Worker) -> Bool {
        if case .draining(let forceAt) = worker.state { return now >= forceAt }
        return false
    }

    mutating func finishDrain(_ worker: Worker) {
        for id in worker.jobs where jobs[id] != nil {
            requeue(id, reason: "\(worker.ref.id) is drained", counts: false, tell: .drain)
        }
        workers.change(worker.ref.id) { $0.state = .drained }
        index.forget(worker.ref.id)
        actions.append(.workerDrained(worker.ref.id))
    }
}
