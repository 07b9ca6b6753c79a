import ServingTypes
import Tokenization

/// The tokenizer in a GGUF file's metadata: byte-level BPE (`gpt2`) or SentencePiece-style BPE
/// (`llama`).
struct GGUFTokenizer {
    /// What `tokenizer.ggml.token_type` says of a token.
    private enum Kind: Int64 {
        case normal = 1
        case unknown = 2
        case control = 3
        case userDefined = 4
        case unused = 5
        case byte = 6
    }

    private let fields: GGUFFields
    private let texts: [String]
    private let kinds: [Kind]
    private(set) var model = TokenizerModel()

    private static let tokensKey = "tokenizer.ggml.tokens"

    init(_ fields: GGUFFields) throws(ServingError) {
        self.fields = fields
        guard let texts = try fields.strings(Self.tokensKey) else { throw fields.missing(Self.tokensKey) }
        guard texts.count <= TokenizerLimits.vocabularyMax else {
            throw fields.fault(Self.tokensKey, "has \(texts.count) tokens, more than \(TokenizerLimits.vocabularyMax)")
        }
        self.texts = texts
        kinds = try Self.kinds(fields, count: texts.count)
        switch try fields.text("tokenizer.ggml.model") {
        case "gpt2": try readByteLevel()
        case "llama": try readSentencePiece()
        case let other:
            throw fields.fault(
                "tokenizer.ggml.model", "is \(other.map(shown) ?? "missing"), and known are gpt2 and llama",
                code: .unsupported)
        }
        try readSpecialTokens()
    }

    private static func kinds(_ fields: GGUFFields, count: Int) throws(ServingError) -> [Kind] {
        let key = "tokenizer.ggml.token_type"
        guard let written = try fields.integers(key) else { return [Kind](repeating: .normal, count: count) }
        guard written.count == count else {
            throw fields.fault(key, "has \(written.count) entries for \(count) tokens")
        }
        var kinds: [Kind] = []
        kinds.reserveCapacity(count)
        for (index, value) in written.enumerated() {
            guard let kind = Kind(rawValue: value) else {
                throw fields.fault(key, "has \(value) for token \(index), outside 1 to 6")
            }
            kinds.append(kind)
        }
        return kinds
    }

    // MARK: byte-level BPE

    private mutating func readByteLevel() throws(ServingError) {
        try readPreTokenizer()
        let key = "tokenizer.ggml.merges"
        guard let merges = try fields.strings(key) else { throw fields.missing(key) }
        model.merges.reserveCapacity(merges.count)
        for (rank, text) in merges.enumerated() {
            guard let merge = Self.merge(text) else {
                throw fields.fault(key, "has \(shown(text)) at \(rank), not two parts with a space between")
            }
            model.merges.append(merge)
        }
        model.vocabulary.reserveCapacity(texts.count)
        for (index, text) in texts.enumerated() {
            switch kinds[index] {
            case .normal, .byte: model.vocabulary.append(.init(text: text, id: UInt32(index)))
            case .unknown, .control: addToken(index, special: true)
            case .userDefined: addToken(index, special: false)
            case .unused: break
            }
        }
    }

    /// Both parts are spelled in the byte alphabet, which has no space.
    private static func merge(_ text: String) -> TokenizerModel.Merge? {
        let bytes = text.utf8
        guard let space = bytes.firstIndex(of: 0x20) else { return nil }
        let rest = bytes[bytes.index(after: space)...]
        guard space > bytes.startIndex, !rest.isEmpty, !rest.contains(0x20) else { return nil }
        return .init(left: String(Substring(bytes[..<space])), right: String(Substring(rest)))
    }

    /// `tokenizer.ggml.pre` names the pattern and, with it, what else the original tokenizer does.
    private mutating func readPreTokenizer() throws(ServingError) {
        let key = "tokenizer.ggml.pre"
        switch try fields.text(key) {
        case "gpt-2": model.preTokenizers = [.gpt2]
        case "smollm": model.preTokenizers = [.digits(individually: true), .gpt2]
        case "llama-bpe", "llama3", "llama-v3":
            model.preTokenizers = [.llama3]
            model.ignoresMergesForKnownWords = true
        case "qwen2":
            model.preTokenizers = [.qwen2]
            model.normalizesNFC = true
        case let other:
            throw fields.fault(
                key, "is \(other.map(shown) ?? "missing"), and known are gpt-2, llama-bpe, qwen2, smollm",
                code: .unsupported)
        }
    }

