import CNGHTTP2
import ServingTypes

/// The server's end of one HTTP/2 connection: bytes in, bytes out, no socket and no clock.
///
/// The driver owns it on one event loop: it calls `receive` with what the socket read, acts on the
/// events, and after each turn takes `bytesToSend` until that is empty, then `takeEvents`. No method
/// may be called from inside another's callbacks; there are none visible outside, so this holds.
public final class HTTP2ServerSession {
    private enum State: Hashable {
        case open
        /// Over, but what is queued (the GOAWAY) still goes out; input is ignored.
        case flushing
        /// Over; nothing is worth sending.
        case dead
    }

    /// Bytes given to the library at a time; budgets are checked between.
    private static let inputSliceBytes = 16_384
    /// DATA frames below this size count as control frames.
    private static let smallDataBytes = 64
    /// WINDOW_UPDATE frames that each DATA frame sent allows for free, and how many may be saved up.
    private static let windowUpdatesPerData = 2
    private static let windowUpdateCreditMax = 10_000

    public let limits: HTTP2Limits
    private var session: OpaquePointer?
    private var state = State.open
    private var streams: [Int32: HTTP2Stream] = [:]
    private var events: [HTTP2Event] = []
    private var now = Instant.zero
    private var bufferedBytes = 0
    private var pausedStreams: Set<Int32> = []
    /// Body bytes of streams that closed before the driver consumed them.
    private var orphanedBytes = 0
    private var hasSentShutdown = false

    private var walker = FrameWalker()
    private var controlFrames: EventBudget
    private var provokedResets: EventBudget
    private var invalidFrames: EventBudget
    private var windowUpdateCredit = 0
    /// Set in a callback, acted on after the library has returned.
    private var overspent: String?

    /// Throws only where the library has no memory.
    public init(limits: HTTP2Limits = HTTP2Limits()) throws(ServingError) {
        self.limits = limits
        controlFrames = EventBudget(max: limits.controlFramesMax, span: .seconds(60))
        provokedResets = EventBudget(max: limits.provokedResetsMax, span: .seconds(10))
        invalidFrames = EventBudget(max: limits.provokedResetsMax, span: .seconds(10))
        guard let option = NGHTTP2Setup.options(limits) else { throw Self.initFault("options") }
        defer { nghttp2_option_del(option) }
        let user = Unmanaged.passUnretained(self).toOpaque()
        guard nghttp2_session_server_new2(&session, NGHTTP2Setup.callbacks, user, option) == 0 else {
            throw Self.initFault("session")
        }
        let settings = NGHTTP2Setup.settings(limits)
        guard nghttp2_submit_settings(session, 0, settings, settings.count) == 0,
            nghttp2_session_set_local_window_size(session, 0, 0, limits.connectionWindowBytes) == 0
        else { throw Self.initFault("settings") }
    }

    deinit { nghttp2_session_del(session) }

    private static func initFault(_ part: String) -> ServingError {
        ServingError(.internalError, "http2: nghttp2 could not make its \(part)", field: "http2", blast: .link)
    }

    static func from(_ user: UnsafeMutableRawPointer?) -> HTTP2ServerSession? {
        user.map { Unmanaged<HTTP2ServerSession>.fromOpaque($0).takeUnretainedValue() }
    }

    // MARK: input

    /// Takes what the socket read and returns what came of it, with whatever events were pending.
    /// Bytes after the end of the session are ignored.
    public func receive(_ bytes: UnsafeRawBufferPointer, at now: Instant) -> [HTTP2Event] {
        self.now = now
        var place = 0
        while place < bytes.count, state == .open {
            let slice = UnsafeRawBufferPointer(rebasing: bytes[place..<min(bytes.count, place + Self.inputSliceBytes)])
            count(slice)
            let taken = nghttp2_session_mem_recv(
                session, slice.assumingMemoryBound(to: UInt8.self).baseAddress, slice.count)
            guard taken > 0 else {
                fail("the client broke the protocol: \(NGHTTP2Setup.text(taken))")
                break
            }
            place += taken
            settle()
        }
        return takeEvents()
    }

