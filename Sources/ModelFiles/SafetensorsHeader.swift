import BoundedJSON
import ServingTypes

/// The element types that a safetensors file may name. Sizes are checked for all of them; which
/// ones the engine reads is `ElementType`'s matter.
enum SafetensorsType: String, CaseIterable, Sendable {
    case bool = "BOOL"
    case uint8 = "U8"
    case int8 = "I8"
    case float4 = "F4"
    case float6e2m3 = "F6_E2M3"
    case float6e3m2 = "F6_E3M2"
    case float8e4m3 = "F8_E4M3"
    case float8e5m2 = "F8_E5M2"
    case float8e8m0 = "F8_E8M0"
    case uint16 = "U16"
    case int16 = "I16"
    case float16 = "F16"
    case bfloat16 = "BF16"
    case uint32 = "U32"
    case int32 = "I32"
    case float32 = "F32"
    case uint64 = "U64"
    case int64 = "I64"
    case float64 = "F64"
    case complex64 = "C64"

    var bits: Int {
        switch self {
        case .float4: 4
        case .float6e2m3, .float6e3m2: 6
        case .bool, .uint8, .int8, .float8e4m3, .float8e5m2, .float8e8m0: 8
        case .uint16, .int16, .float16, .bfloat16: 16
        case .uint32, .int32, .float32: 32
        case .uint64, .int64, .float64, .complex64: 64
        }
    }
}

/// One tensor of a safetensors file: where its bytes are and what they mean.
struct SafetensorsTensor: Hashable, Sendable {
    var name: String
    var type: SafetensorsType
    /// Outermost dimension first; empty for a scalar.
    var shape: [Int]
    /// Byte range from the start of the file.
    var range: Range<Int>
}

/// The header of a safetensors file, checked so that every tensor's range lies in the file, has the
/// length that shape and type ask for, and ranges cover the data exactly, without gap or overlap.
struct SafetensorsHeader: Sendable {
    /// In the order of their bytes.
    var tensors: [SafetensorsTensor]

    /// Bytes of the length field that opens the file.
    private static let prefixBytes = 8

    /// `bytes` is the whole file, or at least its header; `fileBytes` the file's size.
    init(_ bytes: UnsafeRawBufferPointer, fileBytes: Int, file: String) throws(ServingError) {
        let header = try Self.headerRange(bytes, fileBytes: fileBytes, file: file)
        let json = try Self.parse(UnsafeRawBufferPointer(rebasing: bytes[header]), file: file)
        var tensors: [SafetensorsTensor] = []
        tensors.reserveCapacity(json.count)
        for (name, value) in json.members {
            if name == "__metadata__" {
                try Self.checkMetadata(value, file: file)
            } else {
                tensors.append(try Self.tensor(name, value, dataStart: header.upperBound, file: file))
            }
        }
        tensors.sort { a, b in
            (a.range.lowerBound, a.range.upperBound) < (b.range.lowerBound, b.range.upperBound)
        }
        try Self.checkCover(tensors, dataStart: header.upperBound, fileBytes: fileBytes, file: file)
        self.tensors = tensors
    }

    private static func headerRange(
        _ bytes: UnsafeRawBufferPointer, fileBytes: Int, file: String
    ) throws(ServingError) -> Range<Int> {
        guard fileBytes >= prefixBytes, bytes.count >= prefixBytes else {
            throw fileFault(file, "\(fileBytes) bytes, fewer than the \(prefixBytes) of a safetensors length field")
        }
        let length = UInt64(littleEndian: bytes.loadUnaligned(as: UInt64.self))
        guard length >= 2, length <= UInt64(ModelFileLimits.headerBytesMax) else {
            throw fileFault(
                file, "the header length is \(length) bytes, outside 2 to \(ModelFileLimits.headerBytesMax)",
                field: "header length")
        }
        let end = prefixBytes + Int(length)
        guard end <= fileBytes, end <= bytes.count else {
            throw fileFault(
                file, "the header length is \(length) bytes but only \(fileBytes - prefixBytes) bytes follow",
                field: "header length")
        }
        return prefixBytes..<end
    }

    private static func parse(_ bytes: UnsafeRawBufferPointer, file: String) throws(ServingError) -> JSONObject {
        guard bytes.first == UInt8(ascii: "{") else {
            throw fileFault(file, "the header does not begin with '{'", field: "header")
        }
        var limits = JSONLimits()
        limits.bytesMax = ModelFileLimits.headerBytesMax
        // A tensor object, in it an array: two levels below the header itself.
        limits.depthMax = 4
        // Name, dtype, shape, offsets and the members of both arrays.
        limits.membersMax = ModelFileLimits.tensorsMax * (6 + ModelFileLimits.dimensionsMax)
        let json: JSONValue
        do {
            json = try JSON.parse(bytes, limits: limits)
        } catch {
            throw fileFault(file, "the header is no valid JSON (\(error))", field: "header")
        }
        guard let object = json.objectValue else {
            throw fileFault(file, "the header is \(json.kindName), not an object", field: "header")
        }
        guard object.count <= ModelFileLimits.tensorsMax + 1 else {
            throw fileFault(
                file, "the header names \(object.count) tensors, more than \(ModelFileLimits.tensorsMax)",
                field: "header")
        }
        return object
    }

