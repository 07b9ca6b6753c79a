import ServingTypes

/// Everything needed to start the processes of a local cluster, decided before the first one runs.
public struct ClusterPlan: Sendable {
    /// Folder that holds the four programs.
    public var programs: String
    public var modelPath: String
    public var modelName: String?
    public var host: String
    public var httpPort: UInt16
    public var controlPort: UInt16
    public var relayPort: UInt16
    public var workers: WorkerCounts
    public var policy: String
    public var kvPath: String
    public var kvType: String
    public var blockTokens: Int
    /// Per worker; 0 lets the worker choose by memory.
    public var blocks: Int
    public var threadsPerWorker: Int
    public var batchJobsMax: Int
    public var localPrefillTokens: Int
    public var apiKeysFile: String?
    public var tlsCertificate: String?
    public var tlsKey: String?
    public var logLevel: String
    /// Handed to the programs as they are, by process name or kind.
    public var extraArguments: [String: [String]]

    public init(
        programs: String, modelPath: String, modelName: String? = nil, host: String = "127.0.0.1",
        httpPort: UInt16, controlPort: UInt16, relayPort: UInt16, workers: WorkerCounts, policy: String = "fair-mlfq",
        kvPath: String = "auto", kvType: String = "bf16", blockTokens: Int = 16, blocks: Int = 0,
        threadsPerWorker: Int = 1, batchJobsMax: Int = 32, localPrefillTokens: Int = 64, apiKeysFile: String? = nil,
        tlsCertificate: String? = nil, tlsKey: String? = nil, logLevel: String = "info",
        extraArguments: [String: [String]] = [:]
    ) {
        self.programs = programs
        self.modelPath = modelPath
        self.modelName = modelName
        self.host = host
        self.httpPort = httpPort
        self.controlPort = controlPort
        self.relayPort = relayPort
        self.workers = workers
        self.policy = policy
        self.kvPath = kvPath
        self.kvType = kvType
        self.blockTokens = blockTokens
        self.blocks = blocks
        self.threadsPerWorker = threadsPerWorker
        self.batchJobsMax = batchJobsMax
        self.localPrefillTokens = localPrefillTokens
        self.apiKeysFile = apiKeysFile
        self.tlsCertificate = tlsCertificate
        self.tlsKey = tlsKey
        self.logLevel = logLevel
        self.extraArguments = extraArguments
    }

    public var url: String { "\(tlsCertificate == nil ? "http" : "https")://\(host):\(httpPort)" }

    /// Program and arguments of one process.
    public func command(for name: ProcessName, state: StateDirectory) -> (program: String, arguments: [String]) {
        let extra = (extraArguments[name.kind.rawValue] ?? []) + (extraArguments["\(name)"] ?? [])
        switch name.kind {
        case .coordinator: return ("\(programs)/tandem-coordinator", coordinatorArguments(state) + extra)
        case .prefill: return ("\(programs)/tandem-prefill", workerArguments(name) + extra)
        case .decode: return ("\(programs)/tandem-decode", workerArguments(name) + extra)
        case .mixed: return ("\(programs)/tandem-decode", ["--role", "mixed"] + workerArguments(name) + extra)
        }
    }

    private func coordinatorArguments(_ state: StateDirectory) -> [String] {
        var arguments = [
            "--supervised", "--model", modelPath, "--host", host, "--port", "\(httpPort)", "--control-port",
            "\(controlPort)", "--relay-port", "\(relayPort)", "--journal", state.journalFile, "--policy", policy,
            "--kv-path", kvPath, "--kv-type", kvType, "--block-tokens", "\(blockTokens)", "--local-prefill-tokens",
            "\(localPrefillTokens)", "--log-level", logLevel,
        ]
        if let modelName { arguments += ["--model-name", modelName] }
        if let apiKeysFile { arguments += ["--api-keys", apiKeysFile] }
        if let tlsCertificate, let tlsKey { arguments += ["--tls-certificate", tlsCertificate, "--tls-key", tlsKey] }
        return arguments
    }

    private func workerArguments(_ name: ProcessName) -> [String] {
        [
            "--supervised", "--name", "\(name)", "--model", modelPath, "--coordinator", "127.0.0.1:\(controlPort)",
            "--relay", "127.0.0.1:\(relayPort)", "--kv-type", kvType, "--block-tokens", "\(blockTokens)", "--blocks",
            "\(blocks)", "--threads", "\(threadsPerWorker)", "--batch-jobs", "\(batchJobsMax)", "--log-level", logLevel,
        ]
    }
}
