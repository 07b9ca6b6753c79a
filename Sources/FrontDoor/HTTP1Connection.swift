import NIOCore
import NIOHTTP1
import ServingTypes

/// Sees the bytes before NIO's HTTP/1 decoder: tells the connection that a request has begun, and
/// whether what was too long was the request line.
final class RequestLineWatch: ChannelInboundHandler {
    typealias InboundIn = ByteBuffer
    typealias InboundOut = ByteBuffer

    /// Bytes of the request line, as far as it was seen.
    private(set) var lineBytes = 0
    private var sawLineEnd = false
    var bytesArrived: (() -> Void)?

    func requestEnded() { (sawLineEnd, lineBytes) = (false, 0) }

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let bytes = unwrapInboundIn(data)
        if !sawLineEnd {
            let view = bytes.readableBytesView
            let end = view.firstIndex(of: UInt8(ascii: "\n"))
            sawLineEnd = end != nil
            lineBytes += view.distance(from: view.startIndex, to: end ?? view.endIndex)
        }
        bytesArrived?()
        context.fireChannelRead(data)
    }
}

/// One HTTP/1 connection: one exchange at a time, in order, however many requests are in the pipe.
final class HTTP1Connection: ChannelInboundHandler, ExchangeWriter {
    typealias InboundIn = HTTPServerRequestPart
    typealias OutboundOut = HTTPServerResponsePart

    private let door: FrontDoor
    private let watch: RequestLineWatch
    private var context: ChannelHandlerContext?

    private var parts = CircularBuffer<HTTPServerRequestPart>()
    private var exchange: Exchange?
    /// Of the current request: whether all of it came, and whether its response is all sent.
    private var requestEnded = false
    private var responseEnded = false
    private var generation = HTTPGeneration.http11
    private var keepAlive = true
    private var peerFinished = false
    private var failure: ErrorBody?
    /// The last response is sent; what still comes is dropped until the client closes.
    private var lingering = false
    private var lingeredBytes = 0
    private var flushScheduled = false
    private var draining = false
    private var takingParts = false
    /// What is closed once every byte is written.
    private var closing: CloseMode?

    private var phase = Phase.head
    private var phaseTimer: Scheduled<Void>?
    private var bodyBytes = 0
    private var writesPending = 0
    private var writesDone = 0
    private var writesDoneBefore = 0
    private var unflushed = 0
    private var writeTimer: Scheduled<Void>?

    /// What a time limit runs on.
    private enum Phase {
        case idle
        case head
        case body(since: NIODeadline)
        case response
    }

    enum Limits {
        static let lingerTime = TimeAmount.seconds(2)
        static let lingerBytesMax = 1 << 20
        static let bodyCheckEvery = TimeAmount.seconds(5)
        /// Parts of a response that may wait for the end of the loop's turn. A turn may find a long
        /// backlog of tokens: what a killed coordinator has charged for and not yet given to the kernel is
        /// bounded by this.
        static let unflushedMax = 8
    }

    init(door: FrontDoor, watch: RequestLineWatch) {
        self.door = door
        self.watch = watch
    }

    static func decoderLimits(_ limits: FrontDoorLimits) -> NIOHTTPDecoderLimitConfiguration {
        var result = NIOHTTPDecoderLimitConfiguration()
        result.maxHeaderFieldSize = limits.headFieldBytesMax
        result.maxHeaderListSize = limits.headBytesMax
        result.maxHeaderFieldCount = limits.headFieldsMax
        return result
    }

    /// Decoder, encoder and this connection, behind whatever is there.
    static func install(in pipeline: ChannelPipeline.SynchronousOperations, door: FrontDoor) throws -> HTTP1Connection {
        let watch = RequestLineWatch()
        let connection = HTTP1Connection(door: door, watch: watch)
        let decoder = HTTPRequestDecoder(
            leftOverBytesStrategy: .dropBytes, informationalResponseStrategy: .drop,
            limitConfiguration: decoderLimits(door.configuration.limits))
        try pipeline.addHandler(watch)
        try pipeline.addHandler(HTTPResponseEncoder())
        try pipeline.addHandler(ByteToMessageHandler(decoder))
        try pipeline.addHandler(connection)
        return connection
    }

