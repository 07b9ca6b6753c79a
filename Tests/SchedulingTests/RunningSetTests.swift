import ServingTypes
import Testing

@testable import Scheduling

struct RunningSetTests {
    private func residents(_ queue: inout SchedulingPolicy, _ count: Int, tenant: (Int) -> String) -> [JobID] {
        for number in 1...count { queue.arrive(number, tenant(number)) }
        return queue.drain().sorted()
    }

    @Test func firstComeFirstServedNeverPreempts() {
        for name in ["fcfs", "vtc"] {
            var queue = policy(name)
            let jobs = residents(&queue, 6) { $0 > 3 ? "b" : "a" }
            let first = queue.runningSet(of: Array(jobs.suffix(3)), slots: 3, at: .zero)
            #expect(Set(first) == Set(jobs.suffix(3)))
            queue.charge(TenantID("b"), outputTokens: 100_000)
            #expect(Set(queue.runningSet(of: jobs, slots: 3, at: .zero)) == Set(first), "\(name)")
            #expect(queue.runningSet(of: Array(jobs.prefix(4)), slots: 3, at: .zero).contains(jobs[3]), "\(name)")
        }
    }

    @Test func noMoreRunThanThereAreSlotsAndNoSlotStaysEmpty() {
        for seed in UInt64(0)..<40 {
            var random = SeededGenerator(seed: seed)
            let name = PolicyConfiguration.names[random.pick(0...PolicyConfiguration.names.count - 1)]
            var queue = policy(name) { $0.theta = 10 }
            let jobs = residents(&queue, random.pick(1...12)) { "t\($0 % 3)" }
            for step in 0..<30 {
                let slots = random.pick(0...6)
                let now = Instant.zero + .milliseconds(Int64(step) * 100)
                let chosen = queue.runningSet(of: jobs, slots: slots, at: now)
                #expect(chosen.count == min(slots, jobs.count), "seed \(seed) \(name)")
                #expect(Set(chosen).count == chosen.count && Set(chosen).isSubset(of: jobs), "seed \(seed) \(name)")
                for job in chosen {
                    queue.served(job, for: .milliseconds(7), nextIteration: .milliseconds(1))
                    queue.produced(job, tokens: 1)
                }
            }
        }
    }

    @Test func aYoungJobPreemptsAnOldOneInTheFeedbackQueue() {
        var queue = policy("mlfq")
        let jobs = residents(&queue, 2) { _ in "a" }
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[0]])
        queue.served(jobs[0], for: .milliseconds(10), nextIteration: .milliseconds(1))
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[1]])
    }

    @Test func aPausedJobIsPromotedAfterItsAge() {
        var queue = policy("mlfq") { $0.promotionPeriod = 1 }
        let jobs = residents(&queue, 2) { _ in "a" }
        queue.served(jobs[0], for: .seconds(10), nextIteration: .zero)
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[1]])
        let later = Instant.zero + queue.configuration.promotionAge
        #expect(queue.runningSet(of: jobs, slots: 1, at: later) == [jobs[0]])
        #expect(queue.level(of: jobs[0]) == 0)
    }

    @Test func aRunningTenantKeepsItsSlotUntilItIsThetaAhead() {
        var queue = policy("fair") { $0.theta = 50 }
        let jobs = residents(&queue, 2) { $0 == 1 ? "a" : "b" }
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[0]])
        var swaps = 0
        for _ in 0..<24 {
            queue.charge(TenantID("a"), outputTokens: 1)
            if queue.runningSet(of: jobs, slots: 1, at: .zero) != [jobs[0]] { swaps += 1 }
        }
        #expect(swaps == 0, "48 units are less than theta")
        queue.charge(TenantID("a"), outputTokens: 2)
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[1]])
    }

    /// Property 13 of scheduling.md: among backlogged tenants the gap stays within theta + u, and
    /// it comes near that bound.
    @Test func backloggedTenantsStayWithinThetaAndOneCharge() {
        var worst = 0.0
        for seed in UInt64(0)..<30 {
            var random = SeededGenerator(seed: seed)
            let theta = Int64([0, 40, 200][random.pick(0...2)])
            var queue = policy(random.chance(50) ? "fair" : "fair-mlfq") { $0.theta = theta }
            let tenants = random.pick(2...5)
            let jobs = residents(&queue, tenants * 4) { "t\($0 % tenants)" }
            let slots = random.pick(1...tenants * 2)
            for step in 0..<400 {
                for job in queue.runningSet(of: jobs, slots: slots, at: .zero + .milliseconds(Int64(step))) {
                    queue.served(job, for: .milliseconds(3), nextIteration: .milliseconds(1))
                    queue.produced(job, tokens: 1)
                }
                let values = (0..<tenants).map { queue.virtualCounter(of: TenantID("t\($0)")) }
                let gap = (values.max() ?? 0) - (values.min() ?? 0)
                #expect(gap <= Double(theta + 2), "seed \(seed) step \(step)")
                worst = max(worst, gap / Double(theta + 2))
            }
        }
        #expect(worst >= 0.9)
    }

    @Test func theFeedbackQueueAloneIsNotFair() {
        var queue = policy("mlfq")
        let jobs = residents(&queue, 5) { $0 == 1 ? "a" : "b" }
        for step in 0..<400 {
            for job in queue.runningSet(of: jobs, slots: 1, at: .zero + .milliseconds(Int64(step))) {
                queue.served(job, for: .milliseconds(3), nextIteration: .milliseconds(1))
                queue.produced(job, tokens: 1)
            }
        }
        #expect(queue.virtualCounter(of: TenantID("b")) > 2 * queue.virtualCounter(of: TenantID("a")))
    }

    @Test func oneTenantMakesTheFairShareItsInnerPolicy() {
        for (outer, inner) in [("fair", "fcfs"), ("fair-mlfq", "mlfq")] {
            for seed in UInt64(0)..<10 {
                var random = SeededGenerator(seed: seed)
                var (first, second) = (
                    policy(outer) { $0.promotionPeriod = 0 }, policy(inner) { $0.promotionPeriod = 0 }
                )
                let jobs = residents(&first, 6) { _ in "a" }
                _ = residents(&second, 6) { _ in "a" }
                for step in 0..<60 {
                    let now = Instant.zero + .milliseconds(Int64(step) * 40)
                    let chosen = first.runningSet(of: jobs, slots: 2, at: now)
                    #expect(Set(chosen) == Set(second.runningSet(of: jobs, slots: 2, at: now)), "seed \(seed) \(outer)")
                    let time = TimeSpan.milliseconds(Int64(random.pick(1...9)))
                    for job in chosen.sorted() {
                        first.served(job, for: time, nextIteration: .milliseconds(1))
                        second.served(job, for: time, nextIteration: .milliseconds(1))
                    }
                }
            }
        }
    }
}
