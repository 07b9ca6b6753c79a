import ServingTypes
import Testing

@testable import Scheduling

func id(_ number: Int) -> JobID { JobID(high: 0, low: UInt64(number)) }

func policy(_ name: String, _ change: (inout PolicyConfiguration) -> Void = { _ in }) -> SchedulingPolicy {
    var configuration = PolicyConfiguration(named: name) ?? PolicyConfiguration()
    change(&configuration)
    return SchedulingPolicy(configuration)
}

extension SchedulingPolicy {
    mutating func arrive(
        _ number: Int, _ tenant: String = "a", priority: Int = 0, prefill: TimeSpan = .zero, at now: Instant = .zero
    ) {
        arrive(
            ScheduledJob(job: id(number), tenant: TenantID(tenant), priority: priority, predictedPrefill: prefill),
            at: now)
    }

    func tenant(of job: JobID) -> String? { slot(of: job).map { counters[entries[Int($0)].tenant].name.name } }

    /// Dispatches everything that waits.
    mutating func drain(at now: Instant = .zero) -> [JobID] {
        var order: [JobID] = []
        while let job = next(at: now) {
            dispatch(job, at: now)
            order.append(job)
        }
        return order
    }
}

struct QueueOrderTests {
    @Test func everyPolicyNameReadsBackAsItself() {
        for name in everyName { #expect(PolicyConfiguration(named: name)?.name == name) }
        #expect(Set(PolicyConfiguration.names).isDisjoint(with: PolicyConfiguration.clairvoyantNames))
        #expect(PolicyConfiguration(named: "lottery") == nil)
    }

    @Test func firstComeIsFirstServed() {
        var fcfs = policy("fcfs")
        for (number, tenant) in [(3, "a"), (1, "b"), (2, "a")] { fcfs.arrive(number, tenant) }
        #expect(fcfs.drain() == [id(3), id(1), id(2)])
    }

    @Test func aRequeuedJobKeepsItsPlace() {
        for name in PolicyConfiguration.names {
            var queue = policy(name)
            for number in 1...3 { queue.arrive(number) }
            queue.dispatch(id(1), at: .zero)
            queue.withdraw(id(1))
            queue.requeue(id(1), at: .zero)
            #expect(queue.next(at: .zero) == id(1), "\(name)")
        }
    }

    @Test func aWithdrawnJobIsNotChosenUntilItReturns() {
        for name in PolicyConfiguration.names {
            var queue = policy(name)
            queue.arrive(1)
            queue.arrive(2)
            queue.withdraw(id(1))
            #expect(queue.drain() == [id(2)], "\(name)")
            queue.requeue(id(1), at: .zero)
            #expect(queue.drain() == [id(1)], "\(name)")
            queue.leave(id(1))
            queue.leave(id(2))
            #expect(queue.knownJobs == 0 && queue.waitingJobs == 0, "\(name)")
        }
    }

    @Test func priorityOrdersATenantsJobsAndNoOthers() {
        var fair = policy("fair")
        fair.arrive(1, "a", priority: 5)
        fair.arrive(2, "a", priority: -5)
        fair.arrive(3, "b", priority: -100)
        #expect(fair.drain() == [id(2), id(1), id(3)], "equal counters: tenant a is first by name")
        var fcfs = policy("fcfs")
        fcfs.arrive(1, "a", priority: 5)
        fcfs.arrive(2, "b", priority: -5)
        #expect(fcfs.drain() == [id(1), id(2)])
    }

    @Test func aJobJoinsTheFirstLevelWhoseQuantumCoversItsPrefill() {
        let configuration = PolicyConfiguration(named: "mlfq") ?? PolicyConfiguration()
        var last = 0
        for milliseconds in Int64(1)...3000 {
            let time = TimeSpan.milliseconds(milliseconds)
            let level = configuration.level(covering: time)
            #expect(configuration.quantum(ofLevel: level) >= time)
            #expect(level == 0 || configuration.quantum(ofLevel: level - 1) < time)
            #expect(level >= last)
            last = level
        }
        #expect(configuration.level(covering: .seconds(1 << 40)) == configuration.levelsMax - 1)
    }

    @Test func aShortPromptOvertakesALongOne() {
        var queue = policy("mlfq")
        queue.arrive(1, prefill: .milliseconds(500))
        queue.arrive(2, prefill: .milliseconds(5))
        #expect(queue.drain() == [id(2), id(1)])
    }

    @Test func aJobIsDemotedOnceItsQuantumIsSpent() {
        var queue = policy("mlfq")
        queue.arrive(1, prefill: .milliseconds(5))
        queue.dispatch(id(1), at: .zero)
        queue.served(id(1), for: .milliseconds(9), nextIteration: .milliseconds(1))
        #expect(queue.level(of: id(1)) == 0)
        queue.served(id(1), for: .milliseconds(1), nextIteration: .milliseconds(1))
        #expect(queue.level(of: id(1)) == 1)
        queue.served(id(1), for: .milliseconds(20), nextIteration: .milliseconds(300))
        #expect(queue.level(of: id(1)) == 5, "a level whose quantum covers the next iteration: 320 ms")
        for _ in 0..<40 { queue.served(id(1), for: .seconds(100_000), nextIteration: .zero) }
        #expect(queue.level(of: id(1)) == queue.configuration.levelsMax - 1)
    }

    @Test func anAgedJobIsPromotedWithinTheBudgetAndStarvesWithoutIt() {
        for period in [4, 0] {
            var queue = policy("mlfq") { $0.promotionPeriod = period }
            queue.arrive(1, prefill: .seconds(1))
            var served = false
            for round in 2...40 {
                let now = Instant.zero + .milliseconds(Int64(round) * 100)
                queue.arrive(round, prefill: .milliseconds(1), at: now)
                guard let job = queue.next(at: now) else { continue }
                queue.dispatch(job, at: now)
                served = served || job == id(1)
            }
            #expect(served == (period == 4), "period \(period)")
        }
    }

    @Test func promotionsStayWithinTheirBudget() {
        var queue = policy("mlfq") { $0.promotionPeriod = 4 }
        for number in 1...40 { queue.arrive(number, prefill: .seconds(1)) }
        for number in 41...80 { queue.arrive(number, prefill: .zero) }
        let order = queue.drain(at: .zero + .seconds(10))
        let promoted = order.prefix(40).filter { $0.low <= 40 }.count
        #expect(promoted == 10, "one in four")
        #expect(Set(order).count == 80)
    }
}
