import HTTPSession
import NIOCore
import ServingTypes

/// One HTTP/2 connection: moves bytes between the socket and an `HTTP2ServerSession`, and events
/// between the session and exchanges.
final class HTTP2Connection: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias OutboundOut = ByteBuffer

    private let door: FrontDoor
    private let session: HTTP2ServerSession
    private var context: ChannelHandlerContext?
    private var streams: [Int32: HTTP2Writer] = [:]
    private var pumpScheduled = false
    private var unflushed = 0
    private var isClosing = false
    private var idleSince: NIODeadline
    private var timer: Scheduled<Void>?
    private var writesPending = 0
    private var lastWriteDone: NIODeadline

    enum Limits {
        static let checkEvery = TimeAmount.seconds(5)
        static let writeBytesMax = 32 << 10
        /// See `HTTP1Connection.Limits.unflushedMax`; of all streams together.
        static let unflushedMax = 8
    }

    init(door: FrontDoor) throws(ServingError) {
        self.door = door
        session = try HTTP2ServerSession(limits: Self.limits(door.configuration.limits))
        idleSince = door.loop.now
        lastWriteDone = door.loop.now
    }

    private static func limits(_ limits: FrontDoorLimits) -> HTTP2Limits {
        var result = HTTP2Limits()
        result.headerListBytesMax = limits.headBytesMax
        result.headerFieldsMax = limits.headFieldsMax
        result.headerValueBytesMax = limits.headFieldBytesMax
        result.streamOutputBytesMax = limits.streamBytesInFlightMax
        return result
    }

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        armTimer()
        schedulePump()
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        finishAll()
        self.context = nil
    }

    // MARK: Input

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let bytes = unwrapInboundIn(data)
        handle(bytes.withUnsafeReadableBytes { session.receive($0, at: now) })
        schedulePump()
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        if !isClosing { context.read() }
        context.fireChannelReadComplete()
    }

    private var now: Instant { Instant(nanoseconds: Int64(clamping: door.loop.now.uptimeNanoseconds)) }

    private func handle(_ events: [HTTP2Event]) {
        for event in events {
            switch event {
            case .request(let stream, let head, let endStream): begin(stream, head, endStream: endStream)
            case .data(let stream, let bytes, let endStream): receive(stream, bytes, endStream: endStream)
            case .reset(let stream, _): remove(stream)?.clientLeft()
            case .closed(let stream): _ = remove(stream)
            case .streamWritable(let stream):
                streams[stream]?.isWritable = true
                streams[stream]?.exchange?.writabilityChanged()
            case .goAway: break
            case .connectionError: leaveAll()
            }
        }
    }

    private func begin(_ stream: Int32, _ head: HTTPRequestHead, endStream: Bool) {
        var headers = HeaderList()
        for (name, value) in head.headers { headers.add(name, value) }
        let writer = HTTP2Writer(connection: self, stream: stream, since: door.loop.now)
        let exchange = Exchange(
            door: door,
            head: RequestHead(
                method: head.method, target: head.path, headers: headers, generation: .http2,
                expectsBody: !endStream, address: context?.channel.remoteAddress?.ipAddress ?? "unix"),
            writer: writer)
        writer.exchange = exchange
        streams[stream] = writer
        if head.path.utf8.count > door.configuration.limits.requestLineBytesMax {
            exchange.respond(HTTP1Connection.requestLineTooLong(door.configuration.limits))
        } else {
            exchange.begin()
        }
        if endStream { end(writer) }
    }

    private func receive(_ stream: Int32, _ bytes: [UInt8], endStream: Bool) {
        guard let writer = streams[stream] else { return session.consume(stream, bytes.count) }
        writer.bodyBytes += bytes.count
        if !bytes.isEmpty { writer.exchange?.receive(ByteBuffer(bytes: bytes)) }
        session.consume(stream, bytes.count)
        if endStream { end(writer) }
    }

    private func end(_ writer: HTTP2Writer) {
        writer.requestEnded = true
        writer.exchange?.requestEnded()
    }

    /// Parts a stream's writer and exchange, which hold each other while the stream lives.
    private func remove(_ stream: Int32) -> Exchange? {
        let exchange = streams.removeValue(forKey: stream)?.release()
        if streams.isEmpty { idleSince = door.loop.now }
        return exchange
    }

    // MARK: Output

    fileprivate func respond(_ stream: Int32, status: Int, headers: HeaderList) {
        var fields = headers.fields.map { (name: $0.name, value: $0.value) }
        if status >= 200 { fields.append((name: "server", value: "tandem/\(door.configuration.version)")) }
        session.respond(stream, status: status, headers: fields)
        schedulePump()
    }

    /// Whether more may be written now.
    fileprivate func write(_ stream: Int32, _ bytes: ByteBuffer) -> Bool {
        defer { schedulePump() }
        switch session.write(stream, Array(bytes.readableBytesView)) {
        case .ok:
            unflushed += 1
            // Events of the session wait for the pump: whoever writes is in the midst of its own.
            if unflushed >= Limits.unflushedMax, !isClosing { send() }
            return true
        case .paused, .closed: return false
        }
    }

    fileprivate func finish(_ stream: Int32) {
        session.finish(stream)
        schedulePump()
    }

    fileprivate func reset(_ stream: Int32) {
        session.reset(stream, .internalError)
        _ = remove(stream)
        schedulePump()
    }

    /// All writes of one turn of the loop leave together.
    private func schedulePump() {
        guard !pumpScheduled else { return }
        pumpScheduled = true
        door.loop.assumeIsolated().execute { [weak self] in
            self?.pumpScheduled = false
            self?.pump()
        }
    }

    private func pump() {
        guard context != nil, !isClosing else { return }
        send()
        handle(session.takeEvents())
        if session.wantsToClose { closeWhenWritten() }
    }

    /// Gives the session's bytes to the socket.
    private func send() {
        unflushed = 0
        guard let context else { return }
        var wrote = false
        while context.channel.isWritable {
            let bytes = session.bytesToSend(upTo: Limits.writeBytesMax)
            guard !bytes.isEmpty else { break }
            wrote = true
            write(ByteBuffer(bytes: bytes), context)
        }
        if wrote { context.flush() }
    }

    private func write(_ bytes: ByteBuffer, _ context: ChannelHandlerContext) {
        writesPending += 1
        let promise = context.eventLoop.makePromise(of: Void.self)
        promise.futureResult.assumeIsolated().whenComplete { [weak self] _ in
            guard let self else { return }
            self.writesPending -= 1
            self.lastWriteDone = self.door.loop.now
            if self.isClosing, self.writesPending == 0 { self.context?.close(promise: nil) }
        }
        context.write(wrapOutboundOut(bytes), promise: promise)
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable { schedulePump() }
        context.fireChannelWritabilityChanged()
    }

    // MARK: The end

    /// GOAWAY; what runs goes on.
    func drain() {
        session.shutdown()
        schedulePump()
    }

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        // Without the client's frames there are no windows, so nothing can be answered any more.
        if let event = event as? ChannelEvent, event == .inputClosed {
            closeNow()
        } else {
            context.fireUserInboundEventTriggered(event)
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) { closeNow() }

    func channelInactive(context: ChannelHandlerContext) {
        finishAll()
        context.fireChannelInactive()
    }

    private func leaveAll() {
        let left = streams.sorted { $0.key < $1.key }.map(\.value)
        streams = [:]
        for writer in left { writer.release()?.clientLeft() }
    }

    private func finishAll() {
        timer?.cancel()
        timer = nil
        leaveAll()
    }

    private func closeWhenWritten() {
        guard !isClosing else { return }
        isClosing = true
        leaveAll()
        if writesPending == 0 { context?.close(promise: nil) }
    }

    private func closeNow() {
        isClosing = true
        finishAll()
        context?.close(promise: nil)
    }

    // MARK: Time

    private func armTimer() {
        timer = door.loop.assumeIsolated().scheduleTask(in: Limits.checkEvery) { [weak self] in self?.check() }
    }

    /// Looks at everything that may be too slow: the connection, bodies, clients that open no window.
    private func check() {
        let limits = door.configuration.limits
        let time = door.loop.now
        if writesPending > 0, time - lastWriteDone > limits.stallTime.amount, !(context?.channel.isWritable ?? true) {
            return closeNow()
        }
        if isClosing { return closeNow() }
        for (stream, writer) in streams.sorted(by: { $0.key < $1.key }) {
            if writer.isTooSlow(at: time, limits) { writer.exchange?.respond(.slow("body")) }
            if let ended = writer.endedAt, time - ended > limits.stallTime.amount * 2 { reset(stream) }
        }
        if streams.isEmpty, time - idleSince >= limits.idleTime.amount { drain() }
        handle(session.tick(at: now))
        schedulePump()
        armTimer()
    }
}

