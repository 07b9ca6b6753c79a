import LocalSupervisor
import ServingTypes
import Testing

private let prefill0 = ProcessName(.prefill, 0)
private let decode0 = ProcessName(.decode, 0)
private let decode1 = ProcessName(.decode, 1)

private func at(_ milliseconds: Int64) -> Instant { Instant(nanoseconds: milliseconds * 1_000_000) }

private func started(_ counts: WorkerCounts) -> SupervisorCore {
    var core = SupervisorCore()
    _ = core.handle(.start(counts), at: at(0))
    return core
}

extension [SupervisorAction] {
    fileprivate var deeds: [SupervisorAction] {
        filter { if case .say = $0 { false } else { true } }
    }
}

@Suite struct SupervisorCoreTests {
    @Test func aStartSpawnsTheCoordinatorAndEveryWorker() {
        var core = SupervisorCore()
        let actions = core.handle(.start(WorkerCounts(prefill: 1, decode: 2)), at: at(0))
        #expect(actions == [.spawn(.coordinator), .spawn(prefill0), .spawn(decode0), .spawn(decode1)])
    }

    @Test func aCrashedWorkerIsRestartedAfterABackOffThatDoubles() {
        var core = started(WorkerCounts(prefill: 1, decode: 1))
        var now: Int64 = 0
        for wait: Int64 in [100, 200, 400, 800] {
            _ = core.handle(.exited(decode0, .signaled(9)), at: at(now))
            #expect(core.handle(.tick, at: at(now + wait - 1)).isEmpty)
            #expect(core.handle(.tick, at: at(now + wait)) == [.spawn(decode0)])
            now += wait
        }
    }

    @Test func theBackOffIsBoundedAndForgottenAfterASteadyRun() {
        var core = started(WorkerCounts(prefill: 0, decode: 1))
        var now: Int64 = 0
        for _ in 0..<20 {
            _ = core.handle(.exited(decode0, .exited(1)), at: at(now))
            now += 10_000
            #expect(core.handle(.tick, at: at(now)) == [.spawn(decode0)])
        }
        now += 30_000
        _ = core.handle(.exited(decode0, .exited(1)), at: at(now))
        #expect(core.handle(.tick, at: at(now + 100)) == [.spawn(decode0)])
    }

    @Test func scalingUpSpawnsAndScalingDownDrainsTheHighestIndex() {
        var core = started(WorkerCounts(prefill: 1, decode: 1))
        #expect(core.handle(.scale(WorkerCounts(prefill: 1, decode: 2)), at: at(1)).deeds == [.spawn(decode1)])
        let down = core.handle(.scale(WorkerCounts(prefill: 1, decode: 1)), at: at(2)).deeds
        #expect(down == [.drain(decode1, deadline: .seconds(30))])
        #expect(core.handle(.exited(decode1, .exited(0)), at: at(3)).deeds.isEmpty)
        #expect(core.processes.map(\.name) == [.coordinator, prefill0, decode0])
    }

    @Test func aWorkerThatDoesNotLeaveIsEndedAndThenKilled() {
        var core = started(WorkerCounts(prefill: 0, decode: 1))
        _ = core.handle(.scale(WorkerCounts(prefill: 0, decode: 0)), at: at(0))
        #expect(core.handle(.tick, at: at(39_999)).isEmpty)
        #expect(core.handle(.tick, at: at(40_000)) == [.terminate(decode0)])
        #expect(core.handle(.tick, at: at(50_000)) == [.kill(decode0)])
    }

    @Test func aWorkerTheCoordinatorCannotDrainIsEndedAtOnce() {
        var core = started(WorkerCounts(prefill: 0, decode: 1))
        _ = core.handle(.scale(WorkerCounts(prefill: 0, decode: 0)), at: at(0))
        #expect(core.handle(.drainRefused(decode0), at: at(1)) == [.terminate(decode0)])
    }

    @Test func aScaleUpDuringADrainTakesAFreshIndex() {
        var core = started(WorkerCounts(prefill: 0, decode: 1))
        _ = core.handle(.scale(WorkerCounts(prefill: 0, decode: 0)), at: at(0))
        #expect(core.handle(.scale(WorkerCounts(prefill: 0, decode: 1)), at: at(1)).deeds == [.spawn(decode1)])
    }

    @Test func shuttingDownEndsTheCoordinatorFirstAndTheWorkersAfterIt() {
        var core = started(WorkerCounts(prefill: 1, decode: 1))
        #expect(core.handle(.shutDown, at: at(0)).deeds == [.terminate(.coordinator)])
        let workers = core.handle(.exited(.coordinator, .exited(0)), at: at(5)).deeds
        #expect(workers == [.terminate(prefill0), .terminate(decode0)])
        #expect(core.handle(.exited(prefill0, .exited(0)), at: at(6)).deeds.isEmpty)
        #expect(core.handle(.exited(decode0, .exited(0)), at: at(7)).deeds == [.finished])
    }

    @Test func aCrashDuringShutdownIsNotRestarted() {
        var core = started(WorkerCounts(prefill: 1, decode: 1))
        _ = core.handle(.shutDown, at: at(0))
        _ = core.handle(.exited(decode0, .signaled(11)), at: at(1))
        #expect(core.handle(.tick, at: at(5000)).isEmpty)
    }

    @Test func aProcessThatKeepsEndingShowsItsCountItsRestartsAndItsLastEnd() throws {
        var core = started(WorkerCounts(prefill: 0, decode: 1))
        _ = core.handle(.exited(decode0, .exited(2)), at: at(0))
        _ = core.handle(.tick, at: at(100))
        let words = core.handle(.exited(decode0, .signaled(9)), at: at(150))
        #expect(words == [.say("decode-0 was ended by signal 9 (2 times in a row); restarting in 200 ms")])
        let state = try #require(core.processes.first { $0.name == decode0 })
        #expect(state.failures == 2 && state.restarts == 1 && state.lastEnd == .signaled(9))
        #expect(state.phase == .backingOff(until: at(350)))
    }

    @Test func aSecondRequestToStopKillsWhateverRuns() {
        var core = started(WorkerCounts(prefill: 1, decode: 1))
        _ = core.handle(.shutDown, at: at(0))
        #expect(core.handle(.endNow, at: at(1)).deeds == [.kill(.coordinator), .kill(prefill0), .kill(decode0)])
        for name in [ProcessName.coordinator, prefill0] {
            #expect(core.handle(.exited(name, .signaled(9)), at: at(2)).deeds.allSatisfy { $0 != .finished })
        }
        #expect(core.handle(.exited(decode0, .signaled(9)), at: at(3)).deeds == [.finished])
    }
}
