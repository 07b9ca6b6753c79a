import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

/// Who is charged for what, whatever happens to workers, links and the coordinator itself
/// (scheduling.md §6, property 18).
struct AccountsTests {
    /// Each token that is emitted is accounted once, each prompt once, and what is done again to nobody.
    @Test func theAccountsOfJobsAddUpToWhatWasEmittedUnderDuplicatesReorderingAndDeaths() {
        var recomputed: UInt64 = 0
        for seed in UInt64(9000)..<9050 {
            let cluster = RandomisedClusterTests.cluster(
                seed, FaultPlan(kills: 3, freezes: 1, linkCuts: 3, pushFailurePercent: 5, duplicatePercent: 15))
            cluster.run(limitSeconds: 600)
            var units: [TenantID: Int64] = [:]
            var repeated = 0
            for (id, run) in cluster.runs {
                guard let usage = run.outcome?.usage else {
                    Issue.record("seed \(seed): job \(id) never ended")
                    continue
                }
                #expect(cluster.core.usage(of: id) == usage, "seed \(seed) \(id)")
                #expect(usage.outputTokens == run.emitted.count, "seed \(seed) \(id)")
                #expect(usage.computedTokens + usage.cachedTokens == usage.promptTokens, "seed \(seed) \(id) \(usage)")
                units[run.submission.tenant, default: 0] += Int64(usage.computedTokens + 2 * usage.outputTokens)
                repeated += usage.recomputedTokens
            }
            for (tenant, sum) in units {
                let caused = Int64(cluster.core.causedTokens(of: tenant))
                #expect(cluster.core.chargedUnits(of: tenant) == sum + caused, "seed \(seed) \(tenant)")
            }
            #expect(Int(cluster.core.counters.recomputedTokens) == repeated, "seed \(seed)")
            recomputed += cluster.core.counters.recomputedTokens
        }
        #expect(recomputed > 0, "no seed computed anything again")
    }

    private static func configuration() -> CoordinatorConfiguration {
        var configuration = CoordinatorConfiguration()
        configuration.blockTokens = 4
        configuration.policy = PolicyConfiguration(named: "fair") ?? PolicyConfiguration()
        return configuration
    }

    private static func submission(_ number: UInt64, _ tenant: String, output: Int) -> JobSubmission {
        let prompt = (0..<8).map { TokenID(UInt32($0 + Int(number))) }
        var sampling = SamplingParameters()
        sampling.maxTokens = output
        return JobSubmission(
            job: JobID(high: 2, low: number), tenant: TenantID(tenant), promptTokens: prompt, pageIDs: [],
            sampling: sampling)
    }

    private static func register(_ core: inout Coordinator) {
        _ = core.handle(
            .workerUp(
                WorkerRef(id: WorkerID("mixed-0"), epoch: Epoch(1)),
                Register(
                    role: .mixed, dataHost: "127.0.0.1", dataPort: 1, blockTokens: 4, blockCount: 256, pageBytes: 64,
                    batchJobsMax: 4, stepTokensMax: 64, processID: 1, held: [])), at: Instant(nanoseconds: 1))
    }

    /// One token at a time from the mixed worker.
    private static func give(_ core: inout Coordinator, _ actions: [CoordinatorAction], tokens: Int, at time: Int64) {
        let worker = WorkerRef(id: WorkerID("mixed-0"), epoch: Epoch(1))
        let transfers = actions.compactMap { action -> TransferID? in
            if case .send(_, .startDecode(let start)) = action { start.transfer } else { nil }
        }
        for transfer in transfers {
            _ = core.handle(
                .workerMessage(
                    worker, .startDecodeAck(TransferReply(transfer: transfer, refusal: nil, freeBlocks: 200))),
                at: Instant(nanoseconds: time))
            for offset in 0..<tokens {
                let step = TokenStep(
                    transfer: transfer, offset: offset, tokens: [SampledToken(token: TokenID(7))],
                    prefilledTokens: offset == 0 ? 8 : 0)
                _ = core.handle(
                    .workerMessage(
                        worker, .tokenSteps(TokenSteps(iteration: 1, computeTime: .milliseconds(1), steps: [step]))),
                    at: Instant(nanoseconds: time + Int64(offset)))
            }
        }
    }

