import BoundedJSON
import CoordinatorCore
import ServingTypes

/// One tenant as `tandem tenants` shows it.
public struct TenantReport: Hashable, Sendable {
    public var tenant: TenantID
    public var settings: TenantSettings
    public var weight: Double
    /// Its part of the weights of those that were active in the window, 0 to 1.
    public var entitledShare = 0.0
    /// Its part of the service units given in the window, 0 to 1.
    public var servedShare = 0.0
    public var servedUnits: Int64 = 0
    public var virtualCounter = 0.0
    public var waitingJobs = 0
    public var runningJobs = 0
    /// In the window, and since the ledger began.
    public var windowTokens = JobUsage()
    public var tokens = JobUsage()
    /// Tokens handed to clients since the ledger began.
    public var streamedTokens: Int64 = 0
    /// Of the last jobs; nil where there is none.
    public var firstTokenMedian: TimeSpan?
    public var firstTokenP99: TimeSpan?
    public var firstTokenSamples = 0

    public init(tenant: TenantID, settings: TenantSettings, weight: Double) {
        self.tenant = tenant
        self.settings = settings
        self.weight = weight
    }

    var json: JSONValue {
        func number(_ value: Int?) -> JSONValue { value.map { .integer(Int64($0)) } ?? .null }
        func milliseconds(_ span: TimeSpan?) -> JSONValue {
            span.map { .number(($0.milliseconds * 1000).rounded() / 1000) } ?? .null
        }
        return [
            "name": .string(tenant.name), "weight": .number(weight), "entitled_share": .number(entitledShare),
            "served_share": .number(servedShare), "served_units": .integer(servedUnits),
            "virtual_counter": .number(virtualCounter), "waiting_jobs": .integer(Int64(waitingJobs)),
            "running_jobs": .integer(Int64(runningJobs)), "window_tokens": Self.tokens(windowTokens),
            "tokens": Self.tokens(tokens), "streamed_tokens": .integer(streamedTokens),
            "ttft_ms": [
                "p50": milliseconds(firstTokenMedian), "p99": milliseconds(firstTokenP99),
                "samples": .integer(Int64(firstTokenSamples)),
            ],
            "quota": [
                "requests_per_minute": number(settings.requestsPerMinute),
                "tokens_per_minute": number(settings.tokensPerMinute),
                "concurrent_jobs": number(settings.concurrentJobs),
            ],
        ]
    }

    private static func tokens(_ usage: JobUsage) -> JSONValue {
        [
            "computed": .integer(Int64(usage.computedTokens)), "cached": .integer(Int64(usage.cachedTokens)),
            "decoded": .integer(Int64(usage.outputTokens)), "recomputed": .integer(Int64(usage.recomputedTokens)),
            "caused": .integer(Int64(usage.causedTokens)),
        ]
    }
}

/// Every tenant that is known, by name.
public struct TenantTable: Sendable {
    public var policy: String
    public var window: TimeSpan
    public var tenants: [TenantReport]

    public init(policy: String, window: TimeSpan, tenants: [TenantReport]) {
        self.policy = policy
        self.window = window
        self.tenants = tenants
    }

    var json: JSONValue {
        [
            "object": "list", "policy": .string(policy), "window_seconds": .number(window.seconds),
            "data": .array(tenants.map(\.json)),
        ]
    }
}

/// Reads `{"tenant": "acme", "weight": 4, "tokens_per_minute": null}`.
struct TenantChange: Sendable {
    var tenant: TenantID
    /// What stays as it is.
    private var kept: TenantSettings
    private var changed = TenantSettings()

    init(_ object: JSONObject, current: (TenantID) -> TenantSettings) throws(ServingError) {
        var fields = FieldReader(object)
        guard let name = try fields.string("tenant") else { throw .missing("tenant") }
        guard (1...Doorkeeper.tenantNameBytesMax).contains(name.utf8.count) else {
            throw .invalid(
                "tenant", "has \(name.utf8.count) bytes; it must have from 1 to \(Doorkeeper.tenantNameBytesMax)")
        }
        tenant = TenantID(name)
        kept = current(tenant)
        let range = TenantSettings.quotaRange
        if object["weight"] != nil { kept.weight = nil }
        changed.weight = try fields.value("weight").map { value throws(ServingError) in
            guard let weight = value.doubleValue else { throw .wrongKind("weight", value, "a number") }
            guard TenantSettings.weightRange.contains(weight) else {
                throw .invalid(
                    "weight",
                    "is \(weight); it must be from \(TenantSettings.weightRange.lowerBound) to"
                        + " \(Int(TenantSettings.weightRange.upperBound))")
            }
            return weight
        }
        if object["requests_per_minute"] != nil { kept.requestsPerMinute = nil }
        changed.requestsPerMinute = try fields.integer("requests_per_minute", in: range)
        if object["tokens_per_minute"] != nil { kept.tokensPerMinute = nil }
        changed.tokensPerMinute = try fields.integer("tokens_per_minute", in: range)
        if object["concurrent_jobs"] != nil { kept.concurrentJobs = nil }
        changed.concurrentJobs = try fields.integer("concurrent_jobs", in: range)
        if let unknown = fields.ignored.first {
            throw .invalid(unknown, "is no setting of a tenant")
        }
        try settings.checkFits(tenant)
    }

    var settings: TenantSettings { changed.over(kept) }
}
