import Messages
import Scheduling
import ServingTypes

/// Residents whose pages lie in a worker's host tier, and who leaves and comes back first.
extension Coordinator {
    // MARK: What workers say

    /// A job's pages have left for the host tier, or are back.
    mutating func moved(_ id: JobID, _ notice: SwapNotice) {
        switch notice {
        case .left:
            let left = jobs.changeOptional(id) { job -> Residence? in
                guard case .decoding(var residence) = job.phase, !residence.isAway else { return nil }
                residence.isAway = true
                job.phase = .decoding(residence)
                job.route.preemptions += residence.running ? 1 : 0
                job.route.swaps += 1
                return residence
            }
            guard let left else { return }
            counters.preempted += left.running ? 1 : 0
            counters.swappedOut += 1
            workers.change(left.worker.id) { _ = $0.away.insert(id) }
            needReplan(left.worker.id)
        case .back(let stall):
            let back = jobs.changeOptional(id) { job -> Residence? in
                guard case .decoding(var residence) = job.phase, residence.isAway else { return nil }
                residence.isAway = false
                job.phase = .decoding(residence)
                job.route.swapStall = job.route.swapStall + max(stall, .zero)
                return residence
            }
            guard let back else { return }
            counters.swappedBack += 1
            workers.change(back.worker.id) { _ = $0.away.remove(id) }
            needReplan(back.worker.id)
            expect(id, within: configuration.jobSilenceMax)
        }
    }

    /// Memory was taken from the job for another's sake, whose tenant pays for doing the work again
    /// (scheduling.md §4.3).
    mutating func displaced(_ id: JobID, for cause: TransferID?) {
        guard let cause, let tenant = jobs.read(cause.job, { $0.tenant }) else { return }
        jobs.change(id) { $0.displacedBy = tenant }
    }

    // MARK: What workers are told

    /// Residents of a worker by how soon each needs its memory: those that run, the one that would
    /// give way first last; then those that wait, the one that runs next first.
    func memoryOrder(of worker: Worker) -> [TransferID] {
        var (running, waiting): ([JobID], [JobID]) = ([], [])
        for id in worker.residents {
            guard case .decoding(let residence) = jobs.readOptional(id, { $0.phase }) else { continue }
            if residence.running { running.append(id) } else { waiting.append(id) }
        }
        let worstFirst = policy.victims(
            among: running.map { Holding(job: $0, units: 1) }, freeing: running.count, for: nil, at: now)
        let soonestFirst = policy.wakeOrder(of: waiting, slots: worker.register.batchJobsMax, at: now)
        return (worstFirst.reversed() + soonestFirst).compactMap { id in jobs.readOptional(id) { $0.transfer } }
    }

    /// A worker whose pool is nearly full, or that has written jobs out, goes by the order of now.
    mutating func refreshOrder(at ref: WorkerRef) {
        let isOrdered = configuration.policy.preemptsRunning
        let needs = workers.read(ref.id) { worker in
            worker.decodes && worker.residents.count > 1 && (isOrdered || worker.register.swapPages > 0)
                && (worker.load.swap.free < worker.load.swap.total
                    || worker.load.blocks.available * 8 < worker.register.blockCount)
        }
        guard needs ?? false, let worker = workers[ref.id] else { return }
        sendPlan(SetRunning(run: [], pause: [], order: memoryOrder(of: worker)), to: worker)
    }
}
