import BoundedJSON
import FaultProxy
import Foundation
import Synchronization
import Testing

/// Process tests share two cores: one at a time.
@Suite(.serialized) enum ClusterSuites {}

/// The oracle of every fault test: the text of the run with a fault equals, byte for byte, the text
/// of the run without; no client sees an error; every page returns (design §4, reliability.md §2).
struct FaultRun {
    let cluster: TestCluster
    let prompts: [String]
    let maxTokens: Int
    let clean: [String]

    /// Runs the jobs without a fault, under a tenant of their own so that nothing is cached for later.
    init(_ cluster: TestCluster, jobs: Int = 3, words: Int = 150, maxTokens: Int = 48) async throws {
        self.cluster = cluster
        self.maxTokens = maxTokens
        prompts = (0..<jobs).map { Prompts.text(words: words + 11 * $0, seed: cluster.seed &+ UInt64($0)) }
        var clean: [String] = []
        for (index, prompt) in prompts.enumerated() {
            clean.append(
                try await cluster.client.stream(prompt, maxTokens: maxTokens, seed: index, tenant: "clean").text)
        }
        self.clean = clean
    }

    /// Runs the same jobs at once; `fault` is called with the number of pieces that came so far in all.
    func run(_ tenant: String, fault: @escaping @Sendable (Int) async -> Void) async throws {
        let pieces = Tally()
        let texts = try await withThrowingTaskGroup(of: (Int, String).self) { group in
            for (index, prompt) in prompts.enumerated() {
                group.addTask { [cluster, maxTokens] in
                    let done = try await cluster.client.stream(
                        prompt, maxTokens: maxTokens, seed: index, tenant: tenant
                    ) { _ in
                        await fault(pieces.increment())
                    }
                    return (index, done.text)
                }
            }
            return try await group.reduce(into: [Int: String]()) { $0[$1.0] = $1.1 }
        }
        for index in prompts.indices {
            #expect(texts[index] == clean[index], "seed \(cluster.seed): job \(index) differs from its clean run")
        }
    }

    /// Runs the jobs while `fault` happens beside them.
    func run(_ tenant: String, beside fault: @escaping @Sendable () async throws -> Void) async throws {
        async let disturbed: Void = fault()
        try await run(tenant) { (_: Int) in }
        try await disturbed
    }

    func counter(_ name: String) async throws -> Int {
        try await cluster.client.get("/admin/cluster")["counters"]?[name]?.intValue ?? -1
    }
}

/// Counts what several tasks see.
final class Tally: Sendable {
    private let total = Mutex(0)

    func increment() -> Int {
        total.withLock { total in
            total += 1
            return total
        }
    }

    var count: Int { total.withLock { $0 } }
}

/// Does something the first time a count is reached.
final class Once: Sendable {
    private let at: Int
    private let done = Mutex(false)

    init(at count: Int) { at = count }

    func fire(_ count: Int, _ body: () async -> Void) async {
        let isFirst = done.withLock { done in
            guard !done, count >= at else { return false }
            done = true
            return true
        }
        if isFirst { await body() }
    }

    var happened: Bool { done.withLock { $0 } }
}