/// The response side of one stream.
final class HTTP2Writer: ExchangeWriter {
    private weak var connection: HTTP2Connection?
    private let stream: Int32
    private let since: NIODeadline
    var exchange: Exchange?
    var isWritable = true
    var bodyBytes = 0
    var requestEnded = false
    private(set) var endedAt: NIODeadline?

    init(connection: HTTP2Connection, stream: Int32, since: NIODeadline) {
        self.connection = connection
        self.stream = stream
        self.since = since
    }

    func release() -> Exchange? {
        defer { exchange = nil }
        return exchange
    }

    func isTooSlow(at time: NIODeadline, _ limits: FrontDoorLimits) -> Bool {
        guard !requestEnded, let exchange, !exchange.hasResponded else { return false }
        let seconds = Double((time - since - limits.bodyGrace.amount).nanoseconds) / 1e9
        return seconds >= 0 && Double(bodyBytes) < max(1, seconds) * Double(limits.bodyBytesPerSecondMin)
    }

    func interim(status: Int) { connection?.respond(stream, status: status, headers: [:]) }

    func head(status: Int, headers: HeaderList) { connection?.respond(stream, status: status, headers: headers) }

    func body(_ bytes: ByteBuffer) { isWritable = connection?.write(stream, bytes) ?? false }

    func end() {
        endedAt = exchange?.door.loop.now
        connection?.finish(stream)
    }

    func reset() { connection?.reset(stream) }
}
