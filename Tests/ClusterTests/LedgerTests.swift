import BoundedJSON
import Foundation
import Synchronization
import Testing

extension ClusterSuites {
    /// After any crash the settlements add up to what clients were handed (scheduling.md §6, 18).
    @Suite struct LedgerTests {
        /// Tokens of the ledger, from its file: the coordinator is not asked.
        private static func settled(_ cluster: TestCluster, _ tenant: String) async throws -> (jobs: Int, tokens: Int) {
            let query =
                "import sqlite3,sys; c=sqlite3.connect('file:'+sys.argv[1]+'?mode=ro',uri=True); "
                + "print(*c.execute('SELECT COUNT(*), COALESCE(SUM(streamed),0) FROM settlement WHERE tenant=?',"
                + "(sys.argv[2],)).fetchone())"
            let output = try await Tool.run(
                "python3", ["-c", query, cluster.folder.appendingPathComponent("journal.sqlite").path, tenant])
            let numbers = output.text.split(separator: " ").compactMap { Int($0.trimmingCharacters(in: .newlines)) }
            guard numbers.count == 2 else { throw TestFailure("the ledger cannot be read: \(output.text)") }
            return (numbers[0], numbers[1])
        }

        private static func open(_ cluster: TestCluster) async throws -> Int {
            let query =
                "import sqlite3,sys; c=sqlite3.connect('file:'+sys.argv[1]+'?mode=ro',uri=True); "
                + "print(c.execute('SELECT COUNT(*) FROM reservation').fetchone()[0])"
            let output = try await Tool.run(
                "python3", ["-c", query, cluster.folder.appendingPathComponent("journal.sqlite").path])
            return Int(output.text.trimmingCharacters(in: .whitespacesAndNewlines)) ?? -1
        }

        /// One token per piece: random bytes would wait for whole characters, token ids do not.
        private static func tokens(_ cluster: TestCluster, tenant: String, seed: Int, count: Int, keyed: Bool)
            async throws -> Int
        {
            let headers = keyed ? [("idempotency-key", "key-\(tenant)-\(seed)")] : []
            let received = Mutex(0)
            do {
                _ = try await cluster.client.stream(
                    Prompts.text(words: 60, seed: UInt64(seed)), maxTokens: count, seed: seed, tenant: tenant,
                    more: [("stream_options", ["include_usage": true, "continuous_usage_stats": true])],
                    headers: headers, onUsage: { tokens in received.withLock { $0 = max($0, tokens) } })
            } catch is ServerRefusal {
                throw TestFailure("refused")
            } catch {}
            return received.withLock { $0 }
        }

