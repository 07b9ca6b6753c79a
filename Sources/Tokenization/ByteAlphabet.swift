/// GPT-2's spelling of bytes as printable characters: a byte-level vocabulary writes each byte as one
/// character, printable Latin-1 as itself and the rest from U+0100 on, in order.
enum ByteAlphabet {
    /// The byte that a character stands for, by code point; nil where it stands for none.
    private static let byteOfCode: [UInt8?] = {
        var table = [UInt8?](repeating: nil, count: 256 + 68)
        var next = 256
        for byte in 0...255 {
            switch byte {
            case 33...126, 161...172, 174...255: table[byte] = UInt8(byte)
            default:
                table[next] = UInt8(byte)
                next += 1
            }
        }
        return table
    }()

    /// The bytes that a vocabulary entry spells; nil where a character is outside the alphabet.
    static func bytes(of text: String) -> [UInt8]? {
        let table = byteOfCode
        var bytes: [UInt8] = []
        bytes.reserveCapacity(text.utf8.count)
        for scalar in text.unicodeScalars {
            guard scalar.value < table.count, let byte = table[Int(scalar.value)] else { return nil }
            bytes.append(byte)
        }
        return bytes
    }
}

/// Bytes as a table key, hashed per process so that chosen collisions buy nothing.
struct ByteString: Hashable, Sendable {
    var bytes: [UInt8]

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    static func == (a: ByteString, b: ByteString) -> Bool { a.bytes == b.bytes }

    func hash(into hasher: inout Hasher) {
        bytes.withUnsafeBytes { hasher.combine(bytes: $0) }
    }
}
