import Foundation
import Messages
import ServingTypes
import Testing
import WireCodec

@testable import ClusterTransport

/// Pages whose every byte says where it belongs.
///
/// `@unchecked Sendable`: the memory's users agree on who touches it when, as they do in a worker.
final class TestPages: PageMemory, @unchecked Sendable {
    let pageBytes: Int
    private let memory: UnsafeMutableRawBufferPointer

    init(pageBytes: Int, count: Int) {
        self.pageBytes = pageBytes
        memory = .allocate(byteCount: pageBytes * count, alignment: 64)
        memory.initializeMemory(as: UInt8.self, repeating: 0)
    }

    deinit { memory.deallocate() }

    func page(_ slot: BlockSlot) -> UnsafeMutableRawBufferPointer {
        let start = Int(slot.index) * pageBytes
        return UnsafeMutableRawBufferPointer(rebasing: memory[start..<start + pageBytes])
    }

    static func contents(_ seed: UInt32, _ pageBytes: Int) -> [UInt8] {
        (0..<pageBytes).map { UInt8(truncatingIfNeeded: ($0 &* 31) ^ ($0 >> 8) ^ Int(seed &* 131)) }
    }

    func fill(_ slot: UInt32, seed: UInt32) {
        page(BlockSlot(slot)).copyBytes(from: Self.contents(seed, pageBytes))
    }

    func holds(_ slot: UInt32, seed: UInt32) -> Bool {
        page(BlockSlot(slot)).elementsEqual(Self.contents(seed, pageBytes))
    }
}

/// Pages that are handed out only once the gate is open: a sender can be held with one in its hands.
final class GatedPages: PageMemory {
    private let pages: TestPages
    private let asked = Monitor(0)
    private let isOpen = Monitor(false)

    init(pageBytes: Int, count: Int) { pages = TestPages(pageBytes: pageBytes, count: count) }

    var pageBytes: Int { pages.pageBytes }
    var timesAsked: Int { asked.read { $0 } }

    func page(_ slot: BlockSlot) -> UnsafeMutableRawBufferPointer {
        asked.change { $0 += 1 }
        isOpen.wait { $0 ? () : nil }
        return pages.page(slot)
    }

    func waitUntilAsked() { asked.wait { $0 > 0 ? () : nil } }
    func open() { isOpen.change { $0 = true } }
}

/// Events in the order they came, to be waited for. A wait that takes far too long fails the test.
final class EventLog<Event: Sendable>: Sendable {
    private let events = Monitor<[Event]>([])

    func add(_ event: Event) { events.change { $0.append(event) } }

    var all: [Event] { events.read { $0 } }

    /// The first result that `pick` finds in any event, waiting for it.
    @discardableResult
    func wait<R>(_ what: String, _ pick: (Event) -> R?) throws -> R {
        let patience = Date(timeIntervalSinceNow: 20)
        while true {
            if let found = all.lazy.compactMap(pick).first { return found }
            try #require(Date() < patience, "waited too long for \(what); events: \(all)")
            usleep(500)
        }
    }

    func wait(_ what: String, count: Int, _ matches: (Event) -> Bool) throws {
        let patience = Date(timeIntervalSinceNow: 20)
        while all.filter(matches).count < count {
            try #require(Date() < patience, "waited too long for \(count) x \(what); events: \(all)")
            usleep(500)
        }
    }
}

enum Fixture {
    static let prefill = WorkerRef(id: WorkerID("prefill-0"), epoch: Epoch(1))
    static let decode = WorkerRef(id: WorkerID("decode-0"), epoch: Epoch(2))
    static let coordinator = WorkerRef(id: WorkerID("coordinator"), epoch: Epoch(3))
    static let digest = CompatibilityDigest(PageID(1, 2, 3, 4))

    static func transfer(_ number: UInt64) -> TransferID {
        TransferID(job: JobID(high: 9, low: number), attempt: .first)
    }

    static func hello(_ digest: CompatibilityDigest = digest, purpose: LinkPurpose = .pages) -> Hello {
        Hello(sender: prefill, role: .prefill, compatibility: digest, purpose: purpose)
    }

    static func configuration(slice: Int = 256) -> PageLinkConfiguration {
        var configuration = PageLinkConfiguration()
        configuration.sliceBytesMax = slice
        return configuration
    }

    static func judge(_ hello: Hello) -> HelloAck.Verdict {
        hello.compatibility == digest ? .accepted : .refused("The digests differ.")
    }
}

/// A receiver of pages and what it reported.
struct TestReceiver {
    let pages: TestPages
    let log = EventLog<PageReceiverEvent>()
    let server: PageReceiverServer
    let port: Int

    init(pageBytes: Int = 1000, slots: Int = 16, _ configuration: PageLinkConfiguration = Fixture.configuration())
        throws
    {
        pages = TestPages(pageBytes: pageBytes, count: slots)
        server = PageReceiverServer(
            host: "127.0.0.1", port: 0, own: Fixture.decode, memory: pages, configuration: configuration,
            judge: Fixture.judge, onEvent: { [log] in log.add($0) })
        port = try server.start()
    }

    func open(_ transfer: TransferID, blocks: Range<UInt32>) {
        server.openLanding(
            transfer, source: Fixture.prefill, pages: blocks.map { LandingPage(block: $0, slot: BlockSlot($0)) })
    }

    /// Until a receiver's thread writes to one of the transfer's slots.
    func waitInside(_ transfer: TransferID) throws {
        let patience = Date(timeIntervalSinceNow: 20)
        while server.landings.threadsInside(transfer) == 0 {
            try #require(Date() < patience, "no thread entered a slot of \(transfer)")
            usleep(500)
        }
    }

