import Testing

/// A prefill and a decode core together under faults: every stream equals the model run alone, the
/// books balance after every event, and in the end nothing is held.
@Suite struct PairTests {
    @Test func streamsAreRightWithoutFaults() {
        for seed: UInt64 in 0..<30 {
            let simulation = PairSimulation(seed: seed, faults: .init())
            let failure = simulation.run(jobs: 8)
            #expect(failure == nil)
            #expect(simulation.coordinator.commits > 0, "seed \(seed): no transfer was committed")
        }
    }

    @Test func repeatedMessagesChangeNothing() {
        for seed: UInt64 in 1000..<1040 {
            let simulation = PairSimulation(seed: seed, faults: .init(duplicatePercent: 25))
            let failure = simulation.run(jobs: 8)
            #expect(failure == nil)
        }
    }

    @Test func lostAndCorruptPagesAreSentAgainOrTheTransferFails() {
        var again: UInt64 = 0
        for seed: UInt64 in 2000..<2050 {
            let simulation = PairSimulation(
                seed: seed, faults: .init(duplicatePercent: 5, pageLossPercent: 5, corruptPercent: 5))
            let failure = simulation.run(jobs: 8)
            #expect(failure == nil)
            again += simulation.prefill.counters.pagesSentAgain
        }
        #expect(again > 0)
    }

    @Test func brokenLinksCostTimeButNoToken() {
        for seed: UInt64 in 3000..<3070 {
            let simulation = PairSimulation(seed: seed, faults: .init(duplicatePercent: 10, linkDropPercent: 20))
            let failure = simulation.run(jobs: 8)
            #expect(failure == nil)
        }
    }

    @Test func everythingAtOnceAndARestartOfTheDecodeWorker() {
        for seed: UInt64 in 4000..<4070 {
            let simulation = PairSimulation(
                seed: seed,
                faults: .init(
                    duplicatePercent: 15, linkDropPercent: 15, pageLossPercent: 3, corruptPercent: 3,
                    decodeRestarts: true))
            let failure = simulation.run(jobs: 10)
            #expect(failure == nil)
        }
    }
}
