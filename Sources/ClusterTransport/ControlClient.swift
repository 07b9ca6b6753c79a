import Messages
import NIOCore
import NIOPosix
import ServingTypes

public enum ControlClientEvent: Sendable {
    case up(HelloAck)
    case message(Envelope)
    /// It was up and is lost; the client connects again by itself.
    case down(reason: String)
    /// For the log: no connection, or the coordinator refused with this sentence.
    case attemptFailed(reason: String)
}

/// A worker's end of its control link: connects, says Hello, and connects again for ever.
public final class ControlClient: Sendable {
    public struct Configuration: Sendable {
        public var host: String
        public var port: Int
        /// The purpose is set to `control` here.
        public var hello: Hello
        /// Of the jitter of the waits between attempts.
        public var seed: UInt64
        /// The first wait after a loss; doubles with every failed attempt.
        public var backoffFirst: TimeSpan = .milliseconds(100)
        public var backoffMax: TimeSpan = .seconds(2)
        /// For the connection, and then for the HelloAck.
        public var connectWithin: TimeSpan = .seconds(2)
        /// A coordinator that says nothing for so long, not even that its heart beats, is cut off: bytes
        /// may go nowhere without either end being told.
        public var silenceMax: TimeSpan = .seconds(10)
        /// Bytes that wait for the coordinator; a link that does not take them is closed at this.
        public var outboundBytesMax: Int = 64 << 20

        public init(host: String, port: Int, hello: Hello, seed: UInt64) {
            self.host = host
            self.port = port
            self.hello = hello
            self.seed = seed
        }
    }

    private let loop: any EventLoop
    private let box: NIOLoopBoundBox<ControlClientState>

    /// `onEvent` is called on `loop`.
    public init(
        configuration: Configuration, loop: any EventLoop, onEvent: @escaping @Sendable (ControlClientEvent) -> Void
    ) {
        self.loop = loop
        box = .makeBoxSendingValue(
            ControlClientState(configuration: configuration, loop: loop, onEvent: onEvent), eventLoop: loop)
    }

    public func start() { onLoop { $0.start() } }

    /// From any thread; dropped while there is no link.
    public func send(_ message: Message) { onLoop { $0.send(message) } }

    /// Closes the link and stops connecting; no event comes after it.
    public func stop() -> EventLoopFuture<Void> {
        loop.submit { [box] in box.value.stop() }
    }

    private func onLoop(_ work: @escaping @Sendable (ControlClientState) -> Void) {
        if loop.inEventLoop {
            work(box.value)
        } else {
            loop.execute { [box] in work(box.value) }
        }
    }
}

/// The part of the client that lives on its loop.
final class ControlClientState {
    private enum Phase {
        case idle
        case connecting
        case greeting(ControlLink, deadline: Scheduled<Void>)
        case up(ControlLink)
        case waiting(Scheduled<Void>)
        case stopped
    }

    private let configuration: ControlClient.Configuration
    private let loop: any EventLoop
    private let onEvent: @Sendable (ControlClientEvent) -> Void
    private var phase: Phase = .idle
    private var backoff: Backoff
    private var lastHeard: NIODeadline = .now()

    init(
        configuration: ControlClient.Configuration, loop: any EventLoop,
        onEvent: @escaping @Sendable (ControlClientEvent) -> Void
    ) {
        self.configuration = configuration
        self.loop = loop
        self.onEvent = onEvent
        backoff = Backoff(
            first: configuration.backoffFirst, limit: configuration.backoffMax, seed: configuration.seed)
    }

    func start() {
        guard case .idle = phase else { return }
        connect()
    }

    func send(_ message: Message) {
        if case .up(let link) = phase { link.send(message) }
    }

    func stop() {
        let before = phase
        phase = .stopped
        switch before {
        case .greeting(let link, let deadline):
            deadline.cancel()
            close(link)
        case .up(let link): close(link)
        case .waiting(let timer): timer.cancel()
        case .idle, .connecting, .stopped: break
        }
    }

    private func close(_ link: ControlLink) {
        link.onEnd = nil
        link.finish("This end stops.")
    }

