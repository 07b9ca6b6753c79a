import ServingTypes

/// A tenant's virtual counter as it can be kept outside, in parts of a unit: all that orders it.
public struct CounterRecord: Hashable, Sendable {
    public var tenant: TenantID
    public var value: Int64
    /// What of it lifts, not charges, have added.
    public var lifted: Int64
    /// Work of each role since the last fold, where dominant shares are counted.
    public var prefillWork: Int64 = 0
    public var decodeWork: Int64 = 0
    /// Tokens that `value` holds though they are only expected, of jobs under way. Whoever takes the
    /// counter up takes them back; less than none are tokens that came after the record was made.
    public var promptAhead: Int64 = 0
    public var outputAhead: Int64 = 0
    /// The tenant with the greatest ceased to wait last: newcomers are lifted to it. 0: never.
    public var ceasedWaiting: Int64 = 0

    public init(tenant: TenantID, value: Int64, lifted: Int64) {
        self.tenant = tenant
        self.value = value
        self.lifted = lifted
    }
}

/// What outlives the process: counters, and the weights that an operator sets while it runs.
extension SchedulingPolicy {
    /// Of every tenant that is remembered, in the order in which they became known.
    public var counterRecords: [CounterRecord] { counters.records }

    /// Counters that have changed since this was last asked; none where counters order nobody. Whoever
    /// keeps them after each event has at any time all that a successor needs.
    public mutating func takeChangedCounters() -> [CounterRecord] { counters.takeChanged() }

    /// Tells counters that can be compared from others: by what they count and by how much. Nil where
    /// counters order nobody.
    public var countingTag: Int64? {
        guard configuration.separatesTenants else { return nil }
        var words = [configuration.promptWeight, configuration.outputWeight, TenantCounters.scale]
        if case .dominantShare(let prompt, let output, let dovetail) = configuration.counting {
            words += [1, prompt, output, dovetail]
        }
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for word in words { hash = (hash ^ UInt64(bitPattern: word)) &* 0x0000_0100_0000_01B3 }
        return Int64(bitPattern: hash)
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
            counters.restore(number, record, configuration)
        }
        if !counters.restoreLastWaiting(), let lastWaiting { counters.lastWaiting = .forgotten(lastWaiting) }
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
}
