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
    /// Everything is handed back after a drain: the process may exit.
    case exitAfterDrain
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
