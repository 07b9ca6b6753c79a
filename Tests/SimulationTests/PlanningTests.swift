import ServingTypes
import Testing

@testable import Simulation

@Suite struct PlanningTests {
    static func search(_ budget: Int, ttft: Double, tpot: Double) -> PlacementSearch {
        var workload = Workload()
        workload.input = .lognormal(mean: 200, variation: 0.5)
        workload.output = .lognormal(mean: 24, variation: 0.5)
        var search = PlacementSearch(
            shape: ClusterShape(), workload: workload,
            objective: ServiceObjective(timeToFirstToken: ttft, timePerToken: tpot), workersMax: budget, seed: 2)
        search.stepTokens = [2048]
        search.batches = [32]
        search.probeSeconds = 2
        search.probeJobs = 60...120
        search.precision = 0.2
        return search
    }

    @Test func theSearchTriesEverySplitAndItsBestServesMoreThanHalfOfTheBudget() throws {
        let outcomes = Self.search(3, ttft: 0.4, tpot: 0.04).run { _ in }
        #expect(Set(outcomes.map(\.candidate.name)) == ["1 prefill, 2 decode", "2 prefill, 1 decode", "3 mixed"])
        let best = try #require(outcomes.first)
        #expect(!best.isPruned && best.goodput > 0)
        #expect(best.timeToFirstTokenP90 <= 0.4 && best.timePerTokenP90 <= 0.04)
        #expect(outcomes.dropFirst().allSatisfy { $0.isPruned || $0.goodput <= best.goodput })
        let again = Self.search(3, ttft: 0.4, tpot: 0.04).run { _ in }
        #expect(again == outcomes)
    }

    @Test func aLimitThatNobodyCanMeetGivesNothing() {
        let outcomes = Self.search(2, ttft: 0.001, tpot: 0.04).run { _ in }
        #expect(outcomes.allSatisfy { $0.goodput == 0 || $0.isPruned })
        #expect(outcomes.contains { !$0.isPruned })
    }

    @Test func leastSquaresFindTheCoefficientsAndHoldThemAboveZero() throws {
        let rows = (1...12).map { [1, Double($0 * 50), Double($0 * $0 * 2500)] }
        let values = rows.map { 3 * $0[0] + 0.2 * $0[1] + 1e-4 * $0[2] }
        let fit = try #require(LeastSquares.relative(rows, values))
        for (found, exact) in zip(fit, [3, 0.2, 1e-4]) { #expect(abs(found / exact - 1) < 1e-6) }
        #expect(LeastSquares.meanError(rows, values, fit) < 1e-9)
        let falling = try #require(LeastSquares.relative(rows, rows.map { 10 / $0[1] }))
        #expect(falling.allSatisfy { $0 >= 0 })
        #expect(LeastSquares.relative([[1, 2]], [1, 2]) == nil)
        #expect(LeastSquares.relative([[1, 2, 3]], [1]) == nil)
        #expect(LeastSquares.relative([], []) == nil)
    }

    /// Equal dominant shares: as great as the fuller role allows, by what full steps cost.
    @Test func theFluidOptimumOfTwoRolesFillsOneOfThem() {
        func fluid(_ mix: TwoRoles.Mix) -> FluidRoles {
            FluidRoles(profile: .a100OPT13B, batch: 64, stepTokens: 2048, mix: mix)
        }
        let toy = fluid(.toy)
        // 1500 tokens: their part of a step's base, what each costs, and their squares.
        #expect(abs(toy.long.prefill - (18.103 * 1500 / 2048 + 0.10191 * 1500 + 7.122e-6 * 1500 * 1500) / 1000) < 1e-9)
        #expect(abs(toy.talkative.token - (19.935 / 64 + 6.269e-4 * 264 + 0.03851) / 1000) < 1e-9)
        #expect(abs(toy.decodeUtilised - 1) < 1e-9 && (0.93...0.94).contains(toy.prefillUtilised))
        #expect((0.90...0.91).contains(toy.share))
        let balanced = fluid(.balanced)
        #expect(abs(balanced.prefillUtilised - 1) < 1e-9 && (0.99...1).contains(balanced.decodeUtilised))
    }

    @Test func workersOfOneMachineSlowEachOtherDown() {
        var workload = Workload()
        workload.jobs = 20
        workload.rate = 0
        workload.input = .fixed(64)
        workload.output = .fixed(30)
        let alone = WorkloadRun.run(ClusterShape(), workload, seed: 1)
        var shape = ClusterShape()
        (shape.profile.prefillInterference, shape.profile.decodeInterference) = (0.5, 0.5)
        let together = WorkloadRun.run(shape, workload, seed: 1)
        #expect(together.failure == nil && together.seconds > 1.05 * alone.seconds)
        #expect(together.outputTokens == alone.outputTokens)
    }

    @Test func theReservationLetsInWhatWillFitAtItsFullestMoment() {
        let rule = PeakReservation(tokensMax: 100)
        let worker = WorkerRef(id: WorkerID("w"), epoch: Epoch(1))
        func job(_ number: UInt64) -> JobID { JobID(high: 1, low: number) }
        rule.arrived(job(1), input: 30, output: 20)
        rule.arrived(job(2), input: 30, output: 10)
        rule.arrived(job(3), input: 20, output: 10)
        #expect(rule.admits(job(1), on: worker))
        // When job 2 ends, 30 + 10 and 30 + 10 are held; then job 1 grows to 50.
        #expect(rule.admits(job(2), on: worker))
        #expect(!rule.admits(job(3), on: worker))
        #expect(rule.admits(job(2), on: worker))
        rule.gave(job(2), tokens: 10)
        rule.left(job(2))
        #expect(rule.admits(job(3), on: worker))
        #expect(!rule.admits(job(9), on: worker))
    }

    @Test func suitesHaveTheirRatesAndTenants() {
        for suite in VTCSuite.allCases {
            let requests = suite.requests(seed: 3)
            #expect(requests == suite.requests(seed: 3) && !requests.isEmpty, "\(suite.rawValue)")
            #expect(zip(requests, requests.dropFirst()).allSatisfy { $0.arrivalSeconds <= $1.arrivalSeconds })
            #expect(requests.allSatisfy { $0.arrivalSeconds < suite.seconds * 1.2 }, "\(suite.rawValue)")
        }
        let overload = VTCSuite.overload.requests(seed: 1)
        #expect(overload.filter { $0.tenant == "tenant-000" }.count == 540)
        #expect(overload.filter { $0.tenant == "tenant-001" }.count == 1080)
        let shy = VTCSuite.onOffLess.requests(seed: 1).filter { $0.tenant == "tenant-000" }
        #expect(shy.allSatisfy { Int($0.arrivalSeconds / 60).isMultiple(of: 2) } && shy.count > 100)
    }
}
