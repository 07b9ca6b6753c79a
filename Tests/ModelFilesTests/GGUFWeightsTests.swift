import BoundedJSON
import Foundation
import ModelRuntime
import ServingTypes
import Testing

@testable import ModelFiles

/// Base64 of little-endian bytes.
private func decoded(_ value: JSONValue?) throws -> [UInt8] {
    let text = try #require(value?.stringValue)
    return [UInt8](try #require(Data(base64Encoded: text)))
}

private func bits(_ bytes: [UInt8]) -> [UInt32] {
    stride(from: 0, to: bytes.count - 3, by: 4).map { place in
        (0..<4).reduce(UInt32(0)) { $0 | UInt32(bytes[place + $1]) << UInt32(8 * $1) }
    }
}

/// The values of a tensor as f32 bits.
private func values(_ view: TensorView, count: Int) -> [UInt32] {
    let bytes = UnsafeRawBufferPointer(start: view.base, count: view.byteCount)
    return (0..<count).map { index in
        switch view.type {
        case .f32: bytes.load(fromByteOffset: index * 4, as: UInt32.self)
        case .bf16: UInt32(bytes.load(fromByteOffset: index * 2, as: UInt16.self)) << 16
        case .f16: Float(Float16(bitPattern: bytes.load(fromByteOffset: index * 2, as: UInt16.self))).bitPattern
        }
    }
}

@Suite struct GGUFWeightsTests {
    private func blocks() throws -> JSONValue { try JSON.parse(Repository.fixture("blocks.json")) }

    @Test(arguments: BlockFormat.allCases)
    func dequantisedValuesAreTheReferencesBitForBit(_ format: BlockFormat) throws {
        let entry = try #require(try blocks()["dequantise"]?[format.rawValue])
        let packed = try decoded(entry["packed"])
        #expect(packed.count == 24 * format.byteCount)
        #expect(format.dequantised(packed).map(\.bitPattern) == bits(try decoded(entry["values"])))
    }

    @Test(arguments: [BlockFormat.q8_0, .q4_0])
    func quantisedBlocksAreTheReferencesByteForByte(_ format: BlockFormat) throws {
        let entry = try #require(try blocks()["quantise"])
        let values = bits(try decoded(entry["values"])).map { Float(bitPattern: $0) }
        #expect(values.count > 32 * 50)
        #expect(format.quantised(values) == (try decoded(entry["packed"]?[format.rawValue])))
    }

    @Test(arguments: BlockFormat.allCases)
    func quantisingKeepsItsErrorBound(_ format: BlockFormat) throws {
        guard format.canQuantise else {
            #expect(format.quantised([Float](repeating: 1, count: format.valueCount)) == nil)
            return
        }
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        for round in 0..<50 {
            let values = (0..<64).map { _ in Float.random(in: -2...2, using: &random) }
            let back = format.dequantised(try #require(format.quantised(values)))
            for block in 0..<2 {
                let range = block * 32..<block * 32 + 32
                let largest = values[range].map(abs).max() ?? 0
                // Half a step, a whole one at the end that Q4_0 cuts off, and the rounding of the scale.
                let step = format == .q8_0 ? largest / 127 * 0.5 : largest / 8
                for index in range {
                    #expect(abs(values[index] - back[index]) <= step * 1.01 + largest / 1000, "seed \(seed) \(round)")
                }
            }
        }
        #expect(format.quantised([1, 2, 3]) == nil)
    }

    @Test func numbersThatAreNoneGiveSomeBlockAndNoTrap() throws {
        for odd in [Float.nan, .infinity, -.infinity, .greatestFiniteMagnitude, .leastNonzeroMagnitude] {
            for format in [BlockFormat.q8_0, .q4_0] {
                var values = [Float](repeating: 1, count: 32)
                values[7] = odd
                #expect(format.quantised(values)?.count == format.byteCount)
                #expect(format.quantised([Float](repeating: odd, count: 32))?.count == format.byteCount)
            }
        }
    }

    @Test(arguments: ["tiny-llama.gguf", "tiny-llama-00001-of-00003.gguf"])
    func everyTensorOfAFileThatTheReferenceWroteHasItsValues(_ name: String) throws {
        let json = try JSON.parse(Repository.fixture("tiny-llama.json"))
        let expected = try #require(json.objectValue)
        let model = try ModelFolder(path: Repository.fixtures.appendingPathComponent(name).path)
        #expect(model.modelName == "tiny-llama")
        #expect(model.weights.tensorNames == expected.members.map(\.key).sorted())
        for (name, entry) in expected.members {
            let view = try #require(try model.weights.tensor(named: name))
            #expect(view.shape == (entry["shape"]?.arrayValue ?? []).compactMap(\.intValue), "\(name)")
            let start = bits(try decoded(entry["start"]))
            #expect(!start.isEmpty && values(view, count: start.count) == start, "\(name)")
        }
    }

    @Test func theDescriptionOfAFileBecomesASpec() throws {
        let model = try ModelFolder(path: Repository.fixtures.appendingPathComponent("tiny-llama.gguf").path)
        #expect(
            model.spec
                == ModelSpec(
                    family: .llama, layerCount: 1, hiddenSize: 256, headCount: 4, kvHeadCount: 2, headDim: 16,
                    ffnSize: 256, vocabularySize: 264, contextTokensMax: 64, rmsNormEpsilon: 1e-5, ropeTheta: 500_000,
                    tiedEmbeddings: true))
        #expect(model.bosToken == "<s>" && model.eosToken == "</s>")
        #expect(model.generation.endTokens == [TokenID(2)] && model.generation.beginToken == TokenID(1))
        #expect(model.chatTemplateSource?.hasPrefix("{% for m in messages %}") == true)
        #expect(model.tokenizer.encode("a<tool>b") == [1, 262, 263, 259, 261].map { TokenID($0) })
    }

    @Test func quantisedTensorsExpandToTheTypeAskedFor() throws {
        let path = Repository.fixtures.appendingPathComponent("tiny-llama.gguf").path
        for type in ElementType.allCases {
            let folder = try EngineFolder(path: path, expandedType: type)
            let weights = try #require(folder.weights as? GGUFWeights)
            #expect(try weights.tensor(named: "model.embed_tokens.weight")?.type == type)
            #expect(try weights.tensor(named: "model.layers.0.self_attn.q_proj.weight")?.type == .bf16)
            #expect(weights.blockFormat(ofTensor: "model.layers.0.mlp.down_proj.weight") == .q6_K)
            #expect(weights.blockFormat(ofTensor: "model.norm.weight") == nil)
            let stored = try #require(try weights.storedTensor(named: "model.layers.0.mlp.down_proj.weight"))
            #expect(stored.format == .blocks(.q6_K) && stored.shape == [256, 256] && stored.byteCount == 256 * 210)
        }
    }

    @Test func theDigestFollowsEveryByteOfTheDescription() throws {
        try TemporaryFolder.use { folder in
            var bytes = try Repository.fixture("tiny-llama.gguf")
            try folder.write("a.gguf", bytes)
            let first = try EngineFolder(path: folder.path + "/a.gguf").digest
            try folder.write("b.gguf", bytes)
            #expect(try EngineFolder(path: folder.path + "/b.gguf").digest == first)
            bytes[bytes.count - 1] ^= 1
            try folder.write("c.gguf", bytes)
            #expect(try EngineFolder(path: folder.path + "/c.gguf").digest != first)
        }
    }

    @Test func shardsThatDoNotBelongTogetherAreRefused() throws {
        let names = (1...3).map { "tiny-llama-0000\($0)-of-00003.gguf" }
        func use(_ body: (TemporaryFolder) throws -> Void) throws {
            try TemporaryFolder.use { folder in
                for name in names { try folder.write(name, Repository.fixture(name)) }
                try body(folder)
            }
        }
        try use { folder in
            try folder.remove(names[2])
            expectFault(names[2], "cannot be opened") { _ = try EngineFolder(path: folder.path + "/" + names[0]) }
        }
        try use { folder in
            try folder.write(names[2], folder.bytes(names[1]))
            expectFault(names[2], "split.no is 1") { _ = try EngineFolder(path: folder.path + "/" + names[0]) }
        }
        try use { folder in
            expectFault(names[1], "the first of them") { _ = try EngineFolder(path: folder.path + "/" + names[1]) }
            try folder.write("one.gguf", folder.bytes(names[0]))
            expectFault("one.gguf", "split.count is 3") { _ = try EngineFolder(path: folder.path + "/one.gguf") }
        }
    }

    @Test func mutatedModelFilesNeverTrap() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        let whole = try Repository.fixture("tiny-llama.gguf")
        let header = try parsedGGUF(whole)
        try TemporaryFolder.use { folder in
            for _ in 0..<60 {
                var bytes = whole
                for _ in 0..<Int.random(in: 1...4, using: &random) {
                    bytes[Int.random(in: 0..<header.dataStart, using: &random)] = .random(in: 0...255, using: &random)
                }
                try folder.write("m.gguf", bytes)
                do throws(ServingError) {
                    let model = try ModelFolder(path: folder.path + "/m.gguf")
                    for name in model.weights.tensorNames { _ = try model.weights.tensor(named: name) }
                } catch {
                    #expect(error.blast == .process && !error.message.isEmpty, "seed \(seed)")
                }
            }
        }
    }

    @Test func namesTranslateThereAndBack() throws {
        for family in ModelSpec.Family.allCases {
            for (name, _) in RandomModel.tensors(of: .tiny(family)) {
                let there = try #require(GGUFNames.gguf(of: name), "\(name)")
                #expect(try GGUFNames.role(of: there.name, file: "m")?.name == name)
            }
        }
        #expect(try GGUFNames.role(of: "rope_freqs.weight", file: "m") == nil)
        for odd in ["blk.x.attn_q.weight", "blk.01.attn_q.weight", "blk.0.attn_q.scale", "output.bias", "v.blk.0", ""] {
            expectFault("m: ", "no known model") { _ = try GGUFNames.role(of: odd, file: "m") }
        }
    }

    @Test func llama3sFrequencyFactorsAreRecognised() {
        // As convert_hf_to_gguf.py computes them.
        func factors(_ factor: Double, high: Double = 4) -> [Float] {
            (0..<64).map { index in
                let wavelength = 2 * Double.pi * pow(500_000, Double(index) / 64)
                if wavelength < 8192 / high { return 1 }
                if wavelength > 8192 { return Float(factor) }
                let smooth = (8192 / wavelength - 1) / (high - 1)
                return Float(1 / ((1 - smooth) / factor + smooth))
            }
        }
        for factor in [8.0, 32.0] {
            #expect(
                GGUFRope.llama3(factors: factors(factor), theta: 500_000, headDim: 128)
                    == .llama3(factor: factor, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192))
        }
        #expect(GGUFRope.llama3(factors: factors(8, high: 8), theta: 500_000, headDim: 128) == nil)
        #expect(GGUFRope.llama3(factors: [1, 1], theta: 500_000, headDim: 128) == nil)
        #expect(GGUFRope.llama3(factors: [1, .nan], theta: 10_000, headDim: 4) == nil)
        #expect(GGUFRope.llama3(factors: [1, 1], theta: 10_000, headDim: 4) == ModelSpec.RopeScaling.none)
    }
}
