import BoundedJSON
import ServingTypes

/// The members of one JSON object of one file, read with their types and ranges checked. A member
/// that is null counts as missing, as Hugging Face's own readers have it.
struct JSONFields {
    let file: String
    let object: JSONObject
    /// Put before member names in messages: `rope_scaling.`.
    let prefix: String

    init(_ value: JSONValue, file: String) throws(ServingError) {
        guard let object = value.objectValue else {
            throw fileFault(file, "is \(value.kindName), not an object")
        }
        self.init(object, file: file, prefix: "")
    }

    init(_ object: JSONObject, file: String, prefix: String) {
        self.object = object
        self.file = file
        self.prefix = prefix
    }

    subscript(name: String) -> JSONValue? {
        guard let value = object[name], !value.isNull else { return nil }
        return value
    }

    func fault(_ name: String, _ problem: String, code: ServingError.Code = .invalidValue) -> ServingError {
        fileFault(file, "\(prefix)\(name) \(problem)", field: prefix + name, code: code)
    }

    func missing(_ name: String) -> ServingError { fault(name, "is missing", code: .missingField) }

    // MARK: whole numbers

    func optionalInteger(_ name: String, _ range: ClosedRange<Int>) throws(ServingError) -> Int? {
        guard let value = self[name] else { return nil }
        guard let number = value.intValue else {
            throw fault(name, "is \(shown(value)), not a whole number from \(range.lowerBound) to \(range.upperBound)")
        }
        guard range.contains(number) else {
            throw fault(name, "is \(number), outside \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    func integer(_ name: String, _ range: ClosedRange<Int>) throws(ServingError) -> Int {
        guard let number = try optionalInteger(name, range) else { throw missing(name) }
        return number
    }

    // MARK: numbers

    func optionalNumber(_ name: String, _ range: ClosedRange<Double>) throws(ServingError) -> Double? {
        guard let value = self[name] else { return nil }
        guard let number = value.doubleValue else {
            throw fault(name, "is \(shown(value)), not a number from \(range.lowerBound) to \(range.upperBound)")
        }
        guard range.contains(number) else {
            throw fault(name, "is \(number), outside \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    func number(_ name: String, _ range: ClosedRange<Double>) throws(ServingError) -> Double {
        guard let number = try optionalNumber(name, range) else { throw missing(name) }
        return number
    }

    // MARK: others

    func flag(_ name: String) throws(ServingError) -> Bool? {
        guard let value = self[name] else { return nil }
        guard let flag = value.boolValue else { throw fault(name, "is \(shown(value)), not true or false") }
        return flag
    }

    func text(_ name: String) throws(ServingError) -> String? {
        guard let value = self[name] else { return nil }
        guard let text = value.stringValue else { throw fault(name, "is \(shown(value)), not a string") }
        return text
    }

    func fields(_ name: String) throws(ServingError) -> JSONFields? {
        guard let value = self[name] else { return nil }
        guard let object = value.objectValue else { throw fault(name, "is \(shown(value)), not an object") }
        return JSONFields(object, file: file, prefix: "\(prefix)\(name).")
    }

    /// One token id or a list of them (`eos_token_id`), in the file's order, without repeats.
    func tokens(_ name: String, below vocabulary: Int) throws(ServingError) -> [TokenID] {
        guard let value = self[name] else { return [] }
        let list = value.arrayValue ?? [value]
        guard list.count <= ModelFileLimits.endTokensMax else {
            throw fault(name, "lists \(list.count) tokens, more than \(ModelFileLimits.endTokensMax)")
        }
        var tokens: [TokenID] = []
        for entry in list {
            guard let id = entry.intValue, id >= 0, id < vocabulary, let small = UInt32(exactly: id) else {
                throw fault(name, "has \(shown(entry)), not a token id from 0 to \(vocabulary - 1)")
            }
            if !tokens.contains(TokenID(small)) { tokens.append(TokenID(small)) }
        }
        return tokens
    }
}
