import ServingTypes
import Testing

@testable import Scheduling

/// Properties 5, 9, 10, 18, 19, 21 to 23 of scheduling.md §6, on a whole engine.
struct EnginePropertyTests {
    /// Properties 5, 10, 18 and 22: the same work is done whoever orders it, charged once, and no
    /// iteration is empty, too large, or leaves a slot free while a resident could run.
    @Test(arguments: everyName.filter { !$0.hasPrefix("rpm") })
    func everyPolicyDoesTheSameWork(name: String) {
        for seed in UInt64(0)..<4 {
            var random = SeededGenerator(seed: seed)
            let work = requests(&random, count: 60, gap: 25)
            var reference: [String: Int64] = [:]
            for request in work { reference[request.tenant, default: 0] += Int64(request.input + 2 * request.output) }
            var subject = engine(name, slots: 3) { $0.theta = 100 }
            if random.chance(50) { subject.residentsMax = min(subject.residentsMax, 5) }
            subject.run(work) { engine, chosen in
                #expect(chosen.count == min(engine.residents.count, engine.slots), "\(name) seed \(seed)")
                #expect(Set(chosen).count == chosen.count, "\(name) seed \(seed)")
                #expect(Set(chosen).isSubset(of: engine.residents), "\(name) seed \(seed)")
            }
            #expect(subject.completion.count == work.count, "\(name) seed \(seed)")
            for (tenant, units) in reference {
                #expect(subject.units[tenant] == units, "\(name) seed \(seed)")
                #expect(subject.policy.chargedUnits(of: TenantID(tenant)) == units, "\(name) seed \(seed)")
            }
            #expect(subject.policy.knownJobs == 0 && subject.policy.waitingJobs == 0, "\(name) seed \(seed)")
            #expect(subject.policy.waitingWeight == 0, "\(name) seed \(seed)")
        }
    }

    /// Property 21: what happens does not depend on what jobs are called, and thus on no hash order.
    @Test(arguments: everyName)
    func theSameEventsGiveTheSameDecisionsWhateverJobsAreCalled(name: String) {
        for seed in UInt64(20)..<23 {
            var random = SeededGenerator(seed: seed)
            let work = requests(&random, count: 50, gap: 15)
            var digests: Set<UInt64> = []
            for salt in [UInt64(0), 1, 99] {
                var subject = engine(name, slots: 3) { $0.theta = 50 }
                subject.salt = salt
                subject.run(work)
                digests.insert(subject.digest)
            }
            #expect(digests.count == 1, "\(name) seed \(seed)")
        }
    }

    /// Property 9: one long job beside a stream of short ones at nine tenths of the capacity ends in
    /// good time; without a budget of promotions it is still there when the stream ends.
    @Test(arguments: ["mlfq", "fair-mlfq", "gittins"])
    func aLongJobIsNotStarvedByAStreamOfShortOnes(name: String) {
        func completion(period: Int) -> Int64? {
            var subject = engine(name, slots: 1) {
                $0.promotionPeriod = period
                $0.promotionAge = .milliseconds(300)
                $0.runningBonus = .zero
            }
            subject.base = 10
            let stream = (1...400).map {
                Request(number: $0, tenant: "a", at: Int64($0) * 20 - 20, input: 1, output: 2)
            }
            subject.run([Request(number: 0, tenant: "a", at: 2005, input: 1, output: 60)] + stream, until: 8000)
            return subject.completion[0]
        }
        let helped = completion(period: 4)
        #expect((helped ?? .max) <= 60 * 10 * 4 + 1000, "a fourth of the slots, after the age")
        #expect(completion(period: 0) == nil, "starves")
    }

