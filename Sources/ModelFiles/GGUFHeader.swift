import ServingTypes

/// Bounds on what a GGUF file may hold. Counts are also bounded by the bytes that are left of the
/// file, before anything is allocated for them.
public enum GGUFLimits {
    /// Metadata keys of one file.
    public static let keysMax = 65_536
    /// Bytes of one key.
    public static let keyBytesMax = 65_535
    /// Bytes of all strings of one file together, keys and names included.
    public static let stringBytesMax = 64 << 20
    /// Elements of all arrays of one file together.
    public static let arrayElementsMax = 1 << 25
    /// Bytes of a tensor's name.
    public static let nameBytesMax = 127
    /// Dimensions of one tensor.
    public static let dimensionsMax = 4
    /// `general.alignment`, a power of two.
    public static let alignmentMax = 1 << 20
}

/// The types that a tensor of a GGUF file may have. Sizes are checked for all of them; which ones
/// are read is `GGUFWeights`' matter.
enum GGUFTensorType: UInt32, CaseIterable, Sendable {
    case f32 = 0
    case f16 = 1
    case q4_0 = 2
    case q4_1 = 3
    case q5_0 = 6
    case q5_1 = 7
    case q8_0 = 8
    case q8_1 = 9
    case q2_K = 10
    case q3_K = 11
    case q4_K = 12
    case q5_K = 13
    case q6_K = 14
    case q8_K = 15
    case iq2_XXS = 16
    case iq2_XS = 17
    case iq3_XXS = 18
    case iq1_S = 19
    case iq4_NL = 20
    case iq3_S = 21
    case iq2_S = 22
    case iq4_XS = 23
    case i8 = 24
    case i16 = 25
    case i32 = 26
    case i64 = 27
    case f64 = 28
    case iq1_M = 29
    case bf16 = 30
    case tq1_0 = 34
    case tq2_0 = 35
    case mxfp4 = 39

    var name: String { "\(self)".uppercased() }

    /// Values of a block and its bytes (ggml's table).
    var block: (values: Int, bytes: Int) {
        switch self {
        case .i8: (1, 1)
        case .f16, .bf16, .i16: (1, 2)
        case .f32, .i32: (1, 4)
        case .i64, .f64: (1, 8)
        case .mxfp4: (32, 17)
        case .q4_0, .iq4_NL: (32, 18)
        case .q4_1: (32, 20)
        case .q5_0: (32, 22)
        case .q5_1: (32, 24)
        case .q8_0: (32, 34)
        case .q8_1: (32, 40)
        case .iq1_S: (256, 50)
        case .tq1_0: (256, 54)
        case .iq1_M: (256, 56)
        case .iq2_XXS, .tq2_0: (256, 66)
        case .iq2_XS: (256, 74)
        case .iq2_S: (256, 82)
        case .q2_K: (256, 84)
        case .iq3_XXS: (256, 98)
        case .q3_K, .iq3_S: (256, 110)
        case .iq4_XS: (256, 136)
        case .q4_K: (256, 144)
        case .q5_K: (256, 176)
        case .q6_K: (256, 210)
        case .q8_K: (256, 292)
        }
    }
}

/// A metadata value. Arrays of arrays are refused, as llama.cpp refuses them.
enum GGUFValue: Hashable, Sendable {
    case integer(Int64)
    /// An unsigned value above `Int64.max`.
    case large(UInt64)
    case number(Double)
    case bool(Bool)
    case string(String)
    case integers([Int64])
    case numbers([Double])
    case bools([Bool])
    case strings([String])

    /// For messages.
    var kindName: String {
        switch self {
        case .integer, .large: "an integer"
        case .number: "a number"
        case .bool: "a boolean"
        case .string: "a string"
        case .integers(let values): "an array of \(values.count) integers"
        case .numbers(let values): "an array of \(values.count) numbers"
        case .bools(let values): "an array of \(values.count) booleans"
        case .strings(let values): "an array of \(values.count) strings"
        }
    }
}

/// One tensor of a GGUF file: where its bytes are and what they mean.
struct GGUFTensor: Hashable, Sendable {
    var name: String
    var type: GGUFTensorType
    /// Outermost dimension first, the reverse of the file's order.
    var shape: [Int]
    /// Byte range from the start of the file.
    var range: Range<Int>
}

/// Everything before the tensor data of a GGUF file of version 3, checked: no count beyond the
/// bytes that are left, strings of UTF-8, keys and names of ASCII and none twice, an alignment that
/// is a power of two, known types, and tensors that lie in the file, aligned and apart.
struct GGUFHeader: Sendable {
    /// Keys are ASCII, so that `String`'s equality is that of bytes.
    private(set) var metadata: [String: GGUFValue] = [:]
    /// In the file's order.
    private(set) var tensors: [GGUFTensor] = []
    /// Where the tensor data begin.
    private(set) var dataStart = 0
    private(set) var alignment = 32

