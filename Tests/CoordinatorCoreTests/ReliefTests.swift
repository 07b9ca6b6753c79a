import ServingTypes
import Testing

@testable import CoordinatorCore

/// Decode workers that take long prompts in while prefill workers are behind.
struct ReliefTests {
    /// One prefill worker with room for one prompt of 40 tokens, one decode worker.
    private func bench(wait: TimeSpan?, _ change: (inout CoordinatorConfiguration) -> Void = { _ in }) -> Bench {
        Bench {
            $0.prefillWindowJobs = 1
            $0.relief = wait.map { ReliefConfiguration(wait: $0) }
            change(&$0)
        }
    }

    @Test func aPromptThatWouldWaitIsPrefilledWhereItDecodes() throws {
        var bench = bench(wait: .milliseconds(1))
        bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1, prompt: 40)
        #expect(bench.reserved.count == 1, "an idle prefill worker is preferred")
        bench.submit(2, prompt: 40, maxTokens: 2)
        #expect(bench.started.map(\.worker) == [decode])
        bench.submit(3, prompt: 40)
        #expect(bench.phase(3) == .queued, "one such prompt at a time")
        bench.step(bench.transfer(2), from: decode, offset: 0, tokens: [7], prefilled: 40)
        #expect(bench.started.map(\.start.transfer) == [bench.transfer(3)], "and then the next one")
        bench.step(bench.transfer(2), from: decode, offset: 1, tokens: [8], end: .finished(.length))
        let outcome = try #require(bench.finished.first)
        #expect(outcome.usage.computedTokens == 40)
        #expect(outcome.route.prefill == decode.id && outcome.route.decode == decode.id)
    }

    @Test(arguments: [nil, TimeSpan.seconds(600)])
    func withoutTheRuleOrBelowItsWaitPromptsWaitForAPrefillWorker(_ wait: TimeSpan?) {
        var bench = bench(wait: wait)
        bench.up("p0")
        bench.up("d0")
        for number in 1...3 { bench.submit(number, prompt: 40) }
        #expect(bench.started.isEmpty)
        #expect(bench.phase(2) == .queued)
    }

    /// A wait that is short against the prompt's own time on a busy decode worker is waited out.
    @Test func aLongPromptDoesNotGoWhereItWouldTakeLonger() {
        var bench = bench(wait: .milliseconds(1)) { $0.prefillWindowTokens = 2000 }
        let prefill = bench.up("p0", blocks: 1000)
        let decode = bench.up("d0", blocks: 1000)
        bench.submit(1, prompt: 10)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill)
        bench.commit(bench.transfer(1), from: decode)
        bench.submit(2, prompt: 10)
        bench.submit(3, prompt: 1000)
        #expect(bench.started.isEmpty, "10 tokens ahead and 1000 of its own: 1010 against 1500")
        #expect(bench.phase(3) == .queued)
    }

    @Test func aDecodeWorkerWithoutRoomTakesNone() {
        var bench = bench(wait: .milliseconds(1))
        bench.up("p0")
        bench.up("d0", blocks: 12)
        bench.submit(1, prompt: 40)
        bench.submit(2, prompt: 40)
        #expect(bench.started.isEmpty && bench.phase(2) == .queued)
    }
}
