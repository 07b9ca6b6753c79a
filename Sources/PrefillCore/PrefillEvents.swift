import KVPaging
import Messages
import ServingTypes

/// What happens to a prefill worker.
public enum PrefillEvent: Sendable {
    case coordinatorUp
    case coordinatorDown
    case coordinatorMessage(Message)
    /// A page link to this incarnation of a decode worker is up.
    case peerUp(WorkerRef)
    /// No link came about, or it was lost; the sender has stopped reading this worker's slots.
    case peerDown(WorkerRef)
    case peerMessage(WorkerRef, Message)
    /// A page's last slice is with the kernel; `crc` is of the whole page.
    case pageSent(WorkerRef, TransferID, block: UInt32, sentBytes: Int, crc: UInt32)
    /// The fence: after `stopPushing`, no sender reads any slot for this transfer.
    case pushingStopped(TransferID)
    case stepFinished(StepResult)
    case tick
}

/// What the core asks its driver to do, in order.
public enum PrefillAction: Sendable {
    case sendToCoordinator(Message)
    /// Bring up a page link to this worker unless there is one; answered by `peerUp` or `peerDown`.
    case connectPeer(WorkerRef, host: String, port: UInt16, path: KVPath)
    /// No transfer needs this link any more; the driver may keep it for a while.
    case releasePeer(WorkerRef)
    /// Sent in order after the pages already pushed for the same transfer.
    case sendToPeer(WorkerRef, TransferID, Message)
    /// The slots stay untouched until `pageSent` or `pushingStopped`.
    case pushPages(WorkerRef, TransferID, pages: [OutgoingPage])
    case stopPushing(WorkerRef, TransferID)
    case runStep(StepBatch)
    case exitAfterDrain
}

/// One block ready to travel.
public struct OutgoingPage: Hashable, Sendable {
    public var block: UInt32
    public var slot: BlockSlot
    /// Token positions that hold data.
    public var filledTokens: Int

    public init(block: UInt32, slot: BlockSlot, filledTokens: Int) {
        self.block = block
        self.slot = slot
        self.filledTokens = filledTokens
    }
}
