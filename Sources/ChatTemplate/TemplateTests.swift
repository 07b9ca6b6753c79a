import ServingTypes

/// Jinja's tests (`x is defined`).
enum Tests {
    private static let synonyms: [String: String] = [
        "==": "eq", "equalto": "eq", "!=": "ne", "<": "lt", "lessthan": "lt", "<=": "le", ">": "gt",
        "greaterthan": "gt", ">=": "ge",
    ]

    static let names: Set<String> = [
        "defined", "undefined", "none", "boolean", "true", "false", "integer", "float", "number", "string", "mapping",
        "sequence", "iterable", "callable", "odd", "even", "divisibleby", "eq", "equalto", "ne", "lt", "lessthan", "le",
        "gt", "greaterthan", "ge", "in", "sameas", "lower", "upper", "filter", "test",
    ]

    /// The name under which a test is evaluated; `map`-like filters also take the symbols.
    static func canonical(_ name: String) -> String { synonyms[name] ?? name }
}

extension Interpreter {
    func test(_ name: String, _ value: Value, _ arguments: Arguments) throws(ServingError) -> Bool {
        let name = Tests.canonical(name)
        switch name {
        case "eq", "ne", "lt", "le", "gt", "ge", "in", "sameas", "divisibleby":
            guard arguments.positional.count == 1, arguments.named.isEmpty else {
                throw failure("the test '\(name)' takes one argument")
            }
            return try test(name, value, arguments.positional[0])
        default:
            guard arguments.positional.isEmpty, arguments.named.isEmpty else {
                throw failure("the test '\(name)' takes no arguments")
            }
            return try test(name, value)
        }
    }

    private func test(_ name: String, _ value: Value, _ other: Value) throws(ServingError) -> Bool {
        switch name {
        case "eq": return try compare(value, .equal, other)
        case "ne": return try compare(value, .notEqual, other)
        case "lt": return try compare(value, .less, other)
        case "le": return try compare(value, .lessOrEqual, other)
        case "gt": return try compare(value, .greater, other)
        case "ge": return try compare(value, .greaterOrEqual, other)
        case "in": return try contains(other, value)
        case "divisibleby":
            guard let a = value.exactInteger, let b = other.exactInteger, b != 0 else {
                throw failure("the test 'divisibleby' needs integers")
            }
            return a.remainderReportingOverflow(dividingBy: b).partialValue == 0
        default: return try isSameAs(value, other)
        }
    }

    /// Identity, for what can be told apart here: None, truth values, and equal values of one type.
    private func isSameAs(_ a: Value, _ b: Value) throws(ServingError) -> Bool {
        guard a.typeName == b.typeName else { return false }
        return try same(a, b)
    }

    private func test(_ name: String, _ value: Value) throws(ServingError) -> Bool {
        switch name {
        case "defined": return !value.isUndefined
        case "undefined": return value.isUndefined
        case "none": return value.typeName == "NoneType"
        case "boolean": return value.typeName == "bool"
        case "true": if case .bool(true) = value { return true } else { return false }
        case "false": if case .bool(false) = value { return true } else { return false }
        case "integer": return value.typeName == "int"
        case "float": return value.typeName == "float"
        case "number": return value.number != nil
        case "string": return value.typeName == "str"
        case "mapping": return value.typeName == "dict"
        case "sequence": return ["str", "list", "tuple", "dict", "Undefined"].contains(value.typeName)
        case "iterable":
            return ["str", "list", "tuple", "dict", "generator", "Undefined", "LoopContext"].contains(value.typeName)
        case "callable": return ["Macro", "function", "method"].contains(value.typeName)
        case "odd", "even":
            try needDefined(value)
            guard let number = value.exactInteger else { throw failure("the test '\(name)' needs an integer") }
            return (number % 2 != 0) == (name == "odd")
        case "lower": return try isCased(value) { $0.lowercased() }
        case "upper": return try isCased(value) { $0.uppercased() }
        case "filter": return try nameIsKnown(value, Filters.names)
        case "test": return try nameIsKnown(value, Tests.names)
        default: throw failure("there is no test '\(name)'")
        }
    }

    private func nameIsKnown(_ value: Value, _ names: Set<String>) throws(ServingError) -> Bool {
        names.contains(try shown(value))
    }

    private func isCased(_ value: Value, _ convert: (String) -> String) throws(ServingError) -> Bool {
        let text = try shown(value)
        return text.unicodeScalars.contains { $0.properties.isCased } && sameText(convert(text), text)
    }
}

extension Value {
    var isUndefined: Bool {
        if case .undefined = self { true } else { false }
    }
}
