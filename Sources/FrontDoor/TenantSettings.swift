import ServingTypes

/// What an operator has set for one tenant; nil leaves a thing as it is by default.
public struct TenantSettings: Hashable, Sendable {
    /// Entitlement; tenants without one have 1.
    public var weight: Double?
    /// Requests that a bucket holds, refilled evenly over a minute.
    public var requestsPerMinute: Int?
    /// Prompt tokens and tokens asked for, likewise; what was not brought forth is given back.
    public var tokensPerMinute: Int?
    /// Jobs admitted and not ended.
    public var concurrentJobs: Int?

    public static let weightRange = 0.001...1_000_000.0
    public static let quotaRange = 1...1_000_000_000
    /// Tenants that may have settings.
    public static let tenantsMax = 4096
    /// Stands for every tenant without quotas of its own.
    public static let everybody = TenantID("*")

    public init() {}

    public var isEmpty: Bool { self == TenantSettings() }

    /// These settings, with those of `other` where this one says nothing.
    public func over(_ other: TenantSettings?) -> TenantSettings {
        var merged = self
        merged.weight = weight ?? other?.weight
        merged.requestsPerMinute = requestsPerMinute ?? other?.requestsPerMinute
        merged.tokensPerMinute = tokensPerMinute ?? other?.tokensPerMinute
        merged.concurrentJobs = concurrentJobs ?? other?.concurrentJobs
        return merged
    }

    // MARK: Text

    /// `weight=4,requests-per-minute=60`, as `text` writes it.
    public init(_ text: String) throws(ServingError) {
        for part in text.split(separator: ",") {
            let halves = part.split(separator: "=", maxSplits: 1).map { trimmed($0) }
            guard halves.count == 2 else {
                throw .invalid("tenants", "has \(quotedForPeople(String(part))); it must be NAME=VALUE")
            }
            try set(halves[0], to: halves[1])
        }
    }

    private mutating func set(_ name: String, to value: String) throws(ServingError) {
        switch name {
        case "weight":
            guard let number = Double(value), Self.weightRange.contains(number) else {
                throw .invalid(
                    name,
                    "is \(quotedForPeople(value)); it must be a number from \(Self.weightRange.lowerBound) to"
                        + " \(Int(Self.weightRange.upperBound))")
            }
            weight = number
        case "requests-per-minute": requestsPerMinute = try Self.quota(name, value)
        case "tokens-per-minute": tokensPerMinute = try Self.quota(name, value)
        case "concurrent-jobs": concurrentJobs = try Self.quota(name, value)
        default:
            throw .invalid(
                "tenants",
                "has the setting \(quotedForPeople(name)); it must be weight, requests-per-minute,"
                    + " tokens-per-minute or concurrent-jobs")
        }
    }

    private static func quota(_ name: String, _ value: String) throws(ServingError) -> Int {
        guard let number = Int(value), quotaRange.contains(number) else {
            throw .invalid(
                name,
                "is \(quotedForPeople(value)); it must be an integer from \(quotaRange.lowerBound) to"
                    + " \(quotaRange.upperBound)")
        }
        return number
    }

    /// Everybody has no entitlement: it would be a weight against nobody.
    func checkFits(_ tenant: TenantID) throws(ServingError) {
        guard tenant != Self.everybody || weight == nil else {
            throw .invalid("weight", "is set for '*'; it must be set for one tenant, and is 1 without")
        }
    }

    public var text: String {
        [
            weight.map { "weight=\($0)" }, requestsPerMinute.map { "requests-per-minute=\($0)" },
            tokensPerMinute.map { "tokens-per-minute=\($0)" }, concurrentJobs.map { "concurrent-jobs=\($0)" },
        ].compactMap { $0 }.joined(separator: ",")
    }

    /// `acme:weight=4,requests-per-minute=60;*:concurrent-jobs=8`.
    public static func table(_ text: String) throws(ServingError) -> [TenantID: TenantSettings] {
        var table: [TenantID: TenantSettings] = [:]
        for entry in text.split(separator: ";") where !trimmed(entry).isEmpty {
            let halves = entry.split(separator: ":", maxSplits: 1).map { trimmed($0) }
            guard halves.count == 2, !halves[0].isEmpty else {
                throw .invalid(
                    "tenants", "has \(quotedForPeople(String(entry))); it must be TENANT:NAME=VALUE,NAME=VALUE")
            }
            guard table[TenantID(halves[0])] == nil else {
                throw .invalid("tenants", "names \(quotedForPeople(halves[0])) twice")
            }
            let settings = try TenantSettings(halves[1])
            try settings.checkFits(TenantID(halves[0]))
            table[TenantID(halves[0])] = settings
        }
        guard table.count <= tenantsMax else { throw .tooMany("tenants", table.count, limit: tenantsMax) }
        return table
    }
}
