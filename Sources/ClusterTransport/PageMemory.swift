import ServingTypes

/// Memory of pages; a worker's pool conforms. Who may touch a slot when is the cores' business; the
/// transport touches it only between `openLanding` and `landingReleased`, or `push` and `pageSent`
/// or `pushesStopped`.
public protocol PageMemory: Sendable {
    /// Bytes of every page.
    var pageBytes: Int { get }
    /// The slot's memory: `pageBytes` long, at one address for the life of the process.
    func page(_ slot: BlockSlot) -> UnsafeMutableRawBufferPointer
}

/// Times and bounds of page links; both ends have their own.
public struct PageLinkConfiguration: Sendable {
    /// A link that brings or takes no byte for this long inside a frame is closed.
    public var minimumProgress: TimeSpan = .seconds(5)
    /// From connection to the whole Hello, or from Hello to HelloAck.
    public var helloWithin: TimeSpan = .seconds(2)
    /// For each way that is tried: direct, then relayed.
    public var connectWithin: TimeSpan = .seconds(1)
    /// Largest payload of one frame sent, at most `WireLimits.slicePayloadBytesMax`.
    public var sliceBytesMax: Int = 1 << 20
    /// Links that a receiver or a relay has at one time.
    public var linksMax: Int = 256
    /// Messages that wait to be sent on one link; a peer that does not read is closed at this.
    public var outboundFramesMax: Int = 65_536
    /// Pages that wait to be sent on one link.
    public var queuedPagesMax: Int = 1 << 20
    /// SO_SNDBUF and SO_RCVBUF; 0 leaves the choice to the kernel.
    public var socketBufferBytes: Int = 0

    public init() {}
}