    func waitLanded(_ count: Int) throws {
        try log.wait("pageLanded", count: count) { if case .pageLanded = $0 { true } else { false } }
    }

    var landed: [UInt32: UInt32] {
        var result: [UInt32: UInt32] = [:]
        for case .pageLanded(_, let block, _, _, let crc) in log.all { result[block] = crc }
        return result
    }
}

/// A sender of pages and what it reported.
struct TestSender {
    let pages: TestPages
    let log = EventLog<PageSenderEvent>()
    let sender: PageSender

    init(
        port: Int, path: KVPath = .direct, relayPort: Int? = nil, pageBytes: Int = 1000, slots: Int = 16,
        hello: Hello = Fixture.hello(), target: WorkerRef = Fixture.decode,
        _ configuration: PageLinkConfiguration = Fixture.configuration()
    ) {
        pages = TestPages(pageBytes: pageBytes, count: slots)
        for slot in 0..<UInt32(slots) { pages.fill(slot, seed: slot) }
        sender = PageSender(
            target: target, host: "127.0.0.1", port: port, path: path,
            relay: relayPort.map { ("127.0.0.1", $0) }, hello: hello, memory: pages, configuration: configuration,
            onEvent: { [log] in log.add($0) })
    }

    func push(_ transfer: TransferID, blocks: Range<UInt32>) {
        sender.push(transfer, blocks.map { PageToSend(block: $0, slot: BlockSlot($0), filledTokens: 16) })
    }

    func waitDown() throws -> String {
        let reason = try log.wait("down") { if case .down(let reason) = $0 { reason } else { nil } }
        sender.join()
        return reason
    }
}

/// A sender written by hand, to say what a right one never says.
struct RawSender {
    let socket: LinkSocket
    let reader: FrameReader
    private let codec = FrameCodec()

    init(port: Int, hello: Hello? = Fixture.hello()) throws {
        socket = try SocketFactory.connect(host: "127.0.0.1", port: port, within: .seconds(10))
        socket.configure(PageLinkConfiguration())
        reader = FrameReader(socket: socket, minimumProgress: .seconds(20))
        if let hello {
            try Greeting.send(.hello(hello), own: Fixture.prefill, on: socket)
            #expect(try Greeting.readAnswer(reader).verdict == .accepted)
        }
    }

    func send(_ message: Message) throws {
        try socket.send(try codec.encode(Envelope(sequence: 2, sender: Fixture.prefill, message: message)))
    }

    func receive() throws -> Message? {
        reader.deadline = TransportClock.now + .seconds(20)
        guard let prefix = try reader.prefix() else { return nil }
        return try reader.envelope(prefix).message
    }

    static func push(
        _ transfer: TransferID, block: UInt32, payload: [UInt8], offset: UInt32 = 0, pageBytes: UInt32 = 1000,
        epoch: Epoch = Fixture.decode.epoch, crc: UInt32? = nil
    ) -> Message {
        .pagePush(
            PagePush(
                transfer: transfer, targetEpoch: epoch, block: block, filledTokens: 16, offsetBytes: offset,
                pageBytes: pageBytes, payloadBytes: UInt32(payload.count),
                payloadCRC: crc ?? payload.withUnsafeBytes { CRC32C.checksum($0) }))
    }
}

/// A link in between that spoils what the client sends: the only place where faults come from.
final class TestProxy: Sendable {
    enum Fault {
        case none
        /// Both sides see the end after this many bytes.
        case cut(after: Int)
        case flip(at: Int)
    }

    let port: Int
    let recorded = Monitor<[UInt8]>([])
    private let listener: LinkSocket
    private let threads = ThreadGroup()

    init(to target: Int, _ fault: Fault = .none) throws {
        let listening = try SocketFactory.listen(host: "127.0.0.1", port: 0)
        listener = listening.socket
        port = listening.port
        threads.start("proxy") { [listener, threads, recorded] in
            guard let near = SocketFactory.accept(listener),
                let far = try? SocketFactory.connect(host: "127.0.0.1", port: target, within: .seconds(10))
            else { return }
            threads.start("proxy-back") { Self.copy(from: far, to: near) { .pass($0) } }
            let seen = Monitor(0)
            Self.copy(from: near, to: far) { bytes in
                recorded.change { $0 += bytes }
                let before = seen.change { count in
                    defer { count += bytes.count }
                    return count
                }
                return Self.spoil(bytes, before, fault)
            }
            far.shutDown()
            near.shutDown()
        }
    }

    func stop() {
        listener.shutDown()
        threads.join()
    }

    private enum Step {
        case pass([UInt8])
        case last([UInt8])
    }

    private static func spoil(_ bytes: [UInt8], _ before: Int, _ fault: Fault) -> Step {
        switch fault {
        case .cut(let limit) where before + bytes.count >= limit: return .last(Array(bytes.prefix(limit - before)))
        case .flip(let index) where (before..<before + bytes.count).contains(index):
            var spoiled = bytes
            spoiled[index - before] ^= 0x10
            return .pass(spoiled)
        case .none, .cut, .flip: return .pass(bytes)
        }
    }

    private static func copy(from source: LinkSocket, to sink: LinkSocket, _ step: ([UInt8]) -> Step) {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: 4096, alignment: 16)
        defer { buffer.deallocate() }
        do {
            while case .bytes(let count) = try source.receive(into: buffer, all: false) {
                switch step(Array(buffer[..<count])) {
                case .pass(let bytes): try sink.send(bytes)
                case .last(let bytes):
                    try sink.send(bytes)
                    return
                }
            }
            sink.finishSending()
        } catch { sink.shutDown() }
    }
}
