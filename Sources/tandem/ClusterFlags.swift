import ArgumentParser
import Foundation
import LocalSupervisor
import Scheduling
import ServingTypes

/// Flags that shape a local cluster; each is also TANDEM_<NAME> and a key of the YAML file.
struct ClusterFlags: ParsableArguments {
    @Option(help: "YAML file of settings, the same names as these flags.")
    var config: String?

    @Option(help: "Hugging Face model folder or GGUF file.")
    var model: String?

    @Option(help: "Name that clients use for the model (default: the folder's name).")
    var modelName: String?

    @Option(help: "Address of the HTTP port.")
    var host: String?

    @Option(help: "HTTP port; 0 picks a free one.")
    var port: Int?

    @Option(help: "Number of prefill workers.")
    var prefill: Int?

    @Option(help: "Number of decode workers.")
    var decode: Int?

    @Option(help: "Number of mixed workers (both phases in one process).")
    var mixed: Int?

    @Option(help: "Threads per worker; 0 shares the cores among the workers.")
    var threads: Int?

    @Option(help: "Scheduling policy: \(PolicyConfiguration.names.joined(separator: ", ")).")
    var policy: String?

    @Option(help: "Constants of the policy, e.g. \"theta=1000,base-quantum-us=20000\": \(PolicySetting.names).")
    var policySettings: String?

    @Option(help: "Of the policies rpm and rpm-queue: requests of one tenant in any minute (default: 30).")
    var policyRequestsPerMinute: Int?

    @Option(help: "How pages travel: direct, relay, auto.")
    var kvPath: String?

    @Option(help: "Element type of cached keys and values: f32, f16, bf16, int8.")
    var kvType: String?

    @Option(help: "Quantise 16- and 32-bit matrices while the model is loaded: none, q8_0, q4_0.")
    var quantize: String?

    @Option(
        help: """
            Folder of packed weights, which the first worker writes and the others share; auto: tandem/packed in your \
            cache folder; none: no files, every worker packs in memory of its own.
            """)
    var packedCache: String?

    @Option(help: "Tokens per block.")
    var blockTokens: Int?

    @Option(help: "Blocks per worker; 0 sizes the pool by the model and the memory. 25.6k and 32K are understood.")
    var blocks: Int?

    @Option(help: "Jobs in one decode step at most.")
    var batchJobs: Int?

    @Option(
        help: "Bytes of each decoding worker's host tier, where pages of jobs that wait lie outside its pool; 0: none.")
    var swapBytes: Int?

    @Option(help: "Prompts with no more uncached tokens than this are prefilled on the decode worker; 0: never.")
    var localPrefillTokens: Int?

    @Option(help: "Jobs that a prefill worker is given before it has to finish some.")
    var prefillWindow: Int?

    @Option(
        help: """
            Milliseconds of waiting for a prefill worker past which a prompt is prefilled where it decodes, if that is \
            sooner; 0: never (default: 200, or 0 with --local-prefill-tokens 0).
            """)
    var reliefWaitMs: Int?

    @Option(
        help: """
            Percent of a step that only decodes, which one with prompt beside decoding jobs should take at most on \
            decode workers; 0: no limit.
            """)
    var stepStretchPercent: Int?

    @Option(help: "Milliseconds that a step with prompt beside decoding jobs should take at most; 0: no limit.")
    var stepLimitMs: Int?

    @Option(
        help: """
            File of API keys, one `key tenant [infer,admin,metrics]` per line, `infer` where none is named; without \
            it every request is let in.
            """)
    var apiKeys: String?

    @Option(
        help: """
            Weights and quotas of tenants: "acme:weight=4,requests-per-minute=60;*:concurrent-jobs=8". In the YAML file \
            it may be a mapping of tenants to mappings.
            """)
    var tenants: String?

    @Option(help: "PEM file; with --tls-key the port speaks TLS.")
    var tlsCertificate: String?

    @Option(help: "PEM file of the certificate's private key.")
    var tlsKey: String?

    @Option(help: "trace, debug, info, notice, warning, error.")
    var logLevel: String?

