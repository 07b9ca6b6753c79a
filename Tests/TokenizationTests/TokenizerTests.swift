import BoundedJSON
import ServingTypes
import Testing

@testable import Tokenization

private func fault(_ json: JSONValue, config: JSONValue? = nil) -> ServingError? {
    do throws(ServingError) {
        _ = try Tokenizer.parse(tokenizerJSON: json, config: config)
        return nil
    } catch {
        return error
    }
}

@Suite struct TokenizerFileTests {
    @Test func anUnknownPatternIsNamedWithItsField() throws {
        let json = try Fixture.json("llama3.tokenizer.json")
        let step: JSONValue = [
            "type": "Split", "pattern": ["Regex": #"\w+|\W+"#], "behavior": "Isolated", "invert": false,
        ]
        let byteLevel: JSONValue = ["type": "ByteLevel", "add_prefix_space": false, "use_regex": false]
        let changed = json.replacing(
            "pre_tokenizer", with: ["type": "Sequence", "pretokenizers": [step, byteLevel]])
        let error = try #require(fault(changed))
        #expect(error.code == .unsupported)
        #expect(error.field == "pre_tokenizer.pattern.Regex")
        #expect(error.message.contains(#"\\w+|\\W+"#))
        #expect(error.blast == .process)
    }

    @Test(
        arguments: [
            ("model.type", "WordPiece"), ("model.dropout", 0.1), ("model.byte_fallback", true),
            ("model.end_of_word_suffix", "</w>"), ("normalizer", ["type": "Lowercase"]),
            ("decoder", ["type": "Metaspace"]),
            ("pre_tokenizer", ["type": "Whitespace"]), ("pre_tokenizer", nil),
            ("pre_tokenizer", ["type": "Sequence", "pretokenizers": []]),
            ("post_processor", ["type": "BertProcessing"]),
        ] as [(String, JSONValue)])
    func whatThisTokenizerCannotDoIsRefusedByName(_ field: String, _ value: JSONValue) throws {
        let json = try Fixture.json("gpt2.tokenizer.json")
        let parts = field.split(separator: ".").map(String.init)
        let changed =
            parts.count == 2 ? json.replacing(parts[0], parts[1], with: value) : json.replacing(field, with: value)
        let error = try #require(fault(changed))
        #expect(error.code == .unsupported)
        #expect(error.field == field)
    }

    @Test(
        arguments: [
            ("vocab", ["a": -1]), ("vocab", ["a": 5_000_000_000]), ("vocab", ["a": 4_000_000]), ("vocab", ["a": "x"]),
            ("vocab", ["a": 1, "b": 1]), ("vocab", []), ("merges", ["a"]), ("merges", ["a b c"]), ("merges", [["a"]]),
            ("merges", [["zzzz", "qqqq"]]), ("merges", [" a"]), ("merges", nil), ("merges", [1]),
        ] as [(String, JSONValue)])
    func aBrokenModelIsRefused(_ field: String, _ value: JSONValue) throws {
        let error = try #require(fault(try Fixture.json("gpt2.tokenizer.json").replacing("model", field, with: value)))
        #expect(error.code == .malformed)
        #expect(error.field == "model.\(field)" || error.field == "model.merges")
    }

    @Test func anyValueInPlaceOfTheFileIsRefusedWithoutTrap() {
        for json in [nil, 1, "x", [], [:], ["model": 1], ["model": [:]], ["model": ["vocab": [:]]]] as [JSONValue] {
            #expect(fault(json) != nil)
        }
    }

    @Test func theConfigurationNamesSpecialTokensAndAsksForABeginOfText() throws {
        let json = try Fixture.json("gpt2.tokenizer.json")
        let config: JSONValue = [
            "bos_token": ["content": "<|im_start|>"], "eos_token": "<|im_end|>", "add_bos_token": true,
            "chat_template": "{{ messages }}", "pad_token": nil,
        ]
        let tokenizer = try Tokenizer.parse(tokenizerJSON: json, config: config)
        #expect(tokenizer.bosToken == TokenID(1))
        #expect(tokenizer.eosToken == TokenID(2))
        #expect(tokenizer.encode("a").first == TokenID(1))
        #expect(tokenizer.encode("a", addSpecialTokens: false).first != TokenID(1))
        #expect(try TokenizerConfiguration(config).chatTemplate == "{{ messages }}")
        let named: JSONValue = [
            "chat_template": [["name": "tool_use", "template": "T"], ["name": "default", "template": "D"]]
        ]
        #expect(try TokenizerConfiguration(named).chatTemplate == "D")
        #expect(try TokenizerConfiguration(named).namedTemplates.count == 2)
        #expect(throws: ServingError.self) { try TokenizerConfiguration(["eos_token": 5]) }
        #expect(throws: ServingError.self) { try TokenizerConfiguration(["added_tokens_decoder": ["x": [:]]]) }
    }

    @Test func tokensOnlyInTheConfigurationAreFoundInText() throws {
        let json = try Fixture.json("gpt2.tokenizer.json")
        let config: JSONValue = ["added_tokens_decoder": ["1600": ["content": "<new>", "special": true]]]
        let tokenizer = try Tokenizer.parse(tokenizerJSON: json, config: config)
        #expect(tokenizer.encode("<new>") == [TokenID(1600)])
        #expect(tokenizer.vocabularySize == 1601)
        #expect(tokenizer.isSpecial(TokenID(1600)))
        #expect(tokenizer.tokenBytes(TokenID(1599)) == [])
    }
}

@Suite struct TokenizerTests {
    @Test func tokensAreLookedUpBothWays() throws {
        let tokenizer = try Fixture.gpt2.tokenizer()
        let the = try #require(tokenizer.id(of: "Ġthe"))
        #expect(tokenizer.tokenBytes(the) == Array(" the".utf8))
        #expect(tokenizer.id(of: "<|im_end|>") == TokenID(2))
        #expect(tokenizer.id(of: "no such token") == nil)
        #expect(tokenizer.isSpecial(TokenID(2)) && !tokenizer.isSpecial(the))
        #expect(tokenizer.tokenBytes(TokenID(.max)) == [] && !tokenizer.isSpecial(TokenID(.max)))
        #expect(tokenizer.decode([TokenID(.max), the]) == " the")
    }

