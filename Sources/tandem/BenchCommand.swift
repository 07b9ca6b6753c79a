import ArgumentParser
import BoundedJSON
import Foundation
import LoadBench
import ServingTypes

/// Load against any OpenAI endpoint, and vLLM's table of fields.
struct BenchCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench", abstract: "Measure an OpenAI endpoint: throughput, TTFT, TPOT, ITL, goodput.",
        discussion: """
            Prompts are random token ids, different in every run unless --seed is given, so that no run is served
            from another one's prefix cache.

              tandem bench --num-prompts 32 --max-concurrency 8 --input-len 256 --output-len 64
              tandem bench --num-prompts 100 --request-rate 5 --goodput ttft:500 --goodput tpot:50
              tandem bench --request-rate 5 --burstiness 0.3 --input-len lognormal:256:0.8:4096
              tandem bench --trace trace.jsonl --trace-speed 10 --num-prompts 500
              tandem bench --url http://127.0.0.1:8080          any other OpenAI server

            Without --request-rate the loop is closed: --max-concurrency clients, each sending its next request when
            its last one is answered. With it the loop is open: requests go out at their times, and
            --max-concurrency, where given, holds them back.
            """)

    @Option(help: "Requests in all.") var numPrompts: Int = 32
    @Option(help: "Requests under way at once; 0: no bound (default: 8 in a closed loop, none in an open one).")
    var maxConcurrency: Int?
    @Option(help: "Arrivals per second; 0: a closed loop.") var requestRate: Double = 0
    @Option(help: "Shape of the gaps between arrivals: 1 is Poisson, less comes in bursts, more is evener.")
    var burstiness: Double = 1
    @Option(help: "Prompt tokens: \(LengthDistribution.forms).") var inputLen: LengthDistribution = .fixed(256)
    @Option(help: "Output tokens, in the same forms.") var outputLen: LengthDistribution = .fixed(64)
    @Option(help: "Tokens that begin every prompt, the same in all, besides --input-len.") var prefixLen: Int = 0
    @Option(help: "JSONL of arrivals and lengths, instead of a rate and lengths.") var trace: String?
    @Option(help: "Replay a trace this many times as fast.") var traceSpeed: Double = 1
    @Option(help: "Leave out requests of a trace with more tokens than this.") var traceTokensMax: Int = 1_000_000
    @Option(help: "Objective for goodput: ttft:MS, tpot:MS or e2el:MS; may be given several times.")
    var goodput: [ServiceObjective] = []
    @Option(help: "Percentiles besides the median, with commas.") var metricPercentiles: PercentileList = .standard
    @Option(help: "Prompt ids are drawn below this.") var vocabulary: Int = 1000
    @Option(help: "Seed of prompts, lengths and arrivals (default: drawn, and printed).") var seed: UInt64?
    @Option(help: "Model name.") var model: String?
    @Option(help: "Seconds after which a request counts as failed.") var timeout: Int = 3600
    @Option(help: "Also write the result as JSON to this file.") var json: String?
    @Flag(help: "Say nothing while requests run.") var quiet = false
    @OptionGroup var cluster: ClusterOptions

    func validate() throws {
        for (name, value, range) in [
            ("num-prompts", numPrompts, 1...LoadPlan.Limits.requestsMax),
            ("max-concurrency", maxConcurrency ?? 0, 0...BenchRunner.Limits.concurrencyMax),
            ("prefix-len", prefixLen, 0...LengthDistribution.Limits.tokensMax),
            ("vocabulary", vocabulary, 2...(1 << 24)),
            ("trace-tokens-max", traceTokensMax, 1...LengthDistribution.Limits.tokensMax),
            ("timeout", timeout, 1...86_400),
        ] where !range.contains(value) {
            throw ValidationError("--\(name): \(value) is outside \(range.lowerBound) to \(range.upperBound)")
        }
        for (name, value, range) in [
            ("request-rate", requestRate, 0...1e6), ("burstiness", burstiness, 0.01...1000),
            ("trace-speed", traceSpeed, 1e-3...1e6),
        ] where !range.contains(value) {
            throw ValidationError("--\(name): \(value) is outside \(range.lowerBound) to \(range.upperBound)")
        }
        if trace != nil, requestRate > 0 { throw ValidationError("--request-rate: a trace has its own arrivals") }
    }

    func run() async throws {
        let client = ClusterClient(cluster)
        let seed = seed ?? UInt64.random(in: 1...UInt64(UInt32.max))
        let plan = try plan(seed: seed)
        guard !plan.isEmpty else { throw CLIError("trace: no request of it fits --trace-tokens-max") }
        let isOpen = plan.contains { $0.arrivalSeconds != nil }
        let concurrency = maxConcurrency ?? (isOpen ? 0 : Self.clientsOfAClosedLoop)
        let runner = BenchRunner(
            client: client, plan: plan, concurrency: concurrency == 0 ? BenchRunner.Limits.concurrencyMax : concurrency,
            prompts: BenchPrompts(seed: seed, vocabulary: vocabulary, prefixTokens: prefixLen), model: model,
            timeout: .seconds(timeout))
        Terminal.say("\(client.baseURL): \(describe(plan, concurrency)), seed \(seed)")
        try await runner.warmUp()
        let progress: (@Sendable (String) -> Void)? = quiet ? nil : { @Sendable text in Terminal.note(text) }
        let run = try await Self.untilInterrupted { await runner.play(progress: progress) }
        if run.outcomes.count < plan.count {
            Terminal.note("stopped after \(run.outcomes.count) of \(plan.count) requests: what follows is of these")
        }
        let report = LoadReport(
            run.outcomes, elapsed: run.elapsed, objectives: goodput, percentiles: metricPercentiles.values)
        Terminal.say(report.text)
        if let reason = run.outcomes.lazy.compactMap(\.failure).first { Terminal.say("first failure: \(reason)") }
        if let json { try write(report, plan, concurrency, seed, to: json) }
        if report.completed == 0 { throw ExitCode(1) }
        if run.outcomes.count < plan.count { throw ExitCode(130) }
    }

    /// The first Ctrl-C ends the run and reports it, the second one the program.
    private static func untilInterrupted(
        _ body: @escaping @Sendable () async -> BenchRunner.Run
    ) async throws -> BenchRunner.Run {
        let run = Task { await body() }
        signal(SIGINT, SIG_IGN)
        let source = DispatchSource.makeSignalSource(signal: SIGINT, queue: .global())
        source.setEventHandler {
            signal(SIGINT, SIG_DFL)
            Terminal.note("stopping: requests under way are dropped (Ctrl-C again ends at once)")
            run.cancel()
        }
        source.resume()
        defer { source.cancel() }
        return await run.value
    }

    private static let clientsOfAClosedLoop = 8

    private func plan(seed: UInt64) throws -> [PlannedRequest] {
        guard let trace else {
            let arrivals =
                requestRate > 0 ? ArrivalProcess.open(rate: requestRate, burstiness: burstiness) : .closedLoop
            return LoadPlan.make(count: numPrompts, arrivals: arrivals, input: inputLen, output: outputLen, seed: seed)
        }
        let requests = try TraceFile.read(trace).map {
            PlannedRequest(
                arrivalSeconds: $0.arrivalSeconds, inputTokens: $0.inputTokens, outputTokens: $0.outputTokens,
                tenant: $0.tenant)
        }
        return LoadPlan.replay(requests, count: numPrompts, speed: traceSpeed, tokensMax: traceTokensMax)
    }

    private func describe(_ plan: [PlannedRequest], _ concurrency: Int) -> String {
        let clients = concurrency == 0 ? "no bound on requests at once" : "\(concurrency) at once"
        guard trace == nil else { return "\(plan.count) requests of a trace, \(traceSpeed)x as fast, \(clients)" }
        let arrivals =
            requestRate > 0 ? "\(ArrivalProcess.open(rate: requestRate, burstiness: burstiness))" : "closed loop"
        return "\(plan.count) requests of \(inputLen) + \(outputLen) tokens, \(arrivals), \(clients)"
    }

    private func write(
        _ report: LoadReport, _ plan: [PlannedRequest], _ concurrency: Int, _ seed: UInt64, to path: String
    ) throws {
        var members = report.json.objectValue ?? JSONObject()
        members["num_prompts"] = .integer(Int64(plan.count))
        members["max_concurrency"] = .integer(Int64(concurrency))
        members["request_rate"] = requestRate > 0 ? .number(requestRate) : "inf"
        members["burstiness"] = .number(burstiness)
        members["seed"] = .integer(Int64(clamping: seed))
        try JSON.text(.object(members), pretty: true).write(toFile: path, atomically: true, encoding: .utf8)
    }
}

extension LengthDistribution: ExpressibleByArgument {
    public init?(argument: String) { self.init(argument) }
}

extension ServiceObjective: ExpressibleByArgument {
    public init?(argument: String) { self.init(argument) }
}

/// `50,90,99`.
struct PercentileList: ExpressibleByArgument {
    static let standard = PercentileList(values: [99])

    let values: [Double]

    init(values: [Double]) { self.values = values }

    init?(argument: String) {
        let parts = argument.split(separator: ",", omittingEmptySubsequences: false)
        let values = parts.compactMap { Double($0) }.filter { (0...100).contains($0) }
        guard values.count == parts.count else { return nil }
        self.values = values
    }

    var defaultValueDescription: String { values.map { "\(Int($0))" }.joined(separator: ",") }
}

extension Duration {
    var seconds: Double { Double(components.seconds) + Double(components.attoseconds) / 1e18 }
}
