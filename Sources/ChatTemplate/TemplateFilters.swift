import ServingTypes

/// Jinja's filters (`x | trim`), with transformers' `tojson`.
enum Filters {
    static let names: Set<String> = [
        "abs", "batch", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float",
        "forceescape",
        "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min", "reject",
        "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "slice", "sort", "string", "sum",
        "title", "tojson", "trim", "unique", "upper", "wordcount",
    ]
}

extension Interpreter {
    func filter(_ name: String, _ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        try enter()
        defer { leave() }
        switch name {
        case "d", "default": return try filterDefault(value, arguments)
        case "count", "length":
            _ = try bind(arguments, name)
            return .integer(Int64(try length(value)))
        case "first", "last": return try filterEnd(value, arguments, name)
        case "list":
            _ = try bind(arguments, name)
            return try list(try iterated(value))
        case "items": return try filterItems(value, arguments)
        case "tojson": return try filterJSON(value, arguments)
        case "map", "select", "reject", "selectattr", "rejectattr": return try filterEach(name, value, arguments)
        case "sort", "unique", "dictsort", "groupby", "min", "max": return try filterOrdered(name, value, arguments)
        case "reverse":
            _ = try bind(arguments, name)
            if case .string(let receiver) = value { return try text(string(receiver.unicodeScalars.reversed())) }
            return .generator(try elements(try iterated(value).reversed()))
        case "join": return try filterJoin(value, arguments)
        case "sum": return try filterSum(value, arguments)
        case "batch", "slice": return try filterChunks(name, value, arguments)
        case "abs", "round", "int", "float": return try filterNumber(name, value, arguments)
        default: return try filterText(name, value, arguments)
        }
    }

