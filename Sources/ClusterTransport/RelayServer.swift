import Messages
import ServingTypes
import WireCodec

/// The coordinator's splice between two workers that cannot reach each other: it reads the first
/// frame, connects onward, and from then on moves bytes without looking at them, on threads of its
/// own and with one buffer per direction.
public final class RelayServer: Sendable {
    private struct Links {
        var next: UInt64 = 1
        /// Both sockets of every link.
        var open: [UInt64: [LinkSocket]] = [:]
        var listener: LinkSocket?
        var stopped = false
    }

    private static let bufferBytes = 256 << 10

    private let host: String
    private let port: Int
    private let own: WorkerRef
    private let configuration: PageLinkConfiguration
    private let resolve: @Sendable (WorkerID) -> (host: String, port: Int)?
    private let links = Monitor(Links())
    private let threads = ThreadGroup()

    /// - Parameters:
    ///   - port: 0 lets the kernel choose.
    ///   - own: signs refusals.
    ///   - resolve: where the target's page listener is; nil refuses. Called on the relay's threads.
    public init(
        host: String, port: Int, own: WorkerRef, configuration: PageLinkConfiguration = PageLinkConfiguration(),
        resolve: @escaping @Sendable (WorkerID) -> (host: String, port: Int)?
    ) {
        self.host = host
        self.port = port
        self.own = own
        self.configuration = configuration
        self.resolve = resolve
    }

    /// Listens and accepts on a thread of its own; returns the port.
    public func start() throws(ServingError) -> Int {
        let listening: (socket: LinkSocket, port: Int)
        do throws(LinkEnd) {
            listening = try SocketFactory.listen(host: host, port: port)
        } catch { throw ServingError(.internalError, error.reason, blast: .process) }
        links.change { $0.listener = listening.socket }
        threads.start("relay-accept") { [self] in acceptAll(listening.socket) }
        return listening.port
    }

    /// Links at this moment, those in their handshake included.
    public var linkCount: Int { links.read { $0.open.count } }

    /// Ends all links and waits for their threads.
    public func stop() {
        let (listener, sockets) = links.change { links in
            links.stopped = true
            return (links.listener, links.open.values.flatMap { $0 })
        }
        listener?.shutDown()
        for socket in sockets { socket.shutDown() }
        threads.join()
    }

    private func acceptAll(_ listener: LinkSocket) {
        while let socket = SocketFactory.accept(listener) {
            guard let id = admit(socket) else { continue }
            let started = threads.start("relay") { [self] in
                relay(id, socket)
                links.change { $0.open[id] = nil }
            }
            if !started { links.change { $0.open[id] = nil } }
        }
    }

    private func admit(_ socket: LinkSocket) -> UInt64? {
        links.change { links in
            guard !links.stopped, links.open.count < configuration.linksMax else { return nil }
            defer { links.next += 1 }
            links.open[links.next] = [socket]
            return links.next
        }
    }

    private func relay(_ id: UInt64, _ near: LinkSocket) {
        near.configure(configuration)
        let reader = FrameReader(socket: near, minimumProgress: configuration.minimumProgress)
        reader.deadline = TransportClock.now + configuration.helloWithin
        do throws(LinkEnd) {
            let (envelope, hello) = try Greeting.readHello(reader)
            let far = try connectOnward(id, envelope, hello)
            try far.send(reader.takeRest())
            let back = ThreadGroup()
            back.start("relay-back") { Self.move(from: far, to: near) }
            Self.move(from: near, to: far)
            back.join()
        } catch {
            refuse(error.reason, on: near)
        }
        near.shutDown()
    }

    private func connectOnward(_ id: UInt64, _ envelope: Envelope, _ hello: Hello) throws(LinkEnd) -> LinkSocket {
        guard hello.purpose == .relay, let target = hello.relayTarget else {
            throw LinkEnd("This port takes relay links with a target; the peer asked for \(hello.purpose.rawValue).")
        }
        guard let end = resolve(target) else { throw LinkEnd("No worker named \(target) takes pages here.") }
        let far = try SocketFactory.connect(host: end.host, port: end.port, within: configuration.connectWithin)
        far.configure(configuration)
        let stopped = links.change { links in
            links.open[id]?.append(far)
            return links.stopped
        }
        guard !stopped else { throw LinkEnd("The relay stops.") }
        var onward = hello
        onward.purpose = .pages
        onward.relayTarget = nil
        try Greeting.send(.hello(onward), own: envelope.sender, on: far)
        return far
    }

    private func refuse(_ sentence: String, on near: LinkSocket) {
        let answer = HelloAck(version: ProtocolVersion.current, responder: own, verdict: .refused(sentence))
        // The peer may be gone already, and then nobody is left to tell.
        guard (try? Greeting.send(.helloAck(answer), own: own, on: near)) != nil else { return }
        Greeting.lingerAfterRefusal(near)
    }

    /// Moves bytes until `source` ends; then `sink` sees the end, too. An error ends both.
    private static func move(from source: LinkSocket, to sink: LinkSocket) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bufferBytes, alignment: 64)
        defer { buffer.deallocate() }
        do throws(LinkEnd) {
            while try source.waitReadable(until: nil) {
                switch try source.receive(into: buffer, all: false) {
                case .bytes(let count):
                    let part = UnsafeRawBufferPointer(rebasing: buffer[..<count])
                    try sink.send(part, UnsafeRawBufferPointer(start: nil, count: 0))
                case .nothing: break
                case .end:
                    sink.finishSending()
                    return
                }
            }
        } catch {
            source.shutDown()
            sink.shutDown()
        }
    }
}