    /// Property 10: promoted jobs that did not run take no more than the budget, at any load.
    @Test func residentsArePromotedWithinTheBudget() {
        for seed in UInt64(0)..<10 {
            var random = SeededGenerator(seed: seed)
            let (slots, period) = (random.pick(1...6), random.pick(2...5))
            var subject = policy("mlfq") {
                $0.promotionPeriod = period
                $0.promotionAge = .milliseconds(50)
            }
            for number in 1...40 { subject.arrive(number) }
            let jobs = subject.drain()
            var (promotions, oldest) = (0, 0)
            for step in 1...200 {
                let before = jobs.map { subject.level(of: $0) ?? 0 }
                let now = Instant.zero + .milliseconds(Int64(step) * 60)
                for job in subject.runningSet(of: jobs, slots: slots, at: now) {
                    let index = jobs.firstIndex(of: job) ?? 0
                    if before[index] > 0, subject.level(of: job) == 0 { promotions += 1 }
                    if index == 0 { oldest += 1 }
                    subject.served(job, for: .milliseconds(12), nextIteration: .milliseconds(1))
                }
                #expect(promotions * period <= slots * step + period, "seed \(seed) step \(step)")
            }
            #expect(oldest >= min(slots, period) * 200 / period - period, "seed \(seed): the oldest has its share")
        }
    }

    /// Property 10: tenants take slots from each other at most once per slot while their counters move apart by theta, so
    /// that theta bounds what goes to and from the host tier.
    @Test(arguments: [60, 120])
    func tenantsTakeSlotsFromEachOtherNoOftenerThanThetaAllows(theta: Int64) {
        func taken(theta: Int64, slots: Int, seed: UInt64) -> (preemptions: Int, units: Int64) {
            var random = SeededGenerator(seed: seed)
            let work = (0..<80).map { number in
                Request(
                    number: number, tenant: number % 2 == 0 ? "a" : "b", at: 0, input: random.pick(1...30),
                    output: random.pick(20...60))
            }
            var subject = engine("fair", slots: slots) { $0.theta = theta }
            subject.run(work)
            #expect(subject.completion.count == 80)
            return (subject.preemptions, subject.units.values.reduce(0, +))
        }
        var (all, withoutTheta) = (0, 0)
        for seed in UInt64(0)..<6 {
            let slots = 1 + Int(seed % 4)
            let (preemptions, units) = taken(theta: theta, slots: slots, seed: seed)
            // Each running job's token counts while the slots are given out.
            let turns = Double(units) / Double(theta - Int64(4 * slots))
            #expect(Double(preemptions) <= Double(slots) * (turns + 1), "seed \(seed), \(slots) slots")
            all += preemptions
            withoutTheta += taken(theta: 0, slots: slots, seed: seed).preemptions
        }
        #expect(all > 20 && withoutTheta > 4 * all, "\(all) with theta, \(withoutTheta) without")
    }

    /// Property 19: whatever was predicted, the final charge is the real cost, cancelled jobs included.
    @Test(arguments: ["vtc-predict", "vtc-oracle"])
    func aWrongPredictionIsSettledToTheToken(name: String) {
        for seed in UInt64(0)..<20 {
            var random = SeededGenerator(seed: seed)
            var subject = policy(name)
            var real: Int64 = 0
            var charges: Set<Int64> = []
            for number in 1...30 {
                let guess = random.pick(0...50)
                subject.arrive(
                    ScheduledJob(
                        job: id(number), tenant: TenantID("a"), priority: 0, predictedPrefill: .zero,
                        knownOutput: guess), at: .zero)
                if random.chance(90) { subject.dispatch(id(number), at: .zero) }
                charges.insert(subject.chargedUnits(of: TenantID("a")) - real)
                for _ in 0..<random.pick(0...50) {
                    subject.produced(id(number), tokens: 1)
                    real += 2
                }
                subject.leave(id(number), completed: random.chance(80))
                #expect(subject.chargedUnits(of: TenantID("a")) == real, "seed \(seed) job \(number)")
            }
            #expect(charges.count > 5, "seed \(seed): charged ahead")
        }
    }

    // MARK: Property 23

