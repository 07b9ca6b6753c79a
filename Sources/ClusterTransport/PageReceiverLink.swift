import Messages
import ServingTypes
import Synchronization
import WireCodec

/// One accepted page link: its thread says Hello, then takes frames until the link ends.
final class PageReceiverLink: Sendable {
    private static let scratchBytes = 256 << 10

    let id: UInt64
    private let socket: LinkSocket
    private unowned let server: PageReceiverServer
    private let writer: LinkWriter
    private let closeReason = Mutex<String?>(nil)

    init(id: UInt64, socket: LinkSocket, server: PageReceiverServer) {
        self.id = id
        self.socket = socket
        self.server = server
        writer = LinkWriter(socket: socket, own: server.own, framesMax: server.configuration.outboundFramesMax)
    }

    func send(_ message: Message) { writer.send(message) }

    /// From any thread; the link's own thread then ends.
    func close(_ reason: String) {
        closeReason.withLock { $0 = $0 ?? reason }
        socket.shutDown()
    }

    func run() {
        socket.configure(server.configuration)
        let reader = FrameReader(socket: socket, minimumProgress: server.configuration.minimumProgress)
        guard let source = try? greet(reader) else {
            socket.shutDown()
            return
        }
        let writerThread = ThreadGroup()
        if !writerThread.start("pages-back", { [writer] in writer.run(after: 1) }) {
            close("The system has no more threads.")
        }
        server.onEvent(.linkUp(link: id, source: source))
        let reason = receiveAll(reader, from: source)
        socket.shutDown()
        writer.close()
        writerThread.join()
        server.onEvent(.linkDown(link: id, source: source, reason: closeReason.withLock { $0 } ?? reason))
    }

    // Handshake.

    private func greet(_ reader: FrameReader) throws(LinkEnd) -> WorkerRef {
        reader.deadline = TransportClock.now + server.configuration.helloWithin
        let hello = try Greeting.readHello(reader)
        let answer = Handshake.answer(hello.hello, purpose: .pages, own: server.own, judge: server.judge)
        try Greeting.send(.helloAck(answer), own: server.own, on: socket)
        if case .refused(let sentence) = answer.verdict {
            Greeting.lingerAfterRefusal(socket)
            throw LinkEnd(sentence)
        }
        reader.deadline = nil
        return hello.hello.sender
    }

    // Frames.