    private func filterDefault(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, "default", "default_value", "boolean")
        let replaces = value.isUndefined || (bound[1]?.isTrue ?? false) && !value.isTrue
        return replaces ? bound[0] ?? .string("") : value
    }

    func length(_ value: Value) throws(ServingError) -> Int {
        switch value {
        case .string(let text):
            try charge(1 + text.utf8.count / 32)
            return text.unicodeScalars.count
        case .list(let elements), .tuple(let elements): return elements.count
        case .dictionary(let dictionary): return dictionary.count
        case .undefined: return 0
        case .loop(let id): return loops[id].elements.count
        case .none, .bool, .integer, .float, .generator, .namespace, .macro, .function, .method:
            throw failure("object of type '\(value.typeName)' has no length")
        }
    }

    private func filterEnd(_ value: Value, _ arguments: Arguments, _ name: String) throws(ServingError) -> Value {
        _ = try bind(arguments, name)
        if name == "last", case .generator = value { throw failure("'generator' object is not reversible") }
        let elements = try iterated(value)
        return (name == "first" ? elements.first : elements.last)
            ?? .undefined("No \(name) item, sequence was empty.")
    }

    private func filterItems(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        _ = try bind(arguments, "items")
        switch value {
        case .undefined: return .generator(Value.Elements([]))
        case .dictionary(let dictionary): return .generator(try elements(dictionary.items))
        default: throw failure("the filter 'items' needs a mapping, not '\(value.typeName)'")
        }
    }

    // MARK: Strings

    private func filterText(_ name: String, _ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        switch name {
        case "string", "safe":
            _ = try bind(arguments, name)
            return try text(try shown(value))
        case "trim":
            let bound = try bind(arguments, name, "chars")
            let characters: String?
            if case .some(.none) = bound[0] {
                characters = nil
            } else {
                characters = try bound[0].map { value throws(ServingError) in try self.needText(value, name) }
            }
            return try text(stripped(try shown(value), characters))
        case "upper": return try converted(name, value, arguments) { $0.uppercased() }
        case "lower": return try converted(name, value, arguments) { $0.lowercased() }
        case "title": return try converted(name, value, arguments) { titled($0, afterAnyNonLetter: false) }
        case "capitalize": return try converted(name, value, arguments) { capitalized($0) }
        case "e", "escape", "forceescape": return try converted(name, value, arguments, escapedHTML)
        case "wordcount":
            _ = try bind(arguments, name)
            return .integer(Int64(wordCount(try shown(value))))
        case "replace":
            let bound = try bind(arguments, name, "old", "new", "count")
            guard let old = bound[0], let new = bound[1] else { throw failure("replace lacks an argument") }
            var max = -1
            if let count = bound[2], count.typeName != "NoneType" { max = try integer(count, name, default: -1) }
            return try replaced(try shown(value), try shown(old), try shown(new), max: max)
        case "indent": return try filterIndent(value, arguments)
        default: throw failure("there is no filter '\(name)'")
        }
    }

    private func converted(
        _ name: String, _ value: Value, _ arguments: Arguments, _ convert: (String) -> String
    ) throws(ServingError) -> Value {
        _ = try bind(arguments, name)
        return try text(convert(try shown(value)))
    }

    private func escapedHTML(_ text: String) -> String {
        var out = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "&": out += "&amp;"
            case "<": out += "&lt;"
            case ">": out += "&gt;"
            case "'": out += "&#39;"
            case "\"": out += "&#34;"
            default: out.unicodeScalars.append(scalar)
            }
        }
        return out
    }

    /// Runs of word characters.
    private func wordCount(_ text: String) -> Int {
        var count = 0
        var inWord = false
        for scalar in text.unicodeScalars {
            let isWord = scalar == "_" || scalar.properties.isAlphabetic || scalar.properties.numericType != nil
            if isWord, !inWord { count += 1 }
            inWord = isWord
        }
        return count
    }

    private func filterIndent(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, "indent", "width", "first", "blank")
        let receiver = try needText(value, "indent")
        let margin: String
        if case .string(let given)? = bound[0] {
            margin = given
        } else {
            let width = try integer(bound[0], "indent", default: 4)
            try chargeText(bytes: max(0, width))
            margin = String(repeating: " ", count: max(0, width))
        }
        let blank = bound[2]?.isTrue ?? false
        // A last line end counts as one more, empty, line.
        let rows = lines(receiver + "\n")
        var parts: [String] = []
        for (place, row) in rows.enumerated() {
            let indents = place == 0 ? bound[1]?.isTrue ?? false : blank || !row.utf8.isEmpty
            try charge(1 + margin.utf8.count / 32)
            parts.append(indents ? margin + row : row)
        }
        return try joined(parts, "\n")
    }

    private func filterJoin(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, "join", "d", "attribute")
        var parts: [String] = []
        for element in try iterated(value) {
            parts.append(
                try shown(
                    try bound[1].map { path throws(ServingError) in try self.member(path, of: element) } ?? element))
        }
        return try joined(parts, try bound[0].map { value throws(ServingError) in try self.shown(value) } ?? "")
    }

    // MARK: Numbers

    private func filterNumber(_ name: String, _ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        switch name {
        case "abs":
            _ = try bind(arguments, name)
            try needDefined(value)
            if case .float(let number) = value { return .float(number.magnitude) }
            guard let number = value.exactInteger, number != .min else {
                throw failure("bad operand type for abs(): '\(value.typeName)'")
            }
            return .integer(Swift.abs(number))
        case "round": return try filterRound(value, arguments)
        case "int":
            let bound = try bind(arguments, name, "default", "base")
            let radix = try integer(bound[1], name, default: 10)
            guard (2...36).contains(radix) else { throw failure("int's base must be 2 to 36") }
            return converted(toInteger: value, radix: radix) ?? bound[0] ?? .integer(0)
        default:
            let bound = try bind(arguments, name, "default")
            if let number = value.number { return .float(number) }
            if case .string(let digits) = value, let number = pythonFloat(digits) { return .float(number) }
            return bound[0] ?? .float(0)
        }
    }

    private func converted(toInteger value: Value, radix: Int) -> Value? {
        if let number = value.exactInteger { return .integer(number) }
        var number = value.number
        if case .string(let digits) = value {
            if let exact = pythonInteger(digits, radix: radix) { return .integer(exact) }
            number = pythonFloat(digits)
        }
        return number.flatMap { Int64(exactly: $0.rounded(.towardZero)) }.map { .integer($0) }
    }

    private func filterRound(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, "round", "precision", "method")
        let precision = try integer(bound[0], "round", default: 0)
        let method = try bound[1].map { value throws(ServingError) in try self.needText(value, "round") } ?? "common"
        guard let number = value.number else { throw failure("round needs a number, not '\(value.typeName)'") }
        guard (-300...300).contains(precision) else { throw failure("round's precision must be -300 to 300") }
        var scale = 1.0
        for _ in 0..<precision.magnitude { scale *= 10 }
        func scaled(_ rule: FloatingPointRoundingRule) -> Double {
            precision < 0 ? (number / scale).rounded(rule) * scale : (number * scale).rounded(rule) / scale
        }
        switch method {
        case "common":
            if case .integer = value, precision >= 0 { return value }
            let result = scaled(.toNearestOrEven)
            if case .integer = value, let exact = Int64(exactly: result) { return .integer(exact) }
            return .float(result)
        case "ceil": return .float(scaled(.up))
        case "floor": return .float(scaled(.down))
        default: throw failure("round's method must be common, ceil or floor")
        }
    }

    private func filterSum(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, "sum", "attribute", "start")
        var total = bound[1] ?? .integer(0)
        for element in try iterated(value) {
            var part = element
            if let path = bound[0], path.typeName != "NoneType" { part = try member(path, of: element) }
            total = try sum(total, part)
        }
        return total
    }

    // MARK: Sequences

    /// `a.b.0`: attribute after attribute, numbers as indexes.
    private func member(_ path: Value, of value: Value) throws(ServingError) -> Value {
        guard case .string(let path) = path else { return try item(path, of: value) }
        var value = value
        for part in split(path, at: ".", max: .max) {
            if let index = Int64(part), index >= 0 {
                value = try item(.integer(index), of: value)
            } else {
                value = try item(.string(part), of: value)
            }
        }
        return value
    }

    private func filterEach(_ name: String, _ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let elements = try iterated(value)
        var kept: [Value] = []
        for element in elements {
            try charge(1)
            if name == "map" {
                kept.append(try mapped(element, arguments))
            } else if try isChosen(element, arguments, byAttribute: name.hasSuffix("attr")) == name.hasPrefix("select")
            {
                kept.append(element)
            }
        }
        return .generator(try self.elements(kept))
    }

    private func mapped(_ element: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        if arguments.positional.isEmpty {
            guard let path = arguments.named.first(where: { $0.name == "attribute" })?.value else {
                throw failure("map needs a filter's name or an attribute")
            }
            let initial = arguments.named.first { $0.name == "default" }?.value
            let found = try member(path, of: element)
            return found.isUndefined ? initial ?? found : found
        }
        var rest = arguments
        let name = try needText(rest.positional.removeFirst(), "map")
        guard Filters.names.contains(name) else { throw failure("there is no filter '\(name)'") }
        return try filter(name, element, rest)
    }

    private func isChosen(
        _ element: Value, _ arguments: Arguments, byAttribute: Bool
    ) throws(ServingError) -> Bool {
        var rest = arguments
        var subject = element
        if byAttribute {
            guard !rest.positional.isEmpty else { throw failure("missing parameter for attribute name") }
            subject = try member(rest.positional.removeFirst(), of: element)
        }
        guard !rest.positional.isEmpty else { return subject.isTrue }
        let name = try needText(rest.positional.removeFirst(), "select")
        guard Tests.names.contains(name) || Tests.canonical(name) != name else {
            throw failure("there is no test '\(name)'")
        }
        return try test(name, subject, rest)
    }

    /// What elements are compared by: an attribute, and without regard to case unless asked for.
    private func sortKey(
        _ element: Value, _ attribute: Value?, caseSensitive: Bool
    ) throws(ServingError) -> Value {
        var key = element
        if let attribute, attribute.typeName != "NoneType" {
            if case .string(let paths) = attribute, isPart(",", of: paths) {
                var keys: [Value] = []
                for path in split(paths, at: ",", max: .max) {
                    keys.append(try folded(try member(.string(path), of: element), caseSensitive))
                }
                return try tuple(keys)
            }
            key = try member(attribute, of: element)
        }
        return try folded(key, caseSensitive)
    }

    private func folded(_ key: Value, _ caseSensitive: Bool) throws(ServingError) -> Value {
        guard !caseSensitive, case .string(let text) = key else { return key }
        return try self.text(text.lowercased())
    }

    private func filterOrdered(_ name: String, _ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        switch name {
        case "sort":
            let bound = try bind(arguments, name, "reverse", "case_sensitive", "attribute")
            let sorted = try sorted(
                try iterated(value), attribute: bound[2], caseSensitive: bound[1]?.isTrue ?? false,
                reverse: bound[0]?.isTrue ?? false)
            return try list(sorted)
        case "dictsort":
            let bound = try bind(arguments, name, "case_sensitive", "by", "reverse")
            guard case .dictionary(let dictionary) = value else {
                throw failure("dictsort needs a mapping, not '\(value.typeName)'")
            }
            let by = try bound[1].map { value throws(ServingError) in try self.needText(value, name) } ?? "key"
            guard by == "key" || by == "value" else { throw failure("dictsort sorts by 'key' or 'value'") }
            return try list(
                try sorted(
                    dictionary.items, attribute: .integer(by == "key" ? 0 : 1),
                    caseSensitive: bound[0]?.isTrue ?? false,
                    reverse: bound[2]?.isTrue ?? false))
        case "groupby": return try filterGroups(value, arguments)
        case "unique":
            let bound = try bind(arguments, name, "case_sensitive", "attribute")
            var seen: [Value] = []
            var kept: [Value] = []
            for element in try iterated(value) {
                let key = try sortKey(element, bound[1], caseSensitive: bound[0]?.isTrue ?? false)
                var isNew = true
                for other in seen where try same(other, key) {
                    isNew = false
                    break
                }
                if isNew {
                    seen.append(key)
                    kept.append(element)
                }
            }
            return .generator(try elements(kept))
        default:
            let bound = try bind(arguments, name, "case_sensitive", "attribute")
            let sorted = try sorted(
                try iterated(value), attribute: bound[1], caseSensitive: bound[0]?.isTrue ?? false,
                reverse: name == "max")
            return sorted.first ?? .undefined("No aggregated item, sequence was empty.")
        }
    }

    private func filterGroups(_ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, "groupby", "attribute", "default", "case_sensitive")
        guard let attribute = bound[0] else { throw failure("groupby needs an attribute") }
        let caseSensitive = bound[2]?.isTrue ?? false
        var groups: [(key: Value, shown: Value, elements: [Value])] = []
        for element in try sorted(
            try iterated(value), attribute: attribute, caseSensitive: caseSensitive, reverse: false)
        {
            let key = try sortKey(element, attribute, caseSensitive: caseSensitive)
            if let last = groups.last, try same(last.key, key) {
                groups[groups.count - 1].elements.append(element)
            } else {
                groups.append((key, try member(attribute, of: element), [element]))
            }
        }
        var pairs: [Value] = []
        for group in groups { pairs.append(try tuple([group.shown, try list(group.elements)])) }
        return try list(pairs)
    }

    /// A stable merge sort: comparing can fail, which the library's sort does not allow for.
    private func sorted(
        _ elements: [Value], attribute: Value?, caseSensitive: Bool, reverse: Bool
    ) throws(ServingError) -> [Value] {
        var keyed: [(key: Value, value: Value)] = []
        for element in elements {
            let key = try sortKey(element, attribute, caseSensitive: caseSensitive)
            keyed.append((key, element))
        }
        var width = 1
        while width < keyed.count {
            var merged: [(key: Value, value: Value)] = []
            merged.reserveCapacity(keyed.count)
            var start = 0
            while start < keyed.count {
                let middle = min(start + width, keyed.count)
                let end = min(start + 2 * width, keyed.count)
                var (left, right) = (start, middle)
                while left < middle, right < end {
                    let order = try order(keyed[right].key, keyed[left].key)
                    if order == (reverse ? .greater : .less) {
                        merged.append(keyed[right])
                        right += 1
                    } else {
                        merged.append(keyed[left])
                        left += 1
                    }
                }
                merged += keyed[left..<middle]
                merged += keyed[right..<end]
                start = end
            }
            keyed = merged
            width *= 2
        }
        return keyed.map(\.value)
    }

    private func filterChunks(_ name: String, _ value: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, name, name == "batch" ? "linecount" : "slices", "fill_with")
        let size = try integer(bound[0], name, default: 0)
        guard size > 0 else { throw failure("\(name) needs a positive count") }
        let elements = try iterated(value)
        var chunks: [Value] = []
        if name == "batch" {
            var start = 0
            while start < elements.count {
                let end = min(elements.count, size > elements.count ? elements.count : start + size)
                var chunk = Array(elements[start..<end])
                if let filler = bound[1], filler.typeName != "NoneType" {
                    try charge(size - chunk.count)
                    chunk += [Value](repeating: filler, count: size - chunk.count)
                }
                chunks.append(try list(chunk))
                start = end
            }
        } else {
            try charge(size)
            let (share, extra) = elements.count.quotientAndRemainder(dividingBy: size)
            var start = 0
            for place in 0..<size {
                let end = start + share + (place < extra ? 1 : 0)
                var chunk = Array(elements[start..<end])
                if let filler = bound[1], filler.typeName != "NoneType", place >= extra, extra > 0 {
                    chunk.append(filler)
                }
                chunks.append(try list(chunk))
                start = end
            }
        }
        return .generator(try self.elements(chunks))
    }
}
