import Messages
import ServingTypes
import Testing

@testable import ClusterTransport

@Suite struct RelayTests {
    private let transfer = Fixture.transfer(1)

    @Test func theReceiverSeesTheSameBytesByEitherWay() throws {
        let direct = try record(path: .direct)
        let relayed = try record(path: .relay)
        #expect(direct == relayed)
        #expect(direct.count > 4000)
    }

    @Test func autoTakesTheRelayWhereThereIsNoDirectWay() throws {
        let receiver = try TestReceiver()
        receiver.open(transfer, blocks: 0..<4)
        let relay = relayServer { _ in ("127.0.0.1", receiver.port) }
        let relayPort = try relay.start()
        let sender = TestSender(port: try unusedPort(), path: .auto, relayPort: relayPort)
        sender.push(transfer, blocks: 0..<4)
        sender.sender.start()
        try receiver.waitLanded(4)
        try sender.log.wait("up") { if case .up(Fixture.decode, .relay) = $0 { true } else { nil } }
        #expect(relay.linkCount == 1)
        for block in 0..<UInt32(4) { #expect(receiver.pages.holds(block, seed: block)) }
        sender.sender.close()
        _ = try sender.waitDown()
        receiver.server.stop()
        relay.stop()
        #expect(relay.linkCount == 0)
    }

    @Test func autoTakesTheDirectWayWhereThereIsOne() throws {
        let receiver = try TestReceiver()
        let sender = TestSender(port: receiver.port, path: .auto, relayPort: try unusedPort())
        sender.sender.start()
        try sender.log.wait("up") { if case .up(Fixture.decode, .direct) = $0 { true } else { nil } }
        sender.sender.close()
        receiver.server.stop()
    }

    @Test func aTargetThatNobodyKnowsIsRefusedWithASentence() throws {
        let relay = relayServer { _ in nil }
        let sender = TestSender(port: 0, path: .relay, relayPort: try relay.start())
        sender.sender.start()
        #expect(try sender.waitDown() == "No worker named decode-0 takes pages here.")
        relay.stop()
    }

    @Test func aTargetThatDoesNotAnswerIsRefusedWithASentence() throws {
        let dead = try unusedPort()
        let relay = relayServer { _ in ("127.0.0.1", dead) }
        let sender = TestSender(port: 0, path: .relay, relayPort: try relay.start())
        sender.sender.start()
        #expect(try sender.waitDown().hasPrefix("No connection to 127.0.0.1:\(dead)."))
        relay.stop()
    }

    @Test func theFarEndsRefusalReachesTheSender() throws {
        let receiver = try TestReceiver()
        let relay = relayServer { _ in ("127.0.0.1", receiver.port) }
        let hello = Fixture.hello(CompatibilityDigest(PageID(5, 5, 5, 5)))
        let sender = TestSender(port: 0, path: .relay, relayPort: try relay.start(), hello: hello)
        sender.sender.start()
        #expect(try sender.waitDown() == "The digests differ.")
        receiver.server.stop()
        relay.stop()
    }

    @Test func whenTheReceiverGoesTheRelayedSenderHearsOfIt() throws {
        let receiver = try TestReceiver()
        let relay = relayServer { _ in ("127.0.0.1", receiver.port) }
        let sender = TestSender(port: 0, path: .relay, relayPort: try relay.start())
        sender.sender.start()
        try sender.log.wait("up") { if case .up = $0 { true } else { nil } }
        receiver.server.stop()
        _ = try sender.waitDown()
        relay.stop()
    }

    @Test func theNumberOfRelayedLinksIsBounded() throws {
        let receiver = try TestReceiver()
        var configuration = Fixture.configuration()
        configuration.linksMax = 1
        let relay = relayServer(configuration) { _ in ("127.0.0.1", receiver.port) }
        let port = try relay.start()
        let first = TestSender(port: 0, path: .relay, relayPort: port)
        first.sender.start()
        try first.log.wait("up") { if case .up = $0 { true } else { nil } }
        let second = TestSender(port: 0, path: .relay, relayPort: port)
        second.sender.start()
        _ = try second.waitDown()
        first.sender.close()
        receiver.server.stop()
        relay.stop()
    }

    // Helpers.

    private func relayServer(
        _ configuration: PageLinkConfiguration = Fixture.configuration(),
        _ resolve: @escaping @Sendable (WorkerID) -> (host: String, port: Int)?
    ) -> RelayServer {
        RelayServer(
            host: "127.0.0.1", port: 0, own: Fixture.coordinator, configuration: configuration, resolve: resolve)
    }

    /// A port that was free a moment ago.
    private func unusedPort() throws -> Int { try SocketFactory.listen(host: "127.0.0.1", port: 0).port }

    /// What the receiver is sent for four pages.
    private func record(path: KVPath) throws -> [UInt8] {
        let receiver = try TestReceiver()
        receiver.open(transfer, blocks: 0..<4)
        let proxy = try TestProxy(to: receiver.port)
        let relay = relayServer { _ in ("127.0.0.1", proxy.port) }
        let sender = TestSender(port: proxy.port, path: path, relayPort: try relay.start())
        sender.push(transfer, blocks: 0..<4)
        sender.sender.start()
        try receiver.waitLanded(4)
        for block in 0..<UInt32(4) { #expect(receiver.pages.holds(block, seed: block)) }
        sender.sender.close()
        _ = try sender.waitDown()
        relay.stop()
        proxy.stop()
        receiver.server.stop()
        return proxy.recorded.read { $0 }
    }
}
