import Messages
import ServingTypes

/// A live job: its lifecycle, its token log and what its failures have cost so far.
struct Job: Sendable {
    let submission: JobSubmission
    /// Place by admission.
    let sequence: UInt64
    let deadline: Instant
    /// Of the last dispatch; zero before the first.
    var attempt: Attempt
    var phase: Phase = .queued
    var dispatch: Dispatch?
    /// When the coordinator's timer looks at it.
    var timerAt = Instant(nanoseconds: .max)
    /// Every output token, appended before it is emitted (design §4).
    var log: [SampledToken]
    var lastTokenAt: Instant?
    /// Names of the full blocks of prompt and log, as far as known.
    var names: [PageID]
    var usage = JobUsage()
    var stamps: JobStamps
    var route = JobRoute()

    /// Workers that refused in this round, those that never can, and those of the last failure.
    var refusedBy: [WorkerID] = []
    var unfit: [WorkerID] = []
    var avoided: [WorkerID] = []
    var refusals = 0
    var transferFailures = 0
    /// Requeues since the last new token.
    var redispatches = 0
    /// Processes that died under the job at output length `deathPosition`, and their number in all.
    var deaths: [WorkerRef] = []
    var deathPosition = -1
    var deathsTotal = 0

    /// Prompt tokens charged, the last word of it once settled.
    var chargedPrompt = 0
    var computedPrompt = 0
    var promptSettled = false
    /// Output tokens that an earlier coordinator has charged.
    var accountedOutput = 0
    /// Whose job took its memory: pays for what must be computed again for it.
    var displacedBy: TenantID?
    /// What it takes up of the bridge while it is there.
    var bridgeUnits = 0

    /// Nobody's: what a free place in the table of jobs holds.
    static let vacant = Job(
        JobSubmission(
            job: JobID(high: 0, low: 0), tenant: TenantID(""), promptTokens: [], pageIDs: [],
            sampling: SamplingParameters()), sequence: 0, attempt: Attempt(0), deadline: .zero, at: .zero)

    init(_ submission: JobSubmission, sequence: UInt64, attempt: Attempt, deadline: Instant, at now: Instant) {
        self.submission = submission
        self.sequence = sequence
        self.attempt = attempt
        self.deadline = deadline
        log = submission.emitted
        names = submission.pageIDs
        stamps = JobStamps(received: now)
        usage.promptTokens = submission.promptTokens.count
        usage.outputTokens = log.count
        if let accounted = submission.accounted {
            usage.computedTokens = accounted.computedTokens
            usage.cachedTokens = accounted.cachedTokens
            usage.recomputedTokens = accounted.recomputedTokens
            promptSettled = accounted.computedTokens + accounted.cachedTokens > 0
            accountedOutput = accounted.outputTokens
        }
    }

    var id: JobID { submission.job }
    var tenant: TenantID { submission.tenant }
    var pageSpace: TenantID { submission.pageSpace }
    var promptTokens: Int { submission.promptTokens.count }
    var sequenceTokens: Int { promptTokens + log.count }
    var transfer: TransferID { TransferID(job: id, attempt: attempt) }
    /// Prompt and the tokens already given: what a worker starts from.
    var sequenceSoFar: [TokenID] { submission.promptTokens + log.map(\.token) }

    /// How the log ends the job by itself.
    var endOfLog: FinishReason? {
        if let last = log.last, submission.sampling.stopTokens.contains(last.token) { return .stop }
        return log.count >= submission.sampling.maxTokens ? .length : nil
    }

    /// Appends what is new of the tokens from `offset` on; the attempt has then proven itself.
    mutating func append(_ tokens: [SampledToken], from offset: Int) -> Appended {
        guard offset >= 0, offset <= log.count else { return .gap }
        let known = min(log.count - offset, tokens.count)
        let start = log.count
        var taken = known
        while taken < tokens.count, log.isEmpty || endOfLog == nil {
            log.append(tokens[taken])
            taken += 1
        }
        usage.outputTokens = log.count
        if taken > known {
            redispatches = 0
            avoided = []
            transferFailures = 0
        }
        let fresh = known == 0 && taken == tokens.count ? tokens : Array(tokens[known..<taken])
        return .appended(from: start, fresh: fresh, repeated: known)
    }

    enum Appended {
        /// Tokens are missing before these.
        case gap
        case appended(from: Int, fresh: [SampledToken], repeated: Int)
    }

