import CoordinatorCore
import Scheduling
import ServingTypes

/// A cluster's shape and rules for a workload without faults.
public struct ClusterShape: Sendable {
    public var prefill = 1
    public var decode = 1
    public var mixed = 0
    public var profile = CostProfile.a100OPT13B
    public var policy = PolicyConfiguration()
    public var blockTokens = 16
    /// Jobs in one iteration; nil takes the profile's. Likewise the others.
    public var batchJobsMax: Int?
    public var stepTokensMax: Int?
    public var poolTokens: Int?
    /// Prompts with fewer uncached tokens are prefilled where they decode; 0 never.
    public var localPrefillThreshold = 0
    public var tick: TimeSpan = .milliseconds(100)
    /// Jobs resident on a decoding worker in percent of its slots; nil takes the coordinator's default.
    public var residencyPercent: Int?
    /// Tokens that the host tier of each decoding worker holds; 0: no tier, jobs that give way are
    /// computed again. Its bandwidth in bytes per second.
    public var swapTokens = 0
    public var swapBytesPerSecond = 12e9
    public var swapsAhead = true
    /// No step begins while pages move (`SimulationConfiguration.stepsWaitForSwaps`).
    public var stepsWaitForSwaps = false
    /// When decode workers take long prompts, and what a step with prompt beside decoding jobs may take
    /// there; jobs that a prefill worker is given at once, nil: the coordinator's default.
    public var relief: ReliefConfiguration?
    public var stepLimit: TimeSpan?
    public var stepStretch: Double?
    public var prefillWindowJobs: Int?
    /// How often workers tell their free blocks; nil takes the coordinator's default.
    public var heartbeatEvery: TimeSpan?
    /// Under LightLLM's rule of admission, so many tokens are one engine's memory (`PeakReservation`).
    public var reservedTokens: Int?
    /// A fault-free run needs no detectors; a crash of a worker does.
    public var faults: [(seconds: Double, fault: WorkloadFault)] = []

    public init() {}

    func configuration(seed: UInt64) -> SimulationConfiguration {
        let blocks = max((poolTokens ?? profile.poolTokens) / max(blockTokens, 1), 1)
        let steps = stepTokensMax ?? profile.stepTokensMax
        func workers(_ role: WorkerRole, _ count: Int) -> [SimulatedWorker] {
            Array(
                repeating: SimulatedWorker(
                    role: role, blockCount: blocks, batchJobsMax: batchJobsMax ?? profile.batchJobsMax,
                    stepTokensMax: steps, prefillChunkTokens: min(profile.chunkTokensMax ?? steps, steps), jobsMax: 1024
                ), count: count)
        }
        var result = SimulationConfiguration(
            seed: seed, workers: workers(.prefill, prefill) + workers(.decode, decode) + workers(.mixed, mixed),
            coordinator: coordinator, profile: profile, pageBytes: profile.bytesPerToken * blockTokens)
        for index in result.workers.indices where result.workers[index].role != .prefill {
            result.workers[index].swapPages = swapTokens / max(blockTokens, 1)
            result.workers[index].swapsAhead = swapsAhead
            guard result.workers[index].role == .decode else { continue }
            (result.workers[index].stepLimit, result.workers[index].stepStretch) = (stepLimit, stepStretch)
        }
        result.stepsWaitForSwaps = stepsWaitForSwaps
        result.swapBytesPerSecond = swapBytesPerSecond
        result.blockTokens = blockTokens
        result.tick = tick
        if let reservedTokens {
            let reservation = PeakReservation(tokensMax: reservedTokens)
            result.reservation = reservation
            result.coordinator.roomRule = reservation
        }
        result.network.latency = profile.linkLatency
        result.network.pageLatency = profile.pageLatency
        result.network.bytesPerSecond = profile.linkBytesPerSecond
        return result
    }

    private var coordinator: CoordinatorConfiguration {
        var coordinator = CoordinatorConfiguration()
        coordinator.policy = policy
        coordinator.blockTokens = blockTokens
        coordinator.placement.localPrefillThreshold = localPrefillThreshold
        coordinator.placement.linkBytesPerSecond = profile.linkBytesPerSecond
        coordinator.queuedJobsMax = .max
        coordinator.queuedJobsPerTenantMax = .max
        coordinator.workersMax = max(prefill + decode + mixed, 1)
        coordinator.defaultDeadline = .seconds(1_000_000_000)
        coordinator.endedJobsMax = 16
        coordinator.endedTokensMax = 1 << 16
        coordinator.relief = relief
        if let prefillWindowJobs { coordinator.prefillWindowJobs = prefillWindowJobs }
        if let heartbeatEvery { coordinator.heartbeatEvery = heartbeatEvery }
        if let residencyPercent { coordinator.decodeResidencyPercent = residencyPercent }
        return coordinator
    }
}

/// A fault that a workload can be given.
public enum WorkloadFault: Hashable, Sendable {
    /// The worker's process ends and is started anew.
    case crash(worker: String, restartAfter: Double)
}
