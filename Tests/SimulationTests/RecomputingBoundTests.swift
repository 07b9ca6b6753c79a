import CoordinatorCore
import Scheduling
import ServingTypes
import Testing

@testable import Simulation

/// The bound of fair sharing where memory is short and there is no host tier, as `CoordinatorCore/Residency.swift`
/// states and argues it: max(4 theta, theta + u) + 2 w_q s between a tenant that waits and any other, what others
/// were charged for work done again because of them left out.
@Suite struct RecomputingBoundTests {
    struct Case {
        var shape: ClusterShape
        var workload: Workload
        var theta: Int64
        var workers = 1

        /// theta, the longest prompt, the slots.
        var bound: Double {
            let longest = Int64(workload.trace.map(\.inputTokens).max() ?? 0)
            return Double(max(4 * theta, theta + longest)) + 4 * Double((shape.batchJobsMax ?? 0) * workers)
        }
    }

    /// The greatest lead in service of a tenant over one that waits, over a run.
    private func lead(_ work: Case, seed: UInt64) -> (lead: Double, report: WorkloadReport, requeued: UInt64) {
        var (greatest, requeued) = (0.0, UInt64(0))
        let report = WorkloadRun.run(
            work.shape, work.workload, seed: seed,
            watch: { simulation in
                var waiting: Set<TenantID> = []
                for job in simulation.paused {
                    if let tenant = simulation.jobs[job]?.request.tenant { waiting.insert(tenant) }
                }
                let snapshot = simulation.coordinator.snapshot()
                requeued = snapshot.counters.requeued
                var (most, least) = (-Double.infinity, Double.infinity)
                for tenant in snapshot.tenants where tenant.queuedJobs + tenant.runningJobs > 0 {
                    let caused = Double(simulation.coordinator.causedTokens(of: tenant.tenant))
                    most = max(most, tenant.virtualCounter - caused)
                    guard tenant.queuedJobs > 0 || waiting.contains(tenant.tenant) else { continue }
                    least = min(least, tenant.virtualCounter)
                }
                greatest = max(greatest, most - least)
            })
        return (greatest, report, requeued)
    }

    private func drawn(_ random: inout SimulationRandom, name: String) throws -> Case {
        let theta = Int64([40, 100, 250][random.within(0...2)])
        var shape = ClusterPropertyTests.mixed(
            try ClusterPropertyTests.policy(name, theta: theta), batch: random.within(4...12))
        let workers = random.within(1...2)
        shape.mixed = workers
        shape.residencyPercent = [100, 150, 300][random.within(0...2)]
        shape.poolTokens = 16 * random.within(20...50)
        shape.policy.liftsToClampOnly = random.within(0...1) == 1
        var workload = Workload()
        var time = 0.0
        let gap = Double(random.within(0...40)) / 1000
        let tenants = random.within(2...5)
        workload.trace = (0..<90).map { _ in
            time += gap * random.unit()
            let isLong = random.within(0...9) < 2
            return TraceEntry(
                arrivalSeconds: time, tenant: "t\(random.within(0...tenants - 1))",
                inputTokens: random.within(4...(isLong ? 160 : 60)),
                outputTokens: random.within(2...(isLong ? 150 : 40)))
        }
        workload.jobs = workload.trace.count
        return Case(shape: shape, workload: workload, theta: theta, workers: workers)
    }

    @Test(arguments: ["fair", "fair-mlfq", "fair-gittins"])
    func nobodyGetsFurtherAheadOfAWaitingTenantWithoutAHostTier(name: String) throws {
        var (taken, nearest) = (UInt64(0), 0.0)
        for seed in UInt64(1)...12 {
            var random = SimulationRandom(seed: Hashing.mix(seed ^ 0x626f_756e))
            let work = try drawn(&random, name: name)
            let (lead, report, requeued) = lead(work, seed: seed)
            #expect(report.failure == nil && report.finished == 90, "\(name) seed \(seed): \(report.failure ?? "")")
            #expect(lead <= work.bound, "\(name) seed \(seed), theta \(work.theta)")
            taken += requeued
            nearest = max(nearest, lead / work.bound)
        }
        #expect(taken > 20, "\(name): memory was never short")
        #expect(nearest > 0.6, "\(name): \(nearest), the bound is out of reach")
    }

    /// Tight: a tenant whose one long job has all the memory keeps it until it is four theta ahead.
    @Test func aLongJobThatHoldsTheMemoryComesWithinATenthOfTheBound() throws {
        let theta = Int64(400)
        var shape = ClusterPropertyTests.mixed(try ClusterPropertyTests.policy("fair", theta: theta), batch: 4)
        shape.poolTokens = 16 * 80
        var workload = Workload()
        workload.trace = [
            TraceEntry(arrivalSeconds: 0, tenant: "holder", inputTokens: 200, outputTokens: 1050),
            TraceEntry(arrivalSeconds: 0, tenant: "holder", inputTokens: 16, outputTokens: 900),
            TraceEntry(arrivalSeconds: 0.5, tenant: "comer", inputTokens: 1000, outputTokens: 100),
        ]
        workload.jobs = workload.trace.count
        let work = Case(shape: shape, workload: workload, theta: theta)
        let (lead, report, requeued) = lead(work, seed: 1)
        #expect(report.failure == nil && report.finished == 3 && requeued > 0)
        #expect(lead <= work.bound && lead >= 0.9 * work.bound, "\(lead) of \(work.bound)")
    }
}