    /// Marks the lifecycle's edges that new tokens are.
    mutating func stampTokens(from start: Int, count: Int, at now: Instant, due: Instant) -> TokenMarks {
        var marks = TokenMarks()
        marks.gap = lastTokenAt.map { now - $0 }
        lastTokenAt = now
        if start == 0 {
            if stamps.firstToken == nil { stamps.firstToken = now }
            marks.firstTokenAfter = now - stamps.received
        }
        if start <= 1, start + count >= 2, stamps.secondToken == nil { stamps.secondToken = now }
        guard case .decoding(var residence) = phase else { return marks }
        dispatch?.due = due
        guard !residence.hasStepped else { return marks }
        residence.hasStepped = true
        phase = .decoding(residence)
        if residence.local, stamps.firstToken == nil || stamps.decoding == nil { stamps.decoding = now }
        marks.provenWorker = residence.worker.id
        return marks
    }

    /// What the tokens' coming means beyond the job.
    struct TokenMarks {
        var gap: TimeSpan?
        /// Since the job's arrival, where the first token is among them.
        var firstTokenAfter: TimeSpan?
        /// A worker that has brought forth its first token for this attempt.
        var provenWorker: WorkerID?
    }
}

/// One attempt's books.
struct Dispatch: Sendable {
    /// Output tokens before this attempt, and tokens of the whole sequence it starts from.
    var base: Int
    var sequenceTokens: Int
    /// Blocks that the decode worker was asked for beyond those it was thought to hold.
    var blocks: Int
    /// When something must have happened.
    var due: Instant
    var sentAt: Instant
    /// Of the sequence, as far as reported: computed or cached, and cached.
    var reachedTokens = 0
    var cachedTokens = 0
    var computedTokens = 0
    var prefillReported = false
    var commitCounted = false
}

/// The lifecycle with its data. Forward only; a retry is a new attempt.
enum Phase: Sendable {
    case queued
    /// Out of the queue until an instant: refused or failed a moment ago.
    case held(until: Instant)
    /// `ReservePages` is with D.
    case reserving(Pairing)
    /// `StartDecode` is with the worker.
    case starting(WorkerRef)
    /// D has reserved, `AssignPrefill` is with P.
    case assigned(Pairing)
    case prefilling(Pairing)
    /// The first token is out, pages are under way.
    case transferring(Pairing)
    case decoding(Residence)

    var isWaiting: Bool {
        switch self {
        case .queued, .held: true
        case .reserving, .starting, .assigned, .prefilling, .transferring, .decoding: false
        }
    }

    /// The worker that has been asked for room and has not said yes yet.
    var askedForRoom: WorkerRef? {
        switch self {
        case .reserving(let pair): pair.decode
        case .starting(let worker): worker
        case .queued, .held, .assigned, .prefilling, .transferring, .decoding: nil
        }
    }

    /// Workers that hold something of the job, P first.
    var workers: [WorkerRef] {
        switch self {
        case .queued, .held: []
        case .reserving(let pair), .assigned(let pair), .prefilling(let pair), .transferring(let pair):
            [pair.prefill, pair.decode]
        case .starting(let worker): [worker]
        case .decoding(let residence): [residence.worker]
        }
    }

    var decodeWorker: WorkerRef? {
        switch self {
        case .queued, .held: nil
        case .reserving(let pair), .assigned(let pair), .prefilling(let pair), .transferring(let pair): pair.decode
        case .starting(let worker): worker
        case .decoding(let residence): residence.worker
        }
    }

    /// The worker that was told of the job so far: P hears of it only once D has reserved.
    var informedWorkers: [WorkerRef] {
        if case .reserving(let pair) = self { return [pair.decode] }
        return workers
    }
}

struct Pairing: Sendable {
    var prefill: WorkerRef
    var decode: WorkerRef
    /// D has committed, though P's first token has not come yet.
    var committed = false
    /// D's steps that came before P's first token.
    var early: [TokenStep] = []
}

struct Residence: Sendable {
    var worker: WorkerRef
    /// Prefilled there as well.
    var local: Bool
    /// By the last plan.
    var running = true
    /// Brought forth a token in this attempt.
    var hasStepped = false
    /// Its pages lie in the host tier, or are on their way: no token comes, and none is missed.
    var isAway = false
}

/// A job that is over, kept for attach and list.
struct EndedJob: Sendable {
    var sequence: UInt64
    var outcome: JobOutcome
    var log: [SampledToken]
}