    /// Decides every setting. `resolver.trail` then says where each came from.
    /// - Parameter checkPorts: whether the HTTP port must be free now.
    func plan(_ resolver: inout SettingResolver, checkPorts: Bool = true) throws -> ClusterPlan {
        let counts = WorkerCounts(
            prefill: try resolver.integer("prefill", flag: prefill, standard: 1, in: 0...WorkerCounts.perKindMax),
            decode: try resolver.integer("decode", flag: decode, standard: 1, in: 0...WorkerCounts.perKindMax),
            mixed: try resolver.integer("mixed", flag: mixed, standard: 0, in: 0...WorkerCounts.perKindMax))
        guard counts.decode + counts.mixed > 0 else {
            throw CLIError("decode: 0 decode and 0 mixed workers cannot finish any job; the least is 1 of either")
        }
        let model = resolver.text("model", flag: model, standard: Self.bundledModel ?? "")
        try Self.checkModel(model)
        let port = try resolver.integer("port", flag: port, standard: 8000, in: 0...65535)
        let threads = try resolver.integer("threads", flag: threads, standard: 0, in: 0...1024)
        let workers = max(1, counts.prefill + counts.decode + counts.mixed)
        let localPrefill = try resolver.integer(
            "local-prefill-tokens", flag: localPrefillTokens, standard: 64, in: 0...(1 << 20))
        let shared = max(1, ProcessInfo.processInfo.activeProcessorCount / workers)
        let policy = try resolver.choice(
            "policy", flag: policy, standard: PolicyConfiguration.standardName, from: PolicyConfiguration.names)
        let settings = resolver.optionalText("policy-settings", flag: policySettings)
        try Self.checkSettings(settings, of: policy)
        return ClusterPlan(
            programs: try Self.programsFolder(),
            modelPath: URL(fileURLWithPath: model).standardizedFileURL.path,
            modelName: resolver.optionalText("model-name", flag: modelName),
            host: resolver.text("host", flag: host, standard: "127.0.0.1"),
            httpPort: checkPorts ? try FreePort.resolve(port, name: "port") : UInt16(clamping: port),
            controlPort: try FreePort.any(), relayPort: try FreePort.any(), workers: counts,
            policy: policy, policySettings: settings,
            requestsPerMinute: try resolver.integer(
                "policy-requests-per-minute", flag: policyRequestsPerMinute, standard: 30, in: 1...100_000),
            kvPath: try resolver.choice(
                "kv-path", flag: kvPath, standard: "auto", from: ["direct", "relay", "auto"]),
            kvType: try resolver.choice(
                "kv-type", flag: kvType, standard: "bf16", from: ["f32", "f16", "bf16", "int8"]),
            quantize: try resolver.choice(
                "quantize", flag: quantize, standard: "none", from: ["none", "q8_0", "q4_0"]),
            packedCache: Self.absoluteUnlessWord(
                resolver.text("packed-cache", flag: packedCache, standard: "auto"), ["auto", "none"]),
            blockTokens: try resolver.integer("block-tokens", flag: blockTokens, standard: 16, in: 1...1024),
            blocks: try resolver.integer("blocks", flag: blocks, standard: 0, in: 0...(1 << 24)),
            threadsPerWorker: threads == 0 ? shared : threads,
            batchJobsMax: try resolver.integer("batch-jobs", flag: batchJobs, standard: 32, in: 1...1024),
            swapBytes: try resolver.integer("swap-bytes", flag: swapBytes, standard: 0, in: 0...(1 << 44)),
            localPrefillTokens: localPrefill,
            prefillWindow: try resolver.integer("prefill-window", flag: prefillWindow, standard: 2, in: 1...1024),
            reliefWaitMs: try resolver.integer(
                "relief-wait-ms", flag: reliefWaitMs, standard: localPrefill == 0 ? 0 : 200, in: 0...600_000),
            stepLimitMs: try resolver.integer("step-limit-ms", flag: stepLimitMs, standard: 0, in: 0...60_000),
            stepStretchPercent: try resolver.integer(
                "step-stretch-percent", flag: stepStretchPercent, standard: 300, in: 0...100_000),
            apiKeysFile: resolver.optionalText("api-keys", flag: apiKeys),
            tenants: resolver.optionalText("tenants", flag: tenants),
            tlsCertificate: resolver.optionalText("tls-certificate", flag: tlsCertificate),
            tlsKey: resolver.optionalText("tls-key", flag: tlsKey),
            logLevel: try resolver.choice(
                "log-level", flag: logLevel, standard: "info",
                from: ["trace", "debug", "info", "notice", "warning", "error"]))
    }

