import BoundedJSON
import ServingTypes

extension Tokenizer {
    /// Reads Hugging Face's tokenizer.json and, where there is one, tokenizer_config.json. What this
    /// tokenizer cannot do exactly as the file says is refused, naming the field and its value.
    public static func parse(tokenizerJSON: JSONValue, config: JSONValue?) throws(ServingError) -> Tokenizer {
        try Tokenizer(TokenizerModel(tokenizerJSON: tokenizerJSON, config: config))
    }
}

extension TokenizerModel {
    /// As `Tokenizer.parse`, before the tables are built.
    public init(tokenizerJSON json: JSONValue, config: JSONValue?) throws(ServingError) {
        guard json.objectValue != nil else {
            throw fileError("tokenizer.json is \(json.kindName), not an object", field: "tokenizer.json")
        }
        var configuration = TokenizerConfiguration()
        if let config { configuration = try TokenizerConfiguration(config) }
        let model = try member(json, "model")
        try readModel(model)
        try readNormalizer(json["normalizer"])
        try readPreTokenizer(json["pre_tokenizer"])
        try Self.checkDecoder(json["decoder"])
        try readAddedTokens(json["added_tokens"], configuration)
        try readPostProcessor(json["post_processor"])
        readSpecialTokens(configuration)
    }

    // MARK: model

    private mutating func readModel(_ model: JSONValue) throws(ServingError) {
        // Files of before 2021 name no type.
        if let type = model["type"], type.stringValue != "BPE" {
            throw unsupported("model.type", type, known: "\"BPE\"")
        }
        try Self.checkModelOptions(model)
        ignoresMergesForKnownWords = model["ignore_merges"]?.boolValue ?? false
        guard let vocab = model["vocab"]?.objectValue else {
            throw fileError("model.vocab is missing or no object", field: "model.vocab")
        }
        vocabulary.reserveCapacity(vocab.count)
        for (text, value) in vocab.members {
            guard let id = value.intValue.flatMap({ UInt32(exactly: $0) }) else {
                throw fileError("model.vocab[\(JSON.quoted(text))] is \(value), not a token id", field: "model.vocab")
            }
            vocabulary.append(Entry(text: text, id: id))
        }
        guard let list = model["merges"]?.arrayValue else {
            throw fileError("model.merges is missing or no array", field: "model.merges")
        }
        merges.reserveCapacity(list.count)
        for (rank, value) in list.enumerated() {
            guard let merge = Self.merge(value) else {
                throw fileError("model.merges[\(rank)] is \(value), not two parts", field: "model.merges")
            }
            merges.append(merge)
        }
    }

    private static func checkModelOptions(_ model: JSONValue) throws(ServingError) {
        for name in ["dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
            guard let value = model[name], !value.isNull, value.stringValue != "", value.doubleValue != 0 else {
                continue
            }
            throw unsupported("model.\(name)", value, known: "null")
        }
        if let value = model["byte_fallback"], value.boolValue == true {
            throw unsupported("model.byte_fallback", value, known: "false (byte-level BPE, not SentencePiece)")
        }
    }

    /// `"a b"` in older files, `["a", "b"]` in newer ones.
    private static func merge(_ value: JSONValue) -> Merge? {
        if let parts = value.arrayValue {
            guard parts.count == 2, let left = parts[0].stringValue, let right = parts[1].stringValue else {
                return nil
            }
            return Merge(left: left, right: right)
        }
        guard let text = value.stringValue?.utf8, let space = text.firstIndex(of: 0x20) else { return nil }
        let rest = text[text.index(after: space)...]
        guard space > text.startIndex, !rest.isEmpty, !rest.contains(0x20) else { return nil }
        return Merge(left: String(Substring(text[..<space])), right: String(Substring(rest)))
    }

    // MARK: normalizer, pre_tokenizer, decoder

    private mutating func readNormalizer(_ value: JSONValue?) throws(ServingError) {
        guard let value, !value.isNull else { return }
        switch value["type"]?.stringValue {
        case "NFC": normalizesNFC = true
        case "Sequence":
            for step in value["normalizers"]?.arrayValue ?? [] { try readNormalizer(step) }
        default: throw unsupported("normalizer", value, known: "null and NFC")
        }
    }

    private mutating func readPreTokenizer(_ value: JSONValue?) throws(ServingError) {
        guard let value, !value.isNull else {
            throw unsupported("pre_tokenizer", .null, known: "ByteLevel, or a Sequence that ends with it")
        }
        let steps = value["type"]?.stringValue == "Sequence" ? value["pretokenizers"]?.arrayValue ?? [] : [value]
        for (place, step) in steps.enumerated() {
            let isLast = place == steps.count - 1
            switch step["type"]?.stringValue {
            case "ByteLevel" where isLast: try readByteLevel(step, isAlone: steps.count == 1)
            case "Split" where !isLast: preTokenizers.append(try Self.split(step))
            case "Digits" where !isLast:
                preTokenizers.append(.digits(individually: step["individual_digits"]?.boolValue ?? false))
            default:
                throw unsupported(
                    "pre_tokenizer", step, known: "Split and Digits, followed by one ByteLevel at the end")
            }
        }
        guard !steps.isEmpty else {
            throw unsupported("pre_tokenizer", value, known: "ByteLevel, or a Sequence that ends with it")
        }
    }

    private mutating func readByteLevel(_ step: JSONValue, isAlone: Bool) throws(ServingError) {
        addsPrefixSpace = step["add_prefix_space"]?.boolValue ?? true
        if addsPrefixSpace, !isAlone {
            throw unsupported("pre_tokenizer.add_prefix_space", true, known: "true only for ByteLevel alone")
        }
        if step["use_regex"]?.boolValue ?? true { preTokenizers.append(.gpt2) }
    }