    private func connect() {
        phase = .connecting
        let link = ControlLink(own: configuration.hello.sender, outboundBytesMax: configuration.outboundBytesMax)
        let bound = NIOLoopBound(link, eventLoop: loop)
        let connection = ClientBootstrap(group: loop)
            .connectTimeout(.nanoseconds(configuration.connectWithin.nanoseconds))
            .channelOption(ChannelOptions.tcpOption(.tcp_nodelay), value: 1)
            .channelOption(ChannelOptions.socketOption(.so_keepalive), value: 1)
            .channelInitializer { channel in
                channel.eventLoop.makeCompletedFuture {
                    try channel.pipeline.syncOperations.addHandler(bound.value)
                }
            }
            .connect(host: configuration.host, port: configuration.port)
        connection.assumeIsolated().whenComplete { result in
            switch result {
            case .success(let channel): self.connected(link, channel)
            case .failure(let error): self.failed("No connection to the coordinator: \(error).")
            }
        }
    }

    private func connected(_ link: ControlLink, _ channel: any Channel) {
        guard case .connecting = phase else {
            channel.close(promise: nil)
            return
        }
        link.onEnvelope = { [weak self] in self?.received($0, on: link) }
        link.onEnd = { [weak self] in self?.ended($0) }
        let deadline = loop.assumeIsolated().scheduleTask(in: .nanoseconds(configuration.connectWithin.nanoseconds)) {
            link.end("No answer to Hello came within \(self.configuration.connectWithin.milliseconds) ms.")
        }
        phase = .greeting(link, deadline: deadline)
        var hello = configuration.hello
        hello.purpose = .control
        hello.relayTarget = nil
        link.send(.hello(hello))
    }

    private func received(_ envelope: Envelope, on link: ControlLink) {
        lastHeard = .now()
        switch phase {
        case .greeting(_, let deadline):
            deadline.cancel()
            guard case .helloAck(let answer) = envelope.message else {
                link.end("The answer to Hello was another message.")
                return
            }
            switch answer.verdict {
            case .refused(let sentence): link.end(sentence)
            case .accepted:
                backoff.reset()
                phase = .up(link)
                watch(link)
                onEvent(.up(answer))
            }
        case .up:
            guard LawfulMessages.onControlLink(envelope.message) else {
                link.end("A control link does not carry this message.")
                return
            }
            onEvent(.message(envelope))
        case .idle, .connecting, .waiting, .stopped: break
        }
    }

    private func watch(_ link: ControlLink) {
        let limit = TimeAmount.nanoseconds(configuration.silenceMax.nanoseconds)
        loop.assumeIsolated().scheduleTask(deadline: lastHeard + limit) { [weak self] in
            guard let self, case .up(let current) = self.phase, current === link else { return }
            guard NIODeadline.now() >= self.lastHeard + limit else { return self.watch(link) }
            link.end("The coordinator said nothing for \(self.configuration.silenceMax.milliseconds) ms.")
        }
    }

    private func ended(_ reason: String) {
        switch phase {
        case .greeting(_, let deadline):
            deadline.cancel()
            failed(reason)
        case .up:
            waitAndConnect()
            onEvent(.down(reason: reason))
        case .idle, .connecting, .waiting, .stopped: break
        }
    }

    private func failed(_ reason: String) {
        if case .stopped = phase { return }
        waitAndConnect()
        onEvent(.attemptFailed(reason: reason))
    }

    private func waitAndConnect() {
        let wait = TimeAmount.nanoseconds(backoff.next().nanoseconds)
        phase = .waiting(
            loop.assumeIsolated().scheduleTask(in: wait) { [weak self] in
                guard let self, case .waiting = self.phase else { return }
                self.connect()
            })
    }
}

/// Waits that double up to a limit, each between half and the whole of its step so that workers that
/// lost the same coordinator do not come back at one instant. The same seed gives the same waits.
struct Backoff {
    private let first: TimeSpan
    private let limit: TimeSpan
    private var step: TimeSpan
    private var state: UInt64

    init(first: TimeSpan, limit: TimeSpan, seed: UInt64) {
        self.first = first
        self.limit = limit
        step = first
        state = seed
    }

    mutating func next() -> TimeSpan {
        let half = step.nanoseconds / 2
        let jitter = half > 0 ? Int64(random() % UInt64(half)) : 0
        let wait = TimeSpan(nanoseconds: step.nanoseconds - half + jitter)
        step = min(step * 2, limit)
        return wait
    }

    mutating func reset() { step = first }

    /// SplitMix64.
    private mutating func random() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}
