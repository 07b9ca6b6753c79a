import Messages
import Scheduling
import ServingTypes
import Testing

@testable import CoordinatorCore

struct AdmissionTests {
    @Test func aFullQueueRefusesWithATimeToRetry() {
        var bench = Bench { $0.queuedJobsMax = 2 }
        bench.submit(1)
        bench.submit(2)
        bench.submit(3)
        #expect(bench.refusals.first?.code == .queueFull && bench.refusals.first?.retryAfterSeconds == 1)
        #expect(bench.core.counters.refused == 1 && bench.core.snapshot().queuedJobs == 2)
    }

    @Test func oneTenantCannotFillTheQueue() {
        var bench = Bench { $0.queuedJobsPerTenantMax = 1 }
        bench.submit(1, tenant: "a")
        bench.submit(2, tenant: "a")
        #expect(bench.refusals.first?.code == .queueFull)
        bench.submit(3, tenant: "b")
        #expect(bench.refusals.isEmpty)
    }

    @Test func aJobWaitsForTheFirstWorkerUnlessToldNotTo() {
        var bench = Bench()
        bench.submit(1)
        #expect(bench.phase(1) == .queued)
        bench.up("d0")
        #expect(bench.started.count == 1)
        var strict = Bench { $0.refuseWithoutWorkers = true }
        strict.up("p0")
        strict.submit(1)
        #expect(strict.refusals.first?.code == .noWorker)
        strict.up("d0")
        strict.submit(1)
        #expect(strict.refusals.isEmpty)
    }

    @Test func aJobThatExistsIsRefused() {
        var bench = Bench()
        let job = bench.submit(1)
        bench.submit(1)
        #expect(bench.refusals.first?.code == .conflict)
        bench.handle(.cancelled(job, .client))
        bench.submit(1)
        #expect(bench.refusals.first?.code == .conflict)
    }

    @Test func anEmptyPromptAndNoTokensToGiveAreRefused() {
        var bench = Bench()
        bench.submit(1, prompt: 0)
        #expect(bench.refusals.first?.field == "prompt")
        bench.submit(2, maxTokens: 0)
        #expect(bench.refusals.first?.field == "max_tokens")
    }

    @Test func aSequenceThatFitsNoPoolFails() {
        var bench = Bench()
        bench.up("d0", blocks: 3)
        bench.submit(1, prompt: 12)
        #expect(Bench.code(bench.finished.first) == .contextTooLong)
        bench.submit(2, prompt: 11)
        #expect(bench.started.count == 1)
    }

    @Test func aDeadlineFailsAWaitingAndARunningJob() {
        var bench = Bench()
        bench.handle(.submitted(Bench.submission(1, deadline: .milliseconds(300))))
        bench.wait(.milliseconds(250))
        #expect(bench.finished.isEmpty)
        bench.wait(.milliseconds(100))
        #expect(Bench.code(bench.finished.first) == .deadline)
        let decode = bench.up("d0")
        bench.handle(.submitted(Bench.submission(2, deadline: .milliseconds(300))))
        bench.step(bench.transfer(2), from: decode, offset: 0, tokens: [1], prefilled: 10)
        bench.wait(.milliseconds(350), beating: [decode])
        #expect(Bench.code(bench.finished.first) == .deadline)
        #expect(bench.cancelled.first?.cancel.reason == .deadline)
    }

    @Test func aClientThatGoesAwayFreesBothRoles() {
        var bench = Bench()
        let prefill = bench.up("p0")
        let decode = bench.up("d0")
        let job = bench.submit(1)
        bench.ackReserve(bench.transfer(1), from: decode)
        bench.handle(.cancelled(job, .client))
        #expect(Set(bench.cancelled.map(\.worker)) == [prefill, decode])
        #expect(bench.finished.first?.ending == .finished(.cancelled))
        let second = bench.submit(2)
        bench.handle(.cancelled(second, .client))
        #expect(bench.cancelled.map(\.worker) == [decode], "P had not heard of it")
        #expect(bench.core.snapshot().workers.allSatisfy { $0.assignedJobs == 0 })
    }

    @Test func aRecoveredJobGoesOnFromItsLogUnderAHigherAttempt() {
        var bench = Bench()
        bench.up("d0")
        var submission = Bench.submission(1, maxTokens: 4)
        submission.emitted = [5, 6].map { SampledToken(token: TokenID($0)) }
        bench.handle(.recovered(submission, attempt: Attempt(7)))
        #expect(bench.emitted.isEmpty)
        #expect(bench.started.first?.start.transfer == bench.transfer(1, 8))
        #expect(bench.started.first?.start.tokens.suffix(2).map(\.value) == [5, 6])
        #expect(bench.started.first?.start.promptTokens == 10)
        #expect(bench.core.tokens(of: submission.job, from: 0)?.count == 2)
        bench.step(bench.transfer(1, 8), from: bench.ref("d0"), offset: 2, tokens: [7])
        #expect(bench.emitted == [7])
    }

    @Test func aRecoveredJobThatWasCompleteEndsAtOnce() {
        var bench = Bench()
        var submission = Bench.submission(1, maxTokens: 2)
        submission.emitted = [5, 6].map { SampledToken(token: TokenID($0)) }
        bench.handle(.recovered(submission, attempt: Attempt(1)))
        #expect(bench.finished.first?.ending == .finished(.length))
    }

    @Test func endedJobsAreRememberedUpToABound() {
        var bench = Bench {
            $0.endedJobsMax = 3
            $0.endedTokensMax = 5
        }
        let decode = bench.up("d0")
        for number in 1...5 {
            bench.submit(number, maxTokens: 2)
            bench.step(
                bench.transfer(number), from: decode, offset: 0, tokens: [1, 2], end: .finished(.length), prefilled: 10)
        }
        #expect(bench.core.jobs(limit: 10).map(\.job.low) == [5, 4], "two of two tokens each")
        #expect(bench.core.view(bench.transfer(1).job) == nil)
        #expect(bench.core.tokens(of: bench.transfer(5).job, from: 9)?.isEmpty == true)
        #expect(bench.core.jobs(limit: 1).count == 1 && bench.core.jobs(limit: 0).isEmpty)
    }

    @Test func theTableOfTenantsIsBounded() {
        var bench = Bench { $0.tenantsMax = 3 }
        for number in 1...3 { bench.submit(number, tenant: "t\(number)") }
        bench.submit(4, tenant: "t4")
        #expect(bench.refusals.first?.code == .queueFull)
        bench.handle(.cancelled(bench.transfer(2).job, .client))
        bench.submit(5, tenant: "t5")
        #expect(bench.refusals.isEmpty)
        #expect(bench.core.snapshot().tenants.map(\.tenant.name) == ["t1", "t3", "t5"])
    }
}
