import ServingTypes
import Testing

@testable import Scheduling

/// Hints inside a tenant, limits of request rates, dominant shares, quotas of the bridge.
struct HintTests {
    private func arrive(
        _ queue: inout SchedulingPolicy, _ number: Int, _ tenant: String = "a", priority: Int = 0, due: Int64? = nil
    ) {
        queue.arrive(
            ScheduledJob(
                job: id(number), tenant: TenantID(tenant), priority: priority, predictedPrefill: .zero,
                due: due.map { .zero + .milliseconds($0) }), at: .zero)
    }

    @Test func theEarliestDueJobOfAPriorityGoesFirst() {
        for name in ["fair", "fair-mlfq", "fair-gittins", "vtc"] {
            var queue = policy(name)
            arrive(&queue, 1)
            arrive(&queue, 2, due: 500)
            arrive(&queue, 3, due: 300)
            arrive(&queue, 4, priority: -1)
            arrive(&queue, 5, priority: 1, due: 100)
            #expect(queue.drain() == [4, 3, 2, 1, 5].map(id), "\(name)")
        }
    }

    @Test func aDueInstantThatHasPassedIsForgotten() {
        for name in ["fair", "fair-gittins"] {
            var queue = policy(name)
            arrive(&queue, 1)
            arrive(&queue, 2, due: 100)
            arrive(&queue, 3, due: 900)
            #expect(queue.drain(at: .zero + .milliseconds(200)) == [3, 1, 2].map(id), "\(name)")
        }
    }

