import ArgumentParser
import BoundedJSON
import Foundation
import Scheduling
import ServingTypes
import Simulation

// MARK: - Workloads

extension SimulateCommand {
    func runWorkload() throws {
        let (shape, workload) = (shape, try workload())
        let started = ContinuousClock.now
        let report = WorkloadRun.run(
            shape, workload, seed: seed, objective: objective, keepsRecords: out != nil, progress: progress())
        let elapsed = max((ContinuousClock.now - started).seconds, 1e-9)
        if let failure = report.failure { throw ServingError(.internalError, "seed \(seed): \(failure)") }
        let view = WorkloadView(report: report, objective: (sloTtft, sloTpot))
        if json != "-" {
            Terminal.say(
                "\(prefill) prefill, \(decode) decode, \(mixed) mixed; \(profile); policy \(policy); seed \(seed)")
            Terminal.say(view.text)
        }
        if let json { try write(view.json, to: json) }
        if let out {
            try save(WorkloadPlots.all(report.records), to: out)
            try write(view.json, to: "\(out)/report.json")
        }
        Terminal.complain(
            String(
                format: "%.2f s: %.0f events/s, %.0f jobs/s, %@ at most", elapsed, Double(report.events) / elapsed,
                Double(report.jobs) / elapsed, Self.peakMemory()))
    }

    /// For runs of many events; `what` says which of several.
    func progress(_ what: String = "") -> (Int, Double, UInt64) -> Void {
        let progress = SimulateProgress()
        return { jobs, seconds, events in
            progress.tell("\(what)\(jobs) jobs, \(Int(seconds)) virtual s, \(events) events")
        }
    }

    var objective: ServiceObjective { ServiceObjective(timeToFirstToken: sloTtft, timePerToken: sloTpot) }

    func save(_ plots: [(name: String, plot: SVGPlot)], to folder: String) throws {
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        for (name, plot) in plots {
            try plot.text.write(toFile: "\(folder)/\(name).svg", atomically: true, encoding: .utf8)
        }
    }

    /// Goodput against the arrival rate.
    func runRates(_ rates: [Double]) throws {
        var points: [(rate: Double, goodput: Double)] = []
        var (rows, views) = ([[String]](), [JSONValue]())
        for rate in rates {
            Terminal.complain("\(rate) requests per second")
            var workload = try workload()
            workload.rate = rate
            let report = WorkloadRun.run(
                shape, workload, seed: seed, objective: objective, progress: progress("\(rate)/s: "))
            if let failure = report.failure { throw ServingError(.internalError, "seed \(seed): \(failure)") }
            points.append((rate, report.goodput))
            views.append(WorkloadView(report: report, objective: (sloTtft, sloTpot)).json(atRate: rate))
            rows.append(
                [
                    rate, report.goodput, report.timeToFirstToken.mean, report.timeToFirstToken.p95,
                    report.timePerToken.mean, report.completion.mean, report.normalized.mean,
                ].map(Decimals.short))
        }
        if json != "-" {
            Terminal.say(
                Terminal.table(
                    ["RATE", "GOODPUT", "TTFT MEAN S", "TTFT P95 S", "TPOT MEAN S", "JCT MEAN S", "S/TOKEN"], rows))
        }
        if let json { try write(.array(views), to: json) }
        if let out { try save([("goodput", WorkloadPlots.goodput(points))], to: out) }
    }

    var shape: ClusterShape {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (prefill, decode, mixed)
        shape.profile = (try? ProfileFile.named(profile)) ?? .a100OPT13B
        shape.policy = (try? policyConfiguration()) ?? PolicyConfiguration()
        shape.blockTokens = blockTokens
        (shape.batchJobsMax, shape.stepTokensMax, shape.poolTokens) = (batch, stepTokens, kvTokens)
        shape.localPrefillThreshold = localPrefill
        shape.swapTokens = swapTokens
        if reliefWaitMs > 0 { shape.relief = .init(wait: .milliseconds(Int64(reliefWaitMs))) }
        if stepStretchPercent > 0 { shape.stepStretch = Double(stepStretchPercent) / 100 }
        shape.prefillWindowJobs = prefillWindow
        return shape
    }

    func policyConfiguration() throws -> PolicyConfiguration {
        guard var configuration = PolicyConfiguration(named: policy) else {
            let names = PolicyConfiguration.names + PolicyConfiguration.clairvoyantNames
            throw ValidationError("--policy: \(policy) is none of \(names.joined(separator: ", "))")
        }
        do { try configuration.apply(policySettings) } catch { throw ValidationError("--\(error.message)") }
        return configuration
    }

    func workload() throws -> Workload {
        var workload = Workload()
        workload.rate = rate
        workload.arrivals = ArrivalProcess(arrivals) ?? .poisson
        workload.input = LengthDistribution(input) ?? workload.input
        workload.output = LengthDistribution(output) ?? workload.output
        workload.tenants = tenants
        workload.speed = speed
        if let traceFile { workload.trace = try TraceFile.read(traceFile) }
        workload.jobs = jobs ?? (traceFile == nil ? 1000 : workload.trace.count)
        return workload
    }

