import ServingTypes
import Testing

@testable import ModelRuntime

struct SamplerTests {
    private func request(
        history: [UInt32] = [], prompt: Int = 0, output: Int = 0, _ change: (inout SamplingParameters) -> Void
    ) -> SampleRequest {
        var parameters = SamplingParameters()
        change(&parameters)
        return SampleRequest(
            parameters: parameters, history: history.map { TokenID($0) }, promptTokens: prompt, outputTokens: output)
    }

    private func token(_ logits: [Float], _ request: SampleRequest, _ kernels: Kernels = .best) -> UInt32? {
        guard case .sampled(let sampled) = Sampler(kernels: kernels).draw(logits, request) else { return nil }
        return sampled.token.value
    }

    /// How often each token comes at positions 0 ..< 2000.
    private func histogram(_ logits: [Float], _ change: (inout SamplingParameters) -> Void) -> [Int] {
        var counts = [Int](repeating: 0, count: logits.count)
        for position in 0..<2000 {
            if let drawn = token(logits, request(output: position, change)) { counts[Int(drawn)] += 1 }
        }
        return counts
    }

    @Test func greedyTakesTheLargestAndTiesGoToTheLowest() {
        #expect(token([1, 5, 5, 2], request { $0.temperature = 0 }) == 1)
        #expect(token([1, 5, 5, 2], request { $0.topK = 1 }) == 1)
    }

    @Test func aBiasIsAddedBeforeAnythingElse() {
        let biased = request {
            $0.temperature = 0
            $0.logitBias = [TokenBias(token: TokenID(3), bias: 9), TokenBias(token: TokenID(900), bias: 9)]
        }
        #expect(token([1, 5, 5, 2], biased) == 3)
    }

    @Test func stopTokensAreBarredUntilTheMinimumLength() {
        let change = { (p: inout SamplingParameters) in
            p.temperature = 0
            p.minTokens = 2
            p.stopTokens = [TokenID(1)]
        }
        #expect(token([1, 5, 4, 2], request(output: 1, change)) == 2)
        #expect(token([1, 5, 4, 2], request(output: 2, change)) == 1)
    }

    @Test func repetitionCountsPromptAndOutputButPresenceAndFrequencyCountOutputOnly() {
        let history: [UInt32] = [0, 0, 1, 2, 2]  // prompt 0 0 1, output 2 2
        let logits: [Float] = [6, 5, 5.5, -1]
        func drawn(_ change: @escaping (inout SamplingParameters) -> Void) -> UInt32? {
            token(
                logits,
                request(history: history, prompt: 3, output: 2) {
                    $0.temperature = 0
                    change(&$0)
                })
        }
        #expect(drawn { $0.repetitionPenalty = 1.05 } == 0)
        #expect(drawn { $0.repetitionPenalty = 100 } == 0)
        #expect(drawn { $0.presencePenalty = 50 } == 0)
        #expect(drawn { $0.presencePenalty = -1 } == 2)
        #expect(drawn { $0.frequencyPenalty = -0.3 } == 2)
        #expect(drawn { $0.frequencyPenalty = -0.2 } == 0)
        let negative = request(history: [0], prompt: 1) {
            $0.temperature = 0
            $0.repetitionPenalty = 3
        }
        #expect(token([-1, -2], negative) == 1)
    }

    @Test func topKKeepsTheBestKAndTopPTheShortestPrefixThatReachesP() {
        let logits: [Float] = [0, 3, 1, 2]  // probabilities about 0.03, 0.64, 0.09, 0.24
        #expect(histogram(logits) { $0.topK = 2 }.map { $0 > 0 } == [false, true, false, true])
        #expect(histogram(logits) { $0.topP = 0.6 }.map { $0 > 0 } == [false, true, false, false])
        #expect(histogram(logits) { $0.topP = 0.7 }.map { $0 > 0 } == [false, true, false, true])
        #expect(histogram(logits) { $0.topP = 0.9 }.map { $0 > 0 } == [false, true, true, true])
        #expect(histogram(logits) { $0.minP = 0.3 }.map { $0 > 0 } == [false, true, false, true])
        // Top-p is of what top-k left: 0.64 / 0.88 = 0.73 is reached by one token.
        let both = histogram(logits) {
            $0.topK = 2
            $0.topP = 0.7
        }
        #expect(both.map { $0 > 0 } == [false, true, false, false])
    }

