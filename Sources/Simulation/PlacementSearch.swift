import CoordinatorCore
import ServingTypes

/// How many workers of each role, and with which budgets, serve the most requests within their limits:
/// DistServe's question, asked of the production cores. Goodput is the highest Poisson rate at which
/// at least `attainment` of the requests meet both limits.
public struct PlacementSearch {
    public var shape: ClusterShape
    public var workload: Workload
    public var objective: ServiceObjective
    public var workersMax: Int
    /// Tokens of one iteration, and jobs of one iteration, that are tried.
    public var stepTokens: [Int]
    public var batches: [Int]
    public var attainment = 0.9
    public var seed: UInt64
    /// Rates closer than this share are the same.
    public var precision = 0.04
    /// Requests of one probe: these seconds of arrivals, within bounds. The first third fills the
    /// cluster and is not judged.
    public var probeSeconds = 36.0
    public var probeJobs = 240...6000

    public struct Candidate: Hashable, Sendable {
        public var prefill: Int
        public var decode: Int
        public var mixed: Int
        public var stepTokens: Int
        public var batch: Int

        public init(prefill: Int, decode: Int, mixed: Int, stepTokens: Int, batch: Int) {
            (self.prefill, self.decode, self.mixed) = (prefill, decode, mixed)
            (self.stepTokens, self.batch) = (stepTokens, batch)
        }

        public var workers: Int { prefill + decode + mixed }
        public var name: String { mixed > 0 ? "\(mixed) mixed" : "\(prefill) prefill, \(decode) decode" }
    }

    public struct Outcome: Hashable, Sendable {
        public var candidate: Candidate
        /// Requests per second; where pruned, a rate that it does not reach.
        public var goodput: Double
        public var isPruned: Bool
        public var probes: Int
        /// At the goodput.
        public var timeToFirstTokenP90 = 0.0
        public var timePerTokenP90 = 0.0
    }

    public init(
        shape: ClusterShape, workload: Workload, objective: ServiceObjective, workersMax: Int, seed: UInt64
    ) {
        self.shape = shape
        self.workload = workload
        self.objective = objective
        self.workersMax = workersMax
        self.seed = seed
        let steps = shape.stepTokensMax ?? shape.profile.stepTokensMax
        let batch = shape.batchJobsMax ?? shape.profile.batchJobsMax
        stepTokens = Array(Set([max(steps / 4, 64), steps])).sorted()
        batches = Array(Set([max(batch / 4, 1), batch])).sorted()
    }

    /// Every candidate, best first. Prefill workers form no decoding batches, so only the decoding
    /// side is tried with several.
    public func run(progress: (String) -> Void) -> [Outcome] {
        var best = 0.0
        var outcomes: [Outcome] = []
        for candidate in candidates() {
            progress("\(candidate.name), \(candidate.stepTokens) tokens, \(candidate.batch) jobs")
            let outcome = search(candidate, toBeat: best)
            best = max(best, outcome.isPruned ? 0 : outcome.goodput)
            outcomes.append(outcome)
        }
        return outcomes.enumerated().sorted {
            ($0.element.isPruned ? 1 : 0, -$0.element.goodput, $0.offset)
                < ($1.element.isPruned ? 1 : 0, -$1.element.goodput, $1.offset)
        }.map(\.element)
    }

    /// Likely winners first, so that the others are pruned by one probe.
    func candidates() -> [Candidate] {
        var result: [Candidate] = []
        for (prefill, decode, mixed) in splits() {
            for steps in stepTokens {
                for batch in batches {
                    result.append(
                        Candidate(prefill: prefill, decode: decode, mixed: mixed, stepTokens: steps, batch: batch))
                }
            }
        }
        return result.enumerated().sorted { a, b in
            let (first, second) = (ceiling(a.element), ceiling(b.element))
            return first == second ? a.offset < b.offset : first > second
        }.map(\.element)
    }

    private func splits() -> [(Int, Int, Int)] {
        let split = workersMax < 2 ? [] : (1..<workersMax).map { ($0, workersMax - $0, 0) }
        return split + [(0, 0, workersMax)]
    }

