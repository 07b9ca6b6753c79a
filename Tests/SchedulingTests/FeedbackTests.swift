import ServingTypes
import Testing

@testable import Scheduling

/// Properties 6 and 7 of scheduling.md §6: the feedback queue, as in the paper and as in its artifact.
struct FeedbackTests {
    @Test func withAFlatProfileBelowTheFirstQuantumEveryJobJoinsLevelZero() {
        var queue = policy("mlfq-artifact")
        for number in 1...20 {
            queue.arrive(number, prefill: .milliseconds(2))
            #expect(queue.level(of: id(number)) == 0)
        }
    }

    /// Property 7: a level falls unless the job is promoted, attained time starts anew with it, and
    /// who stays on a level is not passed by those that were behind.
    @Test func jobsOfALevelKeepTheirOrder() {
        for seed in UInt64(0)..<10 {
            var random = SeededGenerator(seed: seed)
            var queue = policy("mlfq") { $0.promotionPeriod = 0 }
            for number in 1...12 { queue.arrive(number, prefill: .milliseconds(Int64(random.pick(0...30)))) }
            let jobs = queue.drain()
            var order: [JobID] = queue.runningSet(of: jobs, slots: jobs.count, at: .zero)
            for step in 0..<100 {
                let levels = Dictionary(uniqueKeysWithValues: jobs.map { ($0, queue.level(of: $0) ?? 0) })
                let served = order.prefix(random.pick(1...4))
                for job in served {
                    queue.served(job, for: .milliseconds(Int64(random.pick(1...20))), nextIteration: .milliseconds(1))
                    #expect((queue.level(of: job) ?? -1) >= (levels[job] ?? 0), "seed \(seed) step \(step)")
                }
                let next = queue.runningSet(of: jobs, slots: jobs.count, at: .zero)
                for level in Set(levels.values) {
                    let stayed = { (job: JobID) in levels[job] == level && queue.level(of: job) == level }
                    #expect(order.filter(stayed) == next.filter(stayed), "seed \(seed) step \(step)")
                }
                let ranks = next.map { queue.level(of: $0) ?? 0 }
                #expect(ranks == ranks.sorted(), "seed \(seed) step \(step)")
                order = next
            }
        }
    }

    /// The artifact pushes survivors and demoted jobs to the front one by one: the order of a batch
    /// turns round with every iteration, and a demoted job precedes those that were there.
    @Test func theArtifactReversesItsBatchWithEveryIteration() {
        var queue = policy("mlfq-artifact")
        for number in 1...4 { queue.arrive(number) }
        let jobs = queue.drain()
        var trace: [[UInt64]] = []
        for step in 0..<8 {
            let chosen = queue.runningSet(of: jobs, slots: 2, at: .zero + .milliseconds(Int64(step) * 4))
            trace.append(chosen.map(\.low))
            for job in chosen { queue.served(job, for: .milliseconds(4), nextIteration: .milliseconds(1)) }
        }
        #expect(trace == golden)
    }

    /// Three iterations of 4 ms exceed the first quantum of 10 ms; level 1 holds 20 ms.
    private let golden: [[UInt64]] = [[1, 2], [2, 1], [1, 2], [3, 4], [4, 3], [3, 4], [4, 3], [3, 4]]

    @Test func theArtifactDemotesOneLevelAndOnlyBeyondTheQuantum() {
        var queue = policy("mlfq-artifact")
        queue.arrive(1)
        queue.dispatch(id(1), at: .zero)
        queue.served(id(1), for: .milliseconds(10), nextIteration: .milliseconds(1))
        #expect(queue.level(of: id(1)) == 0, "not beyond it")
        queue.served(id(1), for: .milliseconds(130), nextIteration: .milliseconds(300))
        #expect(queue.level(of: id(1)) == 1, "one level, though far beyond")
    }

    @Test func theArtifactPromotesAllThatStarveButSeldom() {
        var queue = policy("mlfq-artifact")
        for number in 1...3 { queue.arrive(number) }
        let jobs = queue.drain()
        for job in jobs {
            for _ in 0..<3 { queue.served(job, for: .milliseconds(30), nextIteration: .zero) }
        }
        #expect(jobs.allSatisfy { (queue.level(of: $0) ?? 0) > 0 })
        for step in 1...999 {
            _ = queue.runningSet(of: jobs, slots: 1, at: .zero + .milliseconds(Int64(step) * 10))
            #expect(jobs.allSatisfy { (queue.level(of: $0) ?? 0) > 0 }, "decision \(step)")
        }
        _ = queue.runningSet(of: jobs, slots: 1, at: .zero + .seconds(10))
        #expect(jobs.filter { queue.level(of: $0) == 0 }.count == 2, "those that did not run")
    }

    /// Design D: skip-join order at admission, nothing preempted.
    @Test func designDAdmitsShortPromptsFirstAndPreemptsNothing() {
        var queue = policy("vtc-mlfq") { $0.promotionPeriod = 0 }
        queue.arrive(1, prefill: .milliseconds(500))
        queue.arrive(2, prefill: .milliseconds(5))
        queue.arrive(3, "b", prefill: .milliseconds(900))
        queue.charge(TenantID("a"), promptTokens: 5)
        let order = queue.drain()
        #expect(order == [id(3), id(2), id(1)], "the tenant with less first, then the shorter prompt")
        let first = queue.runningSet(of: [id(1)], slots: 1, at: .zero)
        queue.served(id(1), for: .seconds(9), nextIteration: .zero)
        #expect(queue.runningSet(of: order, slots: 1, at: .zero) == first)
        #expect(!queue.configuration.preemptsRunning)
    }
}
