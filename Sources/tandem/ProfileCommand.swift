import ArgumentParser
import BoundedJSON
import Foundation
import ServingTypes
import Simulation

/// Fits a cost model to a live cluster, for `tandem simulate --profile FILE`.
struct ProfileCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "profile", abstract: "Fit a cost model to a running cluster, and compare the two.",
        discussion: """
            Drives the cluster as a client does and reads the stamps of every job, so that what the coordinator,
            the links and the front door cost is in the fit. The cluster should be idle otherwise, with one prefill
            and one decode worker, or with one mixed worker, and --local-prefill-tokens 0.

              tandem profile --fit profile.json                      fit and write
              tandem profile --compare profile.json --rate 20        one workload, live and simulated
            """)

    @Option(help: "Fit, and write the profile to this file.") var fit: String?
    @Option(help: "Play a workload live and simulated with the profile of this file.") var compare: String?
    @Option(help: "Longest sequence that the model takes.") var context: Int = 512
    @Option(help: "Rounds of every measurement.") var rounds: Int = 5
    @Option(help: "Prompt ids are drawn below this.") var vocabulary: Int = 1000
    @Option(help: "With --compare: requests.") var jobs: Int = 200
    @Option(help: "With --compare: requests per second, Poisson.") var rate: Double = 10
    @Option(help: "With --compare: prompt tokens, \(LengthDistribution.forms).") var input = "lognormal:128:0.8"
    @Option(help: "With --compare: output tokens, \(LengthDistribution.forms).") var output = "lognormal:48:0.8"
    @Option(help: "With --compare: the cluster's policy.") var policy = "fair"
    @Option(help: "Jobs in one iteration, as the cluster was started.") var batchJobs: Int = 32
    @Option(help: "Tokens in one iteration, as the cluster was started.") var stepTokens: Int = 512
    @Option(help: "Prompt tokens of one job in one iteration, as the cluster was started.") var chunkTokens: Int = 256
    @Option(help: "With --compare: prompts below this are prefilled where they decode.") var localPrefill: Int = 0
    @Option(help: "Seed of prompts, lengths and arrivals.") var seed: UInt64 = 1
    @Option(help: "With --compare: also write the table as JSON.") var json: String?
    @OptionGroup var cluster: ClusterOptions

    func validate() throws {
        guard (fit == nil) != (compare == nil) else {
            throw ValidationError("one of --fit and --compare is needed")
        }
        for (name, value) in [
            ("context", context), ("rounds", rounds), ("vocabulary", vocabulary), ("jobs", jobs),
            ("batch-jobs", batchJobs), ("step-tokens", stepTokens), ("chunk-tokens", chunkTokens),
        ] where !(1...10_000_000).contains(value) {
            throw ValidationError("--\(name): \(value) is outside 1 to 10000000")
        }
        guard context >= 64 else { throw ValidationError("--context: \(context) is less than 64") }
        guard rate.isFinite, rate > 0 else { throw ValidationError("--rate: \(rate) is not more than 0") }
        for (name, text) in [("input", input), ("output", output)] where LengthDistribution(text) == nil {
            throw ValidationError("--\(name): \(text) is not of the form \(LengthDistribution.forms)")
        }
    }

    func run() async throws {
        let load = LiveLoad(client: ClusterClient(cluster), vocabulary: vocabulary, seed: seed)
        let shape = try await LiveShape(load.client)
        if let fit {
            try await runFit(load, shape, to: fit)
        } else if let compare {
            try await runComparison(load, shape, try ProfileFile.read(compare))
        }
    }
}

/// What the coordinator says of its workers.
struct LiveShape: Sendable {
    var prefill = 0
    var decode = 0
    var mixed = 0
    var blockTokens = 16
    var pageBytes = 0
    var blocks = 0

    /// Asks until every worker has said how many blocks it has: the first heartbeat may be on its way.
    init(_ client: ClusterClient) async throws {
        for _ in 0..<40 {
            self = try Self(of: await client.get("/admin/cluster"))
            if blocks > 0 { return }
            try await Task.sleep(for: .milliseconds(50))
        }
        throw CLIError("no worker has told the size of its pool")
    }

