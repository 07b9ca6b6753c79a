import ArgumentParser
import BoundedJSON
import Foundation
import Scheduling
import ServingTypes
import Simulation

/// The production cores on a virtual clock: workloads for latencies, seeds for safety.
struct SimulateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulate", abstract: "Run the cluster's own cores on virtual time: workloads, or faults.",
        discussion: """
            The same seed gives the same output, byte for byte.

              tandem simulate --prefill 1 --decode 1 --profile a100-opt13b --rate 2 --jobs 1000
              tandem simulate --trace-file trace.jsonl --policy fair
              tandem simulate --safety --seeds 10000          the fault model, one cluster per seed
              tandem simulate --safety --seed 7 --trace       one seed, every event
            """)

    @Option(help: "Prefill workers.") var prefill: Int = 1
    @Option(help: "Decode workers.") var decode: Int = 1
    @Option(help: "Mixed workers, which do both.") var mixed: Int = 0
    @Option(help: ArgumentHelp("Scheduling policy.", valueName: PolicyConfiguration.names.joined(separator: "|")))
    var policy: String = "fair"
    @Option(help: ArgumentHelp("Cost model.", valueName: "name")) var profile: String = "a100-opt13b"
    @Option(help: "Requests per second; 0: all at once.") var rate: Double = 1
    @Option(help: "Requests in all; of a trace, at most.") var jobs: Int?
    @Option(help: "Arrivals: \(ArrivalProcess.forms).") var arrivals: String = "poisson"
    @Option(help: "Prompt tokens: \(LengthDistribution.forms).") var input: String = "lognormal:136:1.5"
    @Option(help: "Output tokens: \(LengthDistribution.forms).") var output: String = "lognormal:256:0.8"
    @Option(help: "Tenants that the requests are spread over.") var tenants: Int = 1
    @Option(help: "Recorded requests, one JSON object per line (arrival_s or timestamp).") var traceFile: String?
    @Option(help: "Play a recorded workload this many times as fast.") var speed: Double = 1
    @Option(help: "Jobs in one iteration (default: the profile's).") var batch: Int?
    @Option(help: "Tokens in one iteration (default: the profile's).") var stepTokens: Int?
    @Option(help: "Tokens that one worker's pool holds (default: the profile's).") var kvTokens: Int?
    @Option(help: "Tokens of one block.") var blockTokens: Int = 16
    @Option(help: "Prefill on the decode worker below this many uncached tokens; 0: never.") var localPrefill: Int = 0
    @Option(help: "TTFT that a request must meet to count for goodput, in seconds.") var sloTtft: Double = 2
    @Option(help: "TPOT that a request must meet to count for goodput, in seconds.") var sloTpot: Double = 0.2
    @Option(help: "First seed.") var seed: UInt64 = 1
    @Option(help: "Also write the result as JSON to this file; - is standard output, without the table.")
    var json: String?
    @Flag(help: "Run the fault model in place of a workload.") var safety = false
    @Option(help: "Seeds of the fault model.") var seeds: UInt64 = 1
    @Flag(help: "With --safety: print every event.") var trace = false
    @Flag(help: "With --safety: one fault of each kind at every event of a small run.") var sweep = false
    @Option(help: "With --sweep: only this kind of fault.") var strike: String?
    @Option(help: "With --sweep: only this event.") var event: UInt64?

    func validate() throws {
        guard PolicyConfiguration(named: policy) != nil else {
            throw ValidationError("--policy: \(policy) is none of \(PolicyConfiguration.names.joined(separator: ", "))")
        }
        guard CostProfile(named: profile) != nil else {
            let names = CostProfile.all.map(\.name).joined(separator: ", ")
            throw ValidationError("--profile: \(profile) is none of \(names)")
        }
        guard ArrivalProcess(arrivals) != nil else {
            throw ValidationError("--arrivals: \(arrivals) is not of the form \(ArrivalProcess.forms)")
        }
        for (name, text) in [("input", input), ("output", output)] where LengthDistribution(text) == nil {
            throw ValidationError("--\(name): \(text) is not of the form \(LengthDistribution.forms)")
        }
        try validateCounts()
    }

    private func validateCounts() throws {
        let counts = [
            ("prefill", prefill, 0), ("decode", decode, 0), ("mixed", mixed, 0), ("tenants", tenants, 1),
            ("jobs", jobs ?? 1, 1), ("batch", batch ?? 1, 1), ("step-tokens", stepTokens ?? 1, 1),
            ("kv-tokens", kvTokens ?? 1, 1), ("block-tokens", blockTokens, 1), ("local-prefill", localPrefill, 0),
        ]
        for (name, value, least) in counts where !(least...100_000_000).contains(value) {
            throw ValidationError("--\(name): \(value) is outside \(least) to 100000000")
        }
        for (name, value) in [("rate", rate), ("slo-ttft", sloTtft), ("slo-tpot", sloTpot)]
        where !value.isFinite || value < 0 {
            throw ValidationError("--\(name): \(value) is not 0 or more")
        }
        guard speed.isFinite, speed > 0 else { throw ValidationError("--speed: \(speed) is not more than 0") }
        guard decode + mixed > 0 else { throw ValidationError("--decode: at least 1 decode or mixed worker is needed") }
        guard prefill + decode + mixed <= 10_000 else {
            throw ValidationError("--prefill: \(prefill + decode + mixed) workers, the limit is 10000")
        }
        if let strike, SafetyRun.Strike(rawValue: strike) == nil {
            let names = SafetyRun.Strike.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("--strike: \(strike) is none of \(names)")
        }
        guard seeds >= 1 else { throw ValidationError("--seeds: \(seeds) is not 1 or more") }
    }

    func run() throws {
        if safety, sweep {
            try runSweep()
        } else if safety {
            try runSafety()
        } else {
            try runWorkload()
        }
    }
}