    private static func split(_ step: JSONValue) throws(ServingError) -> PreTokenizer {
        guard let regex = step["pattern"]?["Regex"]?.stringValue else {
            throw unsupported("pre_tokenizer.pattern", step["pattern"] ?? .null, known: "a Regex")
        }
        guard let family = PreTokenizer(regex: regex) else {
            throw unsupported(
                "pre_tokenizer.pattern.Regex", .string(regex),
                known: "the patterns of GPT-2, Llama-3 (cl100k) and Qwen2")
        }
        // The patterns match every character, so keeping only the matches is the same as isolating them.
        let inverted = step["invert"]?.boolValue ?? false
        switch (step["behavior"]?.stringValue, inverted) {
        case ("Isolated", _), ("Removed", true): return family
        default:
            throw unsupported(
                "pre_tokenizer.behavior", step["behavior"] ?? .null, known: "Isolated, and Removed with invert")
        }
    }

    private static func checkDecoder(_ value: JSONValue?) throws(ServingError) {
        guard let value, value["type"]?.stringValue == "ByteLevel" else {
            throw unsupported("decoder", value ?? .null, known: "ByteLevel")
        }
    }

    // MARK: Special tokens

    private mutating func readAddedTokens(
        _ value: JSONValue?, _ configuration: TokenizerConfiguration
    ) throws(ServingError) {
        var listed = Set<UInt32>()
        for entry in value?.arrayValue ?? [] {
            guard let id = entry["id"]?.intValue.flatMap({ UInt32(exactly: $0) }) else {
                throw fileError("added_tokens has an entry without a token id", field: "added_tokens")
            }
            addedTokens.append(try AddedToken(entry, id: id, field: "added_tokens"))
            listed.insert(id)
        }
        addedTokens += configuration.addedTokens.filter { !listed.contains($0.id) }
    }

    private mutating func readPostProcessor(_ value: JSONValue?) throws(ServingError) {
        guard let value, !value.isNull else { return }
        switch value["type"]?.stringValue {
        case "ByteLevel": break
        case "Sequence":
            for step in value["processors"]?.arrayValue ?? [] { try readPostProcessor(step) }
        case "TemplateProcessing": try readTemplate(value)
        default: throw unsupported("post_processor", value, known: "ByteLevel and TemplateProcessing")
        }
    }

    private mutating func readTemplate(_ value: JSONValue) throws(ServingError) {
        var isBeforeText = true
        for piece in value["single"]?.arrayValue ?? [] {
            if piece["Sequence"] != nil {
                isBeforeText = false
                continue
            }
            guard let name = piece["SpecialToken"]?["id"]?.stringValue,
                let ids = value["special_tokens"]?[name]?["ids"]?.arrayValue
            else {
                throw unsupported("post_processor.single", piece, known: "Sequence and SpecialToken of special_tokens")
            }
            for id in ids {
                guard let id = id.intValue.flatMap({ UInt32(exactly: $0) }) else {
                    throw fileError("post_processor.special_tokens has \(id), not a token id", field: "post_processor")
                }
                if isBeforeText { prefixTokens.append(id) } else { suffixTokens.append(id) }
            }
        }
        guard !isBeforeText else {
            throw unsupported("post_processor.single", value["single"] ?? .null, known: "one Sequence")
        }
    }

    /// The named tokens, and the begin of text that only tokenizer_config.json asks for.
    private mutating func readSpecialTokens(_ configuration: TokenizerConfiguration) {
        bosToken = configuration.bosToken.flatMap { id(ofSpecial: $0) }
        eosToken = configuration.eosToken.flatMap { id(ofSpecial: $0) }
        if prefixTokens.isEmpty, suffixTokens.isEmpty {
            if configuration.addsBOS == true, let bosToken { prefixTokens = [bosToken] }
            if configuration.addsEOS == true, let eosToken { suffixTokens = [eosToken] }
        }
    }

    private func id(ofSpecial content: String) -> UInt32? {
        let wanted = Array(content.utf8)
        return addedTokens.first { Array($0.content.utf8) == wanted }?.id
            ?? vocabulary.first { $0.text.utf8.count == wanted.count && Array($0.text.utf8) == wanted }?.id
    }
}

extension TokenizerModel.AddedToken {
    init(_ json: JSONValue, id: UInt32, field: String) throws(ServingError) {
        guard let content = json["content"]?.stringValue else {
            throw fileError("\(field) has the id \(id) without a content", field: field)
        }
        self.init(id: id, content: content)
        special = json["special"]?.boolValue ?? false
        lstrip = json["lstrip"]?.boolValue ?? false
        rstrip = json["rstrip"]?.boolValue ?? false
        singleWord = json["single_word"]?.boolValue ?? false
        normalized = json["normalized"]?.boolValue ?? !special
    }
}

private func member(_ json: JSONValue, _ name: String) throws(ServingError) -> JSONValue {
    guard let value = json[name] else { throw fileError("tokenizer.json has no \(name)", field: name) }
    return value
}

/// A feature of the file that this tokenizer does not have.
private func unsupported(_ field: String, _ value: JSONValue, known: String) -> ServingError {
    var shown = JSON.text(value)
    if shown.utf8.count > 400 { shown = String(shown.prefix(400)) + "..." }
    return fileError(
        "tokenizer.json's \(field) is \(shown); known is \(known)", field: field, code: .unsupported)
}
