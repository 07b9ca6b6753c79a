import ServingTypes

/// The one schema version of this build, and the oldest it still understands.
public enum ProtocolVersion {
    public static let current: UInt32 = 1
    public static let oldestSupported: UInt32 = 1
}

/// Every control frame: who says it, in which order, and what.
public struct Envelope: Hashable, Sendable {
    /// Grows by one per link and direction; gaps and repeats are counted, never acted on.
    public var sequence: UInt64
    public var sender: WorkerRef
    public var message: Message

    public init(sequence: UInt64, sender: WorkerRef, message: Message) {
        self.sequence = sequence
        self.sender = sender
        self.message = message
    }
}

/// Everything that crosses a link between two roles (disaggregation.md §6.5). C is the
/// coordinator, P a prefill worker, D a decode (or mixed) worker. All are idempotent by
/// (transfer, kind): a repeat changes nothing.
public enum Message: Hashable, Sendable {
    // Link set-up, both ways.
    case hello(Hello)
    case helloAck(HelloAck)
    // W -> C and back: membership.
    case register(Register)
    case registerAck(RegisterAck)
    case heartbeat(Heartbeat)
    case kvEvent(KVEvent)
    case drain(Drain)
    case drainDone(DrainDone)
    // C -> D and back: reservations and decoding.
    case reservePages(ReservePages)
    case reserveAck(ReserveAck)
    case reserveNack(ReserveNack)
    case startDecode(StartDecode)
    case startDecodeAck(TransferReply)
    case setRunning(SetRunning)
    case tokenSteps(TokenSteps)
    // C -> P and back: prefill.
    case assignPrefill(AssignPrefill)
    case assignAck(TransferReply)
    case assignNack(AssignNack)
    case prefillProgress(PrefillProgress)
    case prefillDone(PrefillDone)
    // P -> D and back: pages.
    case pageOffer(PageOffer)
    case pageWant(PageWant)
    case pagePush(PagePush)
    case pageAck(PageAck)
    case pageNack(PageNack)
    case credit(Credit)
    case transferEnd(TransferEnd)
    case transferCommitted(TransferCommitted)
    case transferFailed(TransferFailed)
    case leaseRenew(LeaseRenew)
    // C -> P, C -> D, P -> D.
    case cancel(Cancel)
    case cancelAck(CancelAck)
}
