import ArgumentParser
import ClusterTransport
import CoordinatorCore
import Foundation
import FrontDoor
import Ledger
import Logging
import Messages
import ModelFiles
import NIOCore
import NIOPosix
import Scheduling
import ServingTypes

/// Flags of `tandem-coordinator`.
public struct CoordinatorFlags: ParsableArguments, Sendable {
    @Option(
        help: "Hugging Face model folder or GGUF file: tokenizer, chat template and limits are read, weights are not.")
    public var model: String

    @Option(help: "Name that clients use for the model (default: the folder's name).")
    public var modelName: String?

    @Option(help: "Address of the HTTP port.")
    public var host: String = "127.0.0.1"

    @Option(help: "HTTP port, for HTTP/1.1 and HTTP/2; 0 picks one.")
    public var port: Int = 8000

    @Option(help: "Address that workers connect to.")
    public var controlHost: String = "127.0.0.1"

    @Option(help: "Port that workers connect to.")
    public var controlPort: Int = 8001

    @Option(help: "Port for pages that cannot go directly from worker to worker.")
    public var relayPort: Int = 8002

    @Option(help: "SQLite file of admitted jobs; without it a restart forgets them.")
    public var journal: String?

    @Option(help: "Scheduling policy: \(PolicyConfiguration.names.joined(separator: ", ")).")
    public var policy: String = PolicyConfiguration.standardName

    @Option(help: "Constants of the policy, e.g. \"theta=1000,base-quantum-us=20000\": \(PolicySetting.names).")
    public var policySettings: String = ""

    @Option(help: "Of the policies rpm and rpm-queue: requests of one tenant in any minute.")
    public var policyRequestsPerMinute: Int = 30

    @Option(
        help: """
            Weights and quotas, e.g. "acme:weight=4,requests-per-minute=60;*:tokens-per-minute=10000,concurrent-jobs=8"; \
            * stands for tenants without quotas of their own.
            """)
    public var tenants: String = ""

    @Option(help: "How pages travel: direct, relay, auto.")
    public var kvPath: String = "auto"

    @Option(help: "Element type of cached keys and values; the same as the workers'.")
    public var kvType: String = "bf16"

    @Option(help: "Tokens per block; the same as the workers'.")
    public var blockTokens: Int = 16

    @Option(help: "Prompts with no more uncached tokens than this are prefilled on the decode worker; 0: never.")
    public var localPrefillTokens: Int = 64

    @Option(
        help: """
            Jobs that a prefill worker is given before it has to finish some: fewer let the next tenant in sooner, more \
            keep it busy over slow links.
            """)
    public var prefillWindow: Int = 2

    @Option(
        help: """
            Prompts that would wait longer than this many milliseconds for a prefill worker are prefilled on the decode \
            worker, where that is sooner; 0: never.
            """)
    public var reliefWaitMs: Int64 = 0

    @Option(help: "Jobs that may wait; past it clients get 429 or 503 with Retry-After.")
    public var queue: Int = 1024

    @Option(
        help: """
            File of API keys, one `key tenant [infer,admin,metrics]` per line, `infer` where none is named; without \
            it every request is let in.
            """)
    public var apiKeys: String?

    @Option(help: "PEM file; with --tls-key the port speaks TLS.")
    public var tlsCertificate: String?

    @Option(help: "PEM file of the certificate's private key.")
    public var tlsKey: String?

    @Option(help: "Milliseconds of a worker's silence after which it counts as dead.")
    public var deadAfterMs: Int64 = 3000

    @Option(help: "Milliseconds without progress, at least, after which a job is taken from its worker.")
    public var stallFloorMs: Int64 = 3000

    @Option(help: "trace, debug, info, notice, warning, error.")
    public var logLevel: String = "info"

    @Flag(help: "End when standard input closes: the supervisor holds its other end.")
    public var supervised = false

    public init() {}

    static let reliefWaitMsMax: Int64 = 600_000
    /// The policy remembers as many instants of each tenant.
    static let policyRequestsPerMinuteRange = 1...100_000

