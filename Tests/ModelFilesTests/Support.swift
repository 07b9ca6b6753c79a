import BoundedJSON
import Foundation
import ModelRuntime
import ServingTypes
import Testing

@testable import ModelFiles

/// A generator with a seed that a failure message can name.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// A folder that is removed at the end of the body.
struct TemporaryFolder {
    let path: String

    static func use<T>(_ body: (TemporaryFolder) throws -> T) throws -> T {
        let url = FileManager.default.temporaryDirectory.appendingPathComponent("ModelFilesTests-\(UUID())")
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: url) }
        return try body(TemporaryFolder(path: url.path))
    }

    func write(_ name: String, _ bytes: [UInt8]) throws {
        try Data(bytes).write(to: URL(fileURLWithPath: path).appendingPathComponent(name))
    }

    func write(_ name: String, _ json: JSONValue) throws { try write(name, [UInt8](JSON.text(json).utf8)) }

    func bytes(_ name: String) throws -> [UInt8] {
        [UInt8](try Data(contentsOf: URL(fileURLWithPath: path).appendingPathComponent(name)))
    }

    func json(_ name: String) throws -> JSONValue { try JSON.parse(bytes(name)) }

    func remove(_ name: String) throws {
        try FileManager.default.removeItem(at: URL(fileURLWithPath: path).appendingPathComponent(name))
    }

    /// Replaces members of a JSON file; nil removes one.
    func change(_ name: String, _ changes: [(String, JSONValue?)]) throws {
        guard var object = try json(name).objectValue else { return }
        for (key, value) in changes { object[key] = value }
        try write(name, .object(object))
    }
}

/// One tensor of a file made by hand.
struct HandTensor {
    var name: String
    var type = "F32"
    var shape: [Int]
    var begin: Int
    var end: Int

    var json: (String, JSONValue) {
        (
            name,
            [
                "dtype": .string(type), "shape": .array(shape.map { .integer(Int64($0)) }),
                "data_offsets": [.integer(Int64(begin)), .integer(Int64(end))],
            ]
        )
    }
}

/// Length field, header text, and that many bytes of data.
func safetensors(_ header: String, dataBytes: Int) -> [UInt8] {
    let text = [UInt8](header.utf8)
    let length = withUnsafeBytes(of: UInt64(text.count).littleEndian) { [UInt8]($0) }
    return length + text + (0..<dataBytes).map { UInt8(truncatingIfNeeded: $0 &* 7 &+ 3) }
}

func safetensors(_ tensors: [HandTensor], dataBytes: Int) -> [UInt8] {
    safetensors(JSON.text(.object(JSONObject(tensors.map(\.json)))), dataBytes: dataBytes)
}

func parsedHeader(_ bytes: [UInt8]) throws(ServingError) -> SafetensorsHeader {
    // Exactly as many readable bytes as the file has: a read past them is a crash under ASan.
    let memory = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 8)
    defer { memory.deallocate() }
    memory.copyBytes(from: bytes)
    return try SafetensorsHeader(UnsafeRawBufferPointer(memory), fileBytes: bytes.count, file: "w.safetensors")
}

/// The error of a body that must fail.
func fault(_ body: () throws -> Void, sourceLocation: SourceLocation = #_sourceLocation) -> ServingError? {
    do {
        try body()
    } catch {
        return error as? ServingError
    }
    Issue.record("nothing was thrown", sourceLocation: sourceLocation)
    return nil
}

/// Expects a fault whose message has all of these parts.
func expectFault(
    _ parts: String..., sourceLocation: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) {
    guard let fault = fault(body, sourceLocation: sourceLocation) else {
        Issue.record("no ServingError was thrown", sourceLocation: sourceLocation)
        return
    }
    for part in parts {
        #expect(fault.message.contains(part), "\(fault.message)", sourceLocation: sourceLocation)
    }
    #expect(fault.blast == .process, sourceLocation: sourceLocation)
}

extension ModelSpec {
    /// A model of a few thousand weights.
    static func tiny(_ family: Family = .llama) -> ModelSpec {
        ModelSpec(
            family: family, layerCount: 2, hiddenSize: 16, headCount: 4, kvHeadCount: 2, headDim: 4, ffnSize: 24,
            vocabularySize: 320, contextTokensMax: 128, rmsNormEpsilon: 1e-5, attentionBias: family == .qwen2,
            qkNorm: family == .qwen3, tiedEmbeddings: true)
    }
}