    static let version: UInt32 = 3

    /// `bytes` is the whole file, `file` its name for messages.
    init(_ bytes: UnsafeRawBufferPointer, file: String) throws(ServingError) {
        var cursor = GGUFCursor(bytes: bytes, file: file)
        try Self.checkMagic(&cursor)
        // The least that a tensor's entry takes: name length, dimension count, one dimension, type, offset.
        let tensorCount = try cursor.count("tensor count", bytesEach: 32, max: ModelFileLimits.tensorsMax)
        // The least that a key takes: its length, a type, one byte.
        let keyCount = try cursor.count("metadata count", bytesEach: 13, max: GGUFLimits.keysMax)
        try readMetadata(&cursor, count: keyCount)
        alignment = try Self.alignment(metadata["general.alignment"], file)
        try readTensors(&cursor, count: tensorCount)
    }

    private static func checkMagic(_ cursor: inout GGUFCursor) throws(ServingError) {
        let magic: UInt32 = try cursor.integer("magic")
        guard magic == 0x4655_4747 else {
            throw cursor.fault("does not begin with GGUF", field: "magic")
        }
        let version: UInt32 = try cursor.integer("version")
        guard version != Self.version.byteSwapped else {
            throw cursor.fault("is big-endian, and only little-endian files are read", field: "version", .unsupported)
        }
        guard version == Self.version else {
            throw cursor.fault("is of GGUF version \(version), and only 3 is read", field: "version", .unsupported)
        }
    }

    // MARK: metadata

    private mutating func readMetadata(_ cursor: inout GGUFCursor, count: Int) throws(ServingError) {
        metadata.reserveCapacity(count)
        for index in 0..<count {
            let key = try cursor.name("metadata key \(index)", max: GGUFLimits.keyBytesMax)
            guard metadata[key] == nil else {
                throw cursor.fault("has the metadata key \(shown(key)) twice", field: key)
            }
            let type: UInt32 = try cursor.integer(key)
            metadata[key] = try Self.value(&cursor, key, type)
        }
    }

    private static func value(
        _ cursor: inout GGUFCursor, _ key: String, _ type: UInt32
    ) throws(ServingError) -> GGUFValue {
        guard let kind = GGUFValueType(rawValue: type) else {
            throw cursor.fault("has \(key) of the unknown value type \(type)", field: key)
        }
        switch kind {
        case .uint8, .int8, .uint16, .int16, .uint32, .int32, .int64: return .integer(try integer(&cursor, key, kind))
        case .uint64:
            let value: UInt64 = try cursor.integer(key)
            return Int64(exactly: value).map { .integer($0) } ?? .large(value)
        case .float32, .float64: return .number(try number(&cursor, key, kind))
        case .bool: return .bool(try bool(&cursor, key))
        case .string: return .string(try cursor.string(key))
        case .array: return try array(&cursor, key)
        }
    }

    private static func array(_ cursor: inout GGUFCursor, _ key: String) throws(ServingError) -> GGUFValue {
        let type: UInt32 = try cursor.integer(key)
        guard let kind = GGUFValueType(rawValue: type), kind != .array else {
            throw cursor.fault(
                "has in \(key) an array of the value type \(type), which is unknown or an array again", field: key)
        }
        let count = try cursor.elementCount(key, bytesEach: kind.bytesMin)
        switch kind {
        case .uint8, .int8, .uint16, .int16, .uint32, .int32, .int64, .uint64:
            return .integers(try elements(count) { () throws(ServingError) in try integer(&cursor, key, kind) })
        case .float32, .float64:
            return .numbers(try elements(count) { () throws(ServingError) in try number(&cursor, key, kind) })
        case .bool: return .bools(try elements(count) { () throws(ServingError) in try bool(&cursor, key) })
        case .string, .array:
            return .strings(try elements(count) { () throws(ServingError) in try cursor.string(key) })
        }
    }

    private static func elements<T>(_ count: Int, _ next: () throws(ServingError) -> T) throws(ServingError) -> [T] {
        var values: [T] = []
        values.reserveCapacity(count)
        for _ in 0..<count { values.append(try next()) }
        return values
    }

    private static func integer(
        _ cursor: inout GGUFCursor, _ key: String, _ kind: GGUFValueType
    ) throws(ServingError) -> Int64 {
        switch kind {
        case .uint8: return Int64(try cursor.integer(key) as UInt8)
        case .int8: return Int64(try cursor.integer(key) as Int8)
        case .uint16: return Int64(try cursor.integer(key) as UInt16)
        case .int16: return Int64(try cursor.integer(key) as Int16)
        case .uint32: return Int64(try cursor.integer(key) as UInt32)
        case .int32: return Int64(try cursor.integer(key) as Int32)
        case .int64, .uint64, .float32, .float64, .bool, .string, .array:
            let value: UInt64 = try cursor.integer(key)
            if kind == .uint64, value > UInt64(Int64.max) {
                throw cursor.fault("has in \(key) the element \(value), above 2^63 - 1", field: key)
            }
            return Int64(bitPattern: value)
        }
    }

