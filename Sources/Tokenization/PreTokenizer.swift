/// One step that cuts text into the words inside which merges happen. The patterns are matched by
/// hand in one pass, never by a regex engine, so no text takes more than linear time.
public enum PreTokenizer: Hashable, Sendable {
    /// GPT-2's pattern (also RoBERTa, OPT, SmolLM after `digits`).
    case gpt2
    /// Llama-3's, the same as OpenAI's cl100k in Hugging Face's spelling: numbers in threes.
    case llama3
    /// Qwen2's: as Llama-3's, but every digit alone.
    case qwen2
    /// Numbers apart from the rest, each numeral alone or a run together.
    case digits(individually: Bool)

    static let gpt2Pattern =
        #"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"#
    static let llama3Pattern =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#
    static let qwen2Pattern =
        #"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"#

    /// The step whose exact regular expression this is; nil for an unknown one.
    public init?(regex: String) {
        func isSame(_ pattern: String) -> Bool { Array(pattern.utf8) == Array(regex.utf8) }
        if isSame(Self.gpt2Pattern) {
            self = .gpt2
        } else if isSame(Self.llama3Pattern) {
            self = .llama3
        } else if isSame(Self.qwen2Pattern) {
            self = .qwen2
        } else {
            return nil
        }
    }

    /// Appends the words of `range`, which cover it without gap.
    func split(_ text: TextBytes, _ range: Range<Int>, into words: inout [Range<Int>]) {
        var scanner = WordScanner(text: text, end: range.upperBound, at: range.lowerBound)
        while scanner.at < range.upperBound {
            let start = scanner.at
            switch self {
            case .gpt2: scanner.skipGPT2Word()
            case .llama3: scanner.skipLlamaWord(numeralsMax: 3)
            case .qwen2: scanner.skipLlamaWord(numeralsMax: 1)
            case .digits(let individually): scanner.skipDigitsPiece(individually: individually)
            }
            words.append(start..<scanner.at)
        }
    }
}

/// Moves over one match of a pattern at a time. Each function tries the pattern's alternatives in
/// their written order at the current place, as a backtracking engine would.
struct WordScanner {
    let text: TextBytes
    let end: Int
    var at: Int

    // 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
    mutating func skipGPT2Word() {
        if skipContraction(anyCase: false) { return }
        let afterSpace = text.bytes[at] == 0x20 ? at + 1 : at
        if afterSpace < end {
            let (kind, length) = classified(afterSpace)
            if !kind.isSpace {
                at = afterSpace + length
                skipRun { $0 == kind }
                return
            }
        }
        skipSpaces(newlinesFirst: false)
    }

    // (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*
    // |\s*[\r\n]+|\s+(?!\S)|\s+
    mutating func skipLlamaWord(numeralsMax: Int) {
        if skipContraction(anyCase: true) { return }
        let (kind, length) = classified(at)
        let following = at + length < end ? classified(at + length) : nil
        switch kind {
        case .letter:
            at += length
            skipRun { $0 == .letter }
            return
        case .number:
            at += length
            var numerals = 1
            while numerals < numeralsMax, at < end {
                let (next, length) = classified(at)
                guard next == .number else { break }
                at += length
                numerals += 1
            }
            return
        case .space, .other:
            if let following, following.kind == .letter {
                at += length + following.length
                skipRun { $0 == .letter }
                return
            }
        case .newline: break
        }
        let symbolAfterSpace = text.bytes[at] == 0x20 && following?.kind == .other
        if kind == .other || symbolAfterSpace {
            at += length
            skipRun { $0 == .other }
            skipRun { $0 == .newline }
            return
        }
        skipSpaces(newlinesFirst: true)
    }

    /// Numerals (Unicode N) apart from everything else.
    mutating func skipDigitsPiece(individually: Bool) {
        let (kind, length) = classified(at)
        at += length
        if kind != .number {
            skipRun { $0 != .number }
        } else if !individually {
            skipRun { $0 == .number }
        }
    }

    /// `\s*[\r\n]+` where asked for, then `\s+(?!\S)`, then `\s+`.
    private mutating func skipSpaces(newlinesFirst: Bool) {
        let start = at
        var lastStart = at
        var afterNewline: Int?
        while at < end {
            let (kind, length) = classified(at)
            guard kind.isSpace else { break }
            lastStart = at
            at += length
            if kind == .newline { afterNewline = at }
        }
        if newlinesFirst, let afterNewline {
            at = afterNewline
        } else if at < end, lastStart > start {
            // The last one belongs to the word that follows.
            at = lastStart
        }
    }

    /// `'s|'t|'re|'ve|'m|'ll|'d`. Case folding takes U+017F (long s) for an s.
    private mutating func skipContraction(anyCase: Bool) -> Bool {
        guard text.bytes[at] == UInt8(ascii: "'"), at + 1 < end else { return false }
        let first = folded(at + 1, anyCase)
        switch first {
        case UInt8(ascii: "s"), UInt8(ascii: "t"), UInt8(ascii: "m"), UInt8(ascii: "d"):
            at += 2
            return true
        case UInt8(ascii: "r"), UInt8(ascii: "v"):
            guard at + 2 < end, folded(at + 2, anyCase) == UInt8(ascii: "e") else { break }
            at += 3
            return true
        case UInt8(ascii: "l"):
            guard at + 2 < end, folded(at + 2, anyCase) == UInt8(ascii: "l") else { break }
            at += 3
            return true
        default: break
        }
        if anyCase, at + 2 < end, text.bytes[at + 1] == 0xC5, text.bytes[at + 2] == 0xBF {
            at += 3
            return true
        }
        return false
    }

    private func folded(_ place: Int, _ anyCase: Bool) -> UInt8 {
        let byte = text.bytes[place]
        return anyCase && (0x41...0x5A).contains(byte) ? byte | 0x20 : byte
    }

    private func classified(_ place: Int) -> (kind: ScalarClass, length: Int) {
        let (code, length) = text.scalar(at: place)
        return (ScalarClass.of(code), length)
    }

    private mutating func skipRun(_ belongs: (ScalarClass) -> Bool) {
        while at < end {
            let (kind, length) = classified(at)
            guard belongs(kind) else { return }
            at += length
        }
    }
}
