import BoundedJSON
import Foundation
import ModelRuntime
import ServingTypes
import Testing
import Tokenization

@testable import ModelFiles

/// The bundled model in other clothes, through the engine.
@Suite struct GGUFModelTests {
    /// From Lewis Carroll's Alice in Wonderland.
    private static let text =
        "Alice was beginning to get very tired of sitting by her sister on the bank, and of having nothing to do: "
        + "once or twice she had peeped into the book her sister was reading, but it had no pictures or "
        + "conversations in it. There was nothing so very remarkable in that; nor did Alice think it so very much "
        + "out of the way to hear the Rabbit say to itself, \"Oh dear! Oh dear! I shall be late!\""

    private func logits(_ spec: ModelSpec, _ weights: any StoredWeights, _ tokens: [TokenID]) throws -> [[Float]] {
        let layout = KVStore.Layout(
            blockTokens: 16, layerCount: spec.layerCount, kvHeadCount: spec.kvHeadCount, headDim: spec.headDim,
            elementType: .f32)
        let blocks = (tokens.count + 15) / 16
        let store = try KVStore(layout: layout, slotCount: blocks)
        // These kernels compute with f32 whatever the weights are stored in, so equal weights give equal bits.
        var options = EngineOptions()
        options.kernels = .scalar
        options.threads = 2
        let engine = try CPUEngine(spec: spec, weights: weights, store: store, options: options)
        let entry = StepEntry(
            transfer: TransferID(job: JobID(high: 0, low: 1), attempt: .first), tokens: tokens, startPosition: 0,
            blockTable: (0..<blocks).map { BlockSlot(UInt32($0)) }, sample: nil)
        return try engine.logits(StepBatch(entries: [entry]), rows: .all)
    }

    private func logProbabilities(_ row: [Float]) -> [Double] {
        let largest = Double(row.max() ?? 0)
        let sum = row.reduce(0.0) { $0 + exp(Double($1) - largest) }
        return row.map { Double($0) - largest - log(sum) }
    }

    /// Mean over the rows of KL(expected || found), and both perplexities of the text.
    private func divergence(
        _ expected: [[Float]], _ found: [[Float]], _ tokens: [TokenID]
    ) -> (kl: Double, expected: Double, found: Double) {
        var (kl, first, second) = (0.0, 0.0, 0.0)
        for row in 0..<tokens.count - 1 {
            let (p, q) = (logProbabilities(expected[row]), logProbabilities(found[row]))
            kl += zip(p, q).reduce(0) { $0 + exp($1.0) * ($1.0 - $1.1) }
            first -= p[Int(tokens[row + 1].value)]
            second -= q[Int(tokens[row + 1].value)]
        }
        let count = Double(tokens.count - 1)
        return (kl / count, exp(first / count), exp(second / count))
    }

    @Test func theBundledModelSpeaksTheSameFromEitherFile() throws {
        let folder = try ModelFolder(path: Repository.model.path)
        let tokens = folder.tokenizer.encode(Self.text)
        let expected = try logits(folder.spec, folder.weights, tokens)
        try TemporaryFolder.use { place in
            for weights in GGUFExport.Target.allCases {
                let path = place.path + "/model-\(weights).gguf"
                var steps = 0
                let report = try GGUFExport.write(folder: Repository.model.path, to: path, as: weights) { _, _ in
                    steps += 1
                }
                #expect(steps == folder.weights.tensorNames.count && report.tensors.count == steps)
                check(report, weights)
                let model = try ModelFolder(path: path)
                #expect(model.spec == folder.spec)
                #expect(model.weights.tensorNames == folder.weights.tensorNames)
                #expect(model.tokenizer.encode(Self.text + "<|end|>") == folder.tokenizer.encode(Self.text + "<|end|>"))
                #expect(model.tokenizer.decode(tokens) == Self.text)
                #expect(Set(model.generation.endTokens) == Set(folder.generation.endTokens))
                #expect(model.chatTemplateSource == folder.chatTemplateSource)
                #expect(model.bosToken == folder.bosToken && model.eosToken == folder.eosToken)
                #expect(model.modelName == "model-\(weights)")
                let found = try logits(model.spec, model.weights, tokens)
                #expect(found.count == tokens.count)
                switch weights {
                case .f32, .bf16:
                    #expect(found.map { $0.map(\.bitPattern) } == expected.map { $0.map(\.bitPattern) }, "\(weights)")
                case .f16, .q8_0, .q4_0:
                    let difference = divergence(expected, found, tokens)
                    #expect(difference.kl >= 0 && difference.kl < (weights == .q4_0 ? 0.1 : 1e-3), "\(difference)")
                    let ratio = difference.found / difference.expected
                    #expect(abs(ratio - 1) < (weights == .q4_0 ? 0.15 : 0.005), "\(difference)")
                }
            }
        }
    }

