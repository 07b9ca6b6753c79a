import ServingTypes

/// Constants of placement.
public struct PlacementConfiguration: Hashable, Sendable {
    /// A prompt with fewer uncached tokens on the best decode worker is prefilled there; 0 never.
    public var localPrefillThreshold = 64
    /// Of a page link, to price the pages that must travel.
    public var linkBytesPerSecond = 1e9
    /// Output tokens that a job is assumed to bring, to price a crowded decode worker.
    public var expectedOutputTokens = 64
    /// Seconds added for a worker that this job has just failed on.
    public var avoidancePenalty = 60.0

    public init() {}
}

/// A worker that passed the filter, with what the score needs.
public struct PlacementCandidate: Hashable, Sendable {
    public var worker: WorkerRef
    public var role: WorkerRole
    /// Prompt tokens assigned and not yet computed.
    public var queuedTokens: Int
    /// Jobs that hold or will hold memory there.
    public var residentJobs: Int
    /// Leading tokens of the sequence whose pages it holds.
    public var cachedTokens: Int
    /// Whether this job's last attempt failed here.
    public var avoided: Bool

    public init(
        worker: WorkerRef, role: WorkerRole, queuedTokens: Int, residentJobs: Int, cachedTokens: Int, avoided: Bool
    ) {
        self.worker = worker
        self.role = role
        self.queuedTokens = queuedTokens
        self.residentJobs = residentJobs
        self.cachedTokens = cachedTokens
        self.avoided = avoided
    }
}

/// What is to be placed.
public struct PlacementRequest: Hashable, Sendable {
    public var sequenceTokens: Int
    public var bytesPerToken: Double
    /// Prefill on the decode worker whatever the length: no prefill worker lives, or the way
    /// between two workers has failed for this job.
    public var localOnly: Bool

    public init(sequenceTokens: Int, bytesPerToken: Double, localOnly: Bool) {
        self.sequenceTokens = sequenceTokens
        self.bytesPerToken = bytesPerToken
        self.localOnly = localOnly
    }
}

public enum Placement: Hashable, Sendable {
    case pair(prefill: WorkerRef, decode: WorkerRef)
    case local(WorkerRef)
    /// No candidate has room now.
    case none
}

/// Scores candidates in expected seconds and picks the least; ties go to the earlier candidate, so
/// callers pass them sorted by name. The cost of a pair is a sum of a term of P and a term of D as
/// long as all links are priced alike, so the best of each is the best pair.
public struct PlacementPolicy: Sendable {
    public var configuration: PlacementConfiguration

    public init(_ configuration: PlacementConfiguration) { self.configuration = configuration }

    public func place(
        _ request: PlacementRequest, prefill: [PlacementCandidate], decode: [PlacementCandidate], costs: CostModel
    ) -> Placement {
        let split = best(decode.filter { $0.role == .decode }) { decodeSeconds($0, request, costs) }
        let local = best(decode.filter { runsLocally($0, request) }) {
            prefillSeconds($0, request, costs) + decodePressure($0, costs)
        }
        let source = best(prefill) { prefillSeconds($0, request, costs) }
        guard !request.localOnly, let split, let source else {
            return local.map { .local($0.candidate.worker) } ?? .none
        }
        if let local {
            if local.candidate.role == .decode || local.cost <= split.cost + source.cost {
                return .local(local.candidate.worker)
            }
        }
        return .pair(prefill: source.candidate.worker, decode: split.candidate.worker)
    }

    /// Tokens to be computed: at least one, whatever is cached, since the first token needs logits.
    public static func uncachedTokens(_ candidate: PlacementCandidate, of sequenceTokens: Int) -> Int {
        max(sequenceTokens - candidate.cachedTokens, 1)
    }

    /// Whether a worker of this role that holds nothing of the sequence would compute it where it decodes.
    public func runsLocally(_ role: WorkerRole, _ request: PlacementRequest) -> Bool {
        runsLocally(role, uncached: max(request.sequenceTokens, 1), request)
    }

    private func runsLocally(_ role: WorkerRole, uncached: Int, _ request: PlacementRequest) -> Bool {
        switch role {
        case .mixed: true
        case .prefill: false
        case .decode: request.localOnly || uncached < configuration.localPrefillThreshold
        }
    }

    private func runsLocally(_ candidate: PlacementCandidate, _ request: PlacementRequest) -> Bool {
        let uncached = Self.uncachedTokens(candidate, of: request.sequenceTokens)
        return runsLocally(candidate.role, uncached: uncached, request)
    }

    // MARK: Costs

    /// Expected seconds on a worker that holds nothing of the sequence, as a function of its load: each
    /// grows with both parts of it, and is the very number by which `place` compares.
    public func sourceSeconds(_ load: WorkerLoad, _ request: PlacementRequest, _ costs: CostModel) -> Double {
        prefillSeconds(queued: load.queuedTokens, uncached: max(request.sequenceTokens, 1), penalty: 0, costs)
    }

    public func splitSeconds(_ load: WorkerLoad, _ request: PlacementRequest, _ costs: CostModel) -> Double {
        decodeSeconds(residents: load.jobs, missing: max(request.sequenceTokens, 0), penalty: 0, request, costs)
    }

    public func localSeconds(_ load: WorkerLoad, _ request: PlacementRequest, _ costs: CostModel) -> Double {
        sourceSeconds(load, request, costs) + decodePressure(residents: load.jobs, costs)
    }

    private func prefillSeconds(
        _ candidate: PlacementCandidate, _ request: PlacementRequest, _ costs: CostModel
    ) -> Double {
        prefillSeconds(
            queued: candidate.queuedTokens, uncached: Self.uncachedTokens(candidate, of: request.sequenceTokens),
            penalty: penalty(candidate), costs)
    }

    private func prefillSeconds(queued: Int, uncached: Int, penalty: Double, _ costs: CostModel) -> Double {
        let ahead = Double(queued) * costs.prefillPerToken
        return ahead + costs.prefill(tokens: uncached).seconds + penalty
    }

    private func decodeSeconds(
        _ candidate: PlacementCandidate, _ request: PlacementRequest, _ costs: CostModel
    ) -> Double {
        decodeSeconds(
            residents: candidate.residentJobs, missing: max(request.sequenceTokens - candidate.cachedTokens, 0),
            penalty: penalty(candidate), request, costs)
    }

    private func decodeSeconds(
        residents: Int, missing: Int, penalty: Double, _ request: PlacementRequest, _ costs: CostModel
    ) -> Double {
        let bytes = Double(missing) * request.bytesPerToken
        return bytes / max(configuration.linkBytesPerSecond, 1) + decodePressure(residents: residents, costs) + penalty
    }

    private func decodePressure(_ candidate: PlacementCandidate, _ costs: CostModel) -> Double {
        decodePressure(residents: candidate.residentJobs, costs)
    }

    private func decodePressure(residents: Int, _ costs: CostModel) -> Double {
        Double(residents) * costs.decodePerJob * Double(configuration.expectedOutputTokens)
    }

    private func penalty(_ candidate: PlacementCandidate) -> Double {
        candidate.avoided ? configuration.avoidancePenalty : 0
    }

    private func best(
        _ candidates: [PlacementCandidate], cost: (PlacementCandidate) -> Double
    ) -> (candidate: PlacementCandidate, cost: Double)? {
        var best: (candidate: PlacementCandidate, cost: Double)?
        for candidate in candidates {
            let seconds = cost(candidate)
            if let least = best?.cost, least <= seconds { continue }
            best = (candidate, seconds)
        }
        return best
    }
}
