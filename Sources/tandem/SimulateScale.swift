import BoundedJSON
import Foundation
import ServingTypes
import Simulation

extension SimulateCommand {
    /// Clusters from 10 workers to the largest at 0.7 of what the cost model allows: a thousand jobs per worker, and
    /// beside them few jobs on many workers and many jobs on few, so that one sees what grows with which.
    func runScale() throws {
        var cells: [ScaleCell] = []
        for (workers, jobs) in scaleCells {
            Terminal.complain("\(workers) workers, \(jobs) jobs")
            cells.append(try scaleCell(workers, jobs))
        }
        let memory = scaleMemory()
        if let json { try write(Self.json(cells, memory), to: json) }
        guard json != "-" else { return }
        Terminal.say(
            Terminal.table(
                [
                    "WORKERS", "JOBS", "EVENTS", "SECONDS", "EVENTS/S", "US/EVENT", "US/JOB", "PEAK MEMORY", "TTFT S",
                ], cells.map(\.texts)))
        Terminal.say("")
        Terminal.say(Terminal.table(["RESIDENT", "BYTES"], memory.map { [$0.what, "\($0.bytes)"] }))
    }

    private static func json(_ cells: [ScaleCell], _ memory: [(what: String, bytes: Int)]) -> JSONValue {
        .object(
            JSONObject([
                ("runs", .array(cells.map(\.json))),
                (
                    "resident",
                    .array(
                        memory.map {
                            .object(JSONObject([("what", .string($0.what)), ("bytes", .integer(Int64($0.bytes)))]))
                        })
                ),
            ]))
    }

    /// In order of workers, then jobs.
    private var scaleCells: [(workers: Int, jobs: Int)] {
        let all = jobs ?? workers * 1000
        let counts = [10, 30, 100, 300, 1000, 3000, 10_000].filter { $0 <= workers }
        var cells = counts.map { (workers: $0, jobs: max(all * $0 / workers, 1)) }
        let few = max(all / 100, 1)
        cells += [100, 1000, 10_000].filter { $0 <= workers && all * $0 / workers > few }.map { ($0, few) }
        if workers > 10 { cells.append((10, max(all / 10, 1))) }
        return cells.sorted { ($0.workers, $0.jobs) < ($1.workers, $1.jobs) }
    }

    private func scaled(_ count: Int, _ jobs: Int) -> (ClusterShape, Workload) {
        var (shape, workload) = (shape, Workload())
        shape.prefill = max(count / 5, 1)
        shape.decode = count - shape.prefill
        shape.mixed = 0
        workload.input = .lognormal(mean: 128, variation: 1)
        workload.output = .lognormal(mean: 16, variation: 1)
        workload.tenants = max(count, tenants)
        workload.jobs = jobs
        let search = PlacementSearch(
            shape: shape, workload: workload, objective: objective, workersMax: count, seed: seed)
        let whole = PlacementSearch.Candidate(
            prefill: shape.prefill, decode: shape.decode, mixed: 0, stepTokens: 2048, batch: 64)
        workload.rate = 0.7 * search.ceiling(whole)
        return (shape, workload)
    }

    private func scaleCell(_ count: Int, _ jobs: Int) throws -> ScaleCell {
        let (shape, workload) = scaled(count, jobs)
        Self.forgetPeak()
        let started = ContinuousClock.now
        let report = WorkloadRun.run(shape, workload, seed: seed, objective: objective, keepsSamples: false)
        let elapsed = max((ContinuousClock.now - started).seconds, 1e-9)
        if let failure = report.failure { throw ServingError(.internalError, "seed \(seed): \(failure)") }
        return ScaleCell(workers: count, report: report, seconds: elapsed, peak: Self.peakMemory())
    }

    private func scaleMemory() -> [(what: String, bytes: Int)] {
        let (shape, workload) = scaled(10, 1)
        let probe = ScaleProbe(shape: shape, workload: workload, seed: seed, bytesInUse: Self.bytesInUse)
        let (waiting, decoding) = (probe.waitingJob(jobs: 20_000), probe.decodingJob(jobs: 2560))
        return [
            ("a worker without jobs, of 100", probe.idleWorker(workers: 100)),
            ("a worker without jobs, of \(workers)", probe.idleWorker(workers: workers)),
            ("a job that waits", waiting), ("a job that decodes", waiting + decoding),
            ("a job that has ended", probe.endedJob(jobs: 30_000)),
        ]
    }

    /// Resident, once malloc has given back what is free (proc(5), statm: the second field, in pages).
    private static func bytesInUse() -> Int {
        trim()
        let fields = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ") ?? []
        return (fields.count > 1 ? Int(fields[1]) ?? 0 : 0) * sysconf(Int32(_SC_PAGESIZE))
    }

    /// Lets the kernel's high-water mark begin anew (proc(5), clear_refs).
    private static func forgetPeak() {
        trim()
        try? Data("5".utf8).write(to: URL(fileURLWithPath: "/proc/self/clear_refs"))
    }

    /// `malloc_trim`, which Swift's view of the C library leaves out.
    private static func trim() {
        typealias Trim = @convention(c) (Int) -> Int32
        guard let symbol = dlsym(nil, "malloc_trim") else { return }
        _ = unsafeBitCast(symbol, to: Trim.self)(0)
    }
}

/// One run of the table.
private struct ScaleCell {
    var workers: Int
    var report: WorkloadReport
    var seconds: Double
    var peak: String

    var texts: [String] {
        [
            "\(workers)", "\(report.finished)", "\(report.events)", String(format: "%.1f", seconds),
            String(format: "%.0f", Double(report.events) / seconds),
            String(format: "%.2f", seconds / Double(max(report.events, 1)) * 1e6),
            String(format: "%.1f", seconds / Double(max(report.finished, 1)) * 1e6), peak,
            Decimals.short(report.timeToFirstToken.mean),
        ]
    }

    var json: JSONValue {
        .object(
            JSONObject([
                ("workers", .integer(Int64(workers))), ("jobs", .integer(Int64(report.finished))),
                ("events", .integer(Int64(clamping: report.events))), ("seconds", .number(seconds)),
                ("peak_memory", .string(peak)), ("mean_ttft_s", .number(report.timeToFirstToken.mean)),
                ("digest", .string(String(report.digest, radix: 16))),
            ]))
    }
}
