import BoundedJSON
import Foundation
import LoadBench
import ServingTypes

typealias SeededGenerator = SplitMix64

/// Prompts of random token ids, by request number.
struct BenchPrompts: Sendable {
    var seed: UInt64
    /// Ids are drawn below this.
    var vocabulary: Int
    /// Tokens that begin every prompt.
    var prefixTokens: Int

    func tokens(of request: Int, count: Int) -> [Int] {
        var shared = SplitMix64(state: seed ^ 0x5348_4152_4544)
        var own = SplitMix64(state: seed &+ UInt64(bitPattern: Int64(request)) &* 0x9E37_79B9)
        let bound = UInt64(vocabulary)
        return (0..<prefixTokens).map { _ in Int(shared.next() % bound) }
            + (0..<count).map { _ in Int(own.next() % bound) }
    }
}

/// Sends planned requests and times their streams.
struct BenchRunner: Sendable {
    enum Limits {
        static let concurrencyMax = 4096
    }

    let client: ClusterClient
    let plan: [PlannedRequest]
    let concurrency: Int
    let prompts: BenchPrompts
    let model: String?
    let timeout: Duration

    struct Run: Sendable {
        var outcomes: [RequestOutcome]
        var elapsed: Double
    }

    /// One short request that does not count; its error is the caller's, since nothing would work.
    func warmUp() async throws {
        let request = PlannedRequest(arrivalSeconds: nil, inputTokens: 8, outputTokens: 2)
        let outcome = await send(request, number: -1)
        if let failure = outcome?.failure { throw CLIError("\(client.baseURL): the first request failed: \(failure)") }
    }

    /// Outcomes in the order of their ends. A cancelled task sends nothing more and drops what is under
    /// way; what has ended by then is the run.
    func play(progress: (@Sendable (String) -> Void)?) async -> Run {
        let started = ContinuousClock.now
        let outcomes = await withTaskGroup(of: RequestOutcome?.self) { group in
            var meter = BenchMeter(total: plan.count, started: started, say: progress)
            var outcomes: [RequestOutcome] = []
            var running = 0
            func take(_ outcome: RequestOutcome?) {
                guard let outcome else { return }
                outcomes.append(outcome)
                meter.note(outcome)
            }
            for (number, request) in plan.enumerated() {
                if running == concurrency, let outcome = await group.next() {
                    running -= 1
                    take(outcome)
                }
                if let arrival = request.arrivalSeconds {
                    try? await Task.sleep(until: started + .seconds(arrival), clock: .continuous)
                }
                guard group.addTaskUnlessCancelled(operation: { await send(request, number: number) }) else { break }
                running += 1
            }
            for await outcome in group { take(outcome) }
            return outcomes
        }
        return Run(outcomes: outcomes, elapsed: (ContinuousClock.now - started).seconds)
    }

    /// nil for a request that the end of the run has cut off.
    private func send(_ request: PlannedRequest, number: Int) async -> RequestOutcome? {
        let start = ContinuousClock.now
        let body = body(request, number: number)
        do {
            return try await withThrowingTaskGroup(of: RequestOutcome.self) { group in
                group.addTask { try await stream(body, request, start) }
                group.addTask {
                    try await Task.sleep(for: timeout)
                    throw CLIError("no answer within \(timeout)")
                }
                defer { group.cancelAll() }
                return try await group.next() ?? failed("nothing ran", start)
            }
        } catch {
            return Task.isCancelled ? nil : failed("\(error)", start)
        }
    }

    private func body(_ request: PlannedRequest, number: Int) -> JSONValue {
        let prompt = prompts.tokens(of: number, count: request.inputTokens)
        var body = JSONObject([
            ("prompt", .array(prompt.map { .integer(Int64($0)) })),
            ("max_tokens", .integer(Int64(request.outputTokens))), ("ignore_eos", .bool(true)),
            ("stream", .bool(true)), ("temperature", .integer(0)),
            ("stream_options", .object(JSONObject([("include_usage", .bool(true))]))),
        ])
        if let model { body["model"] = .string(model) }
        return .object(body)
    }

    /// Follows one stream: every event with a choice is a moment; the counts are those of `usage`.
    private func stream(
        _ body: JSONValue, _ request: PlannedRequest, _ start: ContinuousClock.Instant
    ) async throws -> RequestOutcome {
        var moments: [Double] = []
        // Servers that send no usage are counted by their events that hold text, as vLLM's bench does.
        var (input, output, texts) = (request.inputTokens + prompts.prefixTokens, Int?.none, 0)
        // A server may close a kept connection just as the next request is written (llama.cpp's does).
        let headers = [("connection", "close")] + (request.tenant.map { [("x-tandem-tenant", $0)] } ?? [])
        let events = try await client.events("/v1/completions", body, headers: headers)
        for try await event in events {
            if let error = event["error"] { throw CLIError(error["message"]?.stringValue ?? "an error event") }
            if let usage = event["usage"] {
                input = usage["prompt_tokens"]?.intValue ?? input
                output = usage["completion_tokens"]?.intValue ?? output
            }
            guard let choice = event["choices"]?.arrayValue?.first else { continue }
            moments.append((ContinuousClock.now - start).seconds)
            if choice["text"]?.stringValue?.isEmpty == false { texts += 1 }
        }
        guard let first = moments.first, let last = moments.last else {
            throw CLIError("the stream held no event with a choice")
        }
        return RequestOutcome(
            latency: last, timeToFirstToken: first, gaps: zip(moments.dropFirst(), moments).map { $0 - $1 },
            inputTokens: input, outputTokens: max(output ?? texts, 0))
    }

    private func failed(_ reason: String, _ start: ContinuousClock.Instant) -> RequestOutcome {
        RequestOutcome(failure: reason, latency: (ContinuousClock.now - start).seconds)
    }
}

/// Says how far a run is, every few seconds.
private struct BenchMeter {
    private static let interval = Duration.seconds(5)

    let total: Int
    let started: ContinuousClock.Instant
    let say: (@Sendable (String) -> Void)?
    private var done = 0
    private var failed = 0
    private var tokens = 0
    private var said: ContinuousClock.Instant

    init(total: Int, started: ContinuousClock.Instant, say: (@Sendable (String) -> Void)?) {
        (self.total, self.started, self.say, said) = (total, started, say, started)
    }

    mutating func note(_ outcome: RequestOutcome) {
        done += 1
        tokens += outcome.outputTokens
        if outcome.failure != nil { failed += 1 }
        let now = ContinuousClock.now
        guard let say, now - said >= Self.interval else { return }
        said = now
        let seconds = (now - started).seconds
        let troubles = failed > 0 ? ", \(failed) failed" : ""
        say(
            "\(done) of \(total) requests after \(String(format: "%.0f s, %.1f", seconds, Double(tokens) / seconds))"
                + " output tok/s\(troubles)")
    }
}
