import DecodeCore
import KVPaging
import Messages
import ServingTypes
import Testing

/// The host tier: who leaves, who comes back, and that nothing is lost or read too early.
struct SwappingTests {
    private func bench(blocks: Int = 8, pages: Int = 32, configure: (inout DecodeConfiguration) -> Void = { _ in })
        -> DecodeBench
    {
        DecodeBench(blocks: blocks) { configuration in
            configuration.swapPages = pages
            configure(&configuration)
        }
    }

    /// Runs everything to its end, and adds to every job's output.
    private func run(_ bench: inout DecodeBench, _ outputs: inout [TransferID: [TokenID]]) {
        for _ in 0..<2000 {
            let moved = bench.finishMove()
            if moved { collect(bench, &outputs) }
            let stepped = bench.finishStep()
            if stepped { collect(bench, &outputs) }
            if !moved && !stepped { break }
        }
    }

    private func collect(_ bench: DecodeBench, _ outputs: inout [TransferID: [TokenID]]) {
        for step in bench.steps where !step.tokens.isEmpty {
            let known = outputs[step.transfer, default: []]
            if step.offset != known.count { Issue.record("\(step.transfer) jumps to \(step.offset)") }
            outputs[step.transfer] = known + step.tokens.map(\.token)
        }
    }

    @Test func jobsThatTogetherNeedMoreThanThePoolAllGiveWhatTheyGiveAlone() {
        var bench = bench()
        let prompts = (1...4).map { prompt(3 + $0, from: $0 * 11) }
        var outputs: [TransferID: [TokenID]] = [:]
        for (index, tokens) in prompts.enumerated() {
            bench.start(id(index + 1), tokens, max: 14)
            bench.finishStep()
            collect(bench, &outputs)
        }
        run(&bench, &outputs)
        for (index, tokens) in prompts.enumerated() where bench.core.counters.reservationsRefused == 0 {
            #expect(outputs[id(index + 1)] == FakeEngine.output(of: tokens, bench.sampling(14)), "job \(index + 1)")
        }
        #expect(bench.core.counters.jobsWrittenOut > 0)
        #expect(bench.core.counters.jobsEvicted == 0)
        #expect(bench.core.swapCounts.free == 32)
        #expect(bench.core.blockCounts.available == 8)
    }

    @Test func aPausedJobIsWrittenOutAheadOfNeedAndComesBackByteForByte() {
        var bench = bench(blocks: 8)
        let (tokens, other) = (prompt(13), prompt(9, from: 40))
        bench.start(id(1), tokens, max: 8)
        bench.finishStep()
        var outputs: [TransferID: [TokenID]] = [:]
        collect(bench, &outputs)
        bench.order(.setRunning(SetRunning(run: [], pause: [id(1)], order: [id(1)])))
        bench.finishStep()
        collect(bench, &outputs)
        bench.start(id(2), other, max: 8)
        #expect(bench.moves.map(\.isOut) == [true], "a paused job stays in a pool that is nearly full")
        bench.finishMove()
        #expect(bench.core.swapCounts.held == 4)
        bench.order(.setRunning(SetRunning(run: [id(1)], pause: [], order: [id(1), id(2)])))
        run(&bench, &outputs)
        #expect(outputs[id(1)] == FakeEngine.output(of: tokens, bench.sampling(8)))
        #expect(outputs[id(2)] == FakeEngine.output(of: other, bench.sampling(8)))
        #expect(bench.core.swapCounts.free == 32)
    }

    @Test func theLastInTheCoordinatorsOrderLeavesFirst() {
        var bench = bench(blocks: 6)
        bench.start(id(1), prompt(6), max: 14)
        bench.finishStep()
        bench.start(id(2), prompt(6, from: 30), max: 14)
        bench.finishStep()
        bench.order(.setRunning(SetRunning(run: [], pause: [], order: [id(2), id(1)])))
        while bench.moves.isEmpty, bench.finishStep() {}
        #expect(bench.moves.first?.order.transfer == id(1))
    }

