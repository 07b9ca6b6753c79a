import BoundedJSON
import ModelRuntime
import ServingTypes

/// The ranges that config.json's numbers must lie in. Products of them (a tensor's bytes, a page's
/// bytes) stay far below 2^63.
enum ModelConfigurationLimits {
    static let layers = 1...1024
    static let hiddenSize = 1...1_048_576
    static let heads = 1...4096
    static let headDim = 2...4096
    static let vocabulary = 1...4_000_000
    static let context = 1...16_777_216
    static let normEpsilon = 1e-12...1.0
    static let ropeTheta = 1.0...1e12
    static let ropeFactor = 1.0...65_536.0
}

/// config.json understood.
struct ModelConfiguration {
    var spec: ModelSpec
    /// Whether the file says so itself; else the presence of an output projection decides.
    var saysTiedEmbeddings: Bool
    var endTokens: [TokenID]
    var beginToken: TokenID?

    static let file = "config.json"

    init(_ json: JSONValue) throws(ServingError) {
        let fields = try JSONFields(json, file: Self.file)
        let family = try Architecture.family(fields)
        try Self.refuseUnknownFeatures(fields)
        spec = try Self.spec(fields, family)
        saysTiedEmbeddings = fields["tie_word_embeddings"] != nil
        endTokens = try fields.tokens("eos_token_id", below: spec.vocabularySize)
        beginToken = try fields.tokens("bos_token_id", below: spec.vocabularySize).first
    }

    private static func spec(_ fields: JSONFields, _ family: ModelSpec.Family) throws(ServingError) -> ModelSpec {
        typealias Limits = ModelConfigurationLimits
        let hiddenSize = try fields.integer("hidden_size", Limits.hiddenSize)
        let headCount = try fields.integer("num_attention_heads", Limits.heads)
        let layerCount = try fields.integer("num_hidden_layers", Limits.layers)
        let rope = try RopeFields(fields)
        let context = try rope.contextTokensMax(fields)
        let biases = try Architecture.biases(fields, family)
        return ModelSpec(
            family: family, layerCount: layerCount, hiddenSize: hiddenSize, headCount: headCount,
            kvHeadCount: try keyValueHeads(fields, headCount),
            headDim: try headDim(fields, family, hiddenSize: hiddenSize, headCount: headCount),
            ffnSize: try fields.integer("intermediate_size", Limits.hiddenSize),
            vocabularySize: try fields.integer("vocab_size", Limits.vocabulary), contextTokensMax: context,
            rmsNormEpsilon: Float(try fields.optionalNumber("rms_norm_eps", Limits.normEpsilon) ?? 1e-6),
            ropeTheta: rope.theta, ropeScaling: rope.scaling,
            slidingWindow: try SlidingWindow.tokens(fields, family, layerCount: layerCount, context: context),
            attentionBias: biases.attention, outputBias: biases.output, mlpBias: biases.mlp, qkNorm: family == .qwen3,
            tiedEmbeddings: try fields.flag("tie_word_embeddings") ?? false)
    }

    private static func keyValueHeads(_ fields: JSONFields, _ headCount: Int) throws(ServingError) -> Int {
        let count = try fields.optionalInteger("num_key_value_heads", 1...headCount) ?? headCount
        guard headCount.isMultiple(of: count) else {
            throw fields.fault(
                "num_key_value_heads", "is \(count), which does not divide num_attention_heads \(headCount)")
        }
        return count
    }

    private static func headDim(
        _ fields: JSONFields, _ family: ModelSpec.Family, hiddenSize: Int, headCount: Int
    ) throws(ServingError) -> Int {
        let size: Int
        if let given = try fields.optionalInteger("head_dim", ModelConfigurationLimits.headDim) {
            size = given
        } else if family == .qwen3 {
            size = 128
        } else {
            guard hiddenSize.isMultiple(of: headCount) else {
                throw fields.fault(
                    "hidden_size", "is \(hiddenSize), which num_attention_heads \(headCount) does not divide")
            }
            size = hiddenSize / headCount
        }
        guard size.isMultiple(of: 2), ModelConfigurationLimits.headDim.contains(size) else {
            throw fields.fault("head_dim", "is \(size), not an even number from 2 to 4096")
        }
        return size
    }

