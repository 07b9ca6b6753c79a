import ServingTypes

/// The methods that values have. There is no other way from a value to code.
enum Methods {
    private static let ofText: Set<String> = [
        "split", "rsplit", "splitlines", "strip", "lstrip", "rstrip", "startswith", "endswith", "upper", "lower",
        "title",
        "capitalize", "swapcase", "casefold", "replace", "find", "rfind", "index", "rindex", "count", "join", "isdigit",
        "isnumeric", "isdecimal", "isalpha", "isalnum", "isspace", "isupper", "islower", "removeprefix", "removesuffix",
        "zfill", "partition", "rpartition", "format",
    ]
    private static let ofDictionary: Set<String> = ["items", "keys", "values", "get", "copy"]
    private static let ofSequence: Set<String> = ["index", "count"]
    /// Python has these, but what they would change must not change.
    private static let barred: Set<String> = [
        "append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "update", "setdefault", "popitem",
    ]
    private static let barredOfDictionary: Set<String> = ["pop", "clear", "update", "setdefault", "popitem"]

    static func names(of value: Value) -> Set<String> {
        switch value {
        case .string: ofText
        case .dictionary: ofDictionary.union(barredOfDictionary)
        case .list: ofSequence.union(barred)
        case .tuple: ofSequence
        case .loop: ["cycle", "changed"]
        case .undefined, .none, .bool, .integer, .float, .generator, .namespace, .macro, .function, .method: []
        }
    }
}

extension Interpreter {
    // MARK: Calls

    func call(_ callee: Value, _ arguments: Arguments) throws(ServingError) -> Value {
        try enter()
        defer { leave() }
        switch callee {
        case .macro(let id): return try callMacro(id, arguments)
        case .function(let function): return try call(function, arguments)
        case .method(.string(let text), let name): return try callText(text, name, arguments)
        case .method(.dictionary(let dictionary), let name): return try callDictionary(dictionary, name, arguments)
        case .method(.list(let elements), let name), .method(.tuple(let elements), let name):
            return try callSequence(elements, name, arguments)
        case .method(.loop(let id), let name): return try callLoop(id, name, arguments)
        case .undefined(let hint): throw failure(hint)
        case .none, .bool, .integer, .float, .string, .list, .tuple, .generator, .dictionary, .namespace, .loop,
            .method:
            throw failure("'\(callee.typeName)' object is not callable")
        }
    }

    private func call(_ function: BuiltinFunction, _ arguments: Arguments) throws(ServingError) -> Value {
        switch function {
        case .range: return try range(arguments)
        case .dict: return .dictionary(try dictionary(from: arguments))
        case .namespace:
            let members = try dictionary(from: arguments)
            for case .string(let name) in members.keys where name.hasPrefix("_") {
                throw failure("a namespace's attribute may not begin with '_'")
            }
            namespaces.append(members)
            return .namespace(namespaces.count - 1)
        case .raiseException:
            let bound = try bind(arguments, "raise_exception", "message")
            let message = try shown(bound[0] ?? .string(""))
            throw ServingError(.invalidValue, message, field: "messages")
        case .strftimeNow:
            let format = try needText(try bind(arguments, "strftime_now", "format")[0], "strftime_now")
            guard let now, let shown = now.formatted(format) else {
                throw failure("strftime_now does not know the format '\(format)'")
            }
            return try text(shown)
        }
    }

    private func range(_ arguments: Arguments) throws(ServingError) -> Value {
        var numbers: [Int64] = []
        for value in arguments.positional {
            guard let number = value.exactInteger else {
                throw failure("range needs integers, not '\(value.typeName)'")
            }
            numbers.append(number)
        }
        guard (1...3).contains(numbers.count), arguments.named.isEmpty else {
            throw failure("range takes one to three integers")
        }
        let (from, to) = numbers.count == 1 ? (0, numbers[0]) : (numbers[0], numbers[1])
        let step = numbers.count == 3 ? numbers[2] : 1
        guard step != 0 else { throw failure("range's step must not be zero") }
        var elements: [Value] = []
        var at = from
        while step > 0 ? at < to : at > to {
            guard elements.count < SyntaxLimits.rangeMax else {
                throw failure("range has more than \(SyntaxLimits.rangeMax) elements")
            }
            elements.append(.integer(at))
            let (next, overflow) = at.addingReportingOverflow(step)
            if overflow { break }
            at = next
        }
        return try list(elements)
    }

