import BoundedJSON

/// A value as templates see it: Python's, without its objects. Lists and dictionaries never change;
/// what can change (namespaces) or has identity is named by its index in the interpreter.
indirect enum Value: Sendable {
    /// What a missing name or member is; the text says so when somebody uses it.
    case undefined(String)
    case none
    case bool(Bool)
    case integer(Int64)
    case float(Double)
    case string(String)
    case list(Elements)
    case tuple(Elements)
    /// What Python's lazy filters give: it can be iterated, has no length, and is always true.
    case generator(Elements)
    case dictionary(Dictionary)
    case namespace(Int)
    case macro(Int)
    case loop(Int)
    case function(BuiltinFunction)
    case method(of: Value, name: String)

    /// Values behind one another, and how deep they nest: an interpreter refuses what nests too deep
    /// when it is made, so that nothing that walks values can exhaust the stack.
    struct Elements: RandomAccessCollection, Sendable {
        let items: [Value]
        let depth: Int

        init(_ items: [Value]) {
            self.items = items
            depth = items.reduce(0) { Swift.max($0, $1.depth) } + 1
        }

        var startIndex: Int { 0 }
        var endIndex: Int { items.count }
        subscript(place: Int) -> Value { items[place] }
    }

    /// A dictionary in insertion order.
    struct Dictionary: Sendable {
        private(set) var keys: [Value] = []
        private(set) var values: [Value] = []
        private var places: [DictionaryKey: Int] = [:]
        private(set) var depth = 1

        init() {}

        var count: Int { keys.count }

        /// nil where the key is missing or cannot be one.
        subscript(key: Value) -> Value? {
            guard let hashable = DictionaryKey(key), let place = places[hashable] else { return nil }
            return values[place]
        }

        subscript(name: String) -> Value? { places[.text(ByteText(name))].map { values[$0] } }

        /// False where the key cannot be one.
        mutating func set(_ key: Value, _ value: Value) -> Bool {
            guard let hashable = DictionaryKey(key) else { return false }
            depth = max(depth, value.depth + 1)
            if let place = places[hashable] {
                values[place] = value
            } else {
                places[hashable] = keys.count
                keys.append(key)
                values.append(value)
            }
            return true
        }

        mutating func set(_ name: String, _ value: Value) { _ = set(.string(name), value) }

        var items: [Value] { zip(keys, values).map { .tuple(Elements([$0, $1])) } }
    }
}

/// The functions that a template may call by name.
enum BuiltinFunction: String, Sendable, CaseIterable {
    case range
    case dict
    case namespace
    case raiseException = "raise_exception"
    case strftimeNow = "strftime_now"
}

/// A string compared by its bytes, as Python compares.
struct ByteText: Hashable, Sendable {
    var text: String

    init(_ text: String) { self.text = text }

    static func == (a: ByteText, b: ByteText) -> Bool { sameText(a.text, b.text) }

    func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
    }
}

func sameText(_ a: String, _ b: String) -> Bool {
    a.utf8.count == b.utf8.count && a.utf8.elementsEqual(b.utf8)
}

/// Keys that Python takes for the same: `1`, `1.0` and `True`.
enum DictionaryKey: Hashable {
    case text(ByteText)
    case integer(Int64)
    case float(Double)
    case none

    init?(_ value: Value) {
        switch value {
        case .string(let text): self = .text(ByteText(text))
        case .integer(let value): self = .integer(value)
        case .bool(let flag): self = .integer(flag ? 1 : 0)
        case .float(let value): self = Int64(exactly: value).map { .integer($0) } ?? .float(value)
        case .none: self = .none
        case .undefined, .list, .tuple, .generator, .dictionary, .namespace, .macro, .loop, .function, .method:
            return nil
        }
    }
}

extension Value {
    /// JSON as template values; `count` grows by the number of values.
    init(_ json: JSONValue, count: inout Int) {
        count += 1
        switch json {
        case .null: self = .none
        case .bool(let flag): self = .bool(flag)
        case .integer(let value): self = .integer(value)
        case .number(let value): self = .float(value)
        case .string(let text): self = .string(text)
        case .array(let elements): self = .list(Elements(elements.map { Value($0, count: &count) }))
        case .object(let object):
            var dictionary = Dictionary()
            for (key, value) in object.members { dictionary.set(key, Value(value, count: &count)) }
            self = .dictionary(dictionary)
        }
    }

