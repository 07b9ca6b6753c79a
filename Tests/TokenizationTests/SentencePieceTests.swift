import BoundedJSON
import ServingTypes
import Testing

@testable import Tokenization

/// Google's `sentencepiece` is the judge: `ops/fixtures/gguf_fixtures.py` trained the vocabulary.
@Suite struct SentencePieceTests {
    private func model() throws -> TokenizerModel {
        var model = TokenizerModel()
        var pieces = TokenizerModel.SentencePiece()
        for (index, entry) in (try Fixture.json("sentencepiece.json")["tokens"]?.arrayValue ?? []).enumerated() {
            let parts = try #require(entry.arrayValue)
            let (text, id) = (try #require(parts[0].stringValue), UInt32(index))
            pieces.scores.append(Float(try #require(parts[1].doubleValue)))
            switch parts[2].intValue {
            case 2: pieces.unknownToken = id
            case 3:
                var token = TokenizerModel.AddedToken(id: id, content: text)
                token.special = true
                model.addedTokens.append(token)
            case 6:
                let byte = try #require(UInt8(text.dropFirst(3).dropLast(), radix: 16))
                pieces.byteTokens.append(.init(byte: byte, id: id, text: text))
            default: model.vocabulary.append(.init(text: text, id: id))
            }
        }
        model.sentencePiece = pieces
        model.bosToken = 1
        model.prefixTokens = [1]
        return model
    }

    private func cases() throws -> [JSONValue] { try Fixture.json("sentencepiece.json")["cases"]?.arrayValue ?? [] }

    @Test func encodingAgreesWithSentencePiece() throws {
        let tokenizer = try Tokenizer(try model())
        let cases = try cases()
        #expect(cases.count > 200)
        for entry in cases {
            let text = try #require(entry["text"]?.stringValue)
            let ids = try #require(entry["ids"]).ids
            let found = tokenizer.encode(text, addSpecialTokens: false, parseSpecial: false)
            #expect(found == ids, "\(JSON.quoted(text))")
        }
    }

    @Test func textComesBackAfterItsSpacePrefix() throws {
        let tokenizer = try Tokenizer(try model())
        for entry in try cases() {
            let text = try #require(entry["text"]?.stringValue)
            // U+2581 is this family's spelling of a space.
            guard !text.unicodeScalars.contains("\u{2581}"), !text.utf8.isEmpty else { continue }
            let ids = tokenizer.encode(text, addSpecialTokens: false, parseSpecial: false)
            #expect(sameBytes(tokenizer.decode(ids), " " + text), "\(JSON.quoted(text))")
            var stream = StreamingDetokenizer(tokenizer)
            #expect(sameBytes(ids.map { stream.push($0) }.joined() + stream.finish(), " " + text))
        }
    }

    @Test func aPrefixIsPutAfterEveryAddedToken() throws {
        let tokenizer = try Tokenizer(try model())
        let end = try #require(tokenizer.id(of: "</s>"))
        let begin = try #require(tokenizer.bosToken)
        let plain = tokenizer.encode("the", addSpecialTokens: false)
        #expect(tokenizer.encode("the</s>the") == [begin] + plain + [end] + plain)
        #expect(tokenizer.encode("the</s>", parseSpecial: false) != tokenizer.encode("the</s>"))
        #expect(tokenizer.isSpecial(end) && tokenizer.decode(plain + [end]) == " the")
        #expect(tokenizer.id(of: "<0x41>").map { tokenizer.tokenBytes($0) } == [0x41])
        #expect(tokenizer.id(of: "\u{2581}the").map { tokenizer.tokenBytes($0) } == Array(" the".utf8))
    }

    @Test func withoutByteTokensACharacterIsUnknownOrDropped() throws {
        var model = try model()
        model.sentencePiece?.byteTokens = []
        model.sentencePiece?.addsSpacePrefix = false
        let ids = try Tokenizer(model).encode("a\u{1F600}a", addSpecialTokens: false)
        let letter = try #require(try Tokenizer(model).id(of: "a"))
        #expect(ids == [letter, TokenID(0), letter])
        model.sentencePiece?.unknownToken = nil
        #expect(try Tokenizer(model).encode("\u{1F600}", addSpecialTokens: false).isEmpty)
    }

    @Test func aTokenWithoutAScoreIsRefused() throws {
        var model = try model()
        model.sentencePiece?.scores.removeLast()
        #expect(throws: ServingError.self) { _ = try Tokenizer(model) }
    }

    /// The definition, word by word: look at all pairs, merge the best, begin again.
    private func slowly(_ text: String, _ ranks: [[UInt8]: (id: UInt32, score: Float)]) -> [[UInt8]] {
        var symbols = text.unicodeScalars.map { Array(String($0).utf8) }
        while true {
            var best: (place: Int, score: Float)?
            for place in symbols.indices.dropLast() {
                guard let piece = ranks[symbols[place] + symbols[place + 1]] else { continue }
                if best.map({ piece.score > $0.score }) ?? true { best = (place, piece.score) }
            }
            guard let best else { return symbols }
            symbols[best.place] += symbols.remove(at: best.place + 1)
        }
    }

    @Test func randomTextsMergeAsTheDefinitionSays() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        // Few letters and few scores, so that ties and outgrown candidates are the rule.
        for round in 0..<40 {
            var model = TokenizerModel()
            var pieces = TokenizerModel.SentencePiece()
            var ranks: [[UInt8]: (id: UInt32, score: Float)] = [:]
            let letters = ["a", "b", "c"]
            for _ in 0..<24 {
                let length = Int.random(in: 1...4, using: &random)
                let text = (0..<length).map { _ in letters[Int.random(in: 0..<3, using: &random)] }.joined()
                guard ranks[Array(text.utf8)] == nil else { continue }
                let id = UInt32(model.vocabulary.count)
                let score = Float(Int.random(in: 0...3, using: &random))
                ranks[Array(text.utf8)] = (id, score)
                model.vocabulary.append(.init(text: text, id: id))
                pieces.scores.append(score)
            }
            pieces.addsSpacePrefix = false
            model.sentencePiece = pieces
            let tokenizer = try Tokenizer(model)
            let text = (0..<Int.random(in: 0...60, using: &random)).map { _ in
                letters[Int.random(in: 0..<3, using: &random)]
            }.joined()
            let expected = slowly(text, ranks).compactMap { ranks[$0].map { TokenID($0.id) } }
            #expect(tokenizer.encode(text) == expected, "seed \(seed) round \(round)")
        }
    }
}
