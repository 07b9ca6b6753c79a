import BoundedJSON
import Foundation
import Scheduling
import ServingTypes
import Simulation

// MARK: - Published results, and those beyond them

extension SimulateCommand {
    /// The trace behind VTC's Table 2.
    private func realTrace() throws -> [TraceEntry] {
        guard let traces else {
            throw ServingError(
                .invalidValue, "--traces: name the folder that holds vtc_real_trace.jsonl", field: "traces")
        }
        return try TraceFile.read(traces + "/vtc_real_trace.jsonl")
    }

    func runReproduction(_ which: String) throws {
        let trace = try realTrace()
        if which != "fastserve" { try reproduceVTC(trace) }
        if which != "vtc" { try reproduceFastServe(trace) }
    }

    private func reproduceVTC(_ trace: [TraceEntry]) throws {
        var table = ComparisonTable(
            title: "VTC, reproduced",
            method: [
                "tandem simulate --reproduce vtc --seed \(seed) --seeds \(seeds); the seeds are the phases of the synthetic suites, the mean over them is judged; the recorded trace has none.",
                "Production CoordinatorCore, DecodeCore and Scheduling on virtual time: one mixed worker, profile a10g-llama7b, LightLLM's memory rule (10,000 tokens).",
                "Reference: VTC-artifact's raw data (scheduling.md 3.6). Diff: VTC's own metric, 19 windows of 60 s.",
            ])
        table.rows = VTCReproduction.table(trace: trace, seed: seed) { Terminal.complain($0) }
        table.rows += ComparisonRow.merged(
            seedList.map { VTCReproduction.suites(seed: $0) { Terminal.complain($0) } }, judgingMeans: true)
        try publish(table, as: "vtc")
    }

    private func reproduceFastServe(_ trace: [TraceEntry]) throws {
        var table = ComparisonTable(
            title: "FastServe, reproduced",
            method: [
                "tandem simulate --reproduce fastserve --seed \(seed) --seeds \(seeds)",
                "Production cores on virtual time: one mixed worker, profile a100-opt13b, batch 16, 2048 tokens per iteration, 10,400 tokens of memory.",
                "400 Poisson jobs per point; the mean over the seeds is judged. Lengths of VTC's trace (136 in, 256 out) in (a) to (f), the host tier 68,000 tokens at 25 GB/s.",
                "Fig. 11: outputs as in DistServe's artifact (ShareGPT, OPT's tokenizer, 1,105 requests after FastServe's filter, mean 207, mean reciprocal 0.043); prompts assumed lognormal (217, CV 1.2, at most 1024); iterations 1.25 times DistServe's fits, so that FCFS reaches the line about where the figure has it: FCFS's knee is no finding, FastServe's curve is.",
                "(d) 'the batch waits': FastServe's own on-demand baseline, where no iteration begins while pages move; 'artifact's order': the MLFQ of its code (last in, first out within a level; promotion every 1,000 iterations).",
                "Where a curve ends below the line (MLFQ at 6 jobs/s, Fig. 11 at 5), a ratio of rates takes its last rate and is a lower bound.",
                "s/token: mean of completion time over output length, FastServe's headline. Points above the knee are transients of a burst.",
            ])
        table.rows = FastServeReproduction(trace: trace, seeds: seedList) { Terminal.complain($0) }.rows()
        try publish(table, as: "fastserve")
    }

    func runSurpass() throws {
        var table = ComparisonTable(
            title: "Beyond the published results",
            method: [
                "tandem simulate --surpass --seed \(seed) --seeds \(seeds)",
                "A row holds where it holds with every seed. Recorded arrivals are moved by up to half a second per seed. The policies' defaults were chosen on seeds 1 to 3.",
                "Goals S3 to S6 of scheduling.md 5.3; production cores on virtual time; theta 2000 where nothing else is said.",
                "S3: A10G profile, VTC's trace. S4, S5: A100 OPT-13B profile, batch 16. S6: one prefill and one decode worker.",
            ])
        table.rows = SurpassGoals.rows(trace: try realTrace(), seeds: seedList, only: goal) { Terminal.complain($0) }
        try publish(table, as: "surpass")
    }

    private var seedList: [UInt64] { (0..<min(seeds, 64)).map { seed &+ $0 } }

    /// To the terminal, and into the folder as Markdown and JSON.
    func publish(_ plain: ComparisonTable, as name: String) throws {
        var table = plain
        if let note { table.method.append(note) }
        if json != "-" {
            Terminal.say(Terminal.table(ComparisonTable.header, table.cells))
            Terminal.say("\(table.held) of \(table.judged) judged rows hold")
        }
        // Of several tables in one run the file has the last; --out has each.
        if let json { try write(Self.json(table), to: json) }
        guard let out else { return }
        try FileManager.default.createDirectory(atPath: out, withIntermediateDirectories: true)
        try table.markdown.write(toFile: "\(out)/\(name).md", atomically: true, encoding: .utf8)
        try write(Self.json(table), to: "\(out)/\(name).json")
    }

    private static func json(_ table: ComparisonTable) -> JSONValue {
        func number(_ value: Double?) -> JSONValue { value.map { .number($0) } ?? .null }
        let rows = table.rows.map { row in
            JSONValue.object(
                JSONObject([
                    ("experiment", .string(row.experiment)), ("measure", .string(row.measure)),
                    ("reference", number(row.reference)), ("ours", number(row.ours)),
                    ("per_seed", .array(row.samples.map { .number($0) })), ("bound", .string(row.bound)),
                    ("holds", row.holds.map { .bool($0) } ?? .null), ("note", .string(row.note)),
                ]))
        }
        return .object(
            JSONObject([
                ("title", .string(table.title)), ("method", .array(table.method.map { .string($0) })),
                ("rows", .array(rows)),
            ]))
    }
}
