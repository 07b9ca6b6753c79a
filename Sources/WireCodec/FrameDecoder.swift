import Messages

/// One frame as it came: the payload is empty except for `PagePush`.
public struct Frame: Sendable {
    public var envelope: Envelope
    public var payload: [UInt8]
}

/// Cuts a stream of bytes into frames. Holds at most one unfinished frame and what one `push` brought.
public struct FrameDecoder: ~Copyable {
    private let codec = FrameCodec()
    private let payloadBytesMax: Int
    private var buffer: [UInt8] = []
    private var start = 0
    private var prefix: FramePrefix?

    /// - Parameter payloadBytesMax: what the link carries beyond headers; 0 refuses every payload.
    public init(payloadBytesMax: Int = 0) {
        self.payloadBytesMax = payloadBytesMax
    }

    public mutating func push(_ bytes: UnsafeRawBufferPointer) {
        if start == buffer.count {
            buffer.removeAll(keepingCapacity: buffer.capacity <= WireLimits.plainHeaderBytesMax)
            start = 0
        } else if start > WireLimits.plainHeaderBytesMax {
            buffer.removeSubrange(..<start)
            start = 0
        }
        buffer.append(contentsOf: bytes)
    }

    /// The next whole frame, or nil until more is pushed. After an error the stream is lost.
    public mutating func next() throws(FrameError) -> Frame? {
        guard let prefix = try nextPrefix() else { return nil }
        let header = start + FramePrefix.byteCount
        let payload = header + prefix.headerBytes
        let end = payload + prefix.payloadBytes
        guard buffer.count >= end else { return nil }
        let envelope = try decode(prefix, header..<payload)
        let frame = Frame(envelope: envelope, payload: Array(buffer[payload..<end]))
        start = end
        self.prefix = nil
        return frame
    }

    private mutating func nextPrefix() throws(FrameError) -> FramePrefix? {
        if let prefix { return prefix }
        guard buffer.count - start >= FramePrefix.byteCount else { return nil }
        let range = start..<start + FramePrefix.byteCount
        let parsed = try buffer.withUnsafeBufferPointer { bytes throws(FrameError) in
            try FramePrefix(parsing: UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(bytes)[range]))
        }
        guard parsed.payloadBytes <= payloadBytesMax else {
            throw .payloadTooLarge(parsed.kind, bytes: UInt64(parsed.payloadBytes), limit: payloadBytesMax)
        }
        prefix = parsed
        return parsed
    }

    private func decode(_ prefix: FramePrefix, _ range: Range<Int>) throws(FrameError) -> Envelope {
        try buffer.withUnsafeBufferPointer { bytes throws(FrameError) in
            try codec.decodeHeader(prefix, UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(bytes)[range]))
        }
    }
}
