import BoundedJSON
import ServingTypes

/// Reads members of a request's object with their types and ranges, and remembers which it knew,
/// so that the rest can be listed as ignored. `null` counts as absent throughout.
struct FieldReader {
    let object: JSONObject
    private var known: Set<String> = []

    init(_ object: JSONObject) { self.object = object }

    /// Names of members that nobody asked for, in the order they were sent.
    var ignored: [String] {
        object.members.filter { !known.contains($0.key) }.map(\.key)
    }

    mutating func value(_ name: String) -> JSONValue? {
        known.insert(name)
        guard let value = object[name], !value.isNull else { return nil }
        return value
    }

    mutating func bool(_ name: String) throws(ServingError) -> Bool? {
        guard let value = value(name) else { return nil }
        guard let flag = value.boolValue else { throw .wrongKind(name, value, "a boolean") }
        return flag
    }

    mutating func string(_ name: String) throws(ServingError) -> String? {
        guard let value = value(name) else { return nil }
        guard let text = value.stringValue else { throw .wrongKind(name, value, "a string") }
        return text
    }

    mutating func integer(_ name: String, in range: ClosedRange<Int>) throws(ServingError) -> Int? {
        guard let value = value(name) else { return nil }
        return try Self.integer(value, name: name, in: range)
    }

    mutating func number(_ name: String, in range: ClosedRange<Double>) throws(ServingError) -> Float? {
        guard let value = value(name) else { return nil }
        return try Self.number(value, name: name, in: range)
    }

    mutating func object(_ name: String) throws(ServingError) -> JSONObject? {
        guard let value = value(name) else { return nil }
        guard let object = value.objectValue else { throw .wrongKind(name, value, "an object") }
        return object
    }

    mutating func array(_ name: String, countMax: Int) throws(ServingError) -> [JSONValue]? {
        guard let value = value(name) else { return nil }
        guard let values = value.arrayValue else { throw .wrongKind(name, value, "an array") }
        guard values.count <= countMax else { throw .tooMany(name, values.count, limit: countMax) }
        return values
    }

    static func integer(_ value: JSONValue, name: String, in range: ClosedRange<Int>) throws(ServingError) -> Int {
        guard let number = value.doubleValue else { throw .wrongKind(name, value, "an integer") }
        guard let integer = value.intValue else {
            throw .invalid(name, "is \(number); it must be an integer from \(range.lowerBound) to \(range.upperBound)")
        }
        guard range.contains(integer) else {
            throw .invalid(name, "is \(integer); it must be from \(range.lowerBound) to \(range.upperBound)")
        }
        return integer
    }

    static func number(_ value: JSONValue, name: String, in range: ClosedRange<Double>) throws(ServingError) -> Float {
        guard let number = value.doubleValue else { throw .wrongKind(name, value, "a number") }
        guard range.contains(number) else {
            throw .invalid(name, "is \(number); it must be from \(range.lowerBound) to \(range.upperBound)")
        }
        return Float(number)
    }

    /// Token ids below `vocabularySize`.
    static func tokens(_ values: [JSONValue], name: String, vocabularySize: Int) throws(ServingError) -> [TokenID] {
        var tokens: [TokenID] = []
        tokens.reserveCapacity(values.count)
        for value in values {
            guard let id = value.intValue, id >= 0, id < vocabularySize else {
                throw .invalid(
                    name, "holds \(shown(value)), which is no token id; ids are from 0 to \(vocabularySize - 1)")
            }
            tokens.append(TokenID(UInt32(id)))
        }
        return tokens
    }

    /// A value as it may stand in a message.
    static func shown(_ value: JSONValue) -> String {
        switch value {
        case .null, .bool, .integer, .number: JSON.text(value)
        case .string(let text): quotedForPeople(text)
        case .array, .object: value.kindName
        }
    }
}

extension ServingError {
    /// `'field' <rest>.`
    static func invalid(_ field: String, _ rest: String) -> ServingError {
        ServingError(.invalidValue, "'\(field)' \(rest).", field: field)
    }

    static func wrongKind(_ field: String, _ value: JSONValue, _ wanted: String) -> ServingError {
        invalid(field, "is \(FieldReader.shown(value)); it must be \(wanted)")
    }

    static func tooMany(_ field: String, _ count: Int, limit: Int) -> ServingError {
        invalid(field, "has \(count) members; the limit is \(limit)")
    }

    static func missing(_ field: String) -> ServingError {
        ServingError(.missingField, "'\(field)' is required.", field: field)
    }

    static func unsupported(_ field: String, _ rest: String) -> ServingError {
        ServingError(.unsupported, "'\(field)' \(rest).", field: field)
    }
}
