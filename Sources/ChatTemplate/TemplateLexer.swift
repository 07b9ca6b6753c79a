import ServingTypes

struct Token: Sendable {
    enum Kind: Equatable {
        case data
        case outputBegin
        case outputEnd
        case blockBegin
        case blockEnd
        case name
        case string
        case integer(Int64)
        case float(Double)
        case symbol
        case end
    }

    var kind: Kind
    var text: String
    var line: Int

    func isSymbol(_ symbol: String) -> Bool { kind == .symbol && text == symbol }
    func isName(_ name: String) -> Bool { kind == .name && text == name }
}

/// Jinja's lexer with `trim_blocks` and `lstrip_blocks`: the line end after a block or comment goes,
/// and so does the indentation before one; `-` takes all white space on its side, `+` keeps it.
struct TemplateLexer {
    private let source: [Unicode.Scalar]
    private var at = 0
    private var line = 1
    private var found: [Token] = []
    /// Whether the last tag took a line end with it, so that what follows starts a line.
    private var lineStarting = true

    init(source: String) {
        var scalars: [Unicode.Scalar] = []
        scalars.reserveCapacity(source.utf8.count)
        var afterReturn = false
        for scalar in source.unicodeScalars {
            if scalar == "\r" {
                scalars.append("\n")
            } else if scalar != "\n" || !afterReturn {
                scalars.append(scalar)
            }
            afterReturn = scalar == "\r"
        }
        if scalars.last == "\n" { scalars.removeLast() }
        self.source = scalars
    }

    mutating func tokens() throws(ServingError) -> [Token] {
        while at < source.count { try root() }
        add(.end, "")
        return found
    }

    private mutating func add(_ kind: Token.Kind, _ text: String) {
        found.append(Token(kind: kind, text: text, line: line))
    }

    private func failure(_ message: String) -> ServingError { templateError(message, line: line) }

    // MARK: Outside tags

    private mutating func root() throws(ServingError) {
        let start = at
        while at < source.count, !isTagBegin(at) { at += 1 }
        guard at < source.count else {
            addData(start..<at)
            return
        }
        let opener = source[at + 1]
        let sign: Unicode.Scalar? =
            at + 2 < source.count && (source[at + 2] == "-" || source[at + 2] == "+") ? source[at + 2] : nil
        addData(stripped(start..<at, sign: sign, isOutput: opener == "{"))
        countLines(start..<at)
        at += sign == nil ? 2 : 3
        switch opener {
        case "#": try comment()
        case "{":
            add(.outputBegin, "")
            try tag(closer: "}")
        default:
            if skipRawBegin() {
                try raw()
            } else {
                add(.blockBegin, "")
                try tag(closer: "%")
            }
        }
    }

    private func isTagBegin(_ place: Int) -> Bool {
        guard source[place] == "{", place + 1 < source.count else { return false }
        return source[place + 1] == "{" || source[place + 1] == "%" || source[place + 1] == "#"
    }

    private func stripped(_ range: Range<Int>, sign: Unicode.Scalar?, isOutput: Bool) -> Range<Int> {
        if sign == "-" {
            var end = range.upperBound
            while end > range.lowerBound, isPythonSpace(source[end - 1]) { end -= 1 }
            return range.lowerBound..<end
        }
        guard sign != "+", !isOutput else { return range }
        var lineStart = range.upperBound
        while lineStart > range.lowerBound, source[lineStart - 1] != "\n" {
            lineStart -= 1
            guard isPythonSpace(source[lineStart]) else { return range }
        }
        return lineStart > range.lowerBound || lineStarting ? range.lowerBound..<lineStart : range
    }

    private mutating func addData(_ range: Range<Int>) {
        guard !range.isEmpty else { return }
        add(.data, text(range))
    }

    private func text(_ range: Range<Int>) -> String {
        var view = String.UnicodeScalarView()
        view.append(contentsOf: source[range])
        return String(view)
    }

    private mutating func countLines(_ range: Range<Int>) {
        for place in range where source[place] == "\n" { line += 1 }
    }

    private mutating func comment() throws(ServingError) {
        let start = at
        while at + 1 < source.count {
            if source[at] == "#", source[at + 1] == "}" {
                let sign: Unicode.Scalar? = at > start ? source[at - 1] : nil
                at += 2
                skipAfterTag(sign: sign == "-" || sign == "+" ? sign : nil, trimsLine: true)
                countLines(start..<at)
                return
            }
            at += 1
        }
        throw failure("a comment without its end")
    }

