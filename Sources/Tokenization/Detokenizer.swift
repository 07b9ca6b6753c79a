import ServingTypes

/// Puts UTF-8 together from pieces that may end inside a character. An ill-formed part becomes one
/// U+FFFD per maximal prefix of a character (Unicode 3.9, as Rust and Python do) as soon as it is
/// known to be ill-formed, so the output does not depend on where the pieces end.
public struct UTF8Assembler: Sendable {
    /// At most three bytes: the well-formed beginning of a character.
    private var pending: [UInt8] = []

    public init() {}

    /// Whether a character has begun and not ended.
    public var isInsideCharacter: Bool { !pending.isEmpty }

    /// The text that is certain after these bytes.
    public mutating func push(_ bytes: some Collection<UInt8>) -> String {
        let input = pending + bytes
        pending = []
        var output: [UInt8] = []
        output.reserveCapacity(input.count)
        var at = 0
        while at < input.count {
            let (length, state) = Self.character(in: input, at: at)
            switch state {
            case .whole: output += input[at..<at + length]
            case .illFormed: output += [0xEF, 0xBF, 0xBD]
            case .unfinished: pending = Array(input[at...])
            }
            at += length
        }
        return String(decoding: output, as: UTF8.self)
    }

    /// The rest: U+FFFD for a character that never ended.
    public mutating func finish() -> String {
        defer { pending = [] }
        return pending.isEmpty ? "" : "\u{FFFD}"
    }

    private enum State {
        case whole
        case illFormed
        case unfinished
    }

    /// The character or maximal ill-formed part at a place.
    private static func character(in input: [UInt8], at place: Int) -> (length: Int, State) {
        let lead = input[place]
        let needed: Int
        var second: ClosedRange<UInt8> = 0x80...0xBF
        switch lead {
        case 0..<0x80: return (1, .whole)
        case 0xC2...0xDF: needed = 2
        case 0xE0: (needed, second) = (3, 0xA0...0xBF)
        case 0xED: (needed, second) = (3, 0x80...0x9F)
        case 0xE1...0xEF: needed = 3
        case 0xF0: (needed, second) = (4, 0x90...0xBF)
        case 0xF1...0xF3: needed = 4
        case 0xF4: (needed, second) = (4, 0x80...0x8F)
        default: return (1, .illFormed)
        }
        for offset in 1..<needed {
            guard place + offset < input.count else { return (offset, .unfinished) }
            guard second.contains(input[place + offset]) else { return (offset, .illFormed) }
            second = 0x80...0xBF
        }
        return (needed, .whole)
    }
}

/// Text from tokens as they come. Never gives half a character; the pieces together are what
/// `Tokenizer.decode` gives for all tokens at once.
public struct StreamingDetokenizer: Sendable {
    private let tokenizer: Tokenizer
    private let skipSpecial: Bool
    private var assembler = UTF8Assembler()

    /// - skipSpecial: special tokens give no text.
    public init(_ tokenizer: Tokenizer, skipSpecial: Bool = true) {
        self.tokenizer = tokenizer
        self.skipSpecial = skipSpecial
    }

    /// Whether bytes of a character are held back.
    public var isInsideCharacter: Bool { assembler.isInsideCharacter }

    /// The text that this token completes; empty while a character is unfinished.
    public mutating func push(_ token: TokenID) -> String {
        skipSpecial && tokenizer.isSpecial(token) ? "" : assembler.push(tokenizer.tokenBytes(token))
    }

    /// What is left at the end of the stream.
    public mutating func finish() -> String { assembler.finish() }
}
