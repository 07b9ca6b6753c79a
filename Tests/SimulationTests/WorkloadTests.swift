import Scheduling
import ServingTypes
import Testing

@testable import Simulation

@Suite struct WorkloadTests {
    static let objective = ServiceObjective(timeToFirstToken: 1, timePerToken: 0.1)

    static func run(_ shape: ClusterShape, _ workload: Workload, seed: UInt64 = 1) -> WorkloadReport {
        let report = WorkloadRun.run(shape, workload, seed: seed, objective: objective)
        if let failure = report.failure { Issue.record("seed \(seed): \(failure)") }
        return report
    }

    static func small() -> Workload {
        var workload = Workload()
        workload.jobs = 40
        workload.rate = 8
        workload.input = .lognormal(mean: 60, variation: 1)
        workload.output = .lognormal(mean: 20, variation: 0.8)
        workload.tenants = 3
        return workload
    }

    /// One job alone takes what the coefficients say, and the page's way.
    @Test func oneJobAloneTakesTheTimeOfItsIterations() {
        var workload = Workload()
        workload.jobs = 1
        workload.input = .fixed(128)
        workload.output = .fixed(11)
        let report = Self.run(ClusterShape(), workload)
        let prefill: Double = (18.103 + 0.10191 * 128 + 7.122e-6 * 16384) / 1000
        #expect(abs(report.timeToFirstToken.mean - prefill) < 0.001)
        var steps = 0.0
        for context in 129...138 {
            let milliseconds: Double = 19.935 + 6.269e-4 * Double(context) + 0.03851
            steps += milliseconds / 1000
        }
        let pages: Double = 8 * 16 * 819_200 / 25e9
        #expect(abs(report.completion.mean - prefill - steps - pages) < 0.001)
        #expect(report.outputTokens == 11)
        #expect(report.kvBytes == 8 * 16 * 819_200)
    }

    /// FastServe's own baseline: what moves pages when they are needed lets the whole batch wait for them.
    @Test func aBatchThatWaitsForPagesEndsLaterAndSaysHowLongItWaited() {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (0, 0, 1)
        shape.policy = FastServeReproduction.mlfq(promotes: true)
        (shape.batchJobsMax, shape.poolTokens, shape.swapTokens) = (4, 400, 4000)
        (shape.residencyPercent, shape.swapsAhead) = (1000, false)
        var workload = Self.small()
        workload.rate = 0
        let beside = Self.run(shape, workload)
        shape.stepsWaitForSwaps = true
        let waiting = Self.run(shape, workload)
        #expect(beside.swapWaitSeconds == 0 && waiting.swapWaitSeconds > 0)
        #expect(beside.finished == 40 && waiting.finished == 40 && waiting.seconds > beside.seconds)
    }

    @Test func measuredLengthsAreDrawnBetweenTheirQuantiles() {
        var random = SimulationRandom(seed: 3)
        let lengths = LengthDistribution.quantiles([2, 4, 10, 100])
        let draws = (0..<3000).map { _ in lengths.draw(&random, max: 1000) }
        #expect(draws.allSatisfy { (2...100).contains($0) })
        let (mean, expected) = (Double(draws.reduce(0, +)) / 3000, Double(3 + 7 + 55) / 3)
        #expect(abs(mean / expected - 1) < 0.05)
        let outputs = (0..<20_000).map { _ in FastServeReproduction.shareGPT.output.draw(&random, max: 2048) }
        #expect(abs(Double(outputs.reduce(0, +)) / 20_000 / 207 - 1) < 0.05)
        #expect(abs(outputs.reduce(0) { $0 + 1 / Double($1) } / 20_000 / 0.0433 - 1) < 0.05)
    }

    @Test func oneSeedGivesOneReport() {
        let (one, other) = (Self.run(ClusterShape(), Self.small()), Self.run(ClusterShape(), Self.small()))
        #expect(one.digest == other.digest)
        #expect(one.completion == other.completion && one.events == other.events)
        #expect(Self.run(ClusterShape(), Self.small(), seed: 2).digest != one.digest)
    }

    /// Property 22 of scheduling.md §6: policies change times, never what is served.
    @Test func everyPolicyAndShapeServesTheSameTokens() {
        var totals: Set<[Int]> = []
        for policy in PolicyConfiguration.names where !policy.hasPrefix("rpm") {
            for (prefill, decode, mixed) in [(1, 1, 0), (2, 1, 0), (0, 0, 2)] {
                var shape = ClusterShape()
                (shape.prefill, shape.decode, shape.mixed) = (prefill, decode, mixed)
                shape.policy = PolicyConfiguration(named: policy) ?? PolicyConfiguration()
                shape.batchJobsMax = 4
                let report = Self.run(shape, Self.small())
                #expect(report.finished == 40, "\(policy) \(prefill) \(decode) \(mixed)")
                totals.insert([report.promptTokens, report.outputTokens])
            }
        }
        #expect(totals.count == 1)
    }

    @Test func stretchesOfATraceAreFoundInThePrefixCache() {
        var workload = Workload()
        workload.trace = (0..<4).map {
            TraceEntry(
                arrivalSeconds: Double($0) * 10, tenant: "a", inputTokens: 1100, outputTokens: 4, stretches: [7, 8])
        }
        workload.jobs = 4
        #expect(Self.run(ClusterShape(), workload).cachedTokens == 3 * 1024)
        workload.trace[3].tenant = "b"
        #expect(Self.run(ClusterShape(), workload).cachedTokens == 2 * 1024)
        workload.trace[2].stretches = [7, 9]
        #expect(Self.run(ClusterShape(), workload).cachedTokens == 1024 + 512)
    }

    @Test func aSmallPoolEvictsAndStillServesEveryToken() {
        var shape = ClusterShape()
        shape.poolTokens = 640
        shape.batchJobsMax = 16
        var workload = Self.small()
        workload.rate = 0
        workload.output = .fixed(60)
        workload.input = .uniform(20, 100)
        let report = Self.run(shape, workload)
        #expect(report.finished == 40)
        #expect(report.outputTokens == 40 * 60)
        #expect(report.requeues > 0)
    }

    @Test func percentilesAreValuesOfTheSample() {
        let spread = Spread((1...200).map(Double.init))
        #expect(spread.p50 == 100 && spread.p95 == 190 && spread.p99 == 198 && spread.max == 200)
        #expect(spread.mean == 100.5)
        #expect(Spread([]).p99 == 0)
    }
}
