import Glibc
import ModelRuntime
import ServingTypes

/// A GGUF file's metadata and tensor names understood as a model's architecture.
struct GGUFConfiguration {
    var spec: ModelSpec
    /// Whether the file's query and key rows are in llama.cpp's interleaved order of rotary pairs.
    var interleavesRotaryPairs: Bool

    /// Names in `general.architecture`. Mistral's files say llama.
    static let known: [(name: String, family: ModelSpec.Family)] = [
        ("llama", .llama), ("qwen2", .qwen2), ("qwen3", .qwen3),
    ]

    init(_ file: GGUFFile) throws(ServingError) {
        let fields = file.fields
        guard let name = try fields.text("general.architecture") else { throw fields.missing("general.architecture") }
        guard let (_, family) = Self.known.first(where: { $0.name == name }) else {
            throw fields.fault(
                "general.architecture",
                "is \(shown(name)), and known are "
                    + Self.known.map(\.name).joined(separator: ", "), code: .unsupported)
        }
        let tensors = GGUFTensorTable(file)
        try Self.refuseUnknownFeatures(fields, name)
        spec = try Self.spec(fields, name, family, tensors)
        interleavesRotaryPairs = family == .llama
    }

    private static func spec(
        _ fields: GGUFFields, _ name: String, _ family: ModelSpec.Family, _ tensors: GGUFTensorTable
    ) throws(ServingError) -> ModelSpec {
        typealias Limits = ModelConfigurationLimits
        let hiddenSize = try fields.integer("\(name).embedding_length", Limits.hiddenSize)
        let headCount = try fields.integer("\(name).attention.head_count", Limits.heads)
        let headDim = try headDim(fields, name, hiddenSize: hiddenSize, headCount: headCount)
        let rope = try GGUFRope(fields, name, headDim: headDim, tensors)
        return ModelSpec(
            family: family, layerCount: try fields.integer("\(name).block_count", Limits.layers),
            hiddenSize: hiddenSize, headCount: headCount,
            kvHeadCount: try keyValueHeads(fields, name, headCount), headDim: headDim,
            ffnSize: try fields.integer("\(name).feed_forward_length", Limits.hiddenSize),
            vocabularySize: try vocabularySize(fields, tensors), contextTokensMax: rope.contextTokensMax,
            rmsNormEpsilon: Float(
                try fields.number("\(name).attention.layer_norm_rms_epsilon", Limits.normEpsilon)),
            ropeTheta: rope.theta, ropeScaling: rope.scaling,
            slidingWindow: try slidingWindow(fields, name, context: rope.contextTokensMax),
            attentionBias: family == .qwen2 || tensors.has("blk.0.attn_q.bias"),
            outputBias: tensors.has("blk.0.attn_output.bias"), mlpBias: tensors.has("blk.0.ffn_gate.bias"),
            qkNorm: family == .qwen3, tiedEmbeddings: !tensors.has("output.weight"))
    }

    private static func keyValueHeads(
        _ fields: GGUFFields, _ name: String, _ headCount: Int
    ) throws(ServingError) -> Int {
        let key = "\(name).attention.head_count_kv"
        let count = try fields.optionalInteger(key, 1...headCount) ?? headCount
        guard headCount.isMultiple(of: count) else {
            throw fields.fault(key, "is \(count), which does not divide the \(headCount) heads")
        }
        return count
    }

    private static func headDim(
        _ fields: GGUFFields, _ name: String, hiddenSize: Int, headCount: Int
    ) throws(ServingError) -> Int {
        typealias Limits = ModelConfigurationLimits
        let key = "\(name).attention.key_length"
        let given = try fields.optionalInteger(key, Limits.headDim)
        guard given != nil || hiddenSize.isMultiple(of: headCount) else {
            throw fields.fault("\(name).embedding_length", "is \(hiddenSize), which \(headCount) heads do not divide")
        }
        let size = given ?? hiddenSize / headCount
        guard size.isMultiple(of: 2), Limits.headDim.contains(size) else {
            throw fields.fault(key, "is \(size), not an even number from 2 to 4096")
        }
        for other in ["\(name).attention.value_length", "\(name).rope.dimension_count"] {
            guard let length = try fields.optionalInteger(other, Limits.headDim), length != size else { continue }
            throw fields.fault(other, "is \(length), and only the head size \(size) is known", code: .unsupported)
        }
        return size
    }