    /// What an end tag takes with it: everything white for `-`, one line end for a block's.
    private mutating func skipAfterTag(sign: Unicode.Scalar?, trimsLine: Bool) {
        let start = at
        if sign == "-" {
            while at < source.count, isPythonSpace(source[at]) { at += 1 }
        } else if sign == nil, trimsLine, at < source.count, source[at] == "\n" {
            at += 1
        }
        lineStarting = at > start && source[at - 1] == "\n"
    }

    // MARK: raw

    private mutating func skipRawBegin() -> Bool {
        guard let end = end(ofTag: "raw", at: at) else { return false }
        at = end.place
        if end.sign == "-" { skipAfterTag(sign: "-", trimsLine: false) } else { lineStarting = false }
        return true
    }

    /// Whether `name` and a block end follow; the place after them.
    private func end(ofTag name: String, at start: Int) -> (place: Int, sign: Unicode.Scalar?)? {
        var place = start
        while place < source.count, isPythonSpace(source[place]) { place += 1 }
        for letter in name.unicodeScalars {
            guard place < source.count, source[place] == letter else { return nil }
            place += 1
        }
        while place < source.count, isPythonSpace(source[place]) { place += 1 }
        var sign: Unicode.Scalar?
        if place < source.count, source[place] == "-" || source[place] == "+" {
            sign = source[place]
            place += 1
        }
        guard place + 1 < source.count, source[place] == "%", source[place + 1] == "}" else { return nil }
        return (place + 2, sign)
    }

    private mutating func raw() throws(ServingError) {
        let start = at
        while at + 1 < source.count {
            if source[at] == "{", source[at + 1] == "%" {
                let signed = at + 2 < source.count && (source[at + 2] == "-" || source[at + 2] == "+")
                if let end = end(ofTag: "endraw", at: at + (signed ? 3 : 2)) {
                    addData(stripped(start..<at, sign: signed ? source[at + 2] : nil, isOutput: false))
                    at = end.place
                    skipAfterTag(sign: end.sign, trimsLine: true)
                    countLines(start..<at)
                    return
                }
            }
            at += 1
        }
        throw failure("a raw block without its end")
    }

    // MARK: Inside tags

    private mutating func tag(closer: Unicode.Scalar) throws(ServingError) {
        var brackets: [Unicode.Scalar] = []
        while true {
            guard at < source.count else { throw failure("the template ends inside a tag") }
            if brackets.isEmpty, skipTagEnd(closer) { return }
            let scalar = source[at]
            if isPythonSpace(scalar) {
                if scalar == "\n" { line += 1 }
                at += 1
            } else if isDigit(scalar) {
                try number()
            } else if isNameStart(scalar) {
                let start = at
                while at < source.count, isNameStart(source[at]) || isDigit(source[at]) { at += 1 }
                add(.name, text(start..<at))
            } else if scalar == "'" || scalar == "\"" {
                try string(quote: scalar)
            } else {
                try symbol(&brackets)
            }
        }
    }

    private mutating func skipTagEnd(_ closer: Unicode.Scalar) -> Bool {
        var place = at
        var sign: Unicode.Scalar?
        if source[place] == "-" || (source[place] == "+" && closer == "%") {
            sign = source[place]
            place += 1
        }
        guard place + 1 < source.count, source[place] == closer, source[place + 1] == "}" else { return false }
        add(closer == "%" ? .blockEnd : .outputEnd, "")
        at = place + 2
        let start = at
        skipAfterTag(sign: sign, trimsLine: closer == "%")
        countLines(start..<at)
        return true
    }

    private static let symbols = [
        "**", "//", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<", "=",
        ".", ":", "|", ",", ";",
    ]

    private mutating func symbol(_ brackets: inout [Unicode.Scalar]) throws(ServingError) {
        for symbol in Self.symbols {
            let scalars = symbol.unicodeScalars
            guard at + scalars.count <= source.count, source[at..<at + scalars.count].elementsEqual(scalars) else {
                continue
            }
            switch symbol {
            case "(": brackets.append(")")
            case "[": brackets.append("]")
            case "{": brackets.append("}")
            case ")", "]", "}":
                guard let expected = brackets.popLast() else { throw failure("unexpected '\(symbol)'") }
                guard expected == source[at] else { throw failure("unexpected '\(symbol)', expected '\(expected)'") }
            default: break
            }
            add(.symbol, symbol)
            at += scalars.count
            return
        }
        throw failure("unexpected character '\(source[at])'")
    }

    private func isDigit(_ scalar: Unicode.Scalar) -> Bool { ("0"..."9").contains(scalar) }

    private func isNameStart(_ scalar: Unicode.Scalar) -> Bool {
        if scalar.isASCII { return scalar == "_" || ("a"..."z").contains(scalar) || ("A"..."Z").contains(scalar) }
        return scalar.properties.isXIDContinue
    }

