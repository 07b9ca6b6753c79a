import ArgumentParser
import BoundedJSON
import Foundation
import LocalSupervisor
import ServingTypes

struct StatusCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "status", abstract: "Workers with their pages, queues, tenants with their shares.")

    @Flag(help: "The coordinator's own JSON.")
    var json = false

    @OptionGroup var cluster: ClusterOptions

    func run() async throws {
        let client = ClusterClient(cluster)
        let processes = await ProcessTable(of: client)
        let snapshot: JSONValue
        do { snapshot = try await client.get("/admin/cluster") } catch {
            // A coordinator that is being restarted is what a person came to see.
            if let processes, !json { Terminal.say(processes.text + "\n") }
            throw error
        }
        if json { return Terminal.say(JSON.text(snapshot, pretty: true)) }
        Terminal.say(ClusterReport(snapshot, processes).text)
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
        var last: (report: ClusterReport, at: ContinuousClock.Instant)?
        var looks = 0
        while count == 0 || looks < count {
            let processes = await ProcessTable(of: client)
            do {
                let report = ClusterReport(try await client.get("/admin/cluster"), processes)
                let now = ContinuousClock.now
                show(
                    report.text
                        + (last.map { "\n\n" + report.rates(since: $0.report, seconds: (now - $0.at).seconds) } ?? ""))
                last = (report, now)
            } catch {
                // A coordinator that is being restarted comes back.
                guard let processes else { throw error }
                show(processes.text + "\n\n\(error)")
                last = nil
            }
            looks += 1
            if looks != count { try await Task.sleep(for: .seconds(every)) }
        }
    }

    private func show(_ text: String) {
        if Terminal.isInteractive { Terminal.stream("\u{1B}[H\u{1B}[2J") }
        Terminal.say(text + (Terminal.isInteractive ? "" : "\n"))
    }
}

/// The snapshot as tables.
struct ClusterReport {
    private let snapshot: JSONValue
    private let processes: ProcessTable?

    init(_ snapshot: JSONValue, _ processes: ProcessTable?) {
        self.snapshot = snapshot
        self.processes = processes
    }

    var text: String {
        let restarted = processes?.hasNews == true ? processes?.text : nil
        let parts = [head, workers, snapshot["tenants"]?.arrayValue?.isEmpty == false ? tenants : nil, restarted]
        return parts.compactMap { $0 }.joined(separator: "\n\n")
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

/// What the supervisor of a local cluster says about its processes.
struct ProcessTable {
    private let processes: [JSONValue]

    /// nil where no supervisor answers in the client's state directory, or it supervises another cluster.
    init?(of client: ClusterClient) async {
        guard client.state.readCard()?.url == client.baseURL,
            let reply = try? await ControlSocket.ask(
                path: client.state.controlSocket, .object(JSONObject([("verb", .string("processes"))]))
            ).arrayValue
        else { return nil }
        processes = reply
    }

    /// Whether any process was restarted, waits for it, or leaves.
    var hasNews: Bool {
        processes.contains { ($0["restarts"]?.intValue ?? 0) > 0 || $0["phase"]?.stringValue != "running" }
    }

    var text: String {
        let rows = processes.map { process in
            let wait = process["restarts_in_ms"]?.doubleValue
            let id = process["pid"]?.intValue ?? 0
            return [
                process["name"]?.stringValue ?? "?",
                (process["phase"]?.stringValue ?? "?") + (wait.map { " in " + Terminal.milliseconds($0) } ?? ""),
                id == 0 ? "-" : "\(id)", "\(process["restarts"]?.intValue ?? 0)",
                process["last_end"]?.stringValue ?? "",
            ]
        }
        return Terminal.table(["PROCESS", "PHASE", "PID", "RESTARTS", "LAST END"], rows)
    }
}
