import BoundedJSON
import ServingTypes

/// Python's `json.dumps`, which transformers puts in the place of Jinja's `tojson`.
extension Interpreter {
    private struct Style {
        var itemSeparator: String
        var keySeparator: String
        /// One level's margin; nil keeps everything on one line.
        var margin: String?
        var sortsKeys: Bool
        var asciiOnly: Bool
    }

    func filterJSON(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, "tojson", "ensure_ascii", "indent", "separators", "sort_keys")
        // Jinja's own filter has `indent` first, and so has transformers' once `ensure_ascii` is named.
        var margin: String?
        switch bound[1] {
        case nil, .some(.none): margin = nil
        case .string(let given)?: margin = given
        case let given?:
            let width = max(0, try integer(given, "tojson", default: 0))
            try checkText(bytes: width)
            margin = String(repeating: " ", count: width)
        }
        var style = Style(
            itemSeparator: margin == nil ? ", " : ",", keySeparator: ": ", margin: margin,
            sortsKeys: bound[3]?.isTrue ?? false, asciiOnly: bound[0]?.isTrue ?? false)
        if let separators = bound[2], separators.typeName != "NoneType" {
            let pair = try iterated(separators)
            guard pair.count == 2 else { throw failure("tojson's separators must be two") }
            style.itemSeparator = try needText(pair[0], "tojson")
            style.keySeparator = try needText(pair[1], "tojson")
        }
        var text = ""
        try dump(value, style, level: 0, into: &text)
        return .string(text)
    }

    private func dump(_ value: Value, _ style: Style, level: Int, into text: inout String) throws(ServingError) {
        try charge(1)
        try enter()
        defer { leave() }
        switch value {
        case .none: text += "null"
        case .bool(let flag): text += flag ? "true" : "false"
        case .integer(let number): text += String(number)
        case .float(let number): text += jsonNumber(number)
        case .string(let part):
            try charge(part.utf8.count / 32)
            text += quoted(part, style)
        case .list(let elements), .tuple(let elements): try dump(elements, style, level, into: &text)
        case .dictionary(let dictionary): try dump(dictionary, style, level, into: &text)
        case .undefined, .generator, .namespace, .macro, .loop, .function, .method:
            throw failure("Object of type \(value.typeName) is not JSON serializable")
        }
        try checkText(bytes: text.utf8.count)
    }

    private func dump(
        _ elements: Value.Elements, _ style: Style, _ level: Int, into text: inout String
    ) throws(ServingError) {
        text += "["
        for (place, element) in elements.enumerated() {
            if place > 0 { text += style.itemSeparator }
            try newLine(style, level + 1, into: &text)
            try dump(element, style, level: level + 1, into: &text)
        }
        if !elements.isEmpty { try newLine(style, level, into: &text) }
        text += "]"
    }

    private func dump(
        _ dictionary: Value.Dictionary, _ style: Style, _ level: Int, into text: inout String
    ) throws(ServingError) {
        var members: [(key: String, value: Value)] = []
        for (key, value) in zip(dictionary.keys, dictionary.values) { members.append((try jsonKey(key), value)) }
        if style.sortsKeys { members.sort { $0.key.utf8.lexicographicallyPrecedes($1.key.utf8) } }
        text += "{"
        for (place, member) in members.enumerated() {
            if place > 0 { text += style.itemSeparator }
            try newLine(style, level + 1, into: &text)
            text += quoted(member.key, style) + style.keySeparator
            try dump(member.value, style, level: level + 1, into: &text)
        }
        if !members.isEmpty { try newLine(style, level, into: &text) }
        text += "}"
    }

    private func newLine(_ style: Style, _ level: Int, into text: inout String) throws(ServingError) {
        guard let margin = style.margin else { return }
        try charge(1 + margin.utf8.count * level / 32)
        try checkText(bytes: text.utf8.count + margin.utf8.count * level)
        text += "\n" + String(repeating: margin, count: level)
    }

    private func jsonNumber(_ number: Double) -> String {
        if number.isNaN { return "NaN" }
        if number.isInfinite { return number < 0 ? "-Infinity" : "Infinity" }
        return number.pythonText
    }

    private func jsonKey(_ key: Value) throws(ServingError) -> String {
        switch key {
        case .string(let name): return name
        case .none: return "null"
        case .bool(let flag): return flag ? "true" : "false"
        case .integer(let number): return String(number)
        case .float(let number): return jsonNumber(number)
        case .undefined, .list, .tuple, .generator, .dictionary, .namespace, .macro, .loop, .function, .method:
            throw failure("a JSON object's name cannot be a '\(key.typeName)'")
        }
    }

    private func quoted(_ text: String, _ style: Style) -> String {
        let quoted = JSON.quoted(text)
        guard style.asciiOnly, !quoted.utf8.allSatisfy({ $0 < 0x80 && $0 != 0x7F }) else { return quoted }
        var out = ""
        for scalar in quoted.unicodeScalars {
            if scalar.value < 0x80 {
                out.unicodeScalars.append(scalar)
            } else {
                for unit in UTF16.encode(scalar) ?? UTF16.encodedReplacementCharacter {
                    out += "\\u" + hexadecimal(UInt32(unit), width: 4)
                }
            }
        }
        return out
    }
}
