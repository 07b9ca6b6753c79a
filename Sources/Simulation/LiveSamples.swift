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
    public var policy = "fair"

    public init() {}

    public var name: String { mixed > 0 ? "\(mixed) mixed" : "\(prefill) prefill, \(decode) decode" }
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
        /// A workload, as users send it.
        case traffic
    }

    public var kind: Kind
    public var jobs: [LiveJob]

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
