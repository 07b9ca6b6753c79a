import DecodeCore
import Messages
import ServingTypes
import Testing

@Suite struct LandingTests {
    private func ack(_ bench: DecodeBench) -> ReserveAck? {
        for case .reserveAck(let ack) in bench.said { return ack }
        return nil
    }

    private func refusal(_ bench: DecodeBench) -> Refusal? {
        for message in bench.said {
            switch message {
            case .reserveNack(let nack): return nack.reason
            case .startDecodeAck(let reply): return reply.refusal
            default: continue
            }
        }
        return nil
    }

    private func failure(_ messages: [Message]) -> TransferFailed.Reason? {
        for case .transferFailed(let failure) in messages { return failure.reason }
        return nil
    }

    @Test func aTransferIsReservedLandedCommittedAndDecoded() throws {
        var bench = DecodeBench()
        let tokens = prompt(10)
        bench.reserve(id(1), tokens)
        #expect(ack(bench)?.wanted == [0, 1, 2])
        let slots = try #require(bench.openedLanding)
        #expect(slots.count == 3)
        #expect(bench.core.blockCounts.reserved == 3)
        bench.peer(.leaseRenew(LeaseRenew(transfer: id(1), lease: .seconds(1))))
        bench.land(id(1), tokens, blocks: [2, 0], slots: slots)
        #expect(bench.core.blockCounts.verified == 2)
        #expect(bench.toldPeer.contains(.pageAck(PageAck(transfer: id(1), blocks: [0]))))
        #expect(bench.toldPeer.contains(.credit(Credit(transfer: id(1), bytes: 64))))
        bench.land(id(1), tokens, blocks: [1], slots: slots)
        #expect(bench.step == nil, "nothing is decoded before the commit")

        bench.peer(bench.end(id(1), tokens, blocks: [0, 1, 2]))
        let commit = TransferCommitted(transfer: id(1), receivedBytes: 192, receivedBlocks: 3, reusedBlocks: 0)
        #expect(bench.toldPeer == [.transferCommitted(commit)])
        #expect(bench.said.first == .transferCommitted(commit))
        #expect(bench.closedLanding)
        #expect(bench.steps.first?.offset == 0)
        let (output, end) = bench.runToEnd(id(1))
        #expect(output == FakeEngine.output(of: tokens, bench.sampling(8)))
        #expect(end == .finished(.length))
        #expect(bench.core.blockCounts.available == 16)
    }

    @Test func aPromptThatIsCachedWholeWantsNothing() {
        var bench = DecodeBench()
        let tokens = prompt(8)
        bench.start(id(1), tokens, max: 2)
        _ = bench.runToEnd(id(1))
        bench.reserve(id(2), tokens)
        #expect(ack(bench)?.wanted == [])
        #expect(bench.openedLanding == nil)
        bench.peer(bench.end(id(2), tokens, blocks: []))
        #expect(!bench.closedLanding)
        #expect(bench.runToEnd(id(2)).tokens == FakeEngine.output(of: tokens, bench.sampling(8)))
    }

