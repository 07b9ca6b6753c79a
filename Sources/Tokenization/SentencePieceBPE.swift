import ServingTypes

/// SentencePiece's BPE: text is one word, spaces are written U+2581, and of all adjacent pieces whose
/// concatenation is in the vocabulary always those with the highest score merge first, the leftmost
/// of equals. Characters outside the vocabulary become one token per byte.
struct SentencePieceBPE: Sendable {
    /// A piece of the vocabulary that merges can make.
    private struct Piece {
        var id: UInt32
        /// Place in the order of scores, highest first; equal scores share it.
        var rank: UInt32
    }

    private var pieces: [ByteString: Piece] = [:]
    private var tokenOfByte = [UInt32?](repeating: nil, count: 256)
    private let unknownToken: UInt32?
    private let addsSpacePrefix: Bool
    /// Bytes of the longest piece; nothing longer is looked up.
    private var longestPiece = 0

    /// U+2581 in UTF-8.
    private static let space: [UInt8] = [0xE2, 0x96, 0x81]

    init(_ model: TokenizerModel, _ sentencePiece: TokenizerModel.SentencePiece) throws(ServingError) {
        unknownToken = sentencePiece.unknownToken
        addsSpacePrefix = sentencePiece.addsSpacePrefix
        var ordered: [(id: UInt32, text: [UInt8], score: Float)] = []
        ordered.reserveCapacity(model.vocabulary.count)
        for entry in model.vocabulary {
            guard Int(entry.id) < sentencePiece.scores.count else {
                throw fileError("model.scores has no entry for the token \(entry.id)", field: "model.scores")
            }
            ordered.append((entry.id, Array(entry.text.utf8), sentencePiece.scores[Int(entry.id)]))
        }
        ordered.sort { ($0.score, $1.id) > ($1.score, $0.id) }
        pieces.reserveCapacity(ordered.count)
        var rank: UInt32 = 0
        for (place, entry) in ordered.enumerated() {
            if place > 0, entry.score < ordered[place - 1].score { rank += 1 }
            longestPiece = max(longestPiece, entry.text.count)
            pieces[ByteString(entry.text)] = Piece(id: entry.id, rank: rank)
        }
        for token in sentencePiece.byteTokens { tokenOfByte[Int(token.byte)] = token.id }
    }

    /// The bytes that a vocabulary entry stands for.
    static func spelledBytes(_ text: String) -> [UInt8] {
        var bytes: [UInt8] = []
        for scalar in text.unicodeScalars {
            if scalar == "\u{2581}" {
                bytes.append(0x20)
            } else {
                bytes += Array(UTF8.encode(scalar) ?? UTF8.encodedReplacementCharacter)
            }
        }
        return bytes
    }

    /// Appends the tokens of a stretch of well-formed UTF-8. O(n log n) in its length.
    func encode(_ text: some Collection<UInt8>, into tokens: inout [TokenID]) {
        guard !text.isEmpty else { return }
        var escaped: [UInt8] = []
        escaped.reserveCapacity(text.count + 3)
        if addsSpacePrefix { escaped += Self.space }
        for byte in text {
            if byte == 0x20 { escaped += Self.space } else { escaped.append(byte) }
        }
        for range in merged(escaped) {
            if let piece = piece(escaped, range) {
                tokens.append(TokenID(piece.id))
            } else {
                appendBytes(escaped[range], &tokens)
            }
        }
    }

    private func appendBytes(_ character: ArraySlice<UInt8>, _ tokens: inout [TokenID]) {
        let bytes = character.compactMap { tokenOfByte[Int($0)] }
        if bytes.count == character.count {
            tokens += bytes.map { TokenID($0) }
        } else if let unknownToken {
            tokens.append(TokenID(unknownToken))
        }
    }

    private func piece(_ text: [UInt8], _ range: Range<Int>) -> Piece? {
        guard range.count <= longestPiece else { return nil }
        return pieces[ByteString(Array(text[range]))]
    }

    /// Where the pieces lie after all merges. Symbols are a doubly linked list of byte ranges; a
    /// candidate that its neighbours have outgrown is known by its rank, which is no longer the pair's.
    private func merged(_ text: [UInt8]) -> [Range<Int>] {
        var symbols = Self.characters(text)
        let count = symbols.count
        var next = (1...max(count, 1)).map { Int32(truncatingIfNeeded: $0) }
        var previous = (0..<count).map { Int32(truncatingIfNeeded: $0 - 1) }
        func rank(_ left: Int, _ right: Int) -> UInt32? {
            piece(text, symbols[left].lowerBound..<symbols[right].upperBound)?.rank
        }
        var heap = CandidateHeap()
        for place in 0..<max(count - 1, 0) {
            if let rank = rank(place, place + 1) { heap.append(rank: rank, place: place) }
        }
        heap.order()
        while let (candidate, place) = heap.pop() {
            let right = Int(next[place])
            guard !symbols[place].isEmpty, right < count, rank(place, right) == candidate else { continue }
            symbols[place] = symbols[place].lowerBound..<symbols[right].upperBound
            symbols[right] = 0..<0
            let after = Int(next[right])
            next[place] = Int32(truncatingIfNeeded: after)
            if after < count {
                previous[after] = Int32(truncatingIfNeeded: place)
                if let rank = rank(place, after) { heap.push(rank: rank, place: place) }
            }
            let before = Int(previous[place])
            if before >= 0, let rank = rank(before, place) { heap.push(rank: rank, place: before) }
        }
        return symbols.filter { !$0.isEmpty }
    }

    /// The characters of well-formed UTF-8.
    private static func characters(_ text: [UInt8]) -> [Range<Int>] {
        var ranges: [Range<Int>] = []
        var at = 0
        while at < text.count {
            var end = at + 1
            while end < text.count, text[end] & 0xC0 == 0x80 { end += 1 }
            ranges.append(at..<end)
            at = end
        }
        return ranges
    }
}
