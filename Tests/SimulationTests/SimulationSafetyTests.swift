import Testing

@testable import Simulation

/// The production cores under the fault model of reliability.md §2, a cluster per seed. A failure
/// prints what `tandem simulate --safety --seed N --trace` shows in full.
@Suite struct SimulationSafetyTests {
    /// As many as fit in some 20 s of a debug build; the release runner takes 10,000 and more.
    static let seeds: UInt64 = 140

    static func line(_ seed: UInt64, _ failure: String) -> Comment {
        "seed \(seed): \(failure); replay: tandem simulate --safety --seed \(seed) --trace"
    }

    @Test func everySeedKeepsEveryPromiseAndComesToRest() {
        var (happened, events, jobs) = ([String: Int](), UInt64(0), 0)
        for seed in 1...Self.seeds {
            let result = SafetyRun.run(seed: seed)
            if let failure = result.failure { Issue.record(Self.line(seed, failure)) }
            happened.merge(result.witnessed, uniquingKeysWith: +)
            events += result.events
            jobs += result.jobs
        }
        print("simulation: \(Self.seeds) seeds, \(jobs) jobs, \(events) events")
        // What is rarer (`prompt.precedes`: once in some fifty seeds) is asked of the 10,000 (`SafetyTally.kinds`).
        for fault in [
            "fault.kill.busy", "fault.vanish.busy", "fault.freeze.busy", "fault.freezeCoordinator",
            "fault.crashCoordinator.busy", "fault.cutControl", "fault.holdControl", "fault.holdPages",
            "fault.slowPages", "fault.drain.busy", "page.corrupted", "page.refused.checksum", "message.repeated",
            "message.held", "client.cancel", "client.stop", "fence.receiver", "fence.sender", "token.repeated",
            "job.recovered", "job.requeued", "job.stop", "job.length", "fault.clockForward.worker.busy",
            "fault.clockForward.coordinator.busy", "fault.clockBack.worker.busy", "fault.clockBack.coordinator.busy",
            "fault.suspend.worker.busy", "fault.suspend.coordinator", "message.lost", "pages.reordered",
            "pool.evicted", "reserve.refused.noMemory", "prompt.relieved",
            "job.failed.deadline_exceeded",
        ] {
            #expect(happened[fault, default: 0] > 0, "never: \(fault)")
        }
    }

    /// Every kind of fault at every phase; the release runner sweeps every single event.
    @Test func oneFaultAtAnyEventOfARunCostsAPauseAndNothingElse() {
        let events = SafetyRun.eventsOfSweep()
        #expect(events > 200)
        var random = SimulationRandom(seed: 11)
        for strike in SafetyRun.Strike.allCases {
            for _ in 0..<12 {
                let index = UInt64(random.within(1...Int(events)))
                let result = SafetyRun.strike(strike, at: index)
                if let failure = result.failure {
                    Issue.record("\(strike.rawValue) at event \(index): \(failure)")
                }
                let failed = result.witnessed.filter { $0.key.hasPrefix("job.failed") }
                #expect(failed.isEmpty, "\(strike.rawValue) at event \(index)")
            }
        }
    }

    @Test func aClockIsOffRunsFastStepsAndSleeps() {
        var clock = SimulatedClock(ahead: 5_000, driftPPM: 1000)
        #expect(clock.reading(at: 1_000_000) == 1_006_000)
        clock.step(by: -2_000)
        #expect(clock.reading(at: 1_000_000) == 1_004_000)
        clock.sleep(at: 2_000_000)
        clock.sleep(at: 2_500_000)
        let fellAsleep = clock.reading(at: 2_000_000)
        clock.wake(at: 9_000_000)
        clock.wake(at: 9_500_000)
        #expect(clock.reading(at: 9_000_000) == fellAsleep)
        #expect(clock.reading(at: 10_000_000) == fellAsleep + 1_001_000)
    }

    /// Cores that answer each other for ever make no token and hold up everything: a storm, not a run.
    @Test func aStormOfMessagesIsAFailureAndNoEndlessRun() {
        let result = SafetyRun.run(seed: 3, trace: nil, sabotage: { $0.eventsMax = 300 })
        #expect(result.failure?.contains("storm") == true && result.events == 300)
        #expect(SafetyRun.run(seed: 3).failure == nil)
    }

