import Scheduling
import ServingTypes
import Testing

@testable import Simulation

/// Properties of scheduling.md §6 that need the whole cluster. Token and block conservation (1, 2) and the
/// limits of a step (5) are checked on every step of `SimulationSafetyTests`.
@Suite struct ClusterPropertyTests {
    static func policy(_ name: String, theta: Int64 = 500) throws -> PolicyConfiguration {
        var policy = try #require(PolicyConfiguration(named: name))
        policy.theta = theta
        return policy
    }

    static func mixed(_ policy: PolicyConfiguration, batch: Int) -> ClusterShape {
        var shape = ClusterShape()
        (shape.prefill, shape.decode, shape.mixed) = (0, 0, 1)
        shape.policy = policy
        shape.batchJobsMax = batch
        return shape
    }

    static func burst(_ jobs: Int, tenants: Int = 3) -> Workload {
        var workload = Workload()
        workload.jobs = jobs
        workload.rate = 0
        workload.tenants = tenants
        workload.input = .uniform(10, 120)
        workload.output = .lognormal(mean: 16, variation: 1)
        return workload
    }

    /// Property 3: no slot is left empty while a resident job is paused, and no place while one is queued.
    @Test(arguments: ["fcfs", "mlfq", "fair", "fair-mlfq", "vtc"])
    func aSlotIsNeverLeftEmptyWhileAJobWaitsForIt(name: String) throws {
        let shape = Self.mixed(try Self.policy(name), batch: 4)
        var (looks, broken) = (0, [String]())
        let report = WorkloadRun.run(
            shape, Self.burst(60), seed: 3,
            watch: { simulation in
                let snapshot = simulation.coordinator.snapshot()
                guard let worker = snapshot.workers.first else { return }
                looks += 1
                let running = worker.assignedJobs - simulation.paused.count
                if !simulation.paused.isEmpty, running < 4 { broken.append("\(running) run, some are paused") }
                if snapshot.queuedJobs > 0, worker.assignedJobs < 6 { broken.append("\(worker.assignedJobs) assigned") }
            })
        #expect(report.failure == nil && report.finished == 60)
        #expect(looks > 100 && broken.isEmpty, "\(name): \(broken.first ?? "")")
    }

    /// Property 4: a prompt waits only where prefill has its window full, or decode its places.
    @Test func aRoleIdlesOnlyWithoutAdmissibleWork() throws {
        var shape = ClusterShape()
        shape.policy = try Self.policy("fair")
        shape.batchJobsMax = 4
        var (looks, broken) = (0, 0)
        let report = WorkloadRun.run(
            shape, Self.burst(60, tenants: 1), seed: 4,
            watch: { simulation in
                let snapshot = simulation.coordinator.snapshot()
                guard snapshot.queuedJobs > 0, snapshot.workers.count == 2 else { return }
                looks += 1
                let assigned = snapshot.workers.map(\.assignedJobs)
                // Workers in the order of their names: decode-0, prefill-0.
                if assigned[0] < 6, assigned[1] < 4 { broken += 1 }
            })
        #expect(report.failure == nil && report.finished == 60)
        #expect(looks > 50 && broken == 0)
    }

    /// Property 13 on one engine: whoever could run and does not is never more than theta + u behind.
    @Test(arguments: ["fair", "fair-mlfq", "fair-gittins"])
    func countersOfBackloggedTenantsStayTogether(name: String) throws {
        var workload = Workload()
        workload.trace = (0..<60).flatMap { index in
            [
                TraceEntry(arrivalSeconds: 0.001 * Double(index), tenant: "many", inputTokens: 30, outputTokens: 60),
                TraceEntry(arrivalSeconds: 0.001 * Double(index), tenant: "few", inputTokens: 90, outputTokens: 12),
            ]
        }
        workload.jobs = workload.trace.count
        let shape = Self.mixed(try Self.policy(name, theta: 200), batch: 4)
        let gap = CounterGap()
        let report = WorkloadRun.run(shape, workload, seed: 5, watch: { gap.look($0) })
        #expect(report.failure == nil && report.finished == 120)
        // theta, the longest prompt, and an iteration's tokens under way.
        #expect(gap.looks > 100 && gap.greatest <= 200 + 90 + 2 * 4 + 1e-6, "\(name): \(gap.greatest)")
        var unfair = shape
        unfair.policy = try Self.policy("fcfs")
        let other = CounterGap()
        _ = WorkloadRun.run(unfair, workload, seed: 5, watch: { other.look($0) })
        #expect(other.greatest == 0 || other.greatest > gap.greatest)
    }

