import BoundedJSON
import Foundation
import Scheduling
import ServingTypes
import Simulation

// MARK: - Live and simulated, side by side

extension ProfileCommand {
    func runComparison(_ client: LiveLoad, _ cluster: LiveCluster, _ profile: CostProfile) async throws {
        Terminal.complain("warming up")
        _ = try await client.together(4, input: 32, output: 16, index: -1000)
        var session = LiveSession(cluster: cluster)
        for (number, load) in try rates(cluster, profile).enumerated() {
            let (label, rate) = load
            for offset in 0..<seeds {
                var command = self
                (command.seed, command.rate) = (seed &+ UInt64(offset), rate)
                let trace = command.drawTrace()
                Terminal.complain(
                    "\(label), seed \(command.seed): \(trace.count) requests at \(Decimals.short(rate))/s")
                for turn in 0..<turns {
                    let first = 20_000_000 + 100_000 * ((number * seeds + offset) * turns + turn)
                    var experiment = LiveExperiment(
                        kind: .heldOut, jobs: try await command.play(client, trace, from: first))
                    (experiment.load, experiment.seed, experiment.turn) = (label, command.seed, turn)
                    session.experiments.append(experiment)
                }
            }
        }
        if let samples { try write(SamplesFile.json(session), to: samples, pretty: false) }
        try judge(profile, by: session)
    }

    /// The table of what a profile predicts of a session's held-out workloads; nothing where it has none.
    func judge(_ profile: CostProfile, by session: LiveSession) throws {
        let held = session.experiments.filter { $0.kind == .heldOut }
        guard !held.isEmpty else { return }
        guard let comparison = LiveReplay(cluster: session.cluster, profile: profile).comparison(of: session) else {
            throw CLIError("the simulation broke a promise")
        }
        let known = Set(held.map(\.seed)).sorted()
        let turns = Set(held.map(\.turn)).count
        let requests = held.map(\.jobs.count).reduce(0, +) / max(Set(held.map(\.load)).count, 1)
        let title =
            "\(session.cluster.name); \(requests) requests per load, Poisson, input \(input), output \(output), "
            + "seeds \(known.first ?? 0) to \(known.last ?? 0)"
            + (turns > 1 ? ", each played \(turns) times" : "")
        Terminal.say(title)
        Terminal.say(Terminal.table(LiveComparison.header, comparison.cells))
        Terminal.say(comparison.verdict + "; prompts computed where they decode: " + comparison.localPrompts)
        if let json { try write(Self.json(comparison), to: json) }
        if let markdown {
            try comparison.markdown(title).write(toFile: markdown, atomically: true, encoding: .utf8)
        }
    }

    /// Requests per second, each with its name.
    func rates(_ cluster: LiveCluster, _ profile: CostProfile) throws -> [(String, Double)] {
        guard let loads else { return [("\(Decimals.short(rate))/s", rate)] }
        let most = LiveReplay(cluster: cluster, profile: profile).capacity(
            input: meanTokens(input), output: meanTokens(output))
        return try Self.shares(loads).map {
            ("\(Decimals.short($0 * 100)) % (\(Decimals.short($0 * most))/s)", $0 * most)
        }
    }

    /// Mean of a distribution of lengths, as this command draws them.
    func meanTokens(_ text: String) -> Double {
        var workload = Workload()
        workload.jobs = 2000
        (workload.inputMax, workload.outputMax) = (max(context / 2 - 1, 1), max(context / 2, 2))
        workload.input = LengthDistribution(text) ?? workload.input
        let next = workload.requests(seed: 1)
        var (sum, count) = (0, 0)
        while let request = next() { (sum, count) = (sum + request.prompt.count, count + 1) }
        return Double(sum) / Double(max(count, 1))
    }

    /// The workload as a trace, so that both sides get the very same requests.
    func drawTrace() -> [TraceEntry] {
        var workload = Workload()
        workload.jobs = jobs
        workload.rate = rate
        workload.input = LengthDistribution(input) ?? workload.input
        workload.output = LengthDistribution(output) ?? workload.output
        workload.outputMax = max(context / 2, 2)
        workload.inputMax = max(context / 2 - 1, 1)
        let next = workload.requests(seed: seed)
        var trace: [TraceEntry] = []
        while let request = next() {
            trace.append(
                TraceEntry(
                    arrivalSeconds: Double(request.arrival.nanoseconds) / 1e9, tenant: "default",
                    inputTokens: request.prompt.count, outputTokens: max(request.length, 2)))
        }
        return trace
    }

    /// Every request at its instant; the jobs in the order of the trace.
    func play(_ load: LiveLoad, _ trace: [TraceEntry], from first: Int) async throws -> [LiveJob] {
        let start = ContinuousClock.now + .milliseconds(100)
        return try await withThrowingTaskGroup(of: LiveJob.self) { group in
            for (index, entry) in trace.enumerated() {
                group.addTask {
                    try await Task.sleep(
                        until: start + .seconds(entry.arrivalSeconds), tolerance: .zero, clock: .continuous)
                    return try await load.run(
                        input: entry.inputTokens, output: entry.outputTokens, index: first + index)
                }
            }
            var jobs: [LiveJob] = []
            for try await job in group { jobs.append(job) }
            return jobs.sorted { $0.sent < $1.sent }
        }
    }

    static func json(_ comparison: LiveComparison) -> JSONValue {
        .array(
            comparison.rows.map { row in
                .object(
                    JSONObject([
                        ("load", .string(row.load)), ("measure", .string(row.measure)),
                        ("live_ms", .number(row.live)), ("simulated_ms", .number(row.simulated)),
                        ("error", .number(row.error)),
                        ("error_per_seed", .array(row.errors.map { .number($0) })),
                        ("live_again", row.noise.map { .number($0) } ?? .null),
                    ]))
            })
    }
}
