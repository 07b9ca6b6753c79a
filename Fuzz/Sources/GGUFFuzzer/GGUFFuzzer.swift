import Glibc
import ServingTypes
import Tokenization

@testable import ModelFiles

// A GGUF file from a stranger: its header, and the tokenizer that its metadata describe, put to use.
// Whatever is accepted must lie in the file, and tokens must lie in the vocabulary.

@_silgen_name("LLVMFuzzerRunDriver")
func runFuzzer(
    _ argc: UnsafeMutablePointer<Int32>,
    _ argv: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ test: @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32
) -> Int32

/// SwiftPM gives `main` this name.
@_cdecl("GGUFFuzzer_main")
func fuzzerMain(_ argc: Int32, _ argv: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> Int32 {
    if argc == 3, let word = argv[1], let folder = argv[2], String(cString: word) == "seeds" {
        return writeSeeds(String(cString: folder))
    }
    var count = argc
    var arguments = argv
    return withUnsafeMutablePointer(to: &arguments) { runFuzzer(&count, $0, testOneInput) }
}

func testOneInput(_ data: UnsafePointer<UInt8>?, _ size: Int) -> Int32 {
    let bytes = UnsafeRawBufferPointer(start: data, count: size)
    guard let header = try? GGUFHeader(bytes, file: "m.gguf") else { return 0 }
    for tensor in header.tensors {
        precondition(tensor.range.lowerBound >= header.dataStart && tensor.range.upperBound <= size)
        precondition(GGUFHeader.byteCount(tensor.shape, tensor.type) == tensor.range.count)
        _ = try? GGUFNames.role(of: tensor.name, file: "m.gguf")
    }
    let fields = GGUFFields(metadata: header.metadata, file: "m.gguf")
    guard let written = try? GGUFTokenizer(fields), let tokenizer = try? Tokenizer(written.model) else { return 0 }
    let tokens = tokenizer.encode("ab  \u{E9}\u{1F600}\n<|end|>a\u{2581}b", parseSpecial: true)
    precondition(tokens.allSatisfy { $0.value < tokenizer.vocabularySize })
    _ = tokenizer.decode(tokens, skipSpecial: false)
    _ = try? written.endTokens()
    return 0
}

// MARK: seeds

private func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] { GGUFMetadataWriter.little(value) }
private func text(_ text: String) -> [UInt8] { GGUFMetadataWriter.text(text) }

private func key(_ name: String, _ type: GGUFValueType, _ value: [UInt8]) -> [UInt8] {
    text(name) + little(type.rawValue) + value
}

private func array<T>(_ name: String, _ type: GGUFValueType, _ values: [T], _ bytes: (T) -> [UInt8]) -> [UInt8] {
    key(name, .array, little(type.rawValue) + little(UInt64(values.count)) + values.flatMap(bytes))
}

private func file(_ keys: [[UInt8]]) -> [UInt8] {
    var bytes = Array("GGUF".utf8) + little(UInt32(3)) + little(UInt64(1)) + little(UInt64(keys.count))
    bytes += keys.flatMap { $0 }
    bytes += text("output_norm.weight") + little(UInt32(1)) + little(UInt64(2)) + little(UInt32(0)) + little(UInt64(0))
    bytes += [UInt8](repeating: 0, count: (32 - bytes.count % 32) % 32)
    return bytes + [UInt8](repeating: 0, count: 8)
}

/// A byte-level vocabulary and one of SentencePiece's kind.
func writeSeeds(_ folder: String) -> Int32 {
    let tokens = "tokenizer.ggml.tokens"
    let types = "tokenizer.ggml.token_type"
    let byteLevel = file([
        key("tokenizer.ggml.model", .string, text("gpt2")), key("tokenizer.ggml.pre", .string, text("llama-bpe")),
        array(tokens, .string, ["a", "b", "ab", "<|end|>"], text),
        array(types, .int32, [Int32(1), 1, 1, 3], little),
        array("tokenizer.ggml.merges", .string, ["a b"], text),
        key("tokenizer.ggml.eos_token_id", .uint32, little(UInt32(3))),
    ])
    let pieces = file([
        key("tokenizer.ggml.model", .string, text("llama")),
        array(tokens, .string, ["<unk>", "<0x0A>", "\u{2581}a", "b", "\u{2581}", "a"], text),
        array(types, .int32, [Int32(2), 6, 1, 1, 1, 1], little),
        array("tokenizer.ggml.scores", .float32, [Float(0), 0, -1, -2, -3, -4]) { little($0.bitPattern) },
    ])
    for (name, bytes) in [("byte-level", byteLevel), ("sentencepiece", pieces)] {
        guard let output = fopen("\(folder)/\(name)", "w") else { return 1 }
        defer { fclose(output) }
        guard fwrite(bytes, 1, bytes.count, output) == bytes.count else { return 1 }
    }
    return 0
}
