import KVPaging
import Messages
import ServingTypes

/// One attempt of one job on this worker: computed here, sent to its target, kept until committed.
struct PrefillJob: Sendable {
    let order: AssignPrefill
    var table: BlockTable
    var phase = Phase.queued
    /// Leading positions whose keys and values exist.
    var computed = 0
    var cachedTokens = 0
    var isInStep = false
    /// Set while a step that includes the job is under way: it is dropped afterwards.
    var ending: Ending?
    var outgoing: Outgoing

    /// Nobody's: what a free place in the table of jobs holds.
    static let vacant = PrefillJob(
        order: AssignPrefill(
            transfer: TransferID(job: JobID(high: 0, low: 0), attempt: Attempt(0)), tenant: TenantID(""), tokens: [],
            promptTokens: 0, pageIDs: [], sampling: SamplingParameters(), wanted: [],
            target: WorkerRef(id: WorkerID(""), epoch: Epoch(0)), targetHost: "", targetPort: 0, path: .direct,
            creditBytes: 0, lease: .zero), table: .vacant,
        outgoing: Outgoing(wanted: [], credit: 0, lease: .zero, at: .zero))

    enum Phase: Sendable {
        case queued
        case computing
        /// The first token exists; what is left is the transfer.
        case sending(first: SampledToken)
    }

    struct Ending: Sendable {
        var acknowledge: Bool
    }

    var transfer: TransferID { order.transfer }
    var target: WorkerRef { order.target }

    var firstToken: SampledToken? {
        switch phase {
        case .queued, .computing: nil
        case .sending(let first): first
        }
    }

    var isQueued: Bool {
        switch phase {
        case .queued: true
        case .computing, .sending: false
        }
    }

    var isComputing: Bool {
        switch phase {
        case .computing: true
        case .queued, .sending: false
        }
    }

    var sampleRequest: SampleRequest {
        SampleRequest(
            parameters: order.sampling, history: order.sampling.needsHistory ? order.tokens : [],
            promptTokens: order.promptTokens, outputTokens: order.tokens.count - order.promptTokens)
    }
}

/// The pages that the target lacks, and where each of them is.
struct Outgoing: Sendable {
    /// Ascending by block.
    var pages: [Page]
    var link = Link.connecting
    /// Bytes that may leave before the target makes room.
    var credit: UInt64
    var endSent = false
    let lease: TimeSpan
    /// Moves on with progress only; looked at once everything is computed.
    var expires: Instant
    /// When the target's lease was last renewed, and how far this worker was then.
    var renewed: Instant
    var renewedProgress: UInt64 = .max

    struct Page: Sendable {
        var block: UInt32
        var state = State.waiting
        /// Of the whole page, once it was sent.
        var crc: UInt32?
        var checksumFailures = 0
    }

    enum State: Sendable {
        /// Not computed yet.
        case waiting
        case ready
        /// With the sender, which reads the slot.
        case pushed
        case sent
        case acknowledged
    }

    enum Link: Sendable {
        case connecting
        /// Up again; the target is asked what it still lacks.
        case resuming
        case up
    }

    init(wanted: [UInt32], credit: UInt64, lease: TimeSpan, at now: Instant) {
        pages = wanted.map { Page(block: $0) }
        self.credit = credit
        self.lease = lease
        expires = now + lease
        renewed = now
    }

    var isUp: Bool {
        switch link {
        case .up: true
        case .connecting, .resuming: false
        }
    }

    var isResuming: Bool {
        switch link {
        case .resuming: true
        case .connecting, .up: false
        }
    }

    /// Whether any page could leave.
    var hasReady: Bool { pages.contains { $0.state == .ready } }

    /// Whether the sender may be reading a slot of this transfer.
    var isBeingRead: Bool { pages.contains { $0.state == .pushed } }

    /// Whether pages have left that the target has not spoken of.
    var hasUnacknowledged: Bool { pages.contains { $0.state == .pushed || $0.state == .sent } }

    func index(of block: UInt32) -> Int? { pages.firstIndex { $0.block == block } }

    /// Everything has left; the receiver checks the list against what came.
    var sums: [PageSum] { pages.compactMap { page in page.crc.map { PageSum(block: page.block, crc: $0) } } }

    var isAllSent: Bool { pages.allSatisfy { $0.state == .sent || $0.state == .acknowledged } }
}

/// The page link to one incarnation of a decode worker.
struct Peer: Sendable {
    let worker: WorkerRef
    var host: String
    var port: UInt16
    var path: KVPath
    var state = State.connecting
    /// Failures since the last sign of life.
    var failures = 0
    var wasUp = false
    var idleSince: Instant?

    enum State: Sendable, Equatable {
        case connecting
        case up
        case resting(until: Instant)
    }
}
