import Messages
import NIOCore
import NIOPosix
import ServingTypes
import Testing
import WireCodec

@testable import ClusterTransport

@Suite struct ControlLinkTests {
    private static let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    private var loop: any EventLoop { Self.group.next() }

    @Test func bothEndsTalkInOrder() throws {
        let server = TestServer(loop)
        let client = TestClient(loop, port: try server.start())
        let link = try server.waitUp()
        try client.waitUp(1)
        for number in 0..<300 as Range<UInt64> {
            client.client.send(.cancelAck(CancelAck(transfer: Fixture.transfer(number))))
            server.server.send(.drain(Drain(deadline: TimeSpan(nanoseconds: Int64(number)))), to: link)
        }
        try client.log.wait("message", count: 300) { if case .message = $0 { true } else { false } }
        try server.log.wait("message", count: 300) { if case (_, .message) = $0 { true } else { false } }
        let deadlines = client.log.all.compactMap { event -> Int64? in
            guard case .message(let envelope) = event, case .drain(let drain) = envelope.message else { return nil }
            return drain.deadline.nanoseconds
        }
        #expect(deadlines == Array(0..<300))
        let sequences = server.log.all.compactMap { event -> UInt64? in
            if case (_, .message(let envelope)) = event { envelope.sequence } else { nil }
        }
        #expect(sequences == Array(2..<302))
        try client.stop()
        let reason = try server.log.wait("down") { if case (link, .down(let reason)) = $0 { reason } else { nil } }
        #expect(reason == "The peer closed the link.")
        try server.stop()
    }

    @Test func aLongMessageCrossesWhole() throws {
        let server = TestServer(loop)
        let client = TestClient(loop, port: try server.start())
        _ = try server.waitUp()
        try client.waitUp(1)
        let event = KVEvent(sequence: 1, change: .snapshot((0..<100_000).map { PageID($0, 1, 2, 3) }))
        client.client.send(.kvEvent(event))
        let received = try server.log.wait("kvEvent") { element -> KVEvent? in
            if case (_, .message(let envelope)) = element, case .kvEvent(let event) = envelope.message {
                event
            } else {
                nil
            }
        }
        #expect(received == event)
        try client.stop()
        try server.stop()
    }

    @Test func aCoordinatorThatSaysNothingIsCutOffAndConnectedAnew() throws {
        let server = TestServer(loop)
        let client = TestClient(loop, port: try server.start(), silenceMax: .milliseconds(30))
        try client.waitUp(3)
        let reason = try client.log.wait("down") { if case .down(let reason) = $0 { reason } else { nil } }
        #expect(reason == "The coordinator said nothing for 30.0 ms.")
        try client.stop()
        try server.stop()
    }

    @Test func aRefusedHelloBringsTheSentenceAndIsTriedAgain() throws {
        let server = TestServer(loop)
        let client = TestClient(
            loop, port: try server.start(), hello: Fixture.hello(CompatibilityDigest(PageID(0, 0, 0, 0))))
        try client.log.wait("attemptFailed", count: 2) {
            if case .attemptFailed("The digests differ.") = $0 { true } else { false }
        }
        #expect(server.log.all.isEmpty)
        try client.stop()
        try server.stop()
    }

    @Test func anotherProtocolVersionIsRefusedBeforeAnyoneIsAsked() throws {
        var hello = Fixture.hello()
        hello.versionMin = 7
        hello.versionMax = 9
        let server = TestServer(loop)
        let client = TestClient(loop, port: try server.start(), hello: hello)
        let reason = try client.log.wait("attemptFailed") {
            if case .attemptFailed(let reason) = $0 { reason } else { nil }
        }
        #expect(reason.hasSuffix("speaks protocol versions 7 to 9; this end speaks 1 to 1."))
        try client.stop()
        try server.stop()
    }

    @Test func theClientComesBackWhenTheServerDoes() throws {
        let first = TestServer(loop)
        let port = try first.start()
        let client = TestClient(loop, port: port)
        try client.waitUp(1)
        try first.stop()
        try client.log.wait("down") { if case .down = $0 { true } else { nil } }
        let second = TestServer(loop, port: port)
        #expect(try second.start() == port)
        try client.waitUp(2)
        _ = try second.waitUp()
        try client.stop()
        try second.stop()
    }

    @Test func theClientWaitsForAServerThatIsNotThereYet() throws {
        let port = try SocketFactory.listen(host: "127.0.0.1", port: 0).port
        let client = TestClient(loop, port: port)
        try client.log.wait("attemptFailed") { if case .attemptFailed = $0 { true } else { nil } }
        let server = TestServer(loop, port: port)
        _ = try server.start()
        try client.waitUp(1)
        try client.stop()
        try server.stop()
    }

    @Test func bytesThatAreNoFrameEndTheirLinkOnly() throws {
        let server = TestServer(loop)
        let port = try server.start()
        let client = TestClient(loop, port: port)
        try client.waitUp(1)
        let raw = try SocketFactory.connect(host: "127.0.0.1", port: port, within: .seconds(10))
        try raw.send(Array("GET / HTTP/1.1\r\nHost: x\r\n\r\n".utf8))
        #expect(try endOf(raw))
        client.client.send(.drainDone(DrainDone()))
        try server.log.wait("message") { if case (_, .message) = $0 { true } else { nil } }
        try client.stop()
        try server.stop()
    }

