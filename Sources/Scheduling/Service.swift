import ServingTypes

/// What jobs get: charges to their tenants, lengths to learn from, levels to fall.
extension SchedulingPolicy {
    /// Charges computed prompt tokens and output tokens of no particular job; negative counts take
    /// back what was charged ahead and not computed.
    public mutating func charge(_ tenant: TenantID, promptTokens: Int = 0, outputTokens: Int = 0) {
        guard promptTokens != 0 || outputTokens != 0 else { return }
        charge(admit(tenant), promptTokens, outputTokens)
    }

    /// Charges prompt tokens that are expected to be computed. `settleAhead` follows once it is known how
    /// many were; a tenant's counter that is taken up after a crash is without what is ahead.
    public mutating func chargeAhead(_ tenant: TenantID, promptTokens: Int) {
        let number = admit(tenant)
        counters.ahead(number, prompt: Int64(promptTokens))
        charge(number, promptTokens, 0)
    }

    /// Of what was charged ahead for a job so many tokens were computed.
    public mutating func settleAhead(_ tenant: TenantID, charged: Int, computed: Int) {
        guard charged != 0 || computed != 0 else { return }
        let number = admit(tenant)
        counters.ahead(number, prompt: -Int64(charged))
        charge(number, computed - charged, 0)
    }

    /// The job has brought forth tokens, each of which is told once: charges what is not prepaid.
    public mutating func produced(_ job: JobID, tokens: Int) {
        guard tokens > 0, let slot = slot(of: job) else { return }
        if entries[Int(slot)].due != .max { forgetDue(slot) }
        let covered = Int(entries[Int(slot)].base) + Int(entries[Int(slot)].prepaid)
        let before = Int(entries[Int(slot)].produced)
        let after = before + tokens
        reorder(slot) { $0.produced = Int32(clamping: after) }
        counters.ahead(entries[Int(slot)].tenant, output: Int64(min(before, covered) - min(after, covered)))
        charge(entries[Int(slot)].tenant, 0, max(after, covered) - max(before, covered))
    }

    mutating func charge(_ tenant: Int32, _ prompt: Int, _ output: Int) {
        guard prompt != 0 || output != 0 else { return }
        let grown = counters.charge(tenant, prompt: Int64(prompt), output: Int64(output), configuration)
        if prompt > 0 { largestCharge = max(largestCharge, grown) }
        refreshOrder(of: tenant)
    }

    mutating func prepay(_ slot: Int32) {
        let entry = entries[Int(slot)]
        guard !entry.isPrepaid else { return }
        let tokens: Int32
        switch configuration.lengthCharge {
        case .perToken: return
        case .predicted: tokens = predictedLength(of: entry.tenant) ?? 0
        case .known: tokens = max(entry.knownOutput - entry.base, 0)
        }
        entries[Int(slot)].isPrepaid = true
        entries[Int(slot)].prepaid = tokens
        counters.ahead(entry.tenant, output: Int64(tokens))
        charge(entry.tenant, 0, Int(tokens))
    }

    /// Gives back what was charged ahead and not produced.
    mutating func settle(_ entry: Entry) {
        let left = max(Int(entry.base) + Int(entry.prepaid) - Int(entry.produced), 0)
        counters.ahead(entry.tenant, output: -Int64(left))
        charge(entry.tenant, 0, -left)
    }

    /// Mean of the tenant's last completed lengths; nil where there is none.
    func predictedLength(of tenant: Int32) -> Int32? {
        let lengths = counters[tenant].lengths
        guard !lengths.isEmpty else { return nil }
        let sum = lengths.reduce(Int64(0)) { $0 + Int64($1) }
        return Int32(clamping: (sum + Int64(lengths.count) / 2) / Int64(lengths.count))
    }

    mutating func learn(_ entry: Entry) {
        if configuration.inner == .shortestPredicted || configuration.lengthCharge == .predicted {
            counters[entry.tenant].lengths.append(entry.produced)
            if counters[entry.tenant].lengths.count > max(configuration.predictionWindow, 1) {
                counters[entry.tenant].lengths.removeFirst()
            }
        }
        guard configuration.inner == .gittins else { return }
        let promptClass = Int(entry.promptClass)
        lengths.add(Int(entry.produced), promptClass: promptClass, configuration)
        if configuration.separatesTenants {
            if pools[Int(entry.tenant)].lengths == nil { pools[Int(entry.tenant)].lengths = LengthTables() }
            pools[Int(entry.tenant)].lengths?.add(Int(entry.produced), promptClass: promptClass, configuration)
        }
    }

    /// The job was served for a time; its next iteration is expected to take `nextIteration`.
    /// Demotes it once its quantum is spent.
    public mutating func served(_ job: JobID, for time: TimeSpan, nextIteration: TimeSpan) {
        guard configuration.inner == .skipJoin, let slot = slot(of: job) else { return }
        switch configuration.feedback {
        case .paper: demote(slot, after: time, nextIteration: nextIteration)
        case .artifact: pushFront(slot, after: time)
        }
    }

    /// Behind everybody on a level that covers its next iteration.
    private mutating func demote(_ slot: Int32, after time: TimeSpan, nextIteration: TimeSpan) {
        var entry = entries[Int(slot)]
        entry.attained = entry.attained.addingClamped(max(time.nanoseconds, 0))
        let level = Int(entry.level)
        if entry.attained >= configuration.quantum(ofLevel: level).nanoseconds, level < configuration.levelsMax - 1 {
            entry.level = Int32(max(level + 1, configuration.level(covering: nextIteration)))
            entry.attained = 0
            nextPlace += 1
            entry.place = nextPlace
            reorder(slot) { $0 = entry }
        } else {
            entries[Int(slot)].attained = entry.attained
        }
    }

    /// One level at most, and to the front, demoted or not.
    private mutating func pushFront(_ slot: Int32, after time: TimeSpan) {
        frontPlace -= 1
        var entry = entries[Int(slot)]
        entry.place = frontPlace
        entry.attained = entry.attained.addingClamped(max(time.nanoseconds, 0))
        let level = Int(entry.level)
        if entry.attained > configuration.quantum(ofLevel: level).nanoseconds, level < configuration.levelsMax - 1 {
            entry.level += 1
            entry.attained = 0
        }
        reorder(slot) { $0 = entry }
    }
}
