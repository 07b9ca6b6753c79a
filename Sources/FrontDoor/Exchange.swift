import BoundedJSON
import NIOCore
import ServingTypes

/// What goes on behind a request after its body was read.
protocol ExchangeHandler: AnyObject {
    /// The client is gone; nothing more is sent.
    func clientLeft()
    /// The response's buffer is below its bound again.
    func bufferDrained()
}

/// One request and its response, on a connection of any HTTP version. The connection feeds the
/// request in; whoever answers uses `respond` or `open`, `send` and `finish`.
final class Exchange {
    let door: FrontDoor
    let head: RequestHead
    let route: Route?
    private(set) var caller = Caller(tenant: .anonymous, scopes: [])
    private(set) var requestID: String
    private(set) var body: [UInt8] = []

    private let writer: any ExchangeWriter
    private var handler: (any ExchangeHandler)?
    /// Decided before the body was read; sent when it is, or at once where it is long.
    private var rejection: ErrorBody?
    private var bodyEnded = false

    private enum Response {
        case none
        case open
        /// Everything is in `pending`.
        case ending
        case done
    }
    private var response = Response.none
    private var pending = ByteBuffer()
    private var aboveBound = false
    private var isEventStream = false
    private var lastSent: NIODeadline
    private var timer: Scheduled<Void>?

    /// Body bytes that are read and dropped before a refusal. On HTTP/1 the alternative is to answer
    /// and close; on HTTP/2 it is a reset, upon which some clients drop the answer that came with it.
    private var drainedBodyBytesMax: Int {
        head.generation == .http2 ? 2 * door.configuration.limits.bodyBytesMax : 64 << 10
    }
    private var discardedBytes = 0
    static let sliceBytesMax = 16 << 10
    static let requestIDBytesMax = 128

    init(door: FrontDoor, head: RequestHead, writer: any ExchangeWriter) {
        self.door = door
        self.head = head
        self.writer = writer
        route = Route(path: head.path)
        lastSent = door.loop.now
        requestID = Self.lawfulRequestID(head.headers["x-request-id"]) ?? "req-\(door.service.makeJobID())"
        door.counts.requestsOpen += 1
    }

    deinit { door.counts.requestsOpen -= 1 }

    var isDone: Bool { response == .done }
    /// Whether the response's head is on its way.
    var hasResponded: Bool { response != .none }

    // MARK: The request

    /// Checks everything that can be told from the head.
    func begin() {
        rejection = earlyRejection()
        guard let rejection else {
            if head.expectsBody, head.headers.list("expect").contains("100-continue") { writer.interim(status: 100) }
            return
        }
        let short = (head.contentLength ?? 0) <= drainedBodyBytesMax
        let waits = head.headers.list("expect").contains("100-continue")
        if head.expectsBody, !short || waits { respond(rejection) }
    }

    func receive(_ bytes: ByteBuffer) {
        guard response == .none else { return }
        let limit = door.configuration.limits.bodyBytesMax
        if rejection == nil, body.count + bytes.readableBytes > limit {
            discardedBytes = body.count
            body = []
            rejection = .tooLarge(limit: limit, declared: nil)
        }
        guard let rejection else { return body += bytes.readableBytesView }
        discardedBytes += bytes.readableBytes
        if discardedBytes > drainedBodyBytesMax { respond(rejection) }
    }

    func requestEnded() {
        guard !bodyEnded, response == .none else { return }
        bodyEnded = true
        if let rejection {
            respond(rejection)
        } else if let route {
            door.answer(self, route)
        }
        body = []
    }

    /// The client closed, reset the stream, or the connection broke.
    func clientLeft() {
        guard response != .done else { return }
        if response == .none { door.counts.add(route: label, status: 499) }
        complete()
    }

    /// The client closed its sending side, which a client that went away does too: send something
    /// harmless, so that a closed socket answers with a reset.
    func probe() {
        switch response {
        case .open: if isEventStream { sendPing() }
        case .none: if head.generation == .http11 { writer.interim(status: 102) }
        case .ending, .done: break
        }
    }

    private func earlyRejection() -> ErrorBody? {
        guard let route else { return .notFound(head.path) }
        do throws(ServingError) {
            if let scope = route.scope {
                caller = try door.caller(head)
                try door.doorkeeper.check(caller, may: scope)
            }
        } catch {
            return ErrorBody(error)
        }
        if case .absent(let why) = route { return .absent(head.path, why: why) }
        if let methods = route.methods, !methods.contains(head.method) {
            return .methodNotAllowed(head.method, path: head.path, allowed: methods)
        }
        let limit = door.configuration.limits.bodyBytesMax
        if let length = head.contentLength, length > limit { return .tooLarge(limit: limit, declared: length) }
        if route.takesJSON, let type = head.headers["content-type"], !Self.isJSON(type) { return .wrongMediaType(type) }
        return nil
    }