    @Test(arguments: [false, true])
    func aMessageOutOfPlaceEndsTheLink(afterHello: Bool) throws {
        let server = TestServer(loop)
        let port = try server.start()
        let raw = try SocketFactory.connect(host: "127.0.0.1", port: port, within: .seconds(10))
        if afterHello {
            try Greeting.send(.hello(Fixture.hello(purpose: .control)), own: Fixture.prefill, on: raw)
        }
        try Greeting.send(.credit(Credit(transfer: Fixture.transfer(1), bytes: 1)), own: Fixture.prefill, on: raw)
        #expect(try endOf(raw))
        if afterHello {
            try server.log.wait("down") {
                if case (_, .down("A control link does not carry this message.")) = $0 { true } else { nil }
            }
        }
        try server.stop()
    }

    @Test func aLinkThatSaysNothingIsClosed() throws {
        let server = TestServer(loop, helloWithin: .milliseconds(50))
        let raw = try SocketFactory.connect(host: "127.0.0.1", port: try server.start(), within: .seconds(10))
        #expect(try endOf(raw))
        try server.stop()
    }

    @Test func aPeerThatDoesNotReadIsClosedAtTheBound() throws {
        let server = TestServer(loop, outboundBytesMax: 1 << 20)
        let raw = try SocketFactory.connect(host: "127.0.0.1", port: try server.start(), within: .seconds(10))
        try Greeting.send(.hello(Fixture.hello(purpose: .control)), own: Fixture.prefill, on: raw)
        let link = try server.waitUp()
        let event = KVEvent(sequence: 1, change: .snapshot((0..<8000).map { PageID($0, 1, 2, 3) }))
        for _ in 0..<200 { server.server.send(.kvEvent(event), to: link) }
        let reason = try server.log.wait("down") { if case (link, .down(let reason)) = $0 { reason } else { nil } }
        #expect(reason == "The peer does not read: more than 1048576 bytes wait for it.")
        try withExtendedLifetime(raw) { try server.stop() }
    }

    @Test func waitsDoubleUpToTheirLimitAndRepeatWithTheSeed() {
        func waits(_ seed: UInt64) -> [Int64] {
            var backoff = Backoff(first: .milliseconds(100), limit: .seconds(2), seed: seed)
            return (0..<8).map { _ in backoff.next().nanoseconds / 1_000_000 }
        }
        #expect(waits(5) == waits(5))
        #expect(waits(5) != waits(6))
        for (wait, step) in zip(waits(5), [100, 200, 400, 800, 1600, 2000, 2000, 2000]) {
            #expect((Int64(step) / 2...Int64(step)).contains(wait))
        }
    }

    /// Whether the peer closes without another word than its HelloAck.
    private func endOf(_ socket: LinkSocket) throws -> Bool {
        socket.configure(PageLinkConfiguration())
        let reader = FrameReader(socket: socket, minimumProgress: .seconds(20))
        reader.deadline = TransportClock.now + .seconds(20)
        do {
            while let prefix = try reader.prefix() {
                guard case .helloAck = try reader.envelope(prefix).message else { return false }
            }
            return true
        } catch let end as LinkEnd {
            // A reset is an end, too.
            return end.reason.hasPrefix("Receiving failed")
        }
    }
}

private struct TestServer {
    let log = EventLog<(ControlLinkID, ControlServerEvent)>()
    let server: ControlServer

    init(
        _ loop: any EventLoop, port: Int = 0, helloWithin: TimeSpan = .seconds(10), outboundBytesMax: Int = 64 << 20
    ) {
        var configuration = ControlServer.Configuration(host: "127.0.0.1", port: port, responder: Fixture.coordinator)
        configuration.helloWithin = helloWithin
        configuration.outboundBytesMax = outboundBytesMax
        server = ControlServer(
            configuration: configuration, loop: loop, judge: Fixture.judge, onEvent: { [log] in log.add(($0, $1)) })
    }

    func start() throws -> Int { try server.start().wait() }
    func stop() throws { try server.stop().wait() }
    func waitUp() throws -> ControlLinkID { try log.wait("up") { if case (let link, .up) = $0 { link } else { nil } } }
}

private struct TestClient {
    let log = EventLog<ControlClientEvent>()
    let client: ControlClient

    init(_ loop: any EventLoop, port: Int, hello: Hello = Fixture.hello(), silenceMax: TimeSpan = .seconds(60)) {
        var configuration = ControlClient.Configuration(host: "127.0.0.1", port: port, hello: hello, seed: 1)
        configuration.backoffFirst = .milliseconds(5)
        configuration.backoffMax = .milliseconds(20)
        configuration.silenceMax = silenceMax
        client = ControlClient(configuration: configuration, loop: loop, onEvent: { [log] in log.add($0) })
        client.start()
    }

    func stop() throws { try client.stop().wait() }
    func waitUp(_ count: Int) throws {
        try log.wait("up", count: count) { if case .up = $0 { true } else { false } }
    }
}