    /// Counts the frames that begin in these bytes, whatever the library makes of them.
    private func count(_ bytes: UnsafeRawBufferPointer) {
        var frames = 0
        walker.walk(bytes) { if isControl($0) { frames += 1 } }
        for _ in 0..<frames where !controlFrames.spend(at: now) {
            overspend("more than \(limits.controlFramesMax) control frames in a minute")
        }
    }

    /// Whether a frame asks for work without bringing any: all but request heads, real body data, and
    /// as many window updates as the data sent explains.
    private func isControl(_ frame: FrameWalker.Header) -> Bool {
        switch frame.type {
        case NGHTTP2Setup.frameType(NGHTTP2_DATA):
            return frame.length < Self.smallDataBytes && !NGHTTP2Setup.has(frame.flags, NGHTTP2_FLAG_END_STREAM)
        case NGHTTP2Setup.frameType(NGHTTP2_HEADERS):
            return false
        case NGHTTP2Setup.frameType(NGHTTP2_WINDOW_UPDATE) where windowUpdateCredit > 0:
            windowUpdateCredit -= 1
            return false
        default:
            return true
        }
    }

    /// Moves the session's time on, so that budgets count in the right window.
    public func tick(at now: Instant) -> [HTTP2Event] {
        self.now = now
        settle()
        return takeEvents()
    }

    /// Events that arose outside `receive`, such as streams that became writable or closed while
    /// bytes were sent.
    public func takeEvents() -> [HTTP2Event] {
        defer { events = [] }
        return events
    }

    /// Acts on what callbacks could not do themselves.
    private func settle() {
        guard state == .open else { return }
        if orphanedBytes > 0 {
            _ = nghttp2_session_consume_connection(session, orphanedBytes)
            orphanedBytes = 0
        }
        if let overspent {
            terminate(overspent)
        } else if nghttp2_session_get_outbound_queue_size(session) > limits.outboundQueueMax {
            fail("more than \(limits.outboundQueueMax) frames wait to be sent")
        } else if nghttp2_session_want_read(session) == 0, nghttp2_session_want_write(session) == 0 {
            state = .dead
        }
    }

    /// The library is past use: nothing more goes in or out.
    private func fail(_ reason: String) {
        state = .dead
        events.append(.connectionError(reason))
    }

    /// GOAWAY with ENHANCE_YOUR_CALM, then the end. The library gets no more input: terminating and
    /// then receiving is a known trap of it (CVE-2026-27135).
    private func terminate(_ reason: String) {
        state = .flushing
        _ = nghttp2_session_terminate_session(session, HTTP2ErrorCode.enhanceYourCalm.value)
        events.append(.connectionError(reason))
    }

    // MARK: output

    /// Frames to send, `max` bytes or up to one frame more; empty when there is nothing to send now.
    public func bytesToSend(upTo max: Int) -> [UInt8] {
        var bytes: [UInt8] = []
        while bytes.count < max, state != .dead {
            var frame: UnsafePointer<UInt8>?
            let count = nghttp2_session_mem_send(session, &frame)
            if count < 0 { fail("the session cannot send: \(NGHTTP2Setup.text(count))") }
            guard count > 0, let frame else { break }
            bytes += UnsafeBufferPointer(start: frame, count: count)
        }
        settle()
        wakePausedStreams()
        return bytes
    }

    /// Whether the connection should be closed once `bytesToSend` is empty.
    public var wantsToClose: Bool {
        switch state {
        case .open: nghttp2_session_want_read(session) == 0 && nghttp2_session_want_write(session) == 0
        case .flushing: nghttp2_session_want_write(session) == 0
        case .dead: true
        }
    }

    /// Streams whose request or response is not complete.
    public var openStreamCount: Int { streams.count }

    /// Response bytes that wait for windows or for the socket.
    public var unsentBytes: Int { bufferedBytes }

    // MARK: responses

