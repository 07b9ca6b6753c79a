import Messages
import PrefillCore
import ServingTypes
import Testing

@Suite struct PrefillTests {
    @Test func pagesLeaveChunkByChunkWhileThePrefillGoesOn() {
        var bench = PrefillBench { $0.prefillChunkTokens = 4 }
        bench.assign(id(1), prompt(10), wanted: [0, 1, 2])
        #expect(bench.connects == 1)
        bench.send(.peerUp(PrefillBench.target))
        #expect(bench.toldPeer == [.leaseRenew(LeaseRenew(transfer: id(1), lease: .seconds(1)))])
        bench.finishStep()
        #expect(bench.pushed == [0])
        bench.finishStep()
        #expect(bench.pushed == [1])
        bench.finishStep()
        #expect(bench.pushed == [2])
        #expect(
            bench.said.contains(
                .prefillDone(PrefillDone(transfer: id(1), firstToken: PrefillBench.first, cachedTokens: 0))))
        bench.pageSent(id(1), 0)
        bench.pageSent(id(1), 1)
        #expect(bench.toldPeer.isEmpty)
        bench.pageSent(id(1), 2)
        let sums = (0..<3).map { PageSum(block: $0, crc: $0 + 100) }
        #expect(
            bench.toldPeer == [
                .transferEnd(
                    TransferEnd(transfer: id(1), pages: sums, firstToken: PrefillBench.first, cachedTokens: 0))
            ])
        bench.peer(
            .transferCommitted(
                TransferCommitted(transfer: id(1), receivedBytes: 192, receivedBlocks: 3, reusedBlocks: 0)))
        #expect(bench.core.heldTransfers.isEmpty)
        #expect(bench.core.blockCounts.evictable == 2, "full pages stay as cache")
        #expect(bench.core.blockCounts.free == 14)
    }

    @Test func progressIsToldPerChunkWithItsShareOfTheTime() {
        var bench = PrefillBench {
            $0.prefillChunkTokens = 6
            $0.stepTokensMax = 8
        }
        bench.assign(id(1), prompt(6), wanted: [])
        bench.finishStep()
        bench.assign(id(2), prompt(6, from: 30), wanted: [])
        bench.assign(id(3), prompt(6, from: 60), wanted: [])
        bench.finishStep()
        #expect(bench.step?.entries.map(\.tokens.count) == [6])
        let progress = bench.said.compactMap { message in
            if case .prefillProgress(let progress) = message { progress } else { nil }
        }
        #expect(progress.map(\.computeTime) == [.milliseconds(10)])
        #expect(progress.map(\.computedTokens) == [6])
    }

    @Test func cachedBlocksAreNotComputedAgainAndLeaveAtOnce() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(8), wanted: [])
        bench.finishStep()
        bench.send(.peerUp(PrefillBench.target))
        bench.assign(id(2), prompt(8) + prompt(4, from: 50), wanted: [0, 2])
        #expect(bench.pushed == [0])
        #expect(bench.step?.entries.first?.startPosition == 8)
        bench.finishStep()
        #expect(bench.pushed == [2], "only wanted blocks travel")
    }

    @Test func theLastPositionIsAlwaysComputed() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(8), wanted: [])
        bench.finishStep()
        bench.assign(id(2), prompt(8), wanted: [])
        #expect(bench.step?.entries.first?.startPosition == 4)
    }

    @Test func pagesWaitForCredit() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(12), wanted: [0, 1, 2], credit: 128)
        bench.send(.peerUp(PrefillBench.target))
        bench.finishStep()
        #expect(bench.pushed == [0, 1])
        bench.pageSent(id(1), 0)
        #expect(bench.pushed.isEmpty)
        bench.peer(.credit(Credit(transfer: id(1), bytes: 64)))
        #expect(bench.pushed == [2])
    }

    @Test func promptsAreComputedInTheOrderGivenAndWaitForMemory() {
        var bench = PrefillBench(blocks: 3)
        bench.assign(id(1), prompt(8), wanted: [0, 1])
        bench.assign(id(2), prompt(8, from: 30), wanted: [])
        bench.assign(id(3), prompt(2, from: 60), wanted: [])
        bench.finishStep()
        #expect(bench.step == nil, "the second waits for memory and the third does not overtake it")
        bench.cancel(id(1))
        #expect(bench.step?.entries.map(\.transfer) == [id(2), id(3)])
    }

    @Test func refusalsNameTheirReason() {
        var bench = PrefillBench(blocks: 3) {
            $0.jobsMax = 1
            $0.contextTokensMax = 100
        }
        bench.assign(id(1), prompt(13), wanted: [])
        #expect(bench.refusal == .tooLong)
        bench.assign(id(2), prompt(4), wanted: [1])
        #expect(bench.refusal == .malformed)
        bench.assign(id(3), prompt(4), wanted: [0, 0])
        #expect(bench.refusal == .malformed)
        bench.assign(id(4), prompt(4), wanted: [0])
        #expect(bench.refusal == nil)
        bench.assign(id(5), prompt(4), wanted: [0])
        #expect(bench.refusal == .tooManyJobs)
        bench.assign(id(4, 0), prompt(4), wanted: [0])
        #expect(bench.refusal == .staleAttempt)
        bench.send(.coordinatorMessage(.drain(Drain(deadline: .seconds(1)))))
        bench.assign(id(6), prompt(4), wanted: [0])
        #expect(bench.refusal == .draining)
    }

    @Test func aHigherAttemptSupersedes() {
        var bench = PrefillBench()
        bench.assign(id(1, 1), prompt(4), wanted: [0])
        bench.assign(id(1, 2), prompt(4), wanted: [0])
        bench.finishStep()
        #expect(bench.core.heldTransfers == [id(1, 2)])
    }

    @Test func aCancelledJobIsAcknowledgedBehindItsFence() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(8), wanted: [0, 1])
        bench.send(.peerUp(PrefillBench.target))
        bench.finishStep()
        bench.cancel(id(1))
        #expect(bench.stopsPushing)
        #expect(bench.said.isEmpty)
        #expect(bench.core.blockCounts.committed == 2, "a sender may still read them")
        bench.send(.pushingStopped(id(1)))
        #expect(bench.said == [.cancelAck(CancelAck(transfer: id(1)))])
        #expect(bench.core.blockCounts.available == 16)
        bench.cancel(id(1))
        #expect(bench.said == [.cancelAck(CancelAck(transfer: id(1)))])
    }

    @Test func aJobInAStepIsCancelledAtItsBorder() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(8), wanted: [0, 1])
        bench.cancel(id(1))
        #expect(bench.said.isEmpty)
        bench.finishStep()
        #expect(bench.said == [.cancelAck(CancelAck(transfer: id(1)))])
        #expect(bench.core.blockCounts.free == 16)
    }

    @Test func aPageWhoseChecksumFailsIsSentOnceMore() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [0])
        bench.send(.peerUp(PrefillBench.target))
        bench.finishStep()
        bench.pageSent(id(1), 0)
        bench.peer(.pageNack(PageNack(transfer: id(1), block: 0, reason: .checksum)))
        #expect(bench.pushed == [0])
        bench.pageSent(id(1), 0)
        #expect(bench.toldPeer.count == 1, "the end is said again after the page")
        bench.peer(.pageNack(PageNack(transfer: id(1), block: 0, reason: .checksum)))
        #expect(bench.failure == .checksum)
        #expect(bench.core.heldTransfers.isEmpty)
    }

    @Test func whatTheTargetLacksIsSentAgain() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(8), wanted: [0, 1])
        bench.send(.peerUp(PrefillBench.target))
        bench.finishStep()
        bench.pageSent(id(1), 0)
        bench.peer(.pageWant(PageWant(transfer: id(1), blocks: [1])))
        #expect(bench.pushed.isEmpty, "it is on its way")
        bench.pageSent(id(1), 1)
        bench.peer(.pageWant(PageWant(transfer: id(1), blocks: [1])))
        #expect(bench.pushed == [1])
        bench.pageSent(id(1), 1)
        #expect(bench.toldPeer.count == 1)
    }

    @Test func afterABrokenLinkOnlyWhatDidNotArriveIsSentAgain() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(12), wanted: [0, 1, 2])
        bench.send(.peerUp(PrefillBench.target))
        bench.finishStep()
        bench.pageSent(id(1), 0)
        bench.pageSent(id(1), 1)
        bench.send(.peerDown(PrefillBench.target))
        #expect(bench.connects == 0)
        bench.wait(100)
        #expect(bench.connects == 1)
        bench.send(.peerUp(PrefillBench.target))
        #expect(bench.toldPeer.last == .pageOffer(PageOffer(transfer: id(1), blocks: [0, 1, 2])))
        #expect(bench.pushed.isEmpty)
        bench.peer(.pageWant(PageWant(transfer: id(1), blocks: [1, 2])))
        #expect(bench.pushed == [1, 2])
    }

    @Test func aTargetThatCannotBeReachedFailsTheTransferAfterThreeTries() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [0])
        bench.finishStep()
        bench.send(.peerDown(PrefillBench.target))
        bench.wait(100)
        bench.send(.peerDown(PrefillBench.target))
        bench.wait(199)
        #expect(bench.connects == 0, "the pause doubles")
        bench.wait(1)
        #expect(bench.connects == 1)
        #expect(bench.failure == nil)
        bench.send(.peerDown(PrefillBench.target))
        #expect(bench.failure == .cannotConnect)
        #expect(bench.core.blockCounts.evictable == 1, "the prefill is not lost")
    }

    @Test func aTransferThatNobodyCommitsIsGivenUpAfterItsLease() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [0])
        bench.send(.peerUp(PrefillBench.target))
        bench.finishStep()
        bench.pageSent(id(1), 0)
        bench.wait(999)
        #expect(bench.failure == nil)
        bench.wait(1)
        #expect(bench.failure == .leaseExpired)
        #expect(bench.core.blockCounts.available == 16)
    }

    @Test func leasesAreRenewedOnlyAsLongAsSomethingMoves() {
        var bench = PrefillBench { $0.prefillChunkTokens = 4 }
        bench.assign(id(1), prompt(30), wanted: [0], lease: .milliseconds(300))
        bench.send(.peerUp(PrefillBench.target))
        bench.wait(100)
        #expect(bench.toldPeer.isEmpty, "nothing has moved")
        bench.finishStep()
        bench.wait(1)
        #expect(bench.toldPeer.count == 1)
        bench.wait(100)
        #expect(bench.toldPeer.isEmpty)
    }

    @Test func anEngineThatFailsIsToldToTheCoordinator() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [0])
        bench.step = nil
        bench.send(
            .stepFinished(
                StepResult(outcomes: [.failed(ServingError(.internalError, "no"))], computeTime: .zero)))
        #expect(bench.failure == .engine)
        #expect(bench.core.blockCounts.free == 16)
    }

    @Test func aTargetThatRefusesEndsTheTransfer() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [0])
        bench.send(.peerUp(PrefillBench.target))
        bench.peer(.transferFailed(TransferFailed(transfer: id(1), reason: .targetRefused)))
        #expect(bench.failure == .targetRefused)
        bench.finishStep()
        #expect(bench.core.heldTransfers.isEmpty)
    }

    @Test func aLinkThatNobodyNeedsIsGivenBackAfterAWhile() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [])
        bench.send(.peerUp(PrefillBench.target))
        bench.finishStep()
        bench.cancel(id(1))
        bench.wait(0)
        bench.wait(29_999)
        #expect(bench.actions.isEmpty || !isReleased(bench))
        bench.wait(1)
        #expect(isReleased(bench))
    }

    private func isReleased(_ bench: PrefillBench) -> Bool {
        bench.actions.contains { action in
            if case .releasePeer = action { true } else { false }
        }
    }

    @Test func aDrainFinishesWhatIsHeldAndThenLeaves() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [])
        bench.send(.peerUp(PrefillBench.target))
        bench.send(.coordinatorMessage(.drain(Drain(deadline: .seconds(5)))))
        bench.finishStep()
        #expect(bench.toldPeer.count == 1)
        bench.peer(
            .transferCommitted(TransferCommitted(transfer: id(1), receivedBytes: 0, receivedBlocks: 0, reusedBlocks: 1))
        )
        #expect(bench.said.last == .drainDone(DrainDone()))
    }

    @Test func anOrphanDropsEverythingAfterItsGrace() {
        var bench = PrefillBench()
        bench.assign(id(1), prompt(4), wanted: [0], lease: .seconds(100))
        bench.finishStep()
        bench.send(.coordinatorDown)
        bench.wait(30_000)
        #expect(bench.core.heldTransfers.isEmpty)
        #expect(bench.said.isEmpty)
    }
}
