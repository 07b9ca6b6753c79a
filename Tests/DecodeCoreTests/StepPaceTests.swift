import ServingTypes
import Testing

@testable import DecodeCore

/// Steps that hold prompt beside decoding jobs keep to a limit of time.
@Suite struct StepPaceTests {
    /// A machine that takes 10 ms for decoding and 1 ms for each prompt token.
    private func pace() -> StepPace {
        var pace = StepPace()
        for _ in 0..<50 { pace.observe(decoders: 4, prefilled: 0, time: .milliseconds(10)) }
        for tokens in [16, 40, 16, 100] {
            pace.observe(decoders: 4, prefilled: tokens, time: .milliseconds(Int64(10 + tokens)))
        }
        return pace
    }

    @Test func aChunkTakesWhatTheLimitLeaves() {
        let pace = pace()
        #expect((48...52).contains(pace.tokens(within: .milliseconds(60), stretch: nil)))
        #expect((188...192).contains(pace.tokens(within: .milliseconds(200), stretch: nil)))
        #expect((18...22).contains(pace.tokens(within: nil, stretch: 3)), "30 ms")
        #expect((18...22).contains(pace.tokens(within: .milliseconds(200), stretch: 3)), "the lesser of both")
        #expect((48...52).contains(pace.tokens(within: .milliseconds(60), stretch: 30)))
    }

    @Test func promptsNeverStarveHoweverShortTheLimit() {
        #expect(pace().tokens(within: .milliseconds(5), stretch: nil) == StepPace.tokensMin)
        #expect(pace().tokens(within: nil, stretch: 1) == StepPace.tokensMin)
        #expect(StepPace().tokens(within: .seconds(9), stretch: 5) == StepPace.tokensMin, "nothing is known yet")
    }

    @Test func withoutDecodingJobsAChunkIsAsLongAsEver() {
        for limit in [nil, TimeSpan.milliseconds(1)] {
            var bench = DecodeBench {
                $0.stepLimit = limit
                $0.prefillChunkTokens = 24
                $0.stepTokensMax = 64
            }
            bench.start(id(1), prompt(24), max: 4)
            #expect(bench.step?.entries.map(\.tokens.count) == [24], "alone")
            bench.finishStep()
            bench.start(id(2), prompt(24, from: 40), max: 4)
            bench.finishStep()
            #expect(
                bench.step?.entries.map(\.tokens.count) == (limit == nil ? [1, 24] : [1, StepPace.tokensMin]),
                "beside a decoding job")
        }
    }

    /// The limit changes how a prompt is cut, and nothing else.
    @Test func textsAreTheSameWithAnyLimit() {
        var outputs: [[TokenID]] = []
        for limit in [nil, TimeSpan.milliseconds(1), .seconds(1)] {
            var bench = DecodeBench { $0.stepLimit = limit }
            bench.start(id(1), prompt(5), max: 12)
            bench.finishStep()
            bench.start(id(2), prompt(30, from: 50), max: 3)
            var output: [TokenID] = []
            while bench.finishStep() {
                for step in bench.steps where step.transfer == id(2) { output += step.tokens.map(\.token) }
            }
            outputs.append(output)
        }
        #expect(outputs[0].count == 3)
        #expect(outputs.allSatisfy { $0 == outputs[0] })
    }
}
