import ServingTypes
import Testing

@testable import Scheduling

/// What is kept of counters while a coordinator lives is all that its successor needs.
@Suite struct CounterRecordTests {
    /// A policy with jobs in every state, and what somebody kept of its counters after every event.
    private struct Life {
        var policy: SchedulingPolicy
        var kept: [TenantID: CounterRecord] = [:]
        /// Prompt tokens charged ahead and not settled, by job.
        var ahead: [JobID: (tenant: TenantID, tokens: Int)] = [:]
        var tenants: [JobID: TenantID] = [:]
        var placed: Set<JobID> = []
        var nextJob = 1

        mutating func step(_ random: inout SeededGenerator) {
            let now = Instant(nanoseconds: Int64(nextJob) * 1_000_000)
            let jobs = tenants.keys.sorted()
            switch random.pick(0...9) {
            case 0...2:
                let tenant = TenantID("t\(random.pick(0...5))")
                tenants[id(nextJob)] = tenant
                policy.arrive(
                    ScheduledJob(
                        job: id(nextJob), tenant: tenant, priority: 0, predictedPrefill: .milliseconds(3),
                        outputMax: 60), at: now)
                nextJob += 1
            case 3...4:
                guard let job = policy.next(at: now), let tenant = tenants[job] else { break }
                policy.dispatch(job, at: now)
                placed.insert(job)
                let tokens = random.pick(1...300)
                if ahead[job] == nil {
                    policy.chargeAhead(tenant, promptTokens: tokens)
                    ahead[job] = (tenant, tokens)
                }
            case 5:
                guard let job = jobs.first(where: { ahead[$0] != nil }), let charge = ahead[job] else { break }
                policy.settleAhead(charge.tenant, charged: charge.tokens, computed: random.pick(0...charge.tokens))
                ahead[job] = nil
            case 6...8:
                guard let job = placed.sorted().first(where: { _ in random.chance(40) }) else { break }
                policy.produced(job, tokens: random.pick(1...30))
            default:
                guard let job = placed.sorted().first(where: { _ in random.chance(40) }) else { break }
                end(job, completed: random.chance(70))
            }
            keep()
        }

        /// As a job's failure or end is told to the policy.
        mutating func end(_ job: JobID, completed: Bool) {
            if let charge = ahead.removeValue(forKey: job) {
                policy.settleAhead(charge.tenant, charged: charge.tokens, computed: 0)
            }
            policy.leave(job, completed: completed)
            tenants[job] = nil
            placed.remove(job)
        }

        mutating func keep() {
            for record in policy.takeChangedCounters() { kept[record.tenant] = record }
        }
    }

    static let names = [
        "vtc", "vtc-predict", "vtc-mlfq", "lcf", "fair", "fair-mlfq", "fair-gittins", "drf", "drf-gittins",
    ]

    @Test(arguments: names)
    func whatIsKeptAfterEachEventIsEveryCounter(_ name: String) throws {
        for seed in UInt64(0)..<20 {
            var random = SeededGenerator(seed: seed)
            var life = Life(policy: policy(name))
            for step in 0..<300 {
                life.step(&random)
                let records = life.policy.counterRecords
                #expect(records.map { life.kept[$0.tenant] } == records, "\(name) seed \(seed) step \(step)")
            }
            #expect(life.kept.values.contains { $0.promptAhead > 0 }, "\(name) seed \(seed): nothing was ahead")
        }
    }

