/// Follows frame borders in a client's bytes, so that every frame is counted: nghttp2 tells of no
/// frame that it ignores (unknown types, frames of closed streams). It reads headers only; whether
/// frames make sense is the library's business.
struct FrameWalker {
    struct Header: Hashable {
        var length: Int
        var type: UInt8
        var flags: UInt8
    }

    static let prefaceBytes = 24
    static let headerBytes = 9

    /// Bytes of the preface or of a payload still to pass.
    private var skipped = FrameWalker.prefaceBytes
    private var header: [UInt8] = []

    /// Passes the bytes by, calling the body for each frame header that they complete.
    mutating func walk(_ bytes: UnsafeRawBufferPointer, _ body: (Header) -> Void) {
        var place = 0
        while place < bytes.count {
            if skipped > 0 {
                let step = min(skipped, bytes.count - place)
                skipped -= step
                place += step
                continue
            }
            let end = min(bytes.count, place + Self.headerBytes - header.count)
            header += bytes[place..<end]
            place = end
            guard header.count == Self.headerBytes else { return }
            let length = Int(header[0]) << 16 | Int(header[1]) << 8 | Int(header[2])
            body(Header(length: length, type: header[3], flags: header[4]))
            skipped = length
            header.removeAll(keepingCapacity: true)
        }
    }
}