    private static func isJSON(_ type: String) -> Bool {
        trimmed(type.prefix { $0 != ";" }).lowercased().hasSuffix("json")
    }

    private static func lawfulRequestID(_ text: String?) -> String? {
        guard let text, (1...requestIDBytesMax).contains(text.utf8.count),
            text.utf8.allSatisfy({ (0x21...0x7E).contains($0) })
        else { return nil }
        return text
    }

    /// The body's `request_id` counts where the header is absent.
    func adopt(requestID text: String?) {
        guard head.headers["x-request-id"] == nil, let lawful = Self.lawfulRequestID(text) else { return }
        requestID = lawful
    }

    // MARK: The response

    func hold(_ handler: any ExchangeHandler) { self.handler = handler }

    func respond(_ error: ErrorBody) { respond(error.json, status: error.status, headers: error.headers) }

    func respond(_ json: JSONValue, status: Int = 200, headers: HeaderList = HeaderList()) {
        respond(bytes: Array(JSON.text(json).utf8), type: "application/json", status: status, headers: headers)
    }

    func respond(bytes: [UInt8], type: String, status: Int = 200, headers: HeaderList = HeaderList()) {
        guard response == .none else { return }
        var all: HeaderList = ["content-type": type, "content-length": String(bytes.count)]
        all.add(contentsOf: headers)
        start(status: status, headers: all)
        if head.method != "HEAD" { pending.writeBytes(bytes) }
        finish()
    }

    /// Starts a stream of server-sent events.
    func openEvents(headers: HeaderList) {
        guard response == .none else { return }
        var all: HeaderList = [
            "content-type": "text/event-stream", "cache-control": "no-cache", "x-accel-buffering": "no",
        ]
        all.add(contentsOf: headers)
        isEventStream = true
        start(status: 200, headers: all)
        if head.method == "HEAD" { finish() } else { armTimer() }
    }

    /// One event: `data:`, the text (which has no line breaks) and a blank line.
    func event(_ text: String) {
        guard response == .open else { return }
        pending.writeString("data: ")
        pending.writeString(text)
        pending.writeString("\n\n")
        pump()
    }

    func finish() {
        guard response == .open else { return }
        response = .ending
        pump()
    }

    /// Whether what is rendered and unsent has reached its bound: render no more until `bufferDrained`.
    var isFull: Bool { pending.readableBytes >= door.configuration.limits.streamBytesBufferedMax }

    func writabilityChanged() {
        guard response == .open || response == .ending else { return }
        pump()
    }

    private func start(status: Int, headers: HeaderList) {
        var headers = headers
        headers.add("x-request-id", requestID)
        response = .open
        door.counts.add(route: label, status: status)
        writer.head(status: status, headers: headers)
    }

    private var label: String { route?.label ?? "unknown" }

    private func pump() {
        while pending.readableBytes > 0, writer.isWritable,
            let slice = pending.readSlice(length: min(Self.sliceBytesMax, pending.readableBytes))
        {
            lastSent = door.loop.now
            writer.body(slice)
            if response == .done { return }
        }
        if pending.readableBytes == 0 {
            pending = ByteBuffer()
            if response == .ending {
                writer.end()
                return complete()
            }
        }
        pending.discardReadBytes()
        armTimer()
        let full = isFull
        if aboveBound, !full { handler?.bufferDrained() }
        aboveBound = full
    }

    // MARK: Timers

    /// One timer serves both: what waits and does not move is given up, silence is broken by a ping.
    private func armTimer() {
        guard timer == nil, response == .open || response == .ending else { return }
        guard isEventStream || pending.readableBytes > 0 else { return }
        let limits = door.configuration.limits
        let span = pending.readableBytes > 0 ? limits.stallTime : limits.pingEvery
        timer = door.loop.assumeIsolated().scheduleTask(deadline: lastSent + span.amount) { [weak self] in
            self?.timerFired()
        }
    }

    private func timerFired() {
        timer = nil
        let limits = door.configuration.limits
        let silence = door.loop.now - lastSent
        if pending.readableBytes > 0, silence >= limits.stallTime.amount {
            writer.reset()
            return complete()
        }
        if pending.readableBytes == 0, isEventStream, response == .open, silence >= limits.pingEvery.amount {
            sendPing()
        }
        armTimer()
    }

    private func sendPing() {
        pending.writeString(": ping\n\n")
        pump()
    }

    private func complete() {
        response = .done
        timer?.cancel()
        timer = nil
        pending = ByteBuffer()
        let left = handler
        handler = nil
        left?.clientLeft()
    }
}

extension TimeSpan {
    var amount: TimeAmount { .nanoseconds(nanoseconds) }
}
