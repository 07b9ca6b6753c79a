import BoundedJSON
import Foundation
import Histogram

/// What one request measured, in seconds. Definitions as in vLLM's benchmark: TPOT = (latency - TTFT) /
/// (output tokens - 1) per request; ITL = gaps between received events.
public struct RequestOutcome: Hashable, Sendable {
    /// nil for a request that succeeded.
    public var failure: String?
    public var latency: Double
    public var timeToFirstToken: Double
    public var gaps: [Double]
    public var inputTokens: Int
    public var outputTokens: Int

    public init(
        failure: String? = nil, latency: Double, timeToFirstToken: Double = 0, gaps: [Double] = [],
        inputTokens: Int = 0, outputTokens: Int = 0
    ) {
        self.failure = failure
        self.latency = latency
        self.timeToFirstToken = timeToFirstToken
        self.gaps = gaps
        self.inputTokens = inputTokens
        self.outputTokens = outputTokens
    }

    /// nil for a single token.
    public var timePerOutputToken: Double? {
        outputTokens > 1 ? (latency - timeToFirstToken) / Double(outputTokens - 1) : nil
    }
}

/// Many durations: mean and deviation exactly, percentiles from an HDR histogram of three digits.
public struct DurationSeries {
    private static let secondsMax = 36_000.0

    private var histogram: Histogram<UInt64>
    private var (sum, squares) = (0.0, 0.0)
    public private(set) var count = 0

    public init() {
        histogram = Histogram(
            highestTrackableValue: UInt64(Self.secondsMax * 1e6), numberOfSignificantValueDigits: .three)
    }

    public init(_ seconds: [Double]) {
        self.init()
        for value in seconds { add(value) }
    }

    public mutating func add(_ seconds: Double) {
        let bounded = min(max(seconds, 0), Self.secondsMax)
        histogram.record(UInt64(bounded * 1e6))
        (sum, squares, count) = (sum + seconds, squares + seconds * seconds, count + 1)
    }

    public var mean: Double { count > 0 ? sum / Double(count) : 0 }

    public var deviation: Double {
        count > 0 ? max(0, squares / Double(count) - mean * mean).squareRoot() : 0
    }

    /// Seconds; 0 for no values.
    public func percentile(_ percent: Double) -> Double {
        count > 0 ? Double(histogram.valueAtPercentile(percent)) / 1e6 : 0
    }
}

/// The table of a run, in vLLM's words and order since people paste and compare it; JSON with vLLM's keys.
public struct LoadReport {
    private struct Series {
        var short: String
        var heading: String
        var durations: DurationSeries
    }

    private let outcomes: [RequestOutcome]
    private let failures: [RequestOutcome]
    private let elapsed: Double
    private let objectives: [ServiceObjective]
    private let percentiles: [Double]
    private let series: [Series]

    /// - elapsed: seconds from the first request to the last answer.
    /// - percentiles: besides the median, 0 to 100.
    public init(
        _ outcomes: [RequestOutcome], elapsed: Double, objectives: [ServiceObjective] = [],
        percentiles: [Double] = [99]
    ) {
        self.outcomes = outcomes.filter { $0.failure == nil }
        failures = outcomes.filter { $0.failure != nil }
        self.elapsed = max(elapsed, 1e-9)
        self.objectives = objectives
        self.percentiles = percentiles
        let good = self.outcomes
        series = [
            Series(
                short: "TTFT", heading: "Time to First Token",
                // An answer without a token has no first one.
                durations: DurationSeries(good.filter { $0.outputTokens > 0 }.map(\.timeToFirstToken))),
            Series(
                short: "TPOT", heading: "Time per Output Token (excl. 1st token)",
                durations: DurationSeries(good.compactMap(\.timePerOutputToken))),
            Series(
                short: "ITL", heading: "Inter-token Latency", durations: DurationSeries(good.flatMap(\.gaps))),
            Series(short: "E2EL", heading: "End-to-end Latency", durations: DurationSeries(good.map(\.latency))),
        ]
    }

