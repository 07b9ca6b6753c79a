import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

/// The way of a job through the cluster when all goes well.
struct JourneyTests {
    @Test func aJobIsReservedAssignedPrefilledCommittedAndDecoded() throws {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1, prompt: 10, maxTokens: 3)
        let reserve = try #require(bench.reserved.first)
        #expect(reserve.worker == decode && reserve.reserve.source == prefill)
        #expect(reserve.reserve.tokens.count == 10 && reserve.reserve.promptTokens == 10)
        #expect(reserve.reserve.pageIDs.count == 2)
        #expect(bench.phase(1) == .placing)

        bench.now = bench.now + .milliseconds(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        let assignment = try #require(bench.assigned.first)
        #expect(assignment.worker == prefill && assignment.assignment.target == decode)
        #expect(assignment.assignment.wanted == [0, 1] && assignment.assignment.targetPort == 7)
        #expect(bench.phase(1) == .reserved)

        bench.say(prefill, .assignAck(TransferReply(transfer: bench.transfer(1), refusal: nil, freeBlocks: 1)))
        #expect(bench.phase(1) == .prefilling)
        bench.now = bench.now + .milliseconds(1)
        bench.done(bench.transfer(1), from: prefill, token: 50)
        #expect(bench.emitted == [50], "the first token goes out at once")
        #expect(bench.phase(1) == .transferring)
        bench.commit(bench.transfer(1), from: decode)
        #expect(bench.phase(1) == .decoding)
        bench.now = bench.now + .milliseconds(1)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [51])
        #expect(bench.emitted == [51])
        bench.step(bench.transfer(1), from: decode, offset: 2, tokens: [52], end: .finished(.length))
        let outcome = try #require(bench.finished.first)
        #expect(outcome.ending == .finished(.length))
        #expect(outcome.usage.outputTokens == 3 && outcome.usage.promptTokens == 10)
        #expect(outcome.route.prefill == prefill.id && outcome.route.decode == decode.id)
        #expect(outcome.route.kvBytesMoved == 512 && outcome.route.blocksReused == 1 && outcome.route.attempts == 1)
        let stamps = outcome.stamps
        let edges = [
            stamps.queued, stamps.placed, stamps.reserved, stamps.prefilling, stamps.firstToken, stamps.decoding,
            stamps.secondToken, stamps.finished,
        ].compactMap { $0 }
        #expect(edges.count == 8 && zip(edges, edges.dropFirst()).allSatisfy { $0 <= $1 })
        #expect(bench.core.tokens(of: outcome.job, from: 1)?.map(\.token.value) == [51, 52])
        #expect(bench.core.snapshot().liveJobs == 0)
    }

    @Test func aShortPromptIsPrefilledWhereItDecodes() throws {
        var bench = Bench { $0.placement.localPrefillThreshold = 64 }
        bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1, prompt: 10, maxTokens: 2)
        #expect(bench.started.first?.worker == decode && bench.reserved.isEmpty)
        bench.say(decode, .startDecodeAck(TransferReply(transfer: bench.transfer(1), refusal: nil, freeBlocks: 9)))
        #expect(bench.phase(1) == .prefilling)
        bench.step(bench.transfer(1), from: decode, offset: 0, tokens: [], prefilled: 6)
        bench.step(bench.transfer(1), from: decode, offset: 0, tokens: [7], prefilled: 4)
        #expect(bench.emitted == [7] && bench.phase(1) == .decoding)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [8], end: .finished(.length))
        #expect(bench.finished.first?.usage.cachedTokens == 0)
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 10 + 2 * 2)
    }

    @Test func aMixedWorkerAndALonelyDecodeWorkerDoItAll() {
        for name in ["m0", "d0"] {
            var bench = Bench()
            bench.up(name)
            bench.submit(1, prompt: 100)
            #expect(bench.started.count == 1, "\(name)")
        }
    }

    @Test func aStopTokenEndsTheJobEvenAsFirstToken() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.handle(.submitted(Bench.submission(1, stop: [100])))
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill, token: 100)
        #expect(bench.emitted == [100] && bench.finished.first?.ending == .finished(.stop))
        #expect(Set(bench.cancelled.map(\.worker)) == [prefill, decode])
    }

    @Test func oneTokenAtMostEndsAtTheFirstToken() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1, maxTokens: 1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill)
        #expect(bench.finished.first?.ending == .finished(.length))
    }

    @Test func stepsThatOvertakeTheFirstTokenWaitForIt() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.commit(bench.transfer(1), from: decode)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101])
        bench.step(bench.transfer(1), from: decode, offset: 2, tokens: [102])
        #expect(bench.emitted.isEmpty)
        bench.done(bench.transfer(1), from: prefill, token: 100)
        #expect(bench.emitted == [100, 101, 102] && bench.phase(1) == .decoding)
    }

    @Test func aDecodeWorkerMayTellTheFirstTokenItself() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.step(bench.transfer(1), from: decode, offset: 0, tokens: [100, 101])
        #expect(bench.emitted == [100, 101] && bench.phase(1) == .decoding)
        bench.done(bench.transfer(1), from: prefill, token: 100)
        #expect(bench.emitted.isEmpty)
    }

    @Test func repeatedTokensAreDroppedAndCounted() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1), from: decode, offset: 0, tokens: [100, 101])
        #expect(bench.emitted == [101])
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101])
        #expect(bench.emitted.isEmpty)
        #expect(bench.core.counters.duplicateTokensDropped == 2)
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 10 + 2 * 2)
    }

    @Test func aStopStringCutsTheLogAndFreesTheWorker() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let job = bench.submit(1)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101, 102])
        bench.handle(.stopMatched(job, outputTokens: 2))
        #expect(bench.finished.first?.ending == .finished(.stop))
        #expect(bench.finished.first?.usage.outputTokens == 2)
        #expect(bench.cancelled.map(\.worker) == [decode] && bench.cancelled.first?.cancel.reason == .stopString)
        #expect(bench.core.tokens(of: job, from: 0)?.count == 2)
    }

    @Test func aStopStringInTheLastStepCorrectsTheRecord() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let job = bench.submit(1, maxTokens: 3)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101, 102], end: .finished(.length))
        bench.handle(.stopMatched(job, outputTokens: 2))
        #expect(bench.actions.isEmpty)
        #expect(bench.core.outcome(of: job)?.ending == .finished(.stop))
        #expect(bench.core.tokens(of: job, from: 0)?.count == 2)
    }

    @Test func aCachedPromptIsChargedForWhatWasComputed() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let job = bench.submit(1)
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 10, "provisionally")
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.done(bench.transfer(1), from: prefill, cached: 8)
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 2 + 2)
        #expect(bench.core.view(job)?.usage.cachedTokens == 8)
    }

    @Test func aCancelledJobIsChargedForWhatWasComputed() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let job = bench.submit(1, prompt: 40)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.say(
            prefill,
            .prefillProgress(
                PrefillProgress(
                    transfer: bench.transfer(1), computedTokens: 16, cachedTokens: 4, computeTime: .milliseconds(1))))
        bench.handle(.cancelled(job, .client))
        #expect(bench.finished.first?.ending == .finished(.cancelled))
        #expect(bench.core.policy.chargedUnits(of: TenantID("a")) == 12)
    }

    @Test func theMetricsPageShowsWhatHappened() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        bench.submit(1, maxTokens: 2)
        bench.bringToDecoding(bench.transfer(1), prefill, decode)
        bench.step(bench.transfer(1), from: decode, offset: 1, tokens: [101], end: .finished(.length))
        let text = bench.core.metricsText(model: "tiny")
        for line in [
            "tandem_jobs_ended_total{ending=\"length\"} 1.0", "tandem_kv_bytes_moved_total 512.0",
            "vllm:generation_tokens_total{model_name=\"tiny\",engine=\"0\"} 2.0",
            "tandem_inter_token_latency_seconds_count 1", "tandem_time_to_first_token_seconds_count 1",
            "tandem_worker_jobs{worker=\"d0\",role=\"decode\"} 0.0",
        ] {
            #expect(text.contains(line + "\n"), "\(line)")
        }
    }
}
