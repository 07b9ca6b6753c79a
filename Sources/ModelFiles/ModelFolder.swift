import BoundedJSON
import ChatTemplate
import ModelRuntime
import ServingTypes
import Tokenization

/// What an engine needs of a Hugging Face folder: config.json and the weights. Workers open this and
/// leave the tokenizer, which they never use, unread.
public struct EngineFolder: Sendable {
    public let spec: ModelSpec
    public let weights: SafetensorsWeights
    /// The folder's name.
    public let modelName: String
    let reader: FolderReader
    let configuration: ModelConfiguration
    private let configBytes: [UInt8]

    public init(path: String) throws(ServingError) {
        reader = try FolderReader(path: path)
        guard let bytes = try reader.bytes(ModelConfiguration.file, max: ModelFileLimits.configBytesMax) else {
            throw fileFault(path, "the folder holds no \(ModelConfiguration.file)", code: .notFound)
        }
        let json: JSONValue
        do {
            json = try JSON.parse(bytes)
        } catch {
            throw fileFault(ModelConfiguration.file, "is no valid JSON (\(error))")
        }
        var configuration = try ModelConfiguration(json)
        weights = try SafetensorsWeights(reader)
        if !configuration.saysTiedEmbeddings, try weights.tensor(named: "lm_head.weight") == nil {
            configuration.spec.tiedEmbeddings = true
        }
        self.configuration = configuration
        spec = configuration.spec
        modelName = reader.name
        configBytes = bytes
    }

    /// Fingerprint of config.json, of every tensor's name, type and shape, and of sampled weights: two
    /// folders with different digests never exchange pages. No security hash (see `Fingerprint`).
    public var digest: PageID {
        var fingerprint = Fingerprint()
        fingerprint.add("tandem model 1")
        fingerprint.add(configBytes)
        weights.add(to: &fingerprint)
        return fingerprint.finished()
    }
}

/// A Hugging Face model folder, opened and checked. Every fault is one sentence that names the file,
/// the field, the value and the limit.
public struct ModelFolder: Sendable {
    public let spec: ModelSpec
    public let weights: SafetensorsWeights
    public let generation: GenerationDefaults
    public let tokenizer: Tokenizer
    /// From chat_template.jinja, else from tokenizer_config.json; nil where there is neither.
    public let chatTemplate: ChatTemplate?
    /// The template's source, for those who show it.
    public let chatTemplateSource: String?
    /// Text of the begin token, for the template's variables.
    public let bosToken: String?
    /// Text of the end token, for the template's variables.
    public let eosToken: String?
    /// The folder's name.
    public let modelName: String
    /// See `EngineFolder.digest`.
    public let digest: PageID

    static let tokenizerFile = "tokenizer.json"
    static let tokenizerConfigFile = "tokenizer_config.json"
    static let templateFile = "chat_template.jinja"

    public init(path: String) throws(ServingError) {
        let engine = try EngineFolder(path: path)
        let reader = engine.reader
        let config = try reader.json(Self.tokenizerConfigFile, max: ModelFileLimits.templateBytesMax)
        tokenizer = try Self.tokenizer(reader, config, engine.spec)
        let names = try config.map { json throws(ServingError) in
            try Self.named(Self.tokenizerConfigFile) { () throws(ServingError) in try TokenizerConfiguration(json) }
        }
        bosToken = names?.bosToken
        eosToken = names?.eosToken
        generation = try GenerationDefaults(
            reader.json(GenerationDefaults.file, max: ModelFileLimits.configBytesMax), engine.configuration,
            tokenizerEnd: tokenizer.eosToken)
        let written = try reader.text(Self.templateFile, max: ModelFileLimits.templateBytesMax)
        let source = written ?? names?.chatTemplate
        let sourceFile = written == nil ? Self.tokenizerConfigFile : Self.templateFile
        chatTemplateSource = source
        chatTemplate = try source.map { source throws(ServingError) in
            try Self.named(sourceFile) { () throws(ServingError) in try ChatTemplate(source: source) }
        }
        spec = engine.spec
        weights = engine.weights
        modelName = engine.modelName
        digest = engine.digest
    }

    private static func tokenizer(
        _ reader: FolderReader, _ config: JSONValue?, _ spec: ModelSpec
    ) throws(ServingError) -> Tokenizer {
        guard let json = try reader.json(tokenizerFile, max: ModelFileLimits.tokenizerBytesMax) else {
            throw fileFault(reader.path, "the folder holds no \(tokenizerFile)", code: .notFound)
        }
        let tokenizer = try named(tokenizerFile) { () throws(ServingError) in
            try Tokenizer.parse(tokenizerJSON: json, config: config)
        }
        // Ids past the model's table would be read outside it. (A larger table is padding.)
        guard tokenizer.vocabularySize <= spec.vocabularySize else {
            throw fileFault(
                tokenizerFile,
                "has token ids up to \(tokenizer.vocabularySize - 1), and config.json's vocab_size is "
                    + "\(spec.vocabularySize)",
                field: "vocab_size")
        }
        return tokenizer
    }

    /// Puts the file's name before a fault of a part that knows only the content.
    private static func named<T>(
        _ file: String, _ body: () throws(ServingError) -> T
    ) throws(ServingError) -> T {
        do {
            return try body()
        } catch {
            var fault = error
            fault.blast = .process
            if !fault.message.hasPrefix(file) { fault.message = "\(file): \(fault.message)" }
            throw fault
        }
    }
}