extension ClusterSuites {
    @Suite struct ProcessDeathTests {
        @Test(arguments: [1, 7, 40]) func aDecodeWorkerKilledMidStreamCostsAPauseAndNothingElse(piece: Int) async throws
        {
            try await TestCluster.with(.init(prefill: 1, decode: 2), seed: 100 + UInt64(piece)) { cluster in
                let faulty = try await FaultRun(cluster)
                let kill = Once(at: piece)
                try await faulty.run("faulty") { count in await kill.fire(count) { cluster.kill("decode-0") } }
                #expect(kill.happened)
                // The proxy before its page listener still answers, so the grace of a broken link runs.
                try await cluster.wait("the loss to be noticed", within: .seconds(10)) {
                    (try? await faulty.counter("workers_lost")) ?? 0 >= 1
                }
                #expect(try await faulty.counter("failed") == 0)
                try cluster.startWorker("decode-0")
                try await cluster.waitUntilReady()
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test(arguments: [5, 30, 90]) func aPrefillWorkerKilledWhileItWorksLosesNothing(milliseconds: Int) async throws
        {
            let shape = TestCluster.Shape(prefill: 2, decode: 1, workerArguments: ["--chunk-tokens", "16"])
            try await TestCluster.with(shape, seed: 200 + UInt64(milliseconds)) { cluster in
                let faulty = try await FaultRun(cluster, words: 220)
                try await faulty.run(
                    "faulty",
                    beside: {
                        try await Task.sleep(for: .milliseconds(milliseconds))
                        cluster.kill("prefill-0")
                    })
                #expect(try await faulty.counter("failed") == 0)
                try cluster.startWorker("prefill-0")
                try await cluster.waitUntilReady()
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test func aPrefillWorkerKilledInTheMiddleOfATransferLosesNothing() async throws {
            try await TestCluster.with(.init(prefill: 2, decode: 1), seed: 301) { cluster in
                let faulty = try await FaultRun(cluster, words: 220)
                let before = cluster.pageProxies["decode-0"]?.counts.bytesForward ?? 0
                cluster.pageProxies["decode-0"]?.set(.throttle(bytesPerSecond: 2_000_000), .forward)
                try await faulty.run(
                    "faulty",
                    beside: {
                        try await cluster.wait("pages to move") {
                            (cluster.pageProxies["decode-0"]?.counts.bytesForward ?? 0) > before + 100_000
                        }
                        cluster.kill("prefill-0")
                        cluster.pageProxies["decode-0"]?.set(.none)
                    })
                #expect(try await faulty.counter("failed") == 0)
                try cluster.startWorker("prefill-0")
                try await cluster.waitUntilReady()
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test(arguments: ["decode-0", "prefill-0"]) func aStoppedWorkerIsNoticedAndItsJobsGoOnElsewhere(worker: String)
            async throws
        {
            try await TestCluster.with(.init(prefill: 2, decode: 2), seed: 400) { cluster in
                let faulty = try await FaultRun(cluster)
                let stop = Once(at: 4)
                try await faulty.run("faulty") { count in
                    await stop.fire(count) { cluster.signal(worker, SIGSTOP) }
                }
                #expect(stop.happened)
                #expect(try await faulty.counter("failed") == 0)
                cluster.signal(worker, SIGCONT)
                try await cluster.waitUntilReady()
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test func aCoordinatorKilledUnderLoadFinishesKeyedJobsExactlyOnce() async throws {
            try await TestCluster.with(.init(prefill: 1, decode: 1, journal: true), seed: 500) { cluster in
                let faulty = try await FaultRun(cluster)
                let kill = Once(at: 6)
                let keys = faulty.prompts.indices.map { "key-\($0)" }
                @Sendable func submit(_ index: Int) async throws -> TestClient.Completion {
                    try await cluster.client.stream(
                        faulty.prompts[index], maxTokens: faulty.maxTokens, seed: index, tenant: "keyed",
                        headers: [("idempotency-key", keys[index])]
                    ) { count in await kill.fire(count) { cluster.kill("coordinator") } }
                }
                await withTaskGroup(of: Void.self) { group in
                    for index in faulty.prompts.indices { group.addTask { _ = try? await submit(index) } }
                }
                #expect(kill.happened)
                try cluster.startCoordinator()
                try await cluster.waitUntilReady()
                var jobs: Set<String> = []
                for index in faulty.prompts.indices {
                    let again = try await submit(index)
                    #expect(again.text == faulty.clean[index], "job \(index)")
                    let third = try await submit(index)
                    #expect(third.job == again.job && third.text == again.text)
                    jobs.insert(again.job)
                }
                #expect(jobs.count == faulty.prompts.count)
                try await cluster.waitUntilPagesAreBack()
            }
        }
    }

    @Suite struct LinkFaultTests {
        /// Faults of the P–D link and of the C–D link; each must leave every text as it was.
        static let faults: [LinkFault] = [
            .slice(bytesMax: 3), .cutAfter(bytes: 70_000), .corrupt(oneIn: 40_000), .stall, .delay(milliseconds: 3),
        ]

        @Test(arguments: faults) func aFaultyPageLinkChangesNoText(fault: LinkFault) async throws {
            try await TestCluster.with(.init(prefill: 1, decode: 2), seed: 600) { cluster in
                let faulty = try await FaultRun(cluster)
                let proxy = try #require(cluster.pageProxies["decode-0"])
                let bytes = proxy.counts.bytesForward
                proxy.set(fault, .forward)
                try await faulty.run(
                    "faulty",
                    beside: {
                        try await Task.sleep(for: .milliseconds(1500))
                        proxy.set(.none)
                    })
                #expect(proxy.counts.bytesForward > bytes || fault == .stall)
                #expect(try await faulty.counter("failed") == 0)
                try await cluster.waitUntilReady()
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test(arguments: [FlowDirection.forward, .backward], faults)
        func aFaultyControlLinkOfADecodeWorkerChangesNoText(direction: FlowDirection, fault: LinkFault) async throws {
            try await TestCluster.with(.init(prefill: 1, decode: 2), seed: 700) { cluster in
                let faulty = try await FaultRun(cluster)
                let proxy = try #require(cluster.controlProxies["decode-0"])
                let once = Once(at: 3)
                let fault = fault == .cutAfter(bytes: 70_000) ? LinkFault.cutAfter(bytes: 500) : fault
                try await faulty.run("faulty") { count in
                    await once.fire(count) {
                        proxy.set(fault, direction)
                        Task {
                            try await Task.sleep(for: .milliseconds(3000))
                            proxy.set(.none)
                        }
                    }
                }
                #expect(once.happened)
                proxy.set(.none)
                #expect(try await faulty.counter("failed") == 0)
                try await cluster.waitUntilReady()
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test func aPageLinkThatCannotBeMadeGoesThroughTheRelay() async throws {
            try await TestCluster.with(seed: 800) { cluster in
                cluster.pageProxies["decode-0"]?.refuse(true)
                let faulty = Task {
                    try await cluster.client.stream(Prompts.text(words: 100, seed: 8), maxTokens: 8, seed: 1)
                }
                try await Task.sleep(for: .milliseconds(200))
                cluster.pageProxies["decode-0"]?.refuse(false)
                let done = try await faulty.value
                #expect(done.finishReason == "length")
                #expect(cluster.pageProxies["decode-0"]?.counts.refusedConnections ?? 0 > 0)
            }
        }
    }
}
