import Messages
import ServingTypes

/// Sizes, bounds and intervals of a prefill worker.
public struct PrefillConfiguration: Sendable {
    public var own: WorkerRef
    /// Positions of one block, blocks of the pool, bytes of one block's page.
    public var blockTokens: Int
    public var blockCount: Int
    public var pageBytes: Int
    public var processID: Int32 = 0
    /// Jobs, and tokens, in one step at most.
    public var stepJobsMax = 8
    public var stepTokensMax = 512
    /// Tokens of one job in one step at most.
    public var prefillChunkTokens = 256
    /// Longest sequence that is accepted.
    public var contextTokensMax = 4096
    /// Jobs held at once at most: queued, computing, and waiting for their commit.
    public var jobsMax = 64
    /// How long a transfer lasts without progress where the order names no lease.
    public var leaseDefault = TimeSpan.seconds(10)
    /// Until the coordinator says otherwise.
    public var heartbeatEvery = TimeSpan.milliseconds(250)
    /// How long to go on without a coordinator.
    public var orphanGrace = TimeSpan.seconds(30)
    /// Attempts in a row to bring up a page link, and the pause after the first; it doubles.
    public var connectTriesMax = 3
    public var connectBackoff = TimeSpan.milliseconds(100)
    /// How often a page whose checksum failed is sent again.
    public var checksumResendsMax = 1
    /// How long a link that nobody needs is kept.
    public var peerLinger = TimeSpan.seconds(30)
    /// How often the driver sends `.tick`.
    public var tick = TimeSpan.milliseconds(25)

    public init(own: WorkerRef, blockTokens: Int, blockCount: Int, pageBytes: Int) {
        self.own = own
        self.blockTokens = blockTokens
        self.blockCount = blockCount
        self.pageBytes = pageBytes
    }

    var register: Register {
        Register(
            role: .prefill, dataHost: "", dataPort: 0, blockTokens: blockTokens, blockCount: blockCount,
            pageBytes: pageBytes, batchJobsMax: stepJobsMax, stepTokensMax: stepTokensMax, processID: processID,
            held: [])
    }
}

/// What a prefill worker has counted since it began.
public struct PrefillCounters: Hashable, Sendable {
    public var stepsFinished: UInt64 = 0
    public var tokensComputed: UInt64 = 0
    public var tokensCached: UInt64 = 0
    public var pagesSent: UInt64 = 0
    public var pagesSentAgain: UInt64 = 0
    public var pageBytesSent: UInt64 = 0
    public var transfersCommitted: UInt64 = 0
    public var transfersFailed: UInt64 = 0
    public var assignmentsRefused: UInt64 = 0
    /// Messages that named an older attempt, another incarnation, or a transfer not held.
    public var staleMessagesDropped: UInt64 = 0

    public init() {}
}
