import Messages
import ServingTypes
import WireCodec

public enum PageSenderEvent: Sendable {
    /// `via` is `direct` or `relay`.
    case up(responder: WorkerRef, via: KVPath)
    /// Any lawful message of the receiver.
    case message(Message)
    /// A page's last slice is with the kernel; `crc` is CRC32C of the whole page.
    case pageSent(TransferID, block: UInt32, sentBytes: Int, crc: UInt32)
    /// The fence: once per `stop`; no thread reads the transfer's slots any more.
    case pushesStopped(TransferID)
    /// The last event, except answers to `stop`; no thread reads any slot any more.
    case down(reason: String)
}

/// The sending end of one page link, to one incarnation of one worker: one thread writes, one reads.
/// It lives for one connection; whoever wants another makes another.
public final class PageSender: Sendable {
    private struct State {
        var queue: SendQueue
        /// What the writing thread has in its hands.
        var current: TransferID?
        /// Asked to stop while in its hands.
        var stopping: Set<TransferID> = []
        var isUp = false
        var closeReason: String?
        var ended = false
        var socket: LinkSocket?
    }

    private let target: WorkerRef
    private let host: String
    private let port: Int
    private let path: KVPath
    private let relay: (host: String, port: Int)?
    private let hello: Hello
    private let memory: any PageMemory
    private let configuration: PageLinkConfiguration
    private let onEvent: @Sendable (PageSenderEvent) -> Void
    private let state: Monitor<State>
    private let threads = ThreadGroup()

    /// - Parameters:
    ///   - target: the incarnation to reach; another one that answers is refused.
    ///   - relay: where the coordinator relays, for `path` relay and auto.
    ///   - hello: sender, role and digest; purpose and relay target are filled in here.
    ///   - onEvent: called on the transport's threads; hop to your own loop in it.
    public init(
        target: WorkerRef, host: String, port: Int, path: KVPath, relay: (host: String, port: Int)?, hello: Hello,
        memory: any PageMemory, configuration: PageLinkConfiguration = PageLinkConfiguration(),
        onEvent: @escaping @Sendable (PageSenderEvent) -> Void
    ) {
        self.target = target
        self.host = host
        self.port = port
        self.path = path
        self.relay = relay
        self.hello = hello
        self.memory = memory
        self.configuration = configuration
        self.onEvent = onEvent
        let slice = min(max(configuration.sliceBytesMax, 1), WireLimits.slicePayloadBytesMax)
        state = Monitor(State(queue: SendQueue(pageBytes: memory.pageBytes, sliceBytesMax: slice)))
    }

    public func start() {
        if !threads.start("pages-out", { [self] in run() }) {
            end("The system has no more threads.")
        }
    }

    /// Queues pages; may be called before `up`. The slots stay untouched until `pageSent`,
    /// `pushesStopped` or `down`.
    public func push(_ transfer: TransferID, _ pages: [PageToSend]) {
        enqueue { $0.push(transfer, pages) }
    }

    /// The message leaves after that transfer's queued pages.
    public func send(_ message: Message, after transfer: TransferID) {
        enqueue { $0.send(message, after: transfer) }
    }

    /// Drops what is queued for a transfer; `pushesStopped` follows, maybe before this returns.
    public func stop(_ transfer: TransferID) {
        let stopped = state.change { state in
            state.queue.remove(transfer)
            guard state.current == transfer else { return true }
            state.stopping.insert(transfer)
            return false
        }
        if stopped { onEvent(.pushesStopped(transfer)) }
    }

    /// Ends the link without waiting; `down` follows.
    public func close() { close("This end closed the link.") }

    /// Waits for the threads. Not to be called from `onEvent`.
    public func join() { threads.join() }

    private func enqueue(_ change: (inout SendQueue) -> Void) {
        let full = state.change { state in
            guard !state.ended, state.closeReason == nil else { return false }
            change(&state.queue)
            return state.queue.pageCount > configuration.queuedPagesMax
                || state.queue.messageCount > configuration.outboundFramesMax
        }
        if full { close("More pages or messages wait for \(target) than a link may hold.") }
    }

    private func close(_ reason: String) {
        let socket = state.change { state in
            state.closeReason = state.closeReason ?? reason
            return state.socket
        }
        socket?.shutDown()
    }

    // The writing thread.

    private func run() {
        do throws(LinkEnd) {
            let (socket, reader, answer, via) = try connect()
            onEvent(.up(responder: answer.responder, via: via))
            let readers = ThreadGroup()
            let started = readers.start("pages-acks") { [self] in read(reader.take()) }
            let reason = started ? write(socket) : "The system has no more threads."
            socket.shutDown()
            readers.join()
            end(reason)
        } catch { end(error.reason) }
    }

    private func end(_ reason: String) {
        let (final, stopped) = state.change { state in
            state.ended = true
            state.socket = nil
            defer { state.stopping = [] }
            return (state.closeReason ?? reason, state.stopping.sorted())
        }
        for transfer in stopped { onEvent(.pushesStopped(transfer)) }
        onEvent(.down(reason: final))
    }

    private typealias Connection = (socket: LinkSocket, reader: ReaderBox, answer: HelloAck, via: KVPath)

