import Foundation
import ServingTypes
import Testing
import Tokenization

@testable import ModelFiles

/// Real vocabularies lie beside the repository where they are at all: they are too large for it.
@Suite(
    .enabled(
        if: FileManager.default.fileExists(atPath: Repository.vocabularies.path),
        "the vocabularies are not in ../shared/data/tokenizers, beside the repository"))
struct GGUFVocabularyTests {
    /// llama.cpp's test strings and the token ids that the original tokenizers give them, without a
    /// begin token and with special tokens taken as text.
    @Test(arguments: ["gpt-2", "llama-bpe", "qwen2", "llama-spm"])
    func every46StringsGiveTheExpectedIds(_ name: String) throws {
        func bytes(_ ending: String) throws -> Data {
            try Data(contentsOf: Repository.vocabularies.appendingPathComponent("ggml-vocab-\(name).gguf\(ending)"))
        }
        func text(_ ending: String) throws -> String { String(decoding: try bytes(ending), as: UTF8.self) }
        let header = try bytes("").withUnsafeBytes { bytes throws(ServingError) in try GGUFHeader(bytes, file: name) }
        let tokenizer = try Tokenizer(GGUFTokenizer(GGUFFields(metadata: header.metadata, file: name)).model)
        let strings = try text(".inp").components(separatedBy: "\n__ggml_vocab_test__\n")
        let expected = try text(".out").split(separator: "\n", omittingEmptySubsequences: false).map { line in
            line.split(separator: " ").compactMap { UInt32($0) }.map { TokenID($0) }
        }
        #expect(strings.count >= 46 && expected.count >= 46)
        var checked = 0
        for (string, ids) in zip(strings, expected) {
            let found = tokenizer.encode(string, addSpecialTokens: false, parseSpecial: false)
            #expect(found == ids, "\(name): \(string.debugDescription)")
            checked += 1
        }
        #expect(checked >= 46)
    }
}

@Suite struct GGUFTokenizerTests {
    private func tokenizer(_ change: (inout GGUFTestFile) -> Void) throws -> GGUFTokenizer {
        var file = GGUFTestFile()
        change(&file)
        let header = try parsedGGUF(file.bytes())
        return try GGUFTokenizer(GGUFFields(metadata: header.metadata, file: "m.gguf"))
    }

    private func byteLevel(_ file: inout GGUFTestFile, pre: String? = "gpt-2", merges: [String] = ["a b"]) {
        file.add("tokenizer.ggml.model", "gpt2")
        if let pre { file.add("tokenizer.ggml.pre", pre) }
        file.add("tokenizer.ggml.tokens", ["a", "b", "ab", "<|end|>", "<tool>", "pad"])
        file.add("tokenizer.ggml.token_type", [Int32(1), 1, 1, 3, 4, 5])
        file.add("tokenizer.ggml.merges", merges)
    }

    @Test func aByteLevelVocabularyIsUnderstood() throws {
        let read = try tokenizer { file in
            byteLevel(&file)
            file.add("tokenizer.ggml.bos_token_id", UInt32(3))
            file.add("tokenizer.ggml.eos_token_id", UInt32(3))
            file.add("tokenizer.ggml.add_bos_token", true)
        }
        let tokens = try Tokenizer(read.model)
        #expect(tokens.encode("ab<tool>ab<|end|>").map(\.value) == [3, 2, 4, 2, 3])
        #expect(tokens.encode("<tool>", addSpecialTokens: false, parseSpecial: false).map(\.value) == [4])
        #expect(tokens.isSpecial(TokenID(3)) && !tokens.isSpecial(TokenID(4)))
        #expect(try read.endTokens() == [TokenID(3)])
        #expect(read.text(3) == "<|end|>" && read.text(99) == nil && read.text(nil) == nil)
    }