    /// What would change the model's output and is not computed.
    private static func refuseUnknownFeatures(_ fields: JSONFields) throws(ServingError) {
        if let activation = try fields.text("hidden_act"), activation != "silu", activation != "swish" {
            throw fields.fault("hidden_act", "is \(shown(activation)), and only silu is known", code: .unsupported)
        }
        if fields["quantization_config"] != nil {
            throw fields.fault(
                "quantization_config", "is set, and only weights in F32, F16 and BF16 are read", code: .unsupported)
        }
        if let partial = try fields.optionalNumber("partial_rotary_factor", 0...1), partial != 1 {
            throw fields.fault("partial_rotary_factor", "is \(partial), and only 1 is known", code: .unsupported)
        }
    }
}

/// Architecture names and what follows from them alone.
enum Architecture {
    static let known: [(name: String, modelType: String, family: ModelSpec.Family)] = [
        ("LlamaForCausalLM", "llama", .llama),
        ("MistralForCausalLM", "mistral", .mistral),
        ("Qwen2ForCausalLM", "qwen2", .qwen2),
        ("Qwen3ForCausalLM", "qwen3", .qwen3),
    ]

    static func family(_ fields: JSONFields) throws(ServingError) -> ModelSpec.Family {
        let names = known.map(\.name).joined(separator: ", ")
        if let list = fields["architectures"] {
            let given = list.arrayValue?.first?.stringValue
            if let match = known.first(where: { $0.name == given }) { return match.family }
            throw fields.fault(
                "architectures", "is \(given.map(shown) ?? shown(list)), and known are \(names)", code: .unsupported)
        }
        guard let type = try fields.text("model_type") else { throw fields.missing("architectures") }
        if let match = known.first(where: { $0.modelType == type }) { return match.family }
        throw fields.fault("model_type", "is \(shown(type)), and known are \(names)", code: .unsupported)
    }

    static func biases(
        _ fields: JSONFields, _ family: ModelSpec.Family
    ) throws(ServingError) -> (attention: Bool, output: Bool, mlp: Bool) {
        let attention = try fields.flag("attention_bias") ?? false
        let mlp = try fields.flag("mlp_bias") ?? false
        switch family {
        case .llama: return (attention, attention, mlp)
        case .mistral: return (false, false, false)
        // Fixed by the architecture, whatever the file says.
        case .qwen2: return (true, false, false)
        case .qwen3: return (attention, attention, false)
        }
    }
}

/// Which tokens a layer attends to.
enum SlidingWindow {
    /// nil for all tokens. A model whose layers differ is refused.
    static func tokens(
        _ fields: JSONFields, _ family: ModelSpec.Family, layerCount: Int, context: Int
    ) throws(ServingError) -> Int? {
        guard let window = try window(fields, family, layerCount: layerCount) else { return nil }
        return window < context ? window : nil
    }

    private static func window(
        _ fields: JSONFields, _ family: ModelSpec.Family, layerCount: Int
    ) throws(ServingError) -> Int? {
        let isOn: Bool
        switch family {
        case .llama: return nil
        case .mistral: isOn = true
        case .qwen2, .qwen3: isOn = try fields.flag("use_sliding_window") ?? false
        }
        guard isOn else { return nil }
        // null is no window; a file that does not say gets transformers' default.
        if let given = fields.object["sliding_window"], given.isNull { return nil }
        let window = try fields.optionalInteger("sliding_window", ModelConfigurationLimits.context) ?? 4096
        if let types = fields["layer_types"] {
            return try everyLayer(fields, types, layerCount: layerCount) ? window : nil
        }
        guard family != .mistral else { return window }
        // Layers from this one on have the window.
        let first =
            try fields.optionalInteger("max_window_layers", 0...ModelConfigurationLimits.layers.upperBound) ?? 28
        if first >= layerCount { return nil }
        guard first == 0 else {
            throw fields.fault(
                "max_window_layers", "is \(first), and only 0 or \(layerCount) (all layers alike) is known",
                code: .unsupported)
        }
        return window
    }

    private static func everyLayer(
        _ fields: JSONFields, _ types: JSONValue, layerCount: Int
    ) throws(ServingError) -> Bool {
        guard let list = types.arrayValue, list.count == layerCount else {
            throw fields.fault("layer_types", "is \(shown(types)), not an array of \(layerCount)")
        }
        let sliding = list.count { $0.stringValue == "sliding_attention" }
        let full = list.count { $0.stringValue == "full_attention" }
        guard sliding == layerCount || full == layerCount else {
            throw fields.fault(
                "layer_types",
                "mixes kinds of attention (\(sliding) sliding, \(full) full), and only one kind is known",
                code: .unsupported)
        }
        return sliding == layerCount
    }
}

