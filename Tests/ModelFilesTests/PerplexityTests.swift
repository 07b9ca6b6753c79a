import Foundation
import ModelRuntime
import ServingTypes
import Testing

@testable import ModelFiles

@Suite struct HeldOutTextTests {
    /// Paragraphs of 10 characters each: a fortieth of 80 of them is 20 characters, the last two.
    @Test func theLastFortiethOfEachTextIsHeldOutInWholeParagraphs() {
        func book(_ letter: String) -> String {
            (10..<90).map { letter + "-------" + "\($0)" }.joined(separator: "\n\n")
        }
        let endings = HeldOutText.endings(of: book("a") + "<|endoftext|>\n\n" + book("b"), share: 40)
        #expect(
            endings == [
                "<|endoftext|>a-------88\n\na-------89\n\n", "<|endoftext|>b-------88\n\nb-------89\n\n",
            ])
    }

    @Test func aShareThatCutsAParagraphTakesAllOfIt() {
        let endings = HeldOutText.endings(of: "one\n\ntwo\n\n  three  \n\n\n\n", share: 3)
        #expect(endings == ["<|endoftext|>three\n\n"])
        #expect(HeldOutText.endings(of: "one\n\ntwo", share: 1) == ["<|endoftext|>one\n\ntwo\n\n"])
    }

    @Test func windowsLieInTheTextAndAreSpread() {
        #expect(TextWindows.starts(tokens: 31, window: 10, most: 0) == [0, 10, 20])
        // The token after the last window is wanted too.
        #expect(TextWindows.starts(tokens: 30, window: 10, most: 0) == [0, 10])
        #expect(TextWindows.starts(tokens: 101, window: 10, most: 3) == [0, 30, 60])
        #expect(TextWindows.starts(tokens: 5, window: 10, most: 3) == [])
    }
}

@Suite struct LogProbabilityTests {
    @Test func normalisedRowsSumToOneWhateverTheirSize() {
        for shift: Float in [-500, 0, 500] {
            var row = [1, 2, 3, 4].map { Float($0) + shift }
            LogProbabilities.normalise(&row)
            let sum = row.reduce(0.0) { $0 + exp(Double($1)) }
            #expect(abs(sum - 1) < 1e-5)
        }
    }

    @Test func divergenceIsTheOneByHand() {
        let exact = [0.5, 0.25, 0.25].map { Float(log($0)) }
        let other = [0.25, 0.5, 0.25].map { Float(log($0)) }
        let (divergence, sameTop) = LogProbabilities.compare(exact, other)
        // 0.5 ln 2 - 0.25 ln 2
        #expect(abs(divergence - 0.25 * log(2.0)) < 1e-6)
        #expect(!sameTop)
        let itself = LogProbabilities.compare(exact, exact)
        #expect(itself.divergence == 0 && itself.sameTop)
    }

    @Test func aModelAgainstItselfDivergesByNothingAndQ4ByMore() throws {
        try TemporaryFolder.use { temporary in
            let folder = temporary.path
            let spec = ModelSpec(
                family: .llama, layerCount: 2, hiddenSize: 64, headCount: 4, kvHeadCount: 2, headDim: 16, ffnSize: 96,
                vocabularySize: 320, contextTokensMax: 64)
            try RandomModel.write(folder: folder, spec: spec, seed: 5)
            try GGUFExport.write(folder: folder, to: folder + "/q4.gguf", as: .q4_0)
            var judges = try [folder, folder, folder + "/q4.gguf"].map {
                try VariantJudge(
                    name: "v", path: $0, kvType: .f32, options: EngineOptions(), vocabularySize: 320, window: 40)
            }
            let window = (0...40).map { TokenID(UInt32($0 * 37 % 320)) }
            let exact = try judges[0].measure(window, against: nil)
            #expect(exact.count == 40)
            for place in [1, 2] { _ = try judges[place].measure(window, against: exact) }
            #expect(judges[1].meanKL == 0 && judges[1].sameTop == 1)
            #expect(judges[1].perplexity == judges[0].perplexity)
            #expect(judges[2].meanKL > 1e-6 && judges[2].largestKL >= judges[2].meanKL)
        }
    }

    @Test func anotherVocabularyIsRefused() throws {
        try TemporaryFolder.use { temporary in
            let folder = temporary.path
            let spec = ModelSpec(
                family: .llama, layerCount: 1, hiddenSize: 32, headCount: 2, kvHeadCount: 1, headDim: 16, ffnSize: 32,
                vocabularySize: 300)
            try RandomModel.write(folder: folder, spec: spec, seed: 5)
            #expect(throws: ServingError.self) {
                try VariantJudge(
                    name: "v", path: folder, kvType: .f32, options: EngineOptions(), vocabularySize: 301, window: 8)
            }
        }
    }
}