    /// Property 15: a tenant below its share does not feel how much the others want.
    @Test func twiceTheFloodDoesNotDelayTheLightTenant() throws {
        func firstTokens(_ name: String, flood: Int) throws -> Double {
            var workload = Workload()
            let light = (0..<12).map { index in
                TraceEntry(arrivalSeconds: 2 + 2 * Double(index), tenant: "light", inputTokens: 40, outputTokens: 8)
            }
            let heavy = (0..<flood).map { index in
                TraceEntry(
                    arrivalSeconds: 0.001 * Double(index), tenant: "heavy", inputTokens: 60, outputTokens: 60)
            }
            workload.trace = (light + heavy).sorted { $0.arrivalSeconds < $1.arrivalSeconds }
            workload.jobs = workload.trace.count
            let report = WorkloadRun.run(
                Self.mixed(try Self.policy(name), batch: 4), workload, seed: 6, keepsRecords: true)
            #expect(report.failure == nil && report.finished == workload.jobs)
            return Spread(report.records.filter { $0.tenant.name == "light" }.map(\.timeToFirstToken)).mean
        }
        let (one, two) = (try firstTokens("fair", flood: 100), try firstTokens("fair", flood: 200))
        #expect(abs(two / one - 1) < 0.1, "\(one) s, \(two) s")
        #expect(try firstTokens("fcfs", flood: 100) > 10 * one)
    }

    /// Property 25, reduced: the first 150 s of VTC's trace under three policies.
    @Test(.enabled(if: MetricTests.logs != nil, "TANDEM_VTC_LOGS names no folder with the artifact's logs"))
    func theOrderOfVTCsTableHoldsOnTheFirstPartOfItsTrace() throws {
        let trace = try MetricTests.log("fcfs").filter { $0.arrival < 150 }.map {
            TraceEntry(
                arrivalSeconds: $0.arrival, tenant: $0.tenant.name, inputTokens: $0.inputTokens,
                outputTokens: $0.outputTokens)
        }.sorted { $0.arrivalSeconds < $1.arrivalSeconds }
        var metric = DiffMetric()
        metric.seconds = 150
        metric.window = 30
        metric.shift = 15
        metric.ticks = 10
        var (differences, firstTokens) = ([String: Double](), [String: Double]())
        let shares = Dictionary(grouping: trace, by: { TenantID($0.tenant) }).mapValues(\.count)
        for name in ["fcfs", "vtc", "rpm:5"] {
            let policy = try #require(VTCReproduction.policy(name))
            let report = VTCReproduction.run(policy: policy, trace: trace, seed: 1)
            #expect(report.failure == nil && report.requeues == 0, "\(name)")
            differences[name] = metric.measure(report.records).mean
            firstTokens[name] =
                Spread(
                    report.records.filter { (shares[$0.tenant] ?? 0) < 15 }.map(\.timeToFirstToken)
                ).mean
            let served = name == "rpm:5" ? 100..<trace.count : trace.count..<trace.count + 1
            #expect(served.contains(report.finished), "\(name): \(report.finished) of \(trace.count)")
        }
        let (fcfs, vtc) = (try #require(firstTokens["fcfs"]), try #require(firstTokens["vtc"]))
        #expect(vtc < 0.5 * fcfs, "tenants of few requests: \(firstTokens)")
        #expect(try #require(differences["rpm:5"]) < differences["vtc"] ?? 0, "\(differences)")
    }

    /// Property 25, reduced: above FCFS's knee MLFQ keeps the normalised latency low.
    @Test func theFeedbackQueueKeepsNormalisedLatencyLowAboveTheKnee() throws {
        var workload = Workload()
        workload.jobs = 120
        workload.rate = 6
        workload.input = .fixed(60)
        workload.output = .lognormal(mean: 60, variation: 1.2)
        let fcfs = WorkloadRun.run(FastServeReproduction.shape(FastServeReproduction.fcfs, batch: 4), workload, seed: 7)
        var shape = FastServeReproduction.shape(FastServeReproduction.mlfq(promotes: true), batch: 4)
        shape.residencyPercent = 10_000
        shape.poolTokens = 100_000
        let mlfq = WorkloadRun.run(shape, workload, seed: 7)
        #expect(fcfs.failure == nil && mlfq.failure == nil && fcfs.outputTokens == mlfq.outputTokens)
        #expect(mlfq.normalized.mean < 0.6 * fcfs.normalized.mean)
        #expect(mlfq.preemptions > 50)
    }

    /// Property 23: nobody without the true lengths does better in the mean.
    @Test func theClairvoyantPolicyHasTheLeastMeanCompletionTime() throws {
        var means: [String: Double] = [:]
        for name in ["srpt", "fcfs", "mlfq", "gittins", "fair"] {
            var shape = Self.mixed(try Self.policy(name), batch: 4)
            shape.residencyPercent = 10_000
            let report = WorkloadRun.run(shape, Self.burst(80, tenants: 1), seed: 8)
            #expect(report.failure == nil && report.finished == 80)
            means[name] = report.completion.mean
        }
        let least = try #require(means["srpt"])
        for (name, mean) in means { #expect(least <= 1.02 * mean, "\(name): \(mean) s, srpt \(least) s") }
    }
}