// MARK: - Safety

extension SimulateCommand {
    private func runSafety() throws {
        var tally = SafetyTally()
        let started = ContinuousClock.now
        for number in seed..<(seed.addingReportingOverflow(seeds).overflow ? .max : seed + seeds) {
            let result = SafetyRun.run(seed: number, trace: trace ? { Terminal.say($0) } : nil)
            tally.add(result)
            if let failure = result.failure {
                Terminal.say("seed \(number): \(failure)")
                Terminal.say("  replay: tandem simulate --safety --seed \(number) --trace")
            }
            if seeds >= 1000, tally.seeds.isMultiple(of: 1000) {
                Terminal.complain("\(tally.seeds) of \(seeds) seeds, \(tally.failed.count) failed")
            }
        }
        let elapsed = max((ContinuousClock.now - started).seconds, 1e-9)
        Terminal.say(tally.text)
        Terminal.say(
            String(
                format: "%d seeds, %d failed, %d events, %.1f s of virtual time per seed", tally.seeds,
                tally.failed.count, tally.events, tally.virtualSeconds / Double(max(tally.seeds, 1))))
        Terminal.complain(
            String(
                format: "%.1f s: %.0f seeds/s, %.2f million events/s", elapsed, Double(tally.seeds) / elapsed,
                Double(tally.events) / elapsed / 1e6))
        if let json { try write(tally.json, to: json) }
        if !tally.failed.isEmpty { throw ExitCode(1) }
    }

    private func runSweep() throws {
        var tally = SafetyTally()
        let started = ContinuousClock.now
        let strikes = SafetyRun.Strike.allCases.filter { strike == nil || $0.rawValue == strike }
        let events = SafetyRun.eventsOfSweep()
        for strike in strikes {
            for index in event.map({ $0...$0 }) ?? 1...events {
                let result = SafetyRun.strike(strike, at: index, trace: trace ? { Terminal.say($0) } : nil)
                tally.add(result)
                guard let failure = result.failure else { continue }
                Terminal.say("\(strike.rawValue) at event \(index): \(failure)")
                Terminal.say(
                    "  replay: tandem simulate --safety --sweep --strike \(strike.rawValue) --event \(index) --trace")
            }
        }
        let elapsed = (ContinuousClock.now - started).seconds
        Terminal.say(tally.text)
        Terminal.say(
            "\(strikes.count) kinds of fault at each of \(events) events: \(tally.seeds) runs, \(tally.failed.count) failed"
        )
        Terminal.complain(String(format: "%.1f s", elapsed))
        if !tally.failed.isEmpty { throw ExitCode(1) }
    }

    private func write(_ value: JSONValue, to path: String) throws {
        let text = JSON.text(value, pretty: true)
        if path == "-" { return Terminal.say(text) }
        try (text + "\n").write(toFile: path, atomically: true, encoding: .utf8)
    }
}

/// What many seeds came to.
struct SafetyTally {
    var seeds = 0
    var failed: [UInt64] = []
    var events: UInt64 = 0
    var virtualSeconds = 0.0
    var jobs = 0
    var digest: UInt64 = 0
    var witnessed: [String: Int] = [:]

    mutating func add(_ result: SafetyResult) {
        seeds += 1
        if result.failure != nil { failed.append(result.seed) }
        events += result.events
        virtualSeconds += result.virtualSeconds
        jobs += result.jobs
        digest = digest &* 31 &+ result.digest
        witnessed.merge(result.witnessed, uniquingKeysWith: +)
    }

    var text: String {
        Terminal.table(["HAPPENED", "TIMES"], witnessed.sorted { $0.key < $1.key }.map { [$0.key, "\($0.value)"] })
    }