    private func receiveAll(_ reader: FrameReader, from source: WorkerRef) -> String {
        let scratch = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.scratchBytes, alignment: 64)
        defer { scratch.deallocate() }
        do throws(LinkEnd) {
            while let prefix = try reader.prefix() {
                let envelope = try reader.envelope(prefix)
                if case .pagePush(let push) = envelope.message {
                    try take(push, reader, from: source, scratch)
                } else {
                    try deliver(envelope.message, from: source)
                }
            }
            return "The peer closed the link."
        } catch { return error.reason }
    }

    private func deliver(_ message: Message, from source: WorkerRef) throws(LinkEnd) {
        guard LawfulMessages.onPageLink(message) else { throw LinkEnd("A page link does not carry this message.") }
        server.onEvent(.message(link: id, source: source, message))
    }

    // Pages.

    private func take(
        _ push: PagePush, _ reader: FrameReader, from source: WorkerRef, _ scratch: UnsafeMutableRawBufferPointer
    ) throws(LinkEnd) {
        switch permission(push, source) {
        case .write(let landing, let slot): try write(push, slot, landing, reader, scratch)
        case .repeated:
            try reader.drain(Int(push.payloadBytes), scratch: scratch)
            if push.offsetBytes + push.payloadBytes == push.pageBytes {
                send(.pageAck(PageAck(transfer: push.transfer, blocks: [push.block])))
            }
        case .refuse(let reason):
            try reader.drain(Int(push.payloadBytes), scratch: scratch)
            if let reason { refuse(push, reason) }
        case .busy:
            // `permission` waits for the other link; only one that never leaves gets here.
            try reader.drain(Int(push.payloadBytes), scratch: scratch)
            refuse(push, .noSlot)
        }
    }

    private func permission(_ push: PagePush, _ source: WorkerRef) -> LandingTable.Permission {
        guard push.targetEpoch == server.own.epoch else { return .refuse(.staleEpoch) }
        let (end, overflow) = push.offsetBytes.addingReportingOverflow(push.payloadBytes)
        guard !overflow, push.payloadBytes > 0, end <= push.pageBytes, Int(push.pageBytes) == server.memory.pageBytes
        else { return .refuse(.badRange) }
        let first = server.landings.enter(push, link: id, source: source)
        guard case .busy(let other) = first else { return first }
        // The same sender has come back on a new link while its old one still holds the slot.
        server.closeLink(other, reason: "The sender pushes the same page on a newer link.")
        server.landings.waitUntilFree(push)
        return server.landings.enter(push, link: id, source: source)
    }

    private func refuse(_ push: PagePush, _ reason: PageNack.Reason) {
        send(.pageNack(PageNack(transfer: push.transfer, block: push.block, reason: reason)))
        server.onEvent(.pageRefused(push.transfer, block: push.block, reason))
    }

    /// Reads the slice into its slot. Whatever happens, the thread leaves the slot before it returns.
    private func write(
        _ push: PagePush, _ slot: BlockSlot, _ landing: LandingTable.Landing, _ reader: FrameReader,
        _ scratch: UnsafeMutableRawBufferPointer
    ) throws(LinkEnd) {
        let wanted = Int(push.payloadBytes)
        let offset = Int(push.offsetBytes)
        let target = UnsafeMutableRawBufferPointer(rebasing: server.memory.page(slot)[offset..<offset + wanted])
        var crc: UInt32 = 0
        let result = Result { () throws(LinkEnd) in
            try reader.payload(into: target) { part in
                crc = CRC32C.checksum(part, seed: crc)
                return !landing.closed.load(ordering: .relaxed)
            }
        }
        let filled = (try? result.get()) ?? 0
        let outcome = server.landings.finish(push, link: id, crc: filled == wanted ? crc : nil)
        if case .landed(let pageCRC) = outcome {
            server.onEvent(
                .pageLanded(
                    push.transfer, block: push.block, filledTokens: Int(push.filledTokens),
                    receivedBytes: Int(push.pageBytes), pageCRC: pageCRC))
        }
        if server.landings.leave(push) { server.onEvent(.landingReleased(push.transfer)) }
        _ = try result.get()
        try reader.drain(wanted - filled, scratch: scratch)
        if case .refused(let reason) = outcome { refuse(push, reason) }
    }
}

/// The frames before a link is up, on a blocking socket.
enum Greeting {
    static func readHello(_ reader: FrameReader) throws(LinkEnd) -> (envelope: Envelope, hello: Hello) {
        guard let prefix = try reader.prefix() else { throw LinkEnd("The peer closed the link before Hello.") }
        guard prefix.kind == .hello else { throw LinkEnd("The first frame of a link must be Hello.") }
        let envelope = try reader.envelope(prefix)
        guard case .hello(let hello) = envelope.message else {
            throw LinkEnd("The first frame of a link must be Hello.")
        }
        return (envelope, hello)
    }

    static func readAnswer(_ reader: FrameReader) throws(LinkEnd) -> HelloAck {
        guard let prefix = try reader.prefix() else { throw LinkEnd("The peer closed the link before HelloAck.") }
        guard prefix.kind == .helloAck, case .helloAck(let answer) = try reader.envelope(prefix).message else {
            throw LinkEnd("The answer to Hello was another message.")
        }
        return answer
    }

    /// The first frame of one side.
    static func send(_ message: Message, own: WorkerRef, on socket: LinkSocket) throws(LinkEnd) {
        let envelope = Envelope(sequence: 1, sender: own, message: message)
        let frame: [UInt8]
        do throws(FrameError) {
            frame = try FrameCodec().encode(envelope)
        } catch { throw LinkEnd(error.description) }
        try socket.send(frame)
    }

    /// Lets the refused side read the sentence: closing at once with unread bytes would reset the link
    /// and lose it. Waits for the peer to close, a second at most.
    static func lingerAfterRefusal(_ socket: LinkSocket) {
        socket.finishSending()
        let deadline = TransportClock.now + .seconds(1)
        withUnsafeTemporaryAllocation(byteCount: 4096, alignment: 16) { buffer in
            while TransportClock.now < deadline {
                guard let received = try? socket.receive(into: buffer, all: false) else { return }
                if case .end = received { return }
            }
        }
    }
}
