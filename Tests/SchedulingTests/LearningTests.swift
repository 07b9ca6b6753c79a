import ServingTypes
import Testing

@testable import Scheduling

/// What the Gittins index and the predictors make of completed lengths.
struct LearningTests {
    @Test func aLimitOfTokensIsTheMostThatAJobCanStillTake() {
        var queue = policy("gittins") { $0.runningBonus = .zero }
        for number in 1...200 {
            queue.arrive(number)
            queue.produced(id(number), tokens: 100)
            queue.leave(id(number))
        }
        for (number, most) in [(1001, 400), (1002, 12)] {
            queue.arrive(
                ScheduledJob(
                    job: id(number), tenant: TenantID("a"), priority: 0, predictedPrefill: .zero, outputMax: most),
                at: .zero)
            queue.dispatch(id(number), at: .zero)
        }
        #expect(queue.runningSet(of: [id(1001), id(1002)], slots: 1, at: .zero) == [id(1002)])
    }

    @Test func classesCoverAllLengthsInOrder() {
        var last = 0
        for length in 0...200_000 {
            let step = LengthTable.step(of: length)
            #expect(step >= last && step < LengthTable.steps)
            #expect(LengthTable.lowest(step) <= length)
            if step + 1 < LengthTable.steps { #expect(length < LengthTable.lowest(step + 1)) }
            last = step
        }
        #expect(LengthTable.step(of: .max) == LengthTable.steps - 1)
        #expect(LengthTable.step(of: -5) == 0)
    }

    private func table(_ lengths: [Int], _ change: (inout PolicyConfiguration) -> Void = { _ in }) -> LengthTable {
        var configuration = PolicyConfiguration()
        configuration.samplesMin = lengths.count
        change(&configuration)
        var table = LengthTable()
        for length in lengths { table.add(length, configuration) }
        return table
    }

    /// Against the definition, computed by trying every stopping point.
    @Test func ranksAreTheGittinsIndexOfTheSample() {
        for seed in UInt64(0)..<20 {
            var random = SeededGenerator(seed: seed)
            let values = (0..<random.pick(1...6)).map { _ in LengthTable.lowest(random.pick(1...40)) }
            let lengths = (0..<random.pick(1...60)).map { _ in values[random.pick(0...values.count - 1)] }
            let ranks = table(lengths)
            for step in 1..<LengthTable.steps {
                let attained = LengthTable.lowest(step) - 1
                let left = lengths.filter { $0 > attained }
                guard !left.isEmpty else { continue }
                let index =
                    Set(left).map { end -> Double in
                        let cost = left.reduce(0.0) { $0 + Double(min($1, end) - attained) }
                        return cost / Double(left.filter { $0 <= end }.count)
                    }.min() ?? 0
                let rank = Double(ranks.rank(ofStep: step) ?? -1) / Double(LengthTable.unitsPerToken)
                #expect(abs(rank - index) <= 0.01 + index / 1000, "seed \(seed) step \(step)")
            }
        }
    }

    @Test func equalLengthsMakeAStartedJobMoreUrgentWithEveryToken() {
        let ranks = table(Array(repeating: 100, count: 50))
        var last = Int64.max
        for tokens in 0..<96 {
            let rank = ranks.rank(ofStep: LengthTable.step(after: tokens)) ?? 0
            #expect(rank <= last, "after \(tokens)")
            last = rank
        }
    }

    @Test func anOldJobIsLessUrgentWhereMostAreShort() {
        let ranks = table(Array(repeating: 4, count: 50) + Array(repeating: 400, count: 10))
        let young = ranks.rank(ofStep: LengthTable.step(after: 0)) ?? 0
        let old = ranks.rank(ofStep: LengthTable.step(after: 8)) ?? 0
        #expect(young < old)
    }

    @Test func oldCompletionsFade() {
        var configuration = PolicyConfiguration()
        configuration.rebuildCompletions = 16
        var table = LengthTable()
        for _ in 0..<200 { table.add(1000, configuration) }
        let before = table.rank(ofStep: 1) ?? 0
        for _ in 0..<2000 { table.add(10, configuration) }
        let after = table.rank(ofStep: 1) ?? 0
        #expect(before > 900 * LengthTable.unitsPerToken && after < 11 * LengthTable.unitsPerToken)
        for length in [0, -3] { table.add(length, configuration) }
        for _ in 0..<64 { table.add(.max, configuration) }
        #expect((table.rank(ofStep: 40) ?? 0) > 0)
    }

    /// The prior: before there are enough completions, shortest prompt class first, then in order,
    /// and what runs goes on.
    @Test func withoutEnoughCompletionsWhatRunsGoesOn() {
        var queue = policy("fair-gittins") { $0.samplesMin = 8 }
        for number in 1...7 {
            queue.arrive(number)
            queue.dispatch(id(number), at: .zero)
            queue.produced(id(number), tokens: 3)
            queue.leave(id(number))
        }
        queue.arrive(8)
        queue.arrive(9)
        let jobs = queue.drain()
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[0]])
        queue.produced(jobs[0], tokens: 1000)
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[0]])
        queue.leave(jobs[1], completed: false)
        #expect(!queue.lengths.all.isBuilt, "a cancelled job tells nothing")
        queue.leave(jobs[0])
        #expect(queue.lengths.all.isBuilt)
    }

    /// A tenant without completions of its own goes by everybody's.
    @Test func aNewTenantStartsFromEverybodysLengths() {
        var queue = policy("fair-gittins") {
            $0.samplesMin = 8
            $0.runningBonus = .zero
        }
        for number in 1...16 {
            queue.arrive(number, "old")
            queue.dispatch(id(number), at: .zero)
            queue.produced(id(number), tokens: number > 12 ? 800 : 2)
            queue.leave(id(number))
        }
        queue.arrive(20, "new")
        queue.arrive(21, "new")
        let jobs = queue.drain()
        _ = queue.runningSet(of: jobs, slots: 1, at: .zero)
        queue.produced(jobs[0], tokens: 10)
        #expect(queue.runningSet(of: jobs, slots: 1, at: .zero) == [jobs[1]], "a job past its youth waits")
    }

    /// A rebuilt table changes the order of jobs that wait, without any of them being touched.
    @Test func waitingJobsFollowANewTableAtOnce() {
        var queue = policy("gittins") {
            $0.samplesMin = 8
            $0.rebuildCompletions = 8
            $0.promotionPeriod = 0
        }
        func teach(_ numbers: ClosedRange<Int>, _ length: Int) {
            for number in numbers {
                queue.arrive(number)
                queue.withdraw(id(number))
                queue.produced(id(number), tokens: length)
                queue.leave(id(number))
            }
        }
        queue.arrive(1)
        queue.withdraw(id(1))
        queue.produced(id(1), tokens: 40)
        queue.requeue(id(1), at: .zero)
        queue.arrive(2)
        teach(100...107, 2)
        #expect(queue.next(at: .zero) == id(2), "most are short: the old one lasts")
        teach(200...600, 48)
        #expect(queue.next(at: .zero) == id(1), "all have 48: the old one is nearly done")
    }

    @Test func shortestPredictedFirstGoesByHintThenByWhatWasLearned() {
        var queue = policy("sjf")
        for number in 1...5 {
            queue.arrive(number, "short")
            queue.dispatch(id(number), at: .zero)
            queue.produced(id(number), tokens: 3)
            queue.leave(id(number))
        }
        func arrive(_ number: Int, _ tenant: String, predicted: Int? = nil) {
            queue.arrive(
                ScheduledJob(
                    job: id(number), tenant: TenantID(tenant), priority: 0, predictedPrefill: .zero,
                    predictedOutput: predicted, outputMax: 100), at: .zero)
        }
        arrive(10, "unknown")
        arrive(11, "unknown", predicted: 50)
        arrive(12, "short")
        #expect(queue.drain() == [id(12), id(11), id(10)])
    }

    @Test func thePredictionIsTheMeanOfTheLastFive() {
        var queue = policy("vtc-predict")
        for (number, length) in [100, 2, 4, 6, 8, 10].enumerated() {
            queue.arrive(number)
            queue.dispatch(id(number), at: .zero)
            queue.produced(id(number), tokens: length)
            queue.leave(id(number))
        }
        let before = queue.chargedUnits(of: TenantID("a"))
        queue.arrive(50)
        queue.dispatch(id(50), at: .zero)
        #expect(queue.chargedUnits(of: TenantID("a")) == before + 2 * 6)
    }
}