    func configuration() throws(ServingError) -> CoordinatorConfiguration {
        var configuration = CoordinatorConfiguration()
        guard let policy = PolicyConfiguration(named: policy), !policy.isClairvoyant else {
            throw ServingError(
                .invalidValue,
                "policy: \(policy) is not one of \(PolicyConfiguration.names.joined(separator: ", "))", field: "policy",
                blast: .process)
        }
        guard let path = KVPath(rawValue: kvPath) else {
            throw ServingError(
                .invalidValue, "kv-path: \(kvPath) is not one of direct, relay, auto", field: "kv-path", blast: .process
            )
        }
        configuration.policy = policy
        guard Self.policyRequestsPerMinuteRange.contains(policyRequestsPerMinute) else {
            throw ServingError(
                .invalidValue,
                "policy-requests-per-minute: \(policyRequestsPerMinute) is outside 1 to \(Self.policyRequestsPerMinuteRange.upperBound)",
                field: "policy-requests-per-minute", blast: .process)
        }
        configuration.policy.requestsPerMinute = policyRequestsPerMinute
        try configuration.policy.apply(policySettings)
        configuration.kvPath = path
        configuration.blockTokens = blockTokens
        configuration.placement.localPrefillThreshold = localPrefillTokens
        configuration.prefillWindowJobs = max(prefillWindow, 1)
        guard (0...Self.reliefWaitMsMax).contains(reliefWaitMs) else {
            throw ServingError(
                .invalidValue, "relief-wait-ms: \(reliefWaitMs) is outside 0 to \(Self.reliefWaitMsMax)",
                field: "relief-wait-ms", blast: .process)
        }
        if reliefWaitMs > 0 { configuration.relief = ReliefConfiguration(wait: .milliseconds(reliefWaitMs)) }
        configuration.queuedJobsMax = queue
        configuration.queuedJobsPerTenantMax = queue
        configuration.deadAfter = .milliseconds(deadAfterMs)
        configuration.stallFloor = .milliseconds(stallFloorMs)
        return configuration
    }
}

/// The life of a coordinator process: recover, let workers in, let clients in, leave in order.
public enum CoordinatorProgram {
    /// How long jobs that run may take to end after the first signal.
    static let drainWithin = Duration.seconds(30)

    public static func run(_ flags: CoordinatorFlags) async throws {
        LogSetup.bootstrap(program: "coordinator", level: Logger.Level(rawValue: flags.logLevel) ?? .info)
        let log = Logger(label: "tandem-coordinator")
        if flags.supervised { ProcessLife.endWithSupervisor { exit(0) } }
        do {
            let loop = MultiThreadedEventLoopGroup(numberOfThreads: 1).any()
            let cluster = try await CoordinatorProcess.start(flags, loop: loop, log: log)
            await cluster.runUntilToldToStop(log: log)
        } catch let error as ServingError {
            log.error("\(error.message)")
            exit(2)
        } catch {
            log.error("\(error)")
            exit(2)
        }
        exit(0)
    }
}

/// The parts of a running coordinator; all but the relay live on one event loop.
struct CoordinatorProcess: Sendable {
    let loop: any EventLoop
    let host: NIOLoopBound<CoordinatorHost>
    let links: NIOLoopBound<CoordinatorLinks>
    let door: NIOLoopBound<FrontDoor>
    let relay: RelayServer
    let files: LedgerFiles?

