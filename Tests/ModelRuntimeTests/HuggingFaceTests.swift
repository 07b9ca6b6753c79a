import Foundation
import ServingTypes
import Testing

@testable import ModelRuntime

/// A fixture folder that ops/fixtures/engine_fixtures.py wrote.
struct Fixture {
    var spec: ModelSpec
    var weights: MemoryTensors
    var prompt: [TokenID]
    /// `[prompt.count][vocabularySize]`.
    var logits: [Float]
    var greedy: [TokenID]
    /// Logits behind the last greedy token.
    var lastLogits: [Float]

    static let names = [
        "llama-f32", "llama-biases", "llama-tied-odd", "llama3-rope", "linear-rope", "yarn-rope", "yarn-mscale",
        "mistral-window", "qwen2", "qwen3",
    ]

    init(_ name: String) throws {
        let folder = URL(filePath: #filePath).deletingLastPathComponent().appending(path: "Fixtures/\(name)")
        let json = try JSONSerialization.jsonObject(with: Data(contentsOf: folder.appending(path: "config.json")))
        spec = try Self.spec(#require(json as? [String: Any]))
        weights = MemoryTensors()
        for tensor in try SafetensorsFile(folder.appending(path: "model.safetensors")).tensors {
            let type = try #require(ElementType(rawValue: tensor.type.lowercased()))
            weights.set(tensor.name, tensor.shape, type, tensor.bytes)
        }
        let expected = try SafetensorsFile(folder.appending(path: "expected.safetensors"))
        prompt = try expected.values("prompt", as: Int32.self).map { TokenID(UInt32($0)) }
        greedy = try expected.values("greedy", as: Int32.self).map { TokenID(UInt32($0)) }
        logits = try expected.values("logits", as: Float.self)
        lastLogits = try expected.values("last_logits", as: Float.self)
    }

    /// The few fields these fixtures use, read independently of ModelFiles.
    private static func spec(_ json: [String: Any]) throws -> ModelSpec {
        func int(_ key: String) throws -> Int { try #require(json[key] as? Int, "\(key)") }
        let type = try #require(json["model_type"] as? String)
        let family = try #require(ModelSpec.Family(rawValue: type))
        let heads = try int("num_attention_heads")
        let rope = try #require(json["rope_parameters"] as? [String: Any])
        let attentionBias = json["attention_bias"] as? Bool ?? false
        return ModelSpec(
            family: family, layerCount: try int("num_hidden_layers"), hiddenSize: try int("hidden_size"),
            headCount: heads, kvHeadCount: try int("num_key_value_heads"),
            headDim: try json["head_dim"] as? Int ?? int("hidden_size") / heads, ffnSize: try int("intermediate_size"),
            vocabularySize: try int("vocab_size"), contextTokensMax: try int("max_position_embeddings"),
            rmsNormEpsilon: Float(try #require(json["rms_norm_eps"] as? Double)),
            ropeTheta: try #require(rope["rope_theta"] as? Double), ropeScaling: try scaling(rope),
            slidingWindow: json["sliding_window"] as? Int, attentionBias: family == .qwen2 || attentionBias,
            outputBias: family != .qwen2 && attentionBias, mlpBias: json["mlp_bias"] as? Bool ?? false,
            qkNorm: family == .qwen3, tiedEmbeddings: try #require(json["tie_word_embeddings"] as? Bool))
    }

    private static func scaling(_ rope: [String: Any]) throws -> ModelSpec.RopeScaling {
        func number(_ key: String) throws -> Double { try #require(rope[key] as? Double, "\(key)") }
        switch rope["rope_type"] as? String {
        case "linear": return .linear(factor: try number("factor"))
        case "llama3":
            return .llama3(
                factor: try number("factor"), lowFreqFactor: try number("low_freq_factor"),
                highFreqFactor: try number("high_freq_factor"),
                originalContext: Int(try number("original_max_position_embeddings")))
        case "yarn":
            return .yarn(
                factor: try number("factor"), originalContext: Int(try number("original_max_position_embeddings")),
                betaFast: try number("beta_fast"), betaSlow: try number("beta_slow"), attentionFactor: nil,
                mscale: rope["mscale"] as? Double, mscaleAllDim: rope["mscale_all_dim"] as? Double)
        default: return .none
        }
    }
}

/// Just enough of the format for fixtures that we wrote ourselves.
struct SafetensorsFile {
    struct Tensor {
        var name: String
        var type: String
        var shape: [Int]
        var bytes: Data
    }

    var tensors: [Tensor] = []

    init(_ url: URL) throws {
        let data = try Data(contentsOf: url)
        let headerBytes = data.prefix(8).reversed().reduce(0) { $0 << 8 | Int($1) }
        let header = try #require(
            try JSONSerialization.jsonObject(with: data[8..<8 + headerBytes]) as? [String: [String: Any]])
        for (name, fields) in header where name != "__metadata__" {
            let offsets = try #require(fields["data_offsets"] as? [Int])
            let start = 8 + headerBytes
            tensors.append(
                Tensor(
                    name: name, type: try #require(fields["dtype"] as? String),
                    shape: try #require(fields["shape"] as? [Int]),
                    bytes: Data(data[start + offsets[0]..<start + offsets[1]])))
        }
    }

    func values<Value: BitwiseCopyable>(_ name: String, as type: Value.Type) throws -> [Value] {
        let tensor = try #require(tensors.first { $0.name == name })
        return tensor.bytes.withUnsafeBytes { bytes in
            (0..<bytes.count / MemoryLayout<Value>.size).map {
                bytes.loadUnaligned(fromByteOffset: $0 * MemoryLayout<Value>.size, as: type)
            }
        }
    }
}

/// Largest difference as a share of the expected value, or of the row's typical value where the
/// expected one is near zero.
func relativeError(_ mine: [Float], _ expected: some Collection<Float>) -> Float {
    let typical = (expected.reduce(0) { $0 + $1 * $1 } / Float(max(1, expected.count))).squareRoot()
    return zip(mine, expected).map { abs($0 - $1) / max(abs($1), typical) }.max() ?? .infinity
}

struct HuggingFaceTests {
    static let tolerance: Float = 2e-4

    static let cases = Fixture.names.flatMap { name in
        KernelVariant.allCases.filter(\.isSupported).map { (name, $0) }
    }

    @Test(arguments: cases) func logitsEqualTransformers(_ name: String, _ variant: KernelVariant) throws {
        let fixture = try Fixture(name)
        let paged = try Paged(fixture.spec, blockTokens: 16, type: .f32, positions: fixture.prompt.count, seed: 1)
        var options = EngineOptions()
        options.kernels = variant
        options.bf16Products = false
        let engine = try CPUEngine(
            spec: fixture.spec, weights: fixture.weights, store: paged.store, options: options)
        let table = paged.table(0, positions: fixture.prompt.count)
        let rows = try engine.logits(StepBatch(entries: [entry(fixture.prompt, at: 0, table)]), rows: .all)
        try expectEqual(rows, fixture)
    }

    /// Inputs of bf16 products have 8 bits: 2^-9 each, about 2 % of these small models' logits at worst.
    @Test(arguments: Fixture.names) func roundedInputsStayNearTransformers(_ name: String) throws {
        let fixture = try Fixture(name)
        let paged = try Paged(fixture.spec, blockTokens: 16, type: .f32, positions: fixture.prompt.count, seed: 1)
        let engine = try CPUEngine(spec: fixture.spec, weights: fixture.weights, store: paged.store)
        let table = paged.table(0, positions: fixture.prompt.count)
        let rows = try engine.logits(StepBatch(entries: [entry(fixture.prompt, at: 0, table)]), rows: .all)
        try expectEqual(rows, fixture, tolerance: 0.1)
    }

    @Test(arguments: Fixture.names) func theReferenceEqualsTransformers(_ name: String) throws {
        let fixture = try Fixture(name)
        let paged = try Paged(fixture.spec, blockTokens: 5, type: .f32, positions: fixture.prompt.count, seed: 1)
        let engine = try ReferenceEngine(spec: fixture.spec, weights: fixture.weights, store: paged.store)
        let table = paged.table(0, positions: fixture.prompt.count)
        let rows = try engine.logits(StepBatch(entries: [entry(fixture.prompt, at: 0, table)]), rows: .all)
        try expectEqual(rows, fixture)
    }

    @Test(arguments: cases) func sixtyFourGreedyTokensEqualTransformers(_ name: String, _ variant: KernelVariant) throws
    {
        let fixture = try Fixture(name)
        let positions = fixture.prompt.count + fixture.greedy.count
        let paged = try Paged(fixture.spec, blockTokens: 16, type: .f32, positions: positions, seed: 2)
        var options = EngineOptions()
        options.kernels = variant
        options.bf16Products = false
        let engine = try CPUEngine(spec: fixture.spec, weights: fixture.weights, store: paged.store, options: options)
        let table = paged.table(0, positions: positions)
        var drawn: [TokenID] = []
        var input = fixture.prompt
        var start = 0
        while drawn.count < fixture.greedy.count {
            let sample = greedy(promptTokens: fixture.prompt.count, outputTokens: drawn.count)
            let result = engine.step(StepBatch(entries: [entry(input, at: start, table, sample: sample)]))
            guard case .sampled(let token) = result.outcomes.first else {
                Issue.record("\(result.outcomes)")
                return
            }
            drawn.append(token.token)
            start += input.count
            input = [token.token]
        }
        #expect(drawn == fixture.greedy)
        // The step before the last token, once more: its logits are those behind the last token.
        let last = entry([fixture.greedy[62]], at: positions - 2, table)
        let row = try #require(try engine.logits(StepBatch(entries: [last]), rows: .last).first)
        #expect(relativeError(row, fixture.lastLogits) < Self.tolerance)
    }

    private func expectEqual(
        _ rows: [[Float]], _ fixture: Fixture, tolerance: Float = HuggingFaceTests.tolerance
    ) throws {
        try #require(rows.count == fixture.prompt.count)
        let width = fixture.spec.vocabularySize
        for (index, row) in rows.enumerated() {
            let error = relativeError(row, fixture.logits[index * width..<(index + 1) * width])
            #expect(error < tolerance, "row \(index)")
        }
    }
}
