import DecodeCore
import Messages
import ServingTypes
import Testing

@Suite struct BelongingTests {
    private func held(_ bench: DecodeBench) -> [TransferID]? {
        for case .register(let register) in bench.said { return register.held }
        return nil
    }

    @Test func theFirstWordIsTheRegistrationAndTheSecondTheSnapshot() {
        let bench = DecodeBench()
        #expect(held(bench) == [])
        #expect(bench.said.count == 2)
        guard case .kvEvent(let event) = bench.said.last, case .snapshot = event.change else {
            Issue.record("said \(bench.said)")
            return
        }
    }

    @Test func heartbeatsCarryTheLoad() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(5), max: 3)
        bench.wait(250)
        guard case .heartbeat(let beat) = bench.said.first else {
            Issue.record("said \(bench.said)")
            return
        }
        #expect(beat.load.runningJobs == 1)
        #expect(beat.load.queuedTokens == 5)
        #expect(beat.load.blocks.total == 16)
    }

    @Test func tokensWaitForAnAbsentCoordinatorAndAreToldAfterTheRegistration() {
        var bench = DecodeBench()
        let tokens = prompt(3)
        bench.start(id(1), tokens, max: 4)
        bench.send(.coordinatorDown)
        while bench.finishStep() { #expect(bench.said.isEmpty) }
        bench.send(.coordinatorUp)
        #expect(held(bench) == [id(1)], "its last tokens are on the way, so it counts as held")
        #expect(bench.steps.flatMap { $0.tokens.map(\.token) } == FakeEngine.output(of: tokens, bench.sampling(4)))
        #expect(bench.steps.last?.end == .finished(.length))
    }

    @Test func tokensThatABreakingLinkMayHaveLostAreSaidAgain() {
        var bench = DecodeBench()
        let tokens = prompt(3)
        bench.start(id(1), tokens, max: 2)
        bench.finishStep()
        let first = bench.steps
        bench.wait(600)
        bench.finishStep()
        let second = bench.steps
        #expect(first.count == 1 && second.last?.end == .finished(.length))
        bench.wait(500)
        bench.send(.coordinatorDown)
        bench.send(.coordinatorUp)
        #expect(held(bench) == [id(1)], "its end may be lost, so it counts as held")
        #expect(bench.steps == second, "what is older has arrived")
        bench.wait(1001)
        bench.send(.coordinatorDown)
        bench.send(.coordinatorUp)
        #expect(held(bench) == [])
        #expect(bench.steps.isEmpty)
    }

    @Test func decodingRestsWhenTheBufferIsFull() {
        var bench = DecodeBench { $0.bufferedTokensMax = 3 }
        bench.start(id(1), prompt(3), max: 50)
        bench.send(.coordinatorDown)
        while bench.finishStep() {}
        bench.send(.coordinatorUp)
        #expect(bench.steps.count == 3)
        #expect(bench.step != nil)
    }

    @Test func anOrphanDropsEverythingAfterItsGrace() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(3), max: 50)
        bench.reserve(id(2), prompt(5))
        bench.send(.coordinatorDown)
        bench.wait(29_999)
        #expect(!bench.core.heldTransfers.isEmpty)
        bench.wait(1)
        bench.finishStep()
        bench.send(.landingReleased(id(2)))
        #expect(bench.core.heldTransfers.isEmpty)
        #expect(bench.core.blockCounts.available == 16)
    }

    @Test func aDrainFinishesWhatRunsAndThenLeaves() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(3), max: 2)
        bench.order(.drain(Drain(deadline: .seconds(5))))
        #expect(!bench.said.contains(.drainDone(DrainDone())))
        bench.finishStep()
        bench.finishStep()
        #expect(bench.said.contains(.drainDone(DrainDone())))
        guard case .exitAfterDrain = bench.actions.last else {
            Issue.record("\(bench.actions)")
            return
        }
    }

    @Test func atTheDrainsDeadlineTheRestIsHandedBack() {
        var bench = DecodeBench()
        bench.start(id(1), prompt(3), max: 40)
        bench.finishStep()
        bench.order(.drain(Drain(deadline: .seconds(1))))
        bench.wait(1000)
        bench.finishStep()
        #expect(bench.steps.map(\.end) == [.evicted])
        #expect(bench.said.last == .drainDone(DrainDone()))
    }

    @Test func anIdleWorkerLeavesAtOnce() {
        var bench = DecodeBench()
        bench.order(.drain(Drain(deadline: .seconds(1))))
        #expect(bench.said == [.drainDone(DrainDone())])
    }
}
