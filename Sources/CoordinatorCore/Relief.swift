import Scheduling
import ServingTypes

/// Conditional disaggregation: where prompts wait for a prefill worker longer than decode workers need
/// to take one in themselves, they do. It moves capacity to where the load is, as prompts are long and
/// outputs short; `stepLimit` of the workers bounds what it costs those that decode there.
public struct ReliefConfiguration: Hashable, Sendable {
    /// A prompt whose turn it is and that would wait longer than this goes where it decodes.
    public var wait: TimeSpan
    /// Such prompts that one decode worker computes at one time.
    public var jobsPerWorker = 1
    /// How much slower a prompt is computed beside jobs that decode, to compare the two ways.
    public var slowdown = 1.5

    public init(wait: TimeSpan) { self.wait = wait }
}

extension Coordinator {
    /// The decode worker that takes this prompt in though it is long; nil where it had better wait.
    /// To be asked when no prefill worker has room.
    func relief(for job: Job, sources: Candidates, sinks: Candidates) -> WorkerRef? {
        guard let rule = configuration.relief, sources.busy > 0 else { return nil }
        let wait = Double(leastPrefillQueue) * costs.prefillPerToken
        guard wait >= rule.wait.seconds else { return nil }
        var best: (worker: WorkerRef, seconds: Double)?
        for sink in sinks.open where sink.role == .decode && !sink.avoided {
            guard (workers.read(sink.worker.id) { $0.prefills.count } ?? .max) < rule.jobsPerWorker else { continue }
            let tokens = sink.queuedTokens + PlacementPolicy.uncachedTokens(sink, of: job.sequenceTokens)
            let seconds = Double(tokens) * costs.prefillPerToken * (sink.residentJobs > 0 ? rule.slowdown : 1)
            if let least = best?.seconds, least <= seconds { continue }
            best = (sink.worker, seconds)
        }
        let own = Double(job.sequenceTokens) * costs.prefillPerToken
        return best.flatMap { $0.seconds < wait + own ? $0.worker : nil }
    }

    /// Tokens before a prefill worker could begin with another prompt.
    private var leastPrefillQueue: Int {
        var least = Int.max
        for lane in workers.lanes where lane.role == .prefill && lane.isReady {
            least = min(least, lane.queuedTokens)
        }
        return least == .max ? 0 : least
    }
}
