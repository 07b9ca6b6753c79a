/// The first 24 bytes of every frame, little-endian: magic u16, version u8, kind u8, flags u16,
/// reserved u16, header length u32, header CRC32C u32, payload length u64 (disaggregation.md §6.8).
public struct FramePrefix: Hashable, Sendable {
    public static let byteCount = 24
    /// "TD".
    public static let magic: UInt16 = 0x4454
    public static let version: UInt8 = 1

    public var kind: FrameKind
    public var headerBytes: Int
    public var headerCRC: UInt32
    public var payloadBytes: Int

    public init(kind: FrameKind, headerBytes: Int, headerCRC: UInt32, payloadBytes: Int) {
        self.kind = kind
        self.headerBytes = headerBytes
        self.headerCRC = headerCRC
        self.payloadBytes = payloadBytes
    }

    /// Reads and judges a prefix; `bytes` holds at least `byteCount`. No length is trusted before it
    /// is compared with its kind's limit.
    public init(parsing bytes: UnsafeRawBufferPointer) throws(FrameError) {
        precondition(bytes.count >= Self.byteCount, "a frame prefix was parsed from too few bytes")
        let magic = UInt16(littleEndian: bytes.loadUnaligned(fromByteOffset: 0, as: UInt16.self))
        guard magic == Self.magic else { throw .badMagic(magic) }
        guard bytes[2] == Self.version else { throw .badVersion(bytes[2]) }
        guard let kind = FrameKind(rawValue: bytes[3]) else { throw .unknownKind(bytes[3]) }
        guard bytes.loadUnaligned(fromByteOffset: 4, as: UInt32.self) == 0 else { throw .reservedBits }
        let header = Int(UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 8, as: UInt32.self)))
        guard header <= kind.headerBytesMax else {
            throw .headerTooLarge(kind, bytes: header, limit: kind.headerBytesMax)
        }
        let payload = UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: 16, as: UInt64.self))
        guard payload <= UInt64(kind.payloadBytesMax) else {
            throw .payloadTooLarge(kind, bytes: payload, limit: kind.payloadBytesMax)
        }
        self.kind = kind
        headerBytes = header
        headerCRC = UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 12, as: UInt32.self))
        payloadBytes = Int(payload)
    }

    /// Writes the prefix to the first `byteCount` bytes of `bytes`.
    func write(to bytes: UnsafeMutableRawBufferPointer) {
        bytes.storeBytes(of: Self.magic.littleEndian, toByteOffset: 0, as: UInt16.self)
        bytes[2] = Self.version
        bytes[3] = kind.rawValue
        bytes.storeBytes(of: 0, toByteOffset: 4, as: UInt32.self)
        bytes.storeBytes(of: UInt32(headerBytes).littleEndian, toByteOffset: 8, as: UInt32.self)
        bytes.storeBytes(of: headerCRC.littleEndian, toByteOffset: 12, as: UInt32.self)
        bytes.storeBytes(of: UInt64(payloadBytes).littleEndian, toByteOffset: 16, as: UInt64.self)
    }
}
