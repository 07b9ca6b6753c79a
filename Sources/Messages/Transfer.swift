import ServingTypes

// Reserving and decoding: C -> D and back.

/// Reserve before push: promises D's slots to one transfer (principle P3).
public struct ReservePages: Hashable, Sendable {
    public var transfer: TransferID
    public var tenant: TenantID
    /// Prompt and (on a resume) the tokens already emitted.
    public var tokens: [TokenID]
    /// How many of `tokens` are the client's prompt.
    public var promptTokens: Int
    /// Content addresses of the full blocks of `tokens`, in order.
    public var pageIDs: [PageID]
    public var sampling: SamplingParameters
    /// Which P may push, and the incarnation of it.
    public var source: WorkerRef
    public var lease: TimeSpan

    public init(
        transfer: TransferID, tenant: TenantID, tokens: [TokenID], promptTokens: Int, pageIDs: [PageID],
        sampling: SamplingParameters, source: WorkerRef, lease: TimeSpan
    ) {
        self.transfer = transfer
        self.tenant = tenant
        self.tokens = tokens
        self.promptTokens = promptTokens
        self.pageIDs = pageIDs
        self.sampling = sampling
        self.source = source
        self.lease = lease
    }
}

/// D keeps `have` and waits for the rest. Block indices count from the start of the sequence; the
/// last one may be a partial block (the tail), which is always wanted.
public struct ReserveAck: Hashable, Sendable {
    public var transfer: TransferID
    /// Blocks that D lacks, ascending.
    public var wanted: [UInt32]
    /// Bytes that P may have on the way before more credit comes.
    public var creditBytes: UInt64

    public init(transfer: TransferID, wanted: [UInt32], creditBytes: UInt64) {
        self.transfer = transfer
        self.wanted = wanted
        self.creditBytes = creditBytes
    }
}

public struct ReserveNack: Hashable, Sendable {
    public var transfer: TransferID
    public var reason: Refusal
    public var freeBlocks: Int

    public init(transfer: TransferID, reason: Refusal, freeBlocks: Int) {
        self.transfer = transfer
        self.reason = reason
        self.freeBlocks = freeBlocks
    }
}

/// Why a worker says no. The page owner decides; the coordinator's view is a hint (P2).
public enum Refusal: String, Hashable, Sendable, CaseIterable {
    case noMemory
    case tooManyJobs
    case draining
    case staleEpoch
    case staleAttempt
    case tooLong
    case unknownTransfer
    case malformed
}

/// Run this job from its tokens on one worker, prefill included: short prompts, mixed mode, and
/// resumption of a job whose worker died.
public struct StartDecode: Hashable, Sendable {
    public var transfer: TransferID
    public var tenant: TenantID
    public var tokens: [TokenID]
    public var promptTokens: Int
    public var pageIDs: [PageID]
    public var sampling: SamplingParameters

    public init(
        transfer: TransferID, tenant: TenantID, tokens: [TokenID], promptTokens: Int, pageIDs: [PageID],
        sampling: SamplingParameters
    ) {
        self.transfer = transfer
        self.tenant = tenant
        self.tokens = tokens
        self.promptTokens = promptTokens
        self.pageIDs = pageIDs
        self.sampling = sampling
    }
}

/// Yes, or a typed no, to a request about one transfer.
public struct TransferReply: Hashable, Sendable {
    public var transfer: TransferID
    /// nil is yes.
    public var refusal: Refusal?
    public var freeBlocks: Int

    public init(transfer: TransferID, refusal: Refusal?, freeBlocks: Int) {
        self.transfer = transfer
        self.refusal = refusal
        self.freeBlocks = freeBlocks
    }
}

/// A plan delta: from the next iteration on, run these and pause those. Unnamed jobs go on as
/// they were; a worker never waits for a plan.
public struct SetRunning: Hashable, Sendable {
    public var run: [TransferID]
    public var pause: [TransferID]
    /// Everybody who decodes there, whom memory is due to first: those that run, most urgent first,
    /// then those that wait, by when each is likely to run next. Where memory is short the worker
    /// writes out from the end and fetches back from the beginning. Empty: the last one holds.
    public var order: [TransferID]
    /// Paused jobs that may take a slot as soon as one falls free, in this order, until the next plan:
    /// the worker need not wait for one. It says who has (`TokenSteps.started`).
    public var standby: [TransferID]
    /// Blocks that a job which waits would take: paused jobs leave for the host tier, from the end of
    /// the order, until so many are free.
    public var wantedBlocks: Int

    public init(
        run: [TransferID], pause: [TransferID], order: [TransferID] = [], standby: [TransferID] = [],
        wantedBlocks: Int = 0
    ) {
        self.run = run
        self.pause = pause
        self.order = order
        self.standby = standby
        self.wantedBlocks = wantedBlocks
    }
}

/// What a decoding worker could take now.
public struct Room: Hashable, Sendable {
    /// Blocks that another job may have.
    public var freeBlocks: Int
    /// Free pages of its host tier.
    public var freeHostPages: Int

    public init(freeBlocks: Int, freeHostPages: Int) {
        self.freeBlocks = freeBlocks
        self.freeHostPages = freeHostPages
    }
}

/// What one iteration of D brought forth.
public struct TokenSteps: Hashable, Sendable {
    /// Counts D's iterations within its epoch.
    public var iteration: UInt64
    public var computeTime: TimeSpan
    public var steps: [TokenStep]
    /// After these steps; nil where they are told again after a while.
    public var room: Room?
    /// Jobs that stood by and have taken slots that fell free.
    public var started: [TransferID]

