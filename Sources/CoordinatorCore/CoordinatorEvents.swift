import Messages
import Scheduling
import ServingTypes

/// What happens to the coordinator.
public enum CoordinatorEvent: Sendable {
    /// A request passed the front door's checks. Answered by `jobAdmitted` or `jobRefused`.
    case submitted(JobSubmission)
    /// The client went away, asked for it, or its deadline passed.
    case cancelled(JobID, Cancel.Reason)
    /// The front door met a stop string: the job is done, `outputTokens` of its tokens count.
    case stopMatched(JobID, outputTokens: Int)
    /// Job read back from the journal after a restart: queued again under a higher attempt, with
    /// the tokens that were logged as given. Nobody may be listening.
    case recovered(JobSubmission, attempt: Attempt)
    case workerUp(WorkerRef, Register)
    case workerDown(WorkerRef)
    case workerMessage(WorkerRef, Message)
    /// Scale down: no new work for this worker; answered by `workerDrained`.
    case drain(WorkerID, deadline: TimeSpan)
    case tick
}

/// What the core asks its driver to do, in order.
public enum CoordinatorAction: Sendable {
    case send(WorkerRef, Message)
    /// This incarnation is stale, dead or unlawful: drop its link.
    case closeLink(WorkerRef)
    case jobAdmitted(JobID)
    case jobRefused(JobID, ServingError)
    /// Already in the token log. `offset` is the output offset of the first of these tokens.
    case emit(JobID, offset: Int, tokens: [SampledToken])
    case jobFinished(JobOutcome)
    /// Drained and holding nothing; its process may be stopped.
    case workerDrained(WorkerID)
    /// For the log: something an operator wants to know, rate-limited by nature (an edge, not a loop).
    case note(CoordinatorNote)
}

/// Edges worth a log line.
public enum CoordinatorNote: Sendable, Hashable {
    case workerJoined(WorkerRef, WorkerRole)
    case workerLost(WorkerRef, jobsRequeued: Int)
    case workerSuspected(WorkerRef, silence: TimeSpan)
    case workerStalled(WorkerRef, silence: TimeSpan)
    case jobRequeued(TransferID, reason: String)
    case jobPoisoned(JobID, deaths: Int)
    case transferFailed(TransferID, TransferFailed.Reason)
}

/// One admitted-to-be job. The driver makes the id; the front door has checked the ranges.
public struct JobSubmission: Hashable, Sendable {
    public var job: JobID
    public var tenant: TenantID
    /// Whose pages it may share: the tenant's, or those of a name derived from tenant and `cache_salt`.
    /// Workers know jobs by this name only; it names pages, nothing else.
    public var pageSpace: TenantID
    public var promptTokens: [TokenID]
    /// Content addresses of the prompt's full blocks, named by the driver.
    public var pageIDs: [PageID]
    public var sampling: SamplingParameters
    /// A hint inside a tenant, never across: lower runs first.
    public var priority: Int
    /// Counted from submission; nil takes the configured default.
    public var deadline: TimeSpan?
    /// Present where the client asked for exactly-once (reliability.md §2.4).
    public var idempotencyKey: String?
    /// Output already logged before a coordinator restart; empty otherwise.
    public var emitted: [SampledToken]
    /// A hint inside a tenant, never across: by when, counted from submission, the client would like
    /// its first token. Not a `deadline`: nothing ends when it passes, the hint is forgotten.
    public var due: TimeSpan?
    /// A guess of the output's length for policies that order by it; nil takes what was learned.
    public var predictedOutputTokens: Int?
    /// The output's true length, which only a simulation knows; clairvoyant policies need it.
    public var knownOutputTokens: Int?
    /// What an earlier coordinator has charged for this job: done again, it is charged to nobody.
    public var accounted: JobUsage?