    private static func number(
        _ cursor: inout GGUFCursor, _ key: String, _ kind: GGUFValueType
    ) throws(ServingError) -> Double {
        if kind == .float32 { return Double(Float(bitPattern: try cursor.integer(key))) }
        return Double(bitPattern: try cursor.integer(key))
    }

    private static func bool(_ cursor: inout GGUFCursor, _ key: String) throws(ServingError) -> Bool {
        let byte: UInt8 = try cursor.integer(key)
        guard byte <= 1 else { throw cursor.fault("has in \(key) the boolean \(byte), not 0 or 1", field: key) }
        return byte == 1
    }

    private static func alignment(_ value: GGUFValue?, _ file: String) throws(ServingError) -> Int {
        guard let value else { return 32 }
        guard case .integer(let alignment) = value, (1...Int64(GGUFLimits.alignmentMax)).contains(alignment),
            alignment & (alignment - 1) == 0
        else {
            throw fileFault(
                file, "general.alignment is no power of two from 1 to \(GGUFLimits.alignmentMax)",
                field: "general.alignment")
        }
        return Int(alignment)
    }

    // MARK: tensors

    /// A tensor before the place of the data is known.
    private struct Listed {
        var name: String
        var type: GGUFTensorType
        var shape: [Int]
        var offset: Int
        var byteCount: Int
    }

    private mutating func readTensors(_ cursor: inout GGUFCursor, count: Int) throws(ServingError) {
        var listed: [Listed] = []
        listed.reserveCapacity(count)
        var names: Set<String> = []
        for index in 0..<count {
            let tensor = try Self.tensor(&cursor, index, alignment)
            guard names.insert(tensor.name).inserted else {
                throw cursor.fault("has the tensor \(shown(tensor.name)) twice", field: tensor.name)
            }
            listed.append(tensor)
        }
        dataStart = (cursor.at + alignment - 1) & ~(alignment - 1)
        for tensor in listed {
            let (start, early) = tensor.offset.addingReportingOverflow(dataStart)
            let (end, late) = start.addingReportingOverflow(tensor.byteCount)
            guard !early, !late, end <= cursor.bytes.count else {
                throw cursor.fault(
                    "has the tensor \(shown(tensor.name)) of \(tensor.byteCount) bytes at offset \(tensor.offset), "
                        + "beyond the end of the file at \(cursor.bytes.count - dataStart)", field: tensor.name)
            }
            tensors.append(GGUFTensor(name: tensor.name, type: tensor.type, shape: tensor.shape, range: start..<end))
        }
        try checkApart(cursor)
    }

    private func checkApart(_ cursor: GGUFCursor) throws(ServingError) {
        let ordered = tensors.sorted { $0.range.lowerBound < $1.range.lowerBound }
        for (before, after) in zip(ordered, ordered.dropFirst()) {
            guard after.range.lowerBound >= before.range.upperBound else {
                throw cursor.fault(
                    "has the tensors \(shown(before.name)) and \(shown(after.name)) at overlapping places",
                    field: after.name)
            }
        }
    }

    private static func tensor(
        _ cursor: inout GGUFCursor, _ index: Int, _ alignment: Int
    ) throws(ServingError) -> Listed {
        let name = try cursor.name("tensor name \(index)", max: GGUFLimits.nameBytesMax)
        let shape = try shape(&cursor, name)
        let number: UInt32 = try cursor.integer(name)
        guard let type = GGUFTensorType(rawValue: number) else {
            throw cursor.fault("has the tensor \(shown(name)) of the unknown type \(number)", field: name)
        }
        guard let byteCount = byteCount(shape, type) else {
            throw cursor.fault(
                "has the tensor \(shown(name)) of type \(type.name) and shape \(shape), whose rows are no whole blocks "
                    + "of \(type.block.values) or which takes 2^63 bytes or more", field: name)
        }
        let written: UInt64 = try cursor.integer(name)
        guard let offset = Int(exactly: written), offset & (alignment - 1) == 0 else {
            throw cursor.fault(
                "has the tensor \(shown(name)) at offset \(written), no multiple of the alignment \(alignment)",
                field: name)
        }
        return Listed(name: name, type: type, shape: shape, offset: offset, byteCount: byteCount)
    }

