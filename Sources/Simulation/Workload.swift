import ServingTypes

/// One request of a recorded workload.
public struct TraceEntry: Hashable, Sendable {
    public var arrivalSeconds: Double
    public var tenant: String
    public var inputTokens: Int
    public var outputTokens: Int
    /// Names of the prompt's leading stretches of `stretchTokens` tokens: equal names are equal tokens.
    public var stretches: [UInt64]

    public init(
        arrivalSeconds: Double, tenant: String, inputTokens: Int, outputTokens: Int, stretches: [UInt64] = []
    ) {
        self.arrivalSeconds = arrivalSeconds
        self.tenant = tenant
        self.inputTokens = inputTokens
        self.outputTokens = outputTokens
        self.stretches = stretches
    }
}

/// Which requests come, and when.
public struct Workload: Sendable {
    /// Requests in all; of a trace, at most.
    public var jobs = 1000
    /// Requests per second; 0: all at once.
    public var rate = 1.0
    public var arrivals = ArrivalProcess.poisson
    public var input = LengthDistribution.lognormal(mean: 136, variation: 1.5)
    public var output = LengthDistribution.lognormal(mean: 256, variation: 0.8)
    /// Requests are spread over so many tenants, uniformly.
    public var tenants = 1
    /// Longest prompt, and longest output, that is drawn.
    public var inputMax = 1 << 15
    public var outputMax = 1 << 13
    /// Recorded requests in place of drawn ones, and how much faster than recorded they come.
    public var trace: [TraceEntry] = []
    public var speed = 1.0
    /// Recorded pairs of lengths from which drawn requests take theirs, instead of `input` and `output`.
    public var lengths: [TraceEntry] = []
    /// Tokens of one stretch of a trace.
    public var stretchTokens = 512

    public init() {}

    /// The requests in order of arrival, one by one; nil after the last.
    public func requests(seed: UInt64) -> () -> SimulatedRequest? {
        trace.isEmpty ? drawn(seed) : recorded(seed)
    }

    private func drawn(_ seed: UInt64) -> () -> SimulatedRequest? {
        var random = SimulationRandom(seed: Hashing.mix(seed ^ 0x776f_726b))
        var (index, time) = (0, 0.0)
        return {
            guard index < jobs else { return nil }
            time += arrivals.gap(index, rate: rate, &random)
            index += 1
            let recorded = random.pick(lengths)
            let count = recorded?.inputTokens ?? input.draw(&random, max: inputMax)
            let length = recorded?.outputTokens ?? output.draw(&random, max: outputMax)
            let tenant = recorded?.tenant ?? (tenants > 1 ? "tenant-\(random.within(0...tenants - 1))" : "default")
            return Self.request(
                at: time, tenant: tenant, prompt: Self.tokens(count, from: Hashing.fold(seed, UInt64(index))),
                length: length)
        }
    }

    private func recorded(_ seed: UInt64) -> () -> SimulatedRequest? {
        var index = 0
        return {
            guard index < min(jobs, trace.count) else { return nil }
            let entry = trace[index]
            index += 1
            var prompt: [TokenID] = []
            prompt.reserveCapacity(entry.inputTokens)
            for stretch in entry.stretches where prompt.count < entry.inputTokens {
                let count = min(stretchTokens, entry.inputTokens - prompt.count)
                prompt += Self.tokens(count, from: Hashing.mix(stretch))
            }
            prompt += Self.tokens(entry.inputTokens - prompt.count, from: Hashing.fold(seed, UInt64(index)))
            return Self.request(
                at: entry.arrivalSeconds / max(speed, 1e-9), tenant: entry.tenant, prompt: prompt,
                length: entry.outputTokens)
        }
    }

    private static func request(at seconds: Double, tenant: String, prompt: [TokenID], length: Int) -> SimulatedRequest
    {
        SimulatedRequest(
            arrival: Instant.zero + TimeSpan(seconds: seconds), tenant: TenantID(tenant), prompt: prompt,
            length: length, maxTokens: 1 << 20)
    }

    private static func tokens(_ count: Int, from name: UInt64) -> [TokenID] {
        var state = name
        return (0..<max(count, 0)).map { _ in
            state &+= 0x9e37_79b9_7f4a_7c15
            return TokenID(UInt32(1 + Hashing.finish(state) % (TokenOracle.vocabulary - 1)))
        }
    }
}
