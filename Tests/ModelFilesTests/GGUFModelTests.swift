import BoundedJSON
import CKernels
import Foundation
import ModelRuntime
import ServingTypes
import Testing
import Tokenization

@testable import ModelFiles

/// The bundled model as a GGUF file, as llama.cpp's converter would write it.
private enum Converted {
    enum Weights: String, CaseIterable {
        case f32
        case bf16
        case q8_0
        case q4_0
    }

    static func write(_ weights: Weights, to path: String) throws {
        let model = try ModelFolder(path: Repository.model.path)
        var file = GGUFTestFile()
        describe(model, &file)
        try describeTokenizer(&file, model)
        for name in model.weights.tensorNames {
            let view = try #require(try model.weights.tensor(named: name))
            file.tensors.append(try tensor(name, view, weights, model.spec))
        }
        try Data(file.bytes()).write(to: URL(fileURLWithPath: path))
    }

    private static func describe(_ model: ModelFolder, _ file: inout GGUFTestFile) {
        let spec = model.spec
        file.add("general.architecture", "llama")
        file.add("llama.context_length", UInt32(spec.contextTokensMax))
        file.add("llama.embedding_length", UInt32(spec.hiddenSize))
        file.add("llama.block_count", UInt32(spec.layerCount))
        file.add("llama.feed_forward_length", UInt32(spec.ffnSize))
        file.add("llama.attention.head_count", UInt32(spec.headCount))
        file.add("llama.attention.head_count_kv", UInt32(spec.kvHeadCount))
        file.add("llama.attention.key_length", UInt32(spec.headDim))
        file.add("llama.rope.freq_base", Float(spec.ropeTheta))
        file.add("llama.attention.layer_norm_rms_epsilon", spec.rmsNormEpsilon)
        if let template = model.chatTemplateSource { file.add("tokenizer.chat_template", template) }
    }

    private static func describeTokenizer(_ file: inout GGUFTestFile, _ folder: ModelFolder) throws {
        let json = try JSON.parse(
            [UInt8](try Data(contentsOf: Repository.model.appendingPathComponent("tokenizer.json"))))
        let model = try TokenizerModel(tokenizerJSON: json, config: nil)
        var texts = [String](repeating: "", count: folder.tokenizer.vocabularySize)
        var types = [Int32](repeating: 5, count: texts.count)
        for entry in model.vocabulary { (texts[Int(entry.id)], types[Int(entry.id)]) = (entry.text, 1) }
        for token in model.addedTokens {
            (texts[Int(token.id)], types[Int(token.id)]) = (token.content, token.special ? 3 : 4)
        }
        let pre: String
        switch model.preTokenizers {
        case [.gpt2]: pre = "gpt-2"
        case [.llama3]: pre = "llama-bpe"
        case [.qwen2]: pre = "qwen2"
        case [.digits(individually: true), .gpt2]: pre = "smollm"
        default: pre = "unknown"
        }
        file.add("tokenizer.ggml.model", "gpt2")
        file.add("tokenizer.ggml.pre", pre)
        file.add("tokenizer.ggml.tokens", texts)
        file.add("tokenizer.ggml.token_type", types)
        file.add("tokenizer.ggml.merges", model.merges.map { "\($0.left) \($0.right)" })
        file.add("tokenizer.ggml.add_bos_token", false)
        if let end = folder.tokenizer.eosToken { file.add("tokenizer.ggml.eos_token_id", end.value) }
        if let begin = folder.generation.beginToken { file.add("tokenizer.ggml.bos_token_id", begin.value) }
    }

    private static func tensor(
        _ name: String, _ view: TensorView, _ weights: Weights, _ spec: ModelSpec
    ) throws -> GGUFTestFile.Tensor {
        let role = try #require(GGUFNames.gguf(of: name))
        let columns = view.shape[view.shape.count - 1]
        var floats = [Float](repeating: 0, count: view.elementCount)
        let kind = view.type == .bf16 ? TK_BF16 : view.type == .f16 ? TK_F16 : TK_F32
        tk_kernels_scalar().pointee.widen(&floats, view.base, kind, floats.count)
        var (type, bytes): (UInt32, [UInt8]) = (0, [])
        switch view.shape.count == 1 ? .f32 : weights {
        case .f32: bytes = floats.withUnsafeBytes { [UInt8]($0) }
        case .bf16: (type, bytes) = (30, [UInt8](UnsafeRawBufferPointer(start: view.base, count: view.byteCount)))
        case .q8_0: (type, bytes) = (8, try #require(BlockFormat.q8_0.quantised(floats)))
        case .q4_0: (type, bytes) = (2, try #require(BlockFormat.q4_0.quantised(floats)))
        }
        if role.isRotated { bytes = interleaved(bytes, rows: view.shape[0], headDim: spec.headDim) }
        let dimensions = (view.shape.count == 1 ? [columns] : [columns, view.shape[0]]).map { UInt64($0) }
        return GGUFTestFile.Tensor(name: role.name, type: type, dimensions: dimensions, bytes: bytes)
    }

    /// convert_hf_to_gguf.py's `permute`: [head][half][pair] becomes [head][pair][half].
    private static func interleaved(_ bytes: [UInt8], rows: Int, headDim: Int) -> [UInt8] {
        let rowBytes = bytes.count / rows
        var result: [UInt8] = []
        result.reserveCapacity(bytes.count)
        for head in 0..<rows / headDim {
            for pair in 0..<headDim / 2 {
                for half in 0..<2 {
                    let row = head * headDim + half * headDim / 2 + pair
                    result += bytes[row * rowBytes..<(row + 1) * rowBytes]
                }
            }
        }
        return result
    }
}

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
            for weights in Converted.Weights.allCases {
                let path = place.path + "/model-\(weights).gguf"
                try Converted.write(weights, to: path)
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
                case .q8_0, .q4_0:
                    let difference = divergence(expected, found, tokens)
                    #expect(difference.kl > 0 && difference.kl < (weights == .q8_0 ? 1e-3 : 0.1), "\(difference)")
                    let ratio = difference.found / difference.expected
                    #expect(abs(ratio - 1) < (weights == .q8_0 ? 0.005 : 0.15), "\(difference)")
                }
            }
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