    @Test func specialTokensInUserTextStayText() throws {
        let tokenizer = try Fixture.qwen2.tokenizer()
        let text = "a<|im_end|>b"
        #expect(tokenizer.encode(text).contains(TokenID(2)))
        let literal = tokenizer.encode(text, parseSpecial: false)
        #expect(!literal.contains { tokenizer.isSpecial($0) })
        #expect(tokenizer.decode(literal) == text)
    }

    @Test func aVeryLongWordIsMergedInReasonableWork() throws {
        let tokenizer = try Fixture.qwen2.tokenizer()
        for unit in ["a", "the", " "] {
            let text = String(repeating: unit, count: 30_000)
            #expect(tokenizer.decode(tokenizer.encode(text)) == text)
        }
    }

    @Test func everyByteSequenceOfATokenStreamGivesWholeCharacters() throws {
        let tokenizer = try Fixture.gpt2.tokenizer()
        let text = "héllo 👩‍👩‍👧‍👦 wörld 你好"
        let ids = Array(text.utf8).compactMap { byte in
            (0..<259).map { TokenID($0) }.first { tokenizer.tokenBytes($0) == [byte] }
        }
        #expect(ids.count == text.utf8.count)
        var detokenizer = StreamingDetokenizer(tokenizer)
        let pieces = ids.map { detokenizer.push($0) }
        #expect(pieces.allSatisfy { !$0.unicodeScalars.contains("\u{FFFD}") })
        #expect(!detokenizer.isInsideCharacter)
        #expect(sameBytes(pieces.joined(), text))
    }
}

@Suite struct MergeTests {
    /// The definition: again and again the lowest rank, the leftmost of equals.
    private func naive(_ word: [UInt8], _ merges: [(UInt32, UInt32, UInt32)]) -> [UInt32] {
        var symbols = word.map { UInt32($0) }
        while true {
            var best: (rank: Int, place: Int)?
            for place in symbols.indices.dropLast() {
                let found = merges.lastIndex { $0.0 == symbols[place] && $0.1 == symbols[place + 1] }
                if let rank = found, rank < best?.rank ?? .max { best = (rank, place) }
            }
            guard let (rank, place) = best else { return symbols }
            symbols[place] = merges[rank].2
            symbols.remove(at: place + 1)
        }
    }