    /// The rounding of matrices, and none of vectors.
    private func check(_ report: GGUFExport.Report, _ weights: GGUFExport.Target) {
        let bound =
            switch weights {
            case .f32, .bf16: 0.0
            case .f16: 1e-3
            case .q8_0: 0.01
            case .q4_0: 0.12
            }
        #expect(report.relativeError <= bound, "\(weights)")
        #expect(report.relativeError > bound / 20 || bound < 0.01, "\(weights)")
        for tensor in report.tensors where tensor.name.contains("norm") {
            #expect(tensor.type == "F32" && tensor.relativeError == 0 && tensor.largestError == 0)
        }
        let embedding = report.tensors.first { $0.name == "token_embd.weight" }
        #expect(embedding?.type == (weights == .q4_0 ? "Q8_0" : weights.rawValue.uppercased()))
    }

    @Test(arguments: ModelSpec.Family.allCases)
    func aFolderOfAnyFamilyComesBackFromItsFile(_ family: ModelSpec.Family) throws {
        var spec = ModelSpec.tiny(family)
        switch family {
        case .llama:
            // Heads large enough for frequencies of all three kinds.
            (spec.headDim, spec.ropeTheta) = (16, 500_000)
            spec.ropeScaling = .llama3(factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192)
        case .mistral: spec.slidingWindow = 32
        case .qwen2: spec.tiedEmbeddings = false
        case .qwen3: spec.ropeScaling = .linear(factor: 2)
        }
        try TemporaryFolder.use { place in
            try RandomModel.write(folder: place.path + "/m", spec: spec, seed: 5)
            try GGUFExport.write(folder: place.path + "/m", to: place.path + "/m.gguf", as: .bf16)
            let (folder, file) = (
                try ModelFolder(path: place.path + "/m"), try ModelFolder(path: place.path + "/m.gguf")
            )
            // Mistral's files say llama.
            if family == .mistral { spec.family = .llama }
            #expect(file.spec == spec)
            #expect(file.weights.tensorNames == folder.weights.tensorNames)
            for name in folder.weights.tensorNames {
                let (expected, found) = (
                    try #require(try folder.weights.tensor(named: name)),
                    try #require(try file.weights.tensor(named: name))
                )
                #expect(expected.shape == found.shape)
                guard found.type == expected.type else {
                    #expect(found.type == .f32 && found.shape.count == 1)
                    continue
                }
                let bytes = [expected, found].map {
                    [UInt8](UnsafeRawBufferPointer(start: $0.base, count: $0.byteCount))
                }
                #expect(bytes[0] == bytes[1], "\(family) \(name)")
            }
            let text = "The hen and the \u{1F600} in\tthe barn\n"
            #expect(file.tokenizer.encode(text) == folder.tokenizer.encode(text))
            #expect(file.generation.endTokens == folder.generation.endTokens)
        }
    }

    @Test func whatAFileCannotExpressIsRefused() throws {
        try TemporaryFolder.use { place in
            let (path, target) = (place.path + "/m", place.path + "/m.gguf")
            var spec = ModelSpec.tiny()
            spec.ropeScaling = .llama3(factor: 8, lowFreqFactor: 1, highFreqFactor: 2, originalContext: 64)
            try RandomModel.write(folder: path, spec: spec, seed: 5)
            expectFault("rope_scaling") { try GGUFExport.write(folder: path, to: target, as: .f32) }
            spec.ropeScaling = .yarn(
                factor: 2, originalContext: 64, betaFast: 32, betaSlow: 1, attentionFactor: 0.5, mscale: nil,
                mscaleAllDim: nil)
            try RandomModel.write(folder: path, spec: spec, seed: 5)
            expectFault("rope_scaling", "YaRN") { try GGUFExport.write(folder: path, to: target, as: .f32) }
            #expect(!FileManager.default.fileExists(atPath: target))
        }
    }

