extension JSON {
    /// The JSON text of a value: no spaces unless `pretty` (two per level), members in their order
    /// unless `sortedKeys` (by bytes), the shortest decimal that reads back as the same double, and
    /// `null` for NaN and infinities.
    public static func text(_ value: JSONValue, sortedKeys: Bool = false, pretty: Bool = false) -> String {
        var writer = JSONWriter(sortedKeys: sortedKeys, pretty: pretty)
        writer.write(value, level: 0)
        return String(decoding: writer.out, as: UTF8.self)
    }

    /// A string in quotes with what JSON wants escaped escaped; everything else stays as it is.
    public static func quoted(_ text: String) -> String {
        var writer = JSONWriter(sortedKeys: false, pretty: false)
        writer.write(text)
        return String(decoding: writer.out, as: UTF8.self)
    }
}

struct JSONWriter {
    var out: [UInt8] = []
    private let sortedKeys: Bool
    private let pretty: Bool

    init(sortedKeys: Bool, pretty: Bool) {
        self.sortedKeys = sortedKeys
        self.pretty = pretty
    }

    mutating func write(_ value: JSONValue, level: Int) {
        switch value {
        case .null: out.append(contentsOf: "null".utf8)
        case .bool(let flag): out.append(contentsOf: (flag ? "true" : "false").utf8)
        case .integer(let number): out.append(contentsOf: String(number).utf8)
        case .number(let number): out.append(contentsOf: (number.isFinite ? number.description : "null").utf8)
        case .string(let text): write(text)
        case .array(let values): write(values, level: level)
        case .object(let object): write(object, level: level)
        }
    }

    private mutating func write(_ values: [JSONValue], level: Int) {
        out.append(UInt8(ascii: "["))
        for (place, value) in values.enumerated() {
            if place > 0 { out.append(UInt8(ascii: ",")) }
            newLine(level + 1)
            write(value, level: level + 1)
        }
        if !values.isEmpty { newLine(level) }
        out.append(UInt8(ascii: "]"))
    }

    private mutating func write(_ object: JSONObject, level: Int) {
        out.append(UInt8(ascii: "{"))
        let members =
            sortedKeys
            ? object.members.sorted { $0.key.utf8.lexicographicallyPrecedes($1.key.utf8) } : object.members
        for (place, member) in members.enumerated() {
            if place > 0 { out.append(UInt8(ascii: ",")) }
            newLine(level + 1)
            write(member.key)
            out.append(UInt8(ascii: ":"))
            if pretty { out.append(UInt8(ascii: " ")) }
            write(member.value, level: level + 1)
        }
        if !members.isEmpty { newLine(level) }
        out.append(UInt8(ascii: "}"))
    }

    private mutating func newLine(_ level: Int) {
        guard pretty else { return }
        out.append(UInt8(ascii: "\n"))
        for _ in 0..<(2 * level) { out.append(UInt8(ascii: " ")) }
    }

    mutating func write(_ text: String) {
        out.append(UInt8(ascii: "\""))
        for byte in text.utf8 {
            switch byte {
            case UInt8(ascii: "\""): out.append(contentsOf: "\\\"".utf8)
            case UInt8(ascii: "\\"): out.append(contentsOf: "\\\\".utf8)
            case 0x0A: out.append(contentsOf: "\\n".utf8)
            case 0x0D: out.append(contentsOf: "\\r".utf8)
            case 0x09: out.append(contentsOf: "\\t".utf8)
            case 0x08: out.append(contentsOf: "\\b".utf8)
            case 0x0C: out.append(contentsOf: "\\f".utf8)
            case 0..<0x20:
                out.append(contentsOf: (byte < 0x10 ? "\\u000" : "\\u00").utf8)
                out.append(contentsOf: String(byte, radix: 16).utf8)
            default: out.append(byte)
            }
        }
        out.append(UInt8(ascii: "\""))
    }
}
