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
            and one decode worker, or with one mixed worker; how it was started is told with the same options.

              tandem profile --fit profile.json --samples all.json     measure, fit and write
              tandem profile --fit profile.json --loads 0.5,0.8        the same, with workloads between the rounds
                                                                       that the fit does not see and is judged by
              tandem profile --refit all.json --fit profile.json       fit again, without the cluster
              tandem profile --compare profile.json --loads 0.5,0.8 --seeds 3
                                                                       workloads, live and simulated
            """)

    @Option(help: "Fit, and write the profile to this file.") var fit: String?
    @Option(help: "Play a workload live and simulated with the profile of this file.") var compare: String?
    @Option(help: "With --fit or --compare: write every measured job to this file.") var samples: String?
    @Option(help: "Fit to the jobs of this file of --samples, without a cluster.") var refit: String?
    @Option(help: "Longest sequence that the model takes.") var context: Int = 512
    @Option(help: "Rounds of every measurement.") var rounds: Int = 5
    @Option(help: "Prompt ids are drawn below this.") var vocabulary: Int = 1000
    @Option(help: "Requests of a workload that is compared.") var jobs: Int = 200
    @Option(help: "With --compare: requests per second, Poisson.") var rate: Double = 10
    @Option(help: "Compare at these shares of what the profile says the cluster can take, in place of --rate.")
    var loads: String?
    @Option(help: "Workloads per load, of seeds from --seed on.") var seeds: Int = 1
    @Option(help: "Times that each of them is played live.") var turns: Int = 1
    @Option(help: "Prompt tokens of traffic, \(LengthDistribution.forms).") var input = "lognormal:128:0.8"
    @Option(help: "Output tokens of traffic, \(LengthDistribution.forms).") var output = "lognormal:48:0.8"
    @Option(help: "The cluster's policy.") var policy = "fair"
    @Option(help: "Jobs in one iteration, as the cluster was started.") var batchJobs: Int = 32
    @Option(help: "Tokens in one iteration, as the cluster was started.") var stepTokens: Int = 512
    @Option(help: "Prompt tokens of one job in one iteration, as the cluster was started.") var chunkTokens: Int = 256
    @Option(help: "Threads of each worker, as the cluster was started.") var threads: Int = 1
    @Option(help: "Prompts below this are prefilled where they decode, as the cluster was started.")
    var localPrefillTokens: Int = 0
    @Option(help: "As the cluster was started; 0: never.") var reliefWaitMs: Int = 0
    @Option(help: "As the cluster was started; 0: no limit.") var stepStretchPercent: Int = 0
    @Option(help: "As the cluster was started.") var prefillWindow: Int = 2
    @Option(help: "Seed of prompts, lengths and arrivals.") var seed: UInt64 = 1
    @Option(help: "Also write the comparison as JSON.") var json: String?
    @Option(help: "Also write the comparison as Markdown.") var markdown: String?
    @OptionGroup var cluster: ClusterOptions

    func validate() throws {
        guard refit == nil || fit != nil else { throw ValidationError("--refit: --fit names no file to write") }
        guard (fit == nil) != (compare == nil) else {
            throw ValidationError("one of --fit and --compare is needed")
        }
        for (name, value) in [
            ("context", context), ("rounds", rounds), ("vocabulary", vocabulary), ("jobs", jobs),
            ("batch-jobs", batchJobs), ("step-tokens", stepTokens), ("chunk-tokens", chunkTokens), ("seeds", seeds),
            ("turns", turns), ("threads", threads), ("prefill-window", prefillWindow),
        ] where !(1...10_000_000).contains(value) {
            throw ValidationError("--\(name): \(value) is outside 1 to 10000000")
        }
        for (name, value) in [
            ("local-prefill-tokens", localPrefillTokens), ("relief-wait-ms", reliefWaitMs),
            ("step-stretch-percent", stepStretchPercent),
        ] where !(0...10_000_000).contains(value) {
            throw ValidationError("--\(name): \(value) is outside 0 to 10000000")
        }
        guard context >= 64 else { throw ValidationError("--context: \(context) is less than 64") }
        if let loads { _ = try Self.shares(loads) }
        guard rate.isFinite, rate > 0 else { throw ValidationError("--rate: \(rate) is not more than 0") }
        for (name, text) in [("input", input), ("output", output)] where LengthDistribution(text) == nil {
            throw ValidationError("--\(name): \(text) is not of the form \(LengthDistribution.forms)")
        }
    }

    static func shares(_ text: String) throws -> [Double] {
        let parts = text.split(separator: ",", omittingEmptySubsequences: false)
        let values = parts.compactMap { Double($0) }.filter { $0 > 0 && $0 < 2 }
        guard values.count == parts.count, values.count <= 8 else {
            throw ValidationError("--loads: \(text) is no list of at most 8 numbers between 0 and 2")
        }
        return values
    }

    func run() async throws {
        if let refit, let fit {
            let session = try SamplesFile.read(refit)
            return try judge(try write(ProfileFit(session), to: fit), by: session)
        }
        let load = LiveLoad(client: ClusterClient(cluster), vocabulary: vocabulary, seed: seed)
        var shape = try await LiveCluster(load.client)
        (shape.batchJobs, shape.stepTokens, shape.chunkTokens) = (batchJobs, stepTokens, chunkTokens)
        (shape.policy, shape.threads, shape.prefillWindow) = (policy, threads, prefillWindow)
        (shape.localPrefill, shape.reliefWait) = (localPrefillTokens, reliefWaitMs)
        shape.stepStretch = stepStretchPercent
        if let fit {
            try await runFit(load, shape, to: fit)
        } else if let compare {
            try await runComparison(load, shape, try ProfileFile.read(compare))
        }
    }
}

extension LiveCluster {
    /// What the coordinator says of its workers. Asks until every worker has said how many blocks it has:
    /// the first heartbeat may be on its way.
    init(_ client: ClusterClient) async throws {
        for _ in 0..<40 {
            self = try Self(of: await client.get("/admin/cluster"))
            if blocks > 0 { return }
            try await Task.sleep(for: .milliseconds(50))
        }
        throw CLIError("no worker has told the size of its pool")
    }

    private init(of cluster: JSONValue) throws {
        self.init()
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
        var tokens: [Double] = []
        for try await event in events where event["choices"]?.arrayValue?.isEmpty == false {
            tokens.append((ContinuousClock.now - start).seconds * 1000)
        }
        let job = try await client.get("/v1/jobs/\(id)")
        guard let stamps = job["stamps_ms"], let finished = stamps["finished"]?.doubleValue,
            let firstToken = stamps["first_token"]?.doubleValue
        else { throw CLIError("job \(id) has no stamps: it ended as \(job["status"]?.stringValue ?? "unknown")") }
        var result = LiveJob()
        result.sent = (start - Self.origin).seconds * 1000
        result.inputTokens = input
        result.outputTokens = job["usage"]?["completion_tokens"]?.intValue ?? output
        (result.placed, result.reserved) = (stamps["placed"]?.doubleValue, stamps["reserved"]?.doubleValue)
        result.prefilling = stamps["prefilling"]?.doubleValue
        result.firstToken = firstToken
        result.transferring = stamps["transferring"]?.doubleValue
        result.decoding = stamps["decoding"]?.doubleValue
        result.secondToken = stamps["second_token"]?.doubleValue
        result.finished = finished
        result.kvBytes = job["route"]?["kv_bytes_moved"]?.intValue ?? 0
        (result.clientFirstToken, result.clientCompletion) = (tokens.first ?? 0, tokens.last ?? 0)
        result.clientTokens = tokens
        return result
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
