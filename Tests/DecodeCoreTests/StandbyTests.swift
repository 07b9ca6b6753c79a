import DecodeCore
import Messages
import ServingTypes
import Testing

/// Slots that fall free, room that is told, and chunks that are under way.
struct StandbyTests {
    private func told(_ bench: DecodeBench) -> [TokenSteps] {
        bench.said.compactMap { if case .tokenSteps(let steps) = $0 { steps } else { nil } }
    }

    private func three(_ batch: Int) -> DecodeBench {
        var bench = DecodeBench(blocks: 32) { $0.batchJobsMax = batch }
        for job in 1...3 {
            bench.start(id(job), prompt(3, from: job * 20), max: job == 1 ? 12 : 9)
            bench.finishStep()
        }
        return bench
    }

    @Test func whoStandsByTakesASlotInTheVeryNextStepAndIsNamed() {
        var bench = three(1)
        bench.order(.setRunning(SetRunning(run: [], pause: [id(2), id(3)], standby: [id(3), id(2)])))
        var started: [[TransferID]] = []
        while started.isEmpty, bench.finishStep() {
            let ended = bench.steps.contains { $0.transfer == id(1) && $0.end != nil }
            started += told(bench).map(\.started).filter { !$0.isEmpty }
            if ended { break }
        }
        #expect(started == [[id(3)]], "one slot is free, and the first in order has it")
        #expect(bench.step?.entries.map(\.transfer) == [id(3)], "no iteration passes without it")
    }

    @Test func nobodyTakesASlotUnasked() {
        var bench = three(1)
        bench.order(.setRunning(SetRunning(run: [], pause: [id(2), id(3)])))
        while bench.finishStep() {}
        #expect(bench.step == nil && told(bench).allSatisfy { $0.started.isEmpty })
    }

    @Test func whoWasCancelledDoesNotStandIn() {
        var bench = three(1)
        bench.order(.setRunning(SetRunning(run: [], pause: [id(2), id(3)], standby: [id(2), id(3)])))
        bench.order(.cancel(Cancel(transfer: id(2), reason: .client)))
        while bench.step?.entries.first?.transfer == id(1) { bench.finishStep() }
        #expect(bench.step?.entries.map(\.transfer) == [id(3)])
    }

    @Test func everyIterationTellsTheRoomThatIsLeft() {
        var bench = DecodeBench(blocks: 16) { $0.headroomBlocks = 2 }
        bench.start(id(1), prompt(7), max: 4)
        bench.finishStep()
        #expect(told(bench).last?.room == Room(freeBlocks: 12, freeHostPages: 0))
        while bench.finishStep() {}
        #expect(told(bench).last?.room?.freeBlocks == 16, "after the job's end")
    }

    @Test func aClaimSendsPausedJobsToTheHostTierUntilItIsMet() {
        var bench = DecodeBench(blocks: 12) { $0.swapPages = 32 }
        bench.start(id(1), prompt(10), max: 20)
        bench.finishStep()
        bench.start(id(2), prompt(10, from: 40), max: 20)
        bench.finishStep()
        bench.order(.setRunning(SetRunning(run: [], pause: [id(2)], order: [id(1), id(2)])))
        bench.finishStep()
        #expect(bench.moves.isEmpty)
        bench.order(.setRunning(SetRunning(run: [], pause: [], wantedBlocks: 7)))
        #expect(bench.moves.map(\.order.transfer) == [id(2)])
        bench.finishMove()
        let beats = bench.said.contains { if case .heartbeat = $0 { true } else { false } }
        #expect(beats, "the coordinator hears of the room at once")
    }

    /// Property 8: what has begun is completed, whatever is ordered meanwhile.
    @Test func aChunkThatIsUnderWayCompletesThoughItsJobIsPaused() {
        var bench = DecodeBench(blocks: 32) {
            $0.prefillChunkTokens = 4
            $0.stepTokensMax = 4
        }
        bench.start(id(1), prompt(11), max: 4)
        guard let chunk = bench.step?.entries.first else {
            Issue.record("no chunk")
            return
        }
        #expect(chunk.startPosition == 0 && chunk.tokens.count == 4)
        bench.order(.setRunning(SetRunning(run: [], pause: [id(1)])))
        #expect(bench.step?.entries.first?.transfer == id(1), "it goes on")
        bench.finishStep()
        #expect(bench.steps.map(\.prefilledTokens) == [4], "and counts")
        #expect(bench.step == nil, "the next chunk waits")
        bench.order(.setRunning(SetRunning(run: [id(1)], pause: [])))
        #expect(bench.step?.entries.first?.startPosition == 4, "nothing of it is done again")
        let (output, _) = bench.runToEnd(id(1))
        #expect(output == FakeEngine.output(of: prompt(11), bench.sampling(4)))
    }
}
