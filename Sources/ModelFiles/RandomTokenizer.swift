import BoundedJSON
import ServingTypes

/// A byte-level tokenizer that needs no training: all 256 bytes, some frequent English merges, and an
/// end token. The ids above are words that no merge makes: no text is encoded to them, but a model of
/// random weights draws little else, and what it draws reads as text, as a real vocabulary's would.
struct RandomTokenizer {
    let json: JSONValue
    let configJSON: JSONValue
    let endToken: UInt32

    private static let endText = "<|endoftext|>"
    private static let bytesCount = 256

    /// Frequent pairs, each made of tokens before it. `Ġ` is the byte-level alphabet's space.
    private static let frequentMerges: [(String, String)] = [
        ("Ġ", "t"), ("h", "e"), ("Ġ", "a"), ("i", "n"), ("r", "e"), ("o", "n"), ("Ġt", "he"), ("e", "r"), ("Ġ", "s"),
        ("a", "t"), ("Ġ", "w"), ("Ġ", "o"), ("e", "n"), ("Ġ", "c"), ("i", "t"), ("i", "s"), ("a", "n"), ("o", "r"),
        ("e", "s"), ("Ġ", "b"), ("e", "d"), ("Ġ", "f"), ("in", "g"), ("Ġ", "p"), ("o", "u"), ("Ġa", "n"), ("a", "l"),
        ("a", "r"), ("Ġt", "o"), ("Ġ", "m"), ("Ġo", "f"), ("Ġ", "in"), ("Ġ", "d"), ("Ġ", "h"), ("Ġan", "d"),
        ("i", "c"), ("l", "e"), ("t", "h"), ("i", "on"), ("o", "m"), ("l", "l"), ("en", "t"), ("Ġ", "n"), ("Ġ", "l"),
        ("s", "t"), ("Ġ", "re"), ("v", "e"), ("Ġ", "e"), ("r", "o"), ("l", "y"), ("Ġb", "e"), ("Ġ", "g"), ("c", "t"),
        ("Ġs", "t"), ("i", "d"), ("o", "t"), ("e", "t"), ("u", "r"), ("a", "s"), ("Ġh", "e"), ("Ġ", "is"),
    ]

    init(vocabularySize: Int) throws(ServingError) {
        guard vocabularySize > Self.bytesCount else {
            throw ServingError(
                .invalidValue,
                "vocabularySize: \(vocabularySize) is below \(Self.bytesCount + 1), all bytes and an end token",
                field: "vocabularySize", blast: .process)
        }
        let merges = Self.frequentMerges.prefix(vocabularySize - Self.bytesCount - 1)
        let spellings = Self.byteAlphabet() + merges.map { $0.0 + $0.1 }
        endToken = UInt32(spellings.count)
        let words = Self.words(vocabularySize - spellings.count - 1, besides: Set(spellings))
        let vocabulary =
            spellings.enumerated().map { ($1, JSONValue.integer(Int64($0))) }
            + words.enumerated().map { ($1, JSONValue.integer(Int64(spellings.count + 1 + $0))) }
        let byteLevel: JSONValue = [
            "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true,
        ]
        json = [
            "version": "1.0",
            "added_tokens": [
                [
                    "id": .integer(Int64(endToken)), "content": .string(Self.endText), "single_word": false,
                    "lstrip": false, "rstrip": false, "normalized": false, "special": true,
                ]
            ],
            "normalizer": nil,
            "pre_tokenizer": byteLevel,
            "post_processor": nil,
            "decoder": byteLevel,
            "model": [
                "type": "BPE",
                "vocab": .object(JSONObject(vocabulary)),
                "merges": .array(merges.map { [.string($0.0), .string($0.1)] }),
            ],
        ]
        configJSON = [
            "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": .string(Self.endText),
            "chat_template": .string(Self.template),
        ]
    }

    /// A space and a consonant and a vowel by turns: ` ba`, ` be`, … ` baba`.
    private static func words(_ count: Int, besides taken: Set<String>) -> [String] {
        let syllables = "bcdfghjklmnprstvwz".flatMap { consonant in "aeiouy".map { "\(consonant)\($0)" } }
        var words: [String] = []
        words.reserveCapacity(count)
        var number = 0
        while words.count < count {
            var (rest, word) = (number, "")
            repeat {
                word = syllables[rest % syllables.count] + word
                rest = rest / syllables.count - 1
            } while rest >= 0
            number += 1
            if !taken.contains("Ġ" + word) { words.append("Ġ" + word) }
        }
        return words
    }

    private static let template =
        "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
        + "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"

    /// The character that stands for each byte in GPT-2's byte-level alphabet: printable bytes stand
    /// for themselves, the others for characters from U+0100 on.
    private static func byteAlphabet() -> [String] {
        var next: UInt32 = 0x100
        return (UInt32(0)..<256).map { byte in
            let isPrintable =
                (0x21...0x7E).contains(byte) || (0xA1...0xAC).contains(byte) || (0xAE...0xFF).contains(byte)
            if !isPrintable { next += 1 }
            return Unicode.Scalar(isPrintable ? byte : next - 1).map { String($0) } ?? ""
        }
    }
}
