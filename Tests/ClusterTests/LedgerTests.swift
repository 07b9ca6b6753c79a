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
                let cut = try await withThrowingTaskGroup(of: Int.self) { group in
                    for seed in 0..<3 {
                        group.addTask {
                            try await Self.tokens(cluster, tenant: "attached", seed: seed, count: 400, keyed: false)
                        }
                    }
                    for seed in 0..<2 {
                        group.addTask {
                            _ = try await Self.tokens(cluster, tenant: "keyed", seed: seed, count: 120, keyed: true)
                            return 0
                        }
                    }
                    try await Task.sleep(for: .milliseconds(400))
                    cluster.kill("coordinator")
                    return try await group.reduce(0, +)
                }
                #expect(cut > 0, "nothing was streamed before the kill")
                #expect(cut < 1200, "the kill came too late")
                try cluster.startCoordinator()
                try await cluster.waitUntilReady()
                let settled = try await Self.settled(cluster, "attached")
                #expect(settled.jobs == 3)
                #expect(settled.tokens >= cut, "the settlements cover what clients saw")
                // Not more than what workers had said by one turn of the loop, which is many steps where the
                // machine is busy: far from the 400 that each job asked for.
                #expect(settled.tokens <= cut + 3 * 64, "\(settled.tokens) settled, \(cut) seen")

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

                // The next coordinator shows the same sums, and counters that are no smaller. Charges move them
                // whenever the last one died; a lift is written within the second, and earned again otherwise.
                try await Task.sleep(for: .milliseconds(1500))
                let before = try await Self.tenants(cluster)
                cluster.kill("coordinator")
                try cluster.startCoordinator()
                try await cluster.waitUntilReady()
                let after = try await Self.tenants(cluster)
                for (name, standing) in before {
                    #expect(after[name]?.streamed == standing.streamed, "\(name)")
                    #expect(after[name]?.counter ?? -1 >= standing.counter - 0.001, "\(name): a crash gives credit")
                }
                #expect(before.keys.sorted() == ["attached", "keyed", "whole"])
            }
        }

        private static func tenants(_ cluster: TestCluster) async throws -> [String: (streamed: Int, counter: Double)] {
            var found: [String: (streamed: Int, counter: Double)] = [:]
            for tenant in try await cluster.client.get("/admin/tenants")["data"]?.arrayValue ?? [] {
                guard let name = tenant["name"]?.stringValue else { continue }
                found[name] = (
                    tenant["streamed_tokens"]?.intValue ?? -1, tenant["virtual_counter"]?.doubleValue ?? -1
                )
            }
            return found
        }
    }
}
