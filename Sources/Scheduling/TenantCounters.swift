import ServingTypes

/// Virtual token counters, exact: one unit is `scale` over the tenant's weight, in integers, so that
/// the sum does not depend on the order of charges. Tenants are numbered while they are remembered.
struct TenantCounters: Sendable {
    static let scale: Int64 = 1 << 16

    struct Tenant: Sendable {
        var name: TenantID
        /// In the order in which tenants became known.
        var birth: Int64
        var value: Int64 = 0
        /// What lifts, not charges, have added.
        var lifted: Int64 = 0
        /// Service units charged, by `promptWeight` and `outputWeight` whatever is counted.
        var charged: Int64 = 0
        var perUnit: Int64
        /// Work of each role since the last fold, where dominant shares are counted.
        var prefillWork: Int64 = 0
        var decodeWork: Int64 = 0
        /// Tokens charged ahead for jobs under way: in `value`, and to be taken back or made good.
        var promptAhead: Int64 = 0
        var outputAhead: Int64 = 0
        /// Which tenant ceased to wait later: greater is later, 0 never.
        var ceasedWaiting: Int64 = 0
        /// Whether it stands in `changed`.
        var isChanged = false
        /// Jobs known, and of these those that make the tenant wait under the policy in force.
        var live = 0
        var waiting = 0
        /// Lengths of the last completed jobs, oldest first.
        var lengths: [Int32] = []
        /// When the last accepted requests were, or will be, let in, oldest first.
        var accepted: [Int64] = []
    }

    /// Order by value, ties by who became known first.
    struct Key: Comparable, Sendable {
        var value: Int64
        var birth: Int64

        static func < (a: Key, b: Key) -> Bool {
            a.value == b.value ? a.birth < b.birth : a.value < b.value
        }
    }

    let tenantsMax: Int
    private(set) var weights: [TenantID: Double]
    private let counting: Counting
    /// Whether counters order tenants, so that they are worth keeping.
    private let areKept: Bool
    /// Tenants whose counter differs from what was taken last, each once.
    private var changed: [Int32] = []
    private var timesCeased: Int64 = 0
    private(set) var tenants: ContiguousArray<Tenant> = []
    private var numbers: [TenantID: Int32] = [:]
    private var free: [Int32] = []
    private var nextBirth: Int64 = 0
    /// Tenants that wait, least counter first; those with jobs, greatest first; those without, least first.
    private var waiting = SlotHeap<Key>()
    private var greatest = SlotHeap<Key>()
    private var idle = SlotHeap<Key>()
    private var waitingPositions: ContiguousArray<Int32> = []
    private var greatestPositions: ContiguousArray<Int32> = []
    private var idlePositions: ContiguousArray<Int32> = []
    /// The tenant that ceased to wait last, or what it had when it was forgotten.
    var lastWaiting: Last?

    enum Last: Sendable {
        case tenant(Int32)
        case forgotten(Int64)
    }

    init(_ configuration: PolicyConfiguration) {
        tenantsMax = max(configuration.tenantsMax, 1)
        weights = configuration.weights
        counting = configuration.counting
        areKept = configuration.separatesTenants
    }

    var count: Int { numbers.count }

    func number(of tenant: TenantID) -> Int32? { numbers[tenant] }

    subscript(_ number: Int32) -> Tenant {
        get { tenants[Int(number)] }
        _modify { yield &tenants[Int(number)] }
    }

    func key(of number: Int32, ahead: Int64 = 0) -> Key {
        let tenant = tenants[Int(number)]
        return Key(value: tenant.value.addingClamped(ahead), birth: tenant.birth)
    }

    func weight(of tenant: TenantID) -> Double {
        let weight = weights[tenant] ?? 1
        return weight > 0 && weight.isFinite ? weight : 1
    }

    /// A tenant's entitlement from now on; what was charged before stays as it is.
    mutating func setWeight(_ weight: Double, of tenant: TenantID) {
        weights[tenant] = weight
        if let number = numbers[tenant] { tenants[Int(number)].perUnit = Self.perUnit(weight: self.weight(of: tenant)) }
    }

    /// A counter as an earlier process left it. What was charged ahead is taken back as if its jobs had
    /// failed: they are charged anew where they run again.
    mutating func restore(_ number: Int32, _ record: CounterRecord, _ configuration: PolicyConfiguration) {
        // Far from where negating or adding would overflow, whatever the file says.
        func sane(_ parts: Int64) -> Int64 { min(max(parts, -(1 << 61)), 1 << 61) }
        change(number) { tenant in
            tenant.value = sane(record.value)
            tenant.lifted = sane(record.lifted)
            tenant.prefillWork = sane(record.prefillWork)
            tenant.decodeWork = sane(record.decodeWork)
            tenant.ceasedWaiting = max(sane(record.ceasedWaiting), 0)
        }
        charge(number, prompt: -sane(record.promptAhead), output: -sane(record.outputAhead), configuration)
        tenants[Int(number)].charged = 0
        timesCeased = max(timesCeased, tenants[Int(number)].ceasedWaiting)
        place(number)
    }

