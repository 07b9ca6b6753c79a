import ArgumentParser
import BoundedJSON
import Foundation
import LocalSupervisor
import ServingTypes

/// What `make run` shows: a real cluster of processes, jobs through its coordinator, a scale-up
/// while a job streams, and an orderly end.
struct DemoCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "demo", abstract: "Start a cluster, run jobs through it, scale it live, stop it (`make run`).")

    @OptionGroup var flags: ClusterFlags

    func run() async throws {
        var settings = flags
        settings.port = settings.port ?? 0
        settings.localPrefillTokens = settings.localPrefillTokens ?? 0
        var resolver = try SettingResolver(configPath: settings.config)
        let plan = try settings.plan(&resolver)
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("tandem-demo-\(getpid())")
        defer { try? FileManager.default.removeItem(at: folder) }
        let cluster = try LocalCluster(plan: plan, state: StateDirectory(path: folder.path), apiKey: nil) {
            Terminal.say("  [\($0)]")
        }
        let signals = Signals.stopping(cluster)
        defer { signals.cancel() }

        Terminal.say("starting \(UpCommand.describe(plan.workers)), each a process of its own, on \(plan.modelPath)")
        let started = ContinuousClock.now
        try await cluster.run {
            try await cluster.waitUntilReady(within: .seconds(300)) { Terminal.say("  \($0)") }
            Terminal.say("ready on \(plan.url) after \(Self.seconds(since: started))\n")
            try await DemoScript(cluster: cluster).play()
            Terminal.say("\nstopping: jobs are drained, then the processes end")
            await cluster.supervisor.shutDown()
        }
        Terminal.say("the cluster has stopped")
    }

    static func seconds(since start: ContinuousClock.Instant) -> String {
        let elapsed = ContinuousClock.now - start
        return String(
            format: "%.1f s", Double(elapsed.components.seconds) + Double(elapsed.components.attoseconds) / 1e18)
    }
}

/// The jobs of the demonstration, with fixed seeds: the same text on every machine of one kind.
struct DemoScript {
    let cluster: LocalCluster

    private static let firstWave = [
        "Once upon a time there was a little girl who lived in the forest",
        "The old king had three sons, and the youngest of them",
        "\"Good morning,\" said the fox to the",
    ]
    private static let secondWave = [
        "Down by the river the children found", "The princess looked out of the window and saw",
        "It was a dark night, and the wind", "\"I should like to go home,\" said",
    ]

    func play() async throws {
        Terminal.say("1. \(Self.firstWave.count) jobs at once; the first one streams here:\n")
        let first = try await wave(Self.firstWave, streamFirst: true, maxTokens: 80)
        show(first)

        Terminal.say("\n2. a long job streams while decode scales from 1 to 2 workers:\n")
        async let long = run(
            "In the middle of the sea there was an island where", seed: 7, maxTokens: 260, stream: true)
        try await Task.sleep(for: .milliseconds(30))
        _ = try await ScaleCommand.scale(["decode=2"], state: cluster.state)
        let streamed = try await long
        try await waitForDecodeWorkers(2)
        Terminal.say("")
        show([streamed])

        Terminal.say("\n3. \(Self.secondWave.count) more jobs at once, now on two decode workers:\n")
        let second = try await wave(Self.secondWave, streamFirst: false, maxTokens: 60)
        for job in second { Terminal.say("  \(job.prompt)\(job.text.replacingOccurrences(of: "\n", with: " "))\n") }
        show(second)
    }

    struct Finished: Sendable {
        var prompt: String
        var text: String
        var view: JSONValue
    }

    private func wave(_ prompts: [String], streamFirst: Bool, maxTokens: Int) async throws -> [Finished] {
        try await withThrowingTaskGroup(of: (Int, Finished).self) { group in
            for (index, prompt) in prompts.enumerated() {
                group.addTask {
                    let stream = streamFirst && index == 0
                    return (index, try await run(prompt, seed: 11 + index, maxTokens: maxTokens, stream: stream))
                }
            }
            var finished = [(Int, Finished)]()
            for try await result in group { finished.append(result) }
            return finished.sorted { $0.0 < $1.0 }.map(\.1)
        }
    }

    private func run(_ prompt: String, seed: Int, maxTokens: Int, stream: Bool) async throws -> Finished {
        let body = JSONObject([
            ("prompt", .string(prompt)), ("max_tokens", .integer(Int64(maxTokens))), ("seed", .integer(Int64(seed))),
            ("stream", .bool(true)),
        ])
        let events = try await cluster.client.events("/v1/completions", .object(body))
        if stream { Terminal.stream("  " + prompt) }
        var text = ""
        for try await event in events {
            if let message = event["error"]?["message"]?.stringValue { throw CLIError(message) }
            let piece = event["choices"]?.arrayValue?.first?["text"]?.stringValue ?? ""
            text += piece
            if stream { Terminal.stream(piece.replacingOccurrences(of: "\n", with: "\n  ")) }
        }
        if stream { Terminal.stream("\n") }
        guard let id = events.jobID else { throw CLIError("the coordinator named no job id") }
        return Finished(prompt: prompt, text: text, view: try await cluster.client.get("/v1/jobs/\(id)"))
    }

    private func waitForDecodeWorkers(_ count: Int) async throws {
        for _ in 0..<600 {
            let snapshot = try await cluster.client.get("/admin/cluster")
            let ready = (snapshot["workers"]?.arrayValue ?? []).filter {
                $0["role"]?.stringValue == "decode" && $0["state"]?.stringValue == "ready"
            }
            if ready.count >= count { return }
            try await Task.sleep(for: .milliseconds(100))
        }
        throw CLIError("\(count) decode workers were not ready within 60 s")
    }

    private func show(_ jobs: [Finished]) {
        let rows = jobs.map { finished in
            let job = JobSummary(finished.view)
            return [
                String(finished.view["id"]?.stringValue?.prefix(8) ?? "?"), job.prefill, job.decode,
                "\(job.promptTokens)", "\(job.outputTokens)", Terminal.milliseconds(job.ttft),
                Terminal.milliseconds(job.tpot), Terminal.milliseconds(job.jct), Terminal.bytes(job.kvBytes),
            ]
        }
        let header = ["JOB", "PREFILL ON", "DECODE ON", "PROMPT", "OUTPUT", "TTFT", "TPOT", "JCT", "KV MOVED"]
        let table = Terminal.table(header, rows)
        Terminal.say("\n  " + table.replacingOccurrences(of: "\n", with: "\n  "))
    }
}
