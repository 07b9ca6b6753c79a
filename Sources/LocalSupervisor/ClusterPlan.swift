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
    /// Constants of the policy, as the coordinator reads them.
    public var policySettings: String?
    public var kvPath: String
    public var kvType: String
    /// What 16- and 32-bit matrices become while workers load them: none, q8_0, q4_0.
    public var quantize: String
    /// Folder of packed weights that the workers share; auto: the user's cache folder; none: no files.
    public var packedCache: String
    public var blockTokens: Int
    /// Per worker; 0 lets the worker choose by memory.
    public var blocks: Int
    public var threadsPerWorker: Int
    public var batchJobsMax: Int
    /// Of one tenant, under the policies that limit it.
    public var requestsPerMinute: Int
    /// Of each decoding worker's host tier, which lies under the state directory; 0: none.
    public var swapBytes: Int
    public var localPrefillTokens: Int
    /// Jobs that a prefill worker is given at once.
    public var prefillWindow: Int
    /// Milliseconds; 0: never, and no limit.
    public var reliefWaitMs: Int
    public var stepLimitMs: Int
    /// How much prompts may stretch the steps of decode workers, which are there to keep them short, in
    /// percent; 0: no limit. Mixed workers have none.
    public var stepStretchPercent: Int
    public var apiKeysFile: String?
    /// Weights and quotas of tenants, as the coordinator reads them.
    public var tenants: String?
    public var tlsCertificate: String?
    public var tlsKey: String?
    public var logLevel: String
    /// Handed to the programs as they are, by process name or kind.
    public var extraArguments: [String: [String]]

    public init(
        programs: String, modelPath: String, modelName: String? = nil, host: String = "127.0.0.1",
        httpPort: UInt16, controlPort: UInt16, relayPort: UInt16, workers: WorkerCounts, policy: String = "fair-mlfq",
        policySettings: String? = nil, requestsPerMinute: Int = 30, kvPath: String = "auto", kvType: String = "bf16",
        quantize: String = "none",
        packedCache: String = "auto",
        blockTokens: Int = 16, blocks: Int = 0,
        threadsPerWorker: Int = 1, batchJobsMax: Int = 32, swapBytes: Int = 0, localPrefillTokens: Int = 64,
        prefillWindow: Int = 2, reliefWaitMs: Int = 0, stepLimitMs: Int = 0,
        stepStretchPercent: Int = 300, apiKeysFile: String? = nil, tenants: String? = nil,
        tlsCertificate: String? = nil,
        tlsKey: String? = nil, logLevel: String = "info",
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
        self.policySettings = policySettings
        self.requestsPerMinute = requestsPerMinute
        self.kvPath = kvPath
        self.kvType = kvType
        self.quantize = quantize
        self.packedCache = packedCache
        self.blockTokens = blockTokens
        self.blocks = blocks
        self.threadsPerWorker = threadsPerWorker
        self.batchJobsMax = batchJobsMax
        self.swapBytes = swapBytes
        self.localPrefillTokens = localPrefillTokens
        self.prefillWindow = prefillWindow
        self.reliefWaitMs = reliefWaitMs
        self.stepLimitMs = stepLimitMs
        self.stepStretchPercent = stepStretchPercent
        self.apiKeysFile = apiKeysFile
        self.tenants = tenants
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
        case .decode:
            let stretch = ["--step-stretch", "\(Double(stepStretchPercent) / 100)"]
            return ("\(programs)/tandem-decode", workerArguments(name) + stretch + swapArguments(state) + extra)
        case .mixed:
            return (
                "\(programs)/tandem-decode",
                ["--role", "mixed"] + workerArguments(name) + swapArguments(state) + extra
            )
        }
    }

    private func swapArguments(_ state: StateDirectory) -> [String] {
        swapBytes > 0 ? ["--swap-bytes", "\(swapBytes)", "--swap-dir", "\(state.path)/swap"] : []
    }

    private func coordinatorArguments(_ state: StateDirectory) -> [String] {
        var arguments = [
            "--supervised", "--model", modelPath, "--host", host, "--port", "\(httpPort)", "--control-port",
            "\(controlPort)", "--relay-port", "\(relayPort)", "--journal", state.journalFile, "--policy", policy,
            "--policy-requests-per-minute", "\(requestsPerMinute)", "--kv-path", kvPath, "--kv-type", kvType,
            "--block-tokens", "\(blockTokens)", "--local-prefill-tokens",
            "\(localPrefillTokens)", "--prefill-window", "\(prefillWindow)", "--relief-wait-ms", "\(reliefWaitMs)",
            "--log-level", logLevel,
        ]
        if let policySettings { arguments += ["--policy-settings", policySettings] }
        if let modelName { arguments += ["--model-name", modelName] }
        if let apiKeysFile { arguments += ["--api-keys", apiKeysFile] }
        if let tenants { arguments += ["--tenants", tenants] }
        if let tlsCertificate, let tlsKey { arguments += ["--tls-certificate", tlsCertificate, "--tls-key", tlsKey] }
        return arguments
    }

    private func workerArguments(_ name: ProcessName) -> [String] {
        [
            "--supervised", "--name", "\(name)", "--model", modelPath, "--coordinator", "127.0.0.1:\(controlPort)",
            "--relay", "127.0.0.1:\(relayPort)", "--kv-type", kvType, "--quantize", quantize, "--packed-cache",
            packedCache, "--block-tokens",
            "\(blockTokens)", "--blocks",
            "\(blocks)", "--threads", "\(threadsPerWorker)", "--batch-jobs", "\(batchJobsMax)", "--step-limit-ms",
            "\(stepLimitMs)", "--log-level", logLevel,
        ]
    }
}