    @Test func aDueInstantCountsUntilTheFirstToken() {
        var queue = policy("fair-mlfq")
        arrive(&queue, 1)
        arrive(&queue, 2, due: 5000)
        let jobs = [id(1), id(2)]
        _ = queue.drain()
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [id(2)])
        queue.produced(id(2), tokens: 1)
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [id(1)])
    }

    /// Never across tenants: whatever hints a tenant gives, the other's share stays what it was.
    @Test func hintsGiveATenantNothingOverAnother() {
        func shares(hints: Bool) -> [String: Int64] {
            var work: [Request] = []
            for number in 0..<200 {
                var request = Request(number: number, tenant: number % 2 == 0 ? "a" : "b", at: 0, input: 10, output: 20)
                if hints, number % 2 == 0 { (request.priority, request.due) = (-100, 1_000_000) }
                work.append(request)
            }
            var subject = engine("fair", slots: 2) { $0.theta = 50 }
            subject.run(work, until: 6000)
            return subject.units
        }
        #expect(shares(hints: true) == shares(hints: false))
    }

    @Test func policiesThatPoolTenantsIgnoreHints() {
        for name in ["fcfs", "mlfq", "gittins", "sjf", "rpm"] {
            var queue = policy(name)
            arrive(&queue, 1, priority: 5)
            arrive(&queue, 2, "b", priority: -5, due: 1)
            #expect(queue.drain() == [id(1), id(2)], "\(name)")
        }
    }

    // MARK: Requests per minute

    @Test func aTenantBeyondItsLimitIsRefusedUntilTheMinuteHasPassed() {
        var queue = policy("rpm") { $0.requestsPerMinute = 3 }
        let tenant = TenantID("a")
        for second in Int64(0)..<3 {
            let now = Instant.zero + .seconds(second)
            #expect(queue.refusal(of: tenant, at: now) == .zero)
            queue.arrive(Int(second), at: now)
        }
        #expect(queue.refusal(of: tenant, at: .zero + .seconds(10)) == .seconds(50))
        #expect(queue.refusal(of: TenantID("b"), at: .zero + .seconds(10)) == .zero)
        #expect(queue.refusal(of: tenant, at: .zero + .seconds(60)) == .zero)
        queue.arrive(9, at: .zero + .seconds(60))
        #expect(queue.refusal(of: tenant, at: .zero + .seconds(60)) == .seconds(1))
    }

    @Test func aQueueOfRequestsLetsThemInMinuteByMinute() {
        var queue = policy("rpm-queue") { $0.requestsPerMinute = 2 }
        for number in 1...5 { queue.arrive(number) }
        queue.arrive(6, "b")
        #expect(queue.refusal(of: TenantID("a"), at: .zero) == .zero)
        #expect(queue.drain(at: .zero) == [1, 2, 6].map(id))
        #expect(queue.knownJobs == 6 && queue.waitingJobs == 0)
        queue.leave(id(3))
        #expect(!queue.wakes(by: .zero + .seconds(59)) && queue.wakes(by: .zero + .seconds(60)))
        #expect(queue.drain(at: .zero + .seconds(60)) == [id(4)])
        #expect(queue.drain(at: .zero + .seconds(120)) == [id(5)])
    }

    // MARK: Dominant shares

    private func dominant(dovetail: Int64 = 1000) -> SchedulingPolicy {
        policy("fair") {
            $0.counting = .dominantShare(promptUnits: 1, outputUnits: 4, dovetail: dovetail)
            $0.theta = 0
        }
    }

    @Test func theLargerShareCounts() {
        var queue = dominant()
        queue.arrive(1, "prompts")
        queue.arrive(2, "answers")
        queue.charge(TenantID("prompts"), promptTokens: 400, outputTokens: 10)
        queue.charge(TenantID("answers"), promptTokens: 10, outputTokens: 100)
        #expect(queue.virtualCounter(of: TenantID("prompts")) == 400)
        #expect(queue.virtualCounter(of: TenantID("answers")) == 400)
        #expect(queue.chargedUnits(of: TenantID("prompts")) == 420, "service is told as ever")
        queue.charge(TenantID("prompts"), promptTokens: -100)
        #expect(queue.virtualCounter(of: TenantID("prompts")) == 300)
    }

    @Test func theSmallerShareIsNotSavedUpBeyondTheDovetail() {
        var queue = dominant(dovetail: 100)
        queue.arrive(1, "a")
        queue.charge(TenantID("a"), promptTokens: 10_000)
        queue.charge(TenantID("a"), outputTokens: 25)
        #expect(queue.virtualCounter(of: TenantID("a")) == 10_000)
        queue.charge(TenantID("a"), outputTokens: 25)
        #expect(queue.virtualCounter(of: TenantID("a")) == 10_100)
    }

    /// Two roles and tenants that need one each: combined counting serves both alike and leaves the
    /// prefill role idle, dominant shares use both (scheduling.md §4.6).
    @Test func dominantSharesUseBothRoles() {
        func served(_ counting: Counting) -> (prompts: Int, answers: Int) {
            var queue = policy("fair") {
                $0.counting = counting
                $0.theta = 0
            }
            queue.arrive(1, "prompts")
            queue.arrive(2, "answers")
            let names = ["prompts", "answers"].map { TenantID($0) }
            var result = (0, 0)
            for _ in 0..<4000 {
                // A tick of either role gives 8 prompt tokens or 2 output tokens to whom has less,
                // and to nobody who is ahead by more than a tick.
                if queue.virtualCounter(of: names[0]) <= queue.virtualCounter(of: names[1]) + 8 {
                    queue.charge(names[0], promptTokens: 8)
                    result.0 += 8
                }
                if queue.virtualCounter(of: names[1]) <= queue.virtualCounter(of: names[0]) + 8 {
                    queue.charge(names[1], outputTokens: 2)
                    result.1 += 2
                }
            }
            return result
        }
        let combined = served(.combined)
        let shares = served(.dominantShare(promptUnits: 1, outputUnits: 4, dovetail: 1000))
        #expect(abs(combined.prompts - 2 * combined.answers) <= 16, "equal units")
        #expect(combined.prompts < 4000 * 8 * 6 / 10, "and a role half idle")
        #expect(shares.prompts >= 4000 * 8 * 97 / 100 && shares.answers >= 4000 * 2 * 97 / 100)
    }

    // MARK: The bridge

    @Test func aTenantHasItsShareOfTheBridgeAndAtLeastOneJob() {
        let quota = BridgeQuota(blocks: 100)
        #expect(quota.share(weight: 1, waitingWeight: 4) == 25)
        #expect(quota.share(weight: 3, waitingWeight: 4) == 75)
        #expect(quota.share(weight: 1, waitingWeight: 1) == 100, "alone")
        #expect(quota.admits(more: 500, jobs: 0, held: 0, weight: 1, waitingWeight: 9), "one job always")
        #expect(quota.admits(more: 5, jobs: 2, held: 20, weight: 1, waitingWeight: 4))
        #expect(!quota.admits(more: 6, jobs: 2, held: 20, weight: 1, waitingWeight: 4))
    }

    @Test func aTenantThatStandsBackIsPassedOverUntilItIsResumed() {
        var queue = policy("fair")
        for (number, tenant) in [(1, "a"), (2, "a"), (3, "b")] { queue.arrive(number, tenant) }
        #expect(queue.waitingWeight == 2)
        let stoodBack = queue.standBack(TenantID("a"))
        #expect(stoodBack)
        queue.charge(TenantID("a"), promptTokens: 1)
        #expect(queue.drain() == [id(3)] && queue.next(at: .zero) == nil)
        queue.resumeTenants()
        #expect(queue.drain() == [id(1), id(2)])
        #expect(queue.waitingWeight == 0)
        var pooled = policy("fcfs")
        pooled.arrive(1)
        let pooledStoodBack = pooled.standBack(TenantID("a"))
        let first = pooled.next(at: .zero)
        #expect(!pooledStoodBack && first == id(1))
    }

    @Test func nobodyStandsBackForWhoIsMoreThanThetaAhead() {
        var queue = policy("fair") { $0.theta = 100 }
        for (number, tenant) in [(1, "a"), (2, "b")] { queue.arrive(number, tenant) }
        queue.charge(TenantID("b"), promptTokens: 101)
        let tooFar = queue.standBack(TenantID("a"))
        let still = queue.next(at: .zero)
        #expect(!tooFar && still == id(1))
        queue.charge(TenantID("a"), promptTokens: 1)
        let near = queue.standBack(TenantID("a"))
        let other = queue.next(at: .zero)
        #expect(near && other == id(2))
        queue.charge(TenantID("b"), promptTokens: 1)
        let beyond = queue.next(at: .zero)
        #expect(beyond == nil, "nor for one who has gone ahead meanwhile")
    }
}

struct SlotHeapTests {
    @Test func theHeapAgreesWithASortedList() {
        for seed in UInt64(0)..<20 {
            var random = SeededGenerator(seed: seed)
            var heap = SlotHeap<Int>()
            var positions = ContiguousArray(repeating: SlotHeap<Int>.absent, count: 41)
            var list: [Int32: Int] = [:]
            for step in 0..<300 {
                let slot = Int32(random.pick(0...40))
                if random.chance(65) {
                    let key = random.pick(0...1000) * 1000 + step
                    heap.set(slot, to: key, &positions)
                    list[slot] = key
                } else {
                    heap.remove(slot, &positions)
                    list[slot] = nil
                }
                #expect(heap.firstKey == list.values.min() && heap.count == list.count, "seed \(seed) step \(step)")
                if let first = heap.first { #expect(list[first] == heap.firstKey, "seed \(seed)") }
            }
            #expect(Set(heap.unordered) == Set(list.keys), "seed \(seed)")
        }
    }
}
