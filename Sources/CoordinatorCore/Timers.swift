import Messages
import Scheduling
import ServingTypes

extension Coordinator {
    mutating func tick() {
        forgiveOwnPause()
        lastTick = now
        for id in workers.names where wantsLook(id) { look(at: id) }
        while let due = jobTimers.first, due.key.at <= now { timerFired(due.id) }
        while let due = holds.first, due.key.at <= now { endHold(due.id) }
        // An inhibition may have run out, and nothing else says so.
        if queuedJobs > 0, !inhibitions.isEmpty || policy.wakes(by: now) { mayPlace = true }
        // Where all who hold memory rest, no iteration says so.
        if claim?.resting == .farAheadAnywhere { mayPlace = true }
    }

    /// Where this process itself stood still, nobody's silence counts for that time.
    private mutating func forgiveOwnPause() {
        guard let lastTick else { return }
        let pause = now - lastTick
        guard pause >= configuration.suspectAfter / 2 else { return }
        let now = now
        for id in workers.names {
            workers.change(id) { worker in
                worker.lastHeard = min(worker.lastHeard + pause, now)
                worker.lastProgress = min(worker.lastProgress + pause, now)
            }
        }
    }

    mutating func heard(_ ref: WorkerRef) {
        let now = now
        workers.amend(ref.id) { $0.lastHeard = now }
        if workers.read(ref.id, { $0.state == .suspect }) ?? false {
            workers.change(ref.id) { $0.state = .ready }
            mayPlace = true
        }
    }

    /// Whether any of the reasons to look closer may hold.
    private func wantsLook(_ id: WorkerID) -> Bool {
        workers.read(id) { worker in
            worker.isDraining || now - worker.lastSent >= configuration.heartbeatEvery
                || now - worker.lastHeard >= configuration.suspectAfter
                || now - worker.lastProgress >= configuration.stallFloor
        } ?? false
    }

    private mutating func look(at id: WorkerID) {
        guard let worker = workers[id] else { return }
        if now - worker.lastSent >= configuration.heartbeatEvery {
            send(worker.ref, .heartbeat(Heartbeat(load: LoadReport())))
        }
        let silence = now - worker.lastHeard
        if silence >= configuration.deadAfter {
            actions.append(.closeLink(worker.ref))
            lose(worker.ref, diedUnderJobs: false, reason: "\(id) is silent")
        } else if mustEndDrain(worker) {
            finishDrain(worker)
        } else if silence >= configuration.suspectAfter, worker.state == .ready {
            workers.change(id) { $0.state = .suspect }
            note(.workerSuspected(worker.ref, silence: silence))
        } else if now - worker.lastProgress >= stallLimit(worker), expectsSteps(of: worker) {
            stalled(worker)
        }
    }

    /// Whether the worker has something that it should be computing.
    private func expectsSteps(of worker: Worker) -> Bool {
        for id in worker.jobs {
            switch jobs[id]?.phase {
            case .prefilling(let pair) where pair.prefill == worker.ref: return true
            case .decoding(let residence)
            where residence.running && !residence.isAway && residence.worker == worker.ref: return true
            case .queued, .held, .reserving, .starting, .assigned, .prefilling, .transferring, .decoding, nil: continue
            }
        }
        return false
    }

    private func stallLimit(_ worker: Worker) -> TimeSpan {
        var limit = configuration.stallFloor
        if worker.queuedTokens > 0 { limit = limit + costs.prefill(tokens: worker.queuedTokens) * 3 }
        guard worker.decodes, now - worker.lastProgress >= limit else { return limit }
        return max(limit, worker.stepGaps.median * 10)
    }

    /// The heart beats, but no step is finished: the jobs go on elsewhere.
    private mutating func stalled(_ worker: Worker) {
        note(.workerStalled(worker.ref, silence: now - worker.lastProgress))
        inhibit(worker.ref.id)
        let now = now
        workers.change(worker.ref.id) { $0.lastProgress = now }
        for id in worker.jobs where jobs[id] != nil {
            requeue(id, reason: "\(worker.ref.id) makes no progress", avoiding: [worker.ref.id], tell: .superseded)
        }
    }

    private mutating func timerFired(_ id: JobID) {
        guard let job = jobs[id] else {
            jobTimers.remove(id)
            return
        }
        jobs.change(id) { $0.timerAt = Instant(nanoseconds: .max) }
        guard now < job.deadline else { return cancel(id, .deadline) }
        guard let due = job.dispatch?.due, due <= now else { return setTimer(id) }
        switch job.phase {
        case .queued, .held:
            jobs[id]?.dispatch = nil
            setTimer(id)
        case .reserving(let pair): noReply(job, from: pair.decode, to: "ReservePages")
        case .starting(let worker): noReply(job, from: worker, to: "StartDecode")
        case .assigned(let pair): noReply(job, from: pair.prefill, to: "AssignPrefill")
        case .prefilling(let pair):
            requeue(
                id, reason: "no prefill progress on \(pair.prefill.id)", avoiding: [pair.prefill.id],
                tell: .superseded)
        case .transferring(let pair):
            counters.transfersFailed += 1
            note(.transferFailed(job.transfer, .stalled))
            jobs[id]?.transferFailures += 1
            requeue(
                id, reason: "transfer stalled", avoiding: [pair.prefill.id, pair.decode.id], tell: .superseded)
        case .decoding(let residence):
            if residence.running, !residence.isAway {
                requeue(
                    id, reason: "no token from \(residence.worker.id)", avoiding: [residence.worker.id],
                    tell: .superseded)
            } else {
                expect(id, within: configuration.jobSilenceMax)
            }
        }
    }

    private mutating func noReply(_ job: Job, from worker: WorkerRef, to what: String) {
        inhibit(worker.id)
        requeue(job.id, reason: "no reply to \(what) from \(worker.id)", avoiding: [worker.id], tell: .superseded)
    }
}
