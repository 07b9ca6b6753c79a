import ServingTypes

/// Text to tokens and back, byte for byte. A value that many threads may use at once.
public struct Tokenizer: Sendable {
    /// Bytes of all tokens behind one another; token i is `tokenEnds[i-1] ..< tokenEnds[i]`.
    private var tokenBytes: [UInt8] = []
    private var tokenEnds: [Int] = []
    private var special: [Bool] = []
    /// Vocabulary entries by the bytes that they spell.
    private var tokenOfBytes: [ByteString: UInt32] = [:]
    /// Entries whose spelling is outside the byte alphabet, by that spelling.
    private var tokenOfOddText: [ByteString: UInt32] = [:]
    private var tokenOfAddedText: [ByteString: UInt32] = [:]
    private var merges: MergeTable
    /// Takes the place of merges and pre-tokenizers where it is set.
    private let sentencePiece: SentencePieceBPE?
    private var addedTokens: [TokenizerModel.AddedToken]
    private var rawMatcher = AddedTokenMatcher()
    private var normalizedMatcher = AddedTokenMatcher()
    private let preTokenizers: [PreTokenizer]
    private let addsPrefixSpace: Bool
    private let normalizesNFC: Bool
    private let ignoresMergesForKnownWords: Bool
    private let prefixTokens: [TokenID]
    private let suffixTokens: [TokenID]

    /// Begin of text, where the model has such a token.
    public let bosToken: TokenID?
    /// End of text, where the model has such a token. A model may have further ones (generation_config.json).
    public let eosToken: TokenID?

    /// Ids are `0 ..< vocabularySize`; some of them may be unused.
    public var vocabularySize: Int { tokenEnds.count }

    /// Checks ids, merges and limits. Throws with the field at fault, in tokenizer.json's names.
    public init(_ model: TokenizerModel) throws(ServingError) {
        try Self.checkCounts(model)
        preTokenizers = model.preTokenizers
        addsPrefixSpace = model.addsPrefixSpace
        normalizesNFC = model.normalizesNFC
        ignoresMergesForKnownWords = model.ignoresMergesForKnownWords
        addedTokens = model.addedTokens
        merges = MergeTable(tokenOfByte: [], mergesCapacity: 0)
        sentencePiece = try model.sentencePiece.map { pieces throws(ServingError) in
            try SentencePieceBPE(model, pieces)
        }
        bosToken = model.bosToken.map { TokenID($0) }
        eosToken = model.eosToken.map { TokenID($0) }
        prefixTokens = model.prefixTokens.map { TokenID($0) }
        suffixTokens = model.suffixTokens.map { TokenID($0) }
        try indexVocabulary(model)
        if sentencePiece == nil { try indexMerges(model) }
        indexAddedTokens()
        for token in [bosToken, eosToken].compactMap({ $0 }) + prefixTokens + suffixTokens
        where Int(token.value) >= vocabularySize {
            throw fileError(
                "special token id \(token) is outside the vocabulary of \(vocabularySize)", field: "post_processor")
        }
    }

    // MARK: Looking tokens up

    /// The bytes of a token, empty for an unused or unknown id. They need not be whole characters.
    public func tokenBytes(_ token: TokenID) -> [UInt8] {
        Array(tokenBytes[bytesRange(token)])
    }

    /// Whether the token is marked special (`<|im_end|>` and the like).
    public func isSpecial(_ token: TokenID) -> Bool {
        Int(token.value) < special.count && special[Int(token.value)]
    }

    /// The id of a token by its spelling in the file: an added token's content or a vocabulary entry.
    public func id(of text: String) -> TokenID? {
        let raw = ByteString(Array(text.utf8))
        if let id = tokenOfAddedText[raw] { return TokenID(id) }
        if sentencePiece == nil, let bytes = ByteAlphabet.bytes(of: text) {
            return tokenOfBytes[ByteString(bytes)].map { TokenID($0) }
        }
        return tokenOfOddText[raw].map { TokenID($0) }
    }

    private func bytesRange(_ token: TokenID) -> Range<Int> {
        let index = Int(token.value)
        guard index < tokenEnds.count else { return 0..<0 }
        return (index == 0 ? 0 : tokenEnds[index - 1])..<tokenEnds[index]
    }

    // MARK: Encoding

