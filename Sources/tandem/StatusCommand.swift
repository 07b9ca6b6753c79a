import ArgumentParser
import BoundedJSON
import Foundation
import ServingTypes

struct StatusCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Workers with their pages, queues, tenants with their shares.")

    @Flag(help: "The coordinator's own JSON.")
    var json = false

    @OptionGroup var cluster: ClusterOptions

    func run() async throws {
        let snapshot = try await ClusterClient(cluster).get("/admin/cluster")
        Terminal.say(json ? JSON.text(snapshot, pretty: true) : ClusterReport(snapshot).text)
    }
}

struct TopCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "top", abstract: "`status`, again every second, with rates. Ctrl-C ends it.")

    @Option(help: "Seconds between two looks.")
    var every: Double = 1

    @Option(help: "Looks to take; 0 goes on for ever.")
    var count: Int = 0

    @OptionGroup var cluster: ClusterOptions

    func run() async throws {
        guard every >= 0.1, every <= 3600 else { throw CLIError("every: \(every) is outside 0.1 to 3600") }
        let client = ClusterClient(cluster)
        var last: ClusterReport?
        var looks = 0
        while count == 0 || looks < count {
            let report = ClusterReport(try await client.get("/admin/cluster"))
            if Terminal.isInteractive { Terminal.stream("\u{1B}[H\u{1B}[2J") }
            Terminal.say(report.text)
            if let last { Terminal.say("\n" + report.rates(since: last, seconds: every)) }
            last = report
            looks += 1
            if looks != count { try await Task.sleep(for: .seconds(every)) }
        }
    }
}

/// The snapshot as tables.
struct ClusterReport {
    private let snapshot: JSONValue

    init(_ snapshot: JSONValue) { self.snapshot = snapshot }

    var text: String {
        [head, workers, tenants].joined(separator: "\n\n")
    }

    private func counter(_ name: String) -> Int { snapshot["counters"]?[name]?.intValue ?? 0 }

    private var head: String {
        """
        policy \(snapshot["policy"]?.stringValue ?? "?"), \(snapshot["live_jobs"]?.intValue ?? 0) live jobs, \
        \(snapshot["queued_jobs"]?.intValue ?? 0) queued
        since start: \(counter("admitted")) admitted, \(counter("refused")) refused, \
        \(counter("finished_stop") + counter("finished_length")) finished, \(counter("cancelled")) cancelled, \
        \(counter("failed")) failed, \(counter("requeued")) requeued, \(counter("preempted")) preempted, \
        KV moved \(Terminal.bytes(Double(counter("kv_bytes_moved"))))
        """
    }

    private var workers: String {
        let rows = (snapshot["workers"]?.arrayValue ?? []).map { worker -> [String] in
            let load = worker["load"]
            let blocks = load?["blocks"]
            func count(_ name: String) -> Int { blocks?[name]?.intValue ?? 0 }
            let total = count("total")
            let used = total - count("free") - count("evictable")
            return [
                worker["name"]?.stringValue ?? "?", worker["role"]?.stringValue ?? "?",
                worker["state"]?.stringValue ?? "?", "\(worker["pid"]?.intValue ?? 0)",
                "\(worker["assigned_jobs"]?.intValue ?? 0)", "\(load?["running_jobs"]?.intValue ?? 0)",
                "\(load?["paused_jobs"]?.intValue ?? 0)", "\(used)/\(total)", "\(count("evictable"))",
                Terminal.milliseconds(load?["step_ms"]?.doubleValue),
                String(format: "%.0f", load?["prefill_tokens_per_second"]?.doubleValue ?? 0),
            ]
        }
        return Terminal.table(
            ["WORKER", "ROLE", "STATE", "PID", "JOBS", "RUN", "PAUSED", "BLOCKS", "CACHED", "STEP", "PREFILL TOK/S"],
            rows)
    }

    private var tenants: String {
        let tenants = snapshot["tenants"]?.arrayValue ?? []
        let output = tenants.map { $0["usage"]?["completion_tokens"]?.doubleValue ?? 0 }
        let whole = max(output.reduce(0, +), 1)
        let rows = zip(tenants, output).map { tenant, tokens in
            [
                tenant["name"]?.stringValue ?? "?", String(format: "%.1f", tenant["weight"]?.doubleValue ?? 1),
                String(format: "%.0f", tenant["virtual_counter"]?.doubleValue ?? 0),
                "\(tenant["queued_jobs"]?.intValue ?? 0)", "\(tenant["running_jobs"]?.intValue ?? 0)",
                "\(tenant["usage"]?["prompt_tokens"]?.intValue ?? 0)", String(format: "%.0f", tokens),
                String(format: "%.0f %%", 100 * tokens / whole),
            ]
        }
        return Terminal.table(
            ["TENANT", "WEIGHT", "COUNTER", "QUEUED", "RUNNING", "PROMPT", "OUTPUT", "SHARE"], rows)
    }

    func rates(since last: ClusterReport, seconds: Double) -> String {
        func rate(_ name: String) -> Double { Double(counter(name) - last.counter(name)) / seconds }
        return String(
            format: "%.1f output tokens/s, %.1f prompt tokens/s, %.1f jobs/s, %@/s of pages", rate("output_tokens"),
            rate("prompt_tokens"), rate("finished_stop") + rate("finished_length"),
            Terminal.bytes(rate("kv_bytes_moved")))
    }
}