    private func dictionary(from arguments: Arguments) throws(ServingError) -> Value.Dictionary {
        guard arguments.positional.count <= 1 else { throw failure("dict takes at most one positional argument") }
        var dictionary = Value.Dictionary()
        switch arguments.positional.first {
        case .dictionary(let given)?: dictionary = given
        case let given?:
            for pair in try iterated(given) {
                let pair = try iterated(pair)
                guard pair.count == 2, dictionary.set(pair[0], pair[1]) else { throw failure("dict needs pairs") }
            }
        case nil: break
        }
        for (name, value) in arguments.named { dictionary.set(name, value) }
        try charge(dictionary.count)
        try checkDepth(dictionary.depth)
        return dictionary
    }

    /// Arguments by position and name; nil for those not given.
    func bind(_ arguments: Arguments, _ callee: String, _ names: String...) throws(ServingError) -> [Value?] {
        guard arguments.positional.count <= names.count else {
            throw failure("\(callee) takes at most \(names.count) arguments, not \(arguments.positional.count)")
        }
        var bound: [Value?] = arguments.positional
        bound += [Value?](repeating: nil, count: names.count - bound.count)
        for (name, value) in arguments.named {
            guard let place = names.firstIndex(of: name) else { throw failure("\(callee) has no argument '\(name)'") }
            guard bound[place] == nil else { throw failure("\(callee) got the argument '\(name)' twice") }
            bound[place] = value
        }
        return bound
    }

    func needText(_ value: Value?, _ callee: String) throws(ServingError) -> String {
        guard let value else { throw failure("\(callee) lacks an argument") }
        try needDefined(value)
        guard case .string(let text) = value else { throw failure("\(callee) needs a string, not '\(value.typeName)'") }
        return text
    }

    func integer(_ value: Value?, _ callee: String, default initial: Int) throws(ServingError) -> Int {
        guard let value else { return initial }
        guard let number = value.exactInteger else {
            throw failure("\(callee) needs an integer, not '\(value.typeName)'")
        }
        return Int(clamping: number)
    }

    private func optionalText(_ value: Value?, _ callee: String) throws(ServingError) -> String? {
        guard let value else { return nil }
        if case .none = value { return nil }
        return try needText(value, callee)
    }

    // MARK: Strings

