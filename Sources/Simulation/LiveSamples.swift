/// A live cluster, as its coordinator tells of it.
public struct LiveCluster: Hashable, Sendable {
    public var prefill = 0
    public var decode = 0
    public var mixed = 0
    public var blockTokens = 16
    public var pageBytes = 0
    /// Of the smallest pool of a worker that decodes.
    public var blocks = 0
    /// As the workers were started.
    public var batchJobs = 32
    public var stepTokens = 512
    public var chunkTokens = 256
    public var threads = 1
    public var policy = "fair"
    /// Prompts below this are prefilled where they decode; 0: never.
    public var localPrefill = 0
    /// Milliseconds of waiting past which a long one is, too; 0: never (`ReliefConfiguration`).
    public var reliefWait = 0
    /// What a decode worker's step with prompt may take, in percent of one that only decodes; 0: no limit.
    public var stepStretch = 0
    /// Jobs that a prefill worker is given at once.
    public var prefillWindow = 2

    public init() {}

    public var name: String { mixed > 0 ? "\(mixed) mixed" : "\(prefill) prefill, \(decode) decode" }

    /// Whether prompts may be computed in the steps of jobs that decode.
    public var mixesSteps: Bool { mixed > 0 || localPrefill > 0 || reliefWait > 0 }
}

/// One job's stamps, milliseconds since the coordinator received it, and what its client saw. The
/// simulator gives the same of a simulated job.
public struct LiveJob: Hashable, Sendable {
    /// When the client sent it, milliseconds since the session began.
    public var sent = 0.0
    public var inputTokens = 0
    public var outputTokens = 0
    public var placed: Double?
    public var reserved: Double?
    /// Nil where the first token overtook the word that the prompt had begun.
    public var prefilling: Double?
    public var firstToken = 0.0
    public var transferring: Double?
    public var decoding: Double?
    public var secondToken: Double?
    public var finished = 0.0
    public var kvBytes = 0
    /// When the client had its first token, and everything, since it sent the job.
    public var clientFirstToken = 0.0
    public var clientCompletion = 0.0
    /// When each token reached the client.
    public var clientTokens: [Double] = []

    public init() {}

    /// The time in which it decoded, and in which its prompt was computed.
    public var decodingTime: ClosedRange<Double>? {
        guard let secondToken, finished > secondToken else { return nil }
        return sent + secondToken...sent + finished
    }

    public var promptTime: ClosedRange<Double>? {
        guard let prefilling, firstToken > prefilling else { return nil }
        return sent + prefilling...sent + firstToken
    }

    /// Mean gap of the tokens after the second.
    public var gap: Double? {
        guard let secondToken, outputTokens > 3 else { return nil }
        return (finished - secondToken) / Double(outputTokens - 2)
    }

    /// From the first token to the end, per token after the first.
    public var timePerToken: Double { (finished - firstToken) / Double(max(outputTokens - 1, 1)) }
}

/// Jobs that were sent for one purpose.
public struct LiveExperiment: Hashable, Sendable {
    public enum Kind: String, Hashable, Sendable {
        /// One job after the other.
        case single
        /// So many equal jobs at once.
        case together
        /// Jobs that decode while prompts come; and those prompts.
        case disturbed
        case disturbing
        /// Jobs that decode while prompts are computed in their steps; and those prompts.
        case crowded
        case crowding
        /// A workload, as users send it.
        case traffic
        /// One that no fit sees: the fit is judged by it.
        case heldOut
    }

    public var kind: Kind
    public var jobs: [LiveJob]
    /// Of a workload that is held out: its load, the seed that it was drawn from, and which time it was
    /// played.
    public var load = ""
    public var seed: UInt64 = 0
    public var turn = 0

    public init(kind: Kind, jobs: [LiveJob]) {
        self.kind = kind
        self.jobs = jobs
    }
}

/// All that was measured of one live cluster.
public struct LiveSession: Hashable, Sendable {
    public var cluster: LiveCluster
    public var experiments: [LiveExperiment] = []

    public init(cluster: LiveCluster) { self.cluster = cluster }

    public func jobs(_ kind: LiveExperiment.Kind) -> [LiveJob] {
        experiments.filter { $0.kind == kind }.flatMap(\.jobs)
    }
}
