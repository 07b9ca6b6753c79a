// Unicode's composed form (NFC). The standard library has it (it compares strings by it) but offers it
// only under this name in 6.3; should the name go, the build says so and the fixtures judge the next one.
@_spi(_Unicode) import Swift

/// The composed form of a part of a text; nil where it is composed already because all of it is below
/// U+0300, which covers ASCII and the Latin letters of Western Europe.
func composedBytes(_ source: TextBytes, _ range: Range<Int>) -> [UInt8]? {
    // 0xCC is the first lead byte of U+0300 and beyond.
    guard range.contains(where: { source.bytes[$0] >= 0xCC }) else { return nil }
    return composed(String(decoding: UnsafeBufferPointer(rebasing: source.bytes[range]), as: UTF8.self))
}

/// The composed form of a text, as UTF-8.
func composed(_ text: String) -> [UInt8] {
    var decomposed = String.UnicodeScalarView()
    for scalar in text.unicodeScalars {
        // Three Tibetan vowel signs that never occur in composed text. The library takes them for the
        // start of a character and so leaves their parts in the wrong order; their parts it orders right.
        switch scalar {
        case "\u{F73}": decomposed.append(contentsOf: ["\u{F71}", "\u{F72}"])
        case "\u{F75}": decomposed.append(contentsOf: ["\u{F71}", "\u{F74}"])
        case "\u{F81}": decomposed.append(contentsOf: ["\u{F71}", "\u{F80}"])
        default: decomposed.append(scalar)
        }
    }
    var view = String.UnicodeScalarView()
    for scalar in String(decomposed)._nfc { view.append(scalar) }
    return Array(String(view).utf8)
}
