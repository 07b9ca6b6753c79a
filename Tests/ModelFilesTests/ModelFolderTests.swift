import BoundedJSON
import ModelRuntime
import ServingTypes
import Testing
import Tokenization

@testable import ModelFiles

@Suite struct ModelFolderTests {
    private func random(_ family: ModelSpec.Family = .llama, _ body: (TemporaryFolder) throws -> Void) throws {
        try TemporaryFolder.use { folder in
            try RandomModel.write(folder: folder.path, spec: .tiny(family), seed: 1)
            try body(folder)
        }
    }

    @Test(arguments: ModelSpec.Family.allCases)
    func aRandomModelReadsBackWithItsShape(family: ModelSpec.Family) throws {
        try random(family) { folder in
            let model = try ModelFolder(path: folder.path)
            #expect(model.spec == .tiny(family))
            #expect(model.weights.tensorNames == RandomModel.tensors(of: .tiny(family)).map(\.name).sorted())
            for (name, shape) in RandomModel.tensors(of: .tiny(family)) {
                let view = try #require(try model.weights.tensor(named: name))
                #expect(view.shape == shape && view.type == .bf16)
                #expect(UInt(bitPattern: view.base) % 2 == 0)
            }
        }
    }

    @Test func everySpecialShapeReadsBack() throws {
        var specs: [ModelSpec] = []
        for scaling: ModelSpec.RopeScaling in [
            .linear(factor: 2.5), .llama3(factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 64),
            .yarn(
                factor: 2, originalContext: 64, betaFast: 32, betaSlow: 1, attentionFactor: 0.5, mscale: 1,
                mscaleAllDim: 0.8),
        ] {
            var spec = ModelSpec.tiny()
            spec.ropeScaling = scaling
            spec.tiedEmbeddings = false
            specs.append(spec)
        }
        for family in [ModelSpec.Family.mistral, .qwen2, .qwen3] {
            var spec = ModelSpec.tiny(family)
            spec.slidingWindow = 32
            spec.headDim = 6
            specs.append(spec)
        }
        for spec in specs {
            try TemporaryFolder.use { folder in
                try RandomModel.write(folder: folder.path, spec: spec, seed: 3)
                #expect(try ModelFolder(path: folder.path).spec == spec)
            }
        }
    }

    @Test func aShapeThatNoConfigurationExpressesIsRefused() throws {
        try TemporaryFolder.use { folder in
            var spec = ModelSpec.tiny(.mistral)
            spec.attentionBias = true
            expectFault("spec", "mistral") { try RandomModel.write(folder: folder.path, spec: spec, seed: 1) }
            spec = .tiny()
            spec.vocabularySize = 256
            expectFault("vocabularySize", "256", "257") {
                try RandomModel.write(folder: folder.path, spec: spec, seed: 1)
            }
        }
    }

    @Test func theSameSeedWritesTheSameBytes() throws {
        func bytes(_ seed: UInt64) throws -> [UInt8] {
            try TemporaryFolder.use { folder in
                try RandomModel.write(folder: folder.path, spec: .tiny(), seed: seed)
                return try folder.bytes("model.safetensors")
            }
        }
        #expect(try bytes(5) == bytes(5))
        #expect(try bytes(5) != bytes(6))
    }

    @Test func randomWeightsAreNumbersOfTheRightSize() throws {
        try random { folder in
            let weights = try EngineFolder(path: folder.path).weights
            let view = try #require(try weights.tensor(named: "model.embed_tokens.weight"))
            let bits = UnsafeRawBufferPointer(start: view.base, count: view.byteCount).bindMemory(to: UInt16.self)
            let values = bits.map { Double(Float(bitPattern: UInt32(UInt16(littleEndian: $0)) << 16)) }
            let square = values.reduce(0) { $0 + $1 * $1 } / Double(values.count)
            #expect(values.allSatisfy { $0.isFinite })
            #expect(abs(square.squareRoot() - 0.25) < 0.02)
            let norm = try #require(try weights.tensor(named: "model.norm.weight"))
            #expect(norm.base.loadUnaligned(as: UInt16.self) == 0x3F80)
        }
    }