    public init(
        iteration: UInt64, computeTime: TimeSpan, steps: [TokenStep], room: Room? = nil, started: [TransferID] = []
    ) {
        self.iteration = iteration
        self.computeTime = computeTime
        self.steps = steps
        self.room = room
        self.started = started
    }
}

public struct TokenStep: Hashable, Sendable {
    public var transfer: TransferID
    /// Output offset of `tokens[0]` in the whole job, over all attempts: makes repeats harmless.
    public var offset: Int
    public var tokens: [SampledToken]
    /// Set on the job's last step.
    public var end: StepEnd?
    /// Prompt tokens that this worker computed in this iteration (local prefill), for charging.
    public var prefilledTokens: Int
    /// Prompt tokens found in this worker's prefix cache, reported once with the first token.
    public var cachedTokens: Int
    /// The job's pages left for the host tier, or came back; such a step brings nothing else.
    public var swap: SwapNotice?
    /// With `.evicted`: the job for whose sake memory was taken, who pays for doing the work again.
    public var evictedFor: TransferID?

    public init(
        transfer: TransferID, offset: Int, tokens: [SampledToken], end: StepEnd? = nil, prefilledTokens: Int = 0,
        cachedTokens: Int = 0, swap: SwapNotice? = nil, evictedFor: TransferID? = nil
    ) {
        self.transfer = transfer
        self.offset = offset
        self.tokens = tokens
        self.end = end
        self.prefilledTokens = prefilledTokens
        self.cachedTokens = cachedTokens
        self.swap = swap
        self.evictedFor = evictedFor
    }
}

/// What became of a job's pages while it was decoding.
public enum SwapNotice: Hashable, Sendable {
    /// They are on their way to the host tier: no token will come until they are back.
    case left
    /// They are back; the job could have run for `stall` and did not, if the plan would have had it run.
    case back(stall: TimeSpan)
}

/// How a job's run on a worker ended.
public enum StepEnd: Hashable, Sendable {
    case finished(FinishReason)
    /// The job is at fault; no other worker will do better.
    case failed(ServingError)
    /// The worker gave the job's memory back before it was done; it resumes from its tokens.
    case evicted
}

// Prefill: C -> P and back.

public struct AssignPrefill: Hashable, Sendable {
    public var transfer: TransferID
    public var tenant: TenantID
    public var tokens: [TokenID]
    public var promptTokens: Int
    public var pageIDs: [PageID]
    public var sampling: SamplingParameters
    /// Blocks that the target lacks, ascending (from its ReserveAck).
    public var wanted: [UInt32]
    public var target: WorkerRef
    public var targetHost: String
    public var targetPort: UInt16
    public var path: KVPath
    public var creditBytes: UInt64
    public var lease: TimeSpan
    /// Goes before the prompts that are there, from the next step on, and shares its steps only with others that do.
    public var precedes: Bool

    public init(
        transfer: TransferID, tenant: TenantID, tokens: [TokenID], promptTokens: Int, pageIDs: [PageID],
        sampling: SamplingParameters, wanted: [UInt32], target: WorkerRef, targetHost: String, targetPort: UInt16,
        path: KVPath, creditBytes: UInt64, lease: TimeSpan, precedes: Bool = false
    ) {
        self.transfer = transfer
        self.tenant = tenant
        self.tokens = tokens
        self.promptTokens = promptTokens
        self.pageIDs = pageIDs
        self.sampling = sampling
        self.wanted = wanted
        self.target = target
        self.targetHost = targetHost
        self.targetPort = targetPort
        self.path = path
        self.creditBytes = creditBytes
        self.lease = lease
        self.precedes = precedes
    }
}

/// Which way pages travel.
public enum KVPath: String, Hashable, Sendable, CaseIterable {
    case direct
    case relay
    /// Direct, and through the coordinator where no direct link comes about.
    case auto
}

public struct AssignNack: Hashable, Sendable {
    public var transfer: TransferID
    public var reason: Refusal
    public var freeBlocks: Int

    public init(transfer: TransferID, reason: Refusal, freeBlocks: Int) {
        self.transfer = transfer
        self.reason = reason
        self.freeBlocks = freeBlocks
    }
}

/// A chunk has been computed: progress for the watchdog, work for the charge.
public struct PrefillProgress: Hashable, Sendable {
    public var transfer: TransferID
    /// Tokens of the sequence whose keys and values exist now, cached ones included.
    public var computedTokens: Int
    public var cachedTokens: Int
    public var computeTime: TimeSpan

    public init(transfer: TransferID, computedTokens: Int, cachedTokens: Int, computeTime: TimeSpan) {
        self.transfer = transfer
        self.computedTokens = computedTokens
        self.cachedTokens = cachedTokens
        self.computeTime = computeTime
    }
}

/// The first token exists. Sampling is keyed by (seed, position), so nothing else need travel.
public struct PrefillDone: Hashable, Sendable {
    public var transfer: TransferID
    public var firstToken: SampledToken
    public var cachedTokens: Int

    public init(transfer: TransferID, firstToken: SampledToken, cachedTokens: Int) {
        self.transfer = transfer
        self.firstToken = firstToken
        self.cachedTokens = cachedTokens
    }
}
