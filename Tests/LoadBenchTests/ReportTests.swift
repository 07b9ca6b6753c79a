import BoundedJSON
import Testing

@testable import LoadBench

@Suite struct LoadReportTests {
    static let outcomes = [
        RequestOutcome(latency: 1.1, timeToFirstToken: 0.1, gaps: [0.5, 0.5], inputTokens: 100, outputTokens: 11),
        RequestOutcome(latency: 2.3, timeToFirstToken: 0.3, gaps: [1, 1], inputTokens: 50, outputTokens: 21),
        RequestOutcome(latency: 0.2, timeToFirstToken: 0.2, inputTokens: 10, outputTokens: 1),
        RequestOutcome(failure: "refused", latency: 0.01),
    ]

    @Test func theTableHasVLLMsFieldsInItsOrder() {
        let lines = LoadReport(Self.outcomes, elapsed: 4).text.split(separator: "\n").map(String.init)
        let titles = lines.filter { $0.contains(":") }.map { String($0.prefix { $0 != ":" }) }
        #expect(
            titles == [
                "Successful requests", "Failed requests", "Benchmark duration (s)", "Total input tokens",
                "Total generated tokens", "Request throughput (req/s)", "Output token throughput (tok/s)",
                "Total Token throughput (tok/s)", "Mean TTFT (ms)", "Median TTFT (ms)", "P99 TTFT (ms)",
                "Mean TPOT (ms)", "Median TPOT (ms)", "P99 TPOT (ms)", "Mean ITL (ms)", "Median ITL (ms)",
                "P99 ITL (ms)", "Mean E2EL (ms)", "Median E2EL (ms)", "P99 E2EL (ms)",
            ])
        #expect(lines.allSatisfy { $0.count == 50 })
        #expect(lines[1].hasSuffix(" 3         "))
    }

    @Test func throughputsCountSuccessfulRequestsOnly() {
        let json = LoadReport(Self.outcomes, elapsed: 4).json
        #expect(json["completed"]?.doubleValue == 3)
        #expect(json["failed"]?.doubleValue == 1)
        #expect(json["request_throughput"]?.doubleValue == 0.75)
        #expect(json["total_input_tokens"]?.doubleValue == 160)
        #expect(json["output_throughput"]?.doubleValue == 33.0 / 4)
        #expect(json["total_token_throughput"]?.doubleValue == 193.0 / 4)
        #expect(json["failures"]?["refused"]?.intValue == 1)
    }

    @Test func anAnswerWithoutATokenHasNoFirstTokenToTime() {
        let report = LoadReport(
            [
                RequestOutcome(latency: 2, timeToFirstToken: 1, inputTokens: 5, outputTokens: 4),
                RequestOutcome(latency: 9, timeToFirstToken: 9, inputTokens: 5, outputTokens: 0),
            ], elapsed: 10)
        #expect(report.completed == 2)
        #expect(report.json["mean_ttft_ms"]?.doubleValue == 1000)
        #expect(report.json["total_output_tokens"]?.doubleValue == 4)
        #expect(report.json["mean_e2el_ms"]?.doubleValue == 5500)
    }

    @Test func timePerOutputTokenLeavesTheFirstTokenOut() throws {
        #expect(abs((Self.outcomes[0].timePerOutputToken ?? 0) - 0.1) < 1e-9)
        #expect(Self.outcomes[2].timePerOutputToken == nil)
        let mean = try #require(LoadReport(Self.outcomes, elapsed: 4).json["mean_tpot_ms"]?.doubleValue)
        #expect(abs(mean - 100) < 1e-6)
    }

    @Test func goodputAsksForEveryObjective() throws {
        let objectives = try ["ttft:250", "e2el:1500"].map { try #require(ServiceObjective($0)) }
        let report = LoadReport(Self.outcomes, elapsed: 4, objectives: objectives)
        #expect(report.goodRequests == 2)
        #expect(report.json["request_goodput"]?.doubleValue == 0.5)
        #expect(LoadReport(Self.outcomes, elapsed: 4).goodRequests == nil)
        let perToken = try #require(ServiceObjective("tpot:99"))
        // The request of one token has no time per token to miss.
        #expect(LoadReport(Self.outcomes, elapsed: 4, objectives: [perToken]).goodRequests == 1)
    }

    @Test(arguments: ["", "ttft", "ttft:", "ttft:0", "ttft:-3", "ttft:inf", "itl:3", "ttft:3:4"])
    func otherObjectivesAreRefused(_ text: String) { #expect(ServiceObjective(text) == nil) }

    @Test func percentilesAreWithinAThousandthOfTheExactOnes() {
        let values = (1...1000).map { Double($0) * 0.003 }
        let series = DurationSeries(values)
        for (percent, exact) in [(50.0, 1.5), (90, 2.7), (99, 2.97), (100, 3.0)] {
            #expect(abs(series.percentile(percent) / exact - 1) < 0.0015, "P\(percent): \(series.percentile(percent))")
        }
        #expect(abs(series.mean - 1.5015) < 1e-9)
        #expect(abs(series.deviation - 0.866) < 0.001)
    }

    @Test func noValuesMeanZeroes() {
        let series = DurationSeries()
        #expect(series.percentile(99) == 0 && series.mean == 0 && series.deviation == 0)
        #expect(LoadReport([], elapsed: 0).json["request_throughput"]?.doubleValue == 0)
    }

    @Test func valuesOutsideTheHistogramAreBoundedNotLost() {
        let series = DurationSeries([-1, 1e9])
        #expect(series.count == 2)
        #expect(series.percentile(100) > 35_000)
    }
}
