import Messages
import ServingTypes

/// Sizes, bounds and intervals of a decode (or mixed) worker.
public struct DecodeConfiguration: Sendable {
    public var own: WorkerRef
    public var role: WorkerRole
    /// Positions of one block, blocks of the pool, bytes of one block's page.
    public var blockTokens: Int
    public var blockCount: Int
    public var pageBytes: Int
    /// Where prefill workers reach this worker's page listener.
    public var dataHost = ""
    public var dataPort: UInt16 = 0
    public var processID: Int32 = 0
    /// Jobs, and new tokens, in one step at most.
    public var batchJobsMax = 32
    public var stepTokensMax = 512
    /// Prompt tokens of one job in one step at most.
    public var prefillChunkTokens = 256
    /// How long a step that holds prompt beside decoding jobs should take at most, which bounds what the
    /// prompt costs them; nil: as long as its tokens take.
    public var stepLimit: TimeSpan?
    /// The same in multiples of a step that only decodes.
    public var stepStretch: Double?
    /// Prompt and output of one job at most; a job that reaches it ends with `.length`.
    public var contextTokensMax = 4096
    /// Jobs held at once at most, reservations included.
    public var jobsMax = 256
    /// Blocks left available for the growth of running jobs when another job is admitted.
    public var headroomBlocks = 1
    /// Take a job only with room for all the tokens that it may ever need, so that no job has to give
    /// way. Otherwise with room for its next token: more jobs run, and one may have to be written out.
    public var reservesWholeJobs = false
    /// Pages of the host tier; 0: jobs that give way are computed again.
    public var swapPages = 0
    /// Jobs whose pages move between pool and host tier at one time.
    public var movesMax = 4
    /// Whether pages move before they are needed; off only to measure what that is worth.
    public var swapsAhead = true
    /// Bytes of one transfer on their way at most.
    public var creditWindowBytes = 16 << 20
    /// How long a reservation lasts without progress where the order names no lease.
    public var leaseDefault = TimeSpan.seconds(10)
    /// Until the coordinator says otherwise.
    public var heartbeatEvery = TimeSpan.milliseconds(250)
    /// How long to go on without a coordinator.
    public var orphanGrace = TimeSpan.seconds(30)
    /// Output kept for an absent coordinator at most; over it decoding rests.
    public var bufferedTokensMax = 4096
    /// How long tokens are kept after they were said, to be said again should the link break.
    public var repeatWindow = TimeSpan.seconds(1)
    /// How often a transfer's missing blocks are asked for again.
    public var wantRoundsMax = 2
    /// How often the driver sends `.tick`.
    public var tick = TimeSpan.milliseconds(25)

    public init(own: WorkerRef, role: WorkerRole = .decode, blockTokens: Int, blockCount: Int, pageBytes: Int) {
        self.own = own
        self.role = role
        self.blockTokens = blockTokens
        self.blockCount = blockCount
        self.pageBytes = pageBytes
    }

    var register: Register {
        Register(
            role: role, dataHost: dataHost, dataPort: dataPort, blockTokens: blockTokens, blockCount: blockCount,
            pageBytes: pageBytes, batchJobsMax: batchJobsMax, stepTokensMax: stepTokensMax, processID: processID,
            held: [], swapPages: swapPages, reservesWholeJobs: reservesWholeJobs, jobsMax: jobsMax)
    }
}

/// What a decode worker has counted since it began.
public struct DecodeCounters: Hashable, Sendable {
    public var stepsFinished: UInt64 = 0
    public var tokensDecoded: UInt64 = 0
    public var tokensPrefilled: UInt64 = 0
    public var pageBytesReceived: UInt64 = 0
    public var transfersCommitted: UInt64 = 0
    public var transfersFailed: UInt64 = 0
    public var leasesExpired: UInt64 = 0
    /// Given back to be computed again: by a drain, or for want of memory and of a host tier.
    public var jobsEvicted: UInt64 = 0
    public var jobsWrittenOut: UInt64 = 0
    public var jobsReadBack: UInt64 = 0
    public var swapsFailed: UInt64 = 0
    public var swapBytesOut: UInt64 = 0
    public var swapBytesIn: UInt64 = 0
    public var jobsFinished: UInt64 = 0
    public var reservationsRefused: UInt64 = 0
    /// Messages that named an older attempt, another incarnation, or a transfer not held.
    public var staleMessagesDropped: UInt64 = 0

    public init() {}
}
