import ServingTypes

/// How much of one quota is left.
public struct QuotaMeter: Hashable, Sendable {
    public var limit: Int
    public var remaining: Int
    /// Until all of it is there again.
    public var full: TimeSpan
}

/// What a tenant is told about its quotas; nil where there is none.
public struct QuotaState: Hashable, Sendable {
    public var requests: QuotaMeter?
    public var tokens: QuotaMeter?

    public init() {}

    /// As OpenAI's clients read them.
    var headers: HeaderList {
        var headers = HeaderList()
        for (name, meter) in [("requests", requests), ("tokens", tokens)] {
            guard let meter else { continue }
            headers.add("x-ratelimit-limit-\(name)", "\(meter.limit)")
            headers.add("x-ratelimit-remaining-\(name)", "\(meter.remaining)")
            headers.add("x-ratelimit-reset-\(name)", Self.duration(meter.full))
        }
        return headers
    }

    /// `0s`, `350ms`, `6m0s`.
    static func duration(_ span: TimeSpan) -> String {
        let milliseconds = (span.nanoseconds + 999_999) / 1_000_000
        if milliseconds > 0, milliseconds < 1000 { return "\(milliseconds)ms" }
        let seconds = (milliseconds + 999) / 1000
        return seconds < 60 ? "\(seconds)s" : "\(seconds / 60)m\(seconds % 60)s"
    }
}

/// Buckets of requests and tokens, one pair per tenant: each holds a minute's worth and refills evenly.
/// What is kept is what was used, not what is left: a quota that is changed, or set for a tenant that had
/// none, finds the bucket as full as it would be had it been so before.
public struct TenantQuotas: Sendable {
    private struct Use {
        var requests = 0.0
        var tokens = 0.0
        var at: Instant
    }

    private var uses: [TenantID: Use] = [:]

    public enum Limits {
        /// Tenants whose buckets are not full; further ones begin with full ones.
        public static let tenantsMax = 16_384
        static let minute = 60.0
    }

    public init() {}

    /// Takes one request of `jobs` jobs and `tokens` tokens, or says why not and takes nothing.
    /// `live`: the tenant's jobs that have not ended.
    public mutating func take(
        _ tenant: TenantID, _ settings: TenantSettings, jobs: Int, tokens: Int, live: Int, at now: Instant
    ) -> ServingError? {
        if let error = Self.neverFits(tenant, settings, jobs: jobs, tokens: tokens) { return error }
        if let limit = settings.concurrentJobs, live > limit - jobs {
            return Self.refusal(
                "concurrent_jobs",
                "Tenant \(tenant) has \(live) jobs and asks for \(jobs) more; its limit is \(limit) at once.", after: 1)
        }
        guard settings.requestsPerMinute != nil || settings.tokensPerMinute != nil else { return nil }
        var use = use(tenant, settings, at: now)
        if let limit = settings.requestsPerMinute, Double(limit) - use.requests < 1 {
            let wait = (1 + use.requests - Double(limit)) * Limits.minute / Double(limit)
            return Self.refusal(
                "requests_per_minute",
                "Tenant \(tenant) has used its \(limit) requests per minute; the next one is free in"
                    + " \(Self.shown(wait)) s.", after: wait)
        }
        if let limit = settings.tokensPerMinute, Double(limit) - use.tokens < Double(tokens) {
            let left = Double(limit) - use.tokens
            let wait = (Double(tokens) - left) * Limits.minute / Double(limit)
            return Self.refusal(
                "tokens_per_minute",
                "Tenant \(tenant) has \(Int(max(left, 0))) of its \(limit) tokens per minute left and the request asks"
                    + " for \(tokens); they are free in \(Self.shown(wait)) s.", after: wait)
        }
        if settings.requestsPerMinute != nil { use.requests += 1 }
        if settings.tokensPerMinute != nil { use.tokens += Double(tokens) }
        if uses[tenant] == nil, uses.count >= Limits.tenantsMax { makeRoom() }
        uses[tenant] = use
        return nil
    }

    /// What no waiting will let in is the request's fault.
    private static func neverFits(
        _ tenant: TenantID, _ settings: TenantSettings, jobs: Int, tokens: Int
    ) -> ServingError? {
        if let limit = settings.concurrentJobs, jobs > limit {
            return ServingError(
                .invalidValue,
                "The request asks for \(jobs) jobs, one for each choice of each prompt; the quota of tenant \(tenant)"
                    + " is \(limit) at once.", field: "n")
        }
        if let limit = settings.tokensPerMinute, tokens > limit {
            return ServingError(
                .invalidValue,
                "The request asks for \(tokens) tokens, prompt and output together; the quota of tenant \(tenant) is"
                    + " \(limit) per minute.", field: "max_tokens")
        }
        return nil
    }

    /// Tokens that were taken and are not needed.
    public mutating func giveBack(_ tenant: TenantID, tokens: Int) {
        guard tokens > 0, let used = uses[tenant]?.tokens else { return }
        uses[tenant]?.tokens = max(used - Double(tokens), 0)
    }

    public func state(_ tenant: TenantID, _ settings: TenantSettings, at now: Instant) -> QuotaState {
        let use = use(tenant, settings, at: now)
        var state = QuotaState()
        state.requests = settings.requestsPerMinute.map { Self.meter($0, used: use.requests) }
        state.tokens = settings.tokensPerMinute.map { Self.meter($0, used: use.tokens) }
        return state
    }

    /// What has not flown back yet. Without a quota nothing is used.
    private func use(_ tenant: TenantID, _ settings: TenantSettings, at now: Instant) -> Use {
        guard let known = uses[tenant] else { return Use(at: now) }
        let minutes = max((now - known.at).seconds, 0) / Limits.minute
        func left(_ used: Double, _ limit: Int?) -> Double { limit.map { max(used - minutes * Double($0), 0) } ?? 0 }
        return Use(
            requests: left(known.requests, settings.requestsPerMinute),
            tokens: left(known.tokens, settings.tokensPerMinute), at: now)
    }

    /// Forgets the half that was looked at longest ago: their buckets are the fullest.
    private mutating func makeRoom() {
        let kept = uses.sorted { $0.value.at > $1.value.at }.prefix(Limits.tenantsMax / 2)
        uses = Dictionary(uniqueKeysWithValues: kept.map { ($0.key, $0.value) })
    }

    private static func meter(_ limit: Int, used: Double) -> QuotaMeter {
        QuotaMeter(
            limit: limit, remaining: max(Int(Double(limit) - used), 0),
            full: TimeSpan(seconds: used * Limits.minute / Double(max(limit, 1))))
    }

    private static func refusal(_ field: String, _ message: String, after seconds: Double) -> ServingError {
        ServingError(
            .rateLimited, message, field: field,
            retryAfterSeconds: max(1, Int(min(seconds, 86_400).rounded(.up))))
    }

    private static func shown(_ seconds: Double) -> String { "\((seconds * 10).rounded(.up) / 10)" }
}
