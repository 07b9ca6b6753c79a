import ServingTypes
import Tokenization

/// One choice's text as its tokens come: whole characters, nothing of a stop string, no stop token.
struct ChoiceText {
    /// One token of the text with its measures, for `logprobs`.
    struct Entry: Hashable {
        struct Alternative: Hashable {
            var bytes: [UInt8]
            var logprob: Float
        }

        var bytes: [UInt8]
        var logprob: Float
        var top: [Alternative]
        /// Where the token's text starts, in Unicode scalars from the start of the output.
        var textOffset: Int
    }

    private let tokenizer: Tokenizer
    private let stopTokens: Set<TokenID>
    private var detokenizer: StreamingDetokenizer
    private var matcher: StopStringMatcher
    /// Tokens whose text the client has already.
    private let skippedTokens: Int

    /// Tokens pushed so far; those after a stop string do not count.
    private(set) var outputTokens = 0
    /// A stop string was met.
    private(set) var isStopped = false
    private(set) var text = ""
    private(set) var entries: [Entry] = []
    private var scalars = 0
    /// Tokens of the output, stop tokens not counted, that `take` has not told of.
    private var newTokens = 0

    init(
        tokenizer: Tokenizer, stopTokens: [TokenID], stopStrings: [String], skipsSpecialTokens: Bool = true,
        skippedTokens: Int = 0
    ) {
        self.tokenizer = tokenizer
        self.stopTokens = Set(stopTokens)
        detokenizer = StreamingDetokenizer(tokenizer, skipSpecial: skipsSpecialTokens)
        matcher = StopStringMatcher(stopStrings)
        self.skippedTokens = skippedTokens
    }

    mutating func push(_ sampled: SampledToken) {
        guard !isStopped else { return }
        outputTokens += 1
        guard !stopTokens.contains(sampled.token) else { return }
        newTokens += 1
        note(sampled)
        let output = matcher.push(detokenizer.push(sampled.token))
        add(output.text)
        isStopped = output.stop != nil
    }

    /// The stream is over: what was held back is text after all.
    mutating func finish() {
        guard !isStopped else { return }
        let output = matcher.push(detokenizer.finish())
        add(output.text + (output.stop == nil ? matcher.finish() : ""))
    }

    /// What came since the last call: tokens may come without text, as parts of a character do.
    mutating func take() -> (text: String, entries: [Entry], tokens: Int) {
        defer { (text, entries, newTokens) = ("", [], 0) }
        return (text, entries, newTokens)
    }

    private mutating func add(_ piece: String) {
        if outputTokens > skippedTokens { text += piece }
    }

    private mutating func note(_ sampled: SampledToken) {
        guard let logprob = sampled.logprob else { return }
        let bytes = tokenizer.tokenBytes(sampled.token)
        defer { scalars += String(decoding: bytes, as: UTF8.self).unicodeScalars.count }
        guard outputTokens > skippedTokens else { return }
        entries.append(
            Entry(
                bytes: bytes, logprob: logprob,
                top: sampled.top.map {
                    Entry.Alternative(bytes: tokenizer.tokenBytes($0.token), logprob: $0.logprob)
                }, textOffset: scalars))
    }
}
