import ServingTypes
import Testing

@testable import Scheduling

struct FairnessTests {
    let a = TenantID("a")
    let b = TenantID("b")
    let c = TenantID("c")

    @Test func chargesAreExactAndWeighted() {
        var vtc = policy("vtc") { $0.weights = [TenantID("b"): 2] }
        vtc.arrive(1, "a")
        vtc.arrive(2, "b")
        for tenant in [a, b] { vtc.charge(tenant, promptTokens: 100, outputTokens: 7) }
        #expect(vtc.virtualCounter(of: a) == 114)
        #expect(vtc.virtualCounter(of: b) == 57)
        vtc.charge(a, promptTokens: -40)
        #expect(vtc.chargedUnits(of: a) == 74)
        #expect(vtc.chargedUnits(of: b) == 114)
    }

    @Test func theTenantWithTheLeastCounterGoesFirst() {
        for name in ["vtc", "fair"] {
            var queue = policy(name)
            for number in 1...3 { queue.arrive(number, "a") }
            queue.arrive(4, "b")
            queue.charge(a, promptTokens: 10)
            #expect(queue.next(at: .zero) == id(4), "\(name)")
            queue.charge(b, promptTokens: 11)
            #expect(queue.next(at: .zero) == id(1), "\(name)")
        }
    }

    @Test func aNewcomerIsLiftedToTheLeastWaitingCounter() {
        var vtc = policy("vtc")
        vtc.arrive(1, "a")
        vtc.charge(a, promptTokens: 500)
        vtc.arrive(2, "b")
        #expect(vtc.virtualCounter(of: b) == 500)
        vtc.charge(b, promptTokens: 100)
        vtc.arrive(3, "c")
        #expect(vtc.virtualCounter(of: c) == 500, "the least of those that wait")
    }

    @Test func withNobodyWaitingANewcomerIsLiftedToWhoLeftLast() {
        var vtc = policy("vtc")
        vtc.arrive(1, "a")
        vtc.charge(a, promptTokens: 500)
        vtc.dispatch(id(1), at: .zero)
        vtc.charge(a, outputTokens: 50)
        vtc.arrive(2, "b")
        #expect(vtc.virtualCounter(of: b) == 600)
        #expect(vtc.chargedUnits(of: b) == 0, "a lift is no charge")
    }

    @Test func aLiftNeverLowersACounter() {
        for seed in UInt64(0)..<20 {
            var random = SeededGenerator(seed: seed)
            var queue = policy(random.chance(50) ? "vtc" : "fair")
            for number in 0..<200 {
                let tenant = TenantID("t\(random.pick(0...3))")
                let before = queue.virtualCounter(of: tenant)
                queue.arrive(number, tenant.name)
                #expect(queue.virtualCounter(of: tenant) >= before, "seed \(seed)")
                queue.charge(tenant, promptTokens: random.pick(1...50))
                if random.chance(70), let job = queue.next(at: .zero) {
                    queue.dispatch(job, at: .zero)
                    queue.leave(job)
                }
            }
        }
    }

    @Test func usingSpareCapacityIsNotPunished() {
        var fair = policy("fair") { $0.theta = 100 }
        fair.arrive(1, "a")
        fair.dispatch(id(1), at: .zero)
        fair.charge(a, outputTokens: 1_000_000)
        fair.arrive(2, "b")
        let gap = fair.virtualCounter(of: a) - fair.virtualCounter(of: b)
        #expect((0...102).contains(gap))
    }

    @Test func anIdleTenantHoardsNoCredit() {
        var fair = policy("fair") { $0.theta = 100 }
        fair.arrive(1, "b")
        fair.leave(id(1))
        fair.arrive(2, "a")
        fair.charge(a, outputTokens: 50_000)
        fair.arrive(3, "b")
        #expect(fair.virtualCounter(of: a) - fair.virtualCounter(of: b) <= 102)
    }

    /// Property 12 of scheduling.md: while two tenants wait, plain counters stay within U, and the
    /// service of two that are always backlogged within 2U.
    @Test func waitingTenantsStayWithinTheBoundOfVirtualTokenCounters() {
        for seed in UInt64(0)..<20 {
            var random = SeededGenerator(seed: seed)
            var vtc = policy("vtc")
            let (inputMax, outputMax, slots) = (60, 40, 6)
            let bound = Double(max(inputMax, 2 * slots * (inputMax + outputMax)))
            var running: [(job: JobID, tenant: TenantID, left: Int)] = []
            var number = 0
            func refill() {
                for tenant in [a, b, c] {
                    number += 1
                    vtc.arrive(number, tenant.name)
                }
            }
            for _ in 0..<60 { refill() }
            for step in 0..<150 {
                while running.count < slots, let job = vtc.next(at: .zero), let name = vtc.tenant(of: job) {
                    let tenant = TenantID(name)
                    vtc.dispatch(job, at: .zero)
                    let short = tenant == a
                    vtc.charge(tenant, promptTokens: random.pick(1...(short ? 8 : inputMax)))
                    running.append((job, tenant, random.pick(1...(short ? 4 : outputMax))))
                }
                for index in running.indices {
                    running[index].left -= 1
                    vtc.charge(running[index].tenant, outputTokens: 1)
                }
                for done in running where done.left == 0 { vtc.leave(done.job) }
                running.removeAll { $0.left == 0 }
                refill()
                let values = [a, b, c].map { vtc.virtualCounter(of: $0) }
                let gap = (values.max() ?? 0) - (values.min() ?? 0)
                #expect(gap <= bound, "seed \(seed) step \(step)")
            }
        }
    }

    @Test func theTableForgetsIdleTenantsOnly() {
        var fair = policy("fair") { $0.tenantsMax = 3 }
        for number in 0..<10 {
            fair.arrive(number, "t\(number)")
            fair.charge(TenantID("t\(number)"), promptTokens: 5)
            if number > 1 { fair.leave(id(number)) }
        }
        #expect(fair.counters.count == 3)
        for live in ["t0", "t1"] { #expect(fair.counters.number(of: TenantID(live)) != nil) }
    }
}
