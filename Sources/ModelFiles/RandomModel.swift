import BoundedJSON
import Glibc
import ModelRuntime
import ServingTypes

/// Writes a Hugging Face folder with random bf16 weights and a small byte-level tokenizer: a model of
/// any shape for benchmarks and tests, the same bytes for the same shape and seed.
public enum RandomModel {
    /// Fills `folder` (made if missing) with config.json, model.safetensors, tokenizer.json,
    /// tokenizer_config.json and generation_config.json, and returns the weights' size in bytes.
    /// Weights are written in slices of a few MiB, in less than a second of CPU time per GB. Throws for a shape that
    /// Hugging Face's config.json cannot express, and for a vocabulary too small for all bytes.
    @discardableResult
    public static func write(folder: String, spec: ModelSpec, seed: UInt64) throws(ServingError) -> Int {
        let tokenizer = try RandomTokenizer(vocabularySize: spec.vocabularySize)
        let config = configJSON(spec, endToken: tokenizer.endToken)
        let understood = try ModelConfiguration(config).spec
        guard understood == spec else {
            throw ServingError(
                .unsupported,
                "spec: config.json of a \(spec.family.rawValue) cannot express \(spec); it reads \(understood)",
                field: "spec", blast: .process)
        }
        if mkdir(folder, 0o755) != 0, errno != EEXIST {
            throw fileFault(folder, "the folder cannot be made (\(systemError()))")
        }
        try writeJSON(config, folder, ModelConfiguration.file)
        try writeJSON(tokenizer.json, folder, ModelFolder.tokenizerFile)
        try writeJSON(tokenizer.configJSON, folder, ModelFolder.tokenizerConfigFile)
        try writeJSON(
            ["eos_token_id": .integer(Int64(tokenizer.endToken)), "do_sample": true, "temperature": 1.0], folder,
            GenerationDefaults.file)
        return try writeWeights(spec, folder, seed: seed)
    }

    /// Every tensor that a model of this shape has, with Hugging Face's names, in file order.
    public static func tensors(of spec: ModelSpec) -> [(name: String, shape: [Int])] {
        let (hidden, ffn) = (spec.hiddenSize, spec.ffnSize)
        let queries = spec.headCount * spec.headDim
        let keys = spec.kvHeadCount * spec.headDim
        var list: [(name: String, shape: [Int])] = [("model.embed_tokens.weight", [spec.vocabularySize, hidden])]
        for layer in 0..<spec.layerCount {
            func add(_ name: String, _ shape: [Int], when wanted: Bool = true) {
                if wanted { list.append(("model.layers.\(layer).\(name)", shape)) }
            }
            func project(_ name: String, _ rows: Int, _ columns: Int, bias: Bool) {
                add("\(name).weight", [rows, columns])
                add("\(name).bias", [rows], when: bias)
            }
            add("input_layernorm.weight", [hidden])
            project("self_attn.q_proj", queries, hidden, bias: spec.attentionBias)
            project("self_attn.k_proj", keys, hidden, bias: spec.attentionBias)
            project("self_attn.v_proj", keys, hidden, bias: spec.attentionBias)
            project("self_attn.o_proj", hidden, queries, bias: spec.outputBias)
            add("self_attn.q_norm.weight", [spec.headDim], when: spec.qkNorm)
            add("self_attn.k_norm.weight", [spec.headDim], when: spec.qkNorm)
            add("post_attention_layernorm.weight", [hidden])
            project("mlp.gate_proj", ffn, hidden, bias: spec.mlpBias)
            project("mlp.up_proj", ffn, hidden, bias: spec.mlpBias)
            project("mlp.down_proj", hidden, ffn, bias: spec.mlpBias)
        }
        list.append(("model.norm.weight", [hidden]))
        if !spec.tiedEmbeddings { list.append(("lm_head.weight", [spec.vocabularySize, hidden])) }
        return list
    }

    // MARK: config.json

    static func configJSON(_ spec: ModelSpec, endToken: UInt32) -> JSONValue {
        let architecture = Architecture.known.first { $0.family == spec.family }
        var config: JSONObject = [
            "architectures": [.string(architecture?.name ?? "")],
            "model_type": .string(architecture?.modelType ?? ""),
            "hidden_size": .integer(Int64(spec.hiddenSize)),
            "num_hidden_layers": .integer(Int64(spec.layerCount)),
            "num_attention_heads": .integer(Int64(spec.headCount)),
            "num_key_value_heads": .integer(Int64(spec.kvHeadCount)),
            "head_dim": .integer(Int64(spec.headDim)),
            "intermediate_size": .integer(Int64(spec.ffnSize)),
            "vocab_size": .integer(Int64(spec.vocabularySize)),
            "max_position_embeddings": .integer(Int64(spec.contextTokensMax)),
            "rms_norm_eps": .number(Double(spec.rmsNormEpsilon)),
            "rope_theta": .number(spec.ropeTheta),
            "hidden_act": "silu",
            "attention_bias": .bool(spec.attentionBias),
            "mlp_bias": .bool(spec.mlpBias),
            "tie_word_embeddings": .bool(spec.tiedEmbeddings),
            "eos_token_id": .integer(Int64(endToken)),
            "torch_dtype": "bfloat16",
        ]
        if let window = spec.slidingWindow {
            config["sliding_window"] = .integer(Int64(window))
            config["use_sliding_window"] = true
            config["max_window_layers"] = 0
        } else {
            config["sliding_window"] = .null
        }
        config["rope_scaling"] = ropeJSON(spec.ropeScaling)
        return .object(config)
    }