    private func callText(_ receiver: String, _ name: String, _ arguments: Arguments) throws(ServingError) -> Value {
        try charge(1 + receiver.utf8.count / 32)
        switch name {
        case "upper": return try unary(arguments, name) { receiver.uppercased() }
        case "lower", "casefold": return try unary(arguments, name) { receiver.lowercased() }
        case "title": return try unary(arguments, name) { titled(receiver, afterAnyNonLetter: true) }
        case "capitalize": return try unary(arguments, name) { capitalized(receiver) }
        case "swapcase": return try unary(arguments, name) { swappedCase(receiver) }
        case "strip", "lstrip", "rstrip":
            let characters = try optionalText(try bind(arguments, name, "chars")[0], name)
            return try text(stripped(receiver, characters, start: name != "rstrip", end: name != "lstrip"))
        case "split", "rsplit": return try callSplit(receiver, name, arguments)
        case "splitlines":
            let keeps = try bind(arguments, name, "keepends")[0]?.isTrue ?? false
            return try list(lines(receiver, keepEnds: keeps).map { .string($0) })
        case "startswith", "endswith": return .bool(try callAffix(receiver, name, arguments))
        case "removeprefix", "removesuffix":
            let part = try needText(try bind(arguments, name, "affix")[0], name)
            let fits = name == "removeprefix" ? hasPrefix(receiver, part) : hasSuffix(receiver, part)
            guard fits else { return .string(receiver) }
            let bytes = receiver.utf8
            let rest = name == "removeprefix" ? bytes.dropFirst(part.utf8.count) : bytes.dropLast(part.utf8.count)
            return .string(String(decoding: rest, as: UTF8.self))
        case "replace":
            let bound = try bind(arguments, name, "old", "new", "count")
            return try replaced(
                receiver, try needText(bound[0], name), try needText(bound[1], name),
                max: try integer(bound[2], name, default: -1))
        case "find", "rfind", "index", "rindex", "count": return try callSearch(receiver, name, arguments)
        case "join":
            let bound = try bind(arguments, name, "iterable")
            guard let iterable = bound[0] else { throw failure("join lacks an argument") }
            var parts: [String] = []
            for part in try iterated(iterable) { parts.append(try needText(part, name)) }
            return try joined(parts, receiver)
        case "partition", "rpartition": return try callPartition(receiver, name, arguments)
        case "format": return try callFormat(receiver, arguments)
        case "zfill":
            let width = try integer(try bind(arguments, name, "width")[0], name, default: 0)
            let missing = max(0, width - receiver.unicodeScalars.count)
            try chargeText(bytes: receiver.utf8.count.addingReportingOverflow(missing).partialValue)
            let signed = hasPrefix(receiver, "-") || hasPrefix(receiver, "+")
            let zeros = String(repeating: "0", count: missing)
            return .string(
                signed ? String(receiver.prefix(1)) + zeros + String(receiver.dropFirst()) : zeros + receiver)
        default: return .bool(try callPredicate(receiver, name, arguments))
        }
    }

    private func unary(
        _ arguments: Arguments, _ name: String, _ convert: () -> String
    ) throws(ServingError) -> Value {
        _ = try bind(arguments, name)
        return try text(convert())
    }

    private func swappedCase(_ text: String) -> String {
        text.unicodeScalars.map { scalar in
            scalar.properties.isUppercase ? scalar.properties.lowercaseMapping : scalar.properties.uppercaseMapping
        }.joined()
    }

    private func callSplit(_ receiver: String, _ name: String, _ arguments: Arguments) throws(ServingError) -> Value {
        let bound = try bind(arguments, name, "sep", "maxsplit")
        let limit = try integer(bound[1], name, default: -1)
        let max = limit < 0 ? Int.max : limit
        let parts: [String]
        if let separator = try optionalText(bound[0], name) {
            guard !separator.utf8.isEmpty else { throw failure("empty separator") }
            parts = split(receiver, at: separator, max: max, fromRight: name == "rsplit")
        } else {
            parts = name == "rsplit" ? splitAtSpacesFromRight(receiver, max: max) : splitAtSpaces(receiver, max: max)
        }
        return try list(parts.map { .string($0) })
    }

    private func callAffix(_ receiver: String, _ name: String, _ arguments: Arguments) throws(ServingError) -> Bool {
        let bound = try bind(arguments, name, "affix")
        func fits(_ affix: Value?) throws(ServingError) -> Bool {
            let affix = try needText(affix, name)
            return name == "startswith" ? hasPrefix(receiver, affix) : hasSuffix(receiver, affix)
        }
        guard case .tuple(let choices)? = bound[0] else { return try fits(bound[0]) }
        for choice in choices where try fits(choice) { return true }
        return false
    }

