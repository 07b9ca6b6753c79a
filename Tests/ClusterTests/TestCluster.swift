import AsyncHTTPClient
import BoundedJSON
import FaultProxy
import Foundation
import NIOCore
import Synchronization
import Testing

/// A real cluster on loopback for one test: the programs beside the test bundle, one process each,
/// with a fault proxy on every control link and every page link.
final class TestCluster: @unchecked Sendable {
    // `@unchecked`: what changes after the start is only touched under `lock`.

    struct Shape {
        var prefill = 1
        var decode = 1
        var mixed = 0
        var coordinatorArguments: [String] = []
        var workerArguments: [String] = []
        var journal = false
        var model = Paths.model
        /// Blocks in each worker's pool.
        var blocks = 512
    }

    let seed: UInt64
    let shape: Shape
    let folder: URL
    let httpPort: UInt16
    private let controlPort: UInt16
    private let relayPort: UInt16
    private let lock = NSRecursiveLock()
    private var programs: [String: Program] = [:]
    private var controls: [String: FaultProxy] = [:]
    private var pages: [String: FaultProxy] = [:]
    private var dataPorts: [String: UInt16] = [:]

    /// Worker -> coordinator, by worker.
    var controlProxies: [String: FaultProxy] { lock.withLock { controls } }
    /// Prefill -> decode, by decode worker.
    var pageProxies: [String: FaultProxy] { lock.withLock { pages } }

    static let readyWithin: Duration = .seconds(60)

    private init(_ shape: Shape, seed: UInt64) throws {
        self.shape = shape
        self.seed = seed
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("tandem-test-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        (httpPort, controlPort, relayPort) = (try Ports.free(), try Ports.free(), try Ports.free())
    }

    /// Runs `body` on a ready cluster; everything is gone afterwards, whatever happens. A failure
    /// prints the seed and the ends of all logs.
    static func with(
        _ shape: Shape = Shape(), seed: UInt64 = UInt64.random(in: 1...UInt64(Int32.max)),
        _ body: (TestCluster) async throws -> Void
    ) async throws {
        let cluster = try TestCluster(shape, seed: seed)
        defer { cluster.tearDown() }
        do {
            try await cluster.startAll()
            try await body(cluster)
        } catch {
            print("seed \(seed)\n\(cluster.logTails())")
            throw error
        }
    }

    // MARK: Processes

    private func startAll() async throws {
        try startCoordinator()
        for name in workerNames { try startWorker(name) }
        try await waitUntilReady()
    }

    var workerNames: [String] {
        (0..<shape.prefill).map { "prefill-\($0)" } + (0..<shape.decode).map { "decode-\($0)" }
            + (0..<shape.mixed).map { "mixed-\($0)" }
    }

    func startCoordinator() throws {
        var arguments = [
            "--supervised", "--model", shape.model, "--port", "\(httpPort)", "--control-port", "\(controlPort)",
            "--relay-port", "\(relayPort)", "--local-prefill-tokens", "0", "--stall-floor-ms", "2000",
            "--dead-after-ms", "2000",
        ]
        if shape.journal { arguments += ["--journal", folder.appendingPathComponent("journal.sqlite").path] }
        try start("coordinator", "tandem-coordinator", arguments + shape.coordinatorArguments)
    }

    func startWorker(_ name: String) throws {
        try lock.withLock { try startWorkerLocked(name) }
    }

    /// Unless somebody else has.
    func startWorkerIfGone(_ name: String) throws {
        try lock.withLock { if !isRunning(name) { try startWorkerLocked(name) } }
    }

    private func startWorkerLocked(_ name: String) throws {
        let control =
            try controls[name]
            ?? FaultProxy(seed: seed &+ UInt64(controls.count)) { [controlPort] in controlPort }
        controls[name] = control
        var arguments = [
            "--supervised", "--name", name, "--model", shape.model, "--coordinator", "127.0.0.1:\(control.port)",
            "--relay", "127.0.0.1:\(relayPort)", "--threads", "1", "--blocks", "\(shape.blocks)",
        ]
        if name.hasPrefix("prefill") {
            try start(name, "tandem-prefill", arguments + shape.workerArguments)
        } else {
            let port = try dataPorts[name] ?? Ports.free()
            dataPorts[name] = port
            let proxy = try pages[name] ?? FaultProxy(seed: seed &+ 1000 &+ UInt64(pages.count)) { port }
            pages[name] = proxy
            arguments += ["--data-port", "\(port)", "--advertise", "127.0.0.1:\(proxy.port)"]
            if name.hasPrefix("mixed") { arguments += ["--role", "mixed"] }
            try start(name, "tandem-decode", arguments + shape.workerArguments)
        }
    }

    private func start(_ name: String, _ program: String, _ arguments: [String]) throws {
        let process = try Program(
            path: Paths.products.appendingPathComponent(program), arguments: arguments,
            log: folder.appendingPathComponent("\(name).log"))
        lock.withLock { programs[name] = process }
    }

    private func process(_ name: String) -> Program? { lock.withLock { programs[name] } }

    func signal(_ name: String, _ number: Int32) { process(name)?.signal(number) }

    /// `kill -9`, and waits until the kernel has done it.
    func kill(_ name: String) {
        let process = process(name)
        process?.signal(SIGKILL)
        process?.waitUntilExit()
    }

    func isRunning(_ name: String) -> Bool { process(name)?.isRunning ?? false }

    /// Which process runs under this name; nil where none does.
    func processID(_ name: String) -> Int32? {
        guard let process = process(name), process.isRunning else { return nil }
        return process.processID
    }

    private func tearDown() {
        for program in programs.values {
            program.signal(SIGCONT)
            program.signal(SIGKILL)
        }
        for program in programs.values { program.waitUntilExit() }
        for proxy in Array(controlProxies.values) + Array(pageProxies.values) { proxy.stop() }
        try? FileManager.default.removeItem(at: folder)
    }

    func logTails() -> String {
        (["coordinator"] + workerNames).map { name in
            let text = (try? String(contentsOf: folder.appendingPathComponent("\(name).log"), encoding: .utf8)) ?? ""
            return "--- \(name)\n" + text.split(separator: "\n").suffix(12).joined(separator: "\n")
        }.joined(separator: "\n")
    }

    // MARK: Waiting

    /// A process that ends before the cluster is ready is the failure, at once and with its log: nobody
    /// waits for one that is gone.
    func waitUntilReady() async throws {
        let wanted = workerNames.count
        try await wait("\(wanted) workers ready") { [self] in
            for name in ["coordinator"] + workerNames where !isRunning(name) {
                throw TestFailure("seed \(seed): \(name) ended before the cluster was ready")
            }
            guard let snapshot = try? await client.get("/admin/cluster") else { return false }
            let ready = snapshot["workers"]?.arrayValue?.filter { $0["state"]?.stringValue == "ready" }
            return ready?.count == wanted
        }
    }

    /// Every block of every worker is free or evictable: nothing leaked (invariant I3).
    func waitUntilPagesAreBack(within limit: Duration = TestCluster.readyWithin) async throws {
        try await wait("all pages back in their pools", within: limit) { [self] in
            guard let snapshot = try? await client.get("/admin/cluster"),
                let workers = snapshot["workers"]?.arrayValue, !workers.isEmpty
            else { return false }
            return workers.allSatisfy { worker in
                let blocks = worker["load"]?["blocks"]
                func count(_ name: String) -> Int { blocks?[name]?.intValue ?? -1 }
                return count("total") == shape.blocks && count("free") + count("evictable") == shape.blocks
            }
        }
    }

    func wait(
        _ what: String, within limit: Duration = TestCluster.readyWithin, until done: () async throws -> Bool
    ) async throws {
        let start = ContinuousClock.now
        while ContinuousClock.now - start < Patience.stretched(limit) {
            if try await done() { return }
            try await Task.sleep(for: .milliseconds(20))
        }
        throw TestFailure("seed \(seed): \(what): not within \(ContinuousClock.now - start)")
    }

    var client: TestClient { TestClient(port: httpPort) }
}

struct TestFailure: Error, CustomStringConvertible {
    var description: String