    static func peakMemory() -> String {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmHWM:") }
        let kilobytes = line?.split(separator: " ").compactMap { Double($0) }.first
        return kilobytes.map { Terminal.bytes($0 * 1024) } ?? "unknown memory"
    }
}

/// A report as a table and as JSON.
struct WorkloadView {
    let report: WorkloadReport
    let objective: (timeToFirstToken: Double, timePerToken: Double)

    private var spreads: [(name: String, unit: String, spread: Spread)] {
        [
            ("TTFT", "s", report.timeToFirstToken), ("TPOT", "s", report.timePerToken),
            ("JCT", "s", report.completion), ("normalised", "s/token", report.normalized),
        ]
    }

    var text: String {
        let latencies = Terminal.table(
            ["LATENCY", "UNIT", "MEAN", "P50", "P90", "P95", "P99", "MAX"],
            spreads.map { row in
                let s = row.spread
                return [row.name, row.unit] + [s.mean, s.p50, s.p90, s.p95, s.p99, s.max].map(Self.number)
            })
        return latencies + "\n\n" + Terminal.table(["MEASURE", "VALUE"], measures)
    }

    private var measures: [[String]] {
        let seconds = max(report.seconds, 1e-9)
        var rows = [
            ["jobs finished", "\(report.finished) of \(report.jobs), \(report.failed) failed"],
            ["seconds", Self.number(report.seconds)],
            ["jobs per second", Self.number(Double(report.finished) / seconds)],
            ["output tokens per second", Self.number(Double(report.outputTokens) / seconds)],
            ["all tokens per second", Self.number(Double(report.promptTokens + report.outputTokens) / seconds)],
            ["goodput per second", Self.number(report.goodput)],
            [
                "within TTFT \(Self.number(objective.timeToFirstToken)) and TPOT \(Self.number(objective.timePerToken))",
                "\(report.metObjective)",
            ],
        ]
        for use in report.utilisation {
            rows.append(["utilisation of \(use.workers) \(use.role.rawValue)", Self.number(use.share)])
        }
        rows += [
            ["prompt tokens from cache", "\(report.cachedTokens) of \(report.promptTokens)"],
            ["preemptions", "\(report.preemptions)"], ["requeues", "\(report.requeues)"],
            ["tokens recomputed", "\(report.recomputedTokens)"],
            ["transfers", "\(report.transfers)"], ["KV bytes moved", Terminal.bytes(Double(report.kvBytes))],
            ["events", "\(report.events)"], ["digest", String(report.digest, radix: 16)],
        ]
        return rows
    }

    private static func number(_ value: Double) -> String { String(format: "%.4g", value) }

    var json: JSONValue { .object(JSONObject(members)) }

    func json(atRate rate: Double) -> JSONValue { .object(JSONObject([("rate", .number(rate))] + members)) }

    private var members: [(String, JSONValue)] {
        let integer = { (value: UInt64) in JSONValue.integer(Int64(clamping: value)) }
        var members: [(String, JSONValue)] = [
            ("jobs", .integer(Int64(report.jobs))), ("finished", .integer(Int64(report.finished))),
            ("failed", .integer(Int64(report.failed))), ("seconds", .number(report.seconds)),
            ("prompt_tokens", .integer(Int64(report.promptTokens))),
            ("output_tokens", .integer(Int64(report.outputTokens))),
            ("cached_tokens", .integer(Int64(report.cachedTokens))),
            ("recomputed_tokens", .integer(Int64(report.recomputedTokens))), ("goodput", .number(report.goodput)),
            ("met_objective", .integer(Int64(report.metObjective))), ("preemptions", integer(report.preemptions)),
            ("requeues", integer(report.requeues)), ("transfers", integer(report.transfers)),
            ("kv_bytes", integer(report.kvBytes)), ("events", integer(report.events)),
            ("digest", .string(String(report.digest, radix: 16))),
        ]
        for (name, key) in zip(spreads, ["ttft_s", "tpot_s", "jct_s", "normalized_s_per_token"]) {
            members.append((key, Self.json(name.spread)))
        }
        members.append(
            (
                "utilisation",
                .object(JSONObject(report.utilisation.map { ($0.role.rawValue, .number($0.share)) }))
            ))
        members.append(("tenants", .array(report.tenants.map(Self.json))))
        return members
    }

    private static func json(_ spread: Spread) -> JSONValue {
        .object(
            JSONObject([
                ("mean", .number(spread.mean)), ("p50", .number(spread.p50)), ("p90", .number(spread.p90)),
                ("p95", .number(spread.p95)), ("p99", .number(spread.p99)), ("max", .number(spread.max)),
            ]))
    }

    private static func json(_ row: (tenant: String, jobs: Int, tokens: Int, meanFirstToken: Double)) -> JSONValue {
        .object(
            JSONObject([
                ("tenant", .string(row.tenant)), ("jobs", .integer(Int64(row.jobs))),
                ("tokens", .integer(Int64(row.tokens))), ("mean_ttft_s", .number(row.meanFirstToken)),
            ]))
    }
}
