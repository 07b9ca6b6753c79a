import BoundedJSON
import Foundation
import LocalSupervisor
import ServingTypes
import Synchronization

/// A local cluster that this process supervises: `tandem up` in the foreground, and `tandem demo`.
struct LocalCluster: Sendable {
    let plan: ClusterPlan
    let state: StateDirectory
    let client: ClusterClient
    let supervisor: Supervisor
    private let lock: StateLock
    /// What earlier clusters left in the logs.
    private let logsBefore: LogSizes

    /// Takes the state directory; nothing runs yet.
    init(plan: ClusterPlan, state: StateDirectory, apiKey: String?, say: @escaping @Sendable (String) -> Void) throws {
        try state.create()
        lock = try state.lock()
        self.plan = plan
        self.state = state
        let client = ClusterClient(baseURL: plan.url, apiKey: apiKey, state: state)
        self.client = client
        let logsBefore = LogSizes(of: state)
        self.logsBefore = logsBefore
        supervisor = Supervisor(
            plan: plan, state: state,
            drainWorker: { worker, deadline in
                let request: JSONValue = .object(
                    JSONObject([
                        ("worker", .string(worker)), ("deadline_seconds", .number(deadline.seconds)),
                    ]))
                return (try? await client.post("/admin/drain", request)) != nil
            },
            lastWords: { name in
                LogTail.lastComplaint(in: LogTail.lines(of: state.logFile(of: "\(name)"), from: logsBefore["\(name)"]))
            }, say: say)
    }

    /// Starts the processes and answers on the control socket until the cluster is stopped.
    func run(whenReady: @escaping @Sendable () async throws -> Void) async throws {
        let control = try await ControlSocket.bind(path: state.controlSocket)
        try state.writeCard(
            ClusterCard(
                url: plan.url, model: plan.modelPath, apiKey: client.apiKey, supervisorProcessID: getpid()))
        defer { state.removeCard() }
        let failure = FirstError()
        await supervisor.start()
        try await withThrowingTaskGroup(of: Void.self) { group in
            group.addTask { try await control.serve { await answer($0) } }
            group.addTask {
                do { try await whenReady() } catch {
                    if !Task.isCancelled { failure.note(error) }
                    await supervisor.shutDown()
                }
                try await Task.sleep(for: .seconds(Int32.max))
            }
            await supervisor.waitUntilFinished()
            group.cancelAll()
        }
        if let error = failure.error { throw error }
    }

    /// Waits for `/readyz`, telling how far the workers have loaded the model.
    func waitUntilReady(within limit: Duration, say: @Sendable (String) -> Void) async throws {
        let deadline = ContinuousClock.now + limit
        let wanted = plan.workers.prefill + plan.workers.decode + plan.workers.mixed
        var shown: [String: String] = [:]
        while ContinuousClock.now < deadline {
            if await client.status("/readyz") == 200, await readyWorkers() >= wanted { return }
            let reports = await supervisor.processes
            for report in reports {
                guard let progress = LoadProgress.last(in: logLines(of: "\(report.name)")),
                    shown["\(report.name)"] != progress
                else { continue }
                shown["\(report.name)"] = progress
                say("\(report.name): \(progress)")
            }
            if reports.contains(where: { $0.failures >= Self.refusalsMax && $0.lastEnd == .exited(2) }) {
                throw CLIError("the cluster cannot start:" + complaints(of: reports))
            }
            try await Task.sleep(for: .milliseconds(50))
        }
        throw CLIError(
            "the cluster was not ready within \(limit.components.seconds) s; its logs are in \(state.path)/logs"
                + complaints(of: await supervisor.processes))
    }

    /// A process that refuses its settings or its model (exit status 2) so often before the cluster
    /// was ever ready will not come round.
    static let refusalsMax = 3

    private func logLines(of process: String) -> [String] {
        LogTail.lines(of: state.logFile(of: process), from: logsBefore[process])
    }