    public init(
        job: JobID, tenant: TenantID, promptTokens: [TokenID], pageIDs: [PageID], sampling: SamplingParameters,
        priority: Int = 0, deadline: TimeSpan? = nil, idempotencyKey: String? = nil, emitted: [SampledToken] = [],
        pageSpace: TenantID? = nil, due: TimeSpan? = nil, predictedOutputTokens: Int? = nil,
        knownOutputTokens: Int? = nil
    ) {
        self.job = job
        self.tenant = tenant
        self.pageSpace = pageSpace ?? tenant
        self.promptTokens = promptTokens
        self.pageIDs = pageIDs
        self.sampling = sampling
        self.priority = priority
        self.deadline = deadline
        self.idempotencyKey = idempotencyKey
        self.emitted = emitted
        self.due = due
        self.predictedOutputTokens = predictedOutputTokens
        self.knownOutputTokens = knownOutputTokens
    }
}

/// How a job ended, and everything one wants to know about it.
public struct JobOutcome: Hashable, Sendable {
    public var job: JobID
    public var tenant: TenantID
    public var ending: JobEnding
    public var usage: JobUsage
    public var stamps: JobStamps
    public var route: JobRoute

    public init(
        job: JobID, tenant: TenantID, ending: JobEnding, usage: JobUsage, stamps: JobStamps, route: JobRoute
    ) {
        self.job = job
        self.tenant = tenant
        self.ending = ending
        self.usage = usage
        self.stamps = stamps
        self.route = route
    }
}

public enum JobEnding: Hashable, Sendable {
    case finished(FinishReason)
    case failed(ServingError)

    /// Whether the output came to its natural end, so that its length tells of others to come.
    var isCompletion: Bool {
        switch self {
        case .finished(.stop), .finished(.length): true
        case .finished(.cancelled), .finished(.failed), .failed: false
        }
    }
}

/// Tokens by what was done with them.
public struct JobUsage: Hashable, Sendable {
    public var promptTokens: Int = 0
    public var outputTokens: Int = 0
    /// Prompt tokens computed, each once: what is charged.
    public var computedTokens: Int = 0
    /// Prompt tokens not computed because their pages were held.
    public var cachedTokens: Int = 0
    /// Tokens computed again after a loss or an eviction.
    public var recomputedTokens: Int = 0
    /// Of a tenant: tokens of others computed again because its jobs took their memory, charged to it.
    public var causedTokens: Int = 0

    public init() {}
}

/// Each edge of the lifecycle; every latency is a difference of two of these (design §4).
public struct JobStamps: Hashable, Sendable {
    public var received: Instant
    public var queued: Instant?
    public var placed: Instant?
    public var reserved: Instant?
    public var prefilling: Instant?
    public var firstToken: Instant?
    public var transferring: Instant?
    public var decoding: Instant?
    public var secondToken: Instant?
    public var finished: Instant?

    public init(received: Instant) { self.received = received }
}

/// Where a job's last attempt ran, and what its pages cost.
public struct JobRoute: Hashable, Sendable {
    public var prefill: WorkerID?
    public var decode: WorkerID?
    public var attempts: Int = 0
    public var preemptions: Int = 0
    /// Bytes of pages that travelled for this job, over all attempts.
    public var kvBytesMoved: UInt64 = 0
    public var blocksReused: Int = 0
    /// How often its pages left for the host tier while it should have run, and for how long it
    /// could not run for want of them.
    public var swaps: Int = 0
    public var swapStall: TimeSpan = .zero

    public init() {}
}

/// One job as a person sees it.
public struct JobView: Hashable, Sendable {
    public var job: JobID
    public var tenant: TenantID
    public var phase: JobPhase
    public var usage: JobUsage
    public var stamps: JobStamps
    public var route: JobRoute
    public var ending: JobEnding?

    public init(
        job: JobID, tenant: TenantID, phase: JobPhase, usage: JobUsage, stamps: JobStamps, route: JobRoute,
        ending: JobEnding?
    ) {
        self.job = job
        self.tenant = tenant
        self.phase = phase
        self.usage = usage
        self.stamps = stamps
        self.route = route
        self.ending = ending
    }
}

