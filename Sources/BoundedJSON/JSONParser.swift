/// What a document may be at most. A document beyond a limit is refused before it costs more.
public struct JSONLimits: Sendable {
    /// Arrays and objects inside one another.
    public var depthMax = 64
    /// Length of the text in bytes.
    public var bytesMax = 256 << 20
    /// Values in the whole document.
    public var membersMax = 4_000_000

    public init() {}
}

/// Why a text is not JSON, and where.
public struct JSONError: Error, Sendable, Hashable, CustomStringConvertible {
    public var message: String
    /// Bytes before the fault.
    public var byteOffset: Int
    /// Counted from 1, lines end with a line feed.
    public var line: Int
    /// Counted from 1, in bytes.
    public var column: Int

    public init(message: String, byteOffset: Int, line: Int, column: Int) {
        self.message = message
        self.byteOffset = byteOffset
        self.line = line
        self.column = column
    }

    public var description: String { "\(message) at line \(line), column \(column) (byte \(byteOffset))" }
}

/// Reading and writing JSON.
public enum JSON {
    /// Parses one strict RFC 8259 text. Duplicate names, invalid UTF-8 and numbers beyond a double's
    /// range are refused; an escaped lone surrogate becomes U+FFFD.
    public static func parse(_ bytes: [UInt8], limits: JSONLimits = JSONLimits()) throws(JSONError) -> JSONValue {
        try unwrap(bytes.withUnsafeBytes { parseResult($0, limits) })
    }

    /// As above, over memory that the caller keeps alive during the call (a mapped file).
    public static func parse(
        _ bytes: UnsafeRawBufferPointer, limits: JSONLimits = JSONLimits()
    ) throws(JSONError) -> JSONValue {
        try unwrap(parseResult(bytes, limits))
    }

    /// As above, over a string's UTF-8.
    public static func parse(_ text: String, limits: JSONLimits = JSONLimits()) throws(JSONError) -> JSONValue {
        var text = text
        return try unwrap(text.withUTF8 { parseResult(UnsafeRawBufferPointer($0), limits) })
    }

    private static func unwrap(_ result: Result<JSONValue, JSONError>) throws(JSONError) -> JSONValue {
        try result.get()
    }

    private static func parseResult(_ bytes: UnsafeRawBufferPointer, _ limits: JSONLimits) -> Result<
        JSONValue, JSONError
    > {
        var parser = JSONParser(bytes: bytes.bindMemory(to: UInt8.self), limits: limits)
        do throws(JSONError) {
            return .success(try parser.document())
        } catch {
            return .failure(error)
        }
    }
}

/// Recursive descent over a buffer; recursion is bounded by `limits.depthMax`.
struct JSONParser {
    private let bytes: UnsafeBufferPointer<UInt8>
    private let limits: JSONLimits
    private let count: Int
    private var at = 0
    private var valuesSeen = 0

    init(bytes: UnsafeBufferPointer<UInt8>, limits: JSONLimits) {
        self.bytes = bytes
        self.limits = limits
        self.count = bytes.count
    }

    mutating func document() throws(JSONError) -> JSONValue {
        guard count <= limits.bytesMax else {
            throw failure("the text has \(count) bytes, the limit is \(limits.bytesMax)", at: 0)
        }
        skipSpace()
        let value = try value(depth: 0)
        skipSpace()
        guard at == count else { throw failure("unexpected \(named(at)) after the value", at: at) }
        return value
    }

    private mutating func value(depth: Int) throws(JSONError) -> JSONValue {
        guard at < count else { throw failure("the text ends where a value should be", at: at) }
        valuesSeen += 1
        guard valuesSeen <= limits.membersMax else {
            throw failure("more than \(limits.membersMax) values", at: at)
        }
        switch bytes[at] {
        case UInt8(ascii: "\""): return .string(try string())
        case UInt8(ascii: "{"): return try object(depth: depth + 1)
        case UInt8(ascii: "["): return try array(depth: depth + 1)
        case UInt8(ascii: "-"), 0x30...0x39: return try number()
        case UInt8(ascii: "t"): return try word("true", .bool(true))
        case UInt8(ascii: "f"): return try word("false", .bool(false))
        case UInt8(ascii: "n"): return try word("null", .null)
        default: throw failure("unexpected \(named(at)) where a value should be", at: at)
        }
    }

