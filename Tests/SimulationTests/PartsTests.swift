import Foundation
import ServingTypes
import Testing

@testable import Simulation

@Suite struct PartsTests {
    @Test func eventsComeByTimeAndTiesBySubmission() {
        var queue = EventQueue<Int>()
        var random = SimulationRandom(seed: 7)
        var expected: [(Int64, Int)] = []
        for number in 0..<2000 {
            let time = Int64(random.within(0...50))
            queue.add(number, at: time)
            expected.append((time, number))
            if random.chance(30), let first = expected.min(by: <) {
                let taken = queue.removeFirst()
                #expect(taken?.time == first.0 && taken?.event == first.1)
                expected.removeAll { $0 == first }
            }
        }
        for first in expected.sorted(by: <) {
            let taken = queue.removeFirst()
            #expect(taken?.time == first.0 && taken?.event == first.1)
        }
        #expect(queue.removeFirst() == nil && queue.isEmpty)
    }

    @Test func theEngineFollowsTheOracleWhateverTheChunks() {
        let prompt = (1...21).map { TokenID(UInt32($0)) }
        var oracle = TokenOracle(prompt: prompt, length: 5)
        let expected = (0..<5).map { _ in oracle.next() }
        #expect(expected.last == TokenOracle.endToken)
        #expect(!expected.dropLast().contains(TokenOracle.endToken))
        for chunk in [1, 3, 4, 21] {
            var engine = SimulatedEngine(blockCount: 8, blockTokens: 4, readsEverything: true)
            let table = [7, 2, 5, 0, 1, 3, 4].map { BlockSlot(UInt32($0)) }
            let transfer = TransferID(job: JobID(high: 1, low: 1), attempt: .first)
            var (tokens, position, output) = (prompt, 0, [TokenID]())
            while output.count < 5 {
                let end = min(position + chunk, tokens.count)
                let sample =
                    end == tokens.count
                    ? SampleRequest(
                        parameters: SamplingParameters(), history: [], promptTokens: 21, outputTokens: output.count)
                    : nil
                let entry = StepEntry(
                    transfer: transfer, tokens: Array(tokens[position..<end]), startPosition: position,
                    blockTable: table, sample: sample)
                let outcomes = engine.run(
                    StepBatch(entries: [entry]), length: { _ in 5 }, complain: { Issue.record("\($0)") })
                position = end
                if case .sampled(let token) = outcomes.first {
                    output.append(token.token)
                    tokens.append(token.token)
                }
            }
            #expect(output == expected, "chunks of \(chunk)")
        }
    }

    @Test func theEngineNoticesABlockThatIsMissingOrAnotherOnes() {
        let transfer = TransferID(job: JobID(high: 1, low: 1), attempt: .first)
        func step(_ engine: inout SimulatedEngine, _ tokens: [Int], at start: Int, _ slots: [UInt32]) -> [String] {
            let entry = StepEntry(
                transfer: transfer, tokens: tokens.map { TokenID(UInt32($0)) }, startPosition: start,
                blockTable: slots.map { BlockSlot($0) }, sample: nil)
            var complaints: [String] = []
            _ = engine.run(StepBatch(entries: [entry]), length: { _ in nil }, complain: { complaints.append($0) })
            return complaints
        }
        var engine = SimulatedEngine(blockCount: 4, blockTokens: 2, readsEverything: true)
        #expect(step(&engine, [1, 2, 3, 4], at: 0, [0, 1]).isEmpty)
        #expect(step(&engine, [9, 9, 9, 9], at: 0, [2, 3]).isEmpty)
        #expect(step(&engine, [5], at: 4, [0, 1, 3]).isEmpty)
        #expect(step(&engine, [5], at: 4, [1, 0, 3]).count == 1)
        #expect(step(&engine, [5], at: 4, [2, 1, 3]).count == 1)
        #expect(step(&engine, [5], at: 3, [0, 1]).count == 1)
        #expect(step(&engine, [5], at: 4, [0]).count == 1)
    }

