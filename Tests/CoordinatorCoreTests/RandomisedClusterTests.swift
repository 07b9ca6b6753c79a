import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

/// Whole-cluster runs from seeds. The oracle is a pure function of the prompt: whatever happens to
/// workers and links, each stream equals it.
struct RandomisedClusterTests {
    static let names = PolicyConfiguration.names

    static func configuration(_ seed: UInt64) -> CoordinatorConfiguration {
        var configuration = CoordinatorConfiguration()
        let name = names[Int(seed) % names.count]
        configuration.policy = PolicyConfiguration(named: name) ?? PolicyConfiguration()
        configuration.policy.theta = 20
        configuration.policy.baseQuantum = .milliseconds(4)
        configuration.blockTokens = 4
        configuration.placement.localPrefillThreshold = seed.isMultiple(of: 3) ? 8 : 0
        if seed.isMultiple(of: 2) { configuration.relief = ReliefConfiguration(wait: .milliseconds(1)) }
        configuration.poisonDeaths = 1000
        configuration.poisonDeathsTotal = 1000
        configuration.redispatchMax = 1000
        configuration.endedJobsMax = 1000
        return configuration
    }

    /// Builds a cluster and a workload from a seed.
    static func cluster(_ seed: UInt64, _ faults: FaultPlan, mixed: Bool = false) -> FakeCluster {
        let cluster = FakeCluster(seed: seed, configuration: configuration(seed), faults: faults)
        let blocks = cluster.random.pick(30...70)
        if mixed {
            for index in 0..<2 { cluster.add("mixed-\(index)", .mixed, blockCount: blocks, batchJobsMax: 3) }
        } else {
            for index in 0..<cluster.random.pick(1...2) {
                cluster.add("prefill-\(index)", .prefill, blockCount: 64, batchJobsMax: 1)
            }
            for index in 0..<cluster.random.pick(1...3) {
                cluster.add("decode-\(index)", .decode, blockCount: blocks, batchJobsMax: cluster.random.pick(1...4))
            }
        }
        for number in 0..<cluster.random.pick(6...14) {
            let submission = Self.submission(number, &cluster.random)
            cluster.submit(submission, after: cluster.random.pick(0...1_500_000))
            if number < faults.stops { cluster.stopAt[submission.job] = cluster.random.pick(1...8) }
        }
        cluster.scheduleFaults(within: 2_500_000)
        return cluster
    }

    static func submission(_ number: Int, _ random: inout SeededGenerator) -> JobSubmission {
        let prompt = (0..<random.pick(1...40)).map { _ in TokenID(UInt32(random.pick(0...996))) }
        var sampling = SamplingParameters()
        sampling.maxTokens = random.chance(15) ? 1 : random.pick(1...70)
        if random.chance(30) {
            let output = HashModel.output(of: prompt, sampling)
            sampling.stopTokens = [output[random.pick(0...output.count - 1)]]
        }
        let tenant = TenantID("tenant-\(random.pick(0...2))")
        return JobSubmission(
            job: JobID(high: 1, low: UInt64(number)), tenant: tenant, promptTokens: prompt,
            pageIDs: TestNaming().names(of: prompt, blockTokens: 4, tenant: tenant), sampling: sampling,
            priority: random.pick(-1...1))
    }