    @Test func drawsFollowTheProbabilities() {
        let logits: [Float] = [0, 1, 2, -1]
        for (temperature, truncation) in [(Float(1), Float(1)), (0.5, 1), (2, 0.9999)] {
            let counts = histogram(logits) {
                $0.temperature = temperature
                $0.topP = truncation
                $0.seed = 11
            }
            var random: [Double] = logits.map { Double($0 / temperature) }
            random = random.map { exponential($0) }
            let total = random.reduce(0, +)
            for (count, weight) in zip(counts, random) {
                // Five standard deviations of 2000 draws are below 0.06.
                #expect(abs(Double(count) / 2000 - weight / total) < 0.06, "temperature \(temperature)")
            }
        }
    }

    private func exponential(_ x: Double) -> Double {
        (1...40).reduce((1.0, 1.0)) { sum, n in (sum.0 + sum.1 * x / Double(n), sum.1 * x / Double(n)) }.0
    }

    @Test func seedAndPositionAreTheOnlyRandomness() {
        var random = SeededGenerator(seed: 3)
        let logits = (0..<500).map { _ in Float.random(in: -2...2, using: &random) }
        let first = (0..<50).map { token(logits, request(output: $0) { $0.seed = 7 }) }
        let again = (0..<50).map { token(logits, request(output: $0) { $0.seed = 7 }) }
        let moved = (0..<50).map { token(logits, request(prompt: $0) { $0.seed = 7 }) }
        let other = (0..<50).map { token(logits, request(output: $0) { $0.seed = 8 }) }
        #expect(first == again && first == moved && first != other)
        #expect(Set(first).count > 25)
    }

    @Test func logprobsAreOfTheRawDistribution() throws {
        let changed = request {
            $0.temperature = 0
            $0.logitBias = [TokenBias(token: TokenID(0), bias: 50)]
            $0.wantsLogprobs = true
            $0.topLogprobs = 2
        }
        guard case .sampled(let sampled) = Sampler().draw([0, 3, 1, 2], changed) else {
            Issue.record("no token")
            return
        }
        let total = [0.0, 3, 1, 2].reduce(0) { $0 + exponential($1) }
        #expect(sampled.token == TokenID(0))
        #expect(abs(exponential(Double(try #require(sampled.logprob))) - 1 / total) < 1e-6)
        #expect(sampled.top.map(\.token) == [TokenID(1), TokenID(3)])
        #expect(abs(exponential(Double(sampled.top[0].logprob)) - exponential(3) / total) < 1e-6)
    }

    @Test func aBarredTokenIsNeverDrawn() {
        for variant in KernelVariant.allCases {
            guard let kernels = Kernels(variant) else { continue }
            for position in 0..<200 {
                let barred = request(output: position) {
                    $0.minTokens = 1000
                    $0.stopTokens = [TokenID(0), TokenID(2)]
                    $0.temperature = 100
                    $0.topP = position.isMultiple(of: 2) ? 1 : 0.999
                }
                #expect(token([9, 1, 9], barred, kernels) == 1)
            }
        }
    }

    @Test func aNucleusOfManyTokensIsTheSmallestThatReachesP() {
        var random = SeededGenerator(seed: 21)
        let logits = (0..<150).map { _ in Float.random(in: -3...3, using: &random) }
        let weights = logits.map { exponential(Double($0)) }
        let total = weights.reduce(0, +)
        var kept = Set<UInt32>()
        var sum = 0.0
        for index in logits.indices.sorted(by: { logits[$0] > logits[$1] }) where sum < 0.5 * total {
            sum += weights[index]
            kept.insert(UInt32(index))
        }
        let drawn = Set(
            (0..<2500).compactMap { position in
                token(logits, request(output: position) { $0.topP = 0.5 })
            })
        #expect(drawn == kept)
    }

    @Test func logitsThatAreNotFiniteFailTheRequest() {
        for bad in [Float.nan, .infinity, -.infinity] {
            guard case .failed(let error) = Sampler().draw([1, bad, 2], request { $0.temperature = 0 }) else {
                Issue.record("\(bad) was drawn from")
                continue
            }
            #expect(error.message.contains("finite"))
        }
    }

    @Test func aLargeTopKAgreesWithSortingEverything() {
        var random = SeededGenerator(seed: 9)
        let logits = (0..<300).map { _ in Float.random(in: -3...3, using: &random) }
        let best = Set(logits.indices.sorted { logits[$0] > logits[$1] }.prefix(20))
        for position in 0..<200 {
            let drawn = token(
                logits,
                request(output: position) {
                    $0.topK = 20
                    $0.temperature = 5
                })
            #expect(drawn.map { best.contains(Int($0)) } == true)
        }
    }
}
