import BoundedJSON
import ServingTypes

/// What tokenizer_config.json adds to tokenizer.json: named special tokens and the chat templates.
public struct TokenizerConfiguration: Sendable {
    /// One of several chat templates (`default`, `tool_use`).
    public struct NamedTemplate: Sendable, Hashable {
        public var name: String
        public var source: String
    }

    public var bosToken: String?
    public var eosToken: String?
    public var padToken: String?
    public var unkToken: String?
    /// nil where the file does not say.
    public var addsBOS: Bool?
    public var addsEOS: Bool?
    /// The template to use where none is named.
    public var chatTemplate: String?
    public var namedTemplates: [NamedTemplate] = []
    /// Tokens that the file lists itself (`added_tokens_decoder`).
    public var addedTokens: [TokenizerModel.AddedToken] = []

    public init() {}

    /// Reads tokenizer_config.json. Unknown members are left alone.
    public init(_ json: JSONValue) throws(ServingError) {
        guard json.objectValue != nil else {
            throw fileError("tokenizer_config.json is \(json.kindName), not an object", field: "tokenizer_config.json")
        }
        bosToken = try Self.tokenText(json, "bos_token")
        eosToken = try Self.tokenText(json, "eos_token")
        padToken = try Self.tokenText(json, "pad_token")
        unkToken = try Self.tokenText(json, "unk_token")
        addsBOS = json["add_bos_token"]?.boolValue
        addsEOS = json["add_eos_token"]?.boolValue
        try readTemplates(json["chat_template"])
        guard let listed = json["added_tokens_decoder"]?.objectValue else { return }
        for (key, value) in listed.members {
            guard let id = UInt32(key) else {
                throw fileError(
                    "added_tokens_decoder has the key \(JSON.quoted(key)), which is no token id",
                    field: "added_tokens_decoder")
            }
            addedTokens.append(try TokenizerModel.AddedToken(value, id: id, field: "added_tokens_decoder"))
        }
    }

    private mutating func readTemplates(_ value: JSONValue?) throws(ServingError) {
        guard let value, !value.isNull else { return }
        if let source = value.stringValue {
            chatTemplate = source
            return
        }
        for entry in value.arrayValue ?? [] {
            guard let name = entry["name"]?.stringValue, let source = entry["template"]?.stringValue else {
                throw fileError(
                    "chat_template has an entry without 'name' and 'template' strings", field: "chat_template")
            }
            namedTemplates.append(NamedTemplate(name: name, source: source))
        }
        guard let first = namedTemplates.first else {
            throw fileError(
                "chat_template is \(value.kindName), not a string or a list of templates", field: "chat_template")
        }
        chatTemplate = (namedTemplates.first { $0.name == "default" } ?? first).source
    }

    /// A token is given as its text or as an object with `content`.
    private static func tokenText(_ json: JSONValue, _ field: String) throws(ServingError) -> String? {
        guard let value = json[field], !value.isNull else { return nil }
        if let text = value.stringValue ?? value["content"]?.stringValue { return text }
        throw fileError("\(field) is \(value.kindName), not a token", field: field)
    }
}