    @Test func whatTheOriginalTokenizersDoFollowsFromTheirName() throws {
        let llama = try tokenizer { byteLevel(&$0, pre: "llama-bpe") }.model
        #expect(llama.ignoresMergesForKnownWords && !llama.normalizesNFC && llama.preTokenizers == [.llama3])
        let qwen = try tokenizer { byteLevel(&$0, pre: "qwen2") }.model
        #expect(!qwen.ignoresMergesForKnownWords && qwen.normalizesNFC && qwen.preTokenizers == [.qwen2])
    }

    @Test func whatIsMissingOrUnknownIsNamed() {
        expectFault("tokenizer.ggml.tokens is missing") { _ = try tokenizer { _ in } }
        expectFault("tokenizer.ggml.pre is \"tekken\"", "llama-bpe") {
            _ = try tokenizer { byteLevel(&$0, pre: "tekken") }
        }
        expectFault("tokenizer.ggml.pre is missing") { _ = try tokenizer { byteLevel(&$0, pre: nil) } }
        for merge in ["ab", " ab", "a ", "a b c", ""] {
            expectFault("tokenizer.ggml.merges has", "at 0") {
                _ = try tokenizer { byteLevel(&$0, merges: [merge]) }
            }
        }
        expectFault("tokenizer.ggml.model is \"bert\"") {
            _ = try tokenizer { file in
                file.add("tokenizer.ggml.model", "bert")
                file.add("tokenizer.ggml.tokens", ["a"])
            }
        }
        expectFault("tokenizer.ggml.token_type has 2 entries for 1 tokens") {
            _ = try tokenizer { file in
                file.add("tokenizer.ggml.tokens", ["a"])
                file.add("tokenizer.ggml.token_type", [Int32(1), 1])
            }
        }
        expectFault("tokenizer.ggml.token_type has 9 for token 0") {
            _ = try tokenizer { file in
                file.add("tokenizer.ggml.tokens", ["a"])
                file.add("tokenizer.ggml.token_type", [Int32(9)])
            }
        }
        expectFault("tokenizer.ggml.eos_token_id is 17") {
            _ = try tokenizer { file in
                byteLevel(&file)
                file.add("tokenizer.ggml.eos_token_id", UInt32(17))
            }
        }
    }

    private func pieces(_ file: inout GGUFTestFile, scores: [Float]? = [0, 0, -1], types: [Int32] = [2, 6, 1]) {
        file.add("tokenizer.ggml.model", "llama")
        file.add("tokenizer.ggml.tokens", ["<unk>", "<0x41>", "\u{2581}a"])
        file.add("tokenizer.ggml.token_type", types)
        if let scores { file.add("tokenizer.ggml.scores", scores) }
    }

    @Test func aSentencePieceVocabularyIsChecked() throws {
        let model = try tokenizer { pieces(&$0) }.model
        #expect(model.sentencePiece?.byteTokens == [.init(byte: 0x41, id: 1, text: "<0x41>")])
        #expect(model.sentencePiece?.addsSpacePrefix == true && model.sentencePiece?.unknownToken == 0)
        let without = try tokenizer { file in
            pieces(&file)
            file.add("tokenizer.ggml.add_space_prefix", false)
        }
        #expect(without.model.sentencePiece?.addsSpacePrefix == false)
        expectFault("scores is missing") { _ = try tokenizer { pieces(&$0, scores: nil) } }
        expectFault("scores has 2 entries for 3") { _ = try tokenizer { pieces(&$0, scores: [0, 0]) } }
        expectFault("scores has an entry that is no number") {
            _ = try tokenizer { pieces(&$0, scores: [0, .nan, 0]) }
        }
        expectFault("byte token \"<unk>\"") { _ = try tokenizer { pieces(&$0, types: [6, 6, 1]) } }
        expectFault("precompiled_charsmap is set") {
            _ = try tokenizer { file in
                pieces(&file)
                file.add("tokenizer.ggml.precompiled_charsmap", [Int32(1)])
            }
        }
    }
}