    private static func checkMetadata(_ value: JSONValue, file: String) throws(ServingError) {
        guard let object = value.objectValue else {
            throw fileFault(file, "__metadata__ is \(value.kindName), not an object", field: "__metadata__")
        }
        for (key, entry) in object.members where entry.stringValue == nil {
            throw fileFault(
                file, "__metadata__[\(shown(key))] is \(entry.kindName), not a string", field: "__metadata__")
        }
    }

    // MARK: one tensor

    private static func tensor(
        _ name: String, _ value: JSONValue, dataStart: Int, file: String
    ) throws(ServingError) -> SafetensorsTensor {
        func fault(_ problem: String) -> ServingError {
            fileFault(file, "tensor \(shown(name)) \(problem)", field: name)
        }
        guard value.objectValue != nil else { throw fault("is \(value.kindName), not an object") }
        guard let typeName = value["dtype"]?.stringValue else { throw fault("has no dtype") }
        guard let type = SafetensorsType(rawValue: typeName) else {
            let known = SafetensorsType.allCases.map(\.rawValue).joined(separator: ", ")
            throw fault("has the dtype \(shown(typeName)), which is not one of \(known)")
        }
        let shape = try dimensions(value["shape"], fault)
        let (begin, end) = try offsets(value["data_offsets"], fault)
        guard let wanted = byteCount(shape, type) else {
            throw fault("of type \(typeName) and shape \(shape) has no whole number of bytes below 2^63")
        }
        guard end - begin == wanted else {
            throw fault(
                "of type \(typeName) and shape \(shape) takes \(wanted) bytes, not the \(end - begin) of its offsets")
        }
        let (first, firstOverflow) = begin.addingReportingOverflow(dataStart)
        let (last, lastOverflow) = end.addingReportingOverflow(dataStart)
        guard !firstOverflow, !lastOverflow else { throw fault("has offsets [\(begin), \(end)] beyond any file") }
        return SafetensorsTensor(name: name, type: type, shape: shape, range: first..<last)
    }

    private static func dimensions(
        _ value: JSONValue?, _ fault: (String) -> ServingError
    ) throws(ServingError) -> [Int] {
        guard let list = value?.arrayValue else { throw fault("has no shape") }
        guard list.count <= ModelFileLimits.dimensionsMax else {
            throw fault("has \(list.count) dimensions, more than \(ModelFileLimits.dimensionsMax)")
        }
        var shape: [Int] = []
        for entry in list {
            guard let size = entry.intValue, size >= 0 else {
                throw fault("has the dimension \(shown(entry)), which is no whole number from 0")
            }
            shape.append(size)
        }
        return shape
    }

    private static func offsets(
        _ value: JSONValue?, _ fault: (String) -> ServingError
    ) throws(ServingError) -> (Int, Int) {
        guard let list = value?.arrayValue, list.count == 2, let begin = list[0].intValue, let end = list[1].intValue
        else { throw fault("has no data_offsets of two whole numbers") }
        guard begin >= 0, end >= begin else {
            throw fault("has the data_offsets [\(begin), \(end)], which run backwards")
        }
        return (begin, end)
    }

    /// nil where the size overflows or ends inside a byte.
    private static func byteCount(_ shape: [Int], _ type: SafetensorsType) -> Int? {
        var bits = type.bits
        // A zero anywhere empties the tensor, however large the other dimensions are.
        if shape.contains(0) { return 0 }
        for size in shape {
            let (product, overflow) = bits.multipliedReportingOverflow(by: size)
            if overflow { return nil }
            bits = product
        }
        return bits.isMultiple(of: 8) ? bits / 8 : nil
    }

    private static func checkCover(
        _ tensors: [SafetensorsTensor], dataStart: Int, fileBytes: Int, file: String
    ) throws(ServingError) {
        var end = dataStart
        for tensor in tensors {
            guard tensor.range.lowerBound == end else {
                let kind = tensor.range.lowerBound < end ? "overlaps the tensor before it" : "leaves a gap before it"
                throw fileFault(
                    file,
                    "tensor \(shown(tensor.name)) begins at byte \(tensor.range.lowerBound - dataStart), "
                        + "not \(end - dataStart), and \(kind)",
                    field: tensor.name)
            }
            end = tensor.range.upperBound
        }
        guard end == fileBytes else {
            throw fileFault(
                file, "the tensors end at byte \(end) but the file has \(fileBytes) bytes", field: "data_offsets")
        }
    }
}