    /// Submits a response's head. Names are lower-cased; fields that HTTP/2 forbids (`connection` and
    /// its like) and malformed ones are left out. A status below 200 is an interim response: the final
    /// one follows. Later calls for the same stream, and unknown streams, are ignored.
    public func respond(
        _ stream: Int32, status: Int, headers: [(name: String, value: String)] = [], endStream: Bool = false
    ) {
        guard let entry = streams[stream], !entry.isResponding, state == .open else { return }
        let block = HeaderBlock(status: status, headers)
        let isInterim = (100..<200).contains(status)
        let failure: Int32
        if isInterim {
            failure = block.withFields { nghttp2_submit_headers(session, 0, stream, nil, $0, $1, nil) }
        } else {
            entry.isResponding = true
            entry.isFinished = endStream
            var provider = nghttp2_data_provider()
            provider.read_callback = NGHTTP2Setup.readOutput
            let hasNoBody = endStream && entry.bufferedBytes == 0
            failure = block.withFields { fields, count in
                hasNoBody
                    ? nghttp2_submit_response(session, stream, fields, count, nil)
                    : nghttp2_submit_response(session, stream, fields, count, &provider)
            }
        }
        if failure < 0 { reset(stream, .internalError) }
    }

    /// Queues bytes of a response's body. They are always taken; `.paused` asks for no more until
    /// `.streamWritable`, so a driver that obeys holds at most one write more than the limit.
    public func write(_ stream: Int32, _ bytes: [UInt8]) -> HTTP2WriteState {
        guard let entry = streams[stream], !entry.isFinished, !entry.isResetByDriver, state == .open else {
            return .closed
        }
        entry.append(bytes)
        bufferedBytes += bytes.count
        if !bytes.isEmpty { resume(entry) }
        guard entry.bufferedBytes >= limits.streamOutputBytesMax || bufferedBytes >= limits.connectionOutputBytesMax
        else { return .ok }
        entry.isPaused = true
        pausedStreams.insert(stream)
        return .paused
    }

    /// Ends a response's body: END_STREAM goes out with its last byte.
    public func finish(_ stream: Int32) {
        guard let entry = streams[stream], !entry.isFinished, state == .open else { return }
        entry.isFinished = true
        resume(entry)
    }

    /// Ends a stream at once; what was written and not sent is dropped. No `.reset` event follows.
    public func reset(_ stream: Int32, _ code: HTTP2ErrorCode) {
        guard let entry = streams[stream], !entry.isResetByDriver, state == .open else { return }
        entry.isResetByDriver = true
        dropOutput(entry)
        _ = nghttp2_submit_rst_stream(session, 0, stream, code.value)
    }

    /// Says that the driver is done with so many body bytes of a stream: the client may send as many more.
    public func consume(_ stream: Int32, _ count: Int) {
        guard let entry = streams[stream], state == .open else { return }
        let bytes = min(max(0, count), entry.unconsumedBytes)
        guard bytes > 0 else { return }
        entry.unconsumedBytes -= bytes
        _ = nghttp2_session_consume(session, stream, bytes)
    }

    /// GOAWAY: open streams go on to their end, new ones are not taken, then the session wants to close.
    public func shutdown() {
        guard state == .open, !hasSentShutdown else { return }
        hasSentShutdown = true
        let last = nghttp2_session_get_last_proc_stream_id(session)
        _ = nghttp2_submit_goaway(session, 0, last, HTTP2ErrorCode.noError.value, nil, 0)
    }

    private func resume(_ entry: HTTP2Stream) {
        guard entry.isDeferred else { return }
        entry.isDeferred = false
        _ = nghttp2_session_resume_data(session, entry.id)
    }

    private func dropOutput(_ entry: HTTP2Stream) {
        bufferedBytes -= entry.bufferedBytes
        entry.dropOutput()
        pausedStreams.remove(entry.id)
        entry.isPaused = false
    }