    /// The tokens of a text.
    /// - addSpecialTokens: put the model's prefix and suffix (say, begin of text) around it.
    /// - parseSpecial: find special tokens that are spelled out in the text. False for text that a
    ///   user wrote, so that nobody closes a turn by typing its marker; true for a rendered template.
    public func encode(_ text: String, addSpecialTokens: Bool = true, parseSpecial: Bool = true) -> [TokenID] {
        var cache = WordCache()
        return encode(text, addSpecialTokens: addSpecialTokens, parseSpecial: parseSpecial, cache: &cache)
    }

    /// As above with a cache that outlives the call. It changes the cost, never the result.
    public func encode(
        _ text: String, addSpecialTokens: Bool = true, parseSpecial: Bool = true, cache: inout WordCache
    ) -> [TokenID] {
        var tokens: [TokenID] = addSpecialTokens ? prefixTokens : []
        var text = text
        text.withUTF8 { bytes in
            let source = TextBytes(bytes: bytes)
            for piece in pieces(source, rawMatcher, parseSpecial: parseSpecial) {
                switch piece {
                case .token(let token): tokens.append(token)
                case .text(let range): encodePlain(source, range, parseSpecial, &cache, &tokens)
                }
            }
        }
        if addSpecialTokens { tokens += suffixTokens }
        return tokens
    }

    /// Text between added tokens: normalization, then the tokens to be found after it, then words.
    private func encodePlain(
        _ source: TextBytes, _ range: Range<Int>, _ parseSpecial: Bool, _ cache: inout WordCache,
        _ tokens: inout [TokenID]
    ) {
        guard normalizesNFC, let composed = composedBytes(source, range) else {
            encodeNormalized(source, range, parseSpecial, &cache, &tokens)
            return
        }
        composed.withUnsafeBufferPointer { bytes in
            encodeNormalized(TextBytes(bytes: bytes), 0..<bytes.count, parseSpecial, &cache, &tokens)
        }
    }

    private func encodeNormalized(
        _ source: TextBytes, _ range: Range<Int>, _ parseSpecial: Bool, _ cache: inout WordCache,
        _ tokens: inout [TokenID]
    ) {
        for piece in pieces(source, range, normalizedMatcher, parseSpecial: parseSpecial) {
            switch piece {
            case .token(let token): tokens.append(token)
            case .text(let range):
                if let sentencePiece {
                    sentencePiece.encode(source.bytes[range], into: &tokens)
                } else {
                    encodeWords(source, range, &cache, &tokens)
                }
            }
        }
    }

    private func encodeWords(
        _ source: TextBytes, _ range: Range<Int>, _ cache: inout WordCache, _ tokens: inout [TokenID]
    ) {
        guard addsPrefixSpace, !range.isEmpty, source.bytes[range.lowerBound] != 0x20 else {
            encodeWordsAsTheyAre(source, range, &cache, &tokens)
            return
        }
        let prefixed = [0x20] + source.bytes[range]
        prefixed.withUnsafeBufferPointer { bytes in
            encodeWordsAsTheyAre(TextBytes(bytes: bytes), 0..<bytes.count, &cache, &tokens)
        }
    }

    private func encodeWordsAsTheyAre(
        _ source: TextBytes, _ range: Range<Int>, _ cache: inout WordCache, _ tokens: inout [TokenID]
    ) {
        var words = [range]
        for step in preTokenizers {
            var finer: [Range<Int>] = []
            for word in words { step.split(source, word, into: &finer) }
            words = finer
        }
        for range in words {
            let word = ByteString(Array(source.bytes[range]))
            if let known = cache[word] {
                tokens += known
                continue
            }
            let found = self.tokens(ofWord: word)
            cache.keep(word, found)
            tokens += found
        }
    }

    private func tokens(ofWord word: ByteString) -> [TokenID] {
        if ignoresMergesForKnownWords, let token = tokenOfBytes[word] { return [TokenID(token)] }
        return merges.tokens(of: word.bytes)
    }

    private enum Piece {
        case token(TokenID)
        case text(Range<Int>)
    }

    private func pieces(_ source: TextBytes, _ matcher: AddedTokenMatcher, parseSpecial: Bool) -> [Piece] {
        pieces(source, 0..<source.bytes.count, matcher, parseSpecial: parseSpecial)
    }

