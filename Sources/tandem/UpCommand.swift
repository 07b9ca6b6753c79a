import ArgumentParser
import BoundedJSON
import Dispatch
import Foundation
import LocalSupervisor
import ServingTypes
import Synchronization

struct UpCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "up", abstract: "Start a local cluster: one coordinator and its workers, as separate processes.",
        discussion: """
            Stays in the foreground and stops the cluster on Ctrl-C; with --detach it returns once the cluster is
            ready, and `tandem down` stops it. A crashed worker is restarted; nothing outlives this command.

              tandem up --model ./Qwen2.5-0.5B --prefill 2 --decode 2
              tandem up --config cluster/local.yaml --port 9000
              TANDEM_POLICY=fcfs tandem up
            """)

    @OptionGroup var flags: ClusterFlags

    @Option(help: "State directory: lock, logs, journal (default: TANDEM_STATE, else ~/.tandem).")
    var state: String?

    @Flag(name: .shortAndLong, help: "Return once the cluster is ready.")
    var detach = false

    @Flag(help: "Print every setting with where it came from, and stop.")
    var showConfig = false

    @Option(help: "Seconds to wait for the model to be loaded.")
    var readyWithin: Int = 600

    func run() async throws {
        var resolver = try SettingResolver(configPath: flags.config)
        let directory = ClusterClient.stateDirectory(state)
        if !showConfig {
            try directory.create()
            _ = try directory.lock()
        }
        let plan = try flags.plan(&resolver, checkPorts: !showConfig)
        try resolver.refuseUnknownFileKeys()
        if showConfig {
            Terminal.say(
                Terminal.table(
                    ["setting", "value", "from"], resolver.trail.map { [$0.name, $0.value, $0.origin.rawValue] }))
            return
        }
        if detach { return try await Detached.start(state: directory, readyWithin: readyWithin) }
        try await serve(plan, directory)
    }

    private func serve(_ plan: ClusterPlan, _ directory: StateDirectory) async throws {
        let keys = try plan.apiKeysFile.map(LocalKeys.init(path:))
        let cluster = try LocalCluster(plan: plan, state: directory, apiKey: keys?.forAdministration) {
            Terminal.say($0)
        }
        let signals = Signals.stopping(cluster)
        defer { signals.cancel() }
        Terminal.say("starting \(Self.describe(plan.workers)) on \(plan.modelPath)")
        try await cluster.run {
            try await cluster.waitUntilReady(within: .seconds(readyWithin)) { Terminal.say($0) }
            Terminal.say(Self.banner(plan, keys: keys, state: directory))
        }
        Terminal.say("the cluster has stopped")
    }

    static func describe(_ counts: WorkerCounts) -> String {
        var parts = ["1 coordinator"]
        if counts.prefill > 0 { parts.append("\(counts.prefill) prefill") }
        if counts.decode > 0 { parts.append("\(counts.decode) decode") }
        if counts.mixed > 0 { parts.append("\(counts.mixed) mixed") }
        return parts.joined(separator: ", ")
    }

    static func banner(_ plan: ClusterPlan, keys: LocalKeys?, state: StateDirectory) -> String {
        let key = keys?.forInference
        let authorization = key.map { " -H 'authorization: Bearer \($0)'" } ?? ""
        let note =
            keys.map(\.mayAdminister) ?? true
            ? ""
            : "\nno key of \(plan.apiKeysFile ?? "") may administer: status, top, tenants and scale need one, a line"
                + " `KEY TENANT infer,admin,metrics`\n"
        return note + """

            ready: \(plan.url)
            key:     \(key ?? "none needed")
            metrics: \(plan.url)/metrics
            logs:    \(state.path)/logs

              curl \(plan.url)/v1/completions\(authorization) \\
                -H 'content-type: application/json' \\
                -d '{"prompt": "Once upon a time", "max_tokens": 60, "stream": true}'

              tandem chat          tandem status          tandem scale decode=2          tandem down

            """
    }
}

/// The keys of a key file that this machine's own commands use.
struct LocalKeys {
    /// For the sample request.
    let forInference: String
    /// For the card that `tandem status` and the others read: one that may administer, where there is one.
    let forAdministration: String
    let mayAdminister: Bool

    init(path: String) throws {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw CLIError("api-keys: \(path) cannot be read")
        }
        try self.init(text: text, path: path)
    }

    /// Lines are checked by the coordinator; a key without scopes has `infer`.
    init(text: String, path: String) throws {
        let keys = text.split(separator: "\n").compactMap { line -> (key: String, scopes: [Substring])? in
            let words = line.prefix { $0 != "#" }.split(whereSeparator: \.isWhitespace)
            guard let key = words.first else { return nil }
            return (String(key), words.count > 2 ? words[2].split(separator: ",") : ["infer"])
        }
        guard let first = keys.first else { throw CLIError("api-keys: \(path) holds no `key tenant` line") }
        let administrator = keys.first { $0.scopes.contains("admin") }
        forInference = (keys.first { $0.scopes.contains("infer") } ?? administrator ?? first).key
        forAdministration = (administrator ?? first).key
        mayAdminister = administrator != nil
    }
}

