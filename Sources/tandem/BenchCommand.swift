import ArgumentParser
import BoundedJSON
import Foundation
import ServingTypes

/// Load against any OpenAI endpoint, and vLLM's table of fields. Definitions as in
/// user-experience.md §3.1: TPOT = (latency - TTFT) / (output tokens - 1) per request; ITL = gaps
/// between received events.
struct BenchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Measure an OpenAI endpoint: throughput, TTFT, TPOT, ITL.",
        discussion: """
            Prompts are random token ids, different in every run unless --seed is given, so that no run is served
            from another one's prefix cache.

              tandem bench --num-prompts 32 --max-concurrency 8 --input-len 256 --output-len 64
              tandem bench --num-prompts 100 --request-rate 5        Poisson arrivals
            """)

    @Option(help: "Requests in all.") var numPrompts: Int = 32
    @Option(help: "Requests under way at once; 0: no bound.") var maxConcurrency: Int = 8
    @Option(help: "Arrivals per second, Poisson; 0: as fast as the concurrency allows.") var requestRate: Double = 0
    @Option(help: "Prompt tokens.") var inputLen: Int = 256
    @Option(help: "Output tokens.") var outputLen: Int = 64
    @Option(help: "Prompt ids are drawn below this.") var vocabulary: Int = 1000
    @Option(help: "Seed of prompts and arrivals (default: drawn, and printed).") var seed: UInt64?
    @Option(help: "Model name.") var model: String?
    @Option(help: "Also write the result as JSON to this file.") var json: String?
    @OptionGroup var cluster: ClusterOptions

    func validate() throws {
        for (name, value) in [("num-prompts", numPrompts), ("input-len", inputLen), ("output-len", outputLen)]
        where !(1...1_000_000).contains(value) {
            throw ValidationError("--\(name): \(value) is outside 1 to 1000000")
        }
        guard vocabulary >= 2, maxConcurrency >= 0, requestRate >= 0 else {
            throw ValidationError("--vocabulary wants at least 2; --max-concurrency and --request-rate at least 0")
        }
    }

    func run() async throws {
        let client = ClusterClient(cluster)
        let seed = seed ?? UInt64.random(in: 1...UInt64(UInt32.max))
        let load = BenchLoad(self, seed: seed)
        _ = try await load.request(client, index: -1)
        let started = ContinuousClock.now
        let results = try await load.play(client)
        let report = BenchReport(results, elapsed: (ContinuousClock.now - started).seconds, inputLen: inputLen)
        Terminal.say(
            "\(client.baseURL): \(numPrompts) requests of \(inputLen) + \(outputLen) tokens, "
                + "\(maxConcurrency == 0 ? "unbounded" : "\(maxConcurrency)") at once, "
                + "rate \(requestRate == 0 ? "unbounded" : "\(requestRate)/s"), seed \(seed)")
        Terminal.say(report.text)
        if let json { try JSON.text(report.json, pretty: true).write(toFile: json, atomically: true, encoding: .utf8) }
    }
}

extension Duration {
    var seconds: Double { Double(components.seconds) + Double(components.attoseconds) / 1e18 }
}

/// What one request measured, in seconds.
struct BenchResult: Sendable {
    var succeeded: Bool
    var latency: Double
    var timeToFirstToken: Double
    var gaps: [Double]
    var outputTokens: Int
}

/// Draws prompts and arrivals, and sends them.
struct BenchLoad: Sendable {
    let bench: (count: Int, concurrency: Int, rate: Double, input: Int, output: Int, vocabulary: Int, model: String?)
    let seed: UInt64

    init(_ command: BenchCommand, seed: UInt64) {
        bench = (
            command.numPrompts, command.maxConcurrency, command.requestRate, command.inputLen, command.outputLen,
            command.vocabulary, command.model
        )
        self.seed = seed
    }

    func play(_ client: ClusterClient) async throws -> [BenchResult] {
        let limit = bench.concurrency == 0 ? bench.count : bench.concurrency
        var generator = SeededGenerator(state: seed)
        return try await withThrowingTaskGroup(of: BenchResult.self) { group in
            var results: [BenchResult] = []
            var due = ContinuousClock.now
            for index in 0..<bench.count {
                if index >= limit, let result = try await group.next() { results.append(result) }
                if bench.rate > 0 {
                    due += .seconds(-log(1 - generator.unit()) / bench.rate)
                    try await Task.sleep(until: due, clock: .continuous)
                }
                group.addTask { try await request(client, index: index) }
            }
            for try await result in group { results.append(result) }
            return results
        }
    }