    /// A GGUF description of an architecture, with f32 weights of zeros.
    private func described(
        _ architecture: String, qkNorm: Bool = false, _ change: (inout GGUFTestFile) -> Void = { _ in }
    ) throws -> ModelSpec {
        var file = GGUFTestFile()
        file.add("general.architecture", architecture)
        for (key, value) in [
            ("context_length", 128), ("embedding_length", 16), ("block_count", 1), ("feed_forward_length", 24),
            ("attention.head_count", 4), ("attention.head_count_kv", 2),
        ] as [(String, UInt32)] { file.add("\(architecture).\(key)", value) }
        file.add("\(architecture).attention.layer_norm_rms_epsilon", Float(1e-6))
        func zeros(_ name: String, _ dimensions: [UInt64]) {
            let bytes = [UInt8](repeating: 0, count: Int(dimensions.reduce(4, *)))
            file.tensors.append(.init(name: name, type: 0, dimensions: dimensions, bytes: bytes))
        }
        zeros("token_embd.weight", [16, 10])
        change(&file)
        return try TemporaryFolder.use { folder in
            try folder.write("m.gguf", file.bytes())
            return try EngineFolder(path: folder.path + "/m.gguf").spec
        }
    }

    @Test func architecturesDifferAsTheirFamiliesDo() throws {
        let llama = try described("llama")
        #expect(llama.family == .llama && !llama.attentionBias && !llama.qkNorm && llama.tiedEmbeddings)
        #expect(llama.ropeTheta == 10_000 && llama.ropeScaling == .none && llama.headDim == 4)
        let qwen2 = try described("qwen2")
        #expect(qwen2.family == .qwen2 && qwen2.attentionBias && !qwen2.outputBias && !qwen2.qkNorm)
        let qwen3 = try described("qwen3") { $0.add("qwen3.attention.key_length", UInt32(8)) }
        #expect(qwen3.family == .qwen3 && qwen3.qkNorm && qwen3.headDim == 8)
    }

    @Test func ropeScalingIsReadFromItsKeys() throws {
        let linear = try described("llama") {
            $0.add("llama.rope.scaling.type", "linear")
            $0.add("llama.rope.scaling.factor", Float(4))
        }
        #expect(linear.ropeScaling == .linear(factor: 4) && linear.contextTokensMax == 128)
        #expect(
            try described("llama") { $0.add("llama.rope.scale_linear", Float(2)) }.ropeScaling == .linear(factor: 2))
        let yarn = try described("qwen2") {
            $0.add("qwen2.rope.scaling.type", "yarn")
            $0.add("qwen2.rope.scaling.factor", Float(4))
            $0.add("qwen2.rope.scaling.original_context_length", UInt32(64))
        }
        #expect(
            yarn.ropeScaling
                == .yarn(
                    factor: 4, originalContext: 64, betaFast: 32, betaSlow: 1, attentionFactor: nil, mscale: nil,
                    mscaleAllDim: nil))
        #expect(yarn.contextTokensMax == 256)
        expectFault("m.gguf: llama.rope.scaling.type is \"longrope\"") {
            _ = try described("llama") { $0.add("llama.rope.scaling.type", "longrope") }
        }
        expectFault("rope_freqs.weight holds no factors") {
            _ = try described("llama") {
                $0.tensors.append(
                    .init(name: "rope_freqs.weight", type: 0, dimensions: [2], bytes: [UInt8](repeating: 7, count: 8)))
            }
        }
    }

    @Test func whatWouldChangeTheOutputIsRefusedByName() {
        expectFault("general.architecture is \"gemma3\"", "llama, qwen2, qwen3") { _ = try described("gemma3") }
        expectFault("llama.expert_count is 8") {
            _ = try described("llama") { $0.add("llama.expert_count", UInt32(8)) }
        }
        expectFault("llama.rope.dimension_count is 2") {
            _ = try described("llama") { $0.add("llama.rope.dimension_count", UInt32(2)) }
        }
        expectFault("llama.attention.value_length is 8") {
            _ = try described("llama") { $0.add("llama.attention.value_length", UInt32(8)) }
        }
        expectFault("blk.0.ffn_gate_exps.weight", "no known model") {
            _ = try described("llama") {
                $0.tensors.append(
                    .init(name: "blk.0.ffn_gate_exps.weight", type: 0, dimensions: [1], bytes: [0, 0, 0, 0]))
            }
        }
        expectFault("token_embd.weight is missing") { _ = try described("llama") { $0.tensors = [] } }
        for (key, value) in [("block_count", UInt32(0)), ("block_count", .max), ("embedding_length", 15)] {
            expectFault("llama.\(key)") {
                _ = try described("llama") { file in
                    file.keys.removeAll { String(decoding: $0, as: UTF8.self).contains("llama.\(key)") }
                    file.add("llama.\(key)", value)
                }
            }
        }
        expectFault("llama.context_length is missing") {
            _ = try described("llama") { file in
                file.keys.removeAll { String(decoding: $0, as: UTF8.self).contains("context_length") }
            }
        }
    }
}