    private static func ropeJSON(_ scaling: ModelSpec.RopeScaling) -> JSONValue? {
        switch scaling {
        case .none: return nil
        case .linear(let factor): return ["rope_type": "linear", "factor": .number(factor)]
        case .llama3(let factor, let low, let high, let original):
            return [
                "rope_type": "llama3", "factor": .number(factor), "low_freq_factor": .number(low),
                "high_freq_factor": .number(high), "original_max_position_embeddings": .integer(Int64(original)),
            ]
        case .yarn(let factor, let original, let fast, let slow, let attention, let mscale, let mscaleAllDim):
            var json: JSONObject = [
                "rope_type": "yarn", "factor": .number(factor),
                "original_max_position_embeddings": .integer(Int64(original)), "beta_fast": .number(fast),
                "beta_slow": .number(slow),
            ]
            json["attention_factor"] = attention.map { .number($0) }
            json["mscale"] = mscale.map { .number($0) }
            json["mscale_all_dim"] = mscaleAllDim.map { .number($0) }
            return .object(json)
        }
    }

    // MARK: writing

    private static func writeJSON(_ json: JSONValue, _ folder: String, _ name: String) throws(ServingError) {
        let file = try OutputFile(folder: folder, name: name)
        try file.write([UInt8](JSON.text(json, pretty: true).utf8) + [UInt8(ascii: "\n")])
        try file.finish()
    }

    private static func writeWeights(_ spec: ModelSpec, _ folder: String, seed: UInt64) throws(ServingError) -> Int {
        let list = tensors(of: spec)
        var header: JSONObject = ["__metadata__": ["format": "pt"]]
        var offset = 0
        for (name, shape) in list {
            let bytes = shape.reduce(2, *)
            header[name] = [
                "dtype": "BF16", "shape": .array(shape.map { .integer(Int64($0)) }),
                "data_offsets": [.integer(Int64(offset)), .integer(Int64(offset + bytes))],
            ]
            offset += bytes
        }
        var text = [UInt8](JSON.text(.object(header)).utf8)
        // Spaces up to a multiple of 64, so that tensors lie on cache lines.
        text += [UInt8](repeating: UInt8(ascii: " "), count: (64 - (text.count + 8) % 64) % 64)
        let file = try OutputFile(folder: folder, name: SafetensorsWeights.singleFile)
        try file.write(withUnsafeBytes(of: UInt64(text.count).littleEndian) { [UInt8]($0) } + text)
        for (place, tensor) in list.enumerated() {
            try writeTensor(tensor, file, seed: seed &+ UInt64(place) &* 0x9E37_79B9_7F4A_7C15)
        }
        try file.finish()
        return offset
    }

    private static func writeTensor(
        _ tensor: (name: String, shape: [Int]), _ file: OutputFile, seed: UInt64
    ) throws(ServingError) {
        let count = tensor.shape.reduce(1, *)
        var source: Bfloat16Source
        if tensor.name.hasSuffix("norm.weight") {
            source = Bfloat16Source(constant: 1)
        } else if tensor.name.hasSuffix(".bias") {
            source = Bfloat16Source(deviation: 0.02, seed: seed)
        } else {
            // Rows of unit length on average: activations keep their size through the layers.
            source = Bfloat16Source(deviation: 1 / Double(tensor.shape.last ?? 1).squareRoot(), seed: seed)
        }
        var left = count
        while left > 0 {
            let slice = min(left, 2 << 20)
            try file.write(source.next(slice))
            left -= slice
        }
    }
}

/// Random bf16 numbers of a normal distribution, drawn from a table of 4096 of them.
private struct Bfloat16Source {
    private var table: [UInt16]
    private var state: UInt64

    private static let tableBits: UInt64 = 12

    init(constant: Float) {
        table = [UInt16](repeating: Self.bits(constant), count: 1 << Int(Self.tableBits))
        state = 1
    }

    init(deviation: Double, seed: UInt64) {
        state = seed
        table = []
        table.reserveCapacity(1 << Int(Self.tableBits))
        for _ in 0..<(1 << Int(Self.tableBits)) {
            // Box and Muller.
            let radius = (-2 * log(Double(random() >> 11 &+ 1) / 9_007_199_254_740_992)).squareRoot()
            let angle = 2 * Double.pi * Double(random() >> 11) / 9_007_199_254_740_992
            table.append(Self.bits(Float(deviation * radius * cos(angle))))
        }
    }

    /// Little-endian bytes of the next numbers.
    mutating func next(_ count: Int) -> [UInt8] {
        [UInt8](unsafeUninitializedCapacity: count * 2) { buffer, filled in
            let numbers = UnsafeMutableRawBufferPointer(buffer)
            table.withUnsafeBufferPointer { table in
                var place = 0
                while place < count {
                    var bits = random()
                    // Five numbers of twelve bits each.
                    let end = min(count, place + 5)
                    while place < end {
                        let index = Int(bits & (1 << Self.tableBits - 1))
                        numbers.storeBytes(of: table[index].littleEndian, toByteOffset: place * 2, as: UInt16.self)
                        bits >>= Self.tableBits
                        place += 1
                    }
                }
            }
            filled = count * 2
        }
    }

    /// SplitMix64.
    private mutating func random() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// Rounded to nearest; the inputs are finite.
    private static func bits(_ value: Float) -> UInt16 {
        let bits = value.bitPattern
        return UInt16(truncatingIfNeeded: (bits &+ 0x7FFF &+ (bits >> 16 & 1)) >> 16)
    }
}
