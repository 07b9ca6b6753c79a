/// HTTP/2 as bytes, as far as tests on an embedded loop need it: no Huffman codes, no table, no padding.
enum HTTP2Frames {
    private enum Kind {
        static let data: UInt8 = 0
        static let headers: UInt8 = 1
        static let settings: UInt8 = 4
    }

    private enum Flags {
        static let endStream: UInt8 = 1
        static let endHeaders: UInt8 = 4
    }

    private static let headBytes = 9

    /// The client's preface with settings that are all default.
    static var preface: [UInt8] { Array("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8) + frame(Kind.settings, 0, 0, []) }

    static func post(_ path: String, _ body: String, stream: UInt8) -> [UInt8] {
        let fields = [
            (":method", "POST"), (":scheme", "http"), (":authority", "test"), (":path", path),
            ("content-type", "application/json"),
        ]
        // Literal fields, never indexed.
        let block = fields.flatMap { field -> [UInt8] in [0x10] + short(field.0) + short(field.1) }
        return frame(Kind.headers, Flags.endHeaders, stream, block)
            + frame(Kind.data, Flags.endStream, stream, Array(body.utf8))
    }

    private static func short(_ text: String) -> [UInt8] { [UInt8(text.utf8.count)] + Array(text.utf8) }

    private static func frame(_ kind: UInt8, _ flags: UInt8, _ stream: UInt8, _ payload: [UInt8]) -> [UInt8] {
        let length = payload.count
        let size = [UInt8(length >> 16), UInt8(length >> 8 & 255), UInt8(length & 255)]
        return size + [kind, flags, 0, 0, 0, stream] + payload
    }

    /// Bodies of all streams that whole frames carry, one behind the other as the frames are.
    static func bodies(_ bytes: [UInt8]) -> String {
        var (rest, text) = (bytes[...], [UInt8]())
        while rest.count >= headBytes {
            let head = Array(rest.prefix(headBytes))
            let length = Int(head[0]) << 16 | Int(head[1]) << 8 | Int(head[2])
            guard rest.count >= headBytes + length else { break }
            if head[3] == Kind.data { text += rest.dropFirst(headBytes).prefix(length) }
            rest = rest.dropFirst(headBytes + length)
        }
        return String(decoding: text, as: UTF8.self)
    }
}