    private mutating func array(depth: Int) throws(JSONError) -> JSONValue {
        try checkDepth(depth)
        at += 1
        var values: [JSONValue] = []
        skipSpace()
        if take(UInt8(ascii: "]")) { return .array(values) }
        while true {
            skipSpace()
            values.append(try value(depth: depth))
            skipSpace()
            if take(UInt8(ascii: ",")) { continue }
            if take(UInt8(ascii: "]")) { return .array(values) }
            throw failure("unexpected \(named(at)) where ',' or ']' should be", at: at)
        }
    }

    private mutating func object(depth: Int) throws(JSONError) -> JSONValue {
        try checkDepth(depth)
        at += 1
        var object = JSONObject()
        skipSpace()
        if take(UInt8(ascii: "}")) { return .object(object) }
        while true {
            skipSpace()
            let start = at
            guard at < count, bytes[at] == UInt8(ascii: "\"") else {
                throw failure("unexpected \(named(at)) where a member's name should be", at: at)
            }
            let key = try string()
            skipSpace()
            guard take(UInt8(ascii: ":")) else {
                throw failure("unexpected \(named(at)) where ':' should be", at: at)
            }
            skipSpace()
            let member = try value(depth: depth)
            guard object.insert(key, member) else {
                throw failure("the member \(JSON.quoted(String(key.prefix(64)))) is there twice", at: start)
            }
            skipSpace()
            if take(UInt8(ascii: ",")) { continue }
            if take(UInt8(ascii: "}")) { return .object(object) }
            throw failure("unexpected \(named(at)) where ',' or '}' should be", at: at)
        }
    }

    private func checkDepth(_ depth: Int) throws(JSONError) {
        guard depth <= limits.depthMax else {
            throw failure("values nested deeper than \(limits.depthMax)", at: at)
        }
    }

    private mutating func word(_ text: StaticString, _ value: JSONValue) throws(JSONError) -> JSONValue {
        let length = text.utf8CodeUnitCount
        guard count - at >= length else { throw failure("unexpected end of the text", at: count) }
        for offset in 0..<length where bytes[at + offset] != text.utf8Start[offset] {
            throw failure("unexpected \(named(at + offset)) inside a literal", at: at + offset)
        }
        at += length
        return value
    }

    // MARK: Numbers

    private mutating func number() throws(JSONError) -> JSONValue {
        let start = at
        let negative = take(UInt8(ascii: "-"))
        let digits = at
        let magnitude = skipDigits()
        guard at > digits else { throw failure("a number needs a digit, not \(named(at))", at: at) }
        guard bytes[digits] != UInt8(ascii: "0") || at == digits + 1 else {
            throw failure("a number with a leading zero", at: start)
        }
        var isInteger = true
        if take(UInt8(ascii: ".")) {
            isInteger = false
            try needDigits()
        }
        if at < count, bytes[at] | 0x20 == UInt8(ascii: "e") {
            isInteger = false
            at += 1
            if at < count, bytes[at] == UInt8(ascii: "+") || bytes[at] == UInt8(ascii: "-") { at += 1 }
            try needDigits()
        }
        if isInteger, let magnitude {
            if !negative, let value = Int64(exactly: magnitude) { return .integer(value) }
            if negative, magnitude <= UInt64(1) << 63 { return .integer(Int64(truncatingIfNeeded: 0 &- magnitude)) }
        }
        guard let value = Double(text(start..<at)), value.isFinite else {
            throw failure("a number beyond the range of a double", at: start)
        }
        return .number(value)
    }

    private mutating func needDigits() throws(JSONError) {
        let start = at
        _ = skipDigits()
        guard at > start else { throw failure("a number needs a digit, not \(named(at))", at: at) }
    }

    /// Their value, nil where it passes 64 bits.
    private mutating func skipDigits() -> UInt64? {
        var value: UInt64 = 0
        var fits = true
        while at < count, bytes[at] &- 0x30 < 10 {
            let (tenfold, overflowTen) = value.multipliedReportingOverflow(by: 10)
            let (sum, overflowSum) = tenfold.addingReportingOverflow(UInt64(bytes[at] &- 0x30))
            fits = fits && !overflowTen && !overflowSum
            value = sum
            at += 1
        }
        return fits ? value : nil
    }

    // MARK: Strings

    private mutating func string() throws(JSONError) -> String {
        let start = at + 1
        var scan = start
        var isASCII = true
        while scan < count {
            let byte = bytes[scan]
            if byte == UInt8(ascii: "\"") {
                at = scan + 1
                return isASCII ? text(start..<scan) : try checkedText(bytes[start..<scan], at: start)
            }
            if byte == UInt8(ascii: "\\") { return try escapedString(from: start, firstEscape: scan) }
            guard byte >= 0x20 else { throw failure("an unescaped control character in a string", at: scan) }
            isASCII = isASCII && byte < 0x80
            scan += 1
        }
        throw failure("a string without its closing quote", at: start - 1)
    }