    public var completed: Int { outcomes.count }
    public var failed: Int { failures.count }
    private var inputTokens: Int { outcomes.reduce(0) { $0 + $1.inputTokens } }
    private var outputTokens: Int { outcomes.reduce(0) { $0 + $1.outputTokens } }

    /// Requests that met every objective; nil where there is none.
    public var goodRequests: Int? {
        guard !objectives.isEmpty else { return nil }
        return outcomes.count { outcome in objectives.allSatisfy { $0.isMet(by: outcome) } }
    }

    private var totals: [(title: String, key: String, value: Double, digits: Int)] {
        var rows: [(String, String, Double, Int)] = [
            ("Successful requests", "completed", Double(completed), 0),
            ("Failed requests", "failed", Double(failed), 0),
            ("Benchmark duration (s)", "duration", elapsed, 2),
            ("Total input tokens", "total_input_tokens", Double(inputTokens), 0),
            ("Total generated tokens", "total_output_tokens", Double(outputTokens), 0),
            ("Request throughput (req/s)", "request_throughput", Double(completed) / elapsed, 2),
        ]
        if let goodRequests {
            rows.append(("Request goodput (req/s)", "request_goodput", Double(goodRequests) / elapsed, 2))
        }
        return rows + [
            ("Output token throughput (tok/s)", "output_throughput", Double(outputTokens) / elapsed, 2),
            (
                "Total Token throughput (tok/s)", "total_token_throughput",
                Double(inputTokens + outputTokens) / elapsed, 2
            ),
        ]
    }

    private func rows(_ series: Series) -> [(title: String, key: String, value: Double)] {
        let (name, durations) = (series.short, series.durations)
        let low = name.lowercased()
        var rows = [
            ("Mean \(name) (ms)", "mean_\(low)_ms", durations.mean * 1000),
            ("Median \(name) (ms)", "median_\(low)_ms", durations.percentile(50) * 1000),
        ]
        for percent in percentiles {
            let word = Self.word(percent)
            rows.append(("P\(word) \(name) (ms)", "p\(word)_\(low)_ms", durations.percentile(percent) * 1000))
        }
        return rows
    }

    private static func word(_ percent: Double) -> String {
        percent == percent.rounded() ? "\(Int(percent))" : "\(percent)"
    }

    /// 50 columns, as vLLM prints it.
    public var text: String {
        var lines = [Self.heading(" Serving Benchmark Result ", "=")]
        for row in totals { lines.append(Self.line(row.title, row.value, row.digits)) }
        for series in series where series.durations.count > 0 {
            lines.append(Self.heading(series.heading, "-"))
            for row in rows(series) { lines.append(Self.line(row.title, row.value, 2)) }
        }
        lines.append(String(repeating: "=", count: Self.columns))
        return lines.joined(separator: "\n")
    }

    private static let columns = 50

    private static func heading(_ text: String, _ filler: String) -> String {
        let left = max(0, columns - text.count) / 2
        return String(repeating: filler, count: left) + text
            + String(repeating: filler, count: max(0, columns - text.count - left))
    }

    private static func line(_ title: String, _ value: Double, _ digits: Int) -> String {
        let label = "\(title):".padding(toLength: 40, withPad: " ", startingAt: 0)
        return label + String(format: "%-10.\(digits)f", value)
    }

    public var json: JSONValue {
        var members = JSONObject(totals.map { ($0.key, .number($0.value)) })
        for series in series {
            for row in rows(series) { members[row.key] = .number(row.value) }
            members["std_\(series.short.lowercased())_ms"] = .number(series.durations.deviation * 1000)
        }
        if !objectives.isEmpty { members["goodput"] = .array(objectives.map { .string($0.description) }) }
        let reasons = Dictionary(grouping: failures) { $0.failure ?? "" }.mapValues(\.count)
        if !reasons.isEmpty {
            members["failures"] = .object(
                JSONObject(reasons.sorted { $0.key < $1.key }.map { ($0.key, .integer(Int64($0.value))) }))
        }
        return .object(members)
    }
}
