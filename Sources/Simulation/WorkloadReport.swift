import ServingTypes

/// Mean and percentiles of a sample; percentiles are values of the sample (nearest rank).
public struct Spread: Hashable, Sendable {
    public var count: Int
    public var mean: Double
    public var p50: Double
    public var p90: Double
    public var p95: Double
    public var p99: Double
    public var max: Double

    public init(_ values: [Double]) {
        let sorted = values.sorted()
        func rank(_ share: Double) -> Double {
            guard !sorted.isEmpty else { return 0 }
            let rank = Int((share * Double(sorted.count)).rounded(.up))
            return sorted[Swift.min(Swift.max(rank - 1, 0), sorted.count - 1)]
        }
        count = sorted.count
        mean = sorted.isEmpty ? 0 : sorted.reduce(0, +) / Double(sorted.count)
        (p50, p90, p95, p99) = (rank(0.5), rank(0.9), rank(0.95), rank(0.99))
        max = sorted.last ?? 0
    }

    /// Of samples that were not kept: their quantiles are not known and 0.
    init(count: Int, mean: Double, max: Double) {
        (self.count, self.mean, self.max) = (count, mean, max)
        (p50, p90, p95, p99) = (0, 0, 0, 0)
    }
}

/// Limits that a served job must meet to count, in seconds.
public struct ServiceObjective: Hashable, Sendable {
    public var timeToFirstToken: Double
    public var timePerToken: Double

    public init(timeToFirstToken: Double, timePerToken: Double) {
        self.timeToFirstToken = timeToFirstToken
        self.timePerToken = timePerToken
    }
}

/// What a workload came to. Times in seconds.
public struct WorkloadReport: Sendable {
    public var jobs = 0
    public var finished = 0
    public var failed = 0
    /// From the first arrival to the last end.
    public var seconds = 0.0
    public var promptTokens = 0
    public var outputTokens = 0
    public var cachedTokens = 0
    public var recomputedTokens = 0
    public var timeToFirstToken = Spread([])
    public var timePerToken = Spread([])
    public var completion = Spread([])
    /// Completion time over output tokens, per job.
    public var normalized = Spread([])
    /// Jobs that met both limits, and these per second.
    public var metObjective = 0
    public var goodput = 0.0
    /// Finished jobs that missed one of them, those of a warm-up left out.
    public var missedObjective = 0
    /// Share of the time that the workers of a role were in a step.
    public var utilisation: [(role: WorkerRole, workers: Int, share: Double)] = []
    /// Seconds for which steps of all workers waited for pages on their way, where they do.
    public var swapWaitSeconds = 0.0
    public var preemptions: UInt64 = 0
    public var requeues: UInt64 = 0
    public var transfers: UInt64 = 0
    public var kvBytes: UInt64 = 0
    /// Prompt and output tokens served per tenant, by name.
    public var tenants: [(tenant: String, jobs: Int, tokens: Int, meanFirstToken: Double)] = []
    /// Every finished job, where the run was asked to keep them.
    public var records: [JobRecord] = []
    /// Refused on arrival, by a limit on rates or queues.
    public var refused = 0
    public var events: UInt64 = 0
    public var digest: UInt64 = 0
    /// A broken promise of the simulator's checks; nil in every sound run.
    public var failure: String?

    public init() {}
}
