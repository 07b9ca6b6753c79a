import Foundation
import Testing

@testable import LoadBench

@Suite struct DistributionTests {
    @Test func formsAreReadAsTheyArePrinted() throws {
        for text in ["256", "uniform:64-512", "lognormal:256.0:0.8:4096", "zipf:1.2:16-2048"] {
            #expect(try #require(LengthDistribution(text)).description == text)
        }
        #expect(LengthDistribution("uniform:7-7") == .uniform(7...7))
    }

    @Test(arguments: [
        "", "0", "-3", "x", "uniform:5", "uniform:9-3", "uniform:0-3", "uniform:1-2-3", "lognormal:256:0.8",
        "lognormal:0:1:10", "lognormal:20:1:10", "lognormal:nan:1:10", "zipf:1", "zipf:-1:1-9", "zipf:1:1-999999",
        "1000001", "gauss:3",
    ])
    func otherFormsAreRefused(_ text: String) { #expect(LengthDistribution(text) == nil) }

    @Test func drawsKeepToTheirRangeAndRepeatForTheSameSeed() throws {
        for text in ["17", "uniform:3-9", "lognormal:20:2:64", "zipf:1.1:5-50"] {
            let distribution = try #require(LengthDistribution(text))
            for seed in UInt64(1)...5 {
                var (one, other) = (SplitMix64(state: seed), SplitMix64(state: seed))
                let lengths = distribution.draw(500, using: &one)
                #expect(lengths == distribution.draw(500, using: &other), "\(text), seed \(seed)")
                let range =
                    switch distribution {
                    case .fixed(let length): length...length
                    case .uniform(let range), .zipf(_, let range): range
                    case .lognormal(_, _, let max): 1...max
                    }
                #expect(lengths.allSatisfy { range.contains($0) }, "\(text), seed \(seed)")
            }
        }
    }

    @Test func uniformDrawsBothEndsAlike() {
        var generator = SplitMix64(state: 4)
        let lengths = LengthDistribution.uniform(1...4).draw(40_000, using: &generator)
        for length in 1...4 { #expect(abs(Double(lengths.count { $0 == length }) / 10_000 - 1) < 0.05) }
    }

    @Test func theLognormalsMedianIsTheOneAskedFor() {
        var generator = SplitMix64(state: 5)
        let lengths = LengthDistribution.lognormal(median: 300, deviation: 0.7, max: 100_000).draw(
            20_000, using: &generator
        ).sorted()
        #expect(abs(Double(lengths[10_000]) - 300) < 9)
        // One deviation above the median: e^0.7 times as long, at the 84.13th percentile.
        #expect(abs(Double(lengths[16_827]) - 300 * exp(0.7)) < 25)
    }

    @Test func zipfWeighsRanksByTheirPower() {
        var generator = SplitMix64(state: 6)
        let lengths = LengthDistribution.zipf(exponent: 1, 10...13).draw(50_000, using: &generator)
        let sum = 1 + 0.5 + 1.0 / 3 + 0.25
        for rank in 1...4 {
            let share = Double(lengths.count { $0 == 9 + rank }) / 50_000
            #expect(abs(share - 1 / Double(rank) / sum) < 0.01, "rank \(rank)")
        }
    }

    @Test(arguments: [0.25, 1, 4]) func gammaGapsHaveMeanOneAndVarianceOneOverShape(_ shape: Double) {
        var generator = SplitMix64(state: 7)
        let gaps = (0..<60_000).map { _ in generator.gamma(shape: shape) }
        let mean = gaps.reduce(0, +) / Double(gaps.count)
        let variance = gaps.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(gaps.count)
        #expect(abs(mean - 1) < 0.03)
        #expect(abs(variance * shape - 1) < 0.08)
        #expect(gaps.allSatisfy { $0 >= 0 })
    }
}

@Suite struct LoadPlanTests {
    @Test func poissonArrivalsStartAtZeroAscendAndKeepTheRate() {
        let plan = LoadPlan.make(
            count: 20_000, arrivals: .open(rate: 50, burstiness: 1), input: .fixed(3), output: .fixed(2), seed: 11)
        let times = plan.compactMap(\.arrivalSeconds)
        #expect(times.count == 20_000 && times[0] == 0)
        #expect(zip(times, times.dropFirst()).allSatisfy { $0 <= $1 })
        #expect(abs(times[19_999] - 400) < 12)
    }

    @Test func aClosedLoopHasNoArrivals() {
        let plan = LoadPlan.make(
            count: 5, arrivals: .closedLoop, input: .uniform(1...9), output: .fixed(2), seed: 3)
        #expect(plan.allSatisfy { $0.arrivalSeconds == nil && $0.outputTokens == 2 })
    }

    @Test func anotherOutputLengthLeavesPromptsAndArrivalsAsTheyWere() {
        func plan(_ output: LengthDistribution) -> [PlannedRequest] {
            LoadPlan.make(
                count: 50, arrivals: .open(rate: 2, burstiness: 0.5), input: .uniform(1...900), output: output, seed: 9)
        }
        let (one, other) = (plan(.fixed(8)), plan(.uniform(1...70)))
        #expect(one.map(\.inputTokens) == other.map(\.inputTokens))
        #expect(one.map(\.arrivalSeconds) == other.map(\.arrivalSeconds))
        #expect(one.map(\.outputTokens) != other.map(\.outputTokens))
    }

    @Test func aTraceIsCutFilteredAndHastened() {
        let trace = [(4.0, 10), (5.0, 5000), (8.0, 20), (10.0, 30)].map {
            PlannedRequest(arrivalSeconds: $0.0, inputTokens: $0.1, outputTokens: 10, tenant: "a")
        }
        let plan = LoadPlan.replay(trace, count: 2, speed: 4, tokensMax: 100)
        #expect(plan.map(\.arrivalSeconds) == [0, 1])
        #expect(plan.map(\.inputTokens) == [10, 20])
        #expect(plan.allSatisfy { $0.tenant == "a" })
    }
}
