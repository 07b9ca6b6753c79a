import DecodeCore
import Messages
import ServingTypes
import Testing

@Suite struct SteppingTests {
    @Test func aLocalPrefillGoesInChunksAndIsCharged() {
        var bench = DecodeBench { $0.prefillChunkTokens = 4 }
        let tokens = prompt(10)
        bench.start(id(1), tokens, max: 3)
        var prefilled: [Int] = []
        for _ in 0..<3 {
            bench.finishStep()
            prefilled += bench.steps.map(\.prefilledTokens)
        }
        #expect(prefilled == [4, 4, 2])
        #expect(bench.steps.first?.tokens.count == 1)
        #expect(bench.runToEnd(id(1)).tokens == FakeEngine.output(of: tokens, bench.sampling(3)))
    }

    @Test func aSecondTurnFindsTheBlocksThatDecodingFilled() {
        var bench = DecodeBench()
        let tokens = prompt(5)
        bench.start(id(1), tokens, max: 8)
        let (output, _) = bench.runToEnd(id(1))
        bench.start(id(2), tokens + output + prompt(2), max: 1)
        bench.finishStep()
        // 5 + 7 positions were computed: three full blocks.
        #expect(bench.steps.first?.cachedTokens == 12)
        #expect(bench.steps.first?.prefilledTokens == 3)
    }

    @Test func theLastPositionIsAlwaysComputed() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(8), max: 1)
        _ = bench.runToEnd(id(1))
        bench.start(id(2), prompt(8), max: 1)
        #expect(bench.step?.entries.first?.startPosition == 4)
        _ = bench.runToEnd(id(2))
        #expect(bench.core.blockCounts.available == 16)
    }

    @Test func everyRunningJobGetsATokenPerIterationAndPromptsShareWhatIsLeft() {
        var bench = DecodeBench {
            $0.stepTokensMax = 6
            $0.prefillChunkTokens = 8
        }
        bench.start(id(1), prompt(3), max: 10)
        bench.start(id(2), prompt(3, from: 20), max: 10)
        bench.finishStep()
        bench.start(id(3), prompt(9, from: 40), max: 10)
        bench.finishStep()
        bench.finishStep()
        #expect(bench.step?.entries.map(\.tokens.count) == [1, 1, 4])
    }

    @Test func moreJobsThanAStepTakesTakeTurns() {
        var bench = DecodeBench { $0.batchJobsMax = 2 }
        for job in 1...3 {
            bench.start(id(job), prompt(2, from: job * 9), max: 6)
        }
        var turns: [Int: Int] = [:]
        while bench.finishStep() {
            for step in bench.steps { turns[Int(step.transfer.job.low), default: 0] += step.tokens.count }
        }
        #expect(turns == [1: 6, 2: 6, 3: 6])
        #expect(bench.core.heldTransfers.isEmpty)
    }

    @Test func aPausedJobKeepsItsPagesAndGoesOnWhereItWas() {
        var bench = DecodeBench()
        let tokens = prompt(3)
        bench.start(id(1), tokens, max: 6)
        bench.finishStep()
        bench.order(.setRunning(SetRunning(run: [], pause: [id(1)])))
        bench.finishStep()
        #expect(bench.step == nil)
        #expect(bench.core.load.pausedJobs == 1)
        #expect(bench.core.blockCounts.available < 16)
        bench.order(.setRunning(SetRunning(run: [id(1)], pause: [])))
        #expect(bench.step != nil)
        let rest = bench.runToEnd(id(1))
        #expect(rest.end == .finished(.length))
        #expect(rest.tokens.last == FakeEngine.output(of: tokens, bench.sampling(6)).last)
    }

    @Test func aJobInAStepIsCancelledAtItsBorder() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(3), max: 6)
        bench.order(.cancel(Cancel(transfer: id(1), reason: .client)))
        #expect(bench.said.isEmpty)
        #expect(bench.core.blockCounts.available < 16)
        bench.finishStep()
        #expect(bench.said == [.cancelAck(CancelAck(transfer: id(1)))])
        #expect(bench.core.blockCounts.free == 16)
    }

    @Test func theStopTokenIsTheLastTokenOfTheStream() {
        var bench = DecodeBench()
        let tokens = prompt(3)
        let alone = FakeEngine.output(of: tokens, bench.sampling(6))
        bench.start(id(1), tokens, max: 6, stop: [alone[2]])
        let (output, end) = bench.runToEnd(id(1))
        #expect(end == .finished(.stop))
        #expect(output == FakeEngine.output(of: tokens, bench.sampling(6, [alone[2]])))
        #expect(output.last == alone[2])
    }

    @Test func theContextLimitEndsWithLength() {
        var bench = DecodeBench { $0.contextTokensMax = 8 }
        bench.start(id(1), prompt(5), max: 100)
        let (output, end) = bench.runToEnd(id(1))
        #expect(output.count == 3)
        #expect(end == .finished(.length))
    }

    @Test func theYoungestGivesWayWhenMemoryRunsOut() {
        var bench = DecodeBench(blocks: 4)
        bench.start(id(1), prompt(4), max: 12)
        bench.start(id(2), prompt(1, from: 9), max: 12)
        var evicted: [TransferID] = []
        var ended: [TransferID] = []
        while bench.finishStep() {
            evicted += bench.steps.filter { $0.end == .evicted }.map(\.transfer)
            ended += bench.steps.filter { $0.end == .finished(.length) }.map(\.transfer)
        }
        #expect(evicted == [id(2)])
        #expect(ended == [id(1)])
    }

    @Test func aPausedJobGivesWayBeforeAYoungerRunningOne() {
        var bench = DecodeBench(blocks: 6)
        bench.start(id(1), prompt(4), max: 12)
        bench.start(id(2), prompt(1, from: 9), max: 12)
        bench.order(.setRunning(SetRunning(run: [], pause: [id(1)])))
        bench.start(id(3), prompt(5, from: 30), max: 12)
        var evicted: [TransferID] = []
        while bench.finishStep() {
            evicted += bench.steps.filter { $0.end == .evicted }.map(\.transfer)
        }
        #expect(evicted.first == id(1))
    }

    @Test func aJobLargerThanThePoolFailsWithTheNumbers() throws {
        var bench = DecodeBench(blocks: 2)
        bench.start(id(1), prompt(6), max: 20)
        let (output, end) = bench.runToEnd(id(1))
        guard case .failed(let error) = end else {
            Issue.record("ended with \(String(describing: end))")
            return
        }
        #expect(output.isEmpty || output.count <= 3)
        #expect(error.code == .contextTooLong)
        #expect(error.message.contains("9 tokens") && error.message.contains("2 blocks"))
        #expect(bench.core.blockCounts.available == 2)
    }

    @Test func anEntryThatFailsHarmsNoOther() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(2), max: 3)
        bench.finishStep()
        bench.start(id(2), prompt(2, from: 9), max: 3)
        bench.finishStep()
        guard let batch = bench.step else {
            Issue.record("no step")
            return
        }
        bench.step = nil
        var result = bench.engine.run(batch)
        let error = ServingError(.internalError, "logits are not numbers")
        result.outcomes[1] = .failed(error)
        bench.send(.stepFinished(result))
        let ends = bench.steps.filter { $0.end == .failed(error) }.map(\.transfer)
        #expect(ends == [batch.entries[1].transfer])
        #expect(bench.steps.count == 2)
    }
}
