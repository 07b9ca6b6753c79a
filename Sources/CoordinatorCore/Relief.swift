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
    /// How much slower a prompt is computed beside jobs that decode, to compare the two ways; at least 1.
    public var slowdown = 1.5

    public init(wait: TimeSpan) { self.wait = wait }
}

extension Coordinator {
    /// The decode worker that takes this prompt in though it is long; nil where it had better wait.
    /// To be asked when every prefill worker that could compute it is busy.
    func relief(for search: Placing) -> WorkerRef? {
        guard let rule = configuration.relief else { return nil }
        let wait = Double(leastPrefillQueue) * costs.prefillPerToken
        guard wait >= rule.wait.seconds else { return nil }
        let own = Double(search.job.sequenceTokens) * costs.prefillPerToken
        let (best, _) = cheapestSink(search, .decode, notDearerThan: wait + own) {
            reliefSeconds(
                tokens: $0.queuedTokens.addingReportingOverflow(max(search.job.sequenceTokens, 1)).partialValue,
                isAlone: $0.jobs == 0, rule)
        } suits: { position in
            workers.all[position].prefills.count < rule.jobsPerWorker
        }
        var places = search.sinks.filter { $0.candidate.role == .decode && !$0.candidate.avoided }
        if let best { places.append((best, candidate(best, search))) }
        var least: (worker: WorkerRef, seconds: Double)?
        for (position, sink) in places.sorted(by: { $0.position < $1.position }) {
            guard workers.all[position].prefills.count < rule.jobsPerWorker else { continue }
            let tokens = sink.queuedTokens + PlacementPolicy.uncachedTokens(sink, of: search.job.sequenceTokens)
            let seconds = reliefSeconds(tokens: tokens, isAlone: sink.residentJobs == 0, rule)
            if let least, least.seconds <= seconds { continue }
            least = (sink.worker, seconds)
        }
        return least.flatMap { $0.seconds < wait + own ? $0.worker : nil }
    }

    private func reliefSeconds(tokens: Int, isAlone: Bool, _ rule: ReliefConfiguration) -> Double {
        Double(tokens) * costs.prefillPerToken * (isAlone ? 1 : max(rule.slowdown, 1))
    }

    /// Tokens before a prefill worker could begin with another prompt.
    private var leastPrefillQueue: Int {
        WorkerLane.Opening.allCases.compactMap { workers.tree(.prefill, $0).least?.queuedTokens }.min() ?? 0
    }
}