    /// Carries the reader from the thread that shakes hands to the one that reads on.
    ///
    /// `@unchecked Sendable`: `take` is called once, on the second thread, after the first is done with it.
    private final class ReaderBox: @unchecked Sendable {
        private let reader: FrameReader
        init(_ reader: FrameReader) { self.reader = reader }
        func take() -> FrameReader { reader }
    }

    private func connect() throws(LinkEnd) -> Connection {
        switch path {
        case .direct: return try connect(via: .direct)
        case .relay: return try connect(via: .relay)
        case .auto:
            do throws(LinkEnd) {
                return try connect(via: .direct)
            } catch {
                guard relay != nil, !error.isRefusal else { throw error }
                return try connect(via: .relay)
            }
        }
    }

    private func connect(via: KVPath) throws(LinkEnd) -> Connection {
        let relayed = via == .relay
        var end: (host: String, port: Int) = (host, port)
        if relayed {
            guard let relay else { throw LinkEnd("There is no relay to \(target).") }
            end = relay
        }
        let socket = try SocketFactory.connect(host: end.host, port: end.port, within: configuration.connectWithin)
        socket.configure(configuration)
        try adopt(socket)
        let reader = FrameReader(socket: socket, minimumProgress: configuration.minimumProgress)
        // A relay connects onward before the far end can answer.
        reader.deadline =
            TransportClock.now + configuration.helloWithin + (relayed ? configuration.connectWithin : .zero)
        var hello = hello
        hello.purpose = relayed ? .relay : .pages
        hello.relayTarget = relayed ? target.id : nil
        try Greeting.send(.hello(hello), own: hello.sender, on: socket)
        let answer = try Greeting.readAnswer(reader)
        if case .refused(let sentence) = answer.verdict { throw LinkEnd(refused: sentence) }
        guard answer.responder == target else {
            throw LinkEnd(refused: "The peer is \(answer.responder), not \(target).")
        }
        reader.deadline = nil
        return (socket, ReaderBox(reader), answer, via)
    }

    /// From here on `close` reaches the socket.
    private func adopt(_ socket: LinkSocket) throws(LinkEnd) {
        let reason = state.change { state in
            state.socket = socket
            return state.closeReason
        }
        if let reason { throw LinkEnd(refused: reason) }
    }

    private func write(_ socket: LinkSocket) -> String {
        let codec = FrameCodec()
        var sequence: UInt64 = 1
        do throws(LinkEnd) {
            while let work = nextWork() {
                sequence += 1
                let crc = try send(work, sequence, codec, socket)
                finished(work, crc)
            }
            return "This end closed the link."
        } catch { return error.reason }
    }

    private func nextWork() -> SendQueue.Work? {
        state.wait { state in
            if state.closeReason != nil { return .some(nil) }
            guard let work = state.queue.next() else { return nil }
            state.current = work.transfer
            return .some(work)
        }
    }

    /// Returns the CRC of the page up to and with the slice.
    private func send(_ work: SendQueue.Work, _ sequence: UInt64, _ codec: FrameCodec, _ socket: LinkSocket)
        throws(LinkEnd) -> UInt32
    {
        switch work {
        case .message(_, let message):
            try socket.send(try encode(message, sequence, codec))
            return 0
        case .slice(let slice):
            let page = UnsafeRawBufferPointer(memory.page(slice.page.slot))
            let payload = UnsafeRawBufferPointer(rebasing: page[slice.offset..<slice.offset + slice.count])
            let crc = CRC32C.checksum(payload)
            let push = PagePush(
                transfer: slice.transfer, targetEpoch: target.epoch, block: slice.page.block,
                filledTokens: UInt32(clamping: slice.page.filledTokens), offsetBytes: UInt32(slice.offset),
                pageBytes: UInt32(memory.pageBytes), payloadBytes: UInt32(slice.count), payloadCRC: crc)
            let header = try encode(.pagePush(push), sequence, codec)
            try header.withUnsafeBufferPointer { header throws(LinkEnd) in
                try socket.send(UnsafeRawBufferPointer(header), payload)
            }
            return CRC32C.combine(slice.crcBefore, crc, count: slice.count)
        }
    }

    private func encode(_ message: Message, _ sequence: UInt64, _ codec: FrameCodec) throws(LinkEnd) -> [UInt8] {
        do throws(FrameError) {
            return try codec.encode(Envelope(sequence: sequence, sender: hello.sender, message: message))
        } catch { throw LinkEnd(error.description) }
    }

    private func finished(_ work: SendQueue.Work, _ crc: UInt32) {
        if case .slice(let slice) = work, slice.isLast {
            onEvent(.pageSent(slice.transfer, block: slice.page.block, sentBytes: memory.pageBytes, crc: crc))
        }
        let stopped = state.change { state in
            state.current = nil
            guard state.stopping.remove(work.transfer) == nil else { return true }
            state.queue.advance(work, crc: crc)
            return false
        }
        if stopped { onEvent(.pushesStopped(work.transfer)) }
    }

    // The reading thread.

    private func read(_ reader: FrameReader) {
        do throws(LinkEnd) {
            while let prefix = try reader.prefix() {
                let message = try reader.envelope(prefix).message
                guard LawfulMessages.onPageLink(message) else {
                    throw LinkEnd("A page link does not carry this message back.")
                }
                onEvent(.message(message))
            }
            close("The receiver closed the link.")
        } catch { close(error.reason) }
    }
}
