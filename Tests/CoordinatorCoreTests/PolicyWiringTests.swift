import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

/// What the coordinator asks of its policy, and tells it.
struct PolicyWiringTests {
    // MARK: The bridge

    /// Six jobs of `greedy` and some of `modest`, whose counter is ahead, within theta; a window of four.
    private func crowd(quotas: Bool, modest: Int, ahead: Int = 1500) -> Bench {
        var bench = Bench {
            $0.policy = PolicyConfiguration(named: "fair") ?? PolicyConfiguration()
            $0.bridgeQuotas = quotas
            $0.bridgeBlocks = $0.prefillWindowTokens / $0.blockTokens
            $0.decodeResidencyPercent = 1000
        }
        for number in 1...6 { bench.submit(number, tenant: "greedy") }
        for number in 0..<modest { bench.submit(10 + number, tenant: "modest") }
        if modest > 0 { bench.core.policy.charge(TenantID("modest"), promptTokens: ahead) }
        return bench
    }

    private func reservedTenants(_ bench: Bench) -> [String] {
        bench.reserved.map { $0.reserve.tenant.name }
    }

    @Test func oneTenantsPromptsDoNotFillTheBridge() {
        var bench = crowd(quotas: true, modest: 3)
        bench.up("d0", blocks: 200)
        #expect(bench.reserved.isEmpty)
        bench.handle(.workerDown(bench.ref("d0")))
        bench.up("p0")
        bench.up("d1", blocks: 200)
        #expect(reservedTenants(bench) == ["greedy", "greedy", "modest", "modest"])
    }

    @Test func withoutQuotasTheLeastCounterTakesItAll() {
        var bench = crowd(quotas: false, modest: 3)
        bench.up("p0")
        bench.up("d1", blocks: 200)
        #expect(reservedTenants(bench) == Array(repeating: "greedy", count: 4))
    }

    @Test func noShareOfTheBridgeIsForATenantThatIsFurtherThanThetaAhead() {
        var bench = crowd(quotas: true, modest: 3, ahead: 2500)
        bench.up("p0")
        bench.up("d1", blocks: 200)
        #expect(reservedTenants(bench) == Array(repeating: "greedy", count: 4))
    }

    @Test func nobodyStandsBackForTenantsThatDoNotWait() {
        var alone = crowd(quotas: true, modest: 0)
        alone.up("p0")
        alone.up("d1", blocks: 200)
        #expect(reservedTenants(alone) == Array(repeating: "greedy", count: 4))
        var nearly = crowd(quotas: true, modest: 1)
        nearly.up("p0")
        nearly.up("d1", blocks: 200)
        #expect(reservedTenants(nearly) == ["greedy", "greedy", "modest", "greedy"])
    }

    @Test func theBridgeIsEmptyOnceAllHaveLeftIt() {
        var bench = crowd(quotas: true, modest: 2)
        let prefill = bench.up("p0")
        let decode = bench.up("d1", blocks: 200)
        #expect(bench.core.tenants[TenantID("greedy")]?.bridgeJobs == 2)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.handle(.cancelled(bench.transfer(2).job, .client))
        for number in 3...6 { bench.handle(.cancelled(bench.transfer(number).job, .client)) }
        #expect(bench.core.tenants[TenantID("greedy")]?.bridgeJobs == 0)
        #expect(bench.core.tenants[TenantID("greedy")]?.bridgeUnits == 0)
        bench.handle(.workerDown(prefill))
        bench.handle(.workerDown(decode))
        #expect(bench.core.tenants[TenantID("modest")]?.bridgeJobs == 0)
        #expect(bench.core.tenants[TenantID("modest")]?.bridgeUnits == 0)
    }

    // MARK: Residency

    /// Paused or running jobs of a tenant that is ahead do not keep out a job that would take their slot.
    @Test(arguments: [("fair", true), ("vtc", false), ("fcfs", false)])
    func aFullWorkerTakesAJobThatWouldDisplaceAResident(name: String, takes: Bool) {
        var bench = Bench {
            $0.policy = PolicyConfiguration(named: name) ?? PolicyConfiguration()
            $0.policy.theta = 10
            $0.decodeResidencyPercent = 100
        }
        let decode = bench.up("d0", batch: 2)
        for number in 1...4 { bench.submit(number, maxTokens: 100, tenant: "greedy") }
        for number in 1...2 {
            bench.step(
                bench.transfer(number), from: decode, offset: 0, tokens: Array(repeating: 1, count: 40), prefilled: 10)
        }
        #expect(bench.core.snapshot().queuedJobs == 2, "greedy does not displace itself")
        bench.submit(10, tenant: "modest")
        bench.core.policy.charge(TenantID("greedy"), outputTokens: 100)
        bench.submit(11, tenant: "modest")
        #expect((bench.phase(10) != .queued) == takes, "\(name)")
        for number in 12...20 { bench.submit(number, tenant: "modest") }
        #expect(bench.core.worker(decode.id)?.assignedJobs ?? 0 <= 2 + 2, "a batch above the residency at most")
    }

    // MARK: Refusals and hints

    @Test func aClairvoyantPolicyRefusesJobsOfUnknownLength() {
        for name in PolicyConfiguration.clairvoyantNames {
            var bench = Bench { $0.policy = PolicyConfiguration(named: name) ?? PolicyConfiguration() }
            bench.submit(1)
            #expect(bench.refusals.first?.code == .invalidValue && bench.refusals.first?.field == "policy", "\(name)")
            #expect(bench.refusals.first?.message.contains(name) ?? false)
            var known = Bench.submission(2)
            known.knownOutputTokens = 5
            bench.handle(.submitted(known))
            #expect(bench.refusals.isEmpty, "\(name)")
        }
    }

