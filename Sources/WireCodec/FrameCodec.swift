import CWire
import Messages
import ServingTypes

/// Turns envelopes into frames and headers into envelopes, with memory of its own that is used again
/// for every message. For one thread at a time.
public final class FrameCodec {
    private let arena: OpaquePointer

    public init() {
        guard let arena = tandem_arena_create() else { preconditionFailure("out of memory") }
        self.arena = arena
    }

    deinit { tandem_arena_destroy(arena) }

    /// Prefix and header. The payload of a `PagePush` is announced, and follows by the sender's hand.
    /// Throws what the peer would say to such a frame.
    public func encode(_ envelope: Envelope) throws(FrameError) -> [UInt8] {
        let kind = FrameKind(of: envelope.message)
        tandem_arena_reset(arena, WireLimits.packBytesMax)
        let message = try WireWriter(arena: arena, kind: kind).envelope(envelope)
        let size = tandem__envelope__get_packed_size(message)
        guard size <= kind.headerBytesMax else {
            throw .headerTooLarge(kind, bytes: size, limit: kind.headerBytesMax)
        }
        let payload = Self.payloadBytes(of: envelope.message)
        guard payload <= kind.payloadBytesMax else {
            throw .payloadTooLarge(kind, bytes: UInt64(payload), limit: kind.payloadBytesMax)
        }
        return [UInt8](unsafeUninitializedCapacity: FramePrefix.byteCount + size) { buffer, count in
            let bytes = UnsafeMutableRawBufferPointer(buffer)
            let header = UnsafeMutableRawBufferPointer(rebasing: bytes[FramePrefix.byteCount...])
            tandem__envelope__pack(message, header.baseAddress?.assumingMemoryBound(to: UInt8.self))
            let crc = CRC32C.checksum(UnsafeRawBufferPointer(header))
            FramePrefix(kind: kind, headerBytes: size, headerCRC: crc, payloadBytes: payload).write(to: bytes)
            count = FramePrefix.byteCount + size
        }
    }

    /// `header` holds exactly the bytes that the prefix announced.
    public func decodeHeader(_ prefix: FramePrefix, _ header: UnsafeRawBufferPointer) throws(FrameError) -> Envelope {
        precondition(
            header.count == prefix.headerBytes, "a header was decoded with another length than its prefix says")
        let kind = prefix.kind
        guard CRC32C.checksum(header) == prefix.headerCRC else { throw .headerChecksum(kind) }
        let limit = min(
            WireLimits.unpackBytesBase + WireLimits.unpackFactor * header.count, WireLimits.unpackBytesMax)
        tandem_arena_reset(arena, limit)
        let allocator = tandem_arena_allocator(arena)
        let bytes = header.baseAddress?.assumingMemoryBound(to: UInt8.self)
        guard let message = tandem__envelope__unpack(allocator, header.count, bytes) else {
            if tandem_arena_overflowed(arena) != 0 { throw .unpackTooLarge(kind, limit: limit) }
            throw .malformed(kind, field: "(the whole header)")
        }
        guard message.pointee.body_case.rawValue == UInt32(kind.rawValue) else {
            throw .malformed(kind, field: "body")
        }
        let envelope = try WireReader(kind: kind).envelope(message)
        guard Self.payloadBytes(of: envelope.message) == prefix.payloadBytes else {
            throw .malformed(kind, field: "payload_bytes")
        }
        return envelope
    }

    private static func payloadBytes(of message: Message) -> Int {
        if case .pagePush(let push) = message { Int(push.payloadBytes) } else { 0 }
    }
}