    /// What the processes complained about last, each sentence once.
    private func complaints(of reports: [ProcessReport]) -> String {
        var speakers: [(text: String, names: [String])] = []
        for report in reports {
            guard let text = LogTail.lastComplaint(in: logLines(of: "\(report.name)")) else { continue }
            if let known = speakers.firstIndex(where: { $0.text == text }) {
                speakers[known].names.append("\(report.name)")
            } else {
                speakers.append((text, ["\(report.name)"]))
            }
        }
        return speakers.map { "\n  \($0.names.joined(separator: ", ")): \($0.text)" }.joined()
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
            return .array(await supervisor.processes.map(Self.json))
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

    private static func json(_ process: ProcessReport) -> JSONValue {
        var members: [(String, JSONValue)] = [
            ("name", .string("\(process.name)")), ("pid", .integer(Int64(process.processID ?? 0))),
            ("phase", .string(word(process.phase))), ("restarts", .integer(Int64(process.restarts))),
        ]
        if let end = process.lastEnd { members.append(("last_end", .string("\(end)"))) }
        if let wait = process.restartsIn {
            members.append(("restarts_in_ms", .integer(wait.nanoseconds / 1_000_000)))
        }
        return .object(JSONObject(members))
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

/// The first of several errors.
final class FirstError: Sendable {
    private let noted = Mutex<(any Error)?>(nil)

    func note(_ error: any Error) { noted.withLock { $0 = $0 ?? error } }

    var error: (any Error)? { noted.withLock { $0 } }
}

/// The last word about model loading in a worker's log.
enum LoadProgress {
    static func last(in lines: [String]) -> String? {
        lines.last { $0.contains("\"loading") }
            .flatMap { try? JSON.parse(Array($0.utf8)) }?["message"]?.stringValue
    }
}

enum LogTail {
    static let bytesMax = 16_384

    /// The last lines of a file, none of them from before `start`.
    static func lines(of path: String, from start: UInt64 = 0) -> [String] {
        guard let handle = FileHandle(forReadingAtPath: path) else { return [] }
        defer { try? handle.close() }
        let size = (try? handle.seekToEnd()) ?? 0
        // A file that shrank was set aside and begun anew.
        let first = size < start ? 0 : start
        try? handle.seek(toOffset: max(first, size > UInt64(bytesMax) ? size - UInt64(bytesMax) : 0))
        let data = (try? handle.readToEnd()) ?? Data()
        return String(decoding: data, as: UTF8.self).split(separator: "\n").map(String.init)
    }

    /// The message of the last error, or the last line of a program that did not come to logging.
    static func lastComplaint(in lines: [String]) -> String? {
        let errors = lines.last { $0.contains("\"error\"") || $0.contains("\"critical\"") }
        guard let line = errors ?? lines.last(where: { !$0.hasPrefix("{") }) else { return nil }
        return (try? JSON.parse(Array(line.utf8)))?["message"]?.stringValue ?? line
    }
}

/// How long the logs were before anything was started.
struct LogSizes: Sendable {
    private let sizes: [String: UInt64]

    init(of state: StateDirectory) {
        let folder = state.path + "/logs"
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        sizes = Dictionary(
            names.map { name in
                let attributes = try? FileManager.default.attributesOfItem(atPath: "\(folder)/\(name)")
                return (name, (attributes?[.size] as? NSNumber)?.uint64Value ?? 0)
            }, uniquingKeysWith: max)
    }

    subscript(process: String) -> UInt64 { sizes["\(process).log"] ?? 0 }
}

/// New whole lines of a log that grows.
struct LogNews {
    private let path: String
    private var offset: UInt64

    init(of path: String) {
        self.path = path
        let attributes = try? FileManager.default.attributesOfItem(atPath: path)
        offset = (attributes?[.size] as? NSNumber)?.uint64Value ?? 0
    }

    mutating func take() -> [String] {
        guard let handle = FileHandle(forReadingAtPath: path) else { return [] }
        defer { try? handle.close() }
        try? handle.seek(toOffset: offset)
        let data = (try? handle.read(upToCount: LogTail.bytesMax)) ?? Data()
        guard let end = data.lastIndex(of: UInt8(ascii: "\n")) else { return [] }
        let whole = data[data.startIndex...end]
        offset += UInt64(whole.count)
        return String(decoding: whole, as: UTF8.self).split(separator: "\n").map(String.init)
    }
}
