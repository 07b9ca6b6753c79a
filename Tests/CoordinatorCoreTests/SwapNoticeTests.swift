import Messages
import ServingTypes
import Testing

@testable import CoordinatorCore

/// Residents whose pages lie in a worker's host tier.
struct SwapNoticeTests {
    private func notice(_ bench: inout Bench, _ number: Int, _ worker: WorkerRef, offset: Int, _ notice: SwapNotice) {
        let step = TokenStep(transfer: bench.transfer(number), offset: offset, tokens: [], swap: notice)
        bench.say(worker, .tokenSteps(TokenSteps(iteration: 2, computeTime: .zero, steps: [step])))
    }

    private func resident(_ bench: inout Bench, _ number: Int, on mixed: WorkerRef) {
        bench.submit(number, maxTokens: 100)
        bench.say(
            mixed, .startDecodeAck(TransferReply(transfer: bench.transfer(number), refusal: nil, freeBlocks: 9)))
        bench.step(bench.transfer(number), from: mixed, offset: 0, tokens: [5], prefilled: 10)
    }

    @Test func nobodyMissesTheTokensOfAJobWhosePagesAreAway() {
        var bench = Bench { $0.jobSilenceMax = .seconds(2) }
        let mixed = bench.up("m0", swapPages: 64)
        resident(&bench, 1, on: mixed)
        notice(&bench, 1, mixed, offset: 1, .left)
        bench.wait(.seconds(10), beating: [mixed], steps: true)
        #expect(bench.core.snapshot().counters.requeued == 0)
        notice(&bench, 1, mixed, offset: 1, .back(stall: .milliseconds(750)))
        let route = bench.core.view(JobID(high: 0, low: 1))?.route
        #expect(route?.swaps == 1 && route?.swapStall == .milliseconds(750) && route?.preemptions == 1)
        #expect(bench.core.snapshot().counters.swappedOut == 1 && bench.core.snapshot().counters.swappedBack == 1)
        bench.wait(.milliseconds(2500), beating: [mixed], steps: true)
        #expect(bench.core.snapshot().counters.requeued == 1, "a job that is back must give tokens again")
    }

    @Test func aNoticeThatIsRepeatedCountsOnce() {
        var bench = Bench()
        let mixed = bench.up("m0", swapPages: 64)
        resident(&bench, 1, on: mixed)
        for _ in 0..<3 { notice(&bench, 1, mixed, offset: 1, .left) }
        for _ in 0..<3 { notice(&bench, 1, mixed, offset: 1, .back(stall: .milliseconds(5))) }
        let route = bench.core.view(JobID(high: 0, low: 1))?.route
        #expect(route?.swaps == 1 && route?.swapStall == .milliseconds(5))
    }

    @Test func aWorkerThatIsShortOfMemoryIsToldTheOrder() {
        var bench = Bench()
        let mixed = bench.up("m0", swapPages: 64)
        for number in 1...3 { resident(&bench, number, on: mixed) }
        var load = LoadReport()
        load.blocks.committed = 62
        load.blocks.free = 2
        load.swap.free = 64
        let orders = bench.say(mixed, .heartbeat(Heartbeat(load: load))).compactMap { action -> [TransferID]? in
            if case .send(_, .setRunning(let plan)) = action { plan.order } else { nil }
        }
        #expect(orders.map { Set($0) } == [Set((1...3).map { bench.transfer($0) })])
        #expect(orders.first?.last == bench.transfer(3), "under FCFS the youngest gives way")
    }

    @Test func whoTookTheMemoryPaysForTheWorkDoneAgain() {
        var bench = Bench { $0.policy = .init(named: "fair") ?? .init() }
        let mixed = bench.up("m0")
        bench.submit(1, tenant: "victim")
        bench.submit(2, tenant: "taker")
        for number in 1...2 {
            bench.say(
                mixed, .startDecodeAck(TransferReply(transfer: bench.transfer(number), refusal: nil, freeBlocks: 9)))
            bench.step(bench.transfer(number), from: mixed, offset: 0, tokens: [5], prefilled: 10)
        }
        let before = bench.core.chargedUnits(of: TenantID("taker"))
        let gone = TokenStep(
            transfer: bench.transfer(1), offset: 1, tokens: [], end: .evicted, evictedFor: bench.transfer(2))
        bench.say(mixed, .tokenSteps(TokenSteps(iteration: 3, computeTime: .zero, steps: [gone])))
        bench.wait(.seconds(1), beating: [mixed], steps: true)
        bench.say(
            mixed, .startDecodeAck(TransferReply(transfer: bench.transfer(1, 2), refusal: nil, freeBlocks: 9)))
        bench.step(bench.transfer(1, 2), from: mixed, offset: 1, tokens: [6], prefilled: 11)
        #expect(bench.core.chargedUnits(of: TenantID("taker")) == before + 11)
        #expect(bench.core.chargedUnits(of: TenantID("victim")) == 10 + 2 * 2)
    }

    @Test func aWorkerThatReservesWholeJobsIsAskedOnlyWithRoomToTheEnd() {
        var bench = Bench()
        bench.up("m0", blocks: 8, reservesWholeJobs: true)
        bench.submit(1, prompt: 10, maxTokens: 14)
        let second = bench.submit(2, prompt: 10, maxTokens: 14)
        #expect(bench.core.view(second)?.phase == .queued, "six blocks and six do not fit into eight")
    }
}
