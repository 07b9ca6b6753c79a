import CoordinatorCore
import ServingTypes

/// One worker of a simulated cluster.
public struct SimulatedWorker: Hashable, Sendable {
    public var role: WorkerRole
    public var blockCount: Int
    public var batchJobsMax: Int
    public var stepTokensMax: Int
    public var prefillChunkTokens: Int
    /// Jobs that its core takes at once.
    public var jobsMax: Int
    /// Pages of a decoding worker's host tier; 0: none.
    public var swapPages = 0
    /// Whether pages go there and come back before it is needed.
    public var swapsAhead = true
    public var reservesWholeJobs = false
    /// How long a decoding worker's step with prompt in it should take at most: in time, and in multiples
    /// of one that only decodes; nil: as long as its tokens take.
    public var stepLimit: TimeSpan?
    public var stepStretch: Double?

    public init(
        role: WorkerRole, blockCount: Int, batchJobsMax: Int, stepTokensMax: Int, prefillChunkTokens: Int, jobsMax: Int
    ) {
        self.role = role
        self.blockCount = blockCount
        self.batchJobsMax = batchJobsMax
        self.stepTokensMax = stepTokensMax
        self.prefillChunkTokens = prefillChunkTokens
        self.jobsMax = jobsMax
    }
}

/// The links between all processes while nothing is wrong with them.
public struct SimulatedNetwork: Hashable, Sendable {
    public var latency: TimeSpan = .microseconds(50)
    /// On page links; nil: the same.
    public var pageLatency: TimeSpan?
    /// Added uniformly, per message; a link stays in order.
    public var jitter: TimeSpan = .zero
    /// Of one page link.
    public var bytesPerSecond = 25e9
    /// Pages may go through the coordinator where two workers cannot reach each other.
    public var hasRelay = true

    public init() {}
}

/// What one simulation runs.
public struct SimulationConfiguration: Sendable {
    public var seed: UInt64
    public var workers: [SimulatedWorker]
    public var coordinator: CoordinatorConfiguration
    public var profile: CostProfile
    public var network = SimulatedNetwork()
    public var blockTokens = 16
    public var pageBytes: Int
    /// Longest sequence that workers accept.
    public var contextTokensMax = 1 << 20
    public var creditPages = 64
    /// How often the drivers let time pass.
    public var tick: TimeSpan = .milliseconds(25)
    public var orphanGrace: TimeSpan = .seconds(30)
    /// What the machines' clocks read; as it is, all read true time.
    public var clocks = ClockPlan()
    /// Between a worker's pool and its host tier, and how many moves in a hundred fail.
    public var swapBytesPerSecond = 12e9
    public var swapFailPercent = 0
    /// An engine that moves pages on its way: no step begins while a move is under way. Ours move pages
    /// beside their steps.
    public var stepsWaitForSwaps = false
    public var bufferedTokensMax = 4096
    /// Iterations take between half and twice their time.
    public var variesSteps = false
    /// An engine's own rule of admission, told what happens to its jobs.
    public var reservation: PeakReservation?
    /// Every core audits itself, and the engine reads every block, on every step.
    public var audits = false
    /// How pages are named, by whom they may be shared.
    var naming = SimulatedNaming()

    public init(
        seed: UInt64, workers: [SimulatedWorker], coordinator: CoordinatorConfiguration, profile: CostProfile,
        pageBytes: Int
    ) {
        self.seed = seed
        self.workers = workers
        self.coordinator = coordinator
        self.profile = profile
        self.pageBytes = pageBytes
    }
}

/// One request, as its client and the simulator know it.
public struct SimulatedRequest: Hashable, Sendable {
    public var arrival: Instant
    public var tenant: TenantID
    public var prompt: [TokenID]
    /// Output tokens after which the model ends; the last one is the end token.
    public var length: Int
    /// Output tokens that the client allows.
    public var maxTokens: Int
    public var priority = 0
    /// Survives a crash of the coordinator.
    public var isKeyed = false
    /// A stop string is found when this many tokens have come.
    public var stopAfter: Int?
    /// The client leaves this long after its arrival.
    public var cancelAfter: TimeSpan?
    /// By when the client would like its first token, and by when the whole answer must be there.
    public var due: TimeSpan?
    public var deadline: TimeSpan?

    public init(arrival: Instant, tenant: TenantID, prompt: [TokenID], length: Int, maxTokens: Int) {
        self.arrival = arrival
        self.tenant = tenant
        self.prompt = prompt
        self.length = length
        self.maxTokens = maxTokens
    }

    /// Tokens that come if nobody intervenes.
    var outputTokens: Int { max(min(length, maxTokens), 1) }
}