    private mutating func number() throws(ServingError) {
        let start = at
        if source[at] == "0", at + 1 < source.count, let radix = ["x": 16, "o": 8, "b": 2][lowered(at + 1)] {
            at += 2
            let digits = skipNumerals {
                $0.properties.numericType != nil || ("a"..."f").contains($0) || ("A"..."F").contains($0)
            }
            guard let value = Int64(digits, radix: radix) else { throw failure("a bad integer '\(text(start..<at))'") }
            add(.integer(value), "")
            return
        }
        var digits = skipNumerals { $0 >= "0" && $0 <= "9" }
        var isFloat = false
        if at + 1 < source.count, source[at] == ".", isDigit(source[at + 1]) {
            isFloat = true
            at += 1
            digits += "." + skipNumerals { $0 >= "0" && $0 <= "9" }
        }
        if let exponent = exponentStart() {
            isFloat = true
            digits += "e" + text(at + 1..<exponent)
            at = exponent
            digits += skipNumerals { $0 >= "0" && $0 <= "9" }
        }
        if isFloat, let value = Double(digits) {
            add(.float(value), "")
        } else if let value = Int64(digits) {
            add(.integer(value), "")
        } else {
            throw failure("a number beyond 64 bits, '\(text(start..<at))'")
        }
    }

    private func lowered(_ place: Int) -> Unicode.Scalar {
        ("A"..."Z").contains(source[place]) ? Unicode.Scalar(UInt8(source[place].value) | 0x20) : source[place]
    }

    /// Where an exponent's digits begin, if one follows.
    private func exponentStart() -> Int? {
        guard at < source.count, lowered(at) == "e" else { return nil }
        var place = at + 1
        if place < source.count, source[place] == "+" || source[place] == "-" { place += 1 }
        return place < source.count && isDigit(source[place]) ? place : nil
    }

    /// The digits without the underscores between them.
    private mutating func skipNumerals(_ isNumeral: (Unicode.Scalar) -> Bool) -> String {
        var digits = String.UnicodeScalarView()
        while at < source.count {
            if isNumeral(source[at]) {
                digits.append(source[at])
            } else if source[at] != "_" || at + 1 >= source.count || !isNumeral(source[at + 1]) {
                break
            }
            at += 1
        }
        return String(digits)
    }

    private mutating func string(quote: Unicode.Scalar) throws(ServingError) {
        var content = String.UnicodeScalarView()
        let startLine = line
        at += 1
        while at < source.count {
            let scalar = source[at]
            at += 1
            if scalar == quote {
                found.append(Token(kind: .string, text: String(content), line: startLine))
                return
            }
            if scalar == "\n" { line += 1 }
            if scalar == "\\" {
                try escape(into: &content)
            } else {
                content.append(scalar)
            }
        }
        throw failure("a string without its closing quote")
    }

    /// Python's escapes; an unknown one keeps its backslash.
    private mutating func escape(into content: inout String.UnicodeScalarView) throws(ServingError) {
        guard at < source.count else { throw failure("a string without its closing quote") }
        let letter = source[at]
        at += 1
        switch letter {
        case "\n": line += 1
        case "\\", "'", "\"": content.append(letter)
        case "n": content.append("\n")
        case "t": content.append("\t")
        case "r": content.append("\r")
        case "a": content.append("\u{7}")
        case "b": content.append("\u{8}")
        case "f": content.append("\u{C}")
        case "v": content.append("\u{B}")
        case "x": content.append(try code(digits: 2))
        case "u": content.append(try code(digits: 4))
        case "U": content.append(try code(digits: 8))
        case "0"..."7":
            var value = letter.value - 0x30
            for _ in 0..<2 {
                guard at < source.count, ("0"..."7").contains(source[at]) else { break }
                value = value * 8 + source[at].value - 0x30
                at += 1
            }
            if let scalar = Unicode.Scalar(value) { content.append(scalar) }
        default:
            content.append("\\")
            content.append(letter)
        }
    }

    private mutating func code(digits: Int) throws(ServingError) -> Unicode.Scalar {
        guard at + digits <= source.count, let value = UInt32(text(at..<at + digits), radix: 16),
            let scalar = Unicode.Scalar(value)
        else { throw failure("an escape that is no character") }
        at += digits
        return scalar
    }
}

/// What Python's `str.isspace` and `\s` take for white space.
func isPythonSpace(_ scalar: Unicode.Scalar) -> Bool {
    if scalar.value < 0x80 {
        return scalar == " " || (0x09...0x0D).contains(scalar.value) || (0x1C...0x1F).contains(scalar.value)
    }
    return scalar.properties.isWhitespace
}
