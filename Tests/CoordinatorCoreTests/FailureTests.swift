import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

/// What goes wrong, edge by edge (disaggregation.md §6.6).
struct FailureTests {
    @Test func aRefusedReservationGoesToTheNextWorkerUnderAHigherAttempt() {
        var bench = Bench()
        bench.up("p0")
        let first = bench.up("d0")
        let second = bench.up("d1")
        bench.submit(1)
        #expect(bench.reserved.first?.worker == first)
        bench.say(
            first, .reserveNack(ReserveNack(transfer: bench.transfer(1), reason: .tooManyJobs, freeBlocks: 9)))
        #expect(bench.reserved.first?.worker == second)
        #expect(bench.reserved.first?.reserve.transfer == bench.transfer(1, 2))
        #expect(bench.core.counters.requeued == 0, "a no costs no retry")
    }

    @Test func aJobThatEveryoneRefusesIsHeldForAMoment() {
        var bench = Bench()
        bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.say(
            decode, .reserveNack(ReserveNack(transfer: bench.transfer(1), reason: .tooManyJobs, freeBlocks: 64)))
        #expect(bench.reserved.isEmpty && bench.phase(1) == .queued)
        bench.wait(.milliseconds(200))
        #expect(bench.reserved.isEmpty)
        bench.wait(.milliseconds(100))
        #expect(bench.reserved.count == 1)
    }

    @Test func aWorkerWithoutMemoryIsAskedAgainOnceItHasSome() {
        var bench = Bench()
        bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.say(decode, .reserveNack(ReserveNack(transfer: bench.transfer(1), reason: .noMemory, freeBlocks: 1)))
        bench.wait(.milliseconds(900))
        #expect(bench.reserved.isEmpty, "it needs three blocks")
        bench.wait(.milliseconds(50), beating: [decode])
        #expect(bench.reserved.count == 1)
    }

    @Test func aRefusedAssignmentGivesTheReservationBack() {
        var bench = Bench()
        let first = bench.up("p0")
        let second = bench.up("p1")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.say(first, .assignNack(AssignNack(transfer: bench.transfer(1), reason: .noMemory, freeBlocks: 0)))
        #expect(bench.cancelled.map(\.worker) == [decode])
        #expect(bench.reserved.first?.reserve.source == second)
    }

    @Test func aJobThatIsTooLongForEveryWorkerFails() {
        var bench = Bench()
        bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.say(decode, .reserveNack(ReserveNack(transfer: bench.transfer(1), reason: .tooLong, freeBlocks: 9)))
        #expect(Bench.code(bench.finished.first) == .contextTooLong)
    }

    @Test func aReservationWithoutReplyIsCancelledAndTriedElsewhere() {
        var bench = Bench()
        bench.up("p0")
        let first = bench.up("d0")
        let second = bench.up("d1")
        bench.submit(1)
        bench.wait(.milliseconds(1050), beating: [bench.ref("p0"), first, second])
        #expect(bench.cancelled.map(\.worker) == [first])
        #expect(bench.reserved.map(\.worker) == [second])
        #expect(bench.core.worker(first.id)?.state == .inhibited)
    }

