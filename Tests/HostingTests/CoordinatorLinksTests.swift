import ClusterTransport
import CoordinatorCore
import Logging
import Messages
import NIOCore
import NIOPosix
import ServingTypes
import Testing

@testable import Hosting

/// A coordinator's links on a real loop, and a worker that is only its control link.
private struct LinkBench: Sendable {
    let group = MultiThreadedEventLoopGroup(numberOfThreads: 1)
    let loop: any EventLoop
    let host: NIOLoopBound<CoordinatorHost>
    let links: NIOLoopBound<CoordinatorLinks>
    let controlPort: Int
    let worker = WorkerRef(id: WorkerID("decode-0"), epoch: Epoch(7))

    init(reconnectWithin: TimeAmount) async throws {
        let loop = group.any()
        self.loop = loop
        let digest = ClusterDigest.base(model: PageID(1, 2, 3, 4), kvType: "f32", blockTokens: 4)
        let log = Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() })
        host = try await loop.submit {
            var configuration = CoordinatorConfiguration()
            configuration.blockTokens = 4
            let host = CoordinatorHost(
                loop: loop, configuration: configuration, naming: SHA256PageNaming(compatibility: digest),
                files: nil, log: log)
            return NIOLoopBound(host, eventLoop: loop)
        }.get()
        links = try await loop.submit { [host] in
            let links = CoordinatorLinks(
                loop: loop, own: WorkerRef(id: WorkerID("coordinator"), epoch: Epoch(1)), host: host.value, log: log,
                reconnectWithin: reconnectWithin)
            return NIOLoopBound(links, eventLoop: loop)
        }.get()
        controlPort = try await loop.flatSubmit { [links] in links.value.start(host: "127.0.0.1", port: 0) }.get()
    }

    /// Connects and registers with this page listener.
    func join(dataPort: Int, held: [TransferID] = []) async throws -> ControlClient {
        let digest = CompatibilityDigest(PageID(9, 9, 9, 9))
        let hello = Hello(sender: worker, role: .decode, compatibility: digest, purpose: .control)
        let (events, continuation) = AsyncStream<Bool>.makeStream()
        let client = ControlClient(
            configuration: .init(host: "127.0.0.1", port: controlPort, hello: hello, seed: 1), loop: loop
        ) { event in
            switch event {
            case .up: continuation.yield(false)
            case .message(let envelope):
                if case .registerAck = envelope.message { continuation.yield(true) }
            case .down, .attemptFailed: break
            }
        }
        client.start()
        for await isRegistered in events {
            if isRegistered { break }
            client.send(
                .register(
                    Register(
                        role: .decode, dataHost: "127.0.0.1", dataPort: UInt16(clamping: dataPort), blockTokens: 4,
                        blockCount: 8, pageBytes: 64, batchJobsMax: 2, stepTokensMax: 16, processID: 1, held: held)))
        }
        return client
    }

    func workers() async throws -> (present: Int, lost: UInt64) {
        try await loop.submit { [host] in
            let snapshot = host.value.snapshot()
            return (snapshot.workers.count, snapshot.counters.workersLost)
        }.get()
    }

    func tearDown() async throws {
        try await loop.flatSubmit { [links] in links.value.stop() }.get()
        try await group.shutdownGracefully()
    }
}

@Suite struct CoordinatorLinksTests {
    @Test func aWorkerWhoseLinkBreaksAndReturnsIsNotLost() async throws {
        let bench = try await LinkBench(reconnectWithin: .seconds(60))
        let listener = try await ServerBootstrap(group: bench.loop).bind(host: "127.0.0.1", port: 0).get()
        let port = try #require(listener.localAddress?.port)
        try await bench.join(dataPort: port).stop().get()
        let second = try await bench.join(dataPort: port)
        let workers = try await bench.workers()
        #expect(workers.present == 1 && workers.lost == 0)
        try await second.stop().get()
        try await listener.close()
        try await bench.tearDown()
    }

    @Test func aWorkerWhoseListenerIsGoneIsGivenUpAtOnce() async throws {
        let bench = try await LinkBench(reconnectWithin: .seconds(3600))
        let listener = try await ServerBootstrap(group: bench.loop).bind(host: "127.0.0.1", port: 0).get()
        let port = try #require(listener.localAddress?.port)
        try await listener.close()
        try await bench.join(dataPort: port).stop().get()
        while try await bench.workers().present > 0 { try await Task.sleep(for: .milliseconds(5)) }
        #expect(try await bench.workers().lost == 1)
        try await bench.tearDown()
    }

    @Test func aWorkerThatDoesNotReturnIsGivenUpAfterTheGrace() async throws {
        let bench = try await LinkBench(reconnectWithin: .milliseconds(50))
        let listener = try await ServerBootstrap(group: bench.loop).bind(host: "127.0.0.1", port: 0).get()
        let port = try #require(listener.localAddress?.port)
        try await bench.join(dataPort: port).stop().get()
        while try await bench.workers().present > 0 { try await Task.sleep(for: .milliseconds(5)) }
        try await listener.close()
        try await bench.tearDown()
    }
}