extension LearningTests {
    private func job(_ number: Int, prompt: Int?, tenant: String = "a") -> ScheduledJob {
        ScheduledJob(
            job: id(number), tenant: TenantID(tenant), priority: 0, predictedPrefill: .zero, promptTokens: prompt)
    }

    /// Short prompts are answered with 10 tokens, long ones with 400, and nobody says so.
    private func taught(_ name: String, tenant: String = "a", jobs: Int = 80) -> SchedulingPolicy {
        var queue = policy(name) { $0.runningBonus = .zero }
        for number in 0..<jobs {
            let isShort = number.isMultiple(of: 2)
            queue.arrive(job(number, prompt: isShort ? 5 : 300, tenant: tenant), at: .zero)
            queue.dispatch(id(number), at: .zero)
            queue.produced(id(number), tokens: isShort ? 10 : 400)
            queue.leave(id(number))
        }
        return queue
    }

    @Test(arguments: ["gittins", "fair-gittins"])
    func whatPromptsOfALengthWereAnsweredWithOrdersThoseToCome(name: String) {
        var queue = taught(name)
        queue.arrive(job(101, prompt: 400), at: .zero)
        queue.arrive(job(102, prompt: 6), at: .zero)
        #expect(queue.next(at: .zero) == id(102), "though the other came first")
        #expect(queue.peek() == id(102))
        queue.dispatch(id(102), at: .zero)
        queue.dispatch(id(101), at: .zero)
        #expect(queue.ranking(of: [id(101), id(102)], slots: 1, limit: 2, at: .zero) == [id(102), id(101)])
    }

