import ServingTypes

/// What one request came to, in seconds since the run began.
public struct JobRecord: Hashable, Sendable {
    public var tenant: TenantID
    public var arrival: Double
    public var firstToken: Double
    public var end: Double
    public var inputTokens: Int
    public var outputTokens: Int

    public init(
        tenant: TenantID, arrival: Double, firstToken: Double, end: Double, inputTokens: Int, outputTokens: Int
    ) {
        self.tenant = tenant
        self.arrival = arrival
        self.firstToken = firstToken
        self.end = end
        self.inputTokens = inputTokens
        self.outputTokens = outputTokens
    }

    public var timeToFirstToken: Double { firstToken - arrival }
    public var completion: Double { end - arrival }
    /// Completion time over output tokens: FastServe's "per-token latency".
    public var normalized: Double { completion / Double(max(outputTokens, 1)) }
}

/// How much a request costs, in service units.
public enum ServiceCost: Hashable, Sendable {
    /// One per prompt token, two per output token.
    case linear
    /// Milliseconds over ten of an A10G with Llama-2-7B, as VTC's artifact fitted them (scheduling.md §3.4).
    case profiled

    public func units(input: Int, output: Int) -> Double {
        let (x, y) = (Double(input), Double(output))
        switch self {
        case .linear: return x + 2 * y
        case .profiled:
            return 0.21001891 * x + 0.10075395 * y + 0.0039868 * x * y + 0.00324733 * y * y + 1.14601454
        }
    }
}

/// VTC's measure of unfairness (scheduling.md §3.6): at each tick, summed over the tenants, how far a
/// tenant's service in a window falls short of the best served one's, or of its own demand, whichever
/// is nearer. A request's service is spread evenly from its first token to its end.
public struct DiffMetric: Hashable, Sendable {
    public var seconds = 600.0
    public var window = 60.0
    public var shift = 30.0
    public var ticks = 20
    public var cost = ServiceCost.linear

    public init() {}

    /// Units per second, one value per tick.
    public struct Result: Hashable, Sendable {
        public var differences: [Double]
        public var max: Double { differences.max() ?? 0 }
        public var mean: Double {
            differences.isEmpty ? 0 : differences.reduce(0, +) / Double(differences.count)
        }
        public var variance: Double {
            let mean = mean
            return differences.isEmpty
                ? 0 : differences.reduce(0) { $0 + ($1 - mean) * ($1 - mean) } / Double(differences.count)
        }
    }

    public func measure(_ records: [JobRecord]) -> Result {
        let step = (seconds - shift) / Double(Swift.max(ticks, 1))
        return Result(differences: (1..<Swift.max(ticks, 1)).map { difference(records, at: step * Double($0) + shift) })
    }

    /// Service and demand per tenant in the window around `center`, units per second.
    public func rates(_ records: [JobRecord], at center: Double) -> [TenantID: (service: Double, demand: Double)] {
        let (from, to) = (center - window / 2, center + window / 2)
        var rates: [TenantID: (service: Double, demand: Double)] = [:]
        for record in records {
            var rate = rates[record.tenant] ?? (0, 0)
            let units = cost.units(input: record.inputTokens, output: record.outputTokens) / window
            if from <= record.arrival, record.arrival <= to { rate.demand += units }
            let span = record.end - record.firstToken
            if record.end >= 1, span >= 1e-5 {
                let overlap = Swift.max(Swift.min(to, record.end) - Swift.max(from, record.firstToken), 0)
                rate.service += units * overlap / span
            }
            rates[record.tenant] = rate
        }
        return rates
    }

    private func difference(_ records: [JobRecord], at center: Double) -> Double {
        let rates = rates(records, at: center)
        let most = rates.values.map(\.service).max() ?? 0
        return rates.sorted { $0.key < $1.key }.reduce(0) { sum, tenant in
            let (service, demand) = tenant.value
            return sum + Swift.min(most - service, abs(demand - service))
        }
    }
}
