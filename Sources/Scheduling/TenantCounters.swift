import ServingTypes

/// Virtual token counters, exact: one unit is `scale` over the tenant's weight, in integers, so that
/// the sum does not depend on the order of charges.
struct TenantCounters: Sendable {
    static let scale: Int64 = 1 << 16

    struct Counter: Sendable {
        var value: Int64 = 0
        /// What lifts, not charges, have added.
        var lifted: Int64 = 0
        var perUnit: Int64
        /// Jobs that make the tenant count as backlogged under the policy in force.
        var backlog = 0
    }

    /// Order by counter, ties by name.
    struct Key: Comparable, Sendable {
        var value: Int64
        var tenant: TenantID

        static func < (a: Key, b: Key) -> Bool {
            a.value == b.value ? a.tenant < b.tenant : a.value < b.value
        }
    }

    let tenantsMax: Int
    let weights: [TenantID: Double]
    private(set) var counters: [TenantID: Counter] = [:]
    /// Backlogged tenants, least counter first and greatest first; and the others.
    private var least = KeyedHeap<TenantID, Key>()
    private var greatest = KeyedHeap<TenantID, Key>()
    private var idle = KeyedHeap<TenantID, Key>()
    /// The last tenant that ceased to be backlogged.
    private var lastBacklogged: TenantID?

    init(tenantsMax: Int, weights: [TenantID: Double]) {
        self.tenantsMax = max(tenantsMax, 1)
        self.weights = weights
    }

    func value(of tenant: TenantID) -> Int64 { counters[tenant]?.value ?? 0 }

    func weight(of tenant: TenantID) -> Double {
        let weight = weights[tenant] ?? 1
        return weight > 0 && weight.isFinite ? weight : 1
    }

    func perUnit(of tenant: TenantID) -> Int64 {
        counters[tenant]?.perUnit ?? Self.perUnit(weight: weight(of: tenant))
    }

    static func perUnit(weight: Double) -> Int64 {
        Int64(min(max((Double(scale) / weight).rounded(), 1), Double(1 << 40)))
    }

    /// One more backlogged job. The first one lifts the counter, so that idleness earns no credit:
    /// to the least backlogged counter, or, where none is backlogged, to that of the last tenant
    /// that was; and, with `slack`, to no more than `slack` below the greatest (the clamp of design
    /// C: using spare capacity is not punished).
    mutating func joined(_ tenant: TenantID, slack: Int64?) {
        var counter = counters[tenant] ?? Counter(perUnit: Self.perUnit(weight: weight(of: tenant)))
        if counter.backlog == 0 {
            let before = counter.value
            if let floor = least.first?.key.value {
                counter.value = max(counter.value, floor)
            } else if let last = lastBacklogged, let floor = counters[last]?.value {
                counter.value = max(counter.value, floor)
            }
            if let slack, let top = greatest.first?.key.value {
                counter.value = max(counter.value, Self.adding(-top, -slack))
            }
            counter.lifted = Self.adding(counter.lifted, Self.adding(counter.value, -before))
        }
        counter.backlog += 1
        counters[tenant] = counter
        place(tenant, counter)
        forgetIdle()
    }

    mutating func left(_ tenant: TenantID) {
        guard var counter = counters[tenant], counter.backlog > 0 else { return }
        counter.backlog -= 1
        counters[tenant] = counter
        if counter.backlog == 0 { lastBacklogged = tenant }
        place(tenant, counter)
    }

    /// Adds units (negative for a refund of a provisional charge).
    mutating func charge(_ tenant: TenantID, units: Int64) {
        guard units != 0 else { return }
        var counter = counters[tenant] ?? Counter(perUnit: Self.perUnit(weight: weight(of: tenant)))
        let (cost, overflow) = units.multipliedReportingOverflow(by: counter.perUnit)
        counter.value = Self.adding(counter.value, overflow ? (units > 0 ? .max : -.max) : cost)
        counters[tenant] = counter
        place(tenant, counter)
        forgetIdle()
    }

    private mutating func place(_ tenant: TenantID, _ counter: Counter) {
        if counter.backlog > 0 {
            idle.remove(tenant)
            least.set(tenant, to: Key(value: counter.value, tenant: tenant))
            greatest.set(tenant, to: Key(value: Self.adding(0, -counter.value), tenant: tenant))
        } else {
            least.remove(tenant)
            greatest.remove(tenant)
            idle.set(tenant, to: Key(value: counter.value, tenant: tenant))
        }
    }

    /// Forgets the idle tenant with the least counter where the table is full: on its return the
    /// lift gives it at least what it had, unless every tenant is idle.
    private mutating func forgetIdle() {
        while counters.count > tenantsMax, let forgotten = idle.removeFirst() {
            counters[forgotten.id] = nil
            if lastBacklogged == forgotten.id { lastBacklogged = nil }
        }
    }

    /// Saturates symmetrically, so that the result can be negated.
    static func adding(_ a: Int64, _ b: Int64) -> Int64 {
        let (sum, overflow) = a.addingReportingOverflow(b)
        return overflow ? (b > 0 ? .max : -.max) : max(sum, -.max)
    }
}
