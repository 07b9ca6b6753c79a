import ServingTypes

/// Why bytes from a peer are no frame. Every one of these ends the link they came by: after it,
/// nothing tells where the next frame begins.
public enum FrameError: Error, Hashable, Sendable, CustomStringConvertible {
    case badMagic(UInt16)
    case badVersion(UInt8)
    case unknownKind(UInt8)
    /// Flags or reserved bits that this version does not define.
    case reservedBits
    case headerTooLarge(FrameKind, bytes: Int, limit: Int)
    case payloadTooLarge(FrameKind, bytes: UInt64, limit: Int)
    case headerChecksum(FrameKind)
    /// Unpacking would take more memory than a header of this size is worth.
    case unpackTooLarge(FrameKind, limit: Int)
    case malformed(FrameKind, field: String)

    public var description: String {
        switch self {
        case .badMagic(let found):
            "The bytes are no Tandem frame: they begin with \(found) instead of \(FramePrefix.magic)."
        case .badVersion(let found):
            "The peer sends frames of version \(found); this build understands version \(FramePrefix.version)."
        case .unknownKind(let found):
            "The frame kind \(found) is not known to this build."
        case .reservedBits:
            "The frame sets flags that this build does not define."
        case .headerTooLarge(let kind, let bytes, let limit):
            "The header of a \(kind) frame has \(bytes) bytes; at most \(limit) are accepted."
        case .payloadTooLarge(let kind, let bytes, let limit):
            "The payload of a \(kind) frame has \(bytes) bytes; at most \(limit) are accepted."
        case .headerChecksum(let kind):
            "The header of a \(kind) frame does not match its checksum."
        case .unpackTooLarge(let kind, let limit):
            "Unpacking a \(kind) frame would take more than \(limit) bytes."
        case .malformed(let kind, let field):
            "The field \(field) of a \(kind) frame is missing or not valid."
        }
    }

    /// The same for those who count errors by what they end.
    public var servingError: ServingError {
        ServingError(.malformed, description, blast: .link)
    }
}
