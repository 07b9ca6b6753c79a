import ServingTypes

/// A BPE tokenizer as plain values, from whatever file it was read: byte-level, or SentencePiece's
/// where `sentencePiece` is set.
public struct TokenizerModel: Sendable {
    /// One entry of the vocabulary, spelled in GPT-2's byte alphabet (`Ġthe` is a space and `the`), or,
    /// for SentencePiece, as text with U+2581 for a space.
    public struct Entry: Sendable, Hashable {
        public var text: String
        public var id: UInt32

        public init(text: String, id: UInt32) {
            self.text = text
            self.id = id
        }
    }

    /// Two spellings that become one; the rank is the place in the list.
    public struct Merge: Sendable, Hashable {
        public var left: String
        public var right: String

        public init(left: String, right: String) {
            self.left = left
            self.right = right
        }
    }

    /// A token that is found in the text before anything else is done to it.
    public struct AddedToken: Sendable, Hashable {
        public var id: UInt32
        /// As it stands in text, not in the byte alphabet.
        public var content: String
        /// Left out by `decode` on request and not found in text that users wrote.
        public var special = false
        /// White space before it belongs to it.
        public var lstrip = false
        /// White space after it belongs to it.
        public var rstrip = false
        /// Only found where no word character borders it.
        public var singleWord = false
        /// Looked for after normalization rather than before.
        public var normalized = false

        public init(id: UInt32, content: String) {
            self.id = id
            self.content = content
        }
    }

    /// What a SentencePiece-style BPE has instead of merges and pre-tokenizers.
    public struct SentencePiece: Sendable, Hashable {
        /// A token that stands for one byte (`<0x0A>`).
        public struct ByteToken: Sendable, Hashable {
            public var byte: UInt8
            public var id: UInt32
            /// As the file spells it.
            public var text: String

            public init(byte: UInt8, id: UInt32, text: String) {
                self.byte = byte
                self.id = id
                self.text = text
            }
        }

        /// By token id; of all possible merges the one whose result has the highest score goes first.
        public var scores: [Float] = []
        /// What characters outside the vocabulary become.
        public var byteTokens: [ByteToken] = []
        /// What such a character becomes where a byte token is missing; nil drops it.
        public var unknownToken: UInt32?
        /// A space goes before the text and before what follows an added token.
        public var addsSpacePrefix = true

        public init() {}
    }

    public var vocabulary: [Entry] = []
    public var merges: [Merge] = []
    public var addedTokens: [AddedToken] = []
    /// Applied in order, each inside the pieces of the one before.
    public var preTokenizers: [PreTokenizer] = []
    /// A space goes before text that does not start with one.
    public var addsPrefixSpace = false
    /// Text is brought into Unicode's composed form first.
    public var normalizesNFC = false
    /// A word that is itself in the vocabulary is that token, whatever the merges say.
    public var ignoresMergesForKnownWords = false
    /// Set for a SentencePiece-style BPE; `merges`, `preTokenizers`, `addsPrefixSpace` and
    /// `ignoresMergesForKnownWords` then mean nothing.
    public var sentencePiece: SentencePiece?
    /// Put around encoded text when special tokens are asked for.
    public var prefixTokens: [UInt32] = []
    public var suffixTokens: [UInt32] = []
    public var bosToken: UInt32?
    public var eosToken: UInt32?

    public init() {}
}

/// Bounds of what is accepted as a tokenizer and kept while using it.
public enum TokenizerLimits {
    /// Ids are below this.
    public static let vocabularyMax = 4_000_000
    public static let mergesMax = 4_000_000
    public static let addedTokensMax = 100_000
    /// Of one vocabulary entry or added token.
    public static let tokenBytesMax = 16_384
    /// Words that one `WordCache` holds.
    public static let cachedWordsMax = 16_384
    /// Longer words are not cached.
    public static let cachedWordBytesMax = 64
}