        @Test func whatWasStreamedIsSettledThoughCoordinatorAndWorkersAreKilled() async throws {
            let shape = TestCluster.Shape(prefill: 1, decode: 2, journal: true)
            try await TestCluster.with(shape, seed: 4100) { cluster in
                // Whole runs, with a worker killed under them.
                let whole = try await withThrowingTaskGroup(of: Int.self) { group in
                    for seed in 0..<3 {
                        group.addTask {
                            try await Self.tokens(cluster, tenant: "whole", seed: seed, count: 40, keyed: false)
                        }
                    }
                    try await Task.sleep(for: .milliseconds(150))
                    cluster.kill("decode-0")
                    return try await group.reduce(0, +)
                }
                #expect(whole == 120)
                try await cluster.wait("three settlements") {
                    (try? await Self.settled(cluster, "whole").jobs) == 3
                }
                #expect(try await Self.settled(cluster, "whole").tokens == whole)

                // The coordinator is killed in the middle of attached and keyed jobs.
                try cluster.startWorker("decode-0")
                try await cluster.waitUntilReady()
                let attached = try (0..<3).map { seed in
                    try RawStream(
                        port: cluster.httpPort, prompt: Prompts.text(words: 60, seed: UInt64(seed)), maxTokens: 400,
                        seed: seed, tenant: "attached")
                }
                try await withThrowingTaskGroup(of: Void.self) { group in
                    for seed in 0..<2 {
                        group.addTask {
                            _ = try await Self.tokens(cluster, tenant: "keyed", seed: seed, count: 120, keyed: true)
                        }
                    }
                    try await cluster.wait("tokens of each attached job") { attached.allSatisfy { $0.tokens >= 20 } }
                    // In a turn of its loop that finds a long backlog: workers have gone on meanwhile.
                    cluster.signal("coordinator", SIGSTOP)
                    try await Task.sleep(for: .milliseconds(60))
                    cluster.signal("coordinator", SIGCONT)
                    usleep(1000)
                    cluster.kill("coordinator")
                    try await group.waitForAll()
                }
                try await cluster.wait("the connections' ends") { attached.allSatisfy(\.isOver) }
                let cut = attached.reduce(0) { $0 + $1.tokens }
                #expect(cut < 1200, "the kill came too late")
                try cluster.startCoordinator()
                try await cluster.waitUntilReady()
                let settled = try await Self.settled(cluster, "attached")
                #expect(settled.jobs == 3)
                #expect(settled.tokens >= cut, "the settlements cover what clients saw")
                // `CoordinatorAccounts`: beyond that, seven events of each connection may not have been with the
                // kernel yet, and one token of each job was given by the event in which the coordinator died.
                #expect(settled.tokens <= cut + 3 * 8, "\(settled.tokens) settled, \(cut) seen")
                try await Self.expectCountersToHoldTheLedger(cluster)

                // Keyed jobs are finished, and settled once for all their tokens.
                for seed in 0..<2 {
                    #expect(
                        try await Self.tokens(cluster, tenant: "keyed", seed: seed, count: 120, keyed: true) == 120)
                }
                try await cluster.wait("two settlements") {
                    (try? await Self.settled(cluster, "keyed").jobs) == 2
                }
                #expect(try await Self.settled(cluster, "keyed").tokens == 240)
                #expect(try await Self.open(cluster) == 0, "nothing stays reserved")

                // The next coordinator shows the same sums and the same counters, lifts of the last moment with them.
                let late = try await cluster.client.stream(
                    Prompts.text(words: 20, seed: 9), maxTokens: 4, seed: 9, tenant: "late")
                #expect(late.finishReason == "length")
                let before = try await Self.tenants(cluster)
                cluster.kill("coordinator")
                try cluster.startCoordinator()
                try await cluster.waitUntilReady()
                let after = try await Self.tenants(cluster)
                for (name, standing) in before { #expect(after[name] == standing, "\(name)") }
                #expect(before.keys.sorted() == ["attached", "keyed", "late", "whole"])
                #expect(before["late"]?.counter ?? 0 > (before["late"]?.charged ?? 0), "it was lifted")
                try await Self.expectCountersToHoldTheLedger(cluster)
            }
        }

        /// Counters began with the ledger and lifts only add to them: none is below what its tokens come to.
        private static func expectCountersToHoldTheLedger(_ cluster: TestCluster) async throws {
            for (name, standing) in try await tenants(cluster) {
                #expect(standing.counter >= standing.charged, "\(name): a crash gave credit")
            }
        }

        private struct Standing: Equatable {
            var streamed: Int
            var counter: Double
            /// Units that the ledger's tokens come to, one per computed and two per decoded one.
            var charged: Double
        }

        private static func tenants(_ cluster: TestCluster) async throws -> [String: Standing] {
            var found: [String: Standing] = [:]
            for tenant in try await cluster.client.get("/admin/tenants")["data"]?.arrayValue ?? [] {
                guard let name = tenant["name"]?.stringValue else { continue }
                let (computed, decoded) = (
                    tenant["tokens"]?["computed"]?.intValue, tenant["tokens"]?["decoded"]?.intValue
                )
                found[name] = Standing(
                    streamed: tenant["streamed_tokens"]?.intValue ?? -1,
                    counter: tenant["virtual_counter"]?.doubleValue ?? -1,
                    charged: Double((computed ?? 0) + 2 * (decoded ?? 0)))
            }
            return found
        }
    }
}
