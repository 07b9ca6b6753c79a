import Messages
import ServingTypes
import WireCodec

/// Small messages to one peer, sent in order by a thread of their own.
final class LinkWriter: Sendable {
    private struct State {
        var queue: [Message] = []
        var closed = false
    }

    private let socket: LinkSocket
    private let own: WorkerRef
    private let framesMax: Int
    private let state = Monitor(State())

    init(socket: LinkSocket, own: WorkerRef, framesMax: Int) {
        self.socket = socket
        self.own = own
        self.framesMax = framesMax
    }

    /// False where the queue was full: the link is ended.
    @discardableResult
    func send(_ message: Message) -> Bool {
        let accepted = state.change { state in
            guard !state.closed else { return true }
            guard state.queue.count < framesMax else {
                state.closed = true
                return false
            }
            state.queue.append(message)
            return true
        }
        if !accepted { socket.shutDown() }
        return accepted
    }

    /// Runs on the writer's thread until `close` or an error; an error shuts the socket down.
    /// `sequence` is the last one used.
    func run(after sequence: UInt64) {
        let codec = FrameCodec()
        var sequence = sequence
        while let messages = nextMessages() {
            do throws(LinkEnd) {
                for message in messages {
                    sequence += 1
                    try socket.send(try encode(message, sequence, codec))
                }
            } catch {
                close()
                socket.shutDown()
            }
        }
    }

    private func encode(_ message: Message, _ sequence: UInt64, _ codec: FrameCodec) throws(LinkEnd) -> [UInt8] {
        do throws(FrameError) {
            return try codec.encode(Envelope(sequence: sequence, sender: own, message: message))
        } catch { throw LinkEnd(error.description) }
    }

    func close() {
        state.change { state in
            state.closed = true
            state.queue = []
        }
    }

    private func nextMessages() -> [Message]? {
        state.wait { state in
            if state.closed { return .some(nil) }
            guard !state.queue.isEmpty else { return nil }
            defer { state.queue = [] }
            return .some(state.queue)
        }
    }
}
