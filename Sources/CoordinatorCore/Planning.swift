import Messages
import Scheduling
import ServingTypes

/// Which residents of a worker run, who stands by, and what the worker is told of it.
extension Coordinator {
    /// Sends plan deltas to the workers whose residents, claims or counters have changed.
    mutating func replanRunning() {
        let names = replans
        replans.removeAll(keepingCapacity: true)
        for name in names {
            // Where nobody is paused and nobody needs to be, there is nothing to plan.
            let claimed = claim?.worker.id == name || claim?.resting == .farAheadAnywhere
            let needs = workers.read(name) { claimed || $0.hasPaused || $0.wantedBlocks > 0 || $0.isCrowded }
            if needs ?? false, let worker = workers[name] { replan(worker) }
        }
    }

    private mutating func replan(_ worker: Worker) {
        let claim = claim.flatMap { $0.worker == worker.ref ? $0 : nil }
        let (chosen, standby) = choose(worker, resting: resting(on: worker))
        var plan = change(worker, running: Set(chosen))
        plan.standby = standby.compactMap { id in jobs.readOptional(id) { $0.transfer } }
        plan.wantedBlocks = claim?.blocks ?? 0
        workers.change(worker.ref.id) { $0.hasPaused = chosen.count < worker.residents.count }
        let says = !plan.run.isEmpty || !plan.pause.isEmpty || plan.wantedBlocks != worker.wantedBlocks
        guard says || plan.standby != worker.standby else { return }
        workers.change(worker.ref.id) { ($0.standby, $0.wantedBlocks) = (plan.standby, plan.wantedBlocks) }
        let isShort = worker.register.swapPages > 0 || worker.availableBlocks * 8 < worker.register.blockCount
        if says, isShort { plan.order = memoryOrder(of: worker) }
        send(worker.ref, .setRunning(plan))
    }

    /// Those who run, and in order those who run next. One whose pages are away holds its place, but
    /// another has its slot until it is back; where the pool lacks the memory for it, those that it would
    /// displace rest.
    private mutating func choose(_ worker: Worker, resting: [JobID]) -> (running: [JobID], standby: [JobID]) {
        let slots = worker.register.batchJobsMax
        guard worker.isCrowded || !resting.isEmpty else {
            policy.run(worker.residents, of: worker.residents, at: now)
            return (worker.residents, [])
        }
        let spare = min(max(slots / ResidencyLimits.standbyShare, 2), ResidencyLimits.standby)
        let ranking = policy.ranking(
            of: worker.residents, slots: slots, limit: slots + worker.away.count + resting.count + spare, at: now)
        let resting = resting.isEmpty ? restingForReturn(to: worker, ranking.prefix(slots)) : resting
        var (running, standby, here) = ([JobID](), [JobID](), 0)
        for (place, id) in ranking.enumerated() where !resting.contains(id) {
            if worker.away.contains(id) {
                if place < slots { running.append(id) }
            } else if here < slots {
                running.append(id)
                here += 1
            } else if standby.count < spare {
                standby.append(id)
            }
        }
        policy.run(running, of: worker.residents, at: now)
        return (running, standby)
    }

    /// Who rests for the claim's sake.
    private func resting(on worker: Worker) -> [JobID] {
        guard let claim else { return [] }
        switch claim.resting {
        case .here(let jobs): return claim.worker == worker.ref ? jobs : []
        case .farAheadAnywhere: return policy.ahead(of: claim.job, by: recomputingTheta, among: worker.residents)
        }
    }

    /// Who rests so that the first of those due whose pages are away can have memory.
    private func restingForReturn(to worker: Worker, _ due: ArraySlice<JobID>) -> [JobID] {
        guard !worker.away.isEmpty, let first = due.first(where: { worker.away.contains($0) }) else { return [] }
        let lacking = blocksHeld(by: first) - max(worker.availableBlocks, 0)
        guard lacking > 0 else { return [] }
        let holdings = worker.residents.filter { !worker.away.contains($0) }.map {
            Holding(job: $0, units: blocksHeld(by: $0))
        }
        return policy.victims(among: holdings, freeing: lacking, for: first, at: now)
    }

    /// Blocks that a resident has, or would have, with room for its next tokens.
    private func blocksHeld(by id: JobID) -> Int {
        blocksNeeded((jobs.read(id) { $0.sequenceTokens } ?? 0) + configuration.blockTokens / 2)
    }

    /// Writes the decision into the jobs, and says what has changed.
    private mutating func change(_ worker: Worker, running: Set<JobID>) -> SetRunning {
        var plan = SetRunning(run: [], pause: [])
        for id in worker.residents {
            guard let job = jobs[id], case .decoding(var residence) = job.phase else { continue }
            let runs = running.contains(id)
            guard runs != residence.running else { continue }
            residence.running = runs
            jobs[id]?.phase = .decoding(residence)
            if runs {
                plan.run.append(job.transfer)
                policy.started(id)
                expect(id, within: configuration.jobSilenceMax)
            } else {
                plan.pause.append(job.transfer)
                if residence.hasStepped {
                    jobs[id]?.route.preemptions += 1
                    counters.preempted += 1
                }
            }
        }
        return plan
    }

    /// Sends a plan beside which what the worker was told of claims and standing by holds.
    mutating func sendPlan(_ plan: SetRunning, to worker: Worker) {
        var plan = plan
        (plan.standby, plan.wantedBlocks) = (worker.standby, worker.wantedBlocks)
        send(worker.ref, .setRunning(plan))
    }

    /// A job that stood by has taken a slot that fell free.
    mutating func tookSlot(_ transfer: TransferID, on worker: WorkerRef) {
        let took = jobs.change(transfer.job) { job -> Bool in
            guard job.attempt == transfer.attempt, case .decoding(var residence) = job.phase,
                residence.worker == worker, !residence.running
            else { return false }
            residence.running = true
            job.phase = .decoding(residence)
            return true
        }
        guard took ?? false else { return }
        policy.started(transfer.job)
        expect(transfer.job, within: configuration.jobSilenceMax)
        workers.change(worker.id) { $0.standby.removeAll { $0 == transfer } }
        needReplan(worker.id)
    }
}
