/// What the pre-tokenizer patterns ask of a character. `\p{L}` and `\p{N}` are general categories,
/// `\s` is Unicode's White_Space, as in Oniguruma, which is what Hugging Face's tokenizers run on.
enum ScalarClass: UInt8 {
    case letter
    case number
    /// White space other than carriage return and line feed.
    case space
    /// Carriage return or line feed.
    case newline
    case other

    var isSpace: Bool { self == .space || self == .newline }

    /// Classes of ASCII, by code.
    private static let ascii: [ScalarClass] = (0..<128).map { classify(UInt32($0)) }

    static func of(_ code: UInt32) -> ScalarClass {
        code < 128 ? ascii[Int(code)] : classify(code)
    }

    private static func classify(_ code: UInt32) -> ScalarClass {
        guard let scalar = Unicode.Scalar(code) else { return .other }
        if code == 0x0A || code == 0x0D { return .newline }
        // The ideograph blocks, where most of the calls for such text land.
        if (0x4E00...0x9FA5).contains(code) || (0xAC00...0xD7A3).contains(code) { return .letter }
        if scalar.properties.isWhitespace { return .space }
        switch scalar.properties.generalCategory {
        case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: return .letter
        case .decimalNumber, .letterNumber, .otherNumber: return .number
        default: return .other
        }
    }

    /// Whether `\w` of Rust's regex crate matches: what borders a token that is marked `single_word`.
    static func isWord(_ code: UInt32) -> Bool {
        guard let scalar = Unicode.Scalar(code) else { return false }
        if code == 0x200C || code == 0x200D { return true }
        if scalar.properties.isAlphabetic { return true }
        switch scalar.properties.generalCategory {
        case .nonspacingMark, .spacingMark, .enclosingMark, .decimalNumber, .connectorPunctuation: return true
        default: return false
        }
    }
}

/// Well-formed UTF-8, read character by character.
struct TextBytes {
    let bytes: UnsafeBufferPointer<UInt8>

    /// The character that starts at a byte and its length in bytes.
    func scalar(at place: Int) -> (code: UInt32, length: Int) {
        let lead = bytes[place]
        if lead < 0x80 { return (UInt32(lead), 1) }
        if lead < 0xE0 { return (UInt32(lead & 0x1F) << 6 | tail(place + 1), 2) }
        if lead < 0xF0 { return (UInt32(lead & 0x0F) << 12 | tail(place + 1) << 6 | tail(place + 2), 3) }
        return (UInt32(lead & 0x07) << 18 | tail(place + 1) << 12 | tail(place + 2) << 6 | tail(place + 3), 4)
    }

    /// The character that ends before a byte.
    func scalar(before place: Int, notBefore start: Int) -> (code: UInt32, length: Int) {
        var at = place - 1
        while at > start, bytes[at] & 0xC0 == 0x80 { at -= 1 }
        return scalar(at: at)
    }

    private func tail(_ place: Int) -> UInt32 { UInt32(bytes[place] & 0x3F) }
}
