import ArgumentParser
import BoundedJSON
import Foundation
import ServingTypes

/// Sampling flags shared by `submit` and `chat`; what is not given is the model's default.
struct SamplingFlags: ParsableArguments {
    @Option(help: "Output tokens at most.")
    var maxTokens: Int = 128

    @Option(help: "0 is greedy.")
    var temperature: Double?

    @Option(help: "Keep the likeliest tokens up to this probability.")
    var topP: Double?

    @Option(help: "Keep this many of the likeliest tokens.")
    var topK: Int?

    @Option(help: "The same seed gives the same text, whatever else the cluster does.")
    var seed: Int?

    @Option(name: .customLong("stop"), help: "End the text before this string (may be repeated).")
    var stops: [String] = []

    @Option(help: "Model name (default: the only one served).")
    var model: String?

    func apply(to body: inout JSONObject) {
        body["max_tokens"] = .integer(Int64(maxTokens))
        if let temperature { body["temperature"] = .number(temperature) }
        if let topP { body["top_p"] = .number(topP) }
        if let topK { body["top_k"] = .integer(Int64(topK)) }
        if let seed { body["seed"] = .integer(Int64(seed)) }
        if let model { body["model"] = .string(model) }
        if !stops.isEmpty { body["stop"] = .array(stops.map { .string($0) }) }
    }
}

struct SubmitCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "submit", abstract: "Run one job and stream its text.",
        discussion: """
            Reads the prompt from the arguments, or from standard input with `-`.

              tandem submit "Once upon a time" --max-tokens 80
              tandem submit --detach "A long story" --max-tokens 400    prints the job's id and returns
              tandem jobs attach ID                                     its text from the start

            --priority and --slo-ttft order the jobs of one tenant among themselves, never across tenants: lower
            priorities first, and of one priority the job whose first token is due next. --deadline ends the job.
            """)

    @Argument(help: "The prompt; `-` reads standard input.")
    var prompt: String

    @OptionGroup var sampling: SamplingFlags

    @Flag(help: "Print the job's id and return; the job goes on.")
    var detach = false

    @Option(help: "A key that makes repeating this command join the same job instead of starting another.")
    var idempotencyKey: String?

    @Option(parsing: .unconditional, help: "Inside the tenant, lower goes first (as in vLLM); 0 is what others have.")
    var priority: Int?

    @Option(help: "Seconds after which the job is ended with an error if it is not done.")
    var deadline: Double?

    @Option(
        help: "Seconds by which the first token should be there; a hint inside the tenant, forgotten once it passed.")
    var sloTtft: Double?

    @OptionGroup var cluster: ClusterOptions

    func run() async throws {
        let client = ClusterClient(cluster)
        var body = JSONObject([
            ("prompt", .string(prompt == "-" ? Self.standardInput() : prompt)), ("stream", .bool(true)),
            ("stream_options", .object(JSONObject([("include_usage", .bool(true))]))),
        ])
        sampling.apply(to: &body)
        var headers: [(String, String)] = []
        if let idempotencyKey { headers.append(("idempotency-key", idempotencyKey)) }
        if detach { headers.append(("x-tandem-on-disconnect", "continue")) }
        if let priority { body["priority"] = .integer(Int64(priority)) }
        if let deadline { headers.append(("x-slo-deadline-ms", try Self.milliseconds(deadline, "deadline"))) }
        if let sloTtft { headers.append(("x-slo-ttft-ms", try Self.milliseconds(sloTtft, "slo-ttft"))) }
        let events = try await client.events("/v1/completions", .object(body), headers: headers)
        if detach {
            Terminal.say(events.jobID ?? "?")
            return
        }
        try await follow(events, client, .object(body), headers)
        if let job = events.jobID { try await Self.summarise(job, client) }
    }

    /// How long a coordinator may be away before a keyed job is given up.
    static let patience = Duration.seconds(60)

    /// Prints the text to its end. A job with a key outlives its coordinator, so that a lost stream is
    /// asked for again, and what was shown is not shown twice.
    private func follow(
        _ events: EventStream, _ client: ClusterClient, _ body: JSONValue, _ headers: [(String, String)]
    ) async throws {
        var shown = 0
        var stream: EventStream? = events
        var lostAt: ContinuousClock.Instant?
        while true {
            do {
                let before = shown
                let current: EventStream
                if let stream {
                    current = stream
                } else {
                    current = try await client.events("/v1/completions", body, headers: headers)
                }
                stream = nil
                defer { if shown > before { lostAt = nil } }
                try await StreamPrinter.print(current, shown: &shown)
                return
            } catch let error as CLIError where error.isLoss && idempotencyKey != nil {
                let since = lostAt ?? .now
                if lostAt == nil { Terminal.complain("the coordinator went away; waiting for it") }
                lostAt = since
                guard ContinuousClock.now - since < Self.patience else { throw error }
                try await Task.sleep(for: .milliseconds(200))
            }
        }
    }

    private static func milliseconds(_ seconds: Double, _ name: String) throws -> String {
        guard (0.001...3600).contains(seconds) else {
            throw CLIError("\(name): \(seconds) is outside 0.001 to 3600 seconds")
        }
        return "\(Int((seconds * 1000).rounded()))"
    }

    static func standardInput() -> String {
        String(decoding: FileHandle.standardInput.readDataToEndOfFile(), as: UTF8.self)
    }

    /// Where the job ran and how fast, on standard error so that the text can be piped.
    static func summarise(_ job: String, _ client: ClusterClient) async throws {
        guard isatty(STDERR_FILENO) == 1, let view = try? await client.get("/v1/jobs/\(job)") else { return }
        FileHandle.standardError.write(Data(("\n" + JobSummary(view).line + "\n").utf8))
    }
}

