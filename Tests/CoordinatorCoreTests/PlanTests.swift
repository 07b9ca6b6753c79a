import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

/// Windows, residency and plan deltas.
struct PlanTests {
    private func mlfq(_ configuration: inout CoordinatorConfiguration) {
        configuration.policy = PolicyConfiguration(named: "mlfq") ?? PolicyConfiguration()
        configuration.policy.baseQuantum = .milliseconds(7)
        configuration.policy.promotionPeriod = 0
    }

    /// Two jobs of which one has to pause: a batch of one.
    private func crowded(_ bench: inout Bench) -> WorkerRef {
        let decode = bench.up("d0", batch: 1)
        for number in 1...2 {
            bench.submit(number)
        }
        return decode
    }

    @Test func aPrefillWorkerGetsNoMoreThanItsWindow() {
        var bench = Bench { $0.prefillWindowJobs = 2 }
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        for number in 1...3 { bench.submit(number) }
        #expect(bench.reserved.isEmpty && bench.phase(3) == .queued)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill)
        #expect(bench.reserved.map(\.reserve.transfer) == [bench.transfer(3)])
    }

    /// A flood that has the window of the prefill worker, and one who comes.
    private func flooded(charging units: Int) -> (bench: Bench, prefill: WorkerRef, decode: WorkerRef) {
        var bench = Bench {
            $0.policy = PolicyConfiguration(named: "fair-mlfq") ?? PolicyConfiguration()
            $0.policy.theta = 100
            $0.prefillWindowJobs = 2
        }
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1, tenant: "light")
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        for number in 2...4 { bench.submit(number, tenant: "flood") }
        #expect(bench.phase(4) == .queued)
        bench.core.policy.charge(TenantID("flood"), outputTokens: units)
        return (bench, prefill, decode)
    }

    @Test func oneWhoseTenantIsFarBehindFindsAPlaceInAFullWindowAndGoesFirst() {
        var (bench, prefill, decode) = flooded(charging: 500)
        bench.submit(5, tenant: "light")
        #expect(bench.reserved.map(\.reserve.transfer) == [bench.transfer(5)])
        bench.ackReserve(bench.transfer(5), from: decode)
        #expect(bench.assigned.map(\.assignment.precedes) == [true])
        bench.submit(6, tenant: "light")
        #expect(bench.phase(6) == .queued, "one place more, and no second one")
        bench.ackReserve(bench.transfer(2), from: decode)
        #expect(bench.assigned.map(\.assignment.precedes) == [false])
        bench.done(bench.transfer(5), from: prefill)
        #expect(bench.phase(5) == .transferring)
    }

    @Test func oneWhoseTenantIsWithinThetaWaitsForTheWindow() {
        var (bench, _, _) = flooded(charging: 0)
        bench.core.policy.charge(TenantID("light"), outputTokens: 20)
        bench.submit(5, tenant: "light")
        #expect(bench.phase(5) == .queued)
    }

    @Test(arguments: [(0, 4), (64, 5)])
    func withoutAHostTierATenantsJobsLeaveMemoryForOthersBeyondTheResidency(swapPages: Int, placed: Int) {
        var bench = Bench {
            self.mlfq(&$0)
            $0.policy.discipline = .fairShare(inner: .skipJoin)
            $0.policy.liftsToClampOnly = true
            $0.policy.theta = 20
        }
        // A quarter of 16 blocks stays free; jobs take three each, and one more is for growth.
        let mixed = bench.up("m0", blocks: 16, batch: 1, swapPages: swapPages)
        for number in 1...5 {
            bench.submit(number, prompt: 8, maxTokens: 100)
            guard bench.phase(number) != .queued else { continue }
            bench.say(
                mixed, .startDecodeAck(TransferReply(transfer: bench.transfer(number), refusal: nil, freeBlocks: 9)))
            for offset in 0..<10 {
                bench.step(
                    bench.transfer(number), from: mixed, offset: offset, tokens: [5], prefilled: offset == 0 ? 8 : 0)
            }
        }
        #expect(bench.core.workers[mixed.id]?.jobs.count == placed, "\(swapPages)")
    }

    @Test func theWindowCountsTokensToo() {
        var bench = Bench { $0.prefillWindowTokens = 25 }
        bench.up("p0")
        bench.up("d0")
        bench.submit(1, prompt: 40)
        #expect(bench.reserved.count == 1, "an empty window takes any job")
        bench.submit(2, prompt: 4)
        #expect(bench.reserved.isEmpty)
    }

    @Test func aDecodeWorkerHoldsNoMoreThanItsResidency() {
        var bench = Bench { $0.decodeResidencyPercent = 150 }
        bench.up("d0", batch: 2)
        for number in 1...5 { bench.submit(number) }
        #expect(bench.core.snapshot().queuedJobs == 2)
    }

    @Test func oneWhoseTurnItIsNotIsPausedAndLaterRuns() {
        var bench = Bench { $0.decodeResidencyPercent = 200 }
        let decode = crowded(&bench)
        bench.step(bench.transfer(1), from: decode, offset: 0, tokens: [1], prefilled: 10)
        #expect(bench.plans.isEmpty)
        bench.step(bench.transfer(2), from: decode, offset: 0, tokens: [1], prefilled: 10)
        #expect(bench.plans == [SetRunning(run: [], pause: [bench.transfer(2)], standby: [bench.transfer(2)])])
        #expect(bench.phase(2) == .paused)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [2])
        #expect(bench.plans.isEmpty, "nothing has changed")
        bench.step(bench.transfer(1), from: decode, offset: 2, tokens: [3], end: .finished(.stop))
        #expect(bench.plans == [SetRunning(run: [bench.transfer(2)], pause: [])])
        #expect(bench.phase(2) == .decoding)
    }

    @Test func theFeedbackQueuePreemptsARunningJobForAYoungerOne() {
        var bench = Bench {
            self.mlfq(&$0)
            $0.decodeResidencyPercent = 200
        }
        let decode = crowded(&bench)
        bench.step(bench.transfer(1), from: decode, offset: 0, tokens: [1], prefilled: 10)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [2])
        bench.say(decode, .startDecodeAck(TransferReply(transfer: bench.transfer(2), refusal: nil, freeBlocks: 9)))
        #expect(
            bench.plans == [SetRunning(run: [], pause: [bench.transfer(2)], standby: [bench.transfer(2)])],
            "the first still has quantum")
        for offset in 2...6 where bench.phase(1) == .decoding {
            bench.step(bench.transfer(1), from: decode, offset: offset, tokens: [UInt32(offset + 1)])
        }
        #expect(
            bench.plans == [
                SetRunning(run: [bench.transfer(2)], pause: [bench.transfer(1)], standby: [bench.transfer(1)])
            ])
        #expect(bench.core.counters.preempted == 1)
        #expect(bench.core.view(bench.transfer(1).job)?.route.preemptions == 1)
    }

    @Test func cachedPagesDrawAJobToTheirHolder() {
        var bench = Bench()
        bench.up("p0")
        let second = bench.up("p1")
        bench.up("d0")
        let decode = bench.up("d1")
        let pages = Bench.submission(1, prompt: 200).pageIDs
        for worker in [second, decode] {
            bench.say(worker, .kvEvent(KVEvent(sequence: 1, change: .snapshot(pages))))
        }
        bench.submit(1, prompt: 200)
        #expect(bench.reserved.first?.worker == decode && bench.reserved.first?.reserve.source == second)
    }

    @Test func theTenantThatHadLessGoesFirst() {
        var bench = Bench {
            $0.policy = PolicyConfiguration(named: "vtc") ?? PolicyConfiguration()
            $0.prefillWindowJobs = 1
        }
        let prefill = bench.up("p0")
        let decode = bench.up("d0", batch: 8)
        for number in 1...3 { bench.submit(number, prompt: 20, tenant: "greedy") }
        bench.submit(4, prompt: 20, tenant: "modest")
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill)
        #expect(bench.reserved.map(\.reserve.transfer) == [bench.transfer(4)])
    }
}
