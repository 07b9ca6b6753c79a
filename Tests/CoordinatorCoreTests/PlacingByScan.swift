import Messages
import Scheduling
import ServingTypes

@testable import CoordinatorCore

/// Placing as it was before there was a tree: every worker is looked at, in order of names, and scored. The oracle
/// of `PlacingTests`. It knows no limit of full workers, so it agrees where there are no more than placing looks at.
struct PlacingByScan {
    let core: Coordinator
    let job: Job

    struct Candidates {
        var open: [PlacementCandidate] = []
        var registered = 0
        var able = 0
        var living = 0
        var refused = 0
        var busy = 0
    }

    private var blocks: Int { core.blocksNeeded(job.sequenceTokens + 1) }

    func place() -> Verdict {
        let sinks = candidates { $0 != .prefill }
        if sinks.able == 0, sinks.registered > 0 { return .never(ServingError(.contextTooLong, "")) }
        guard !sinks.open.isEmpty else { return sinks.refused > 0 && sinks.busy == 0 ? .hold : .wait }
        let sources = candidates { $0 == .prefill }
        let request = PlacementRequest(
            sequenceTokens: job.sequenceTokens, bytesPerToken: bytesPerToken,
            localOnly: sources.living == 0
                || job.transferFailures >= core.configuration.transferFailuresBeforeLocal)
        switch core.placement.place(request, prefill: sources.open, decode: sinks.open, costs: core.costs) {
        case .pair(let prefill, let decode): return .pair(prefill, decode)
        case .local(let worker): return .local(worker)
        case .none:
            if let worker = relief(sources, sinks) { return .local(worker) }
            return sources.refused > 0 && sources.busy == 0 ? .hold : .wait
        }
    }

    private var bytesPerToken: Double {
        let first = core.workers.all.first { $0.register.pageBytes > 0 }
        return first.map { Double($0.register.pageBytes) / Double(max($0.register.blockTokens, 1)) } ?? 0
    }

    private func candidates(where suits: (WorkerRole) -> Bool) -> Candidates {
        let prefixes = core.index.prefixLengths(of: job.names)
        var result = Candidates()
        for worker in core.workers.all where suits(worker.register.role) {
            let id = worker.ref.id
            result.registered += 1
            guard worker.register.blockCount >= blocks, !job.unfit.contains(id) else { continue }
            result.able += 1
            guard worker.state == .ready, !core.isInhibited(id) else { continue }
            result.living += 1
            if job.refusedBy.contains(id) {
                result.refused += 1
                continue
            }
            guard hasRoom(worker, core.blocksTaken(job, by: worker.register) - prefixes[id]) else {
                result.busy += 1
                continue
            }
            result.open.append(
                PlacementCandidate(
                    worker: worker.ref, role: worker.register.role, queuedTokens: worker.queuedTokens,
                    residentJobs: worker.jobs.count, cachedTokens: prefixes[id] * core.configuration.blockTokens,
                    avoided: job.avoided.contains(id)))
        }
        return result
    }

    private func hasRoom(_ worker: Worker, _ blocks: Int) -> Bool {
        if core.inhibitions[worker.ref.id] != nil { return worker.jobs.isEmpty }
        let configuration = core.configuration
        switch worker.register.role {
        case .prefill:
            if worker.prefills.isEmpty { return true }
            if worker.prefills.count < configuration.prefillWindowJobs,
                worker.queuedTokens + job.sequenceTokens <= configuration.prefillWindowTokens
            {
                return true
            }
            return worker.prefills.count <= configuration.prefillWindowJobs
                && core.precedes(job.id, prefillsOf: worker)
        case .decode, .mixed:
            return blocks + core.growthReserve(of: worker) <= worker.availableBlocks
                && core.hasPlace(worker, for: job, blocks: blocks)
        }
    }

    private func relief(_ sources: Candidates, _ sinks: Candidates) -> WorkerRef? {
        guard let rule = core.configuration.relief, sources.busy > 0 else { return nil }
        let ready = core.workers.all.filter { $0.register.role == .prefill && $0.state == .ready }
        let wait = Double(ready.map(\.queuedTokens).min() ?? 0) * core.costs.prefillPerToken
        guard wait >= rule.wait.seconds else { return nil }
        var best: (worker: WorkerRef, seconds: Double)?
        for sink in sinks.open where sink.role == .decode && !sink.avoided {
            guard (core.workers[sink.worker.id]?.prefills.count ?? .max) < rule.jobsPerWorker else { continue }
            let tokens = sink.queuedTokens + PlacementPolicy.uncachedTokens(sink, of: job.sequenceTokens)
            let seconds =
                Double(tokens) * core.costs.prefillPerToken * (sink.residentJobs > 0 ? rule.slowdown : 1)
            if let least = best?.seconds, least <= seconds { continue }
            best = (sink.worker, seconds)
        }
        let own = Double(job.sequenceTokens) * core.costs.prefillPerToken
        return best.flatMap { $0.seconds < wait + own ? $0.worker : nil }
    }
}