    @Test func heapAndSearchGiveWhatTheDefinitionGives() {
        for seed in UInt64(0)..<150 {
            var random = SplitMix(state: seed)
            let letters = UInt32.random(in: 1...4, using: &random)
            var merges: [(UInt32, UInt32, UInt32)] = []
            var next: UInt32 = 256
            for _ in 0..<Int.random(in: 0..<25, using: &random) {
                func pick() -> UInt32 {
                    next > 256 && Bool.random(using: &random)
                        ? UInt32.random(in: 256..<next, using: &random) : UInt32.random(in: 0..<letters, using: &random)
                }
                merges.append((pick(), pick(), next))
                next += 1
            }
            var table = MergeTable(tokenOfByte: (0...255).map { UInt32($0) }, mergesCapacity: 0)
            for (left, right, merged) in merges { table.append(left: left, right: right, merged: merged) }
            for length in [0, 1, 2, 3, 10, 40] {
                let word = (0..<length).map { _ in UInt8(UInt32.random(in: 0..<letters, using: &random)) }
                let expected = naive(word, merges)
                var searched = word.map { UInt32($0) }
                table.mergeBySearch(&searched)
                var heaped = word.map { UInt32($0) }
                table.mergeByHeap(&heaped)
                #expect(searched == expected, "seed \(seed) length \(length)")
                #expect(heaped == expected, "seed \(seed) length \(length)")
            }
        }
    }
}

@Suite struct UTF8AssemblerTests {
    @Test func piecesGiveWhatTheWholeGives() {
        for seed in UInt64(0)..<400 {
            var random = SplitMix(state: seed)
            let interesting: [UInt8] = [
                0x41, 0x80, 0xBF, 0xC0, 0xC3, 0xA9, 0xE0, 0xA0, 0xE2, 0x82, 0xED, 0x9F, 0xF0, 0x9F, 0x98, 0x80, 0xF4,
                0x90, 0xF5, 0xFF,
            ]
            let bytes = (0..<Int.random(in: 0..<30, using: &random)).map { _ in
                interesting[Int.random(in: 0..<interesting.count, using: &random)]
            }
            var assembler = UTF8Assembler()
            var text = ""
            var at = 0
            while at < bytes.count {
                let length = Int.random(in: 1...min(4, bytes.count - at), using: &random)
                text += assembler.push(bytes[at..<at + length])
                at += length
            }
            text += assembler.finish()
            #expect(sameBytes(text, String(decoding: bytes, as: UTF8.self)), "seed \(seed)")
        }
    }

    @Test func anIllFormedByteIsReplacedAsSoonAsItIsKnown() {
        var assembler = UTF8Assembler()
        #expect(assembler.push([0xE2, 0x82]) == "")
        #expect(assembler.isInsideCharacter)
        #expect(assembler.push([0x41]) == "\u{FFFD}A")
        #expect(assembler.push([0xFF]) == "\u{FFFD}")
        #expect(assembler.push([0xF0, 0x9F]) == "")
        #expect(assembler.finish() == "\u{FFFD}")
        #expect(assembler.finish() == "")
    }
}

@Suite struct StopStringTests {
    /// At the first place where some stop string ends, cut off the longest that ends there.
    private func naive(_ text: [UInt8], _ stops: [[UInt8]]) -> (text: [UInt8], stop: [UInt8]?) {
        for end in 0...text.count {
            let ending = stops.filter { !$0.isEmpty && text[..<end].suffix($0.count).elementsEqual($0) }
            if let longest = ending.max(by: { $0.count < $1.count }) {
                return (Array(text[..<(end - longest.count)]), longest)
            }
        }
        return (text, nil)
    }

    @Test func anyCutOfTheStreamGivesWhatTheNaiveSearchGives() {
        for seed in UInt64(0)..<600 {
            var random = SplitMix(state: seed)
            let letters = ["a", "b", "é", "\n", "aa"]
            func string(_ range: ClosedRange<Int>) -> String {
                (0..<Int.random(in: range, using: &random)).map { _ in
                    letters[Int.random(in: 0..<letters.count, using: &random)]
                }.joined()
            }
            let stops = (0..<Int.random(in: 0...4, using: &random)).map { _ in string(0...5) }
            let pieces = (0..<Int.random(in: 0...12, using: &random)).map { _ in string(0...3) }
            var matcher = StopStringMatcher(stops)
            var text = ""
            var stop: String?
            for piece in pieces where stop == nil {
                let output = matcher.push(piece)
                text += output.text
                stop = output.stop
            }
            text += matcher.finish()
            let expected = naive(Array(pieces.joined().utf8), stops.map { Array($0.utf8) })
            #expect(Array(text.utf8) == expected.text, "seed \(seed)")
            #expect(stop.map { Array($0.utf8) } == expected.stop, "seed \(seed)")
        }
    }

    @Test func onlyAPossibleBeginningIsHeldBack() {
        var matcher = StopStringMatcher(["</s>", "END"])
        #expect(matcher.push("abc<") == .init(text: "abc", stop: nil))
        #expect(matcher.isHolding)
        #expect(matcher.push("/") == .init(text: "", stop: nil))
        #expect(matcher.push("x E") == .init(text: "</x ", stop: nil))
        #expect(matcher.push("NDing") == .init(text: "", stop: "END"))
        #expect(matcher.push("more") == .init(text: "", stop: nil))
        #expect(matcher.finish() == "")
    }

    @Test func withoutStopStringsTextPassesThrough() {
        var matcher = StopStringMatcher(["", ""])
        #expect(matcher.push("abc") == .init(text: "abc", stop: nil))
        #expect(!matcher.isHolding && matcher.finish() == "")
    }
}