    /// What the coordinator would refuse, before anything is started.
    private static func checkSettings(_ settings: String?, of policy: String) throws {
        guard let settings, var configuration = PolicyConfiguration(named: policy) else { return }
        do { try configuration.apply(settings) } catch { throw CLIError(error.message) }
    }

    /// A path that means the same in every process, or one of the words that stand for none.
    private static func absoluteUnlessWord(_ path: String, _ words: [String]) -> String {
        words.contains(path) ? path : URL(fileURLWithPath: path).standardizedFileURL.path
    }

    /// Whether something is there; what is in it, the programs find out.
    static func checkModel(_ path: String) throws {
        guard !path.isEmpty else {
            throw CLIError("model: name a Hugging Face folder or a GGUF file with --model")
        }
        let isFile = path.lowercased().hasSuffix(".gguf")
        guard FileManager.default.fileExists(atPath: isFile ? path : path + "/config.json") else {
            throw CLIError(
                isFile
                    ? "model: \(path) does not exist"
                    : "model: \(path)/config.json does not exist; --model wants a Hugging Face folder or a GGUF file")
        }
    }

    /// The bundled model, where this program runs from a checkout.
    static var bundledModel: String? {
        let path = "cluster/models/tandem-stories-5m"
        var folders = [path]
        var folder = URL(
            fileURLWithPath: (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? "/")
        for _ in 0..<foldersUpMax {
            folder.deleteLastPathComponent()
            folders.append(folder.appendingPathComponent(path).path)
        }
        return folders.first { FileManager.default.fileExists(atPath: $0 + "/config.json") }
    }

    /// From `.build/x86_64-unknown-linux-gnu/release/` to the checkout.
    private static let foldersUpMax = 4

    /// The folder of this program, which holds its siblings too.
    static func programsFolder() throws -> String {
        let own =
            (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        let folder = URL(fileURLWithPath: own).deletingLastPathComponent().path
        for program in ["tandem-coordinator", "tandem-prefill", "tandem-decode"] {
            guard FileManager.default.isExecutableFile(atPath: "\(folder)/\(program)") else {
                throw CLIError("\(folder)/\(program) is missing; build it with `make release`")
            }
        }
        return folder
    }
}

/// Loopback ports that nobody uses at the moment of asking.
enum FreePort {
    /// One that the kernel gives to no outgoing connection. Of those that it does give, one may be gone
    /// before its program listens, or while its program is started again: a worker that tries to
    /// reconnect may even be given the very port it connects to, and be connected with itself.
    static func any() throws -> UInt16 {
        let first = firstOutgoing
        if first > lowest + 1000 {
            for _ in 0..<tries {
                if let port = try? bind(.random(in: lowest..<first)) { return port }
            }
        }
        return try bind(0)
    }

    private static let lowest: UInt16 = 20_000
    private static let tries = 64

    /// Where the kernel's range for outgoing connections begins.
    private static var firstOutgoing: UInt16 {
        let text = try? String(contentsOfFile: "/proc/sys/net/ipv4/ip_local_port_range", encoding: .utf8)
        return text?.split(whereSeparator: \.isWhitespace).first.flatMap { UInt16($0) } ?? 32_768
    }

    /// Checks a wanted port, so that `up` says what is wrong before it starts anything.
    static func resolve(_ wanted: Int, name: String) throws -> UInt16 {
        guard wanted != 0 else { return try any() }
        do {
            return try bind(UInt16(clamping: wanted))
        } catch {
            throw CLIError("\(name): \(wanted) is in use on this machine; choose another with --\(name), 0 for any")
        }
    }

    private static func bind(_ port: UInt16) throws -> UInt16 {
        let descriptor = socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        defer { close(descriptor) }
        var one: Int32 = 1
        setsockopt(descriptor, SOL_SOCKET, SO_REUSEADDR, &one, socklen_t(MemoryLayout<Int32>.size))
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let bound = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                Glibc.bind(descriptor, generic, length) == 0 && getsockname(descriptor, generic, &length) == 0
            }
        }
        guard bound else { throw CLIError("no free port: \(String(cString: strerror(errno)))") }
        return UInt16(bigEndian: address.sin_port)
    }
}
