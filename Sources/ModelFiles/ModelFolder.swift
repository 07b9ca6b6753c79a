import BoundedJSON
import ChatTemplate
import ModelRuntime
import ServingTypes
import Tokenization

/// Weights in files: what a folder or a GGUF file has for the engine.
public protocol StoredWeights: TensorSource {
    /// Bytes of all files.
    var byteCount: Int { get }

    /// Makes every tensor ready that is not so already, with `progress` called after each with (bytes
    /// of the files so far, bytes in all). Without it tensors are made ready when first asked for.
    func load(progress: ((_ loadedBytes: Int, _ totalBytes: Int) -> Void)?) throws(ServingError)
}

extension StoredWeights {
    /// Nothing to do for mapped tensors.
    public func load(progress: ((_ loadedBytes: Int, _ totalBytes: Int) -> Void)?) throws(ServingError) {}
}

/// What an engine needs of a Hugging Face folder (config.json and the weights) or of a GGUF file.
/// Workers open this and leave the tokenizer, which they never use, unread.
public struct EngineFolder: Sendable {
    public let spec: ModelSpec
    public let weights: any StoredWeights
    /// The folder's or the file's name.
    public let modelName: String
    let contents: Contents
    /// What quantised tensors expand to: it decides the bits of every page.
    private let expandedType: ElementType

    /// What the path led to.
    enum Contents: Sendable {
        case folder(HuggingFaceFolder)
        case gguf(GGUFFile)
    }

    /// - path: a Hugging Face folder, or a file that ends in `.gguf` (of several, the first).
    /// - expandedType: what quantised tensors of a GGUF file expand to.
    public init(path: String, expandedType: ElementType = .f32) throws(ServingError) {
        self.expandedType = expandedType
        if GGUFFile.isNamed(by: path) {
            let file = try GGUFFile(path: path)
            let configuration = try GGUFConfiguration(file)
            spec = configuration.spec
            weights = try GGUFWeights(file, configuration, expandedType: expandedType)
            modelName = file.modelName
            contents = .gguf(file)
            return
        }
        let folder = try HuggingFaceFolder(path: path)
        spec = folder.configuration.spec
        weights = folder.weights
        modelName = folder.reader.name
        contents = .folder(folder)
    }

    /// Fingerprint of the configuration, of every tensor's name, type and shape, and of sampled
    /// weights: two models with different digests never exchange pages. No security hash (see `Fingerprint`).
    public var digest: PageID {
        var fingerprint = Fingerprint()
        switch contents {
        case .folder(let folder):
            fingerprint.add("tandem model 1")
            fingerprint.add(folder.configBytes)
            folder.weights.add(to: &fingerprint)
        case .gguf(let file):
            fingerprint.add("tandem gguf 1")
            fingerprint.add(expandedType.rawValue)
            file.add(to: &fingerprint)
        }
        return fingerprint.finished()
    }
}

/// A folder's configuration and weights.
struct HuggingFaceFolder: Sendable {
    let reader: FolderReader
    let configuration: ModelConfiguration
    let configBytes: [UInt8]
    let weights: SafetensorsWeights

    init(path: String) throws(ServingError) {
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
        configBytes = bytes
    }
}

/// A Hugging Face model folder or a GGUF file, opened and checked. Every fault is one sentence that
/// names the file, the field, the value and the limit.
public struct ModelFolder: Sendable {
    public let spec: ModelSpec
    public let weights: any StoredWeights
    public let generation: GenerationDefaults
    public let tokenizer: Tokenizer
    /// From chat_template.jinja, else from tokenizer_config.json, or from the GGUF file's
    /// `tokenizer.chat_template`; nil where there is none.
    public let chatTemplate: ChatTemplate?
    /// The template's source, for those who show it.
    public let chatTemplateSource: String?
    /// Text of the begin token, for the template's variables.
    public let bosToken: String?
    /// Text of the end token, for the template's variables.
    public let eosToken: String?
    /// The folder's or the file's name.
    public let modelName: String
    /// See `EngineFolder.digest`.
    public let digest: PageID

    static let tokenizerFile = "tokenizer.json"
    static let tokenizerConfigFile = "tokenizer_config.json"
    static let templateFile = "chat_template.jinja"

    /// - path: as `EngineFolder` takes it.
    public init(path: String) throws(ServingError) {
        let engine = try EngineFolder(path: path)
        let texts: TextParts
        switch engine.contents {
        case .folder(let folder): texts = try TextParts(folder)
        case .gguf(let file): texts = try TextParts(file, engine.spec)
        }
        tokenizer = texts.tokenizer
        generation = texts.generation
        chatTemplateSource = texts.template?.source
        chatTemplate = try texts.template.map { template throws(ServingError) in
            try Self.named(template.file) { () throws(ServingError) in try ChatTemplate(source: template.source) }
        }
        bosToken = texts.bosToken
        eosToken = texts.eosToken
        spec = engine.spec
        weights = engine.weights
        modelName = engine.modelName
        digest = engine.digest
    }

    /// What turns text into tokens and back, wherever it was read.
    private struct TextParts {
        var tokenizer: Tokenizer
        var generation: GenerationDefaults
        /// The chat template and the file or key that it is from.
        var template: (source: String, file: String)?
        var bosToken: String?
        var eosToken: String?

        init(_ folder: HuggingFaceFolder) throws(ServingError) {
            let reader = folder.reader
            let config = try reader.json(tokenizerConfigFile, max: ModelFileLimits.templateBytesMax)
            tokenizer = try ModelFolder.tokenizer(reader, config, folder.configuration.spec)
            let names = try config.map { json throws(ServingError) in
                try named(tokenizerConfigFile) { () throws(ServingError) in try TokenizerConfiguration(json) }
            }
            bosToken = names?.bosToken
            eosToken = names?.eosToken
            generation = try GenerationDefaults(
                reader.json(GenerationDefaults.file, max: ModelFileLimits.configBytesMax), folder.configuration,
                tokenizerEnd: tokenizer.eosToken)
            if let written = try reader.text(templateFile, max: ModelFileLimits.templateBytesMax) {
                template = (written, templateFile)
            } else if let written = names?.chatTemplate {
                template = (written, tokenizerConfigFile)
            }
        }

        init(_ file: GGUFFile, _ spec: ModelSpec) throws(ServingError) {
            let fields = file.fields
            let written = try GGUFTokenizer(fields)
            let tokenizer = try named(file.name) { () throws(ServingError) in try Tokenizer(written.model) }
            guard tokenizer.vocabularySize <= spec.vocabularySize else {
                throw fields.fault(
                    "tokenizer.ggml.tokens",
                    "has ids up to \(tokenizer.vocabularySize - 1), and the embeddings have \(spec.vocabularySize) rows"
                )
            }
            self.tokenizer = tokenizer
            bosToken = written.text(written.model.bosToken)
            eosToken = written.text(written.model.eosToken)
            generation = try GenerationDefaults(
                fields, endTokens: written.endTokens(), beginToken: tokenizer.bosToken)
            let key = "tokenizer.chat_template"
            template = try fields.text(key).map { ($0, file.name) }
        }
    }

    fileprivate static func tokenizer(
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
    fileprivate static func named<T>(
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