    /// The successor's counters are those of a coordinator whose jobs all failed at that instant: with the
    /// work of both roles under dominant shares, and without what was only expected.
    @Test(arguments: names)
    func aSuccessorsCountersAreTheOnesThatWouldHaveBeen(_ name: String) throws {
        for seed in UInt64(0)..<20 {
            var random = SeededGenerator(seed: seed)
            var life = Life(policy: policy(name))
            for _ in 0..<random.pick(50...300) { life.step(&random) }
            var successor = policy(name)
            successor.restore(life.kept.values.sorted { $0.tenant < $1.tenant }, lastWaiting: nil)
            for job in life.tenants.keys.sorted() { life.end(job, completed: false) }
            func state(_ policy: SchedulingPolicy) -> [CounterRecord] {
                policy.counterRecords.sorted { $0.tenant < $1.tenant }.map { record in
                    // Jobs that leave the queue cease to wait.
                    var record = record
                    record.ceasedWaiting = 0
                    return record
                }
            }
            #expect(state(successor) == state(life.policy), "\(name) seed \(seed)")
            #expect(state(successor).allSatisfy { $0.promptAhead == 0 && $0.outputAhead == 0 })
            #expect(life.tenants.isEmpty)
            // Charges of the successor go on as those of the first would.
            for tenant in state(successor).map(\.tenant) {
                let (prompt, output) = (random.pick(0...500), random.pick(1...500))
                for part in [(prompt, 0), (0, output), (prompt, 0)] {
                    successor.charge(tenant, promptTokens: part.0, outputTokens: part.1)
                    life.policy.charge(tenant, promptTokens: part.0, outputTokens: part.1)
                }
            }
            #expect(state(successor) == state(life.policy), "\(name) seed \(seed) afterwards")
        }
    }

    /// Newcomers whom nobody waits beside are lifted to the tenant that ceased to wait last, as far as it
    /// has come by then, whoever is asked.
    @Test func aLiftIsTheSameBeforeAndAfterARestart() {
        for name in ["vtc", "fair"] {
            var first = policy(name)
            first.arrive(1, "a")
            first.arrive(2, "b")
            first.charge(TenantID("a"), promptTokens: 4000)
            first.charge(TenantID("b"), promptTokens: 5000)
            first.dispatch(id(2), at: .zero)
            first.dispatch(id(1), at: .zero)
            first.charge(TenantID("a"), outputTokens: 100)
            var second = policy(name)
            second.restore(first.counterRecords, lastWaiting: 1)
            for tenant in ["a", "b"] {
                first.charge(TenantID(tenant), outputTokens: 60)
                second.charge(TenantID(tenant), outputTokens: 60)
            }
            first.arrive(9, "new")
            second.arrive(9, "new")
            let lifted = first.virtualCounter(of: TenantID("new"))
            #expect(lifted > 0, "\(name)")
            #expect(second.virtualCounter(of: TenantID("new")) == lifted, "\(name)")
        }
    }

    @Test func aTakenBackChargeIsNoServiceOfTheSuccessor() {
        var first = policy("drf")
        first.chargeAhead(TenantID("a"), promptTokens: 70)
        first.charge(TenantID("a"), promptTokens: 30)
        var second = policy("drf")
        second.restore(first.counterRecords, lastWaiting: nil)
        #expect(second.chargedUnits(of: TenantID("a")) == 0)
        #expect(second.counterRecords.first?.prefillWork == 30 * TenantCounters.scale)
    }

    @Test func whatNoFileShouldHoldIsTakenUpWithoutATrap() {
        for extreme in [Int64.min, .max] {
            var record = CounterRecord(tenant: TenantID("a"), value: extreme, lifted: extreme)
            (record.prefillWork, record.decodeWork) = (extreme, extreme)
            (record.promptAhead, record.outputAhead, record.ceasedWaiting) = (extreme, extreme, extreme)
            var queue = policy("drf")
            queue.restore([record], lastWaiting: extreme)
            queue.arrive(1, "b")
            #expect(queue.next(at: .zero) == id(1))
        }
    }

    @Test func countersOfPoliciesThatOrderNobodyByThemAreNotKept() {
        for name in ["fcfs", "mlfq", "rpm"] {
            var queue = policy(name)
            queue.arrive(1, "a")
            queue.charge(TenantID("a"), promptTokens: 5)
            #expect(queue.takeChangedCounters().isEmpty, "\(name)")
            #expect(queue.countingTag == nil, "\(name)")
        }
        let tags = ["vtc", "fair-gittins", "drf"].map { policy($0).countingTag }
        #expect(tags[0] != nil && tags[0] == tags[1], "the same units")
        #expect(tags[2] != nil && tags[2] != tags[0])
    }

    @Test func tenantsThatComeAndGoLeaveNoTraceInWhatHasChanged() {
        var queue = policy("vtc") { $0.tenantsMax = 4 }
        for number in 1...500 {
            queue.arrive(number, "t\(number)")
            queue.leave(id(number), completed: false)
        }
        #expect(queue.takeChangedCounters().count <= 4, "a bounded list, though nobody asked for it")
    }
}