    /// Newcomers whom nobody waits beside are lifted to the tenant that ceased to wait last, if any of
    /// these is known to have done so.
    mutating func restoreLastWaiting() -> Bool {
        let last = numbers.values.max { a, b in
            let (a, b) = (tenants[Int(a)], tenants[Int(b)])
            return (a.ceasedWaiting, a.birth) < (b.ceasedWaiting, b.birth)
        }
        guard let last, tenants[Int(last)].ceasedWaiting > 0 else { return false }
        lastWaiting = .tenant(last)
        return true
    }

    // MARK: What is kept outside

    /// Of every tenant that is remembered, in the order in which they became known.
    var records: [CounterRecord] {
        numbers.values.sorted { tenants[Int($0)].birth < tenants[Int($1)].birth }.map(record)
    }

    func record(_ number: Int32) -> CounterRecord {
        let tenant = tenants[Int(number)]
        var record = CounterRecord(tenant: tenant.name, value: tenant.value, lifted: tenant.lifted)
        (record.prefillWork, record.decodeWork) = (tenant.prefillWork, tenant.decodeWork)
        (record.promptAhead, record.outputAhead) = (tenant.promptAhead, tenant.outputAhead)
        record.ceasedWaiting = tenant.ceasedWaiting
        return record
    }

    /// Counters that have changed since this was last asked, in the order of their first change.
    mutating func takeChanged() -> [CounterRecord] {
        guard !changed.isEmpty else { return [] }
        let records = changed.compactMap { number -> CounterRecord? in
            tenants[Int(number)].isChanged = false
            return numbers[tenants[Int(number)].name] == number ? record(number) : nil
        }
        changed.removeAll(keepingCapacity: true)
        return records
    }

    /// The one way to a counter's state: what changes is to be kept.
    private mutating func change(_ number: Int32, _ body: (inout Tenant) -> Void) {
        body(&tenants[Int(number)])
        guard areKept, !tenants[Int(number)].isChanged else { return }
        tenants[Int(number)].isChanged = true
        changed.append(number)
    }

    /// More (or fewer) tokens are charged ahead.
    mutating func ahead(_ number: Int32, prompt: Int64 = 0, output: Int64 = 0) {
        guard prompt != 0 || output != 0 else { return }
        change(number) { tenant in
            tenant.promptAhead = tenant.promptAhead.addingClamped(prompt)
            tenant.outputAhead = tenant.outputAhead.addingClamped(output)
        }
    }

    static func perUnit(weight: Double) -> Int64 {
        Int64(min(max((Double(scale) / weight).rounded(), 1), Double(1 << 40)))
    }

    /// The greatest counter of a tenant with jobs.
    var top: Int64? { greatest.firstKey.map { -$0.value } }

    // MARK: Coming and going

    /// The tenant's number; a new one takes the place of the idle tenant with the least counter
    /// where the table is full, and is named as forgotten.
    mutating func admit(_ tenant: TenantID) -> (number: Int32, forgotten: [Int32]) {
        if let known = numbers[tenant] { return (known, []) }
        var forgotten: [Int32] = []
        while numbers.count >= tenantsMax, let old = idle.first {
            idle.remove(old, &idlePositions)
            numbers[tenants[Int(old)].name] = nil
            if case .tenant(old) = lastWaiting { lastWaiting = .forgotten(tenants[Int(old)].value) }
            free.append(old)
            forgotten.append(old)
        }
        let fresh = Tenant(name: tenant, birth: nextBirth, perUnit: Self.perUnit(weight: weight(of: tenant)))
        nextBirth += 1
        let number: Int32
        if let reused = free.popLast() {
            number = reused
            let isChanged = tenants[Int(number)].isChanged
            tenants[Int(number)] = fresh
            tenants[Int(number)].isChanged = isChanged
        } else {
            number = Int32(truncatingIfNeeded: tenants.count)
            tenants.append(fresh)
            waitingPositions.append(SlotHeap<Key>.absent)
            greatestPositions.append(SlotHeap<Key>.absent)
            idlePositions.append(SlotHeap<Key>.absent)
        }
        numbers[tenant] = number
        // Of a tenant that was forgotten an older counter may be kept.
        change(number) { _ in }
        place(number)
        return (number, forgotten)
    }