    @Test func theEngineNoticesABlockOfAnotherTenant() {
        let jobs = (1...3).map { TransferID(job: JobID(high: 1, low: $0), attempt: .first) }
        var engine = SimulatedEngine(blockCount: 4, blockTokens: 2, readsEverything: true)
        var complaints: [String] = []
        for (job, tokens, start) in [(0, [1, 2], 0), (1, [5], 2), (2, [5], 2)] {
            let entry = StepEntry(
                transfer: jobs[job], tokens: tokens.map { TokenID(UInt32($0)) }, startPosition: start,
                blockTable: [BlockSlot(0), BlockSlot(UInt32(1 + job))], sample: nil)
            // Jobs 1 and 2 are of one tenant, the third is not.
            _ = engine.run(
                StepBatch(entries: [entry]), length: { _ in nil }, owner: { $0.low == 3 ? 7 : 8 },
                complain: { complaints.append($0) })
            #expect(complaints.count == (job == 2 ? 1 : 0))
        }
        #expect(complaints.first?.contains("another tenant") == true)
    }

    @Test func logarithmAndExponentialAgreeWithTheSystems() {
        for x in [1e-12, 0.001, 0.5, 0.999999, 1, 1.5, 2, 3.7, 1e6, 1e300] {
            #expect(abs(Draws.logarithm(x) - log(x)) <= 1e-13 * max(abs(log(x)), 1), "\(x)")
        }
        for x in [-50, -1, -1e-9, 0, 0.3, 1, 10, 300.0] {
            #expect(abs(Draws.exponential(x) / exp(x) - 1) < 1e-12, "\(x)")
        }
    }

    @Test func distributionsHaveTheirMeansAndSpreads() throws {
        var random = SimulationRandom(seed: 3)
        for (text, mean, variation) in [
            ("exp:300", 300.0, 1.0), ("lognormal:300:0.8", 300, 0.8), ("uniform:100:500", 300, 0.386), ("300", 300, 0),
        ] {
            let distribution = try #require(LengthDistribution(text))
            let values = (0..<20_000).map { _ in Double(distribution.draw(&random, max: 1 << 20)) }
            let measured = values.reduce(0, +) / 20_000
            let spread = (values.reduce(0) { $0 + ($1 - measured) * ($1 - measured) } / 20_000).squareRoot()
            #expect(abs(measured / mean - 1) < 0.03, "\(text): mean \(measured)")
            #expect(abs(spread / measured - variation) < 0.05, "\(text): variation \(spread / measured)")
        }
        for (text, variation) in [("poisson", 1.0), ("gamma:2", 2), ("gamma:0.5", 0.5), ("uniform", 0)] {
            let process = try #require(ArrivalProcess(text))
            let gaps = (0..<20_000).map { process.gap($0, rate: 4, &random) }
            let mean = gaps.reduce(0, +) / 20_000
            let spread = (gaps.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / 20_000).squareRoot()
            #expect(abs(mean * 4 - 1) < 0.05 && abs(spread / mean - variation) < 0.1, "\(text): \(mean) \(spread)")
        }
        for text in ["", "0", "-1", "uniform:5:1", "exp", "exp:x", "lognormal:1", "256:1", "exp:1e99"] {
            #expect(LengthDistribution(text) == nil, "\(text)")
        }
        for text in ["", "gamma", "gamma:0", "burst:0", "poisson:1"] { #expect(ArrivalProcess(text) == nil, "\(text)") }
    }

    @Test func aProfileGivesThePublishedTimes() {
        var prefill = CostProfile.Work()
        prefill.prefillTokens = 512
        prefill.prefillSquares = 512 * 512
        let time = CostProfile.a100OPT13B.time(of: prefill).seconds
        #expect(abs(time - (18.103 + 0.10191 * 512 + 7.122e-6 * 512 * 512) / 1000) < 1e-9)
        var decode = CostProfile.Work()
        (decode.decodeJobs, decode.contextTokens) = (16, 8000)
        #expect(
            abs(CostProfile.a100OPT13B.time(of: decode).seconds - (19.935 + 6.269e-4 * 8000 + 0.03851 * 16) / 1000)
                < 1e-9)
        decode.decodeJobs = 96
        #expect(
            abs(CostProfile.a100OPT13B.time(of: decode).seconds - (7.166 + 5.798e-4 * 8000 + 0.15831 * 96) / 1000)
                < 1e-9)
        #expect(CostProfile.all.allSatisfy { CostProfile(named: $0.name) == $0 })
        #expect(CostProfile(named: "b300") == nil)
    }
}