    var isTrue: Bool {
        switch self {
        case .undefined, .none: false
        case .bool(let flag): flag
        case .integer(let value): value != 0
        case .float(let value): value != 0
        case .string(let text): !text.utf8.isEmpty
        case .list(let elements), .tuple(let elements): !elements.isEmpty
        case .dictionary(let dictionary): dictionary.count > 0
        case .generator, .namespace, .macro, .loop, .function, .method: true
        }
    }

    /// Python's name of the type, for messages.
    var typeName: String {
        switch self {
        case .undefined: "Undefined"
        case .none: "NoneType"
        case .bool: "bool"
        case .integer: "int"
        case .float: "float"
        case .string: "str"
        case .list: "list"
        case .tuple: "tuple"
        case .generator: "generator"
        case .dictionary: "dict"
        case .namespace: "Namespace"
        case .macro: "Macro"
        case .loop: "LoopContext"
        case .function: "function"
        case .method: "method"
        }
    }

    /// How deep values nest in this one; 0 for what holds none.
    var depth: Int {
        switch self {
        case .list(let elements), .tuple(let elements), .generator(let elements): elements.depth
        case .dictionary(let dictionary): dictionary.depth
        case .method(let owner, _): owner.depth + 1
        case .undefined, .none, .bool, .integer, .float, .string, .namespace, .macro, .loop, .function: 0
        }
    }

    /// Python's `==`. Values may share parts, so a comparison can be far longer than the values are
    /// large: it pays from `budget` and gives up (false) when that is negative.
    func equals(_ other: Value, budget: inout Int) -> Bool {
        budget -= 1
        guard budget >= 0 else { return false }
        if let order = numberOrder(other) { return order == .equal }
        switch (self, other) {
        case (.undefined, .undefined), (.none, .none): return true
        case (.string(let a), .string(let b)):
            budget -= min(a.utf8.count, b.utf8.count) / 32
            return sameText(a, b)
        case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
            guard a.count == b.count else { return false }
            for (x, y) in zip(a, b) where !x.equals(y, budget: &budget) { return false }
            return true
        case (.dictionary(let a), .dictionary(let b)):
            guard a.count == b.count else { return false }
            for (key, value) in zip(a.keys, a.values) {
                guard let counterpart = b[key], value.equals(counterpart, budget: &budget) else { return false }
            }
            return true
        case (.namespace(let a), .namespace(let b)), (.macro(let a), .macro(let b)), (.loop(let a), .loop(let b)):
            return a == b
        case (.function(let a), .function(let b)): return a == b
        default: return false
        }
    }

    enum Order {
        case less
        case equal
        case greater
        /// A NaN is neither.
        case unordered
    }

    /// The order of two numbers; nil where one is none.
    func numberOrder(_ other: Value) -> Order? {
        if let a = exactInteger, let b = other.exactInteger { return a == b ? .equal : a < b ? .less : .greater }
        guard let a = number, let b = other.number else { return nil }
        return a == b ? .equal : a < b ? .less : a > b ? .greater : .unordered
    }

    /// Python's order; nil where Python has none.
    func order(_ other: Value, budget: inout Int) -> Order? {
        budget -= 1
        guard budget >= 0 else { return nil }
        if let order = numberOrder(other) { return order }
        switch (self, other) {
        case (.string(let a), .string(let b)):
            budget -= min(a.utf8.count, b.utf8.count) / 32
            if a.utf8.lexicographicallyPrecedes(b.utf8) { return .less }
            return sameText(a, b) ? .equal : .greater
        case (.list(let a), .list(let b)), (.tuple(let a), .tuple(let b)):
            for (x, y) in zip(a, b) where !x.equals(y, budget: &budget) { return x.order(y, budget: &budget) }
            return a.count == b.count ? .equal : a.count < b.count ? .less : .greater
        default: return nil
        }
    }

    /// An integer or a truth value as Python's int.
    var exactInteger: Int64? {
        switch self {
        case .integer(let value): value
        case .bool(let flag): flag ? 1 : 0
        default: nil
        }
    }

    var number: Double? {
        if case .float(let value) = self { return value }
        return exactInteger.map { Double($0) }
    }
}
