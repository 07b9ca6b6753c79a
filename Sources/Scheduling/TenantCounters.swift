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

    /// A counter as an earlier process left it.
    mutating func restore(_ number: Int32, value: Int64, lifted: Int64) {
        tenants[Int(number)].value = value
        tenants[Int(number)].lifted = lifted
        place(number)
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
            tenants[Int(number)] = fresh
        } else {
            number = Int32(truncatingIfNeeded: tenants.count)
            tenants.append(fresh)
            waitingPositions.append(SlotHeap<Key>.absent)
            greatestPositions.append(SlotHeap<Key>.absent)
            idlePositions.append(SlotHeap<Key>.absent)
        }
        numbers[tenant] = number
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
        if tenants[Int(number)].waiting == 0 { lastWaiting = .tenant(number) }
        place(number)
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
        let lift = floor.addingClamped(-tenants[Int(number)].value)
        tenants[Int(number)].lifted = tenants[Int(number)].lifted.addingClamped(lift)
        tenants[Int(number)].value = floor
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
        tenants[Int(number)] = tenant
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