    /// Everything that must hold after a run.
    static func check(_ cluster: FakeCluster, _ seed: UInt64, mayCancel: Bool) {
        let counters = cluster.core.counters
        cluster.witnessed["preempted", default: 0] += Int(counters.preempted)
        cluster.witnessed["local", default: 0] += Int(counters.decodedLocally)
        cluster.witnessed["committed", default: 0] += Int(counters.transfersCommitted)
        cluster.witnessed["stale", default: 0] += Int(counters.staleMessagesDropped)
        cluster.witnessed["repeated", default: 0] += Int(counters.duplicateTokensDropped)
        cluster.witnessed["cancelled", default: 0] += Int(counters.cancelled)
        cluster.witnessed["stopped", default: 0] += Int(counters.finishedStop)
        cluster.witnessed["drained", default: 0] += cluster.drained.count
        #expect(cluster.complaints.isEmpty, "seed \(seed)")
        var tokens: [TenantID: Int64] = [:]
        var prompts: [TenantID: Int64] = [:]
        for id in cluster.order {
            guard let run = cluster.runs[id] else { continue }
            guard let outcome = run.outcome else {
                Issue.record("seed \(seed): job \(id) never ended, now \(String(describing: cluster.core.view(id)))")
                continue
            }
            let tenant = run.submission.tenant
            tokens[tenant, default: 0] += Int64(run.charged)
            prompts[tenant, default: 0] += Int64(run.submission.promptTokens.count)
            #expect(run.emitted == Array(run.oracle.prefix(run.emitted.count)), "seed \(seed) job \(id)")
            let log = cluster.core.tokens(of: id, from: 0)?.map(\.token)
            #expect(log == Array(run.emitted.prefix(outcome.usage.outputTokens)), "seed \(seed) job \(id)")
            checkEnding(run, outcome, seed, mayCancel: mayCancel)
        }
        let snapshot = cluster.core.snapshot()
        #expect(snapshot.liveJobs == 0 && snapshot.queuedJobs == 0, "seed \(seed)")
        #expect(snapshot.workers.allSatisfy { $0.assignedJobs == 0 }, "seed \(seed)")
        #expect(snapshot.tenants.allSatisfy { $0.queuedJobs == 0 && $0.runningJobs == 0 }, "seed \(seed)")
        #expect(cluster.core.jobTimers.isEmpty && cluster.core.holds.isEmpty, "seed \(seed)")
        #expect(cluster.core.policy.knownJobs == 0 && cluster.core.policy.waitingJobs == 0, "seed \(seed)")
        for worker in cluster.workers where worker.alive && worker.link != nil {
            #expect(worker.holdsNothing, "seed \(seed): \(worker.id) still holds \(worker.held)")
        }
        for (tenant, output) in tokens {
            let prompt = cluster.core.policy.chargedUnits(of: tenant) - 2 * output
            let all = (prompts[tenant] ?? 0) + Int64(cluster.core.causedTokens(of: tenant))
            #expect(
                mayCancel ? (0...all).contains(prompt) : prompt == all, "seed \(seed) \(tenant) \(prompt) of \(all)")
        }
    }

    static func checkEnding(_ run: FakeCluster.JobRun, _ outcome: JobOutcome, _ seed: UInt64, mayCancel: Bool) {
        switch outcome.ending {
        case .finished(.cancelled): #expect(mayCancel, "seed \(seed)")
        case .finished(.length):
            #expect(run.emitted == run.oracle, "seed \(seed) job \(outcome.job)")
            #expect(run.oracle.count == run.submission.sampling.maxTokens, "seed \(seed)")
        case .finished(.stop):
            let stopped = outcome.usage.outputTokens < run.emitted.count || run.emitted != run.oracle
            let byString = stopped || !run.submission.sampling.stopTokens.contains(run.oracle.last ?? TokenID(0))
            #expect(mayCancel || !byString, "seed \(seed) job \(outcome.job)")
        case .finished(.failed), .failed:
            Issue.record("seed \(seed): job \(outcome.job) failed: \(outcome.ending)")
        }
    }

    /// Faults that never struck prove nothing.
    static func expectWitnessed(_ names: [String], _ witnessed: [String: Int]) {
        for name in names { #expect(witnessed[name, default: 0] > 0, "never: \(name)") }
    }

    @Test func withoutFaultsEveryStreamEqualsTheOracle() {
        var witnessed: [String: Int] = [:]
        for seed in UInt64(0)..<40 {
            let cluster = Self.cluster(seed, FaultPlan())
            cluster.run(limitSeconds: 120)
            Self.check(cluster, seed, mayCancel: false)
            witnessed.merge(cluster.witnessed, uniquingKeysWith: +)
        }
        Self.expectWitnessed(["preempted", "local", "committed", "requeued: evicted"], witnessed)
    }

    @Test func refusalsAndRepeatedMessagesChangeNoStream() {
        var witnessed: [String: Int] = [:]
        for seed in UInt64(1000)..<1030 {
            let cluster = Self.cluster(
                seed, FaultPlan(pushFailurePercent: 10, refusalPercent: 25, duplicatePercent: 10))
            cluster.run(limitSeconds: 600)
            Self.check(cluster, seed, mayCancel: false)
            witnessed.merge(cluster.witnessed, uniquingKeysWith: +)
        }
        Self.expectWitnessed(["stale", "repeated", "requeued: transfer failed: linkLost"], witnessed)
    }

    @Test func killedAndRestartedWorkersChangeNoStream() {
        var witnessed: [String: Int] = [:]
        for seed in UInt64(2000)..<2060 {
            let cluster = Self.cluster(seed, FaultPlan(kills: 5))
            cluster.run(limitSeconds: 600)
            Self.check(cluster, seed, mayCancel: false)
            witnessed.merge(cluster.witnessed, uniquingKeysWith: +)
        }
        Self.expectWitnessed(
            ["lost", "requeued: lost", "requeued: replaced by a new incarnation", "suspected"], witnessed)
    }

    @Test func frozenAndStalledWorkersChangeNoStream() {
        var witnessed: [String: Int] = [:]
        for seed in UInt64(3000)..<3030 {
            let cluster = Self.cluster(seed, FaultPlan(freezes: 3, stalls: 3))
            cluster.run(limitSeconds: 600)
            Self.check(cluster, seed, mayCancel: false)
            witnessed.merge(cluster.witnessed, uniquingKeysWith: +)
        }
        Self.expectWitnessed(
            [
                "stalled", "requeued: is silent", "requeued: makes no progress",
                "requeued: no reply to ReservePages from",
            ], witnessed)
    }

    @Test func cutLinksChangeNoStream() {
        var witnessed: [String: Int] = [:]
        for seed in UInt64(4000)..<4040 {
            let cluster = Self.cluster(seed, FaultPlan(linkCuts: 6, duplicatePercent: 3))
            cluster.run(limitSeconds: 600)
            Self.check(cluster, seed, mayCancel: false)
            witnessed.merge(cluster.witnessed, uniquingKeysWith: +)
        }
        Self.expectWitnessed(["requeued: lost", "requeued: its link to was replaced"], witnessed)
    }

    @Test func drainedWorkersLoseNoJob() {
        var witnessed: [String: Int] = [:]
        for seed in UInt64(5000)..<5030 {
            let cluster = Self.cluster(seed, FaultPlan(drains: 2))
            cluster.run(limitSeconds: 600)
            Self.check(cluster, seed, mayCancel: false)
            witnessed.merge(cluster.witnessed, uniquingKeysWith: +)
        }
        Self.expectWitnessed(["drained", "requeued: evicted"], witnessed)
    }

    @Test func everythingAtOnceLosesNothing() {
        var witnessed: [String: Int] = [:]
        for seed in UInt64(6000)..<6070 {
            let plan = FaultPlan(
                kills: 3, freezes: 2, stalls: 1, linkCuts: 3, pushFailurePercent: 5, refusalPercent: 10,
                duplicatePercent: 5, cancels: 3, stops: 2, drains: 1)
            let cluster = Self.cluster(seed, plan, mixed: seed.isMultiple(of: 4))
            cluster.run(limitSeconds: 600)
            Self.check(cluster, seed, mayCancel: true)
            witnessed.merge(cluster.witnessed, uniquingKeysWith: +)
        }
        Self.expectWitnessed(["lost", "stalled", "drained", "stale", "cancelled", "stopped"], witnessed)
    }

    @Test func theSameSeedGivesTheSameRun() {
        for seed in UInt64(7000)..<7004 {
            let plan = FaultPlan(kills: 3, linkCuts: 2, pushFailurePercent: 5, refusalPercent: 10, cancels: 1)
            let logs = (0..<2).map { _ in
                let cluster = Self.cluster(seed, plan)
                cluster.run(limitSeconds: 300)
                return cluster.order.map { cluster.runs[$0]?.outcome }
            }
            #expect(logs[0] == logs[1], "seed \(seed)")
        }
    }
}
