import ServingTypes

/// First frame on every link, both for control (W -> C) and data (P -> D). Two ends whose
/// compatibility digests differ never exchange a page (disaggregation.md §6.2).
public struct Hello: Hashable, Sendable {
    public var versionMin: UInt32
    public var versionMax: UInt32
    public var sender: WorkerRef
    public var role: WorkerRole
    public var compatibility: CompatibilityDigest
    /// What the link is for; decides which messages are lawful on it.
    public var purpose: LinkPurpose
    /// For `.relay`: the worker that the coordinator is to splice this link to.
    public var relayTarget: WorkerID?

    public init(
        versionMin: UInt32 = ProtocolVersion.oldestSupported, versionMax: UInt32 = ProtocolVersion.current,
        sender: WorkerRef, role: WorkerRole, compatibility: CompatibilityDigest, purpose: LinkPurpose,
        relayTarget: WorkerID? = nil
    ) {
        self.versionMin = versionMin
        self.versionMax = versionMax
        self.sender = sender
        self.role = role
        self.compatibility = compatibility
        self.purpose = purpose
        self.relayTarget = relayTarget
    }
}

public enum LinkPurpose: String, Hashable, Sendable, CaseIterable {
    /// W -> C: tokens, plans, membership.
    case control
    /// P -> D: pages.
    case pages
    /// P -> C, spliced to D: the same frames as `pages` by way of the coordinator.
    case relay
}

/// 256 bits over everything that must be equal for pages to be exchanged: protocol major, model
/// digest, layer count, heads, head size, element type, page layout, block tokens, RoPE, window,
/// kernel variant.
public struct CompatibilityDigest: Hashable, Sendable, CustomStringConvertible {
    public var page: PageID

    public init(_ page: PageID) { self.page = page }

    public var description: String { page.description }
}

/// The answer to `Hello`; a refusal closes the link after it is sent.
public struct HelloAck: Hashable, Sendable {
    public var version: UInt32
    public var responder: WorkerRef
    public var verdict: Verdict

    public enum Verdict: Hashable, Sendable {
        case accepted
        /// A sentence for the log of the side that is refused.
        case refused(String)
    }

    public init(version: UInt32, responder: WorkerRef, verdict: Verdict) {
        self.version = version
        self.responder = responder
        self.verdict = verdict
    }
}

/// A worker's capacities, sent once per control link after `Hello`.
public struct Register: Hashable, Sendable {
    public var role: WorkerRole
    /// Where P workers reach this worker's page listener; empty for a prefill worker.
    public var dataHost: String
    public var dataPort: UInt16
    public var blockTokens: Int
    public var blockCount: Int
    public var pageBytes: Int
    /// Jobs in one decode step at most.
    public var batchJobsMax: Int
    /// New tokens in one step at most.
    public var stepTokensMax: Int
    public var processID: Int32
    /// Transfers this process still holds, for a coordinator that restarted.
    public var held: [TransferID]
    /// Pages of its host tier, where jobs that wait can lie; 0: it has none.
    public var swapPages: Int
    /// Whether it takes a job only with room for all that the job may ever need.
    public var reservesWholeJobs: Bool
    /// Jobs that it takes at once at most; 0: not told.
    public var jobsMax: Int

    public init(
        role: WorkerRole, dataHost: String, dataPort: UInt16, blockTokens: Int, blockCount: Int, pageBytes: Int,
        batchJobsMax: Int, stepTokensMax: Int, processID: Int32, held: [TransferID], swapPages: Int = 0,
        reservesWholeJobs: Bool = false, jobsMax: Int = 0
    ) {
        self.role = role
        self.dataHost = dataHost
        self.dataPort = dataPort
        self.blockTokens = blockTokens
        self.blockCount = blockCount
        self.pageBytes = pageBytes
        self.batchJobsMax = batchJobsMax
        self.stepTokensMax = stepTokensMax
        self.processID = processID
        self.held = held
        self.swapPages = swapPages
        self.reservesWholeJobs = reservesWholeJobs
        self.jobsMax = jobsMax
    }
}

public struct RegisterAck: Hashable, Sendable {
    public var heartbeatEvery: TimeSpan
    /// Without a word from the coordinator for this long, the worker takes no new work.
    public var lease: TimeSpan

    public init(heartbeatEvery: TimeSpan, lease: TimeSpan) {
        self.heartbeatEvery = heartbeatEvery
        self.lease = lease
    }
}

/// Sent by each side of a control link at the agreed interval; W -> C carries the load.
public struct Heartbeat: Hashable, Sendable {
    public var load: LoadReport

    public init(load: LoadReport) { self.load = load }
}

/// What a worker is doing. Counts only; the coordinator's own books decide, this corrects them.
public struct LoadReport: Hashable, Sendable {
    public var queuedTokens: Int = 0
    public var runningJobs: Int = 0
    public var pausedJobs: Int = 0
    public var blocks: BlockCounts = BlockCounts()
    /// Steps finished since the process began: a worker that holds jobs and whose count stands
    /// still makes no progress, however well its heart beats.
    public var stepsFinished: UInt64 = 0
    /// Exponentially weighted mean of the last steps.
    public var stepTime: TimeSpan = .zero
    public var prefillTokensPerSecond: Double = 0
    public var pageBytesSent: UInt64 = 0
    public var pageBytesReceived: UInt64 = 0
    public var staleMessagesDropped: UInt64 = 0
    /// The host tier, and what has passed between it and the pool since the process began.
    public var swap = SwapCounts()
    public var swapBytesOut: UInt64 = 0
    public var swapBytesIn: UInt64 = 0
    /// Time that jobs could have run and did not, for lack of their memory; summed over jobs.
    public var swapStall: TimeSpan = .zero

    public init() {}
}

/// Pages of a host tier by state; the sum is its budget.
public struct SwapCounts: Hashable, Sendable {
    public var free: Int = 0
    /// Being written.
    public var reserved: Int = 0
    /// Written, and to be read again.
    public var held: Int = 0

    public init() {}

    public var total: Int { free + reserved + held }
}

/// Blocks of a pool by state; the sum is the pool (invariant I3).
public struct BlockCounts: Hashable, Sendable {
    public var free: Int = 0
    public var reserved: Int = 0
    public var filling: Int = 0
    public var verified: Int = 0
    public var committed: Int = 0
    public var evictable: Int = 0
    public var fencing: Int = 0

    public init() {}

    public var total: Int { free + reserved + filling + verified + committed + evictable + fencing }
    /// What a new reservation may take.
    public var available: Int { free + evictable }
}

/// A change of a worker's prefix index. Sequence numbers have no gaps within an epoch; a gap
/// makes the coordinator drop what it knew of that worker until the next snapshot.
public struct KVEvent: Hashable, Sendable {
    public var sequence: UInt64
    public var change: Change

    public enum Change: Hashable, Sendable {
        case stored([PageID])
        case removed([PageID])
        /// Everything held now; replaces all before it.
        case snapshot([PageID])
    }

    public init(sequence: UInt64, change: Change) {
        self.sequence = sequence
        self.change = change
    }
}

/// Take no new work; finish or hand back what runs within `deadline`.
public struct Drain: Hashable, Sendable {
    public var deadline: TimeSpan

    public init(deadline: TimeSpan) { self.deadline = deadline }
}

/// Nothing is held any more: the process may stop.
public struct DrainDone: Hashable, Sendable {
    public init() {}
}