    mutating func joined(_ number: Int32) {
        tenants[Int(number)].live += 1
        place(number)
    }

    mutating func left(_ number: Int32) {
        tenants[Int(number)].live -= 1
        place(number)
    }

    /// One more waiting job. The first one may lift the counter, so that idleness earns no credit;
    /// and, with `slack`, raises it to no more than `slack` below the greatest (the clamp of design
    /// C: using spare capacity is not punished).
    mutating func waits(_ number: Int32, lift: Lift, slack: Int64?) {
        if tenants[Int(number)].waiting == 0 {
            raise(number, to: floor(lift))
            if let slack, let top { raise(number, to: top.addingClamped(-slack)) }
        }
        tenants[Int(number)].waiting += 1
        place(number)
    }

    mutating func waitsNoMore(_ number: Int32) {
        tenants[Int(number)].waiting -= 1
        if tenants[Int(number)].waiting == 0 { ceasesWaiting(number) }
        place(number)
    }

    private mutating func ceasesWaiting(_ number: Int32) {
        if case .tenant(number) = lastWaiting { return }
        lastWaiting = .tenant(number)
        timesCeased += 1
        let order = timesCeased
        change(number) { $0.ceasedWaiting = order }
    }

    private func floor(_ lift: Lift) -> Int64? {
        switch lift {
        case .none: return nil
        case .besideOthers: return waiting.firstKey?.value
        case .whenNobodyWaits: return waiting.firstKey == nil ? lastValue : nil
        case .full: return waiting.firstKey?.value ?? lastValue
        }
    }

    private var lastValue: Int64? {
        switch lastWaiting {
        case .tenant(let last): tenants[Int(last)].value
        case .forgotten(let value): value
        case nil: nil
        }
    }

    private mutating func raise(_ number: Int32, to floor: Int64?) {
        guard let floor, floor > tenants[Int(number)].value else { return }
        change(number) { tenant in
            tenant.lifted = tenant.lifted.addingClamped(floor.addingClamped(-tenant.value))
            tenant.value = floor
        }
    }

    // MARK: Charging

    /// Adds service (negative for a refund of a provisional charge). Answers by how much the
    /// counter has grown, in parts of a unit.
    @discardableResult
    mutating func charge(_ number: Int32, prompt: Int64, output: Int64, _ configuration: PolicyConfiguration) -> Int64 {
        var tenant = tenants[Int(number)]
        let before = tenant.value
        let promptUnits = prompt.multipliedClamped(by: configuration.promptWeight)
        let units = promptUnits.addingClamped(output.multipliedClamped(by: configuration.outputWeight))
        tenant.charged = tenant.charged.addingClamped(units)
        switch counting {
        case .combined:
            tenant.value = tenant.value.addingClamped(units.multipliedClamped(by: tenant.perUnit))
        case .dominantShare(let promptUnits, let outputUnits, let dovetail):
            let base = tenant.value.addingClamped(-max(tenant.prefillWork, tenant.decodeWork))
            let prefill = prompt.multipliedClamped(by: promptUnits).multipliedClamped(by: tenant.perUnit)
            let decode = output.multipliedClamped(by: outputUnits).multipliedClamped(by: tenant.perUnit)
            tenant.prefillWork = tenant.prefillWork.addingClamped(prefill)
            tenant.decodeWork = tenant.decodeWork.addingClamped(decode)
            let dominant = max(tenant.prefillWork, tenant.decodeWork)
            let behind = dominant.addingClamped(-dovetail.multipliedClamped(by: Self.scale))
            tenant.prefillWork = max(tenant.prefillWork, behind)
            tenant.decodeWork = max(tenant.decodeWork, behind)
            tenant.value = base.addingClamped(dominant)
        }
        change(number) { $0 = tenant }
        place(number)
        return tenant.value.addingClamped(-before)
    }

    private mutating func place(_ number: Int32) {
        let tenant = tenants[Int(number)]
        let key = Key(value: tenant.value, birth: tenant.birth)
        if tenant.waiting > 0 {
            waiting.set(number, to: key, &waitingPositions)
        } else {
            waiting.remove(number, &waitingPositions)
        }
        if tenant.live > 0 {
            idle.remove(number, &idlePositions)
            greatest.set(number, to: Key(value: -tenant.value, birth: tenant.birth), &greatestPositions)
        } else {
            greatest.remove(number, &greatestPositions)
            idle.set(number, to: key, &idlePositions)
        }
    }
}