    @Test func aJobThatShouldRunAndLeavesIsReportedAndItsReturnTellsTheStall() {
        var bench = bench(blocks: 6)
        for job in 1...2 {
            bench.start(id(job), prompt(6, from: job * 30), max: 14)
            bench.finishStep()
        }
        var notices: [(TransferID, SwapNotice)] = []
        for _ in 0..<400 {
            bench.wait(10)
            let stepped = bench.finishStep()
            notices += bench.steps.compactMap { step in step.swap.map { (step.transfer, $0) } }
            bench.wait(10)
            let moved = bench.finishMove()
            notices += bench.steps.compactMap { step in step.swap.map { (step.transfer, $0) } }
            if !stepped && !moved { break }
        }
        guard case .left = notices.first?.1, case .back(let stall) = notices.dropFirst().first?.1 else {
            Issue.record("said \(notices)")
            return
        }
        #expect(stall > .zero)
        #expect(bench.core.load.swapStall >= stall)
    }

    @Test func aFullHostTierEvictsAndNamesTheJobThatNeededTheMemory() {
        var bench = bench(blocks: 6, pages: 1)
        for job in 1...2 {
            bench.start(id(job), prompt(6, from: job * 30), max: 14)
            bench.finishStep()
        }
        var evicted: [TokenStep] = []
        for _ in 0..<200 {
            guard bench.finishStep() else { break }
            evicted += bench.steps.filter { $0.end == .evicted }
        }
        #expect(evicted.map(\.transfer) == [id(2)])
        #expect(evicted.first?.evictedFor == id(1))
        #expect(bench.core.counters.jobsWrittenOut == 0)
    }

    @Test func aFailedWriteLosesNothingAndIsNotTriedAgainAtOnce() {
        var bench = bench(blocks: 6)
        let prompts = [prompt(6, from: 30), prompt(6, from: 60)]
        for job in 1...2 {
            bench.start(id(job), prompts[job - 1], max: 14)
            bench.finishStep()
        }
        while bench.moves.isEmpty, bench.finishStep() {}
        bench.finishMove(error: ServingError(.internalError, "No space left on device"))
        #expect(bench.core.counters.swapsFailed == 1)
        var evicted = 0
        for _ in 0..<200 {
            guard bench.finishStep() else { break }
            evicted += bench.steps.count { $0.end == .evicted }
        }
        #expect(evicted == 1, "the job that could not leave is computed again elsewhere")
        #expect(bench.core.counters.jobsWrittenOut == 1)
        #expect(bench.core.swapCounts.free == 32)
    }

    @Test func aFailedReadEndsInRecomputationNeverInDecoding() {
        var bench = bench(blocks: 6)
        for job in 1...2 {
            bench.start(id(job), prompt(6, from: job * 30), max: 14)
            bench.finishStep()
        }
        var evicted: [TransferID] = []
        for _ in 0..<400 {
            if let move = bench.moves.first {
                bench.finishMove(error: move.isOut ? nil : ServingError(.internalError, "bad bytes"))
            } else if !bench.finishStep() {
                break
            }
            evicted += bench.steps.filter { $0.end == .evicted }.map(\.transfer)
        }
        #expect(evicted == [id(2)])
        #expect(bench.core.swapCounts.free == 32)
        #expect(bench.core.blockCounts.available == 6)
    }

