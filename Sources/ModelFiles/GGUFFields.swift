import ServingTypes

/// The metadata of a GGUF file, read with their types and ranges checked.
struct GGUFFields {
    let metadata: [String: GGUFValue]
    let file: String

    func fault(_ key: String, _ problem: String, code: ServingError.Code = .invalidValue) -> ServingError {
        fileFault(file, "\(key) \(problem)", field: key, code: code)
    }

    func missing(_ key: String) -> ServingError { fault(key, "is missing", code: .missingField) }

    func optionalInteger(_ key: String, _ range: ClosedRange<Int>) throws(ServingError) -> Int? {
        guard let value = metadata[key] else { return nil }
        guard case .integer(let written) = value else {
            throw fault(
                key, "is \(value.kindName), not an integer from \(range.lowerBound) to \(range.upperBound)")
        }
        guard let number = Int(exactly: written), range.contains(number) else {
            throw fault(key, "is \(written), outside \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    func integer(_ key: String, _ range: ClosedRange<Int>) throws(ServingError) -> Int {
        guard let number = try optionalInteger(key, range) else { throw missing(key) }
        return number
    }

    func optionalNumber(_ key: String, _ range: ClosedRange<Double>) throws(ServingError) -> Double? {
        let number: Double
        switch metadata[key] {
        case nil: return nil
        case .number(let value)?: number = value
        case .integer(let value)?: number = Double(value)
        case .some(let other):
            throw fault(key, "is \(other.kindName), not a number from \(range.lowerBound) to \(range.upperBound)")
        }
        guard range.contains(number) else {
            throw fault(key, "is \(number), outside \(range.lowerBound) to \(range.upperBound)")
        }
        return number
    }

    func number(_ key: String, _ range: ClosedRange<Double>) throws(ServingError) -> Double {
        guard let number = try optionalNumber(key, range) else { throw missing(key) }
        return number
    }

    func flag(_ key: String) throws(ServingError) -> Bool? {
        switch metadata[key] {
        case nil: return nil
        case .bool(let flag)?: return flag
        case .some(let other): throw fault(key, "is \(other.kindName), not a boolean")
        }
    }

    func text(_ key: String) throws(ServingError) -> String? {
        switch metadata[key] {
        case nil: return nil
        case .string(let text)?: return text
        case .some(let other): throw fault(key, "is \(other.kindName), not a string")
        }
    }

    func strings(_ key: String) throws(ServingError) -> [String]? {
        switch metadata[key] {
        case nil: return nil
        case .strings(let values)?: return values
        case .some(let other): throw fault(key, "is \(other.kindName), not an array of strings")
        }
    }

    func numbers(_ key: String) throws(ServingError) -> [Double]? {
        switch metadata[key] {
        case nil: return nil
        case .numbers(let values)?: return values
        case .some(let other): throw fault(key, "is \(other.kindName), not an array of numbers")
        }
    }

    func integers(_ key: String) throws(ServingError) -> [Int64]? {
        switch metadata[key] {
        case nil: return nil
        case .integers(let values)?: return values
        case .some(let other): throw fault(key, "is \(other.kindName), not an array of integers")
        }
    }
}
