import Foundation
import ServingTypes
import Testing

@testable import ModelFiles

/// Where the repository's folders are, from this file.
enum Repository {
    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()
    static let fixtures = root.appendingPathComponent("Tests/ModelFilesTests/Fixtures/gguf")
    static let model = root.appendingPathComponent("cluster/models/tandem-stories-5m")
    /// Vocabularies of real models, too large to be part of the repository.
    static let vocabularies = root.deletingLastPathComponent().appendingPathComponent("shared/data/tokenizers")

    static func fixture(_ name: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: fixtures.appendingPathComponent(name)))
    }
}

/// Writes GGUF files, right ones and wrong ones.
struct GGUFTestFile {
    /// A tensor with its dimensions in the file's order, innermost first.
    struct Tensor {
        var name: String
        var type: UInt32
        var dimensions: [UInt64]
        var bytes: [UInt8]
        /// Where the tensor goes instead of behind the one before.
        var offset: UInt64?
    }

    var version: UInt32 = 3
    var keys: [[UInt8]] = []
    var tensors: [Tensor] = []
    var alignment = 32

    static func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        withUnsafeBytes(of: value.littleEndian) { [UInt8]($0) }
    }

    static func text(_ text: String) -> [UInt8] { little(UInt64(text.utf8.count)) + Array(text.utf8) }

    mutating func add(_ key: String, type: UInt32, _ bytes: [UInt8]) {
        keys.append(Self.text(key) + Self.little(type) + bytes)
    }

    mutating func add(_ key: String, _ value: UInt32) { add(key, type: 4, Self.little(value)) }
    mutating func add(_ key: String, _ value: Float) { add(key, type: 6, Self.little(value.bitPattern)) }
    mutating func add(_ key: String, _ value: Bool) { add(key, type: 7, [value ? 1 : 0]) }
    mutating func add(_ key: String, _ value: String) { add(key, type: 8, Self.text(value)) }

    mutating func add(_ key: String, _ values: [String]) {
        add(key, type: 9, Self.little(UInt32(8)) + Self.little(UInt64(values.count)) + values.flatMap(Self.text))
    }

    mutating func add(_ key: String, _ values: [Int32]) {
        add(
            key, type: 9,
            Self.little(UInt32(5)) + Self.little(UInt64(values.count)) + values.flatMap { Self.little($0) })
    }

    mutating func add(_ key: String, _ values: [Float]) {
        add(
            key, type: 9,
            Self.little(UInt32(6)) + Self.little(UInt64(values.count))
                + values.flatMap { Self.little($0.bitPattern) })
    }

    /// - tensorCount, keyCount: written instead of the true ones.
    func bytes(tensorCount: UInt64? = nil, keyCount: UInt64? = nil) -> [UInt8] {
        var file = Array("GGUF".utf8) + Self.little(version)
        file += Self.little(tensorCount ?? UInt64(tensors.count)) + Self.little(keyCount ?? UInt64(keys.count))
        for key in keys { file += key }
        var end: UInt64 = 0
        for tensor in tensors {
            file += Self.text(tensor.name) + Self.little(UInt32(tensor.dimensions.count))
            for size in tensor.dimensions { file += Self.little(size) }
            file += Self.little(tensor.type) + Self.little(tensor.offset ?? end)
            end += UInt64((tensor.bytes.count + alignment - 1) / alignment * alignment)
        }
        func pad() { file += [UInt8](repeating: 0, count: (alignment - file.count % alignment) % alignment) }
        for tensor in tensors {
            pad()
            file += tensor.bytes
        }
        return file
    }

    /// Two tensors, a few keys of each kind.
    static var small: GGUFTestFile {
        var file = GGUFTestFile()
        file.add("general.architecture", "llama")
        file.add("a.number", Float(0.5))
        file.add("a.flag", true)
        file.add("a.texts", ["one", "", "drei"])
        file.add("a.integers", [Int32(1), -2])
        file.tensors = [
            Tensor(name: "x", type: 0, dimensions: [3, 2], bytes: (0..<24).map { UInt8($0) }),
            Tensor(name: "y", type: 8, dimensions: [32], bytes: [UInt8](repeating: 1, count: 34)),
        ]
        return file
    }
}

func parsedGGUF(_ bytes: [UInt8]) throws(ServingError) -> GGUFHeader {
    // Exactly as many readable bytes as the file has: a read past them is a crash under ASan.
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 8)
    defer { memory.deallocate() }
    memory.copyBytes(from: bytes)
    return try GGUFHeader(UnsafeRawBufferPointer(memory), file: "m.gguf")
}