    func handlerAdded(context: ChannelHandlerContext) {
        self.context = context
        watch.bytesArrived = { [weak self] in self?.bytesArrived() }
        if context.channel.isActive { enter(.head) }
    }

    func channelActive(context: ChannelHandlerContext) {
        enter(.head)
        context.fireChannelActive()
    }

    // MARK: Requests

    func channelRead(context: ChannelHandlerContext, data: NIOAny) {
        let part = unwrapInboundIn(data)
        guard !lingering else { return lingered(part) }
        parts.append(part)
        takeParts()
    }

    func channelReadComplete(context: ChannelHandlerContext) {
        if wantsMore { context.read() }
        context.fireChannelReadComplete()
    }

    private var wantsMore: Bool { parts.isEmpty && !peerFinished }

    private func takeParts() {
        guard !takingParts else { return }
        takingParts = true
        defer { takingParts = false }
        while let part = parts.first {
            switch part {
            case .head(let head):
                guard exchange == nil, !lingering else { return }
                parts.removeFirst()
                begin(head)
            case .body(let bytes):
                parts.removeFirst()
                bodyBytes += bytes.readableBytes
                exchange?.receive(bytes)
            case .end:
                parts.removeFirst()
                requestEnded = true
                watch.requestEnded()
                enter(.response)
                exchange?.requestEnded()
                settle()
            }
        }
        // What is broken is the rest of the request at hand.
        if let failure, let exchange, !requestEnded {
            exchange.hasResponded ? closeNow() : exchange.respond(failure)
        }
    }

    private func begin(_ head: HTTPRequestHead) {
        requestEnded = false
        responseEnded = false
        bodyBytes = 0
        generation = head.version == .http1_0 ? .http10 : .http11
        // After a request to upgrade, NIO's decoder reads nothing more.
        let upgrades = head.headers.contains(name: "upgrade")
        keepAlive = head.isKeepAlive && generation == .http11 && !upgrades && !draining
        let hasBody =
            head.headers.contains(name: "transfer-encoding")
            || (head.headers.first(name: "content-length").map { $0 != "0" } ?? false)
        var headers = HeaderList()
        for (name, value) in head.headers { headers.add(name, value) }
        let exchange = Exchange(
            door: door,
            head: RequestHead(
                method: head.method.rawValue, target: head.uri, headers: headers, generation: generation,
                expectsBody: hasBody, address: context?.channel.remoteAddress?.ipAddress ?? "unix"), writer: self)
        self.exchange = exchange
        enter(.body(since: door.loop.now))
        if head.uri.utf8.count > door.configuration.limits.requestLineBytesMax {
            keepAlive = false
            exchange.respond(Self.requestLineTooLong(door.configuration.limits))
        } else if generation == .http11, head.headers[canonicalForm: "host"].count != 1 {
            keepAlive = false
            exchange.respond(Self.malformed("The request must have exactly one Host field."))
        } else {
            exchange.begin()
        }
        settle()
    }

    /// Goes on to the next request once both directions of this one are over.
    private func settle() {
        guard exchange != nil, responseEnded else { return }
        guard keepAlive, requestEnded else { return closeAfterResponse() }
        exchange = nil
        if parts.isEmpty {
            if let failure { return refuse(failure) }
            if peerFinished { return closeWhenWritten() }
        }
        enter(.idle)
        takeParts()
        if exchange == nil, wantsMore { context?.read() }
    }

    // MARK: Ends and errors

    func userInboundEventTriggered(context: ChannelHandlerContext, event: Any) {
        if let event = event as? ChannelEvent, event == .inputClosed {
            inputClosed()
        } else {
            context.fireUserInboundEventTriggered(event)
        }
    }

    private func inputClosed() {
        peerFinished = true
        guard exchange != nil, !lingering else { return closeWhenWritten() }
        if !requestEnded {
            closeNow()
        } else if parts.isEmpty {
            exchange?.probe()
        }
    }

