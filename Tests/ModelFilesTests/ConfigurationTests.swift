import BoundedJSON
import ModelRuntime
import ServingTypes
import Testing

@testable import ModelFiles

@Suite struct ConfigurationTests {
    /// A config.json of that architecture with members replaced.
    private func config(_ architecture: String, _ changes: JSONObject = [:]) -> JSONValue {
        var object: JSONObject = [
            "architectures": [.string(architecture)], "hidden_size": 64, "num_hidden_layers": 4,
            "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 1000,
            "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "hidden_act": "silu",
        ]
        for (key, value) in changes.members { object[key] = value }
        return .object(object)
    }

    private func spec(_ architecture: String, _ changes: JSONObject = [:]) throws -> ModelSpec {
        try ModelConfiguration(config(architecture, changes)).spec
    }

    @Test func aLlamaConfigurationIsUnderstood() throws {
        let spec = try spec("LlamaForCausalLM", ["tie_word_embeddings": true])
        #expect(
            spec
                == ModelSpec(
                    family: .llama, layerCount: 4, hiddenSize: 64, headCount: 8, kvHeadCount: 2, headDim: 8,
                    ffnSize: 128, vocabularySize: 1000, contextTokensMax: 4096, rmsNormEpsilon: 1e-5,
                    ropeTheta: 500_000, tiedEmbeddings: true))
    }

    @Test func biasesFollowTheArchitecture() throws {
        let llama = try spec("LlamaForCausalLM", ["attention_bias": true, "mlp_bias": true])
        #expect(llama.attentionBias && llama.outputBias && llama.mlpBias)
        let mistral = try spec("MistralForCausalLM", ["attention_bias": true, "sliding_window": nil])
        #expect(!mistral.attentionBias && !mistral.outputBias)
        let qwen2 = try spec("Qwen2ForCausalLM")
        #expect(qwen2.attentionBias && !qwen2.outputBias && !qwen2.mlpBias && !qwen2.qkNorm)
        let qwen3 = try spec("Qwen3ForCausalLM", ["attention_bias": false])
        #expect(!qwen3.attentionBias && qwen3.qkNorm && qwen3.headDim == 128)
        #expect(try spec("Qwen3ForCausalLM", ["head_dim": 32]).headDim == 32)
    }

    @Test func unknownArchitecturesAreRefusedWithTheKnownOnes() {
        expectFault("config.json: architectures is \"GPT2LMHeadModel\"", "LlamaForCausalLM", "Qwen3ForCausalLM") {
            _ = try spec("GPT2LMHeadModel")
        }
        expectFault("model_type is \"gemma\"", "MistralForCausalLM") {
            _ = try spec("", ["architectures": nil, "model_type": "gemma"])
        }
        expectFault("architectures is missing") { _ = try spec("", ["architectures": nil]) }
    }

    @Test func aModelTypeStandsInForAMissingArchitecture() throws {
        #expect(try spec("", ["architectures": nil, "model_type": "qwen2"]).family == .qwen2)
    }

    @Test func slidingWindowsFollowTheArchitecture() throws {
        #expect(try spec("MistralForCausalLM", ["sliding_window": 1024]).slidingWindow == 1024)
        #expect(try spec("MistralForCausalLM", ["sliding_window": nil]).slidingWindow == nil)
        #expect(try spec("MistralForCausalLM", ["sliding_window": 4096]).slidingWindow == nil)
        #expect(try spec("LlamaForCausalLM", ["sliding_window": 1024]).slidingWindow == nil)
        let off: JSONObject = ["use_sliding_window": false, "sliding_window": 1024, "max_window_layers": 0]
        #expect(try spec("Qwen2ForCausalLM", off).slidingWindow == nil)
        #expect(try spec("Qwen2ForCausalLM", ["sliding_window": 1024]).slidingWindow == nil)
        var on: JSONObject = ["use_sliding_window": true, "sliding_window": 1024, "max_window_layers": 0]
        #expect(try spec("Qwen2ForCausalLM", on).slidingWindow == 1024)
        on["max_window_layers"] = 4
        #expect(try spec("Qwen2ForCausalLM", on).slidingWindow == nil)
        on["max_window_layers"] = 2
        expectFault("max_window_layers is 2") { _ = try spec("Qwen2ForCausalLM", on) }
        on["layer_types"] = ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention"]
        #expect(try spec("Qwen3ForCausalLM", on).slidingWindow == 1024)
        on["layer_types"] = ["full_attention", "sliding_attention", "full_attention", "full_attention"]
        expectFault("layer_types", "1 sliding, 3 full") { _ = try spec("Qwen3ForCausalLM", on) }
    }

    @Test func ropeScalingIsReadInAllThreeSpellings() throws {
        for key in ["type", "rope_type"] {
            let linear: JSONObject = ["rope_scaling": [(key): "linear", "factor": 2]]
            #expect(try spec("LlamaForCausalLM", linear).ropeScaling == .linear(factor: 2))
        }
        let newest: JSONObject = [
            "rope_theta": nil,
            "rope_parameters": [
                "rope_type": "llama3", "rope_theta": 250000.0, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            ],
        ]
        let spec3 = try spec("LlamaForCausalLM", newest)
        #expect(spec3.ropeTheta == 250_000)
        #expect(
            spec3.ropeScaling == .llama3(factor: 8, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192))
        #expect(try spec("LlamaForCausalLM", ["rope_parameters": ["rope_theta": 1000.0]]).ropeTheta == 1000)
        #expect(try spec("LlamaForCausalLM", ["rope_scaling": nil]).ropeScaling == .none)
        #expect(try spec("LlamaForCausalLM", ["rope_scaling": ["rope_type": "default"]]).ropeScaling == .none)
    }

    @Test func yarnStretchesTheContext() throws {
        let yarn: JSONObject = [
            "rope_scaling": ["type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096]
        ]
        let spec = try spec("Qwen2ForCausalLM", yarn)
        #expect(spec.contextTokensMax == 16384)
        #expect(
            spec.ropeScaling
                == .yarn(
                    factor: 4, originalContext: 4096, betaFast: 32, betaSlow: 1, attentionFactor: nil, mscale: nil,
                    mscaleAllDim: nil))
    }

    @Test func unknownOrIncompleteScalingsAreRefused() {
        expectFault("rope_scaling.rope_type is \"longrope\"", "default, linear, llama3, yarn") {
            _ = try spec("LlamaForCausalLM", ["rope_scaling": ["type": "longrope", "factor": 2]])
        }
        expectFault("rope_scaling.factor is missing") {
            _ = try spec("LlamaForCausalLM", ["rope_scaling": ["type": "linear"]])
        }
        expectFault("rope_scaling.factor is 0.5, outside 1.0 to 65536.0") {
            _ = try spec("LlamaForCausalLM", ["rope_scaling": ["type": "linear", "factor": 0.5]])
        }
        expectFault("rope_parameters.rope_type is missing") {
            _ = try spec("LlamaForCausalLM", ["rope_parameters": ["full_attention": ["rope_type": "default"]]])
        }
        expectFault("rope_scaling.high_freq_factor is 1.0") {
            let llama3: JSONValue = [
                "type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            ]
            _ = try spec("LlamaForCausalLM", ["rope_scaling": llama3])
        }
    }

    @Test(arguments: [
        ("hidden_size", JSONValue.integer(0)), ("hidden_size", .integer(1 << 40)), ("num_hidden_layers", .integer(-1)),
        ("num_hidden_layers", .integer(100_000)), ("num_attention_heads", .integer(0)),
        ("num_key_value_heads", .integer(9)), ("num_key_value_heads", .integer(3)), ("intermediate_size", .integer(0)),
        ("vocab_size", .integer(0)), ("vocab_size", .integer(.max)), ("max_position_embeddings", .integer(0)),
        ("rms_norm_eps", .number(-1)), ("rope_theta", .number(0)), ("head_dim", .integer(7)),
        ("head_dim", .integer(100_000)), ("hidden_size", .string("64")), ("hidden_size", .number(64.5)),
        ("hidden_size", .integer(63)), ("hidden_act", .string("gelu")), ("partial_rotary_factor", .number(0.5)),
        ("quantization_config", .object(["bits": 4])), ("tie_word_embeddings", .integer(1)),
        ("eos_token_id", .integer(1000)), ("eos_token_id", .array([1, -1])), ("eos_token_id", .string("x")),
        ("bos_token_id", .integer(-5)), ("rope_scaling", .string("linear")),
    ])
    func everyValueOutOfRangeIsNamedWithItsField(field: String, value: JSONValue) {
        expectFault("config.json: \(field) ") { _ = try spec("LlamaForCausalLM", [field: value]) }
    }

    @Test(arguments: [
        "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size",
        "max_position_embeddings",
    ])
    func aMissingFieldIsNamed(field: String) {
        expectFault("config.json: \(field) is missing") { _ = try spec("LlamaForCausalLM", [field: nil]) }
    }

    @Test func generationDefaultsMergeEndTokensOfAllFiles() throws {
        let configuration = try ModelConfiguration(
            config("LlamaForCausalLM", ["eos_token_id": [7, 8], "bos_token_id": 1]))
        let file: JSONValue = [
            "eos_token_id": [9, 7], "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0,
            "repetition_penalty": 1.05, "do_sample": true, "max_new_tokens": 2048,
        ]
        let defaults = try GenerationDefaults(file, configuration, tokenizerEnd: TokenID(3))
        #expect(defaults.endTokens.map(\.value) == [9, 7, 8, 3])
        #expect(defaults.beginToken == TokenID(1))
        #expect(defaults.temperature == 0.6 && defaults.topK == 20 && defaults.topP == 0.95 && defaults.minP == 0)
        #expect(defaults.repetitionPenalty == 1.05 && defaults.doSample == true && defaults.maxNewTokens == 2048)
        let none = try GenerationDefaults(nil, configuration, tokenizerEnd: nil)
        #expect(none.temperature == nil && none.endTokens.map(\.value) == [7, 8])
    }

    @Test(arguments: [
        ("temperature", JSONValue.number(-1)), ("temperature", .number(101)), ("top_k", .integer(-1)),
        ("top_p", .number(0)), ("top_p", .number(1.5)), ("min_p", .number(2)), ("repetition_penalty", .number(0)),
        ("do_sample", .string("yes")), ("eos_token_id", .integer(5000)),
    ])
    func aGenerationValueOutOfRangeIsNamed(field: String, value: JSONValue) throws {
        let configuration = try ModelConfiguration(config("LlamaForCausalLM"))
        expectFault("generation_config.json: \(field) ") {
            _ = try GenerationDefaults(.object([field: value]), configuration, tokenizerEnd: nil)
        }
    }

    @Test func randomMutationsOfAConfigurationNeverTrap() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        let names = [
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
            "max_position_embeddings", "rope_scaling", "sliding_window", "layer_types", "eos_token_id", "rms_norm_eps",
            "use_sliding_window", "max_window_layers", "rope_theta", "architectures", "intermediate_size",
        ]
        let values: [JSONValue] = [
            nil, 0, 1, -1, 2, 3, .integer(.max), .integer(.min), 1e308, -0.0, "x", [], [:], true, 16, 4096,
            ["rope_type": "yarn", "factor": 65536.0], ["type": "yarn", "factor": 1e308], [1, 2],
        ]
        let families = ["LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"]
        for round in 0..<1500 {
            var changes: JSONObject = [:]
            for _ in 0..<Int.random(in: 1...4, using: &random) {
                changes[names[Int.random(in: 0..<names.count, using: &random)]] =
                    values[Int.random(in: 0..<values.count, using: &random)]
            }
            guard let spec = try? spec(families[round % 4], changes) else { continue }
            #expect(spec.headCount.isMultiple(of: spec.kvHeadCount), "seed \(seed) round \(round)")
            #expect(spec.contextTokensMax > 0 && spec.headDim > 0, "seed \(seed) round \(round)")
        }
    }
}
