import BoundedJSON
import Foundation
import ServingTypes

@testable import Tokenization

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

/// A tokenizer that `ops/fixtures/tokenizers_fixtures.py` trained and what Hugging Face's `tokenizers`
/// makes of strings with it.
enum Fixture: String, CaseIterable, Sendable {
    case gpt2
    case llama3
    case qwen2
    case digits
    case prefix

    static func json(_ name: String) throws -> JSONValue {
        let folder = URL(fileURLWithPath: #filePath).deletingLastPathComponent().appendingPathComponent("Fixtures")
        return try JSON.parse([UInt8](try Data(contentsOf: folder.appendingPathComponent(name))))
    }

    func tokenizer() throws -> Tokenizer {
        try Tokenizer.parse(tokenizerJSON: try Self.json("\(rawValue).tokenizer.json"), config: nil)
    }

    func cases() throws -> JSONValue { try Self.json("\(rawValue).cases.json") }
}

extension JSONValue {
    var ids: [TokenID] { (arrayValue ?? []).compactMap { $0.intValue }.map { TokenID(UInt32($0)) } }

    func replacing(_ path: String..., with value: JSONValue?) -> JSONValue { replacing(path[...], with: value) }

    private func replacing(_ path: ArraySlice<String>, with value: JSONValue?) -> JSONValue {
        guard let name = path.first, var object = objectValue else { return self }
        object[name] = path.count == 1 ? value : (object[name] ?? .null).replacing(path.dropFirst(), with: value)
        return .object(object)
    }
}

func sameBytes(_ a: String, _ b: String) -> Bool { Array(a.utf8) == Array(b.utf8) }
