import BoundedJSON
import Foundation
import Scheduling
import ServingTypes
import Simulation

// MARK: - Live and simulated, side by side

extension ProfileCommand {
    func runComparison(_ load: LiveLoad, _ shape: LiveShape, _ profile: CostProfile) async throws {
        let trace = drawTrace()
        Terminal.complain("warming up")
        _ = try await load.together(4, input: 32, output: 32, index: -1000)
        Terminal.complain("\(trace.count) requests over \(Int(trace.last?.arrivalSeconds ?? 0)) s, live")
        let live = try await play(load, trace)
        let simulated = simulate(shape, profile, trace)
        if let failure = simulated.failure { throw CLIError("the simulation broke a promise: \(failure)") }
        let rows = compare(live, simulated, profile)
        Terminal.say(
            "\(shape.name); \(trace.count) requests, Poisson at \(rate)/s, input \(input), output \(output), seed \(seed)"
        )
        Terminal.say(Terminal.table(["MS", "LIVE", "SIMULATED", "ERROR"], rows.map(\.cells)))
        if let json {
            let value = JSONValue.object(
                JSONObject(rows.map { ($0.name, .array([.number($0.live), .number($0.simulated)])) }))
            try (JSON.text(value, pretty: true) + "\n").write(toFile: json, atomically: true, encoding: .utf8)
        }
    }

    /// The workload as a trace, so that both sides get the very same requests.
    private func drawTrace() -> [TraceEntry] {
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

    private func play(_ load: LiveLoad, _ trace: [TraceEntry]) async throws -> [LiveJob] {
        let start = ContinuousClock.now + .milliseconds(100)
        return try await withThrowingTaskGroup(of: LiveJob.self) { group in
            for (index, entry) in trace.enumerated() {
                group.addTask {
                    try await Task.sleep(
                        until: start + .seconds(entry.arrivalSeconds), tolerance: .zero, clock: .continuous)
                    return try await load.run(
                        input: entry.inputTokens, output: entry.outputTokens, index: 1_000_000 + index)
                }
            }
            var jobs: [LiveJob] = []
            for try await job in group { jobs.append(job) }
            return jobs
        }
    }

    private func simulate(_ live: LiveShape, _ profile: CostProfile, _ trace: [TraceEntry]) -> WorkloadReport {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (live.prefill, live.decode, live.mixed)
        shape.profile = profile
        shape.policy = PolicyConfiguration(named: policy) ?? PolicyConfiguration()
        shape.blockTokens = live.blockTokens
        shape.poolTokens = live.blocks * live.blockTokens
        (shape.batchJobsMax, shape.stepTokensMax) = (batchJobs, stepTokens)
        shape.localPrefillThreshold = localPrefill
        shape.tick = .milliseconds(25)
        var workload = Workload()
        workload.trace = trace
        workload.jobs = trace.count
        return WorkloadRun.run(shape, workload, seed: seed, keepsRecords: true)
    }

    private struct Row {
        var name: String
        var live: Double
        var simulated: Double

        var cells: [String] {
            [
                name, Decimals.fixed(live, 3), Decimals.fixed(simulated, 3),
                live > 0 ? "\(Decimals.fixed((simulated / live - 1) * 100, 1)) %" : "",
            ]
        }
    }

    private func compare(_ live: [LiveJob], _ simulated: WorkloadReport, _ profile: CostProfile) -> [Row] {
        func perToken(_ first: Double, _ end: Double, _ count: Int) -> Double {
            (end - first) / Double(max(count - 1, 1))
        }
        let (records, door) = (simulated.records, profile.frontDoorSeconds * 1000)
        let samples: [(String, [Double], [Double])] = [
            ("TTFT", live.map(\.firstToken), records.map { $0.timeToFirstToken * 1000 }),
            (
                "TPOT", live.map { perToken($0.firstToken, $0.finished, $0.outputTokens) },
                records.map { perToken($0.firstToken, $0.end, $0.outputTokens) * 1000 }
            ),
            ("JCT", live.map(\.finished), records.map { $0.completion * 1000 }),
            ("client TTFT", live.map(\.clientFirstToken), records.map { $0.timeToFirstToken * 1000 + door }),
            ("client JCT", live.map(\.clientCompletion), records.map { $0.completion * 1000 + door }),
        ]
        return samples.flatMap { name, one, other -> [Row] in
            let (a, b) = (Spread(one), Spread(other))
            return [
                Row(name: "mean \(name)", live: a.mean, simulated: b.mean),
                Row(name: "P95 \(name)", live: a.p95, simulated: b.p95),
            ]
        }
    }
}