    private static func shape(_ cursor: inout GGUFCursor, _ name: String) throws(ServingError) -> [Int] {
        let count: UInt32 = try cursor.integer(name)
        guard (1...UInt32(GGUFLimits.dimensionsMax)).contains(count) else {
            throw cursor.fault(
                "has the tensor \(shown(name)) of \(count) dimensions, outside 1 to \(GGUFLimits.dimensionsMax)",
                field: name)
        }
        var shape: [Int] = []
        for _ in 0..<count {
            let written: UInt64 = try cursor.integer(name)
            guard let size = Int(exactly: written), size > 0 else {
                throw cursor.fault(
                    "has the tensor \(shown(name)) with the dimension \(written), outside 1 to 2^63 - 1", field: name)
            }
            shape.append(size)
        }
        return shape.reversed()
    }

    /// nil where the rows are no whole blocks or the size overflows.
    static func byteCount(_ shape: [Int], _ type: GGUFTensorType) -> Int? {
        let (values, bytes) = type.block
        guard let row = shape.last, row.isMultiple(of: values) else { return nil }
        var total = bytes
        for size in shape.dropLast() + [row / values] {
            let (product, overflow) = total.multipliedReportingOverflow(by: size)
            if overflow { return nil }
            total = product
        }
        return total
    }
}

/// The numbers of metadata value types.
enum GGUFValueType: UInt32, Sendable {
    case uint8 = 0
    case int8 = 1
    case uint16 = 2
    case int16 = 3
    case uint32 = 4
    case int32 = 5
    case float32 = 6
    case bool = 7
    case string = 8
    case array = 9
    case uint64 = 10
    case int64 = 11
    case float64 = 12

    /// The least bytes that a value takes.
    var bytesMin: Int {
        switch self {
        case .uint8, .int8, .bool: 1
        case .uint16, .int16: 2
        case .uint32, .int32, .float32: 4
        case .uint64, .int64, .float64, .string: 8
        case .array: 12
        }
    }
}

/// Reads little-endian values one after another, never past the end.
struct GGUFCursor {
    let bytes: UnsafeRawBufferPointer
    let file: String
    private(set) var at = 0
    private var stringBytes = 0
    private var arrayElements = 0

    init(bytes: UnsafeRawBufferPointer, file: String) {
        self.bytes = bytes
        self.file = file
    }

    private var remaining: Int { bytes.count - at }

    func fault(_ problem: String, field: String, _ code: ServingError.Code = .malformed) -> ServingError {
        fileFault(file, problem, field: field, code: code)
    }

    private mutating func advance(_ count: Int, _ what: String) throws(ServingError) -> Int {
        guard count <= remaining else {
            throw fault("ends at byte \(bytes.count) inside \(shown(what))", field: what)
        }
        defer { at += count }
        return at
    }

    mutating func integer<T: FixedWidthInteger>(_ what: String) throws(ServingError) -> T {
        let place = try advance(MemoryLayout<T>.size, what)
        return T(littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: T.self))
    }

    /// A count of things that take at least so many bytes each.
    mutating func count(_ what: String, bytesEach: Int, max: Int) throws(ServingError) -> Int {
        let written: UInt64 = try integer(what)
        let room = min(max, remaining / bytesEach)
        guard let count = Int(exactly: written), count <= room else {
            throw fault(
                "has \(shown(what)) with \(written) entries, more than the limit or the file's rest of \(room)",
                field: what)
        }
        return count
    }

    /// As `count`, of the elements of one more array.
    mutating func elementCount(_ what: String, bytesEach: Int) throws(ServingError) -> Int {
        let count = try count(what, bytesEach: bytesEach, max: GGUFLimits.arrayElementsMax - arrayElements)
        arrayElements += count
        return count
    }

    mutating func string(_ what: String) throws(ServingError) -> String {
        let written: UInt64 = try integer(what)
        guard let count = Int(exactly: written), count <= remaining else {
            throw fault("has in \(shown(what)) a string of \(written) bytes, and \(remaining) are left", field: what)
        }
        stringBytes += count
        guard stringBytes <= GGUFLimits.stringBytesMax else {
            throw fault("has strings of more than \(GGUFLimits.stringBytesMax) bytes together", field: what)
        }
        let place = try advance(count, what)
        guard let text = String(validating: bytes[place..<place + count], as: UTF8.self) else {
            throw fault("has in \(shown(what)) a string that is not valid UTF-8", field: what)
        }
        return text
    }

    /// A string of ASCII.
    mutating func name(_ what: String, max: Int) throws(ServingError) -> String {
        let text = try string(what)
        guard text.utf8.count <= max, text.utf8.allSatisfy({ (0x21...0x7E).contains($0) }), !text.utf8.isEmpty else {
            throw fault(
                "has as \(what) \(shown(text)), which is not 1 to \(max) printable ASCII characters", field: what)
        }
        return text
    }
}