    @Test func onlyWhatTheCacheLacksIsWanted() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(9), max: 1)
        _ = bench.runToEnd(id(1))
        bench.reserve(id(2), prompt(9) + prompt(5, from: 3))
        #expect(ack(bench)?.wanted == [2, 3])
    }

    @Test func anEndWithoutAllPagesAsksAgainAndThenFails() throws {
        var bench = DecodeBench()
        let tokens = prompt(10)
        bench.reserve(id(1), tokens)
        let slots = try #require(bench.openedLanding)
        bench.land(id(1), tokens, blocks: [0, 2], slots: slots)
        for _ in 0..<2 {
            bench.peer(bench.end(id(1), tokens, blocks: [0, 1, 2]))
            #expect(bench.toldPeer == [.pageWant(PageWant(transfer: id(1), blocks: [1]))])
        }
        bench.peer(bench.end(id(1), tokens, blocks: [0, 1, 2]))
        #expect(failure(bench.toldPeer) == .incomplete)
        #expect(failure(bench.said) == .incomplete)
        #expect(bench.core.blockCounts.fencing == 3)
    }

    @Test func aPageThatComesAfterTheEndCompletesTheTransfer() throws {
        var bench = DecodeBench()
        let tokens = prompt(6)
        bench.reserve(id(1), tokens)
        let slots = try #require(bench.openedLanding)
        bench.land(id(1), tokens, blocks: [0], slots: slots)
        bench.peer(bench.end(id(1), tokens, blocks: [0, 1]))
        bench.land(id(1), tokens, blocks: [1], slots: slots)
        #expect(bench.core.counters.transfersCommitted == 1)
    }

    @Test func pagesThatAreNotThoseThatWereSentFailTheTransfer() throws {
        var bench = DecodeBench()
        let tokens = prompt(6)
        bench.reserve(id(1), tokens)
        let slots = try #require(bench.openedLanding)
        bench.land(id(1), tokens, blocks: [0, 1], slots: slots)
        bench.peer(bench.end(id(1), prompt(6, from: 9), blocks: [0, 1]))
        #expect(failure(bench.said) == .checksum)
        #expect(bench.core.counters.transfersCommitted == 0)
    }

    @Test func aReservationWithoutProgressExpiresBehindAFence() {
        var bench = DecodeBench()
        bench.reserve(id(1), prompt(10))
        bench.wait(999)
        #expect(failure(bench.said) == nil)
        bench.wait(1)
        #expect(failure(bench.said) == .leaseExpired)
        #expect(bench.closedLanding)
        #expect(bench.core.blockCounts.fencing == 3)
        bench.send(.landingReleased(id(1)))
        #expect(bench.core.blockCounts.free == 16)
        #expect(bench.core.heldTransfers.isEmpty)
    }

    @Test func progressAndRenewalsByTheSourceKeepAReservationAlive() throws {
        var bench = DecodeBench()
        bench.reserve(id(1), prompt(10))
        let slots = try #require(bench.openedLanding)
        bench.wait(900)
        bench.land(id(1), prompt(10), blocks: [0], slots: slots)
        bench.wait(900)
        bench.peer(.leaseRenew(LeaseRenew(transfer: id(1), lease: .seconds(1))))
        bench.wait(900)
        #expect(failure(bench.said) == nil)
        let stranger = WorkerRef(id: DecodeBench.source.id, epoch: Epoch(6))
        bench.send(
            .peerMessage(
                DecodeBench.link, from: stranger, .leaseRenew(LeaseRenew(transfer: id(1), lease: .seconds(1)))))
        bench.wait(200)
        #expect(failure(bench.said) == .leaseExpired, "another incarnation renews nothing")
    }

    @Test func aCancelledReservationIsAcknowledgedOnceItsFenceOpens() {
        var bench = DecodeBench()
        bench.reserve(id(1), prompt(10))
        bench.order(.cancel(Cancel(transfer: id(1), reason: .client)))
        #expect(bench.closedLanding)
        #expect(!bench.said.contains(.cancelAck(CancelAck(transfer: id(1)))))
        bench.order(.cancel(Cancel(transfer: id(1), reason: .client)))
        #expect(!bench.said.contains(.cancelAck(CancelAck(transfer: id(1)))))
        bench.send(.landingReleased(id(1)))
        #expect(bench.said == [.cancelAck(CancelAck(transfer: id(1)))])
    }

    @Test func aCancelOfWhatIsNotHeldIsAcknowledged() {
        var bench = DecodeBench()
        bench.order(.cancel(Cancel(transfer: id(7), reason: .client)))
        #expect(bench.said == [.cancelAck(CancelAck(transfer: id(7)))])
        #expect(bench.core.counters.staleMessagesDropped == 1)
    }

    @Test func aHigherAttemptSupersedesAndALowerOneIsRefused() {
        var bench = DecodeBench()
        bench.reserve(id(1, 2), prompt(10))
        bench.reserve(id(1, 3), prompt(10))
        #expect(ack(bench)?.transfer == id(1, 3))
        #expect(bench.core.heldTransfers == [id(1, 2), id(1, 3)])
        bench.send(.landingReleased(id(1, 2)))
        #expect(bench.core.heldTransfers == [id(1, 3)])
        bench.reserve(id(1, 2), prompt(10))
        #expect(refusal(bench) == .staleAttempt)
        bench.reserve(id(1, 3), prompt(10))
        #expect(ack(bench)?.wanted == [0, 1, 2], "a repeat is answered as the first was")
    }

    @Test func refusalsNameTheirReason() {
        var bench = DecodeBench(blocks: 4) {
            $0.jobsMax = 2
            $0.contextTokensMax = 14
        }
        bench.reserve(id(1), prompt(14))
        #expect(refusal(bench) == .tooLong)
        bench.reserve(id(2), [])
        #expect(refusal(bench) == .malformed)
        bench.reserve(id(3), prompt(6))
        #expect(refusal(bench) == nil)
        bench.reserve(id(4), prompt(6))
        #expect(refusal(bench) == .noMemory, "two blocks are there, and one is kept for growth")
        bench.start(id(5), prompt(2))
        #expect(refusal(bench) == nil)
        bench.start(id(6), prompt(2))
        #expect(refusal(bench) == .tooManyJobs)
        bench.order(.drain(Drain(deadline: .seconds(1))))
        bench.reserve(id(7), prompt(2))
        #expect(refusal(bench) == .draining)
    }

    @Test func afterAReconnectTheSourceHearsWhatIsStillLacking() throws {
        var bench = DecodeBench()
        let tokens = prompt(10)
        bench.reserve(id(1), tokens)
        let slots = try #require(bench.openedLanding)
        bench.land(id(1), tokens, blocks: [0], slots: slots)
        bench.send(.peerDown(DecodeBench.link, from: DecodeBench.source))
        bench.peer(.pageOffer(PageOffer(transfer: id(1), blocks: [0, 1])))
        #expect(bench.toldPeer == [.pageWant(PageWant(transfer: id(1), blocks: [1]))])
        bench.land(id(1), tokens, blocks: [1, 2], slots: slots)
        bench.peer(bench.end(id(1), tokens, blocks: [1, 2]))
        #expect(bench.core.counters.transfersCommitted == 1)
        bench.peer(.pageOffer(PageOffer(transfer: id(1), blocks: [0, 1, 2])))
        guard case .transferCommitted = bench.toldPeer.first else {
            Issue.record("a commit that got lost is repeated, not \(bench.toldPeer)")
            return
        }
        bench.peer(.pageOffer(PageOffer(transfer: id(9), blocks: [0])))
        #expect(failure(bench.toldPeer) == .targetRefused)
    }

    @Test func aFirstTokenThatIsTheLastEndsTheJobAtOnce() {
        let tokens = prompt(3)
        let first = FakeEngine.output(of: tokens, DecodeBench().sampling(1))[0]
        for (max, stop, reason) in [(1, [], FinishReason.length), (5, [first], .stop)] {
            var bench = DecodeBench()
            bench.reserve(id(1), tokens, max: max, stop: stop)
            bench.land(id(1), tokens, blocks: [0], slots: bench.openedLanding ?? [])
            bench.peer(bench.end(id(1), tokens, blocks: [0]))
            #expect(bench.steps.map(\.end) == [.finished(reason)])
            #expect(bench.steps.first?.tokens.map(\.token) == [first])
            #expect(bench.step == nil)
            #expect(bench.core.heldTransfers.isEmpty)
        }
    }
}