    /// Cuts a text at the added tokens in it.
    private func pieces(
        _ source: TextBytes, _ range: Range<Int>, _ matcher: AddedTokenMatcher, parseSpecial: Bool
    ) -> [Piece] {
        guard !matcher.isEmpty else { return range.isEmpty ? [] : [.text(range)] }
        var pieces: [Piece] = []
        var textStart = range.lowerBound
        var at = range.lowerBound
        while at < range.upperBound {
            guard let match = matcher.longestMatch(in: source.bytes, at: at, end: range.upperBound) else {
                at += 1
                continue
            }
            let token = addedTokens[match.index]
            let bordersWord = token.singleWord && bordersOnWord(source, at..<match.end, within: range)
            guard !bordersWord, parseSpecial || !token.special else {
                at = match.end
                continue
            }
            let start = token.lstrip ? startOfSpaces(source, before: at, notBefore: textStart) : at
            let end = token.rstrip ? endOfSpaces(source, after: match.end, end: range.upperBound) : match.end
            if textStart < start { pieces.append(.text(textStart..<start)) }
            pieces.append(.token(TokenID(token.id)))
            textStart = end
            at = end
        }
        if textStart < range.upperBound { pieces.append(.text(textStart..<range.upperBound)) }
        return pieces
    }

    private func bordersOnWord(_ source: TextBytes, _ match: Range<Int>, within range: Range<Int>) -> Bool {
        if match.lowerBound > range.lowerBound,
            ScalarClass.isWord(source.scalar(before: match.lowerBound, notBefore: range.lowerBound).code)
        {
            return true
        }
        return match.upperBound < range.upperBound && ScalarClass.isWord(source.scalar(at: match.upperBound).code)
    }

    private func startOfSpaces(_ source: TextBytes, before place: Int, notBefore start: Int) -> Int {
        var at = place
        while at > start {
            let (code, length) = source.scalar(before: at, notBefore: start)
            guard ScalarClass.of(code).isSpace else { break }
            at -= length
        }
        return at
    }

    private func endOfSpaces(_ source: TextBytes, after place: Int, end: Int) -> Int {
        var at = place
        while at < end {
            let (code, length) = source.scalar(at: at)
            guard ScalarClass.of(code).isSpace else { break }
            at += length
        }
        return at
    }

    // MARK: Decoding

    /// The bytes of all tokens behind one another; unknown ids have none.
    public func decodeBytes(_ tokens: [TokenID], skipSpecial: Bool = true) -> [UInt8] {
        var bytes: [UInt8] = []
        for token in tokens where !(skipSpecial && isSpecial(token)) {
            bytes += tokenBytes[bytesRange(token)]
        }
        return bytes
    }

    /// The text of tokens; what is not UTF-8 becomes U+FFFD, once for each maximal ill-formed part.
    public func decode(_ tokens: [TokenID], skipSpecial: Bool = true) -> String {
        var assembler = UTF8Assembler()
        return assembler.push(decodeBytes(tokens, skipSpecial: skipSpecial)) + assembler.finish()
    }
}

// MARK: Building

extension Tokenizer {
    private static func checkCounts(_ model: TokenizerModel) throws(ServingError) {
        try check(model.vocabulary.count, TokenizerLimits.vocabularyMax, "entries", "model.vocab")
        try check(model.merges.count, TokenizerLimits.mergesMax, "merges", "model.merges")
        try check(model.addedTokens.count, TokenizerLimits.addedTokensMax, "tokens", "added_tokens")
        for entry in model.vocabulary { try check(entry.id, entry.text, "model.vocab") }
        for token in model.sentencePiece?.byteTokens ?? [] { try check(token.id, token.text, "model.vocab") }
        for token in model.addedTokens { try check(token.id, token.content, "added_tokens") }
    }

    private static func check(_ count: Int, _ limit: Int, _ what: String, _ field: String) throws(ServingError) {
        guard count <= limit else {
            throw fileError("\(field) has \(count) \(what), the limit is \(limit)", field: field)
        }
    }

    private static func check(_ id: UInt32, _ text: String, _ field: String) throws(ServingError) {
        guard Int(id) < TokenizerLimits.vocabularyMax else {
            throw fileError("\(field) has id \(id), the limit is \(TokenizerLimits.vocabularyMax - 1)", field: field)
        }
        guard text.utf8.count <= TokenizerLimits.tokenBytesMax else {
            throw fileError(
                "\(field) has a token of \(text.utf8.count) bytes, the limit is \(TokenizerLimits.tokenBytesMax)",
                field: field)
        }
    }