    private func wakePausedStreams() {
        guard !pausedStreams.isEmpty, bufferedBytes <= limits.connectionOutputBytesMax / 2 else { return }
        for stream in pausedStreams.sorted() {
            guard let entry = streams[stream], entry.bufferedBytes <= limits.streamOutputBytesMax / 2 else { continue }
            pausedStreams.remove(stream)
            entry.isPaused = false
            if !entry.isFinished { events.append(.streamWritable(stream: stream)) }
        }
    }
}

// MARK: - Callbacks

extension HTTP2ServerSession {
    func invalidFrameArrived() {
        if !invalidFrames.spend(at: now) {
            overspend("more than \(limits.provokedResetsMax) invalid frames in 10 seconds")
        }
    }

    private func overspend(_ reason: String) {
        if overspent == nil { overspent = reason }
    }

    func requestBegins(_ stream: Int32) { streams[stream] = HTTP2Stream(id: stream) }

    func fieldArrives(_ stream: Int32, _ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>) {
        streams[stream]?.addField(name, value, limits: limits)
    }

    func bodyArrives(_ stream: Int32, _ bytes: UnsafeBufferPointer<UInt8>) {
        guard let entry = streams[stream], !entry.isHeadTooLarge, !entry.isResetByDriver else {
            orphanedBytes += bytes.count
            return
        }
        entry.unconsumedBytes += bytes.count
        events.append(.data(stream: stream, bytes: Array(bytes), endStream: false))
    }

    func frameArrived(_ frame: nghttp2_frame) {
        let isEnd = NGHTTP2Setup.has(frame.hd.flags, NGHTTP2_FLAG_END_STREAM)
        switch frame.hd.type {
        case NGHTTP2Setup.frameType(NGHTTP2_HEADERS):
            if frame.headers.cat == NGHTTP2_HCAT_REQUEST {
                headArrived(frame.hd.stream_id, isEnd: isEnd)
            } else if isEnd {
                bodyEnded(frame.hd.stream_id)
            }
        case NGHTTP2Setup.frameType(NGHTTP2_DATA):
            if isEnd { bodyEnded(frame.hd.stream_id) }
        case NGHTTP2Setup.frameType(NGHTTP2_GOAWAY):
            events.append(
                .goAway(lastStream: frame.goaway.last_stream_id, code: HTTP2ErrorCode(frame.goaway.error_code)))
        default: break
        }
    }

    private func headArrived(_ stream: Int32, isEnd: Bool) {
        guard let entry = streams[stream] else { return }
        entry.isRequestEnded = isEnd
        entry.isHeadComplete = true
        if entry.isHeadTooLarge {
            respond(stream, status: 431, headers: [("content-length", "0")], endStream: true)
        } else {
            events.append(.request(stream: stream, head: entry.takeHead(), endStream: isEnd))
        }
    }

    private func bodyEnded(_ stream: Int32) {
        guard let entry = streams[stream], !entry.isRequestEnded else { return }
        entry.isRequestEnded = true
        guard !entry.isHeadTooLarge, !entry.isResetByDriver else { return }
        if case .data(stream, let bytes, false)? = events.last {
            events[events.count - 1] = .data(stream: stream, bytes: bytes, endStream: true)
        } else {
            events.append(.data(stream: stream, bytes: [], endStream: true))
        }
    }

    func readOutput(
        _ stream: Int32, _ target: UnsafeMutablePointer<UInt8>, _ room: Int, _ flags: UnsafeMutablePointer<UInt32>
    ) -> Int {
        guard let entry = streams[stream] else { return Int(NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE.rawValue) }
        let count = entry.moveOutput(to: target, room: room)
        bufferedBytes -= count
        if entry.isFinished, entry.bufferedBytes == 0 {
            flags.pointee |= UInt32(NGHTTP2_DATA_FLAG_EOF.rawValue)
            return count
        }
        if count == 0 {
            entry.isDeferred = true
            return Int(NGHTTP2_ERR_DEFERRED.rawValue)
        }
        return count
    }

