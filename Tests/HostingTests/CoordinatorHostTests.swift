import CoordinatorCore
import FrontDoor
import Ledger
import Logging
import Messages
import NIOEmbedded
import Scheduling
import ServingTypes
import Testing

@testable import Hosting

/// Remembers everything it is told, in order.
private final class Recorder: JobSink {
    var admitted: [JobID] = []
    var tokens: [TokenID] = []
    var offsets: [Int] = []
    var outcome: JobOutcome?
    var error: ServingError?

    func admitted(_ job: JobID) { admitted.append(job) }

    func tokens(offset: Int, _ tokens: [SampledToken]) {
        offsets.append(offset)
        self.tokens += tokens.map(\.token)
    }

    func ended(_ outcome: JobOutcome) { self.outcome = outcome }
    func failed(_ error: ServingError) { self.error = error }
}

/// A coordinator host on an embedded loop with one scripted mixed worker.
private final class Bench {
    let loop = EmbeddedEventLoop()
    let host: CoordinatorHost
    let worker = WorkerRef(id: WorkerID("mixed-0"), epoch: Epoch(1))
    var sent: [Message] = []

    init() {
        let digest = ClusterDigest.base(model: PageID(1, 2, 3, 4), kvType: "f32", blockTokens: 4)
        var configuration = CoordinatorConfiguration()
        configuration.blockTokens = 4
        host = CoordinatorHost(
            loop: loop, configuration: configuration, naming: SHA256PageNaming(compatibility: digest), files: nil,
            log: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
        host.send = { [weak self] _, message in self?.sent.append(message) }
        host.workerMessage(
            worker,
            .register(
                Register(
                    role: .mixed, dataHost: "127.0.0.1", dataPort: 1, blockTokens: 4, blockCount: 64, pageBytes: 64,
                    batchJobsMax: 4, stepTokensMax: 64, processID: 1, held: [])))
    }

    func submission(_ low: UInt64, key: String? = nil, maxTokens: Int = 3) -> JobSubmission {
        var sampling = SamplingParameters()
        sampling.maxTokens = maxTokens
        let tokens = (0..<6).map { TokenID($0) }
        return JobSubmission(
            job: JobID(high: 0, low: low), tenant: .anonymous, promptTokens: tokens,
            pageIDs: host.pageIDs(of: tokens, tenant: .anonymous), sampling: sampling, idempotencyKey: key)
    }

    func request(_ body: UInt64 = 1, detached: Bool = false) -> JobRequestRecord {
        JobRequestRecord(
            kind: .completion, model: "m", created: 0, digest: PageID(body, 0, 0, 0), stopStrings: [],
            detached: detached)
    }

    /// The transfer that the worker was last told to run.
    var started: TransferID? {
        for case .startDecode(let start) in sent.reversed() { return start.transfer }
        return nil
    }

    /// The worker answers with these tokens.
    func emit(_ tokens: [UInt32], at offset: Int, end: StepEnd? = nil) {
        guard let transfer = started else { return }
        host.workerMessage(worker, .startDecodeAck(TransferReply(transfer: transfer, refusal: nil, freeBlocks: 60)))
        let step = TokenStep(
            transfer: transfer, offset: offset, tokens: tokens.map { SampledToken(token: TokenID($0)) }, end: end)
        host.workerMessage(
            worker, .tokenSteps(TokenSteps(iteration: 1, computeTime: .milliseconds(1), steps: [step])))
    }
}

@Suite struct CoordinatorHostTests {
    @Test func aJobIsAdmittedStreamedAndEnded() {
        let bench = Bench()
        let sink = Recorder()
        bench.host.submit(bench.submission(1), request: bench.request(), sink: sink)
        bench.emit([7, 8], at: 0)
        bench.emit([9], at: 2, end: .finished(.length))
        #expect(sink.admitted == [JobID(high: 0, low: 1)])
        #expect(sink.tokens.map(\.value) == [7, 8, 9])
        #expect(sink.outcome?.ending == .finished(.length))
        #expect(sink.error == nil)
    }

    @Test func aListenerThatJoinsLateGetsEveryTokenOnce() {
        let bench = Bench()
        let (first, late, last) = (Recorder(), Recorder(), Recorder())
        let job = JobID(high: 0, low: 1)
        bench.host.submit(bench.submission(1), request: bench.request(), sink: first)
        bench.emit([7, 8], at: 0)
        bench.host.attach(job, fromOffset: 1, sink: late)
        bench.emit([9], at: 2, end: .finished(.length))
        bench.host.attach(job, fromOffset: 0, sink: last)
        #expect(late.tokens.map(\.value) == [8, 9])
        #expect(late.offsets == [1, 2])
        #expect(last.tokens.map(\.value) == [7, 8, 9])
        #expect(last.outcome == first.outcome)
    }

    @Test func theSameKeyJoinsAndAnotherBodyUnderItIsAConflict() {
        let bench = Bench()
        let (first, again, other) = (Recorder(), Recorder(), Recorder())
        bench.host.submit(bench.submission(1, key: "k"), request: bench.request(1), sink: first)
        bench.emit([7], at: 0)
        bench.host.submit(bench.submission(2, key: "k"), request: bench.request(1), sink: again)
        bench.host.submit(bench.submission(3, key: "k"), request: bench.request(2), sink: other)
        bench.emit([8, 9], at: 1, end: .finished(.length))
        #expect(again.admitted == [JobID(high: 0, low: 1)])
        #expect(again.tokens == first.tokens)
        #expect(other.error?.code == .conflict)
        #expect(bench.host.snapshot().counters.admitted == 1)
    }

    @Test func theLastListenerToLeaveCancelsUnlessTheJobIsKeyedOrDetached() {
        for (key, detached, goesOn) in [(nil, false, false), ("k", false, true), (nil, true, true)]
            as [(String?, Bool, Bool)]
        {
            let bench = Bench()
            let sink = Recorder()
            bench.host.submit(
                bench.submission(1, key: key), request: bench.request(detached: detached), sink: sink)
            bench.host.leave(JobID(high: 0, low: 1), sink: sink)
            let ending = bench.host.view(JobID(high: 0, low: 1))?.view.ending
            #expect((ending == nil) == goesOn, "key \(key ?? "none"), detached \(detached)")
        }
    }

    @Test func aDrainingHostRefusesWithATimeToRetry() {
        let bench = Bench()
        let sink = Recorder()
        bench.host.beginDraining()
        bench.host.submit(bench.submission(1), request: bench.request(), sink: sink)
        #expect(sink.error?.code == .draining)
        #expect(sink.error?.retryAfterSeconds != nil)
        #expect(bench.host.readiness == .draining)
    }

    @Test func anUnknownJobCannotBeAttachedTo() {
        let bench = Bench()
        let sink = Recorder()
        bench.host.attach(JobID(high: 9, low: 9), fromOffset: 0, sink: sink)
        #expect(sink.error?.code == .notFound)
    }
}
