import CoordinatorCore
import Foundation
import FrontDoor
import Ledger
import Logging
import Messages
import NIOCore
import NIOPosix
import Scheduling
import ServingTypes
import Testing

@testable import Hosting

private final class Recorder: JobSink {
    var tokens: [TokenID] = []
    var admitted: [JobID] = []
    var outcome: JobOutcome?
    var error: ServingError?

    func admitted(_ job: JobID) { admitted.append(job) }
    func tokens(offset: Int, _ tokens: [SampledToken]) { self.tokens += tokens.map(\.token) }
    func ended(_ outcome: JobOutcome) { self.outcome = outcome }
    func failed(_ error: ServingError) { self.error = error }
}

/// A coordinator with a ledger on a loop of its own, and one worker that answers every job at once.
///
/// `@unchecked Sendable`: all but `loop` is used on the loop only, through `on`.
private final class LedgerBench: @unchecked Sendable {
    let loop: any EventLoop
    private var path: String
    private var host: CoordinatorHost?
    private let worker = WorkerRef(id: WorkerID("mixed-0"), epoch: Epoch(1))
    private var answers = true

    init(_ path: String) {
        self.path = path
        loop = MultiThreadedEventLoopGroup(numberOfThreads: 1).any()
    }

    func on<Result: Sendable>(_ body: @escaping @Sendable (CoordinatorHost) throws -> Result) throws -> Result {
        try loop.submit { try body(try #require(self.host)) }.wait()
    }

    /// A new process on what the files hold at this moment, as after a kill: the old one keeps its own.
    func start(endedJobsMax: Int = 100, policy: String = "vtc") throws {
        try loop.submit {
            if self.host != nil {
                let copy = self.path + "-next"
                for suffix in ["", "-wal", ".marks", ".counters"]
                where FileManager.default.fileExists(atPath: self.path + suffix) {
                    try FileManager.default.copyItem(atPath: self.path + suffix, toPath: copy + suffix)
                }
                self.path = copy
            }
            self.answers = true
            var configuration = CoordinatorConfiguration()
            configuration.blockTokens = 4
            configuration.endedJobsMax = endedJobsMax
            configuration.policy = try #require(PolicyConfiguration(named: policy))
            let digest = ClusterDigest.base(model: PageID(1, 2, 3, 4), kvType: "f32", blockTokens: 4)
            let host = CoordinatorHost(
                loop: self.loop, configuration: configuration, naming: SHA256PageNaming(compatibility: digest),
                files: try LedgerFiles(path: self.path),
                log: Logger(label: "test", factory: { _ in SwiftLogNoOpLogHandler() }))
            self.host = host
            host.send = { [weak self, weak host] _, message in
                guard let self, let host, case .startDecode(let start) = message, self.answers else { return }
                host.workerMessage(
                    self.worker, .startDecodeAck(TransferReply(transfer: start.transfer, refusal: nil, freeBlocks: 60)))
                let tokens = (0..<start.sampling.maxTokens).map { SampledToken(token: TokenID(UInt32($0))) }
                let step = TokenStep(
                    transfer: start.transfer, offset: 0, tokens: tokens, end: .finished(.length),
                    prefilledTokens: start.tokens.count)
                host.workerMessage(
                    self.worker, .tokenSteps(TokenSteps(iteration: 1, computeTime: .milliseconds(1), steps: [step])))
            }
            host.workerMessage(
                self.worker,
                .register(
                    Register(
                        role: .mixed, dataHost: "127.0.0.1", dataPort: 1, blockTokens: 4, blockCount: 64,
                        pageBytes: 64, batchJobsMax: 4, stepTokensMax: 64, processID: 1, held: [])))
            try host.start()
        }.wait()
    }

    /// From now on the worker says nothing.
    func silence() throws { try loop.submit { self.answers = false }.wait() }

    /// Submits, and waits for nothing.
    func begin(_ low: UInt64, tenant: String) throws {
        _ = try submit(low, key: nil, tenant: tenant)
    }

    /// Submits and waits until the job has ended or was refused.
    func run(_ low: UInt64, key: String?, tenant: String = "acme") throws -> (tokens: [UInt32], job: JobID?, String?) {
        let sink = try submit(low, key: key, tenant: tenant)
        for _ in 0..<2000 {
            let result = try loop.submit { () -> (tokens: [UInt32], job: JobID?, String?)? in
                let sink = sink.value
                guard sink.outcome != nil || sink.error != nil else { return nil }
                return (sink.tokens.map(\.value), sink.admitted.first, sink.error?.message)
            }.wait()
            if let result { return result }
            Thread.sleep(forTimeInterval: 0.005)
        }
        return ([], nil, "no end within ten seconds")
    }

    private func submit(_ low: UInt64, key: String?, tenant: String) throws -> NIOLoopBound<Recorder> {
        try on { host -> NIOLoopBound<Recorder> in
            let sink = Recorder()
            var sampling = SamplingParameters()
            sampling.maxTokens = 3
            let tokens = (0..<6).map { TokenID($0) }
            let submission = JobSubmission(
                job: JobID(high: 0, low: low), tenant: TenantID(tenant), promptTokens: tokens,
                pageIDs: host.pageIDs(of: tokens, tenant: TenantID(tenant)), sampling: sampling, idempotencyKey: key)
            let request = JobRequestRecord(
                kind: .completion, model: "m", created: 0, digest: PageID(1, 0, 0, 0), stopStrings: [], detached: false)
            host.submit(submission, request: request, sink: sink)
            return NIOLoopBound(sink, eventLoop: self.loop)
        }
    }
}

@Suite struct AccountTests {
    private static func withBench(_ body: (LedgerBench) throws -> Void) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("accounts-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try body(LedgerBench(folder.appendingPathComponent("ledger.sqlite").path))
    }

    /// The answer of a key whose job has left memory comes from the file, off the loop.
    @Test func aKeyWhoseJobHasLeftMemoryIsAnsweredFromTheFile() throws {
        try Self.withBench { bench in
            try bench.start(endedJobsMax: 1)
            let first = try bench.run(1, key: "a")
            #expect(first.tokens == [0, 1, 2])
            for low in UInt64(2)...4 { #expect(try bench.run(low, key: "k\(low)").tokens == [0, 1, 2]) }
            #expect(try bench.on { $0.view(JobID(high: 0, low: 1)) == nil }, "the core has forgotten it")
            let again = try bench.run(9, key: "a")
            #expect(again.tokens == [0, 1, 2])
            #expect(again.job == JobID(high: 0, low: 1), "the first job's id")
            #expect(try bench.on { $0.snapshot().counters.admitted } == 4, "nothing ran twice")
        }
    }

    /// A tenant's whole life is no debt: after a change of policy, or once its counter was forgotten,
    /// it begins as it would have been lifted, not behind everybody.
    @Test func whatATenantWasServedBeforeCountersWereKeptIsNoDebt() throws {
        try Self.withBench { bench in
            try bench.start(policy: "fcfs")
            for low in UInt64(1)...5 { _ = try bench.run(low, key: nil) }
            // Settlements are on disk within the time that they may gather, and a commit.
            Thread.sleep(forTimeInterval: 0.3)
            try bench.start(policy: "vtc")
            let table = try bench.on { $0.tenants(over: .seconds(60)).tenants }
            let acme = try #require(table.first { $0.tenant == TenantID("acme") })
            #expect(acme.tokens.outputTokens == 15, "the sums are there")
            #expect(acme.virtualCounter == 0)
        }
    }

    @Test func countersOfAPolicyThatKeepsThemComeBack() throws {
        try Self.withBench { bench in
            try bench.start()
            for low in UInt64(1)...5 { _ = try bench.run(low, key: nil) }
            func counter() throws -> Double {
                try bench.on { $0.tenants(over: .seconds(60)).tenants.first?.virtualCounter ?? -1 }
            }
            let before = try counter()
            #expect(before > 0)
            try bench.start()
            #expect(try counter() == before, "at once, whatever SQLite has by now")
        }
    }

    /// Charges, lifts, the work of roles, and what was charged ahead for jobs that were under way.
    @Test(arguments: ["vtc", "vtc-predict", "lcf", "fair-mlfq", "fair-gittins", "drf", "drf-gittins"])
    func aKilledCoordinatorLeavesEveryCounterAsItWas(_ policy: String) throws {
        try Self.withBench { bench in
            try bench.start(policy: policy)
            for low in UInt64(1)...5 { _ = try bench.run(low, key: nil, tenant: "busy") }
            // Lifted when it arrives, and killed with its coordinator a moment later.
            _ = try bench.run(6, key: nil, tenant: "late")
            func counters() throws -> [String: Double] {
                let tenants = try bench.on { $0.tenants(over: .seconds(60)).tenants }
                return Dictionary(uniqueKeysWithValues: tenants.map { ($0.tenant.name, $0.virtualCounter) })
            }
            let before = try counters()
            #expect(before["busy"] ?? 0 > 0 && before["late"] ?? 0 > 0)
            if !policy.hasPrefix("lcf") { #expect(before["late"] ?? 0 > 12, "lifted beyond its own charge: \(before)") }
            // A job whose prompt is charged and of which nothing has come dies with the coordinator.
            try bench.silence()
            // No lift: its tenant is the one that ceased to wait last.
            try bench.begin(7, tenant: "late")
            // Under dominant shares its outputs weigh more.
            let isAhead = try counters()["late"] ?? 0 > before["late"] ?? 0
            #expect(isAhead || policy.hasPrefix("drf"), "its prompt is charged ahead")
            try bench.start(policy: policy)
            #expect(try counters() == before, "\(policy)")
            try bench.start(policy: policy)
            #expect(try counters() == before, "\(policy), a second time")
        }
    }

    @Test func countersOfAnotherUnitAreNotTakenUp() throws {
        try Self.withBench { bench in
            try bench.start(policy: "vtc")
            for low in UInt64(1)...5 { _ = try bench.run(low, key: nil) }
            func counter() throws -> Double? {
                try bench.on {
                    $0.tenants(over: .seconds(60)).tenants.first { $0.tenant.name == "acme" }?.virtualCounter
                }
            }
            #expect(try counter() ?? 0 > 0)
            // What is open when a coordinator dies is owed; settlements are on disk by then.
            Thread.sleep(forTimeInterval: 0.3)
            try bench.start(policy: "drf")
            #expect(try counter() == 0)
            try bench.start(policy: "fair")
            #expect(try counter() == 0, "nor those from before")
        }
    }

    // MARK: Keys and quotas

    @Test func aReplayTakesNothingFromAQuotaAndARunAnewDoes() throws {
        try Self.withBench { bench in
            try bench.start(endedJobsMax: 1)
            try bench.on { host in
                try host.set(try TenantSettings("requests-per-minute=3"), of: TenantID("acme")) { _ in }
            }
            func left() throws -> Int? { try bench.on { $0.quota(of: TenantID("acme")).requests?.remaining } }
            /// As the front door submits.
            func ask(_ low: UInt64, key: String) throws -> String? {
                let refusal = try bench.on { host -> ServingError? in
                    guard !host.knows(key: key, of: TenantID("acme")) else { return nil }
                    return host.takeQuota(TenantID("acme"), jobs: 1, tokens: 9)
                }
                return try refusal?.message ?? bench.run(low, key: key).2
            }
            #expect(try ask(1, key: "a") == nil)
            #expect(try left() == 2)
            for low in UInt64(2)...6 { #expect(try ask(low, key: "a") == nil, "a replay") }
            #expect(try left() == 2)
            #expect(try ask(7, key: "b") == nil)
            #expect(try ask(8, key: "c") == nil)
            #expect(try left() == 0)
            #expect(try ask(9, key: "a") == nil, "though its job has left memory and nothing is left")
            #expect(try ask(10, key: "d")?.contains("3 requests per minute") == true)
        }
    }

    // MARK: Statistics

    @Test func tenantsByTheThousandCostNoRecordsBeyondTheLimitAndIdleOnesMakeRoom() {
        var statistics = TenantStatistics()
        var usage = JobUsage()
        usage.outputTokens = 1
        func sampleAll(_ names: Range<Int>, at seconds: Int64) {
            let now = Instant.zero + .seconds(seconds)
            statistics.makeRoom(at: now)
            for number in names {
                statistics.sample(TenantID("t\(number)"), units: seconds * 10, tokens: usage, at: now)
            }
        }
        let most = TenantStatistics.Limits.tenants
        sampleAll(0..<(most * 3), at: 1)
        #expect(statistics.count == most)
        sampleAll(0..<(most * 3), at: 2)
        #expect(statistics.count == most, "active tenants keep their records")
        func isKnown(_ number: Int, at seconds: Int64) -> Bool {
            if case .sample = statistics.start(
                TenantID("t\(number)"), window: .seconds(60), at: Instant.zero + .seconds(seconds))
            {
                return true
            }
            return false
        }
        #expect(isKnown(0, at: 2))
        #expect(!isKnown(most, at: 2), "and one without a record has no share told")
        sampleAll(most * 3..<most * 3 + 10, at: 400)
        #expect(isKnown(most * 3, at: 400), "those that were idle have made room")
    }

    @Test func theGreatestAreFoundWithoutSorting() {
        var state: UInt64 = 7
        let values = (0..<5000).map { _ -> Int in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return Int(state >> 40)
        }
        for count in [0, 1, 7, 200, 6000] {
            #expect(values.greatest(count, by: <) == Array(values.sorted().suffix(count)), "\(count)")
        }
    }
}