    func errorCaught(context: ChannelHandlerContext, error: any Error) {
        // What follows a broken request: NIO's decoder hands it back as an error of each read.
        if case .dataReceivedInErrorState(_, let bytes)? = error as? ByteToMessageDecoderError {
            return drop(bytes.readableBytes)
        }
        guard let parsing = error as? HTTPParserError else { return closeNow() }
        guard !lingering, failure == nil else { return }
        let body = describe(parsing)
        failure = body
        // A broken request behind a whole one is answered after it.
        exchange == nil ? refuse(body) : takeParts()
    }

    func channelInactive(context: ChannelHandlerContext) {
        finishAll()
        context.fireChannelInactive()
    }

    func handlerRemoved(context: ChannelHandlerContext) {
        finishAll()
        writeTimer?.cancel()
        self.context = nil
        watch.bytesArrived = nil
    }

    private func finishAll() {
        phaseTimer?.cancel()
        parts.removeAll()
        let left = exchange
        exchange = nil
        left?.clientLeft()
    }

    /// Answers what is no request.
    private func refuse(_ body: ErrorBody) {
        requestEnded = false
        responseEnded = false
        keepAlive = false
        let exchange = Exchange(
            door: door,
            head: RequestHead(method: "GET", target: "", headers: [:], generation: generation, expectsBody: false),
            writer: self)
        self.exchange = exchange
        exchange.respond(body)
    }

    private func describe(_ error: HTTPParserError) -> ErrorBody {
        let limits = door.configuration.limits
        guard error == .headerOverflow else { return Self.malformed("The request is not HTTP/1.1: \(error).") }
        guard watch.lineBytes <= limits.requestLineBytesMax else { return Self.requestLineTooLong(limits) }
        return ErrorBody(
            status: 431,
            ServingError(
                ServingError.Code("headers_too_large"),
                "The header fields are too large: \(limits.headFieldsMax) fields, \(limits.headFieldBytesMax) bytes in one, "
                    + "\(limits.headBytesMax) bytes in all are the limits.", field: "headers"))
    }

    static func requestLineTooLong(_ limits: FrontDoorLimits) -> ErrorBody {
        ErrorBody(
            status: 414,
            ServingError(
                ServingError.Code("uri_too_long"),
                "The request line is longer than the limit of \(limits.requestLineBytesMax) bytes.", field: "path"))
    }

    private static func malformed(_ message: String) -> ErrorBody { ErrorBody(ServingError(.malformed, message)) }

    private func closeNow() {
        finishAll()
        context?.close(promise: nil)
    }

    private func closeWhenWritten() {
        finishAll()
        closing = .all
        closeIfWritten()
    }

    /// Closes the sending side and waits a little for the client to close its own: closing both with
    /// unread bytes would reset the connection before the client has read its answer.
    private func closeAfterResponse() {
        exchange = nil
        guard !lingering else { return }
        lingering = true
        parts.removeAll()
        guard !peerFinished else { return closeWhenWritten() }
        closing = .output
        closeIfWritten()
        context?.read()
        phaseTimer?.cancel()
        phaseTimer = door.loop.assumeIsolated().scheduleTask(in: Limits.lingerTime) { [weak self] in
            self?.closeWhenWritten()
        }
    }

    private func closeIfWritten() {
        guard let context, let mode = closing else { return }
        context.flush()
        guard writesPending == 0, closing != nil else { return }
        closing = nil
        context.close(mode: mode, promise: nil)
    }

    private func lingered(_ part: HTTPServerRequestPart) {
        if case .body(let bytes) = part { drop(bytes.readableBytes) }
    }

    private func drop(_ bytes: Int) {
        lingeredBytes += bytes
        if lingeredBytes > Limits.lingerBytesMax { closeNow() }
    }

    /// Answers what runs, takes no further request.
    func drain() {
        draining = true
        keepAlive = false
        if case .idle = phase, exchange == nil { closeWhenWritten() }
    }

    // MARK: Time

    private func bytesArrived() {
        if case .idle = phase { enter(.head) }
    }

    private func enter(_ next: Phase) {
        phase = next
        phaseTimer?.cancel()
        phaseTimer = nil
        let limits = door.configuration.limits
        switch next {
        case .idle: schedule(limits.idleTime.amount)
        case .head: schedule(limits.headTime.amount)
        case .body: schedule(limits.bodyGrace.amount)
        case .response: break
        }
    }