    static func start(_ flags: CoordinatorFlags, loop: any EventLoop, log: Logger) async throws -> CoordinatorProcess {
        let folder = try ModelFolder(path: flags.model)
        let configuration = try flags.configuration()
        let base = ClusterDigest.base(
            model: folder.digest, kvType: flags.kvType, blockTokens: flags.blockTokens)
        let files = try flags.journal.map { path throws(ServingError) in try LedgerFiles(path: path) }
        let tenants = try TenantSettings.table(flags.tenants)
        let doorConfiguration = try DoorSetup.configuration(flags, folder)
        if !doorConfiguration.keys.isEmpty, !doorConfiguration.keys.contains(where: { $0.scopes.contains(.admin) }) {
            log.warning("no API key has the scope admin: nobody can administer this cluster over HTTP")
        }
        let own = WorkerRef(id: WorkerID("coordinator"), epoch: Epoch(.random(in: 1 ... .max)))

        let host = try await loop.submit {
            let host = CoordinatorHost(
                loop: loop, configuration: configuration, naming: SHA256PageNaming(compatibility: base),
                files: files, tenants: tenants, log: log)
            try host.start()
            return NIOLoopBound(host, eventLoop: loop)
        }.get()
        let links = try await loop.submit {
            NIOLoopBound(CoordinatorLinks(loop: loop, own: own, host: host.value, log: log), eventLoop: loop)
        }.get()
        let controlPort = try await loop.flatSubmit {
            links.value.start(host: flags.controlHost, port: flags.controlPort)
        }.get()
        let relay = RelayServer(
            host: flags.controlHost, port: flags.relayPort, own: own,
            resolve: { worker in resolve(worker, host, loop) })
        let relayPort = try relay.start()
        let (door, port) = try await openDoor(doorConfiguration, host, loop)
        log.info(
            "serving",
            metadata: [
                "http": "\(flags.host):\(port)", "control": "\(controlPort)", "relay": "\(relayPort)",
                "model": "\(doorConfiguration.model.name)", "policy": "\(flags.policy)",
            ])
        return CoordinatorProcess(loop: loop, host: host, links: links, door: door, relay: relay, files: files)
    }

    private static func openDoor(
        _ configuration: FrontDoorConfiguration, _ host: NIOLoopBound<CoordinatorHost>, _ loop: any EventLoop
    ) async throws -> (NIOLoopBound<FrontDoor>, Int) {
        let name = configuration.model.name
        let door = try await loop.submit {
            NIOLoopBound(
                FrontDoor(
                    on: loop, configuration: configuration, service: host.value,
                    metricsPage: { host.value.metricsText(model: name) }), eventLoop: loop)
        }.get()
        return (door, try await loop.flatSubmit { door.value.bind() }.get())
    }

    /// Called on a relay thread, which may wait; the answer is on the loop.
    private static func resolve(_ worker: WorkerID, _ host: NIOLoopBound<CoordinatorHost>, _ loop: any EventLoop) -> (
        host: String, port: Int
    )? {
        let endpoint = try? loop.submit { host.value.dataEndpoint(of: worker) }.wait()
        guard let text = endpoint ?? nil, let parsed = try? HostPort(text, field: "endpoint") else { return nil }
        return (parsed.host, Int(parsed.port))
    }

    /// First signal: refuse new jobs, finish the old ones. Second: end at once.
    func runUntilToldToStop(log: Logger) async {
        let (signals, continuation) = AsyncStream<Int32>.makeStream(bufferingPolicy: .bufferingNewest(4))
        let sources = ProcessLife.onTermination(queue: .global()) { continuation.yield($0) }
        var iterator = signals.makeAsyncIterator()
        _ = await iterator.next()
        log.info("asked to stop: finishing the jobs that run")
        await withTaskGroup(of: Void.self) { group in
            group.addTask { await drain() }
            group.addTask {
                var signals = signals.makeAsyncIterator()
                _ = await signals.next()
            }
            await group.next()
            group.cancelAll()
        }
        sources.forEach { $0.cancel() }
        files?.store.flush()
        log.info("stopped")
    }

    private func drain() async {
        try? await loop.submit {
            host.value.beginDraining()
            door.value.drain()
        }.get()
        let deadline = ContinuousClock.now + CoordinatorProgram.drainWithin
        while ContinuousClock.now < deadline, !Task.isCancelled {
            let live = (try? await loop.submit { host.value.liveJobs }.get()) ?? 0
            if live == 0 { break }
            try? await Task.sleep(for: .milliseconds(20))
        }
        // The last tokens are with the sockets; give them a moment to leave.
        try? await Task.sleep(for: .milliseconds(100))
        try? await loop.flatSubmit { door.value.stop() }.get()
        try? await loop.flatSubmit { links.value.stop() }.get()
        relay.stop()
    }
}
