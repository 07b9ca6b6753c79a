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
            """)

    @Argument(help: "The prompt; `-` reads standard input.")
    var prompt: String

    @OptionGroup var sampling: SamplingFlags

    @Flag(help: "Print the job's id and return; the job goes on.")
    var detach = false

    @Option(help: "A key that makes repeating this command join the same job instead of starting another.")
    var idempotencyKey: String?

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
        let events = try await client.events("/v1/completions", .object(body), headers: headers)
        if detach {
            Terminal.say(events.jobID ?? "?")
            return
        }
        try await StreamPrinter.print(events)
        if let job = events.jobID { try await Self.summarise(job, client) }
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
        var text = ""
        for try await event in events {
            if let message = event["error"]?["message"]?.stringValue { throw CLIError(message) }
            for item in event["choices"]?.arrayValue ?? [] where item["index"]?.intValue ?? 0 == choice {
                let piece = item["text"]?.stringValue ?? item["delta"]?["content"]?.stringValue ?? ""
                text += piece
                Terminal.stream(piece)
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