    private func schedule(_ amount: TimeAmount) {
        phaseTimer = door.loop.assumeIsolated().scheduleTask(in: amount) { [weak self] in self?.phaseExpired() }
    }

    private func phaseExpired() {
        switch phase {
        case .idle: closeNow()
        case .head: exchange == nil ? refuseSlow("header") : closeNow()
        case .body(let since):
            let limits = door.configuration.limits
            let seconds = Double((door.loop.now - since - limits.bodyGrace.amount).nanoseconds) / 1e9
            if Double(bodyBytes) < max(1, seconds) * Double(limits.bodyBytesPerSecondMin) {
                guard let exchange, !exchange.hasResponded else { return closeNow() }
                keepAlive = false
                exchange.respond(.slow("body"))
                settle()
            } else {
                schedule(Limits.bodyCheckEvery)
            }
        case .response: break
        }
    }

    private func refuseSlow(_ what: String) {
        keepAlive = false
        refuse(.slow(what))
        settle()
    }

    // MARK: ExchangeWriter

    var isWritable: Bool { context?.channel.isWritable ?? false }

    func interim(status: Int) {
        write(.head(HTTPResponseHead(version: .http1_1, status: HTTPResponseStatus(statusCode: status))))
    }

    func head(status: Int, headers: HeaderList) {
        var fields = HTTPHeaders(headers.fields.map { ($0.name, $0.value) })
        fields.add(name: "server", value: "tandem/\(door.configuration.version)")
        if !requestEnded, exchange?.head.expectsBody ?? true { keepAlive = false }
        if generation == .http10 || !keepAlive {
            keepAlive = false
            fields.replaceOrAdd(name: "connection", value: "close")
        }
        let version: HTTPVersion = generation == .http10 ? .http1_0 : .http1_1
        write(
            .head(HTTPResponseHead(version: version, status: HTTPResponseStatus(statusCode: status), headers: fields)))
    }

    func body(_ bytes: ByteBuffer) { write(.body(.byteBuffer(bytes))) }

    func end() {
        write(.end(nil))
        responseEnded = true
        // Not now: the exchange is still in the midst of its call.
        door.loop.assumeIsolated().execute { [weak self] in self?.settle() }
    }

    func reset() {
        responseEnded = true
        keepAlive = false
        exchange = nil
        context?.close(promise: nil)
    }

    private func write(_ part: HTTPServerResponsePart) {
        guard let context else { return }
        writesPending += 1
        let promise = context.eventLoop.makePromise(of: Void.self)
        promise.futureResult.assumeIsolated().whenComplete { [weak self] _ in
            guard let self else { return }
            self.writesPending -= 1
            self.writesDone += 1
            if self.writesPending == 0 { self.closeIfWritten() }
        }
        context.write(wrapOutboundOut(part), promise: promise)
        unflushed += 1
        if unflushed >= Limits.unflushedMax { flush() } else { scheduleFlush(context) }
        armWriteTimer()
    }

    private func flush() {
        unflushed = 0
        context?.flush()
    }

    private func scheduleFlush(_ context: ChannelHandlerContext) {
        guard !flushScheduled else { return }
        flushScheduled = true
        context.eventLoop.assumeIsolated().execute { [weak self] in
            guard let self else { return }
            self.flushScheduled = false
            self.flush()
        }
    }

    func channelWritabilityChanged(context: ChannelHandlerContext) {
        if context.channel.isWritable { exchange?.writabilityChanged() }
        context.fireChannelWritabilityChanged()
    }

    private func armWriteTimer() {
        guard writeTimer == nil else { return }
        writesDoneBefore = writesDone
        writeTimer = door.loop.assumeIsolated().scheduleTask(in: door.configuration.limits.stallTime.amount) {
            [weak self] in self?.writeTimerFired()
        }
    }

    /// Closes a connection that took nothing since the timer was set.
    private func writeTimerFired() {
        writeTimer = nil
        guard writesPending > 0 else { return }
        writesDone == writesDoneBefore ? closeNow() : armWriteTimer()
    }
}