    var json: JSONValue {
        .object(
            JSONObject([
                ("seeds", .integer(Int64(seeds))), ("failed", .array(failed.map { .string("\($0)") })),
                ("events", .integer(Int64(clamping: events))), ("jobs", .integer(Int64(jobs))),
                ("virtual_seconds", .number(virtualSeconds)), ("digest", .string(String(digest, radix: 16))),
                (
                    "happened",
                    .object(
                        JSONObject(
                            witnessed.sorted { $0.key < $1.key }.map { ($0.key, .integer(Int64($0.value))) }))
                ),
            ]))
    }
}

// MARK: - Workloads

extension SimulateCommand {
    private func runWorkload() throws {
        let (shape, workload) = (shape, try workload())
        let interactive = isatty(STDERR_FILENO) == 1
        let started = ContinuousClock.now
        let report = WorkloadRun.run(
            shape, workload, seed: seed,
            objective: ServiceObjective(timeToFirstToken: sloTtft, timePerToken: sloTpot),
            progress: interactive
                ? { jobs, seconds, events in
                    Terminal.complain("\(jobs) jobs, \(Int(seconds)) virtual s, \(events) events")
                } : nil)
        let elapsed = max((ContinuousClock.now - started).seconds, 1e-9)
        if let failure = report.failure { throw ServingError(.internalError, "seed \(seed): \(failure)") }
        let view = WorkloadView(report: report, objective: (sloTtft, sloTpot))
        if json != "-" {
            Terminal.say(
                "\(prefill) prefill, \(decode) decode, \(mixed) mixed; \(profile); policy \(policy); seed \(seed)")
            Terminal.say(view.text)
        }
        if let json { try write(view.json, to: json) }
        Terminal.complain(
            String(
                format: "%.2f s: %.0f events/s, %.0f jobs/s, %@ at most", elapsed, Double(report.events) / elapsed,
                Double(report.jobs) / elapsed, Self.peakMemory()))
    }

    private var shape: ClusterShape {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (prefill, decode, mixed)
        shape.profile = CostProfile(named: profile) ?? .a100OPT13B
        shape.policy = PolicyConfiguration(named: policy) ?? PolicyConfiguration()
        shape.blockTokens = blockTokens
        (shape.batchJobsMax, shape.stepTokensMax, shape.poolTokens) = (batch, stepTokens, kvTokens)
        shape.localPrefillThreshold = localPrefill
        return shape
    }

    private func workload() throws -> Workload {
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

    private static func peakMemory() -> String {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix("VmHWM:") }
        let kilobytes = line?.split(separator: " ").compactMap { Double($0) }.first
        return kilobytes.map { Terminal.bytes($0 * 1024) } ?? "unknown memory"
    }
}

/// Traces of two kinds: `arrival_s`, `tenant`, `input_tokens`, `output_tokens`; and Mooncake's
/// `timestamp` (milliseconds), `input_length`, `output_length`, `hash_ids` (of 512 tokens each).
enum TraceFile {
    static let tokensMax = 10_000_000

    static func read(_ path: String) throws -> [TraceEntry] {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw ServingError(.notFound, "--trace-file: \(path) cannot be read", field: "trace-file")
        }
        var entries: [TraceEntry] = []
        for (number, line) in data.split(separator: UInt8(ascii: "\n")).enumerated() {
            guard let json = try? JSON.parse(Array(line)), let entry = entry(json) else {
                throw ServingError(
                    .malformed, "--trace-file: line \(number + 1) of \(path) is no request", field: "trace-file")
            }
            entries.append(entry)
        }
        return entries.enumerated().sorted {
            ($0.element.arrivalSeconds, $0.offset) < ($1.element.arrivalSeconds, $1.offset)
        }.map(\.element)
    }

    private static func entry(_ json: JSONValue) -> TraceEntry? {
        guard let input = count(json["input_tokens"] ?? json["input_length"]),
            let output = count(json["output_tokens"] ?? json["output_length"]),
            let arrival = json["arrival_s"]?.doubleValue ?? json["timestamp"]?.doubleValue.map({ $0 / 1000 }),
            arrival.isFinite, arrival >= 0
        else { return nil }
        let stretches = (json["hash_ids"]?.arrayValue ?? []).compactMap {
            $0.intValue.map { UInt64(bitPattern: Int64($0)) }
        }
        return TraceEntry(
            arrivalSeconds: arrival, tenant: tenant(json["tenant"]), inputTokens: input, outputTokens: output,
            stretches: stretches)
    }

    private static func count(_ value: JSONValue?) -> Int? {
        guard let count = value?.intValue, (0...tokensMax).contains(count) else { return nil }
        return max(count, 1)
    }

    private static func tenant(_ value: JSONValue?) -> String {
        if let number = value?.intValue {
            let digits = String(number)
            return "tenant-" + String(repeating: "0", count: max(0, 3 - digits.count)) + digits
        }
        return value?.stringValue ?? "default"
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

    var json: JSONValue {
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
        return .object(JSONObject(members))
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
