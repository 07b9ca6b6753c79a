/// What an HTTP/2 session tells its driver, and what it is told.

/// The head of one request, pseudo-headers taken apart. Names are lower-case, as HTTP/2 has them.
public struct HTTPRequestHead: Sendable {
    public var method: String
    /// The `:path` with its query; empty for CONNECT.
    public var path: String
    /// `:authority`, or `host` where a client sent only that; else empty.
    public var authority: String
    public var scheme: String
    /// In the order of their arrival, repeats kept.
    public var headers: [(name: String, value: String)]

    public init(
        method: String, path: String, authority: String, scheme: String = "http",
        headers: [(name: String, value: String)] = []
    ) {
        self.method = method
        self.path = path
        self.authority = authority
        self.scheme = scheme
        self.headers = headers
    }
}

/// An HTTP/2 error code (RFC 9113 §7).
public struct HTTP2ErrorCode: Hashable, Sendable, CustomStringConvertible {
    public var value: UInt32

    public init(_ value: UInt32) { self.value = value }

    public static let noError = HTTP2ErrorCode(0)
    public static let protocolError = HTTP2ErrorCode(1)
    public static let internalError = HTTP2ErrorCode(2)
    public static let flowControlError = HTTP2ErrorCode(3)
    public static let refusedStream = HTTP2ErrorCode(7)
    public static let cancel = HTTP2ErrorCode(8)
    public static let enhanceYourCalm = HTTP2ErrorCode(11)

    public var description: String {
        let names = [
            "NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
            "FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
        ]
        return value < names.count ? names[Int(value)] : "error \(value)"
    }
}

/// What happened on a session. Stream numbers are the client's, odd and growing.
public enum HTTP2Event: Sendable {
    /// A complete request head; `endStream` where no body follows.
    case request(stream: Int32, head: HTTPRequestHead, endStream: Bool)
    /// A piece of a request's body. Its bytes count against the stream's window until `consume`.
    case data(stream: Int32, bytes: [UInt8], endStream: Bool)
    /// The stream is gone before request and response were complete; not for the driver's own resets.
    case reset(stream: Int32, code: HTTP2ErrorCode)
    /// The stream is gone, request and response complete and handed to `bytesToSend`.
    case closed(stream: Int32)
    /// Follows a `write` that said `.paused`: there is room again.
    case streamWritable(stream: Int32)
    /// The client takes no more answers to streams above this one, and opens no more.
    case goAway(lastStream: Int32, code: HTTP2ErrorCode)
    /// The session is over for this reason; send what is left, then close.
    case connectionError(String)
}

/// What became of a `write`.
public enum HTTP2WriteState: Hashable, Sendable {
    case ok
    /// The bytes are taken; write no more until `.streamWritable`.
    case paused
    /// There is no such stream, or its response is finished; the bytes are dropped.
    case closed
}

/// Bounds of one session, by reliability.md §3.1.
public struct HTTP2Limits: Hashable, Sendable {
    /// Concurrent streams that a client may open.
    public var streamsMax: UInt32 = 128
    /// Bytes of one request's header list, counted as RFC 9113 §6.5.2 does (name + value + 32 each).
    public var headerListBytesMax = 16_384
    public var headerFieldsMax = 100
    public var headerValueBytesMax = 8_192
    /// Body bytes that a client may send on a stream before the driver consumes some.
    public var streamWindowBytes: Int32 = 262_144
    /// The same for all streams together.
    public var connectionWindowBytes: Int32 = 1_048_576
    /// Unsent response bytes of a stream at which writes pause.
    public var streamOutputBytesMax = 65_536
    /// Unsent response bytes of all streams at which writes pause.
    public var connectionOutputBytesMax = 1_048_576
    /// RST_STREAM frames that a client may send at once, and per second after that.
    public var resetBurst: UInt64 = 100
    public var resetsPerSecond: UInt64 = 10
    /// CONTINUATION frames of one header block.
    public var continuationsMax = 8
    /// Entries of one SETTINGS frame.
    public var settingsMax = 32
    /// Unsent acknowledgements of SETTINGS and PING.
    public var outboundAcksMax = 64
    /// Stream resets that a client's faults may provoke, and as many invalid frames, per 10 seconds.
    public var provokedResetsMax = 50
    /// Control frames (and near-empty DATA frames) per minute.
    public var controlFramesMax = 10_000
    /// Frames in the outbound queue.
    public var outboundQueueMax = 1_000

    public init() {}
}