/// Prints the text of a stream as it comes.
enum StreamPrinter {
    /// Returns the whole text.
    @discardableResult
    static func print(_ events: EventStream, choice: Int = 0) async throws -> String {
        var shown = 0
        return try await print(events, choice: choice, shown: &shown)
    }

    /// - Parameter shown: UTF-8 bytes of this text that are on the terminal already; kept up to date.
    @discardableResult
    static func print(_ events: EventStream, choice: Int = 0, shown: inout Int) async throws -> String {
        var text = ""
        var length = 0
        for try await event in events {
            if let message = event["error"]?["message"]?.stringValue { throw CLIError(message) }
            for item in event["choices"]?.arrayValue ?? [] where item["index"]?.intValue ?? 0 == choice {
                let piece = item["text"]?.stringValue ?? item["delta"]?["content"]?.stringValue ?? ""
                text += piece
                length += piece.utf8.count
                guard length > shown else { continue }
                Terminal.stream(String(decoding: piece.utf8.suffix(length - shown), as: UTF8.self))
                shown = length
            }
        }
        Terminal.stream("\n")
        return text
    }
}

/// One job of /v1/jobs in a line.
struct JobSummary {
    let view: JSONValue

    init(_ view: JSONValue) { self.view = view }

    var ttft: Double? { view["timing"]?["ttft_ms"]?.doubleValue }
    var tpot: Double? { view["timing"]?["tpot_ms"]?.doubleValue }
    var jct: Double? { view["timing"]?["jct_ms"]?.doubleValue }
    var prefill: String { view["route"]?["prefill"]?.stringValue ?? "-" }
    var decode: String { view["route"]?["decode"]?.stringValue ?? "-" }
    var kvBytes: Double { view["route"]?["kv_bytes_moved"]?.doubleValue ?? 0 }
    var outputTokens: Int { view["usage"]?["completion_tokens"]?.intValue ?? 0 }
    var promptTokens: Int { view["usage"]?["prompt_tokens"]?.intValue ?? 0 }

    var line: String {
        "\(prefill) -> \(decode), \(promptTokens) + \(outputTokens) tokens, TTFT \(Terminal.milliseconds(ttft)), "
            + "TPOT \(Terminal.milliseconds(tpot)), KV moved \(Terminal.bytes(kvBytes))"
    }
}