    /// Requests per second that the cost model allows at most, without queueing: the order of the search.
    public func ceiling(_ candidate: Candidate) -> Double {
        let (input, output) = meanLengths
        var prompt = CostProfile.Work()
        prompt.prefillTokens = Int(input)
        prompt.prefillSquares = input * input
        let prefillSeconds = max(shape.profile.time(of: prompt).seconds, 1e-9)
        let batch = max(min(candidate.batch, Int(Double(poolTokens) / max(input + output, 1))), 1)
        var step = CostProfile.Work()
        step.decodeJobs = batch
        step.contextTokens = Int(Double(batch) * (input + output / 2))
        let decodeSeconds = shape.profile.time(of: step).seconds * output / Double(batch)
        if candidate.mixed > 0 { return Double(candidate.mixed) / (prefillSeconds + decodeSeconds) }
        return min(Double(candidate.prefill) / prefillSeconds, Double(candidate.decode) / max(decodeSeconds, 1e-9))
    }

    private var poolTokens: Int { shape.poolTokens ?? shape.profile.poolTokens }

    private var meanLengths: (Double, Double) {
        let source = workload.requests(seed: seed)
        var (count, input, output) = (0.0, 0.0, 0.0)
        while count < 500, let request = source() {
            count += 1
            input += Double(request.prompt.count)
            output += Double(request.outputTokens)
        }
        return count > 0 ? (input / count, output / count) : (1, 1)
    }

    // MARK: One candidate

    private func search(_ candidate: Candidate, toBeat best: Double) -> Outcome {
        var outcome = Outcome(candidate: candidate, goodput: 0, isPruned: false, probes: 0)
        func holds(_ rate: Double) -> Bool {
            outcome.probes += 1
            guard let report = probe(candidate, rate) else { return false }
            outcome.goodput = rate
            outcome.timeToFirstTokenP90 = report.timeToFirstToken.p90
            outcome.timePerTokenP90 = report.timePerToken.p90
            return true
        }
        let ceiling = max(ceiling(candidate), 1e-6) * 1.3
        let goal = best * (1 + precision)
        if best > 0, goal > ceiling || !holds(goal) {
            outcome.isPruned = true
            outcome.goodput = min(goal, ceiling)
            return outcome
        }
        var (low, high) = (outcome.goodput, ceiling)
        // A limit below what an idle cluster takes is met at no rate.
        if low == 0, !holds(ceiling / 64) { return outcome }
        low = max(low, outcome.goodput)
        while high - low > precision * high, outcome.probes < 16 {
            let middle = (low + high) / 2
            if holds(middle) { low = middle } else { high = middle }
        }
        return outcome
    }

    /// The report, where enough requests met their limits; nil as soon as that is out of reach.
    private func probe(_ candidate: Candidate, _ rate: Double) -> WorkloadReport? {
        var shape = shape
        (shape.prefill, shape.decode, shape.mixed) = (candidate.prefill, candidate.decode, candidate.mixed)
        (shape.stepTokensMax, shape.batchJobsMax) = (candidate.stepTokens, candidate.batch)
        var workload = workload
        workload.rate = rate
        if workload.trace.isEmpty {
            workload.jobs = min(max(Int(rate * probeSeconds), probeJobs.lowerBound), probeJobs.upperBound)
        } else {
            workload.speed = rate / max(recordedRate, 1e-9)
            workload.jobs = min(workload.trace.count, probeJobs.upperBound)
        }
        let warmup = workload.jobs / 3
        let missesMax = Int((1 - attainment) * Double(workload.jobs - warmup))
        let report = WorkloadRun.run(
            shape, workload, seed: seed, objective: objective, missesMax: missesMax, warmupJobs: warmup)
        return report.missedObjective <= missesMax && report.finished == workload.jobs ? report : nil
    }

    private var recordedRate: Double {
        guard let last = workload.trace.last?.arrivalSeconds, last > 0 else { return 1 }
        return Double(workload.trace.count) / last
    }
}