    func request(_ client: ClusterClient, index: Int) async throws -> BenchResult {
        var generator = SeededGenerator(state: seed &+ UInt64(bitPattern: Int64(index)) &* 0x9E37_79B9)
        let prompt = (0..<bench.input).map { _ in
            JSONValue.integer(Int64(generator.next() % UInt64(bench.vocabulary)))
        }
        var body = JSONObject([
            ("prompt", .array(prompt)), ("max_tokens", .integer(Int64(bench.output))), ("ignore_eos", .bool(true)),
            ("stream", .bool(true)), ("temperature", .integer(0)),
            ("stream_options", .object(JSONObject([("include_usage", .bool(true))]))),
        ])
        if let model = bench.model { body["model"] = .string(model) }
        let start = ContinuousClock.now
        var stamps: [Double] = []
        var outputTokens = 0
        do {
            for try await event in try await client.events("/v1/completions", .object(body)) {
                if event["error"] != nil { return failure(start) }
                if let usage = event["usage"]?["completion_tokens"]?.intValue { outputTokens = usage }
                if event["choices"]?.arrayValue?.isEmpty == false {
                    stamps.append((ContinuousClock.now - start).seconds)
                }
            }
        } catch let error as CLIError {
            if index < 0 { throw error }
            return failure(start)
        }
        guard let first = stamps.first, let last = stamps.last else { return failure(start) }
        return BenchResult(
            succeeded: true, latency: last, timeToFirstToken: first,
            gaps: zip(stamps.dropFirst(), stamps).map { $0 - $1 }, outputTokens: max(outputTokens, 1))
    }

    private func failure(_ start: ContinuousClock.Instant) -> BenchResult {
        BenchResult(
            succeeded: false, latency: (ContinuousClock.now - start).seconds, timeToFirstToken: 0, gaps: [],
            outputTokens: 0)
    }
}

/// SplitMix64 (Steele et al. 2014).
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// In [0, 1).
    mutating func unit() -> Double { Double(next() >> 11) * 0x1p-53 }
}

/// The table, in vLLM's order since people paste and compare it.
struct BenchReport {
    private let results: [BenchResult]
    private let failures: Int
    private let elapsed: Double
    private let inputTokens: Int

    init(_ results: [BenchResult], elapsed: Double, inputLen: Int) {
        self.results = results.filter(\.succeeded)
        failures = results.count - self.results.count
        self.elapsed = elapsed
        inputTokens = self.results.count * inputLen
    }

    private var outputTokens: Int { results.reduce(0) { $0 + $1.outputTokens } }

    private var rows: [(String, Double, String)] {
        var rows: [(String, Double, String)] = [
            ("Successful requests", Double(results.count), "%.0f"), ("Failed requests", Double(failures), "%.0f"),
            ("Benchmark duration (s)", elapsed, "%.2f"), ("Total input tokens", Double(inputTokens), "%.0f"),
            ("Total generated tokens", Double(outputTokens), "%.0f"),
            ("Request throughput (req/s)", Double(results.count) / elapsed, "%.2f"),
            ("Output token throughput (tok/s)", Double(outputTokens) / elapsed, "%.2f"),
            ("Total token throughput (tok/s)", Double(inputTokens + outputTokens) / elapsed, "%.2f"),
        ]
        let series: [(String, [Double])] = [
            ("TTFT", results.map(\.timeToFirstToken)),
            (
                "TPOT",
                results.filter { $0.outputTokens > 1 }.map {
                    ($0.latency - $0.timeToFirstToken) / Double($0.outputTokens - 1)
                }
            ), ("ITL", results.flatMap(\.gaps)), ("E2EL", results.map(\.latency)),
        ]
        for (name, values) in series where !values.isEmpty {
            let sorted = values.sorted()
            rows.append(("Mean \(name) (ms)", 1000 * sorted.reduce(0, +) / Double(sorted.count), "%.2f"))
            rows.append(("Median \(name) (ms)", 1000 * Self.percentile(sorted, 0.5), "%.2f"))
            rows.append(("P99 \(name) (ms)", 1000 * Self.percentile(sorted, 0.99), "%.2f"))
        }
        return rows
    }

    /// Linear between the two nearest ranks, as numpy does it.
    static func percentile(_ sorted: [Double], _ fraction: Double) -> Double {
        let rank = fraction * Double(sorted.count - 1)
        let low = Int(rank)
        let high = min(low + 1, sorted.count - 1)
        return sorted[low] + (sorted[high] - sorted[low]) * (rank - Double(low))
    }

    var text: String {
        rows.map { name, value, format in
            let number = String(format: format, value)
            return name + ":" + String(repeating: " ", count: max(1, 45 - name.count - number.count)) + number
        }.joined(separator: "\n")
    }

    var json: JSONValue { .object(JSONObject(rows.map { ($0.0, .number($0.1)) })) }
}