    @Test func aJobThatIsRunAgainAfterTheCoordinatorDiedIsChargedOnlyForWhatIsNew() {
        let tenant = TenantID("acme")
        var first = Coordinator(configuration: Self.configuration())
        Self.register(&first)
        let started = first.handle(.submitted(Self.submission(1, "acme", output: 9)), at: Instant(nanoseconds: 2))
        Self.give(&first, started, tokens: 5, at: 10)
        let accounted = first.usage(of: JobID(high: 2, low: 1))
        #expect(accounted?.outputTokens == 5)
        #expect(accounted?.computedTokens == 8)
        let counters = first.counterRecords

        var second = Coordinator(configuration: Self.configuration())
        second.restoreCounters(counters, lastWaiting: first.lastWaitingCounter)
        var again = Self.submission(1, "acme", output: 9)
        again.accounted = accounted
        _ = second.handle(.recovered(again, attempt: Attempt(1)), at: Instant(nanoseconds: 1))
        let worker = WorkerRef(id: WorkerID("mixed-0"), epoch: Epoch(1))
        let restarted = second.handle(
            .workerUp(
                worker,
                Register(
                    role: .mixed, dataHost: "127.0.0.1", dataPort: 1, blockTokens: 4, blockCount: 256, pageBytes: 64,
                    batchJobsMax: 4, stepTokensMax: 64, processID: 1, held: [])), at: Instant(nanoseconds: 2))
        Self.give(&second, restarted, tokens: 9, at: 10)
        let usage = second.usage(of: JobID(high: 2, low: 1))
        #expect(usage?.outputTokens == 9)
        #expect(usage?.computedTokens == 8)
        #expect(usage?.recomputedTokens == 8 + 5, "its prompt and its first tokens again, charged to nobody")
        #expect(second.chargedUnits(of: tenant) == 2 * 4, "four new tokens")
        let parts = second.counterParts(promptTokens: 8, outputTokens: 9, of: tenant)
        #expect(second.counterRecords.first { $0.tenant == tenant }?.value == parts)
    }

    @Test func whatIsChargedAheadForJobsUnderWayIsNotKept() {
        var core = Coordinator(configuration: Self.configuration())
        Self.register(&core)
        _ = core.handle(.submitted(Self.submission(1, "acme", output: 9)), at: Instant(nanoseconds: 2))
        #expect(core.chargedUnits(of: TenantID("acme")) > 0, "the prompt is charged when it is dispatched")
        #expect(core.counterRecords.first?.value ?? 0 > 0)
        #expect(core.counterRecords.first?.promptAhead == 8)
        var next = Coordinator(configuration: Self.configuration())
        next.restoreCounters(core.counterRecords, lastWaiting: nil)
        #expect(next.counterRecords.first?.value == 0)
        #expect(next.chargedUnits(of: TenantID("acme")) == 0)
    }

    @Test func aCrashGivesNoCredit() {
        var core = Coordinator(configuration: Self.configuration())
        core.restoreCounters(
            [
                CounterRecord(tenant: TenantID("busy"), value: 1 << 40, lifted: 0),
                CounterRecord(tenant: TenantID("idle"), value: 0, lifted: 0),
            ], lastWaiting: 1 << 40)
        _ = core.handle(.submitted(Self.submission(1, "idle", output: 9)), at: Instant(nanoseconds: 2))
        #expect(core.counterRecords.first { $0.tenant.name == "idle" }?.value == 1 << 40)
    }

    @Test func recomputationThatAnotherTenantCausedIsThatTenantsCharge() {
        var core = Coordinator(configuration: Self.configuration())
        Self.register(&core)
        let started = core.handle(.submitted(Self.submission(1, "victim", output: 20)), at: Instant(nanoseconds: 2))
        Self.give(&core, started, tokens: 4, at: 10)
        let id = JobID(high: 2, low: 1)
        let before = core.chargedUnits(of: TenantID("victim"))
        core.jobs[id]?.displacedBy = TenantID("taker")
        core.chargeDisplacer(of: id, 12)
        core.chargeDisplacer(of: id, 12)
        #expect(core.chargedUnits(of: TenantID("taker")) == 12, "once")
        #expect(core.chargedUnits(of: TenantID("victim")) == before)
        #expect(core.causedTokens(of: TenantID("taker")) == 12)
    }

    @Test func aWeightSetWhileJobsWaitCountsFromThenOn() {
        var core = Coordinator(configuration: Self.configuration())
        for number in UInt64(1)...3 {
            _ = core.handle(
                .submitted(Self.submission(number, "t\(number)", output: 4)), at: Instant(nanoseconds: Int64(number)))
        }
        #expect(core.policy.waitingWeight == 3)
        core.setWeight(4, of: TenantID("t1"))
        #expect(core.policy.waitingWeight == 6)
        let (heavy, light) = (
            core.counterParts(promptTokens: 0, outputTokens: 4, of: TenantID("t1")),
            core.counterParts(promptTokens: 0, outputTokens: 4, of: TenantID("t2"))
        )
        #expect(heavy * 4 == light)
        for number in UInt64(1)...3 {
            _ = core.handle(.cancelled(JobID(high: 2, low: number), .client), at: Instant(nanoseconds: 9))
        }
        #expect(core.policy.waitingWeight == 0)
    }
}
