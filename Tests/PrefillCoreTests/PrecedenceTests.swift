import Messages
import PrefillCore
import ServingTypes
import Testing

/// Prompts that go before those that are there.
@Suite struct PrecedenceTests {
    private func entries(_ bench: PrefillBench) -> [TransferID] { bench.step?.entries.map(\.transfer) ?? [] }

    @Test func aPromptThatPrecedesOthersGoesNextAndAlone() {
        var bench = PrefillBench { $0.prefillChunkTokens = 4 }
        bench.assign(id(1), prompt(12), wanted: [])
        bench.assign(id(2), prompt(4, from: 20), wanted: [])
        bench.assign(id(3), prompt(4, from: 40), wanted: [], precedes: true)
        bench.assign(id(4), prompt(4, from: 60), wanted: [], precedes: true)
        #expect(entries(bench) == [id(1)], "the chunk that runs is completed")
        bench.finishStep()
        #expect(entries(bench) == [id(3), id(4)], "in the order in which they came")
        bench.finishStep()
        #expect(entries(bench) == [id(1), id(2)])
        bench.finishStep()
        #expect(entries(bench) == [id(1)])
    }

    @Test func oneThatFindsNoMemoryLetsThoseThatHaveBegunGoOn() {
        var bench = PrefillBench(blocks: 4) { $0.prefillChunkTokens = 4 }
        bench.assign(id(1), prompt(12), wanted: [])
        bench.assign(id(2), prompt(8, from: 40), wanted: [], precedes: true)
        bench.assign(id(3), prompt(4, from: 60), wanted: [])
        bench.finishStep()
        #expect(entries(bench) == [id(1)], "and nobody begins before it, though the third would fit")
        bench.finishStep()
        bench.finishStep()
        #expect(bench.step == nil, "the first is held until it is committed")
        bench.cancel(id(1))
        #expect(entries(bench) == [id(2)])
        bench.finishStep()
        bench.finishStep()
        #expect(entries(bench) == [id(3)])
    }
}