    private func callSearch(_ receiver: String, _ name: String, _ arguments: Arguments) throws(ServingError) -> Value {
        let part = Array(try needText(try bind(arguments, name, "sub")[0], name).utf8)
        let bytes = Array(receiver.utf8)
        if name == "count" {
            let count = part.isEmpty ? receiver.unicodeScalars.count + 1 : occurrences(of: part, in: bytes).count
            return .integer(Int64(count))
        }
        let fromRight = name.hasPrefix("r")
        var place: Int?
        if part.isEmpty {
            place = fromRight ? bytes.count : 0
        } else if fromRight {
            place = occurrences(of: part.reversed(), in: bytes.reversed(), max: 1).first.map {
                bytes.count - $0 - part.count
            }
        } else {
            place = occurrences(of: part, in: bytes, max: 1).first
        }
        guard let place else {
            guard name.hasSuffix("find") else { throw failure("substring not found") }
            return .integer(-1)
        }
        // From bytes to code points.
        return .integer(Int64(bytes[..<place].count { $0 & 0xC0 != 0x80 }))
    }

    private func callPartition(_ receiver: String, _ name: String, _ arguments: Arguments) throws(ServingError) -> Value
    {
        let separator = try needText(try bind(arguments, name, "sep")[0], name)
        guard !separator.utf8.isEmpty else { throw failure("empty separator") }
        let parts = split(receiver, at: separator, max: 1, fromRight: name == "rpartition")
        if parts.count == 2 { return try tuple([.string(parts[0]), .string(separator), .string(parts[1])]) }
        let none = Value.string("")
        return try tuple(name == "partition" ? [.string(receiver), none, none] : [none, none, .string(receiver)])
    }

    /// `{}`, `{0}` and `{name}` without format specifications, attributes or subscripts.
    private func callFormat(_ receiver: String, _ arguments: Arguments) throws(ServingError) -> Value {
        var parts: [String] = []
        var next = 0
        var view = receiver.unicodeScalars[...]
        while let scalar = view.popFirst() {
            if scalar == "{" || scalar == "}", view.first == scalar {
                parts.append(String(scalar))
                view.removeFirst()
            } else if scalar == "{" {
                guard let end = view.firstIndex(of: "}") else { throw failure("expected '}' before end of string") }
                let field = string(view[..<end])
                view = view[view.index(after: end)...]
                parts.append(try shown(try formatted(field, arguments, &next)))
            } else if scalar == "}" {
                throw failure("Single '}' encountered in format string")
            } else {
                parts.append(String(scalar))
            }
        }
        return try joined(parts, "")
    }

    private func formatted(_ field: String, _ arguments: Arguments, _ next: inout Int) throws(ServingError) -> Value {
        if let named = arguments.named.first(where: { sameText($0.name, field) }) { return named.value }
        let place = field.isEmpty ? next : Int(field)
        if field.isEmpty { next += 1 }
        guard let place, arguments.positional.indices.contains(place) else {
            throw failure("format has no argument for '{\(field)}'")
        }
        return arguments.positional[place]
    }

    private func callPredicate(_ receiver: String, _ name: String, _ arguments: Arguments) throws(ServingError) -> Bool
    {
        _ = try bind(arguments, name)
        let view = receiver.unicodeScalars
        func isNumeric(_ scalar: Unicode.Scalar) -> Bool { scalar.properties.numericType != nil }
        func isDigit(_ scalar: Unicode.Scalar) -> Bool {
            scalar.properties.numericType == .decimal || scalar.properties.numericType == .digit
        }
        func isLetter(_ scalar: Unicode.Scalar) -> Bool {
            switch scalar.properties.generalCategory {
            case .uppercaseLetter, .lowercaseLetter, .titlecaseLetter, .modifierLetter, .otherLetter: true
            default: false
            }
        }
        switch name {
        case "isspace": return !view.isEmpty && view.allSatisfy(isPythonSpace)
        case "isdigit": return !view.isEmpty && view.allSatisfy(isDigit)
        case "isdecimal": return !view.isEmpty && view.allSatisfy { $0.properties.numericType == .decimal }
        case "isnumeric": return !view.isEmpty && view.allSatisfy(isNumeric)
        case "isalpha": return !view.isEmpty && view.allSatisfy(isLetter)
        case "isalnum": return !view.isEmpty && view.allSatisfy { isLetter($0) || isNumeric($0) }
        case "isupper":
            return view.contains { $0.properties.isUppercase } && !view.contains { $0.properties.isLowercase }
        case "islower":
            return view.contains { $0.properties.isLowercase } && !view.contains { $0.properties.isUppercase }
        default: throw failure("'str' object has no method '\(name)'")
        }
    }