    /// A tally that would call a fault proven that never struck proves nothing itself.
    @Test func aTallyNamesWhatNeverHappened() {
        var tally = SafetyTally()
        #expect(tally.neverHappened == SafetyTally.kinds)
        #expect(Set(SafetyTally.kinds).count == SafetyTally.kinds.count)
        let result = SafetyRun.run(seed: 7)
        tally.add(result)
        #expect(!tally.neverHappened.isEmpty)
        #expect(tally.neverHappened.allSatisfy { result.witnessed[$0] == nil })
        #expect(result.faultyEvents > 0 && result.faultyEvents <= result.events && tally.events == result.events)
        #expect(tally.counts.filter { $0.count > 0 }.count == result.witnessed.count)
    }

    /// Found by seed 379 of the first plan: a fence that waited for ever for a vanished sender,
    /// whose half-sent page no progress limit ended (of the simulated receiver, not of the cores).
    @Test func aSenderThatVanishesInsideAPageIsGivenUp() {
        let (configuration, requests) = SafetyPlan.sweep()
        var waiting = Array(requests.reversed())
        let simulation = ClusterSimulation(configuration) { waiting.popLast() }
        simulation.begin()
        func inside() -> Bool {
            simulation.nodes.contains { $0.landings.values.contains { $0.inside != nil } }
        }
        while !inside(), simulation.step() {}
        for node in [0, 2] { simulation.strike(.vanish(node: node, restartAfter: .seconds(1))) }
        while simulation.step(), simulation.unrest != nil, simulation.virtualSeconds < 100 {}
        #expect(simulation.failure == nil && simulation.unrest == nil)
    }

    @Test func oneSeedGivesOneRunEventByEvent() {
        var (first, second) = ([String](), [String]())
        for seed in UInt64(1000)..<1003 {
            let one = SafetyRun.run(seed: seed) { first.append($0) }
            let other = SafetyRun.run(seed: seed) { second.append($0) }
            #expect(one.digest == other.digest, "seed \(seed)")
            #expect(one.events == other.events, "seed \(seed)")
            #expect(SafetyRun.run(seed: seed + 100).digest != one.digest, "seed \(seed)")
        }
        let split = zip(first, second).first { $0 != $1 }
        #expect(split == nil)
        #expect(first.count == second.count)
        #expect(!first.isEmpty)
    }

    /// The oracle sees wrong bytes that every checksum has let through.
    @Test func aReceiverThatChecksNothingIsFoundOut() {
        var caught = 0
        for seed in UInt64(1)...30 {
            let result = SafetyRun.run(
                seed: seed, trace: nil,
                sabotage: { simulation in
                    simulation.takesCorruptPages = true
                    simulation.queue.add(.fault(.corruptPages(percent: 50)), at: 1)
                })
            if result.failure != nil { caught += 1 }
        }
        #expect(caught >= 15)
    }

    /// Prompts are shared between tenants, so that pages would be if their names did not keep them apart.
    @Test func pagesThatTenantsShareAreFoundOut() {
        var caught = 0
        for seed in UInt64(1)...30 {
            let result = SafetyRun.run(seed: seed, trace: nil, change: { $0.naming.ignoresTenants = true })
            guard let failure = result.failure else { continue }
            #expect(failure.contains("another tenant"), "seed \(seed): \(failure)")
            caught += 1
        }
        #expect(caught >= 5, "\(caught)")
    }

    /// A token too many, a token too few, or another one: the client's check says so.
    @Test func aClientNoticesRepeatsGapsAndOtherTokens() throws {
        let request = SimulatedRequest(
            arrival: .zero, tenant: .init("t"), prompt: [.init(5), .init(6)], length: 4, maxTokens: 8)
        for wrong in ["repeat", "gap", "other", "end", "none"] {
            var requests = [request]
            let simulation = ClusterSimulation(ClusterShape().configuration(seed: 1)) { requests.popLast() }
            simulation.begin()
            while simulation.jobs.values.first?.logged != 1, simulation.step() {}
            let job = try #require(simulation.jobs.values.first)
            var oracle = job.oracle
            let next = oracle.next()
            switch wrong {
            case "repeat": simulation.emitted(job.id, 0, [.init(token: next)])
            case "gap": simulation.emitted(job.id, 2, [.init(token: next)])
            case "other": simulation.emitted(job.id, 1, [.init(token: .init(next.value + 1))])
            case "end":
                simulation.jobs[job.id] = nil
                simulation.emitted(job.id, 1, [.init(token: next)])
            default: simulation.emitted(job.id, 1, [.init(token: next)])
            }
            #expect((simulation.failure == nil) == (wrong == "none"), "\(wrong)")
        }
    }
}