    private mutating func indexVocabulary(_ model: TokenizerModel) throws(ServingError) {
        let byteTokens = model.sentencePiece?.byteTokens ?? []
        let highest = max(
            model.vocabulary.lazy.map(\.id).max() ?? 0, model.addedTokens.lazy.map(\.id).max() ?? 0,
            byteTokens.lazy.map(\.id).max() ?? 0)
        var spelled = [[UInt8]?](repeating: nil, count: Int(highest) + 1)
        special = [Bool](repeating: false, count: spelled.count)
        tokenOfBytes.reserveCapacity(model.vocabulary.count)
        for entry in model.vocabulary {
            guard spelled[Int(entry.id)] == nil else {
                throw fileError("model.vocab gives the id \(entry.id) twice", field: "model.vocab")
            }
            if model.sentencePiece != nil {
                tokenOfOddText[ByteString(Array(entry.text.utf8))] = entry.id
                spelled[Int(entry.id)] = SentencePieceBPE.spelledBytes(entry.text)
            } else if let bytes = ByteAlphabet.bytes(of: entry.text) {
                tokenOfBytes[ByteString(bytes)] = entry.id
                spelled[Int(entry.id)] = bytes
            } else {
                let raw = Array(entry.text.utf8)
                tokenOfOddText[ByteString(raw)] = entry.id
                spelled[Int(entry.id)] = raw
            }
        }
        for token in byteTokens {
            tokenOfOddText[ByteString(Array(token.text.utf8))] = token.id
            spelled[Int(token.id)] = [token.byte]
        }
        for token in model.addedTokens {
            let raw = Array(token.content.utf8)
            tokenOfAddedText[ByteString(raw)] = token.id
            spelled[Int(token.id)] = model.sentencePiece == nil ? Self.decodedAddedToken(token.content) : raw
            special[Int(token.id)] = special[Int(token.id)] || token.special
        }
        tokenEnds.reserveCapacity(spelled.count)
        for bytes in spelled {
            tokenBytes += bytes ?? []
            tokenEnds.append(tokenBytes.count)
        }
    }

    /// Hugging Face's byte-level decoder runs over added tokens too: one that is spelled within the
    /// byte alphabet decodes as such (for ASCII that is the same).
    private static func decodedAddedToken(_ content: String) -> [UInt8] {
        ByteAlphabet.bytes(of: content) ?? Array(content.utf8)
    }

    private mutating func indexMerges(_ model: TokenizerModel) throws(ServingError) {
        let tokenOfByte = (0...255).map { tokenOfBytes[ByteString([UInt8($0)])] }
        merges = MergeTable(tokenOfByte: tokenOfByte, mergesCapacity: model.merges.count)
        for (rank, merge) in model.merges.enumerated() {
            guard let leftBytes = ByteAlphabet.bytes(of: merge.left),
                let rightBytes = ByteAlphabet.bytes(of: merge.right),
                let left = tokenOfBytes[ByteString(leftBytes)], let right = tokenOfBytes[ByteString(rightBytes)],
                let merged = tokenOfBytes[ByteString(leftBytes + rightBytes)]
            else {
                throw fileError(
                    "model.merges[\(rank)] is '\(merge.left) \(merge.right)', whose parts or result are not in model.vocab",
                    field: "model.merges")
            }
            merges.append(left: left, right: right, merged: merged)
        }
    }

    private mutating func indexAddedTokens() {
        for (index, token) in addedTokens.enumerated() {
            if token.normalized {
                let content = normalizesNFC ? composed(token.content) : Array(token.content.utf8)
                normalizedMatcher.insert(content, index: index)
            } else {
                rawMatcher.insert(Array(token.content.utf8), index: index)
            }
        }
    }
}

/// Words met before and their tokens, up to `TokenizerLimits.cachedWordsMax`; then it starts afresh.
public struct WordCache: Sendable {
    private var tokens: [ByteString: [TokenID]] = [:]

    public init() {}

    subscript(word: ByteString) -> [TokenID]? {
        word.bytes.count <= TokenizerLimits.cachedWordBytesMax ? tokens[word] : nil
    }

    mutating func keep(_ word: ByteString, _ found: [TokenID]) {
        guard word.bytes.count <= TokenizerLimits.cachedWordBytesMax else { return }
        if tokens.count >= TokenizerLimits.cachedWordsMax { tokens.removeAll(keepingCapacity: true) }
        tokens[word] = found
    }
}

/// A fault of the tokenizer's file: the process that loads it cannot serve.
func fileError(
    _ message: String, field: String, code: ServingError.Code = .malformed
) -> ServingError {
    ServingError(code, message, field: field, blast: .process)
}