    // MARK: SentencePiece-style BPE

    private mutating func readSentencePiece() throws(ServingError) {
        for key in ["tokenizer.ggml.precompiled_charsmap", "tokenizer.ggml.remove_extra_whitespaces"]
        where fields.metadata[key].map({ $0 != .bool(false) }) ?? false {
            throw fields.fault(key, "is set, and text is taken as it stands", code: .unsupported)
        }
        let key = "tokenizer.ggml.scores"
        guard let scores = try fields.numbers(key) else { throw fields.missing(key) }
        guard scores.count == texts.count else {
            throw fields.fault(key, "has \(scores.count) entries for \(texts.count) tokens")
        }
        guard scores.allSatisfy({ !$0.isNaN }) else { throw fields.fault(key, "has an entry that is no number") }
        var pieces = TokenizerModel.SentencePiece()
        pieces.scores = scores.map { Float($0) }
        pieces.addsSpacePrefix = try fields.flag("tokenizer.ggml.add_space_prefix") ?? true
        for (index, text) in texts.enumerated() {
            let id = UInt32(index)
            switch kinds[index] {
            case .normal, .unused: model.vocabulary.append(.init(text: text, id: id))
            case .byte:
                guard let byte = Self.byte(text) else {
                    throw fields.fault(Self.tokensKey, "has the byte token \(shown(text)), not of the form <0x0A>")
                }
                pieces.byteTokens.append(.init(byte: byte, id: id, text: text))
            case .unknown:
                pieces.unknownToken = id
                addToken(index, special: true)
            case .control: addToken(index, special: true)
            case .userDefined: addToken(index, special: false)
            }
        }
        model.sentencePiece = pieces
    }

    /// `<0x0A>`.
    private static func byte(_ text: String) -> UInt8? {
        let bytes = [UInt8](text.utf8)
        guard bytes.count == 6, text.hasPrefix("<0x"), text.hasSuffix(">") else { return nil }
        return UInt8(String(decoding: bytes[3..<5], as: UTF8.self), radix: 16)
    }

    // MARK: special tokens

    private mutating func addToken(_ index: Int, special: Bool) {
        guard !texts[index].utf8.isEmpty else { return }
        var token = TokenizerModel.AddedToken(id: UInt32(index), content: texts[index])
        token.special = special
        model.addedTokens.append(token)
    }

    private func tokenID(_ name: String) throws(ServingError) -> UInt32? {
        // Some files say "none" as 2^32 - 1.
        let key = "tokenizer.ggml.\(name)_token_id"
        guard let id = try fields.optionalInteger(key, 0...Int(UInt32.max)), id != Int(UInt32.max) else { return nil }
        guard id < texts.count else { throw fields.fault(key, "is \(id), outside the vocabulary of \(texts.count)") }
        return UInt32(id)
    }

    private mutating func readSpecialTokens() throws(ServingError) {
        model.bosToken = try tokenID("bos")
        model.eosToken = try tokenID("eos")
        let isSentencePiece = model.sentencePiece != nil
        let beginsByDefault = isSentencePiece || model.ignoresMergesForKnownWords
        if try fields.flag("tokenizer.ggml.add_bos_token") ?? beginsByDefault, let begin = model.bosToken {
            model.prefixTokens = [begin]
        }
        if try fields.flag("tokenizer.ggml.add_eos_token") ?? false, let end = model.eosToken {
            model.suffixTokens = [end]
        }
    }

    /// Control tokens that end a turn in the models that have them; a file names one or two of them.
    private static let turnEnds: Set<String> = [
        "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|endoftext|>", "<|end_of_text|>", "<end_of_turn>",
        "</s>",
    ]

    /// Every token that ends an output, the named ones first.
    func endTokens() throws(ServingError) -> [TokenID] {
        var tokens: [TokenID] = []
        for name in ["eos", "eot", "eom"] {
            if let id = try tokenID(name), !tokens.contains(TokenID(id)) { tokens.append(TokenID(id)) }
        }
        for (index, text) in texts.enumerated() where kinds[index] == .control && Self.turnEnds.contains(text) {
            let token = TokenID(UInt32(index))
            if !tokens.contains(token) { tokens.append(token) }
        }
        return Array(tokens.prefix(ModelFileLimits.endTokensMax))
    }

    /// A token's text as the file spells it.
    func text(_ token: UInt32?) -> String? {
        guard let token, Int(token) < texts.count else { return nil }
        return texts[Int(token)]
    }
}