    func replaced(_ text: String, _ old: String, _ new: String, max: Int) throws(ServingError) -> Value {
        let bytes = Array(text.utf8)
        let limit = max < 0 ? Int.max : max
        var places: [Int]
        if old.utf8.isEmpty {
            // Before every character and at the end.
            places = bytes.indices.filter { bytes[$0] & 0xC0 != 0x80 } + [bytes.count]
            places = Array(places.prefix(limit))
        } else {
            places = occurrences(of: Array(old.utf8), in: bytes, max: limit)
        }
        let growth = new.utf8.count - old.utf8.count
        let (added, overflow) = places.count.multipliedReportingOverflow(by: growth)
        try chargeText(bytes: overflow ? .max : bytes.count.addingReportingOverflow(added).partialValue)
        var out: [UInt8] = []
        var start = 0
        for place in places {
            out += bytes[start..<place]
            out += new.utf8
            start = place + old.utf8.count
        }
        out += bytes[start...]
        return .string(String(decoding: out, as: UTF8.self))
    }

    func joined(_ parts: [String], _ separator: String) throws(ServingError) -> Value {
        var text = ""
        for (place, part) in parts.enumerated() {
            let bytes = part.utf8.count + separator.utf8.count
            try charge(1 + bytes / 32)
            try checkText(bytes: text.utf8.count + bytes)
            if place > 0 { text += separator }
            text += part
        }
        return .string(text)
    }

    // MARK: Dictionaries, lists, loops

    private func callDictionary(
        _ dictionary: Value.Dictionary, _ name: String, _ arguments: Arguments
    ) throws(ServingError) -> Value {
        switch name {
        case "get":
            let bound = try bind(arguments, name, "key", "default")
            guard let key = bound[0] else { throw failure("get lacks an argument") }
            guard DictionaryKey(key) != nil || key.isUndefined else {
                throw failure("unhashable type: '\(key.typeName)'")
            }
            return dictionary[key] ?? bound[1] ?? .none
        case "items":
            _ = try bind(arguments, name)
            return try list(dictionary.items)
        case "keys":
            _ = try bind(arguments, name)
            return try list(dictionary.keys)
        case "values":
            _ = try bind(arguments, name)
            return try list(dictionary.values)
        case "copy": return .dictionary(dictionary)
        default: throw failure("a dictionary cannot be changed ('\(name)')")
        }
    }

    private func callSequence(
        _ elements: Value.Elements, _ name: String, _ arguments: Arguments
    ) throws(ServingError) -> Value {
        guard name == "index" || name == "count" else { throw failure("a list cannot be changed ('\(name)')") }
        guard let wanted = try bind(arguments, name, "value")[0] else { throw failure("\(name) lacks an argument") }
        var count: Int64 = 0
        for (place, element) in elements.enumerated() where try same(element, wanted) {
            if name == "index" { return .integer(Int64(place)) }
            count += 1
        }
        guard name == "count" else { throw failure("the list has no such element") }
        return .integer(count)
    }

    private func callLoop(_ id: Int, _ name: String, _ arguments: Arguments) throws(ServingError) -> Value {
        if name == "cycle" {
            guard !arguments.positional.isEmpty else { throw failure("no items for cycling given") }
            return arguments.positional[loops[id].index % arguments.positional.count]
        }
        let seen = loops[id].lastSeen
        loops[id].lastSeen = arguments.positional
        guard let seen, seen.count == arguments.positional.count else { return .bool(true) }
        for (a, b) in zip(seen, arguments.positional) where !(try same(a, b)) { return .bool(true) }
        return .bool(false)
    }
}
