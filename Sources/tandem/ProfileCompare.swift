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
        var comparison = LiveComparison()
        var session = LiveSession(cluster: cluster)
        for (number, load) in try rates(cluster, profile).enumerated() {
            let (label, rate) = load
            let first = 1_000_000 * (number + 1)
            for number in 0..<seeds {
                var command = self
                (command.seed, command.rate) = (seed &+ UInt64(number), rate)
                let trace = command.drawTrace()
                Terminal.complain(
                    "\(label), seed \(command.seed): \(trace.count) requests at \(Decimals.short(rate))/s")
                let live = try await command.play(client, trace, from: first + 10_000 * number)
                session.experiments.append(.init(kind: .traffic, jobs: live))
                var replay = LiveReplay(cluster: cluster, profile: profile)
                (replay.seed, replay.localPrefill) = (command.seed, localPrefill)
                guard let simulated = replay.jobs(live) else { throw CLIError("the simulation broke a promise") }
                comparison.add(label, seed: command.seed, live: live, simulated: simulated)
            }
        }
        let title =
            "\(cluster.name); \(jobs) requests per run, Poisson, input \(input), output \(output), seeds \(seed) to \(seed + UInt64(seeds) - 1)"
        Terminal.say(title)
        Terminal.say(Terminal.table(LiveComparison.header, comparison.cells))
        if let samples { try write(SamplesFile.json(session), to: samples, pretty: false) }
        if let json { try write(Self.json(comparison), to: json) }
        if let markdown {
            try comparison.markdown(title).write(toFile: markdown, atomically: true, encoding: .utf8)
        }
    }

    /// Requests per second, each with its name.
    private func rates(_ cluster: LiveCluster, _ profile: CostProfile) throws -> [(String, Double)] {
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
                        ("live_ms", .array(row.live.map { .number($0) })),
                        ("simulated_ms", .array(row.simulated.map { .number($0) })),
                        ("error_of_means", .number(row.error)),
                    ]))
            })
    }
}
