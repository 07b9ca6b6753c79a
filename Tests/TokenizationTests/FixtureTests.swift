import BoundedJSON
import ServingTypes
import Testing

@testable import Tokenization

/// Hugging Face's `tokenizers` is the judge.
@Suite struct FixtureTests {
    @Test(arguments: Fixture.allCases)
    func encodingAgreesWithHuggingFace(_ fixture: Fixture) throws {
        let tokenizer = try fixture.tokenizer()
        let cases = try fixture.cases()["encode"]?.arrayValue ?? []
        #expect(cases.count > 300)
        var cache = WordCache()
        for entry in cases {
            let text = try #require(entry["text"]?.stringValue)
            let ids = try #require(entry["ids"]).ids
            #expect(tokenizer.encode(text, cache: &cache) == ids, "\(fixture) \(JSON.quoted(text))")
            guard let literal = entry["literal_ids"] else { continue }
            let found = tokenizer.encode(text, addSpecialTokens: false, parseSpecial: false, cache: &cache)
            #expect(found == literal.ids, "\(fixture) literally \(JSON.quoted(text))")
        }
    }

    @Test(arguments: Fixture.allCases)
    func decodingAgreesWithHuggingFace(_ fixture: Fixture) throws {
        let tokenizer = try fixture.tokenizer()
        let cases = try fixture.cases()["decode"]?.arrayValue ?? []
        #expect(cases.count > 100)
        for entry in cases {
            let ids = try #require(entry["ids"]).ids
            for (field, skip) in [("text", true), ("all", false)] {
                let expected = try #require(entry[field]?.stringValue)
                #expect(sameBytes(tokenizer.decode(ids, skipSpecial: skip), expected), "\(fixture) \(ids)")
            }
        }
    }

    @Test(arguments: Fixture.allCases)
    func streamedPiecesTogetherAreTheDecodedText(_ fixture: Fixture) throws {
        let tokenizer = try fixture.tokenizer()
        for entry in try fixture.cases()["decode"]?.arrayValue ?? [] {
            let ids = try #require(entry["ids"]).ids
            for skip in [true, false] {
                var detokenizer = StreamingDetokenizer(tokenizer, skipSpecial: skip)
                let streamed = ids.map { detokenizer.push($0) }.joined() + detokenizer.finish()
                #expect(sameBytes(streamed, tokenizer.decode(ids, skipSpecial: skip)), "\(fixture) \(ids)")
            }
        }
    }

    @Test(arguments: [Fixture.gpt2, .llama3, .digits])
    func textWithoutStrippingTokensComesBackByteForByte(_ fixture: Fixture) throws {
        let tokenizer = try fixture.tokenizer()
        let eclair = tokenizer.id(of: "\u{E9}clair")
        for entry in try fixture.cases()["encode"]?.arrayValue ?? [] {
            let text = try #require(entry["text"]?.stringValue)
            // The added token "\u{E9}clair" is spelled inside the byte alphabet, so Hugging Face decodes its
            // first letter as the byte E9; this tokenizer follows.
            let ids = tokenizer.encode(text, addSpecialTokens: false, parseSpecial: false)
            if let eclair, ids.contains(eclair) { continue }
            #expect(sameBytes(tokenizer.decode(ids, skipSpecial: false), text), "\(fixture) \(JSON.quoted(text))")
        }
    }

    @Test func theCacheNeverChangesTheTokens() throws {
        let tokenizer = try Fixture.llama3.tokenizer()
        var cache = WordCache()
        for _ in 0..<2 {
            for entry in try Fixture.llama3.cases()["encode"]?.arrayValue ?? [] {
                let text = try #require(entry["text"]?.stringValue)
                #expect(tokenizer.encode(text, cache: &cache) == tokenizer.encode(text))
            }
        }
    }
}
