import KVPaging
import Messages
import ServingTypes

/// What happens to a decode (or mixed) worker. The driver says what it saw; the core decides.
public enum DecodeEvent: Sendable {
    /// The control link is up; the coordinator knows nothing of this worker until it registers.
    case coordinatorUp
    case coordinatorDown
    case coordinatorMessage(Message)
    /// A frame other than a page on a link from a prefill worker.
    case peerMessage(PageLinkID, from: WorkerRef, Message)
    case peerDown(PageLinkID, from: WorkerRef)
    /// All bytes of a block are in its slot and every slice's checksum held.
    case pageLanded(TransferID, block: UInt32, filledTokens: Int, receivedBytes: Int, pageCRC: UInt32)
    /// The fence: after `closeLanding`, no receiver can write to any slot of this transfer.
    case landingReleased(TransferID)
    /// Answers `runStep`.
    case stepFinished(StepResult)
    /// Answers `swapOut`: the bytes are in the host tier, or the error says why not.
    case swappedOut(ticket: UInt64, SwapOutcome)
    /// Answers `swapIn`.
    case swappedIn(ticket: UInt64, SwapOutcome)
    /// Time passes; leases and heartbeats are looked at. Sent every `DecodeConfiguration.tick`.
    case tick
}

/// What the core asks its driver to do, in order.
public enum DecodeAction: Sendable {
    case sendToCoordinator(Message)
    case sendToPeer(PageLinkID, Message)
    /// Receivers may write these blocks of this transfer into these slots, if they come from `source`.
    case openLanding(TransferID, source: WorkerRef, slots: [LandingSlot])
    /// Receivers must stop; answered by `landingReleased`.
    case closeLanding(TransferID)
    /// At most one step is under way; answered by `stepFinished`.
    case runStep(StepBatch)
    /// Copy these slots to these places of the host tier, while steps run; answered by `swappedOut`.
    /// At most `DecodeConfiguration.movesMax` moves are under way, both ways together.
    case swapOut(SwapOrder)
    /// Copy these places of the host tier to these slots; answered by `swappedIn`.
    case swapIn(SwapOrder)
    /// Everything is handed back after a drain: the process may exit.
    case exitAfterDrain
}

/// One job's pages on their way out of the pool or back.
public struct SwapOrder: Hashable, Sendable {
    public var ticket: UInt64
    public var transfer: TransferID
    public var pages: [SwapPage]

    public init(ticket: UInt64, transfer: TransferID, pages: [SwapPage]) {
        self.ticket = ticket
        self.transfer = transfer
        self.pages = pages
    }
}

/// One page's two places.
public struct SwapPage: Hashable, Sendable {
    public var slot: BlockSlot
    public var host: HostSlot

    public init(slot: BlockSlot, host: HostSlot) {
        self.slot = slot
        self.host = host
    }
}

/// How a move went: all of its pages, or none.
public struct SwapOutcome: Hashable, Sendable {
    public var error: ServingError?
    /// How long it took.
    public var time: TimeSpan

    public init(error: ServingError? = nil, time: TimeSpan) {
        self.error = error
        self.time = time
    }
}

/// Where one expected block goes.
public struct LandingSlot: Hashable, Sendable {
    public var block: UInt32
    public var slot: BlockSlot

    public init(block: UInt32, slot: BlockSlot) {
        self.block = block
        self.slot = slot
    }
}

/// One accepted connection from a prefill worker.
public struct PageLinkID: Hashable, Comparable, Sendable {
    public var value: UInt64

    public init(_ value: UInt64) { self.value = value }

    public static func < (a: PageLinkID, b: PageLinkID) -> Bool { a.value < b.value }
}
