import ServingTypes

/// A tenant's virtual counter as it can be kept outside, in parts of a unit.
public struct CounterRecord: Hashable, Sendable {
    public var tenant: TenantID
    public var value: Int64
    /// What of it lifts, not charges, have added.
    public var lifted: Int64

    public init(tenant: TenantID, value: Int64, lifted: Int64) {
        self.tenant = tenant
        self.value = value
        self.lifted = lifted
    }
}

/// What outlives the process: counters, and the weights that an operator sets while it runs.
extension SchedulingPolicy {
    /// Of every tenant that is remembered, in the order in which they became known.
    public var counterRecords: [CounterRecord] {
        counters.tenants.filter { counters.number(of: $0.name) != nil }.sorted { $0.birth < $1.birth }.map {
            CounterRecord(tenant: $0.name, value: $0.value, lifted: $0.lifted)
        }
    }

    /// Counter of the tenant that ceased to wait last: where newcomers are lifted to.
    public var lastWaitingValue: Int64? {
        switch counters.lastWaiting {
        case .tenant(let number): counters[number].value
        case .forgotten(let value): value
        case nil: nil
        }
    }

    /// Takes up counters that an earlier process left. To be called before any job arrives.
    public mutating func restore(_ records: [CounterRecord], lastWaiting: Int64?) {
        for record in records {
            let number = admit(record.tenant)
            counters.restore(number, value: record.value, lifted: record.lifted)
        }
        if let lastWaiting { counters.lastWaiting = .forgotten(lastWaiting) }
    }

    /// A tenant's entitlement from now on.
    public mutating func setWeight(_ weight: Double, of tenant: TenantID) {
        let number = counters.number(of: tenant)
        let before = number.map(weightParts) ?? 0
        counters.setWeight(weight, of: tenant)
        guard let number, configuration.separatesTenants, !pools[Int(number)].isEmpty else { return }
        waitingParts += weightParts(number) - before
    }

    /// How far a counter of the tenant moves for these tokens, in parts of a unit.
    public func parts(promptTokens: Int64, outputTokens: Int64, of tenant: TenantID) -> Int64 {
        let prompt = promptTokens.multipliedClamped(by: configuration.promptWeight)
        let units = prompt.addingClamped(outputTokens.multipliedClamped(by: configuration.outputWeight))
        return units.multipliedClamped(by: TenantCounters.perUnit(weight: weight(of: tenant)))
    }

    /// Output tokens of a job that are charged and not brought forth.
    public func prepaidTokens(of job: JobID) -> Int {
        guard let slot = slot(of: job) else { return 0 }
        let entry = entries[Int(slot)]
        return max(Int(entry.base) + Int(entry.prepaid) - Int(entry.produced), 0)
    }
}
