import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

struct MembershipTests {
    @Test func aWorkerIsAcknowledgedAndHeartbeatsGoOut() {
        var bench = Bench()
        let decode = bench.up("d0")
        #expect(
            bench.sent.contains {
                $0.worker == decode
                    && $0.message == .registerAck(RegisterAck(heartbeatEvery: .milliseconds(250), lease: .seconds(10)))
            })
        bench.wait(.seconds(1), beating: [decode])
        let beats = bench.sent.filter { if case .heartbeat = $0.message { true } else { false } }
        #expect(beats.count == 4)
    }

    @Test func aWorkerWithOtherBlocksIsRefused() {
        var bench = Bench { $0.blockTokens = 16 }
        let decode = bench.up("d0")
        #expect(bench.closed == [decode] && bench.core.worker(decode.id) == nil)
    }

    @Test func theTableOfWorkersIsBounded() {
        var bench = Bench { $0.workersMax = 1 }
        bench.up("d0")
        let second = bench.up("d1")
        #expect(bench.closed == [second])
    }

    @Test func aNewEpochReplacesTheOldOne() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let old = bench.up("d0")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, old)
        bench.up("d0", epoch: 2)
        #expect(bench.closed == [old] && bench.phase(1) == .queued)
        bench.step(bench.transfer(1), from: old, offset: 1, tokens: [9])
        #expect(bench.emitted.isEmpty && bench.core.counters.staleMessagesDropped == 1)
    }

    @Test func transfersThatNobodyKnowsAreCancelledOnRegistration() {
        var bench = Bench()
        let held = [bench.transfer(5), bench.transfer(6, 3)]
        let decode = bench.up("d0", held: held)
        #expect(bench.cancelled.map(\.cancel.transfer) == held)
        #expect(bench.cancelled.allSatisfy { $0.worker == decode && $0.cancel.reason == .superseded })
    }

    @Test func aNewLinkOfTheSameProcessKeepsWhatItDecodes() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.submit(2)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.up("d0", held: [bench.transfer(1)])
        #expect(bench.phase(1) == .decoding)
        #expect(bench.core.attempt(of: bench.transfer(2).job) == Attempt(2), "its reservation is uncertain")
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [9])
        #expect(bench.emitted == [9])
    }

    @Test func aDrainGoesOnOverANewLink() {
        var bench = Bench()
        bench.up("p0")
        let decode = bench.up("d0")
        bench.handle(.drain(decode.id, deadline: .seconds(1)))
        bench.up("d0")
        bench.submit(1)
        #expect(bench.core.worker(decode.id)?.state == .draining && bench.reserved.isEmpty)
        bench.say(decode, .drainDone(DrainDone()))
        #expect(bench.drained == [decode.id])
    }

    @Test func aWorkerThatRefusesBecauseItLeavesIsNotAskedAgain() {
        var bench = Bench()
        bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.say(
            decode, .reserveNack(ReserveNack(transfer: bench.transfer(1), reason: .draining, freeBlocks: 8)))
        bench.submit(2)
        #expect(bench.core.worker(decode.id)?.state == .draining && bench.reserved.isEmpty)
        let other = bench.up("d1")
        #expect(Set(bench.reserved.map(\.worker)) == [other])
    }

    @Test func silenceMakesASuspectAndThenADeadWorker() {
        var bench = Bench()
        let decode = bench.up("d0")
        bench.wait(.milliseconds(1000))
        #expect(bench.core.worker(decode.id)?.state == .suspect)
        bench.say(decode, .heartbeat(Heartbeat(load: LoadReport())))
        #expect(bench.core.worker(decode.id)?.state == .ready)
        bench.wait(.milliseconds(2950))
        #expect(bench.closed.isEmpty)
        bench.wait(.milliseconds(100))
        #expect(bench.closed == [decode] && bench.core.worker(decode.id) == nil)
        bench.handle(.workerDown(decode))
        #expect(bench.actions.isEmpty, "known already")
    }

    @Test func theCoordinatorsOwnPauseIsNobodysSilence() {
        var bench = Bench()
        let decode = bench.up("d0")
        bench.wait(.milliseconds(100))
        bench.now = bench.now + .seconds(10)
        bench.handle(.tick)
        #expect(bench.closed.isEmpty && bench.core.worker(decode.id)?.state == .ready)
    }

    @Test func aWorkerWhoseHeartBeatsButWhoseStepsStandStillLosesItsJobs() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.wait(.milliseconds(2900), beating: [prefill, decode])
        #expect(bench.phase(1) == .decoding)
        bench.wait(.milliseconds(200), beating: [prefill, decode])
        #expect(bench.notes.contains { if case .workerStalled(decode, _) = $0 { true } else { false } })
        #expect(bench.cancelled.map(\.worker) == [decode])
        #expect(bench.finished.isEmpty && bench.core.jobs[bench.transfer(1).job]?.deathsTotal == 0)
    }

    @Test func finishedStepsAndIdlenessAreNoStall() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.wait(.seconds(10), beating: [prefill, decode])
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.wait(.seconds(10), beating: [prefill, decode], steps: true)
        #expect(bench.phase(1) == .decoding && bench.cancelled.isEmpty)
    }

    @Test func aDrainedWorkerGetsNoNewWorkAndItsJobsGoOn() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.handle(.drain(decode.id, deadline: .seconds(1)))
        #expect(bench.sent.contains { $0.worker == decode && $0.message == .drain(Drain(deadline: .seconds(1))) })
        bench.submit(2)
        #expect(bench.reserved.isEmpty && bench.phase(2) == .queued)
        let other = bench.up("d1")
        #expect(bench.reserved.map(\.worker) == [other])
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [1], end: .evicted)
        #expect(bench.reserved.map(\.worker) == [other])
        bench.say(decode, .drainDone(DrainDone()))
        #expect(bench.drained == [decode.id] && bench.core.worker(decode.id)?.state == .drained)
        bench.handle(.workerDown(decode))
        #expect(bench.drained.isEmpty && !bench.core.isInhibited(decode.id))
    }

    @Test func aDrainIsEndedByForceOrByDeath() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.handle(.drain(decode.id, deadline: .seconds(1)))
        bench.wait(.milliseconds(6100), beating: [prefill, decode], steps: true)
        #expect(bench.drained == [decode.id] && bench.cancelled.map(\.worker) == [decode])
        let second = bench.up("d1")
        bench.handle(.drain(second.id, deadline: .seconds(1)))
        bench.handle(.workerDown(second))
        #expect(bench.drained == [second.id])
    }

    @Test func aMessageThatOnlyTheCoordinatorMaySendCostsTheLink() {
        var bench = Bench()
        let decode = bench.up("d0")
        bench.say(decode, .drain(Drain(deadline: .zero)))
        #expect(bench.closed == [decode] && bench.core.worker(decode.id) == nil)
    }
}
