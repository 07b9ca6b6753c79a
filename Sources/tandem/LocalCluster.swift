import BoundedJSON
import Foundation
import LocalSupervisor
import ServingTypes

/// A local cluster that this process supervises: `tandem up` in the foreground, and `tandem demo`.
struct LocalCluster: Sendable {
    let plan: ClusterPlan
    let state: StateDirectory
    let client: ClusterClient
    let supervisor: Supervisor
    private let lock: StateLock

    /// Takes the state directory; nothing runs yet.
    init(plan: ClusterPlan, state: StateDirectory, apiKey: String?, say: @escaping @Sendable (String) -> Void) throws {
        try state.create()
        lock = try state.lock()
        self.plan = plan
        self.state = state
        let client = ClusterClient(baseURL: plan.url, apiKey: apiKey, state: state)
        self.client = client
        supervisor = Supervisor(
            plan: plan, state: state,
            drainWorker: { worker, deadline in
                let request: JSONValue = .object(
                    JSONObject([
                        ("worker", .string(worker)), ("deadline_seconds", .number(deadline.seconds)),
                    ]))
                return (try? await client.post("/admin/drain", request)) != nil
            }, say: say)
    }

    /// Starts the processes and answers on the control socket until the cluster is stopped.
    func run(whenReady: @escaping @Sendable () async throws -> Void) async throws {
        let control = try await ControlSocket.bind(path: state.controlSocket)
        try state.writeCard(
            ClusterCard(
                url: plan.url, model: plan.modelPath, apiKey: client.apiKey, supervisorProcessID: getpid()))
        defer { state.removeCard() }
        await supervisor.start()
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { try await control.serve { await answer($0) } }
            group.addTask {
                do { try await whenReady() } catch {
                    await supervisor.shutDown()
                    await supervisor.waitUntilFinished()
                    throw error
                }
                try await Task.sleep(for: .seconds(Int32.max))
            }
            group.addTask { await supervisor.waitUntilFinished() }
            _ = try await group.next()
            group.cancelAll()
        }
    }

    /// Waits for `/readyz`, telling how far the workers have loaded the model.
    func waitUntilReady(within limit: Duration, say: @Sendable (String) -> Void) async throws {
        let deadline = ContinuousClock.now + limit
        let wanted = plan.workers.prefill + plan.workers.decode + plan.workers.mixed
        var shown: [String: String] = [:]
        while ContinuousClock.now < deadline {
            if await client.status("/readyz") == 200, await readyWorkers() >= wanted { return }
            for report in await supervisor.processes {
                guard let progress = LoadProgress.last(in: state.logFile(of: "\(report.name)")),
                    shown["\(report.name)"] != progress
                else { continue }
                shown["\(report.name)"] = progress
                say("\(report.name): \(progress)")
            }
            try await Task.sleep(for: .milliseconds(50))
        }
        throw CLIError(
            "the cluster was not ready within \(limit); its logs are in \(state.path)/logs"
                + LogTail.lastComplaints(in: state, of: await supervisor.processes.map { "\($0.name)" }))
    }

    private func readyWorkers() async -> Int {
        let workers = try? await client.get("/admin/cluster")["workers"]?.arrayValue
        return (workers ?? [])?.filter { $0["state"]?.stringValue == "ready" }.count ?? 0
    }

    private func answer(_ request: JSONValue) async -> JSONValue {
        switch request["verb"]?.stringValue {
        case "down":
            await supervisor.shutDown()
            await supervisor.waitUntilFinished()
            return .object(JSONObject([("ok", .bool(true))]))
        case "scale": return await scale(request)
        case "processes":
            let processes = await supervisor.processes
            return .array(
                processes.map { process in
                    .object(
                        JSONObject([
                            ("name", .string("\(process.name)")),
                            ("pid", .integer(Int64(process.processID ?? 0))),
                            ("phase", .string(Self.word(process.phase))),
                        ]))
                })
        default: return .object(JSONObject([("error", .string("unknown request"))]))
        }
    }

    private func scale(_ request: JSONValue) async -> JSONValue {
        let now = await supervisor.processes.filter {
            Self.word($0.phase) != "draining" && Self.word($0.phase) != "ending"
        }
        func count(_ kind: ProcessKind) -> Int {
            request[kind.rawValue]?.intValue ?? now.filter { $0.name.kind == kind }.count
        }
        let counts = WorkerCounts(prefill: count(.prefill), decode: count(.decode), mixed: count(.mixed))
        for kind in [ProcessKind.prefill, .decode, .mixed] {
            guard (0...WorkerCounts.perKindMax).contains(counts[kind]) else {
                return Self.refusal(
                    "\(kind.rawValue): \(counts[kind]) is outside 0 to \(WorkerCounts.perKindMax)")
            }
        }
        guard counts.decode + counts.mixed > 0 else {
            return Self.refusal("decode: at least one decode or mixed worker must stay")
        }
        await supervisor.scale(counts)
        return .object(
            JSONObject([
                ("prefill", .integer(Int64(counts.prefill))), ("decode", .integer(Int64(counts.decode))),
                ("mixed", .integer(Int64(counts.mixed))),
            ]))
    }

    private static func refusal(_ text: String) -> JSONValue { .object(JSONObject([("error", .string(text))])) }

    static func word(_ phase: SupervisorCore.Phase) -> String {
        switch phase {
        case .running: "running"
        case .backingOff: "restarting"
        case .draining: "draining"
        case .ending: "ending"
        }
    }
}

/// The last word about model loading in a worker's log.
enum LoadProgress {
    static func last(in logFile: String) -> String? {
        LogTail.lines(of: logFile).last { $0.contains("\"loading") }
            .flatMap { try? JSON.parse(Array($0.utf8)) }?["message"]?.stringValue
    }
}

enum LogTail {
    static let bytesMax = 16_384

    static func lines(of path: String) -> [String] {
        guard let handle = FileHandle(forReadingAtPath: path) else { return [] }
        defer { try? handle.close() }
        let size = (try? handle.seekToEnd()) ?? 0
        try? handle.seek(toOffset: size > UInt64(bytesMax) ? size - UInt64(bytesMax) : 0)
        let data = (try? handle.readToEnd()) ?? Data()
        return String(decoding: data, as: UTF8.self).split(separator: "\n").map(String.init)
    }

    /// What the processes complained about last, for a start that failed.
    static func lastComplaints(in state: StateDirectory, of processes: [String]) -> String {
        processes.compactMap { name in
            lines(of: state.logFile(of: name)).last { $0.contains("\"error\"") || $0.contains("\"critical\"") }
                .map { line in
                    let message = (try? JSON.parse(Array(line.utf8)))?["message"]?.stringValue ?? line
                    return "\n  \(name): \(message)"
                }
        }.joined()
    }
}
