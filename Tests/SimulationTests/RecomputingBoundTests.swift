import CoordinatorCore
import ServingTypes
import Testing

@testable import Scheduling
@testable import Simulation

/// The bound of fair sharing where memory is short and there is no host tier, as `CoordinatorCore/Residency.swift`
/// states and argues it: max(4 theta, theta + u) + 2 w_q s between a tenant that waits and any other. Left out is what is
/// no service: what others were charged for work done again because of them, and how far they were lifted meanwhile.
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
    private struct Leads {
        var greatest = 0.0
        var requeued: UInt64 = 0
        /// How far everybody had been lifted when a tenant began to wait.
        private var liftedBefore: [TenantID: [TenantID: Double]] = [:]

        mutating func look(_ simulation: ClusterSimulation) {
            let snapshot = simulation.coordinator.snapshot()
            requeued = snapshot.counters.requeued
            let lifted = Dictionary(
                uniqueKeysWithValues: simulation.coordinator.counterRecords.map {
                    ($0.tenant, Double($0.lifted) / Double(TenantCounters.scale))
                })
            let present = snapshot.tenants.filter { $0.queuedJobs + $0.runningJobs > 0 }
            let paused = Set(simulation.paused.compactMap { simulation.jobs[$0]?.request.tenant })
            let waiting = present.filter { $0.queuedJobs > 0 || paused.contains($0.tenant) }
            liftedBefore = liftedBefore.filter { known in waiting.contains { $0.tenant == known.key } }
            for tenant in waiting {
                let before = liftedBefore[tenant.tenant] ?? lifted
                liftedBefore[tenant.tenant] = before
                for other in present where other.tenant != tenant.tenant {
                    let raised = (lifted[other.tenant] ?? 0) - (before[other.tenant] ?? 0)
                    let caused = Double(simulation.coordinator.causedTokens(of: other.tenant))
                    greatest = max(greatest, other.virtualCounter - caused - raised - tenant.virtualCounter)
                }
            }
        }
    }

    private func lead(_ work: Case, seed: UInt64) -> (lead: Double, report: WorkloadReport, requeued: UInt64) {
        var leads = Leads()
        let report = WorkloadRun.run(work.shape, work.workload, seed: seed, watch: { leads.look($0) })
        return (leads.greatest, report, leads.requeued)
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
