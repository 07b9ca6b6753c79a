import BoundedJSON
import Foundation
import Testing

/// A coordinator with any flags and at most one worker that runs both phases, for what `TestCluster`
/// does not do: TLS, API keys, a cluster without workers.
final class SmallCluster {
    let url: String
    let port: UInt16
    private let folder: URL
    private var processes: [Process] = []
    private var lifelines: [Pipe] = []

    /// Runs `body` once the coordinator listens, and the worker is ready where there is one.
    static func with(_ flags: [String], worker: Bool = true, _ body: (SmallCluster) async throws -> Void) async throws {
        let cluster = try SmallCluster(isSecure: flags.contains("--tls-key"))
        defer { cluster.tearDown() }
        try await cluster.start(flags, worker: worker)
        try await body(cluster)
    }

    private init(isSecure: Bool) throws {
        port = try Ports.free()
        url = "\(isSecure ? "https" : "http")://127.0.0.1:\(port)"
        folder = try Scratch.folder()
    }

    private func start(_ flags: [String], worker: Bool) async throws {
        let (control, relay, data) = (try Ports.free(), try Ports.free(), try Ports.free())
        try run(
            "tandem-coordinator",
            ["--port", "\(port)", "--control-port", "\(control)", "--relay-port", "\(relay)"] + flags)
        if worker {
            try run(
                "tandem-decode",
                [
                    "--role", "mixed", "--name", "mixed-0", "--coordinator", "127.0.0.1:\(control)", "--relay",
                    "127.0.0.1:\(relay)", "--threads", "1", "--blocks", "512", "--data-port", "\(data)",
                    "--advertise", "127.0.0.1:\(data)",
                ])
        }
        let start = ContinuousClock.now
        while ContinuousClock.now - start < Patience.stretched(TestCluster.readyWithin),
            processes.allSatisfy(\.isRunning)
        {
            let status = try await Tool.curl(["-k", url + (worker ? "/readyz" : "/livez")]).status
            if status == 200 { return }
            try await Task.sleep(for: .milliseconds(40))
        }
        let log = try? String(contentsOf: folder.appendingPathComponent("tandem-coordinator.log"), encoding: .utf8)
        let end = processes.allSatisfy(\.isRunning) ? "is not ready" : "has lost a process"
        throw TestFailure("the cluster \(end) after \(ContinuousClock.now - start)\n\(log ?? "")")
    }

    private func run(_ program: String, _ arguments: [String]) throws {
        let log = folder.appendingPathComponent("\(program).log")
        FileManager.default.createFile(atPath: log.path, contents: nil)
        let process = Process()
        process.executableURL = Paths.products.appendingPathComponent(program)
        process.arguments = ["--supervised", "--model", Paths.model] + arguments
        let lifeline = Pipe()
        lifelines.append(lifeline)
        process.standardInput = lifeline
        process.standardOutput = try FileHandle(forWritingTo: log)
        process.standardError = process.standardOutput
        try process.run()
        processes.append(process)
    }

    private func tearDown() {
        for process in processes where process.isRunning { kill(process.processIdentifier, SIGKILL) }
        for process in processes { process.waitUntilExit() }
        try? FileManager.default.removeItem(at: folder)
    }
}

enum Scratch {
    /// A new empty folder; whoever makes it removes it.
    static func folder() throws -> URL {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("tandem-api-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        return folder
    }
}

/// Other people's programs, run to their end.
enum Tool {
    struct Output: Sendable {
        var status: Int32
        /// Both streams.
        var text: String
    }

    /// What curl got.
    struct Reply: Sendable {
        /// 0 where there was no response.
        var status: Int
        /// As curl says it: 1.1, 2.
        var version: String
        /// Names in lower case; the final response's only.
        var headers: [String: String]
        var body: [UInt8]

        var text: String { String(decoding: body, as: UTF8.self) }
        var json: JSONValue? { try? JSON.parse(body) }
        /// The events of a stream that has only whole ones; nil where it has something else.
        var events: [String]? {
            var rest = text[...]
            var events: [String] = []
            while !rest.isEmpty {
                guard let end = rest.range(of: "\n\n") else { return nil }
                let event = rest[..<end.lowerBound]
                if event.hasPrefix("data: "), !event.contains("\n") {
                    events.append(String(event.dropFirst(6)))
                } else if !event.hasPrefix(":") {
                    return nil
                }
                rest = rest[end.upperBound...]
            }
            return events
        }
    }

    static func run(_ program: String, _ arguments: [String], environment: [String: String] = [:]) async throws
        -> Output
    {
        try await withCheckedThrowingContinuation { continuation in
            DispatchQueue.global().async {
                continuation.resume(with: Result { try runNow(program, arguments, environment) })
            }
        }
    }

    private static func runNow(_ program: String, _ arguments: [String], _ environment: [String: String]) throws
        -> Output
    {
        let process = Process()
        let output = Pipe()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = [program] + arguments
        process.environment = ProcessInfo.processInfo.environment.merging(environment) { $1 }
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        return Output(status: process.terminationStatus, text: text)
    }

    static func curl(_ arguments: [String], sending body: [UInt8]? = nil) async throws -> Reply {
        let folder = try Scratch.folder()
        defer { try? FileManager.default.removeItem(at: folder) }
        let (head, content) = (folder.appendingPathComponent("head"), folder.appendingPathComponent("content"))
        var all = [
            "-sS", "--max-time", "60", "-D", head.path, "-o", content.path, "-w", "\n%{http_code} %{http_version}",
        ]
        if let body {
            let file = folder.appendingPathComponent("body")
            try Data(body).write(to: file)
            all += ["-H", "content-type: application/json", "--data-binary", "@\(file.path)"]
        }
        let output = try await run("curl", all + arguments)
        let words = (output.text.split(separator: "\n").last ?? "").split(separator: " ").map(String.init)
        let heads = (try? String(contentsOf: head, encoding: .utf8)) ?? ""
        return Reply(
            status: words.first.flatMap { Int($0) } ?? 0, version: words.last ?? "", headers: fields(of: heads),
            body: FileManager.default.contents(atPath: content.path).map { [UInt8]($0) } ?? [])
    }

    /// Of the last head in what curl wrote; interim responses come before it.
    private static func fields(of heads: String) -> [String: String] {
        let last = heads.replacingOccurrences(of: "\r\n", with: "\n").components(separatedBy: "\n\n").filter {
            !$0.isEmpty
        }.last
        var fields: [String: String] = [:]
        for line in (last ?? "").split(separator: "\n").dropFirst() {
            let halves = line.split(separator: ":", maxSplits: 1)
            guard halves.count == 2 else { continue }
            fields[halves[0].lowercased()] = halves[1].trimmingCharacters(in: .whitespaces)
        }
        return fields
    }

    /// The body that nghttp got, over HTTP/2 with prior knowledge or, on https, ALPN.
    static func nghttp(_ url: String, sending body: [UInt8]? = nil) async throws -> String {
        let folder = try Scratch.folder()
        defer { try? FileManager.default.removeItem(at: folder) }
        var arguments = ["--no-verify-peer", "--timeout=60"]
        if let body {
            let file = folder.appendingPathComponent("body")
            try Data(body).write(to: file)
            arguments += ["-H", "content-type: application/json", "-d", file.path]
        }
        return try await run("nghttp", arguments + [url]).text
    }
}