    @Test func aJobCancelledWhileItsPagesMoveGivesBothTiersBack() {
        for waitsForWrite in [false, true] {
            var bench = bench(blocks: 6)
            for job in 1...2 {
                bench.start(id(job), prompt(6, from: job * 30), max: 14)
                bench.finishStep()
            }
            while bench.moves.isEmpty, bench.finishStep() {}
            if waitsForWrite { bench.finishMove() }
            bench.order(.cancel(Cancel(transfer: id(2), reason: .client)))
            var acknowledged = bench.said.contains(.cancelAck(CancelAck(transfer: id(2))))
            #expect(acknowledged == waitsForWrite, "what a driver is reading is not given away")
            while bench.finishMove() {
                acknowledged = acknowledged || bench.said.contains(.cancelAck(CancelAck(transfer: id(2))))
            }
            #expect(acknowledged)
            #expect(bench.core.swapCounts.free == 32)
            #expect(bench.runToEnd(id(1)).end == .finished(.length))
            #expect(bench.core.blockCounts.available == 6)
        }
    }

    @Test func aJobTakenWithItsWholeRoomNeverGivesWay() {
        var bench = bench(blocks: 6, pages: 0) { $0.reservesWholeJobs = true }
        bench.start(id(1), prompt(6), max: 10)
        bench.finishStep()
        bench.start(id(2), prompt(6, from: 30), max: 10)
        #expect(
            bench.said == [
                .startDecodeAck(TransferReply(transfer: id(2), refusal: .noMemory, freeBlocks: 1))
            ])
        let first = bench.runToEnd(id(1))
        #expect(first.end == .finished(.length))
        bench.start(id(3), prompt(6, from: 30), max: 10)
        #expect(bench.runToEnd(id(3)).end == .finished(.length))
        #expect(bench.core.counters.jobsEvicted == 0)
    }

    /// Conservation per tier (scheduling.md §6, property 2), with random plans, failures and cancels:
    /// the core audits itself after every event in `DecodeBench.send`.
    @Test(arguments: 1...12) func everyPageHasOnePlaceWhateverHappens(seed: UInt64) {
        var random = Shuffler(state: seed &* 0x9e37_79b9_7f4a_7c15)
        var bench = bench(blocks: 10, pages: 3 + Int(seed) * 3) { $0.movesMax = 1 + Int(seed % 3) }
        var next = 1
        var live: [TransferID] = []
        for _ in 0..<600 {
            switch random.below(8) {
            case 0 where live.count < 8:
                bench.start(id(next), prompt(1 + random.below(9), from: next * 5), max: 1 + random.below(16))
                live.append(id(next))
                next += 1
            case 1:
                let paused = live.filter { _ in random.below(2) == 0 }
                let order = live.sorted { _, _ in random.below(2) == 0 }
                bench.order(
                    .setRunning(
                        SetRunning(run: live.filter { !paused.contains($0) }, pause: paused, order: order)))
            case 2 where !live.isEmpty && random.below(4) == 0:
                bench.order(.cancel(Cancel(transfer: live[random.below(live.count)], reason: .client)))
            case 3, 4:
                bench.finishMove(
                    error: random.below(6) == 0 ? ServingError(.internalError, "seed \(seed)") : nil)
            case 5: bench.wait(Int64(random.below(800)))
            default: bench.finishStep()
            }
            let held = Set(bench.core.heldTransfers)
            live.removeAll { !held.contains($0) }
            #expect(bench.core.swapCounts.total == 3 + Int(seed) * 3, "seed \(seed)")
            #expect(bench.core.blockCounts.total == 10, "seed \(seed)")
        }
        bench.order(.setRunning(SetRunning(run: live, pause: [])))
        for _ in 0..<2000 {
            if !bench.finishMove(), !bench.finishStep() {
                if bench.core.heldTransfers.isEmpty { break }
                bench.wait(1000)
            }
        }
        #expect(bench.core.heldTransfers.isEmpty, "seed \(seed)")
        #expect(bench.core.swapCounts.free == bench.core.swapCounts.total, "seed \(seed)")
    }
}

/// Small seeded draws.
struct Shuffler {
    var state: UInt64

    mutating func below(_ bound: Int) -> Int {
        state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
        return Int((state >> 33) % UInt64(max(bound, 1)))
    }
}