    @Test func aTenantsOwnLengthsStandBeforeThoseOfOthersLikePrompts() {
        var queue = taught("fair-gittins", tenant: "others")
        // Its outputs have one length whatever the prompt: first come, first served.
        for number in 200..<240 {
            queue.arrive(job(number, prompt: 40 + number, tenant: "even"), at: .zero)
            queue.dispatch(id(number), at: .zero)
            queue.produced(id(number), tokens: 50)
            queue.leave(id(number))
        }
        queue.arrive(job(301, prompt: 400, tenant: "even"), at: .zero)
        queue.arrive(job(302, prompt: 6, tenant: "even"), at: .zero)
        #expect(queue.next(at: .zero) == id(301))
    }

    @Test func jobsThatWaitInManyClassesAreFoundAndForgotten() {
        for seed in UInt64(0)..<8 {
            var random = SeededGenerator(seed: seed)
            var queue = taught("gittins")
            var waiting: Set<Int> = []
            for number in 1000..<1200 {
                queue.arrive(job(number, prompt: random.pick(0...4000)), at: .zero)
                queue.produced(id(number), tokens: random.pick(0...900))
                waiting.insert(number)
            }
            while let next = queue.next(at: .zero) {
                queue.dispatch(next, at: .zero)
                #expect(waiting.remove(Int(next.low)) != nil, "seed \(seed)")
            }
            #expect(waiting.isEmpty, "seed \(seed)")
        }
    }
}