    private mutating func escapedString(from start: Int, firstEscape: Int) throws(JSONError) -> String {
        var content = [UInt8](bytes[start..<firstEscape])
        at = firstEscape
        while at < count {
            let byte = bytes[at]
            switch byte {
            case UInt8(ascii: "\""):
                at += 1
                guard let text = String(validating: content, as: UTF8.self) else {
                    throw failure("a string that is not UTF-8", at: start)
                }
                return text
            case UInt8(ascii: "\\"):
                try escape(into: &content)
            case 0..<0x20:
                throw failure("an unescaped control character in a string", at: at)
            default:
                content.append(byte)
                at += 1
            }
        }
        throw failure("a string without its closing quote", at: start - 1)
    }

    private mutating func escape(into content: inout [UInt8]) throws(JSONError) {
        guard at + 1 < count else { throw failure("unexpected end of the text", at: count) }
        let letter = bytes[at + 1]
        at += 2
        switch letter {
        case UInt8(ascii: "\""), UInt8(ascii: "\\"), UInt8(ascii: "/"): content.append(letter)
        case UInt8(ascii: "n"): content.append(0x0A)
        case UInt8(ascii: "t"): content.append(0x09)
        case UInt8(ascii: "r"): content.append(0x0D)
        case UInt8(ascii: "b"): content.append(0x08)
        case UInt8(ascii: "f"): content.append(0x0C)
        case UInt8(ascii: "u"): try unicodeEscape(into: &content)
        default: throw failure("unknown escape \\\(named(at - 1))", at: at - 2)
        }
    }

    private mutating func unicodeEscape(into content: inout [UInt8]) throws(JSONError) {
        var code = UInt32(try fourDigits())
        if code >> 10 == 0x36, at + 1 < count, bytes[at] == UInt8(ascii: "\\"), bytes[at + 1] == UInt8(ascii: "u") {
            let back = at
            at += 2
            let low = UInt32(try fourDigits())
            if low >> 10 == 0x37 {
                code = 0x10000 + ((code & 0x3FF) << 10 | (low & 0x3FF))
            } else {
                at = back
            }
        }
        let scalar = Unicode.Scalar(code) ?? "\u{FFFD}"
        for unit in UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter { content.append(unit) }
    }

    private mutating func fourDigits() throws(JSONError) -> UInt16 {
        guard count - at >= 4 else { throw failure("unexpected end of the text", at: count) }
        var code: UInt16 = 0
        for offset in 0..<4 {
            let byte = bytes[at + offset]
            let digit: UInt8
            switch byte {
            case 0x30...0x39: digit = byte - 0x30
            case 0x41...0x46: digit = byte - 0x41 + 10
            case 0x61...0x66: digit = byte - 0x61 + 10
            default: throw failure("\\u needs four hexadecimal digits, not \(named(at + offset))", at: at + offset)
            }
            code = code << 4 | UInt16(digit)
        }
        at += 4
        return code
    }

    // MARK: Small things

    private func text(_ range: Range<Int>) -> String {
        String(decoding: UnsafeBufferPointer(rebasing: bytes[range]), as: UTF8.self)
    }

    private func checkedText(_ slice: Slice<UnsafeBufferPointer<UInt8>>, at start: Int) throws(JSONError) -> String {
        guard let text = String(validating: UnsafeBufferPointer(rebasing: slice), as: UTF8.self) else {
            throw failure("a string that is not UTF-8", at: start)
        }
        return text
    }

    private mutating func skipSpace() {
        while at < count {
            switch bytes[at] {
            case 0x20, 0x0A, 0x0D, 0x09: at += 1
            default: return
            }
        }
    }

    private mutating func take(_ byte: UInt8) -> Bool {
        guard at < count, bytes[at] == byte else { return false }
        at += 1
        return true
    }

    private func named(_ place: Int) -> String {
        guard place < count else { return "end of the text" }
        let byte = bytes[place]
        return (0x21...0x7E).contains(byte) ? "'\(Unicode.Scalar(byte))'" : "byte 0x" + String(byte, radix: 16)
    }

    private func failure(_ message: String, at offset: Int) -> JSONError {
        var line = 1
        var lineStart = 0
        for place in 0..<min(offset, count) where bytes[place] == 0x0A {
            line += 1
            lineStart = place + 1
        }
        return JSONError(message: message, byteOffset: offset, line: line, column: offset - lineStart + 1)
    }
}