/// The lifecycle's names (design §4), without their data.
public enum JobPhase: String, Hashable, Sendable, CaseIterable {
    case queued
    case placing
    case reserved
    case prefilling
    case transferring
    case decoding
    case paused
    case finished
}

/// One worker as a person sees it.
public struct WorkerView: Hashable, Sendable {
    public var worker: WorkerRef
    public var role: WorkerRole
    public var state: WorkerHealth
    public var processID: Int32
    public var dataEndpoint: String
    public var assignedJobs: Int
    public var blockTokens: Int
    public var pageBytes: Int
    public var load: LoadReport

    public init(
        worker: WorkerRef, role: WorkerRole, state: WorkerHealth, processID: Int32, dataEndpoint: String,
        assignedJobs: Int, blockTokens: Int, pageBytes: Int, load: LoadReport
    ) {
        self.worker = worker
        self.role = role
        self.state = state
        self.processID = processID
        self.dataEndpoint = dataEndpoint
        self.assignedJobs = assignedJobs
        self.blockTokens = blockTokens
        self.pageBytes = pageBytes
        self.load = load
    }
}

public enum WorkerHealth: String, Hashable, Sendable, CaseIterable {
    case ready
    case suspect
    case inhibited
    case draining
    case drained
}

/// One tenant's standing.
public struct TenantView: Hashable, Sendable {
    public var tenant: TenantID
    public var weight: Double
    public var virtualCounter: Double
    public var queuedJobs: Int
    public var runningJobs: Int
    public var usage: JobUsage

    public init(
        tenant: TenantID, weight: Double, virtualCounter: Double, queuedJobs: Int, runningJobs: Int, usage: JobUsage
    ) {
        self.tenant = tenant
        self.weight = weight
        self.virtualCounter = virtualCounter
        self.queuedJobs = queuedJobs
        self.runningJobs = runningJobs
        self.usage = usage
    }
}

/// Monotonic counts since the coordinator started.
public struct CoordinatorCounters: Hashable, Sendable {
    public var admitted: UInt64 = 0
    public var refused: UInt64 = 0
    public var finishedStop: UInt64 = 0
    public var finishedLength: UInt64 = 0
    public var cancelled: UInt64 = 0
    public var failed: UInt64 = 0
    public var requeued: UInt64 = 0
    public var preempted: UInt64 = 0
    /// Running jobs whose pages left for a worker's host tier, and came back.
    public var swappedOut: UInt64 = 0
    public var swappedBack: UInt64 = 0
    public var workersLost: UInt64 = 0
    public var transfersCommitted: UInt64 = 0
    public var transfersFailed: UInt64 = 0
    public var kvBytesMoved: UInt64 = 0
    public var staleMessagesDropped: UInt64 = 0
    public var duplicateTokensDropped: UInt64 = 0
    public var promptTokens: UInt64 = 0
    public var cachedTokens: UInt64 = 0
    public var outputTokens: UInt64 = 0
    public var recomputedTokens: UInt64 = 0
    public var decodedLocally: UInt64 = 0

    public init() {}
}

/// Everything `tandem status` shows; workers, tenants sorted by name, jobs newest first.
public struct ClusterSnapshot: Hashable, Sendable {
    public var policy: String
    public var workers: [WorkerView]
    public var tenants: [TenantView]
    public var queuedJobs: Int
    public var liveJobs: Int
    public var counters: CoordinatorCounters

    public init(
        policy: String, workers: [WorkerView], tenants: [TenantView], queuedJobs: Int, liveJobs: Int,
        counters: CoordinatorCounters
    ) {
        self.policy = policy
        self.workers = workers
        self.tenants = tenants
        self.queuedJobs = queuedJobs
        self.liveJobs = liveJobs
        self.counters = counters
    }
}
