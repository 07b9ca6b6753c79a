import Glibc
import Messages
import ServingTypes
import WireCodec

/// Reads frames from a blocking socket on one thread. Only prefixes and headers (and what happens to
/// come with them) pass through its small buffer; payloads go straight to where they belong.
final class FrameReader {
    /// Prefix and header of a push fit, and little of the payload behind them.
    private static let bufferBytes = 512
    private static let payloadChunkBytes = 256 << 10

    let socket: LinkSocket
    private let minimumProgress: TimeSpan
    private let codec = FrameCodec()
    private let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bufferBytes, alignment: 16)
    private var start = 0
    private var end = 0
    private var lastProgress = Instant.zero
    /// While set, everything must have come by then: for the handshake.
    var deadline: Instant?

    init(socket: LinkSocket, minimumProgress: TimeSpan) {
        self.socket = socket
        self.minimumProgress = minimumProgress
    }

    deinit { buffer.deallocate() }

    /// The next frame's prefix; nil where the peer closed between two frames.
    func prefix() throws(LinkEnd) -> FramePrefix? {
        guard try fill(FramePrefix.byteCount) else { return nil }
        let bytes = UnsafeRawBufferPointer(rebasing: buffer[start..<end])
        do throws(FrameError) {
            let prefix = try FramePrefix(parsing: bytes)
            start += FramePrefix.byteCount
            return prefix
        } catch { throw LinkEnd(error.description) }
    }

    /// The header after `prefix`.
    func envelope(_ prefix: FramePrefix) throws(LinkEnd) -> Envelope {
        if prefix.headerBytes <= buffer.count {
            guard try fill(prefix.headerBytes, withinFrame: true) else { throw Self.cut }
            let header = UnsafeRawBufferPointer(rebasing: buffer[start..<start + prefix.headerBytes])
            start += prefix.headerBytes
            return try decode(prefix, header)
        }
        let header = UnsafeMutableRawBufferPointer.allocate(byteCount: prefix.headerBytes, alignment: 16)
        defer { header.deallocate() }
        _ = try payload(into: header) { _ in true }
        return try decode(prefix, UnsafeRawBufferPointer(header))
    }

    private func decode(_ prefix: FramePrefix, _ header: UnsafeRawBufferPointer) throws(LinkEnd) -> Envelope {
        do throws(FrameError) {
            return try codec.decodeHeader(prefix, header)
        } catch { throw LinkEnd(error.description) }
    }

    /// Fills `target`. After every part `goOn` sees it, and at least once per tick it sees an empty one;
    /// false ends the reading. Returns how many bytes are in.
    func payload(
        into target: UnsafeMutableRawBufferPointer, goOn: (UnsafeRawBufferPointer) -> Bool
    ) throws(LinkEnd) -> Int {
        var filled = 0
        lastProgress = TransportClock.now
        while filled < target.count {
            let rest = UnsafeMutableRawBufferPointer(rebasing: target[filled...])
            let count = try start < end ? takeBuffered(rest) : receiveChunk(rest)
            let part = UnsafeRawBufferPointer(rebasing: rest[..<count])
            filled += count
            if !goOn(part) { return filled }
        }
        return filled
    }

    /// Reads `count` bytes of payload to nowhere.
    func drain(_ count: Int, scratch: UnsafeMutableRawBufferPointer) throws(LinkEnd) {
        var left = count
        while left > 0 {
            let part = UnsafeMutableRawBufferPointer(rebasing: scratch[..<min(left, scratch.count)])
            left -= try payload(into: part) { _ in true }
        }
    }

    /// What was received beyond the frames taken.
    func takeRest() -> [UInt8] {
        defer { start = end }
        return Array(buffer[start..<end])
    }

    private func takeBuffered(_ target: UnsafeMutableRawBufferPointer) -> Int {
        let count = min(target.count, end - start)
        target.copyMemory(from: UnsafeRawBufferPointer(rebasing: buffer[start..<start + count]))
        start += count
        return count
    }

    private func receiveChunk(_ target: UnsafeMutableRawBufferPointer) throws(LinkEnd) -> Int {
        let part = UnsafeMutableRawBufferPointer(rebasing: target[..<min(target.count, Self.payloadChunkBytes)])
        switch try socket.receive(into: part, all: true) {
        case .bytes(let count):
            lastProgress = TransportClock.now
            return count
        case .end: throw Self.cut
        case .nothing:
            try checkProgress()
            return 0
        }
    }

    private static var cut: LinkEnd { LinkEnd("The peer closed the link within a frame.") }

    /// Has `count` bytes in the buffer. False where the peer closed before the first of them.
    private func fill(_ count: Int, withinFrame: Bool = false) throws(LinkEnd) -> Bool {
        if end - start >= count { return true }
        compact()
        if !withinFrame && start == end { _ = try waitForFrame() }
        lastProgress = TransportClock.now
        while end - start < count {
            switch try socket.receive(into: UnsafeMutableRawBufferPointer(rebasing: buffer[end...]), all: false) {
            case .bytes(let received):
                end += received
                lastProgress = TransportClock.now
                try checkProgress()
            case .end:
                guard start == end, !withinFrame else { throw Self.cut }
                return false
            case .nothing: try checkProgress()
            }
        }
        return true
    }

    private func compact() {
        guard start > 0 else { return }
        let left = UnsafeRawBufferPointer(rebasing: buffer[start..<end])
        // Overlap is allowed: copyMemory moves.
        buffer.copyMemory(from: left)
        end -= start
        start = 0
    }

    private func waitForFrame() throws(LinkEnd) {
        guard try socket.waitReadable(until: deadline) else {
            throw LinkEnd("The peer said nothing in time.")
        }
    }

    private func checkProgress() throws(LinkEnd) {
        let now = TransportClock.now
        guard now - lastProgress < minimumProgress else {
            throw LinkEnd("The peer sent no byte of an unfinished frame for \(minimumProgress.milliseconds) ms.")
        }
        if let deadline, now > deadline { throw LinkEnd("The peer did not finish in time.") }
    }
}
