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
public struct TenantQuotas: Sendable {
    private struct Buckets {
        var requests: Double
        var tokens: Double
        var at: Instant
    }

    private var buckets: [TenantID: Buckets] = [:]

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
        if let limit = settings.concurrentJobs, live + jobs > limit {
            return Self.refusal(
                "concurrent_jobs",
                "Tenant \(tenant) has \(live) jobs and asks for \(jobs) more; its limit is \(limit) at once.", after: 1)
        }
        guard settings.requestsPerMinute != nil || settings.tokensPerMinute != nil else { return nil }
        if let limit = settings.tokensPerMinute, tokens > limit {
            return ServingError(
                .invalidValue,
                "The request asks for \(tokens) tokens, prompt and output together; the quota of tenant \(tenant) is"
                    + " \(limit) per minute.", field: "max_tokens")
        }
        var levels = level(tenant, settings, at: now)
        if let limit = settings.requestsPerMinute, levels.requests < 1 {
            let wait = (1 - levels.requests) * Limits.minute / Double(limit)
            return Self.refusal(
                "requests_per_minute",
                "Tenant \(tenant) has used its \(limit) requests per minute; the next one is free in"
                    + " \(Self.shown(wait)) s.", after: wait)
        }
        if let limit = settings.tokensPerMinute, levels.tokens < Double(tokens) {
            let wait = (Double(tokens) - levels.tokens) * Limits.minute / Double(limit)
            return Self.refusal(
                "tokens_per_minute",
                "Tenant \(tenant) has \(Int(levels.tokens)) of its \(limit) tokens per minute left and the request asks"
                    + " for \(tokens); they are free in \(Self.shown(wait)) s.", after: wait)
        }
        levels.requests -= 1
        levels.tokens -= Double(tokens)
        if buckets[tenant] == nil, buckets.count >= Limits.tenantsMax { makeRoom() }
        buckets[tenant] = levels
        return nil
    }

    /// Tokens that were taken and are not needed.
    public mutating func giveBack(_ tenant: TenantID, tokens: Int) {
        guard tokens > 0 else { return }
        buckets[tenant]?.tokens += Double(tokens)
    }

    public func state(_ tenant: TenantID, _ settings: TenantSettings, at now: Instant) -> QuotaState {
        let levels = level(tenant, settings, at: now)
        var state = QuotaState()
        state.requests = settings.requestsPerMinute.map { Self.meter($0, levels.requests) }
        state.tokens = settings.tokensPerMinute.map { Self.meter($0, levels.tokens) }
        return state
    }

    private func level(_ tenant: TenantID, _ settings: TenantSettings, at now: Instant) -> Buckets {
        let requests = Double(settings.requestsPerMinute ?? 0)
        let tokens = Double(settings.tokensPerMinute ?? 0)
        guard let known = buckets[tenant] else { return Buckets(requests: requests, tokens: tokens, at: now) }
        let minutes = max((now - known.at).seconds, 0) / Limits.minute
        return Buckets(
            requests: min(known.requests + minutes * requests, requests),
            tokens: min(known.tokens + minutes * tokens, tokens), at: now)
    }

    /// Forgets the half that was looked at longest ago: their buckets are the fullest.
    private mutating func makeRoom() {
        let kept = buckets.sorted { $0.value.at > $1.value.at }.prefix(Limits.tenantsMax / 2)
        buckets = Dictionary(uniqueKeysWithValues: kept.map { ($0.key, $0.value) })
    }

    private static func meter(_ limit: Int, _ level: Double) -> QuotaMeter {
        let missing = max(Double(limit) - level, 0)
        return QuotaMeter(
            limit: limit, remaining: max(Int(level), 0),
            full: TimeSpan(seconds: missing * Limits.minute / Double(max(limit, 1))))
    }

    private static func refusal(_ field: String, _ message: String, after seconds: Double) -> ServingError {
        ServingError(
            .rateLimited, message, field: field,
            retryAfterSeconds: max(1, Int(min(seconds, 86_400).rounded(.up))))
    }

    private static func shown(_ seconds: Double) -> String { "\((seconds * 10).rounded(.up) / 10)" }
}