    private static func vocabularySize(
        _ fields: GGUFFields, _ tensors: GGUFTensorTable
    ) throws(ServingError) -> Int {
        guard let embedding = tensors["token_embd.weight"], let rows = embedding.shape.first else {
            throw fields.fault("token_embd.weight", "is missing", code: .missingField)
        }
        guard ModelConfigurationLimits.vocabulary.contains(rows) else {
            throw fields.fault(
                "token_embd.weight", "has \(rows) rows, more than \(ModelConfigurationLimits.vocabulary.upperBound)")
        }
        return rows
    }

    private static func slidingWindow(
        _ fields: GGUFFields, _ name: String, context: Int
    ) throws(ServingError) -> Int? {
        let window = try fields.optionalInteger("\(name).attention.sliding_window", 0...Int(Int32.max)) ?? 0
        return window > 0 && window < context ? window : nil
    }

    /// What would change the model's output and is not computed.
    private static func refuseUnknownFeatures(_ fields: GGUFFields, _ name: String) throws(ServingError) {
        let key = "\(name).expert_count"
        if let experts = try fields.optionalInteger(key, 0...Int(Int32.max)), experts > 0 {
            throw fields.fault(key, "is \(experts), and only models without experts are known", code: .unsupported)
        }
    }
}

/// Tensors of all files by name.
struct GGUFTensorTable {
    private var table: [String: (tensor: GGUFTensor, file: MappedFile)] = [:]

    init(_ file: GGUFFile) {
        for shard in file.shards {
            for tensor in shard.header.tensors { table[tensor.name] = (tensor, shard.file) }
        }
    }

    func has(_ name: String) -> Bool { table[name] != nil }

    subscript(name: String) -> GGUFTensor? { table[name]?.tensor }

    /// The values of a vector of f32; nil where it is missing or something else.
    func floats(_ name: String) -> [Float]? {
        guard let (tensor, file) = table[name], tensor.type == .f32, tensor.shape.count == 1 else { return nil }
        return stride(from: tensor.range.lowerBound, to: tensor.range.upperBound, by: 4).map {
            Float(bitPattern: UInt32(littleEndian: file.bytes.loadUnaligned(fromByteOffset: $0, as: UInt32.self)))
        }
    }
}

/// Rotary positions in GGUF's keys.
struct GGUFRope {
    var theta: Double
    var scaling: ModelSpec.RopeScaling
    var contextTokensMax: Int

    init(
        _ fields: GGUFFields, _ name: String, headDim: Int, _ tensors: GGUFTensorTable
    ) throws(ServingError) {
        typealias Limits = ModelConfigurationLimits
        theta = try fields.optionalNumber("\(name).rope.freq_base", Limits.ropeTheta) ?? 10_000
        let context = try fields.integer("\(name).context_length", Limits.context)
        scaling = try Self.scaling(fields, name, context: context)
        contextTokensMax = context
        if case .yarn(let factor, let original, _, _, _, _, _) = scaling {
            contextTokensMax = max(context, Int(min(Double(original) * factor, Double(Limits.context.upperBound))))
        }
        guard tensors.has("rope_freqs.weight") else { return }
        guard case .none = scaling else {
            throw fields.fault(
                "rope_freqs.weight", "is there beside \(name).rope.scaling, and only one of both is known",
                code: .unsupported)
        }
        guard let factors = tensors.floats("rope_freqs.weight"),
            let known = Self.llama3(factors: factors, theta: theta, headDim: headDim)
        else {
            throw fields.fault(
                "rope_freqs.weight", "holds no factors of Llama 3's scaling (low 1, high 4, original context 8192)",
                code: .unsupported)
        }
        scaling = known
    }