    init(_ description: String) { self.description = description }
}

/// One child process whose standard input is held open, as the supervisor does it.
private final class Program {
    private let process = Process()
    private let lifeline = Pipe()

    init(path: URL, arguments: [String], log: URL) throws {
        if !FileManager.default.fileExists(atPath: log.path) {
            FileManager.default.createFile(atPath: log.path, contents: nil)
        }
        let output = try FileHandle(forWritingTo: log)
        try output.seekToEnd()
        process.executableURL = path
        process.arguments = arguments
        process.environment = ProcessInfo.processInfo.environment.merging(["SWIFT_BACKTRACE": "enable=no"]) { $1 }
        process.standardInput = lifeline
        process.standardOutput = output
        process.standardError = output
        try process.run()
    }

    var isRunning: Bool { process.isRunning }
    var processID: Int32 { process.processIdentifier }
    func signal(_ number: Int32) { if process.isRunning { Glibc.kill(process.processIdentifier, number) } }
    func waitUntilExit() { process.waitUntilExit() }
}

enum Paths {
    static let repository = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()
    static let model = repository.appendingPathComponent("cluster/models/tandem-stories-5m").path
    /// Where the build put the programs: beside the test bundle.
    static let products = Bundle.main.bundleURL
}

enum Ports {
    private static let given = Mutex<Set<UInt16>>([])

    /// A loopback port that nobody uses now, that no other test of this process was given, and that
    /// the kernel gives to no outgoing connection before its program listens, or while that program is
    /// started again.
    static func free() throws -> UInt16 {
        let outgoing = try? String(contentsOfFile: "/proc/sys/net/ipv4/ip_local_port_range", encoding: .utf8)
        let first = outgoing?.split(whereSeparator: \.isWhitespace).first.flatMap { UInt16($0) } ?? 32_768
        for _ in 0..<1000 where first > 12_000 {
            let port = UInt16.random(in: 10_000..<first)
            guard given.withLock({ $0.insert(port).inserted }), isFree(port) else { continue }
            return port
        }
        let proxy = try FaultProxy(seed: 0) { nil }
        defer { proxy.stop() }
        return proxy.port
    }

    private static func isFree(_ port: UInt16) -> Bool {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        return withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
    }
}

/// How long a machine that others work on may take for what a calm one does at once.
enum Patience {
    /// `limit` on a calm machine; more by how many tasks wait for each core, five times at most. A
    /// process that hangs fails its test all the same, later.
    static func stretched(_ limit: Duration) -> Duration {
        let loads = try? String(contentsOfFile: "/proc/loadavg", encoding: .utf8)
        let load = loads?.split(separator: " ").first.flatMap { Double($0) } ?? 0
        let crowd = load / Double(max(ProcessInfo.processInfo.activeProcessorCount, 1))
        return limit * min(max(crowd, 1), 5)
    }
}