    private init(of cluster: JSONValue) throws {
        let workers = cluster["workers"]?.arrayValue ?? []
        for worker in workers {
            switch worker["role"]?.stringValue {
            case "prefill": prefill += 1
            case "decode": decode += 1
            default: mixed += 1
            }
            blockTokens = worker["block_tokens"]?.intValue ?? blockTokens
            pageBytes = worker["page_bytes"]?.intValue ?? pageBytes
            let total = worker["load"]?["blocks"]?["total"]?.intValue ?? 0
            if worker["role"]?.stringValue != "prefill", total > 0 { blocks = blocks == 0 ? total : min(blocks, total) }
        }
        guard decode + mixed > 0 else { throw CLIError("the cluster has no worker that decodes") }
    }

    var name: String { mixed > 0 ? "\(mixed) mixed" : "\(prefill) prefill, \(decode) decode" }
}

/// One job's stamps, milliseconds since the coordinator received it, and what the client saw.
struct LiveJob: Sendable {
    /// When the client sent it, milliseconds since the command began.
    var sent: Double
    var inputTokens: Int
    var outputTokens: Int
    /// Nil where the first token overtook the word that the prompt had begun.
    var prefilling: Double?
    var firstToken: Double
    var transferring: Double?
    var decoding: Double?
    var secondToken: Double?
    var finished: Double
    var kvBytes: Int
    var clientFirstToken: Double
    var clientCompletion: Double

    /// The time in which it decoded, and in which its prompt was computed.
    var decodingTime: ClosedRange<Double>? {
        guard let secondToken, finished > secondToken else { return nil }
        return sent + secondToken...sent + finished
    }

    var promptTime: ClosedRange<Double>? {
        guard let prefilling, firstToken > prefilling else { return nil }
        return sent + prefilling...sent + firstToken
    }

    /// Mean gap of the tokens after the second.
    var gap: Double? {
        guard let secondToken, outputTokens > 3 else { return nil }
        return (finished - secondToken) / Double(outputTokens - 2)
    }
}

/// Sends jobs of given lengths and reads their stamps.
struct LiveLoad: Sendable {
    let client: ClusterClient
    let vocabulary: Int
    let seed: UInt64

    private static let origin = ContinuousClock.now

    /// One job. Prompts differ by `index`, so that no prefix cache holds them.
    func run(input: Int, output: Int, index: Int) async throws -> LiveJob {
        var generator = SeededGenerator(state: seed &+ UInt64(bitPattern: Int64(index)) &* 0x9E37_79B9_7F4A)
        let prompt = (0..<max(input, 1)).map { _ in
            JSONValue.integer(Int64(generator.next() % UInt64(max(vocabulary, 2))))
        }
        let body = JSONObject([
            ("prompt", .array(prompt)), ("max_tokens", .integer(Int64(max(output, 1)))), ("ignore_eos", .bool(true)),
            ("stream", .bool(true)), ("temperature", .integer(0)),
        ])
        let start = ContinuousClock.now
        let events = try await client.events("/v1/completions", .object(body))
        guard let id = events.jobID else { throw CLIError("the coordinator named no job") }
        var (first, last) = (0.0, 0.0)
        for try await event in events where event["choices"]?.arrayValue?.isEmpty == false {
            last = (ContinuousClock.now - start).seconds * 1000
            if first == 0 { first = last }
        }
        let job = try await client.get("/v1/jobs/\(id)")
        guard let stamps = job["stamps_ms"], let finished = stamps["finished"]?.doubleValue,
            let firstToken = stamps["first_token"]?.doubleValue
        else { throw CLIError("job \(id) has no stamps: it ended as \(job["status"]?.stringValue ?? "unknown")") }
        return LiveJob(
            sent: (start - Self.origin).seconds * 1000, inputTokens: input,
            outputTokens: job["usage"]?["completion_tokens"]?.intValue ?? output,
            prefilling: stamps["prefilling"]?.doubleValue, firstToken: firstToken,
            transferring: stamps["transferring"]?.doubleValue,
            decoding: stamps["decoding"]?.doubleValue, secondToken: stamps["second_token"]?.doubleValue,
            finished: finished, kvBytes: job["route"]?["kv_bytes_moved"]?.intValue ?? 0, clientFirstToken: first,
            clientCompletion: last)
    }

    /// So many equal jobs at once.
    func together(_ count: Int, input: Int, output: Int, index: Int) async throws -> [LiveJob] {
        try await withThrowingTaskGroup(of: LiveJob.self) { group in
            for offset in 0..<count {
                group.addTask { try await run(input: input, output: output, index: index + offset) }
            }
            var jobs: [LiveJob] = []
            for try await job in group { jobs.append(job) }
            return jobs
        }
    }
}