    @Test func theTokenizerOfARandomModelKeepsAnyText() throws {
        try random { folder in
            let model = try ModelFolder(path: folder.path)
            let text = "The hen and the \u{1F600} in\tthe barn\n"
            let tokens = model.tokenizer.encode(text)
            #expect(model.tokenizer.decode(tokens) == text)
            #expect(tokens.count < text.utf8.count)
            #expect(model.generation.endTokens.count == 1)
            #expect(model.eosToken == "<|endoftext|>")
            #expect(model.chatTemplate != nil)
            #expect(model.tokenizer.vocabularySize <= model.spec.vocabularySize)
        }
    }

    @Test func aTemplateFileComesBeforeTheConfigurationsTemplate() throws {
        try random { folder in
            try folder.write("chat_template.jinja", [UInt8]("file".utf8))
            #expect(try ModelFolder(path: folder.path).chatTemplateSource == "file")
            try folder.remove("chat_template.jinja")
            let list: JSONValue = [
                ["name": "tool_use", "template": "tools"], ["name": "default", "template": "plain"],
            ]
            try folder.change("tokenizer_config.json", [("chat_template", list)])
            #expect(try ModelFolder(path: folder.path).chatTemplateSource == "plain")
            try folder.remove("tokenizer_config.json")
            let bare = try ModelFolder(path: folder.path)
            #expect(bare.chatTemplate == nil && bare.eosToken == nil)
            try folder.write("chat_template.jinja", [0xFF, 0xFE])
            expectFault("chat_template.jinja", "UTF-8") { _ = try ModelFolder(path: folder.path) }
        }
    }

    @Test func aFaultInAnyFileNamesTheFile() throws {
        for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
            try random { folder in
                let whole = try folder.bytes(name)
                try folder.write(name, Array(whole.dropLast(3)))
                expectFault("\(name): is no valid JSON") { _ = try ModelFolder(path: folder.path) }
                try folder.write(name, [UInt8]("[]".utf8))
                expectFault(name) { _ = try ModelFolder(path: folder.path) }
            }
        }
        for name in ["config.json", "tokenizer.json", "model.safetensors"] {
            try random { folder in
                try folder.remove(name)
                expectFault(folder.path, name) { _ = try ModelFolder(path: folder.path) }
            }
        }
    }

    @Test func aTokenizerLargerThanTheModelIsRefused() throws {
        try random { folder in
            try folder.change("config.json", [("vocab_size", 300), ("eos_token_id", 0)])
            expectFault("tokenizer.json", "vocab_size is 300") { _ = try ModelFolder(path: folder.path) }
        }
    }

    @Test func embeddingsAreTiedWhereNothingSaysOtherwise() throws {
        try random { folder in
            try folder.change("config.json", [("tie_word_embeddings", nil)])
            #expect(try EngineFolder(path: folder.path).spec.tiedEmbeddings)
            try folder.change("config.json", [("tie_word_embeddings", false)])
            #expect(try !EngineFolder(path: folder.path).spec.tiedEmbeddings)
        }
    }

    @Test func aFileBeyondItsCapIsRefusedUnread() throws {
        try random { folder in
            try folder.write("config.json", [UInt8](repeating: 0x20, count: ModelFileLimits.configBytesMax + 1))
            expectFault("config.json: 4194305 bytes, more than the limit of 4194304") {
                _ = try ModelFolder(path: folder.path)
            }
        }
    }

    @Test func missingFoldersAndFilesInTheirPlaceAreNamed() throws {
        expectFault("/nowhere/at/all", "No such file") { _ = try ModelFolder(path: "/nowhere/at/all") }
        try random { folder in
            expectFault("this is no folder") { _ = try ModelFolder(path: folder.path + "/config.json") }
        }
    }

    @Test func theModelIsNamedForItsFolder() throws {
        try random { folder in
            let name = try EngineFolder(path: folder.path + "/").modelName
            #expect(folder.path.hasSuffix("/" + name) && name.hasPrefix("ModelFilesTests-"))
        }
    }

    @Test func theDigestFollowsConfigurationAndWeights() throws {
        try random { folder in
            let before = try EngineFolder(path: folder.path).digest
            #expect(try ModelFolder(path: folder.path).digest == before)
            try folder.change("config.json", [("rms_norm_eps", 2e-5)])
            let reconfigured = try EngineFolder(path: folder.path).digest
            try RandomModel.write(folder: folder.path, spec: .tiny(), seed: 2)
            let reweighted = try EngineFolder(path: folder.path).digest
            #expect(Set([before, reconfigured, reweighted]).count == 3)
        }
    }
}