    private static func scaling(
        _ fields: GGUFFields, _ name: String, context: Int
    ) throws(ServingError) -> ModelSpec.RopeScaling {
        let prefix = "\(name).rope.scaling."
        let older = try fields.optionalNumber("\(name).rope.scale_linear", ModelConfigurationLimits.ropeFactor)
        let factor = try fields.optionalNumber(prefix + "factor", ModelConfigurationLimits.ropeFactor) ?? older ?? 1
        let type = try fields.text(prefix + "type") ?? (factor == 1 ? "none" : "linear")
        switch type {
        case "none": return .none
        case "linear": return factor == 1 ? .none : .linear(factor: factor)
        case "yarn": return try yarn(fields, prefix, factor: factor, context: context)
        default:
            throw fields.fault(
                prefix + "type", "is \(shown(type)), and known are none, linear, yarn", code: .unsupported)
        }
    }

    private static func yarn(
        _ fields: GGUFFields, _ prefix: String, factor: Double, context: Int
    ) throws(ServingError) -> ModelSpec.RopeScaling {
        let original = try fields.optionalInteger(prefix + "original_context_length", ModelConfigurationLimits.context)
        // ggml multiplies its own factor with YaRN's; Hugging Face's replaces YaRN's.
        let own = try fields.optionalNumber(prefix + "attn_factor", 1e-3...1e3)
        let fast = try fields.optionalNumber(prefix + "yarn_beta_fast", 1e-3...1e6) ?? 32
        let slow = try fields.optionalNumber(prefix + "yarn_beta_slow", 1e-3...1e6) ?? 1
        guard fast >= slow else { throw fields.fault(prefix + "yarn_beta_fast", "is \(fast), below \(slow)") }
        return .yarn(
            factor: factor, originalContext: original ?? context, betaFast: fast, betaSlow: slow,
            attentionFactor: own.flatMap { $0 == 1 ? nil : $0 * (0.1 * log(factor) + 1) }, mscale: nil,
            mscaleAllDim: nil)
    }

    /// GGUF files of Llama 3.1 and later hold, instead of the scaling's parameters, what they come to:
    /// the divisor of every frequency. All such models have the same parameters but for the factor,
    /// which is the largest divisor. nil where the divisors do not come from them.
    static func llama3(factors: [Float], theta: Double, headDim: Int) -> ModelSpec.RopeScaling? {
        guard factors.count == headDim / 2, let factor = factors.max(), factor.isFinite, factor >= 1 else { return nil }
        if factors.allSatisfy({ $0 == 1 }) { return ModelSpec.RopeScaling.none }
        let (low, high, context) = (1.0, 4.0, 8192.0)
        let expected = Self.factors(
            factor: Double(factor), low: low, high: high, context: context, theta: theta, headDim: headDim)
        for (given, expected) in zip(factors, expected) {
            guard abs(Double(given) - expected) <= 1e-3 * expected else { return nil }
        }
        return .llama3(
            factor: Double(factor), lowFreqFactor: low, highFreqFactor: high, originalContext: Int(context))
    }

    /// The divisors that Llama 3's scaling comes to, one for each frequency.
    static func factors(
        factor: Double, low: Double, high: Double, context: Double, theta: Double, headDim: Int
    ) -> [Double] {
        (0..<headDim / 2).map { index in
            let wavelength = 2 * Double.pi * pow(theta, Double(2 * index) / Double(headDim))
            let smooth = min(max((context / wavelength - low) / (high - low), 0), 1)
            return 1 / ((1 - smooth) / factor + smooth)
        }
    }
}
