import Messages
import Scheduling
import ServingTypes

/// An engine's own rule of admission, beside its free blocks and slots: simulations give their workers
/// the memory rules of other systems. Asked for the job whose turn it is, on a worker with room.
public protocol RoomRule: Sendable {
    func admits(_ job: JobID, on worker: WorkerRef) -> Bool
}

/// Every constant of the coordinator's core. Defaults follow reliability.md §2.3.
public struct CoordinatorConfiguration: Sendable {
    public var policy = PolicyConfiguration()
    public var placement = PlacementConfiguration()
    /// Tokens of one block; a worker that registers another size is refused.
    public var blockTokens = 16
    public var kvPath = KVPath.auto

    // Bounds.
    /// Jobs that wait for a worker, in all and of one tenant; more are refused with `queue_full`.
    public var queuedJobsMax = 1024
    public var queuedJobsPerTenantMax = 256
    public var tenantsMax = 4096
    public var workersMax = 256
    /// Ended jobs that are remembered for attach and list, and their tokens in all.
    public var endedJobsMax = 1024
    public var endedTokensMax = 1 << 20
    /// (page, worker) pairs of the prefix index.
    public var indexedPagesMax = 1 << 18

    // Admission.
    public var defaultDeadline: TimeSpan = .seconds(600)
    /// Refuse at once while no worker lives that could decode; otherwise such jobs wait.
    public var refuseWithoutWorkers = false
    /// Told to clients that are refused for now.
    public var retryAfterSeconds = 1

    // Detectors.
    public var heartbeatEvery: TimeSpan = .milliseconds(250)
    public var suspectAfter: TimeSpan = .seconds(1)
    public var deadAfter: TimeSpan = .seconds(3)
    /// Workers take no new work after this silence of the coordinator.
    public var workerLease: TimeSpan = .seconds(10)
    /// Lease of a reservation and of pages held for a push.
    public var transferLease: TimeSpan = .seconds(10)
    /// For the answer to a reservation, an assignment or a start.
    public var replyTimeout: TimeSpan = .seconds(2)
    /// A worker that should run and finishes no step for this long (or ten median step gaps, or
    /// three times the predicted prefill more) makes no progress.
    public var stallFloor: TimeSpan = .seconds(3)
    /// One running job without a sign of progress while its worker has some.
    public var jobSilenceMax: TimeSpan = .seconds(30)
    /// After the first token: bytes over this rate (bytes per second), plus `transferStall`.
    public var transferRateMin = 10e6
    public var transferStall: TimeSpan = .seconds(5)

    // Retries.
    /// Workers asked in one round before the job is held.
    public var candidatesMax = 3
    public var holdAfterRefusals: TimeSpan = .milliseconds(250)
    /// Requeues of one job without a new token in between.
    public var redispatchMax = 8
    /// First wait before a second requeue in a row; doubles up to `requeueBackoffMax`.
    public var requeueBackoff: TimeSpan = .milliseconds(50)
    public var requeueBackoffMax: TimeSpan = .seconds(2)
    /// Process deaths under one job at the same output position that make it a poison.
    public var poisonDeaths = 2
    /// Process deaths under one job in all.
    public var poisonDeathsTotal = 8
    /// Failed transfers of one job before it is prefilled where it decodes.
    public var transferFailuresBeforeLocal = 2
    public var inhibitFirst: TimeSpan = .seconds(1)
    public var inhibitMax: TimeSpan = .seconds(30)

    // Windows that keep the policy in control.
    /// Jobs, and tokens of them, that one prefill worker has before it has to finish some.
    public var prefillWindowJobs = 4
    public var prefillWindowTokens = 8192
    /// Jobs resident on a decode worker, in percent of its slots: above 100 the rest is paused. Jobs in
    /// its host tier do not count, nor, for one that comes, those that it would displace from a slot.
    public var decodeResidencyPercent = 150
    /// Blocks left for each job that runs to grow into when another one comes, where there is no host tier.
    public var growthBlocks = 2
    /// When decode workers take long prompts; nil: never.
    public var relief: ReliefConfiguration?
    /// Nil: free blocks and slots decide alone.
    public var roomRule: (any RoomRule)?
    /// Whether each tenant has its share of what lies between the roles (`BridgeQuota`), and the
    /// blocks in all; nil takes twice the windows of the prefill workers.
    public var bridgeQuotas = true
    public var bridgeBlocks: Int?
    /// Taken for the deadline of a drain that somebody else has ordered.
    public var drainUnknown: TimeSpan = .seconds(30)
    /// A drain that takes this much longer than its deadline is ended by force.
    public var drainGrace: TimeSpan = .seconds(5)

    public init() {}
}