    func frameSent(_ frame: nghttp2_frame) {
        switch frame.hd.type {
        case NGHTTP2Setup.frameType(NGHTTP2_DATA):
            windowUpdateCredit = min(Self.windowUpdateCreditMax, windowUpdateCredit + Self.windowUpdatesPerData)
            noteEnd(frame)
        case NGHTTP2Setup.frameType(NGHTTP2_HEADERS):
            noteEnd(frame)
        case NGHTTP2Setup.frameType(NGHTTP2_RST_STREAM):
            countReset(frame)
        default: break
        }
    }

    /// After a complete response, a client that still sends its request is told to stop, without blame
    /// (RFC 9113 §8.1).
    private func noteEnd(_ frame: nghttp2_frame) {
        guard NGHTTP2Setup.has(frame.hd.flags, NGHTTP2_FLAG_END_STREAM), let entry = streams[frame.hd.stream_id] else {
            return
        }
        entry.isResponseSent = true
        if !entry.isRequestEnded {
            _ = nghttp2_submit_rst_stream(session, 0, entry.id, HTTP2ErrorCode.noError.value)
        }
    }

    /// Resets that the client's faults provoked; the driver's own and the blameless ones are not counted.
    private func countReset(_ frame: nghttp2_frame) {
        guard frame.rst_stream.error_code != HTTP2ErrorCode.noError.value,
            streams[frame.hd.stream_id]?.isResetByDriver != true
        else { return }
        if !provokedResets.spend(at: now) {
            overspend("more than \(limits.provokedResetsMax) provoked stream resets in 10 seconds")
        }
    }

    func streamClosed(_ stream: Int32, _ code: HTTP2ErrorCode) {
        guard let entry = streams.removeValue(forKey: stream) else { return }
        dropOutput(entry)
        orphanedBytes += entry.unconsumedBytes
        // The driver never heard of a stream whose head was not complete or was refused here.
        guard entry.isHeadComplete, !entry.isHeadTooLarge, !entry.isResetByDriver else { return }
        if entry.isResponseSent {
            events.append(.closed(stream: stream))
        } else {
            events.append(.reset(stream: stream, code: code))
        }
    }
}

/// A response head laid out for the library: all bytes in one array, fields as ranges of it.
private struct HeaderBlock {
    private var bytes: [UInt8] = []
    private var fields: [(name: Range<Int>, value: Range<Int>)] = []

    /// Fields that concern one connection; HTTP/2 has none (RFC 9113 §8.2.2).
    private static let forbidden: Set<String> = [
        "connection", "keep-alive", "proxy-connection", "transfer-encoding", "upgrade",
    ]

    init(status: Int, _ headers: [(name: String, value: String)]) {
        add(":status", String(status))
        for (name, value) in headers {
            let lower = name.lowercased()
            guard !Self.forbidden.contains(lower), Self.isValid(lower, value) else { continue }
            add(lower, value)
        }
    }

    private mutating func add(_ name: String, _ value: String) {
        let start = bytes.count
        bytes += name.utf8
        let middle = bytes.count
        bytes += value.utf8
        fields.append((start..<middle, middle..<bytes.count))
    }

    private static func isValid(_ name: String, _ value: String) -> Bool {
        let (name, value) = ([UInt8](name.utf8), [UInt8](value.utf8))
        return nghttp2_check_header_name(name, name.count) != 0 && name.first != UInt8(ascii: ":")
            && nghttp2_check_header_value(value, value.count) != 0
    }

    /// Runs the body with the library's view of the fields, valid during the call only.
    func withFields<T>(_ body: (UnsafePointer<nghttp2_nv>?, Int) -> T) -> T {
        var bytes = bytes
        return bytes.withUnsafeMutableBufferPointer { buffer in
            let views = fields.map { field in
                nghttp2_nv(
                    name: buffer.baseAddress.map { $0 + field.name.lowerBound },
                    value: buffer.baseAddress.map { $0 + field.value.lowerBound }, namelen: field.name.count,
                    valuelen: field.value.count, flags: UInt8(NGHTTP2_NV_FLAG_NONE.rawValue))
            }
            return views.withUnsafeBufferPointer { body($0.baseAddress, $0.count) }
        }
    }
}