    @Test func shortestRemainingTimeFirstIsBestOfAll() {
        for seed in UInt64(0)..<2 {
            var random = SeededGenerator(seed: seed)
            let work = skewed(&random, count: 120, gap: 60)
            var oracle = engine("srpt", slots: 2)
            oracle.run(work)
            for name in everyName where name != "srpt" && !name.hasPrefix("rpm") {
                var subject = engine(name, slots: 2)
                subject.run(work)
                #expect(oracle.meanCompletion <= subject.meanCompletion * 1.02, "\(name) seed \(seed)")
            }
        }
    }

    /// Equal jobs must not collapse to processor sharing: once the length is known to be always the
    /// same, the index leaves a started job alone.
    @Test(arguments: ["gittins", "fair-gittins"])
    func withEqualLengthsTheGittinsIndexIsFirstComeFirstServed(name: String) {
        for seed in UInt64(0)..<3 {
            var random = SeededGenerator(seed: seed)
            let length = random.pick(5...40)
            let warm = (0..<40).map { Request(number: $0, tenant: "a", at: 0, input: 50, output: length) }
            let work = (40..<100).map {
                Request(number: $0, tenant: "a", at: 100_000 + Int64($0) * 20, input: 50, output: length)
            }
            func completions(_ name: String, bonus: TimeSpan) -> [Int: Int64] {
                var subject = engine(name, slots: 3) {
                    $0.runningBonus = bonus
                    $0.promotionPeriod = 0
                }
                subject.run(warm + work)
                return subject.completion
            }
            #expect(
                completions(name, bonus: .zero) == completions("fcfs", bonus: .zero), "seed \(seed), length \(length)")
            #expect(completions("mlfq", bonus: .zero) != completions("fcfs", bonus: .zero), "the feedback queue shares")
        }
    }

    @Test func withSkewedLengthsTheGittinsIndexBeatsFirstComeFirstServed() {
        var (learned, fcfs) = (0.0, 0.0)
        for seed in UInt64(0)..<3 {
            var random = SeededGenerator(seed: seed)
            let work = skewed(&random, count: 200, gap: 60)
            var subject = engine("gittins", slots: 2) { $0.runningBonus = .milliseconds(50) }
            subject.run(work)
            learned += subject.meanCompletion
            var reference = engine("fcfs", slots: 2)
            reference.run(work)
            fcfs += reference.meanCompletion
        }
        #expect(learned < 0.7 * fcfs)
    }

    @Test func aFeedbackQueueOfOneLevelIsFirstComeFirstServed() {
        for seed in UInt64(0)..<4 {
            var random = SeededGenerator(seed: seed)
            let work = requests(&random, count: 80, gap: 20)
            var one = engine("mlfq") { $0.levelsMax = 1 }
            var fcfs = engine("fcfs")
            one.run(work)
            fcfs.run(work)
            #expect(one.completion == fcfs.completion, "seed \(seed)")
        }
    }

    @Test func withEndlessHysteresisDesignCIsPlainVirtualCounters() {
        for seed in UInt64(0)..<6 {
            var random = SeededGenerator(seed: seed)
            let work = requests(&random, count: 80, gap: 20)
            var fair = engine("fair") {
                $0.theta = .max
                $0.liftsToClampOnly = false
            }
            fair.residentsMax = fair.slots
            var plain = engine("vtc")
            fair.run(work)
            plain.run(work)
            #expect(fair.completion == plain.completion && fair.evictions == 0, "seed \(seed)")
        }
    }

    @Test func oneTenantMakesDesignCItsInnerPolicy() {
        for (outer, inner) in [
            ("fair", "fcfs"), ("fair-mlfq", "mlfq"), ("fair-gittins", "gittins"), ("fair-srpt", "srpt"),
        ] {
            for seed in UInt64(0)..<3 {
                var random = SeededGenerator(seed: seed)
                let work = skewed(&random, count: 80, gap: 40)
                let same = { (configuration: inout PolicyConfiguration) in
                    configuration.promotionPeriod = 4
                    configuration.promotionAge = .milliseconds(300)
                }
                var (first, second) = (engine(outer, slots: 4, same), engine(inner, slots: 4, same))
                first.run(work)
                second.run(work)
                #expect(first.completion == second.completion, "\(outer) seed \(seed)")
            }
        }
    }
}
