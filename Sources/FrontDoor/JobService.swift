import CoordinatorCore
import Messages
import ServingTypes

/// The coordinator as the front door sees it. Confined to the one event loop that owns the
/// coordinator core: all calls and all sink calls happen on it, and none of them waits.
public protocol JobService: AnyObject {
    /// Draws an id for a job; submissions carry it.
    func makeJobID() -> JobID

    /// Content addresses of the prompt's full blocks for this tenant, or for a salted page space of it.
    func pageIDs(of tokens: [TokenID], tenant: TenantID) -> [PageID]

    /// Answers through the sink: `admitted` or `failed`, then tokens, then `ended`.
    /// With an idempotency key that is known: the same `requestDigest` joins or replays the first
    /// job (the sink gets that job's id and all its tokens), another one fails with `conflict`.
    /// Quota was taken for a submission unless its key is known; should the first job's answer turn out
    /// to be gone, so that it runs anew, the service takes the quota itself.
    func submit(_ submission: JobSubmission, request: JobRequestRecord, sink: any JobSink)

    /// Replays a job's log from an output offset and follows it to its end.
    func attach(_ job: JobID, fromOffset offset: Int, sink: any JobSink)

    /// The client is gone or changed its mind. A job that others still follow, or that was
    /// submitted with `detached`, goes on unless `force`.
    func leave(_ job: JobID, sink: any JobSink)
    func cancel(_ job: JobID)

    /// A stop string ended the text after this many output tokens.
    func stopMatched(_ job: JobID, outputTokens: Int)

    func view(_ job: JobID) -> (view: JobView, request: JobRequestRecord)?
    /// Newest first; a bounded number of ended jobs is remembered.
    func jobs(limit: Int) -> [JobView]
    func snapshot() -> ClusterSnapshot
    /// Drains a worker; false where there is none of that name.
    func drain(_ worker: WorkerID, deadline: TimeSpan) -> Bool

    /// Whether a submission with this key would join or replay a job, or conflict with it: it needs no quota.
    func knows(key: String, of tenant: TenantID) -> Bool
    /// Takes a request from the tenant's quotas, or says why it cannot be had. What its jobs do not
    /// use of the tokens comes back when they end.
    func takeQuota(_ tenant: TenantID, jobs: Int, tokens: Int) -> ServingError?
    /// Tokens that were taken for jobs that were never submitted.
    func giveBackQuota(_ tenant: TenantID, tokens: Int)
    func quota(of tenant: TenantID) -> QuotaState
    /// Shares, counters and latencies of the tenants, over the last `window`.
    func tenants(over window: TimeSpan) -> TenantTable
    /// What is set for this tenant alone.
    func settings(of tenant: TenantID) -> TenantSettings
    /// In force at once. `done` comes once they are where a restart finds them, where there is a ledger.
    func set(
        _ settings: TenantSettings, of tenant: TenantID, done: @escaping @Sendable (ServingError?) -> Void
    ) throws(ServingError)

    /// Whether at least one worker per needed phase serves; else why not, in one sentence.
    var readiness: Readiness { get }
    /// Monotonic, for stamps and deadlines; and what the wall clock says, to show only.
    var now: Instant { get }
    var wallClockSeconds: Int64 { get }
}

public enum Readiness: Hashable, Sendable {
    case ready
    case notReady(String)
    case draining
}

/// What must be kept of a request to replay its answer: never the prompt's text.
public struct JobRequestRecord: Hashable, Sendable {
    /// `chat` or `completion`, decides the shape of a replay.
    public var kind: Kind
    public var model: String
    public var created: Int64
    /// Over the request's body; tells a repeated request from another one under the same key.
    public var digest: PageID
    public var stopStrings: [String]
    /// Tokens that end the text and are not part of it.
    public var stopTokens: [TokenID]
    public var skipsSpecialTokens: Bool
    /// Goes on when its client disconnects.
    public var detached: Bool

    public enum Kind: String, Hashable, Sendable, CaseIterable {
        case chat
        case completion
    }

    public init(
        kind: Kind, model: String, created: Int64, digest: PageID, stopStrings: [String], detached: Bool,
        stopTokens: [TokenID] = [], skipsSpecialTokens: Bool = true
    ) {
        self.kind = kind
        self.model = model
        self.created = created
        self.digest = digest
        self.stopStrings = stopStrings
        self.stopTokens = stopTokens
        self.skipsSpecialTokens = skipsSpecialTokens
        self.detached = detached
    }
}

/// Follows one job. Called on the coordinator's loop, in order, after `admitted`.
public protocol JobSink: AnyObject {
    func admitted(_ job: JobID)
    func tokens(offset: Int, _ tokens: [SampledToken])
    func ended(_ outcome: JobOutcome)
    /// Refused, or lost for good; nothing follows.
    func failed(_ error: ServingError)
}