    @Test func aRateLimitRefusesWithTheTimeToWait() {
        var bench = Bench {
            $0.policy = PolicyConfiguration(named: "rpm") ?? PolicyConfiguration()
            $0.policy.requestsPerMinute = 2
        }
        for number in 1...2 { bench.submit(number) }
        bench.now = bench.now + .seconds(20)
        bench.submit(3)
        #expect(bench.refusals.first?.code == .rateLimited && bench.refusals.first?.retryAfterSeconds == 40)
        bench.submit(4, tenant: "b")
        #expect(bench.refusals.isEmpty)
    }

    @Test func aThrottledJobGoesWhenItsMinuteComes() {
        var bench = Bench {
            $0.policy = PolicyConfiguration(named: "rpm-queue") ?? PolicyConfiguration()
            $0.policy.requestsPerMinute = 1
        }
        let decode = bench.up("d0")
        for number in 1...2 { bench.submit(number) }
        #expect(bench.core.snapshot().queuedJobs == 1)
        bench.handle(.cancelled(bench.transfer(1).job, .client))
        func starts(_ actions: [CoordinatorAction]) -> Bool {
            Bench.sent(actions).contains {
                if case .startDecode(let start) = $0.message {
                    start.transfer.job == bench.transfer(2).job
                } else {
                    false
                }
            }
        }
        #expect(!starts(bench.wait(.seconds(59), beating: [decode], steps: true)))
        #expect(starts(bench.wait(.seconds(2), beating: [decode], steps: true)))
    }

    @Test func aDueInstantPutsAJobBeforeItsTenantsOthers() {
        var bench = Bench { $0.policy = PolicyConfiguration(named: "fair") ?? PolicyConfiguration() }
        bench.submit(1)
        var urgent = Bench.submission(2)
        urgent.due = .milliseconds(500)
        bench.handle(.submitted(urgent))
        bench.up("d0")
        #expect(bench.started.map(\.start.transfer.job.low) == [2, 1])
    }

    // MARK: Charges (property 18 of scheduling.md §6)

    /// Whatever is repeated, comes late, overtakes or is lost with a worker: each token is charged
    /// once, and the prompt as it was computed first.
    @Test func everyTokenIsChargedOnceWhateverWorkersRepeat() {
        var most = 0
        for seed in UInt64(0)..<40 {
            var random = SeededGenerator(seed: seed)
            var bench = Bench {
                $0.policy = PolicyConfiguration(named: random.chance(50) ? "fair" : "vtc-predict") ?? .init()
            }
            let prefill = bench.up("p0")
            var epoch: UInt64 = 1
            var decode = bench.up("d0")
            bench.submit(1, prompt: 10, maxTokens: 200)
            var attempt: UInt32 = 1
            bench.bringToDecoding(bench.transfer(1), prefill, decode)
            var given = 1
            var old: [(TransferID, WorkerRef, Int)] = []
            for _ in 0..<60 {
                let transfer = bench.transfer(1, attempt)
                switch random.pick(0...9) {
                case 0...4:
                    let count = random.pick(1...3)
                    let tokens = (0..<count).map { UInt32(100 + given + $0) }
                    bench.step(transfer, from: decode, offset: given, tokens: tokens)
                    old.append((transfer, decode, given))
                    given += count
                case 5, 6:
                    // The same iteration again, or one that overlaps what is known.
                    let from = random.pick(0...max(given - 1, 0))
                    bench.step(transfer, from: decode, offset: from, tokens: (from..<given).map { UInt32(100 + $0) })
                case 7:
                    if let (stale, worker, offset) = old.randomElement(using: &random) {
                        bench.step(stale, from: worker, offset: offset, tokens: [UInt32(100 + offset)])
                    }
                case 8: bench.done(transfer, from: prefill, token: 100)
                default:
                    // The worker dies and comes back; the job starts again from its log.
                    bench.handle(.workerDown(decode))
                    epoch += 1
                    decode = bench.up("d0", epoch: epoch)
                    bench.wait(.seconds(3), beating: [prefill, decode], steps: true)
                    attempt = bench.core.attempt(of: transfer.job)?.number ?? attempt
                    bench.ackReserve(bench.transfer(1, attempt), from: decode)
                    bench.done(bench.transfer(1, attempt), from: prefill, token: UInt32(100 + given))
                    bench.commit(bench.transfer(1, attempt), from: decode)
                }
                given = bench.core.view(transfer.job)?.usage.outputTokens ?? 0
                let charged = bench.core.policy.chargedUnits(of: TenantID("a"))
                #expect(charged == 10 + 2 * Int64(given), "seed \(seed): \(given) tokens are logged")
            }
            most = max(most, given)
        }
        #expect(most > 40, "tokens do flow")
    }

    /// The first token, which the prefill worker gives, and the last are charged like the others,
    /// and an attempt after a loss charges nobody for what is computed again.
    @Test func theFirstAndTheLastTokenAreChargedLikeTheOthers() {
        var bench = Bench { $0.policy = PolicyConfiguration(named: "vtc") ?? PolicyConfiguration() }
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1, prompt: 10, maxTokens: 2)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 12)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101], end: .finished(.length))
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 14)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101], end: .finished(.length))
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 14)
    }
}
