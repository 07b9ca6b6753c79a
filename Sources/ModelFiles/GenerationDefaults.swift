import BoundedJSON
import ServingTypes

/// What generation_config.json recommends for requests that say nothing, and the tokens that end an
/// output. nil where the file does not say.
public struct GenerationDefaults: Hashable, Sendable {
    /// Whether the model's makers sample at all; false recommends greedy decoding.
    public var doSample: Bool?
    public var temperature: Float?
    /// 0 keeps all tokens.
    public var topK: Int?
    public var topP: Float?
    public var minP: Float?
    public var repetitionPenalty: Float?
    /// Output tokens.
    public var maxNewTokens: Int?
    /// Every token that ends an output: generation_config.json's, then config.json's, then the
    /// tokenizer's, without repeats.
    public var endTokens: [TokenID] = []
    public var beginToken: TokenID?

    static let file = "generation_config.json"

    public init() {}

    /// - json: generation_config.json; nil where the folder has none.
    init(_ json: JSONValue?, _ configuration: ModelConfiguration, tokenizerEnd: TokenID?) throws(ServingError) {
        if let json { try read(JSONFields(json, file: Self.file), vocabulary: configuration.spec.vocabularySize) }
        for token in configuration.endTokens + [tokenizerEnd].compactMap({ $0 }) where !endTokens.contains(token) {
            endTokens.append(token)
        }
        if beginToken == nil { beginToken = configuration.beginToken }
    }

    /// From a GGUF file's `general.sampling` keys and its tokenizer's end tokens.
    init(_ fields: GGUFFields, endTokens: [TokenID], beginToken: TokenID?) throws(ServingError) {
        let prefix = "general.sampling."
        temperature = try fields.optionalNumber(prefix + "temp", 0...Double(SamplingLimits.temperatureMax)).map {
            Float($0)
        }
        topK = try fields.optionalInteger(prefix + "top_k", 0...Int(Int32.max))
        topP = try fields.optionalNumber(prefix + "top_p", 1e-6...1).map { Float($0) }
        minP = try fields.optionalNumber(prefix + "min_p", 0...1).map { Float($0) }
        repetitionPenalty = try fields.optionalNumber(prefix + "penalty_repeat", 1e-3...1e3).map { Float($0) }
        self.endTokens = endTokens
        self.beginToken = beginToken
    }

    private mutating func read(_ fields: JSONFields, vocabulary: Int) throws(ServingError) {
        doSample = try fields.flag("do_sample")
        temperature = try fields.optionalNumber("temperature", 0...Double(SamplingLimits.temperatureMax)).map {
            Float($0)
        }
        topK = try fields.optionalInteger("top_k", 0...Int(Int32.max))
        topP = try fields.optionalNumber("top_p", 1e-6...1).map { Float($0) }
        minP = try fields.optionalNumber("min_p", 0...1).map { Float($0) }
        repetitionPenalty = try fields.optionalNumber("repetition_penalty", 1e-3...1e3).map { Float($0) }
        maxNewTokens = try fields.optionalInteger("max_new_tokens", 1...Int(Int32.max))
        endTokens = try fields.tokens("eos_token_id", below: vocabulary)
        beginToken = try fields.tokens("bos_token_id", below: vocabulary).first
    }
}