/// Rotary position fields in their three spellings: `rope_scaling` with `type` or `rope_type` beside
/// `rope_theta`, and transformers 5's `rope_parameters`, which holds all of it.
struct RopeFields {
    var theta: Double
    var scaling: ModelSpec.RopeScaling

    static let knownTypes = "default, linear, llama3, yarn"

    init(_ fields: JSONFields) throws(ServingError) {
        typealias Limits = ModelConfigurationLimits
        let newest = try fields.fields("rope_parameters")
        let older = try fields.fields("rope_scaling")
        let parameters = newest ?? older
        let outer = try fields.optionalNumber("rope_theta", Limits.ropeTheta)
        theta = try parameters?.optionalNumber("rope_theta", Limits.ropeTheta) ?? outer ?? 10_000
        scaling = .none
        if let parameters {
            if let partial = try parameters.optionalNumber("partial_rotary_factor", 0...1), partial != 1 {
                throw parameters.fault(
                    "partial_rotary_factor", "is \(partial), and only 1 is known", code: .unsupported)
            }
            scaling = try Self.scaling(parameters, context: try Self.writtenContext(fields))
        }
    }

    private static func writtenContext(_ fields: JSONFields) throws(ServingError) -> Int {
        try fields.integer("max_position_embeddings", ModelConfigurationLimits.context)
    }

    private static func scaling(_ fields: JSONFields, context: Int) throws(ServingError) -> ModelSpec.RopeScaling {
        let oldType = try fields.text("type")
        guard let type = try fields.text("rope_type") ?? oldType else {
            // Nothing but `rope_theta`: transformers 5 with nothing to scale.
            if fields["factor"] == nil, fields.object.members.allSatisfy({ $0.value.objectValue == nil }) {
                return .none
            }
            throw fields.fault("rope_type", "is missing, and known are \(knownTypes)", code: .missingField)
        }
        switch type {
        case "default": return .none
        case "linear": return .linear(factor: try fields.number("factor", ModelConfigurationLimits.ropeFactor))
        case "llama3": return try llama3(fields)
        case "yarn": return try yarn(fields, context: context)
        default:
            throw fields.fault("rope_type", "is \(shown(type)), and known are \(knownTypes)", code: .unsupported)
        }
    }

    private static func llama3(_ fields: JSONFields) throws(ServingError) -> ModelSpec.RopeScaling {
        let low = try fields.number("low_freq_factor", 1e-3...1e6)
        let high = try fields.number("high_freq_factor", 1e-3...1e6)
        guard high > low else {
            throw fields.fault("high_freq_factor", "is \(high), not above low_freq_factor \(low)")
        }
        return .llama3(
            factor: try fields.number("factor", ModelConfigurationLimits.ropeFactor), lowFreqFactor: low,
            highFreqFactor: high,
            originalContext: try fields.integer("original_max_position_embeddings", ModelConfigurationLimits.context))
    }

    private static func yarn(_ fields: JSONFields, context: Int) throws(ServingError) -> ModelSpec.RopeScaling {
        if try fields.flag("truncate") == false {
            throw fields.fault("truncate", "is false, and only true is known", code: .unsupported)
        }
        let original = try fields.optionalInteger("original_max_position_embeddings", ModelConfigurationLimits.context)
        let fast = try fields.optionalNumber("beta_fast", 1e-3...1e6) ?? 32
        let slow = try fields.optionalNumber("beta_slow", 1e-3...1e6) ?? 1
        guard fast >= slow else { throw fields.fault("beta_fast", "is \(fast), below beta_slow \(slow)") }
        return .yarn(
            factor: try fields.number("factor", ModelConfigurationLimits.ropeFactor),
            originalContext: original ?? context, betaFast: fast, betaSlow: slow,
            attentionFactor: try fields.optionalNumber("attention_factor", 1e-3...1e3),
            mscale: try fields.optionalNumber("mscale", 0...1e3),
            mscaleAllDim: try fields.optionalNumber("mscale_all_dim", 0...1e3))
    }

    /// The written context, or what YaRN stretches the original one to where that is more (Qwen2.5's
    /// instructions add the scaling and leave `max_position_embeddings` alone).
    func contextTokensMax(_ fields: JSONFields) throws(ServingError) -> Int {
        let written = try Self.writtenContext(fields)
        switch scaling {
        case .none, .linear, .llama3: return written
        case .yarn(let factor, let original, _, _, _, _, _):
            let stretched = (Double(original) * factor).rounded(.down)
            let limit = ModelConfigurationLimits.context.upperBound
            return max(written, stretched < Double(limit) ? Int(stretched) : limit)
        }
    }
}