/// SIGINT and SIGTERM as callbacks.
struct Signals {
    private let sources: [any DispatchSourceSignal]

    init(_ handler: @escaping @Sendable (Int32) -> Void) {
        sources = [SIGINT, SIGTERM].map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: .global())
            source.setEventHandler { handler(number) }
            source.resume()
            return source
        }
    }

    func cancel() { sources.forEach { $0.cancel() } }

    /// The first signal finishes the jobs that run and stops the cluster; the second ends it at once.
    static func stopping(_ cluster: LocalCluster) -> Signals {
        let asked = OneTime()
        return Signals { _ in
            if asked.raise() {
                Task { await cluster.supervisor.endNow() }
            } else {
                Terminal.say("stopping: jobs that run are finished first (Ctrl-C again ends at once)")
                Task { await cluster.supervisor.shutDown() }
            }
        }
    }
}

/// `up --detach`: the same command again, in a session of its own.
enum Detached {
    static func start(state: StateDirectory, readyWithin: Int) async throws {
        let log = state.logFile(of: "supervisor")
        LogFiles.rotate(log)
        var news = LogNews(of: log)
        let process = try spawn(
            CommandLine.arguments.dropFirst().filter { $0 != "--detach" && $0 != "-d" } + ["--state", state.path],
            log: log)
        // The supervisor gives up first and says why.
        let deadline = ContinuousClock.now + .seconds(readyWithin) + .seconds(5)
        while ContinuousClock.now < deadline {
            for line in news.take() where line.contains(": loading") || line.contains("; restarting") {
                Terminal.say(line)
            }
            if let card = state.readCard() {
                let client = ClusterClient(baseURL: card.url, apiKey: card.apiKey, state: state)
                if await client.status("/readyz") == 200, await isComplete(client) {
                    Terminal.say("ready: \(card.url) (supervisor process \(process), logs in \(state.path)/logs)")
                    return
                }
            }
            var status: Int32 = 0
            if waitpid(process, &status, WNOHANG) == process {
                throw CLIError(lastWords(in: log) ?? "the cluster did not start; \(log) may say why")
            }
            try await Task.sleep(for: .milliseconds(100))
        }
        kill(process, SIGTERM)
        throw CLIError("the cluster was not ready within \(readyWithin) s; its logs are in \(state.path)/logs")
    }

    /// Whether every process that should run does, and every worker is ready.
    private static func isComplete(_ client: ClusterClient) async -> Bool {
        guard
            let processes = try? await ControlSocket.ask(
                path: client.state.controlSocket, .object(JSONObject([("verb", .string("processes"))]))
            ).arrayValue,
            let workers = try? await client.get("/admin/cluster")["workers"]?.arrayValue
        else { return false }
        return workers.filter { $0["state"]?.stringValue == "ready" }.count >= processes.count - 1
    }

    /// The supervisor's complaint, with the lines that belong to it.
    private static func lastWords(in log: String) -> String? {
        let lines = LogTail.lines(of: log)
        guard let start = lines.lastIndex(where: { $0.hasPrefix("tandem: ") }) else { return nil }
        return String(lines[start...].joined(separator: "\n").dropFirst("tandem: ".count))
    }

    /// POSIX_SPAWN_SETSID of <spawn.h>, which Swift does not import.
    private static let sessionFlag: Int16 = 0x80

    private static func spawn(_ arguments: [String], log: String) throws -> pid_t {
        var actions = posix_spawn_file_actions_t()
        posix_spawn_file_actions_init(&actions)
        defer { posix_spawn_file_actions_destroy(&actions) }
        posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0)
        posix_spawn_file_actions_addopen(&actions, 1, log, O_WRONLY | O_CREAT | O_APPEND, 0o600)
        posix_spawn_file_actions_adddup2(&actions, 1, 2)
        // Nothing else that we inherited lives on: whoever reads from us would wait for ever otherwise.
        for descriptor in 3..<Int32(clamping: min(max(sysconf(Int32(_SC_OPEN_MAX)), 3), 65_536)) {
            _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
        }
        var attributes = posix_spawnattr_t()
        posix_spawnattr_init(&attributes)
        defer { posix_spawnattr_destroy(&attributes) }
        posix_spawnattr_setflags(&attributes, sessionFlag)
        var vector: [UnsafeMutablePointer<CChar>?] = (["tandem"] + arguments).map { strdup($0) } + [nil]
        defer { vector.forEach { free($0) } }
        var process: pid_t = 0
        let result = posix_spawn(&process, "/proc/self/exe", &actions, &attributes, &vector, environ)
        guard result == 0 else { throw CLIError("the supervisor did not start: \(String(cString: strerror(result)))") }
        return process
    }
}

/// Raised once.
final class OneTime: Sendable {
    private let value = Atomic(false)

    /// Whether it was raised before.
    func raise() -> Bool { value.exchange(true, ordering: .relaxed) }
}
