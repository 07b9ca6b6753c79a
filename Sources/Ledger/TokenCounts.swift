import ServingTypes

/// Tokens of one job, or sums of many, by what was done with them. While a job lives they only grow.
public struct TokenCounts: Hashable, Sendable {
    /// Prompt tokens computed, each once: charged to the tenant.
    public var computed: Int64 = 0
    /// Prompt tokens whose pages were held: charged to nobody.
    public var cached: Int64 = 0
    /// Output tokens brought forth, each once: charged to the tenant.
    public var decoded: Int64 = 0
    /// Tokens computed again after a loss: charged to nobody.
    public var recomputed: Int64 = 0
    /// Tokens of other jobs computed again because this one took their memory: charged to this one's
    /// tenant (scheduling.md §4.3).
    public var caused: Int64 = 0
    /// Output tokens handed to the client: `decoded` but for those behind a stop string.
    public var streamed: Int64 = 0

    public init(
        computed: Int64 = 0, cached: Int64 = 0, decoded: Int64 = 0, recomputed: Int64 = 0, caused: Int64 = 0,
        streamed: Int64 = 0
    ) {
        self.computed = computed
        self.cached = cached
        self.decoded = decoded
        self.recomputed = recomputed
        self.caused = caused
        self.streamed = streamed
    }

    /// What one job may be said to have: far more than any has, and sums of it stay far from overflow.
    static let range: ClosedRange<Int64> = 0...(1 << 40)

    /// Equal to no counts that a job can have.
    static let unknown = TokenCounts(streamed: -1)

    public static func + (a: TokenCounts, b: TokenCounts) -> TokenCounts { a.combined(b, &+) }
    public static func - (a: TokenCounts, b: TokenCounts) -> TokenCounts { a.combined(b, &-) }
    public static func += (a: inout TokenCounts, b: TokenCounts) { a = a + b }

    /// The greater of each count: what was noted once stays noted.
    public func orMore(_ other: TokenCounts) -> TokenCounts { combined(other, max) }

    private func combined(_ other: TokenCounts, _ rule: (Int64, Int64) -> Int64) -> TokenCounts {
        TokenCounts(
            computed: rule(computed, other.computed), cached: rule(cached, other.cached),
            decoded: rule(decoded, other.decoded), recomputed: rule(recomputed, other.recomputed),
            caused: rule(caused, other.caused), streamed: rule(streamed, other.streamed))
    }
}

/// What is set aside for a job when it is admitted.
public struct Reservation: Hashable, Sendable {
    public var job: JobID
    public var tenant: TenantID
    public var promptTokens: Int64
    /// The most output tokens that it may have.
    public var outputMax: Int64
    /// Seconds since 1970.
    public var startedAt: Int64

    public init(job: JobID, tenant: TenantID, promptTokens: Int64, outputMax: Int64, startedAt: Int64) {
        self.job = job
        self.tenant = tenant
        self.promptTokens = promptTokens
        self.outputMax = outputMax
        self.startedAt = startedAt
    }
}

/// What a job came to. There is one for each admitted job, whatever happens.
public struct Settlement: Hashable, Sendable {
    public var reservation: Reservation
    public var counts: TokenCounts
    /// stop, length, cancelled, an error's code, or `lost` for a job that went with its coordinator.
    public var ending: String
    /// Seconds since 1970.
    public var endedAt: Int64

    public init(_ reservation: Reservation, _ counts: TokenCounts, ending: String, endedAt: Int64) {
        self.reservation = reservation
        self.counts = counts
        self.ending = ending
        self.endedAt = endedAt
    }

    /// Of a job that nobody will finish.
    public static let lost = "lost"
}