    @Test func aLostDecodeWorkersJobResumesFromPromptAndEmittedTokens() throws {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let other = bench.up("d1")
        bench.submit(1, prompt: 10)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101, 102])
        bench.handle(.workerDown(decode))
        let reserve = try #require(bench.reserved.first)
        #expect(reserve.worker == other && reserve.reserve.transfer == bench.transfer(1, 2))
        #expect(reserve.reserve.tokens.suffix(3).map(\.value) == [100, 101, 102])
        #expect(reserve.reserve.promptTokens == 10)
        #expect(reserve.reserve.pageIDs.count == 3, "13 tokens are three full blocks of four")
        bench.ackReserve(bench.transfer(1, 2), from: other)
        bench.done(bench.transfer(1, 2), from: prefill, token: 103)
        #expect(bench.emitted == [103])
        #expect(bench.core.counters.recomputedTokens == 13)
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 10 + 2 * 4, "nobody pays for the loss")
    }

    @Test func aPrefillWorkerLostBeforeTheCommitCostsAnotherPrefill() {
        var bench = Bench()
        let prefill = bench.up("p0")
        bench.up("p1")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill)
        bench.handle(.workerDown(prefill))
        #expect(bench.cancelled.map(\.worker) == [decode] && bench.cancelled.first?.cancel.reason == .peerLost)
        #expect(bench.reserved.first?.reserve.tokens.count == 11)
    }

    @Test func aPrefillWorkerLostAfterTheCommitCostsNothing() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.handle(.workerDown(prefill))
        #expect(bench.phase(1) == .decoding && bench.cancelled.isEmpty)
    }

    @Test func aDecodeWorkerLostDuringPrefillReleasesTheOther() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.handle(.workerDown(decode))
        #expect(bench.cancelled.map(\.worker) == [prefill])
        #expect(bench.phase(1) == .queued)
    }

    @Test func messagesOfAPastAttemptOrEpochAreDroppedAndCounted() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1, 9), from: decode, offset: 1, tokens: [1])
        bench.step(bench.transfer(1), from: bench.ref("d0", 2), offset: 1, tokens: [1])
        bench.step(bench.transfer(1), from: prefill, offset: 1, tokens: [1])
        bench.step(bench.transfer(77), from: decode, offset: 1, tokens: [1])
        #expect(bench.core.counters.staleMessagesDropped == 4)
        #expect(bench.core.tokens(of: bench.transfer(1).job, from: 0)?.count == 1)
    }

    @Test func aGapInTheTokensIsTheWorkersFault() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let other = bench.up("d1")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1), from: decode, offset: 2, tokens: [9])
        #expect(bench.emitted.isEmpty && bench.cancelled.map(\.worker) == [decode])
        #expect(bench.reserved.first?.worker == other)
    }

    @Test func aFailedTransferIsTriedAgainAndTheThirdTimeLocally() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        for attempt in UInt32(1)...2 {
            bench.wait(.milliseconds(100), beating: [prefill, decode])
            bench.ackReserve(bench.transfer(1, attempt), from: decode)
            bench.say(
                prefill, .transferFailed(TransferFailed(transfer: bench.transfer(1, attempt), reason: .cannotConnect)))
        }
        bench.wait(.milliseconds(150), beating: [prefill, decode])
        #expect(bench.started.first?.start.transfer == bench.transfer(1, 3))
        #expect(bench.core.counters.transfersFailed == 2)
    }

    @Test func anEvictedJobResumesFromItsTokens() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let other = bench.up("d1")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101], end: .evicted)
        #expect(bench.emitted == [101])
        #expect(bench.reserved.first?.worker == other && bench.reserved.first?.reserve.tokens.count == 12)
    }

    @Test func anEngineFailureOfTheJobEndsIt() {
        var bench = Bench()
        let decode = bench.up("d0")
        bench.submit(1)
        bench.step(
            bench.transfer(1), from: decode, offset: 0, tokens: [],
            end: .failed(ServingError(.internalError, "logits are not numbers")))
        #expect(Bench.code(bench.finished.first) == .internalError)
    }

    // MARK: Guards

    @Test func twoDeathsAtOnePositionMakeAPoison() {
        var bench = Bench()
        for epoch in UInt64(1)...2 {
            let decode = bench.up("d0", epoch: epoch)
            if epoch == 1 { bench.submit(1) } else { bench.wait(.milliseconds(1100), beating: [decode]) }
            bench.say(
                decode,
                .startDecodeAck(TransferReply(transfer: bench.transfer(1, UInt32(epoch)), refusal: nil, freeBlocks: 9)))
            bench.handle(.workerDown(decode))
        }
        #expect(Bench.code(bench.finished.first) == .poisoned)
        #expect(bench.notes.contains(.jobPoisoned(bench.transfer(1).job, deaths: 2)))
    }

    @Test func deathsWithProgressInBetweenMakeNoPoison() {
        var bench = Bench()
        for epoch in UInt64(1)...4 {
            let decode = bench.up("d0", epoch: epoch)
            if epoch == 1 { bench.submit(1) } else { bench.wait(.milliseconds(1100), beating: [decode]) }
            bench.step(
                bench.transfer(1, UInt32(epoch)), from: decode, offset: Int(epoch) - 1, tokens: [UInt32(epoch)],
                prefilled: 10)
            #expect(bench.emitted == [UInt32(epoch)])
            bench.handle(.workerDown(decode))
        }
        #expect(bench.finished.isEmpty && bench.phase(1) == .queued)
    }

    @Test func aProcessThatComesBackWasNotKilled() {
        var bench = Bench()
        let decode = bench.up("d0")
        bench.submit(1)
        for attempt in UInt32(1)...4 {
            let transfer = bench.transfer(1, attempt)
            bench.say(decode, .startDecodeAck(TransferReply(transfer: transfer, refusal: nil, freeBlocks: 9)))
            bench.handle(.workerDown(decode))
            bench.up("d0", held: [transfer])
            #expect(bench.cancelled.map(\.cancel.transfer) == [transfer])
            bench.core.succeeded(decode.id)
            bench.wait(.milliseconds(2000), beating: [decode], steps: true)
        }
        #expect(bench.core.jobs[bench.transfer(1).job]?.deathsTotal == 0)
    }

    @Test func aJobOfALostCoordinatorGetsAHigherAttemptThanItEverHad() {
        var bench = Bench()
        bench.handle(.recovered(Bench.submission(1), attempt: Attempt(1)))
        bench.up("d0", held: [bench.transfer(1, 5)])
        #expect(bench.cancelled.map(\.cancel.transfer) == [bench.transfer(1, 5)])
        #expect(bench.started.map(\.start.transfer) == [bench.transfer(1, 6)])
        bench.say(
            bench.ref("d0"),
            .startDecodeAck(TransferReply(transfer: bench.transfer(1, 6), refusal: .staleAttempt, freeBlocks: 9)))
        #expect(bench.started.map(\.start.transfer) == [bench.transfer(1, 7)])
    }

    @Test func aBystanderIsNotSuspected() {
        var bench = Bench { $0.poisonDeaths = 1 }
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill)
        bench.handle(.workerDown(decode))
        #expect(bench.finished.isEmpty, "it was not decoding yet")
    }

    @Test func tooManyFailuresWithoutATokenEndTheJob() {
        var bench = Bench {
            $0.redispatchMax = 2
            $0.inhibitFirst = .milliseconds(1)
            $0.inhibitMax = .milliseconds(1)
        }
        let decode = bench.up("d0")
        bench.submit(1)
        var outcomes: [JobOutcome] = []
        for _ in 0..<3 {
            outcomes += bench.wait(.milliseconds(1500), beating: [decode]).compactMap { action in
                if case .jobFinished(let outcome) = action { outcome } else { nil }
            }
        }
        #expect(Bench.code(outcomes.first) == .noWorker)
    }

    @Test func aFailedWorkerRestsTwiceAsLongEachTimeAndThenGetsOneJob() {
        var bench = Bench()
        let id = WorkerID("d0")
        bench.up("d0")
        bench.handle(.workerDown(bench.ref("d0")))
        let second = bench.up("d0", epoch: 2)
        bench.submit(1)
        bench.submit(2)
        bench.wait(.milliseconds(900), beating: [second])
        #expect(bench.started.isEmpty && bench.core.worker(id)?.state == .inhibited)
        bench.wait(.milliseconds(150), beating: [second])
        #expect(bench.started.count == 1, "half open: one job")
        bench.step(bench.transfer(1), from: second, offset: 0, tokens: [1], prefilled: 10)
        #expect(bench.started.count == 1, "it succeeded: the other follows")
        bench.handle(.cancelled(bench.transfer(2).job, .client))
        bench.core.inhibit(id)
        bench.core.inhibit(id)
        bench.wait(.milliseconds(1050), beating: [second], steps: true)
        #expect(!bench.core.isInhibited(id), "failures of one incident count once")
        bench.core.inhibit(id)
        bench.wait(.milliseconds(1900), beating: [second], steps: true)
        #expect(bench.core.isInhibited(id))
        bench.wait(.milliseconds(150), beating: [second], steps: true)
        #expect(!bench.core.isInhibited(id))
    }
}
