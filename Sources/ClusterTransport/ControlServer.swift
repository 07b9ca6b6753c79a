import Messages
import NIOCore
import NIOPosix
import ServingTypes

/// One accepted control link.
public struct ControlLinkID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var value: UInt64

    public init(_ value: UInt64) { self.value = value }

    public static func < (a: ControlLinkID, b: ControlLinkID) -> Bool { a.value < b.value }
    public var description: String { "link \(value)" }
}

public enum ControlServerEvent: Sendable {
    /// The Hello was accepted and its answer is on the way.
    case up(Hello)
    case message(Envelope)
    /// Only after `up`; the id is never used again.
    case down(reason: String)
}

/// The coordinator's end of all control links, on one event loop.
public final class ControlServer: Sendable {
    public struct Configuration: Sendable {
        public var host: String
        /// 0 lets the kernel choose.
        public var port: Int
        public var responder: WorkerRef
        /// Bytes that wait for one peer; one that does not read is closed at this.
        public var outboundBytesMax: Int = 64 << 20
        public var linksMax: Int = 1024
        /// From connection to the whole Hello.
        public var helloWithin: TimeSpan = .seconds(2)

        public init(host: String, port: Int, responder: WorkerRef) {
            self.host = host
            self.port = port
            self.responder = responder
        }
    }

    private let configuration: Configuration
    private let loop: any EventLoop
    private let box: NIOLoopBoundBox<ControlServerState>

    /// `judge` decides on digest, role and name once versions are compared; both closures are called
    /// on `loop`.
    public init(
        configuration: Configuration, loop: any EventLoop, judge: @escaping @Sendable (Hello) -> HelloAck.Verdict,
        onEvent: @escaping @Sendable (ControlLinkID, ControlServerEvent) -> Void
    ) {
        self.configuration = configuration
        self.loop = loop
        box = .makeBoxSendingValue(
            ControlServerState(configuration: configuration, loop: loop, judge: judge, onEvent: onEvent),
            eventLoop: loop)
    }

    /// Listens; the future holds the port.
    public func start() -> EventLoopFuture<Int> {
        let bootstrap = ServerBootstrap(group: loop)
            .serverChannelOption(ChannelOptions.backlog, value: 256)
            .serverChannelOption(ChannelOptions.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(ChannelOptions.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(ChannelOptions.socketOption(.so_keepalive), value: 1)
            .childChannelInitializer { [box] channel in
                channel.eventLoop.makeCompletedFuture {
                    guard let link = box.value.accept(channel) else { throw ChannelError.ioOnClosedChannel }
                    try channel.pipeline.syncOperations.addHandler(link)
                }
            }
        return bootstrap.bind(host: configuration.host, port: configuration.port).map { [box] channel in
            box.value.listener = channel
            return channel.localAddress?.port ?? 0
        }
    }

    /// From any thread; on the loop it costs no hop. A message for a link that is gone is dropped.
    public func send(_ message: Message, to link: ControlLinkID) { onLoop { $0.send(message, to: link) } }

    /// The link's `down` follows, before this returns if called on the loop.
    public func close(_ link: ControlLinkID, reason: String) { onLoop { $0.close(link, reason: reason) } }

    /// Stops listening and closes all links; no event comes after it.
    public func stop() -> EventLoopFuture<Void> {
        loop.flatSubmit { [box] in box.value.stop() }
    }

    private func onLoop(_ work: @escaping @Sendable (ControlServerState) -> Void) {
        if loop.inEventLoop {
            work(box.value)
        } else {
            loop.execute { [box] in work(box.value) }
        }
    }
}

/// The part of the server that lives on its loop.
final class ControlServerState {
    private struct Entry {
        var link: ControlLink
        var isUp: Bool
        var deadline: Scheduled<Void>?
    }

    private let configuration: ControlServer.Configuration
    private let loop: any EventLoop
    private let judge: @Sendable (Hello) -> HelloAck.Verdict
    private let onEvent: @Sendable (ControlLinkID, ControlServerEvent) -> Void
    private var entries: [ControlLinkID: Entry] = [:]
    private var nextID: UInt64 = 1
    private var stopped = false
    var listener: (any Channel)?

    init(
        configuration: ControlServer.Configuration, loop: any EventLoop,
        judge: @escaping @Sendable (Hello) -> HelloAck.Verdict,
        onEvent: @escaping @Sendable (ControlLinkID, ControlServerEvent) -> Void
    ) {
        self.configuration = configuration
        self.loop = loop
        self.judge = judge
        self.onEvent = onEvent
    }

    /// nil where there are too many links already.
    func accept(_ channel: any Channel) -> ControlLink? {
        guard !stopped, entries.count < configuration.linksMax else { return nil }
        let id = ControlLinkID(nextID)
        nextID += 1
        let link = ControlLink(own: configuration.responder, outboundBytesMax: configuration.outboundBytesMax)
        link.onEnvelope = { [weak self] envelope in self?.received(envelope, on: id) }
        link.onEnd = { [weak self] reason in self?.ended(id, reason: reason) }
        let deadline = loop.assumeIsolated().scheduleTask(in: .nanoseconds(configuration.helloWithin.nanoseconds)) {
            link.end("No Hello came within \(self.configuration.helloWithin.milliseconds) ms.")
        }
        entries[id] = Entry(link: link, isUp: false, deadline: deadline)
        return link
    }

    func send(_ message: Message, to id: ControlLinkID) {
        guard let entry = entries[id], entry.isUp else { return }
        entry.link.send(message)
    }

    func close(_ id: ControlLinkID, reason: String) { entries[id]?.link.finish(reason) }

    func stop() -> EventLoopFuture<Void> {
        stopped = true
        for entry in entries.values {
            entry.deadline?.cancel()
            entry.link.onEnd = nil
            entry.link.finish("This end stops.")
        }
        entries = [:]
        guard let listener else { return loop.makeSucceededVoidFuture() }
        return listener.close().flatMapErrorThrowing { _ in }
    }

    private func received(_ envelope: Envelope, on id: ControlLinkID) {
        guard let entry = entries[id] else { return }
        if entry.isUp {
            guard LawfulMessages.onControlLink(envelope.message) else {
                entry.link.end("A control link does not carry this message.")
                return
            }
            onEvent(id, .message(envelope))
        } else if case .hello(let hello) = envelope.message {
            greet(hello, on: id, entry.link)
        } else {
            entry.link.end("The first frame of a link must be Hello.")
        }
    }

    private func greet(_ hello: Hello, on id: ControlLinkID, _ link: ControlLink) {
        let answer = Handshake.answer(hello, purpose: .control, own: configuration.responder, judge: judge)
        link.send(.helloAck(answer))
        switch answer.verdict {
        case .refused(let sentence): link.finish(sentence)
        case .accepted:
            entries[id]?.deadline?.cancel()
            entries[id]?.deadline = nil
            entries[id]?.isUp = true
            onEvent(id, .up(hello))
        }
    }

    private func ended(_ id: ControlLinkID, reason: String) {
        guard let entry = entries.removeValue(forKey: id) else { return }
        entry.deadline?.cancel()
        if entry.isUp { onEvent(id, .down(reason: reason)) }
    }
}
