import ChatTemplate
import ServingTypes
import Tokenization

/// Where the front door listens, what it serves, and what it endures.
public struct FrontDoorConfiguration: Sendable {
    public var host = "127.0.0.1"
    /// 0 takes any free port; `FrontDoor.start` tells which.
    public var port = 8000
    /// A second listener on a Unix socket, for proxies on the same host.
    public var unixPath: String?
    /// Present where the port speaks TLS (ALPN h2 and http/1.1).
    public var tls: TLSFiles?
    public var limits = FrontDoorLimits()
    /// Empty serves everyone: tenant `default`, or what `x-tandem-tenant` names.
    public var keys: [APIKey] = []
    public var model: ServedModel
    /// What `/version` and the `server` header say.
    public var version: String

    public init(model: ServedModel, version: String) {
        self.model = model
        self.version = version
    }
}

/// PEM files.
public struct TLSFiles: Hashable, Sendable {
    public var certificateChain: String
    public var privateKey: String

    public init(certificateChain: String, privateKey: String) {
        self.certificateChain = certificateChain
        self.privateKey = privateKey
    }
}

/// Budgets against slow, greedy and hostile clients (reliability.md §3.1). Sizes are in bytes.
public struct FrontDoorLimits: Hashable, Sendable {
    public var connectionsMax = 4096
    public var connectionsPerAddressMax = 256
    /// From the first byte of a request (or the accept) to the end of its header fields.
    public var headTime = TimeSpan.seconds(10)
    /// After this long a body must have come at `bodyBytesPerSecondMin` on average.
    public var bodyGrace = TimeSpan.seconds(10)
    public var bodyBytesPerSecondMin = 1024
    /// Between two requests on one connection.
    public var idleTime = TimeSpan.seconds(120)
    /// A response of which nothing leaves for this long is given up.
    public var stallTime = TimeSpan.seconds(30)
    /// Silence on an event stream after which a comment is sent.
    public var pingEvery = TimeSpan.seconds(15)
    public var bodyBytesMax = 8 << 20
    public var requestLineBytesMax = 8 << 10
    public var headBytesMax = 16 << 10
    public var headFieldBytesMax = 8 << 10
    public var headFieldsMax = 100
    /// Bytes of one response handed to the socket and not yet taken by it.
    public var streamBytesInFlightMax = 64 << 10
    /// Bytes of one response rendered and waiting; above it a job's tokens wait unrendered.
    public var streamBytesBufferedMax = 1 << 20
    public var messagesMax = 4096
    public var jsonDepthMax = 64
    /// Members of all objects and arrays of one body together.
    public var jsonMembersMax = 1 << 20
    /// A longer body is parsed off the event loop.
    public var inlineBodyBytesMax = 256 << 10
    /// Prompts times `n` of one request.
    public var choicesPerRequestMax = 64
    /// Text longer than this is tokenised off the event loop.
    public var inlineTextBytesMax = 32 << 10
    public var jobsListedMax = 200
    /// The longest window that shares are told over.
    public var tenantWindowSecondsMax = 120

    public init() {}
}

/// One key of a tenant. Only its SHA-256 is kept.
public struct APIKey: Hashable, Sendable {
    /// Shown in logs in the key's stead.
    public var name: String
    /// 32 bytes.
    public var sha256: [UInt8]
    public var tenant: TenantID
    public var scopes: Set<Scope>

    public enum Scope: String, Hashable, Sendable, CaseIterable {
        case infer
        case admin
        case metrics
    }

    /// Nil where `sha256` is not 64 hexadecimal digits.
    public init?(name: String, sha256: String, tenant: TenantID, scopes: Set<Scope> = [.infer]) {
        let digits = Array(sha256.utf8)
        guard digits.count == 64 else { return nil }
        var bytes: [UInt8] = []
        for at in stride(from: 0, to: 64, by: 2) {
            guard let byte = UInt8(String(decoding: digits[at...at + 1], as: UTF8.self), radix: 16) else { return nil }
            bytes.append(byte)
        }
        self.name = name
        self.sha256 = bytes
        self.tenant = tenant
        self.scopes = scopes
    }

    public init(name: String, plain: String, tenant: TenantID, scopes: Set<Scope> = [.infer]) {
        self.name = name
        self.sha256 = Digest.sha256(Array(plain.utf8))
        self.tenant = tenant
        self.scopes = scopes
    }
}

/// The model as clients see it.
public struct ServedModel: Sendable {
    public var name: String
    /// Other names that requests may use for it.
    public var aliases: [String] = []
    /// Prompt and output tokens together.
    public var contextTokensMax: Int
    public var vocabularySize: Int
    public var tokenizer: Tokenizer
    /// Nil where the model comes without one; chat is then refused.
    public var chatTemplate: ChatTemplate?
    /// As the template's variables `bos_token` and `eos_token` want them.
    public var bosToken: String?
    public var eosToken: String?
    /// Every token that ends an output unless the request says `ignore_eos`.
    public var endTokens: [TokenID]
    /// Seconds since 1970, for `/v1/models`.
    public var created: Int64 = 0
    public var defaults = GenerationDefaults()

    public init(
        name: String, contextTokensMax: Int, vocabularySize: Int, tokenizer: Tokenizer,
        chatTemplate: ChatTemplate? = nil, endTokens: [TokenID] = []
    ) {
        self.name = name
        self.contextTokensMax = contextTokensMax
        self.vocabularySize = vocabularySize
        self.tokenizer = tokenizer
        self.chatTemplate = chatTemplate
        self.endTokens = endTokens
    }

    func answers(to name: String) -> Bool { name == self.name || aliases.contains(name) }
}

/// What generation_config.json says where a request says nothing.
public struct GenerationDefaults: Hashable, Sendable {
    public var temperature: Float = 1
    public var topP: Float = 1
    public var topK = 0
    public var minP: Float = 0
    public var repetitionPenalty: Float = 1
    /// Output tokens of a completion that names no `max_tokens`; a chat takes what the context leaves.
    public var completionTokens = 16

    public init() {}
}
