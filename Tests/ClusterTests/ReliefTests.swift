import BoundedJSON
import Foundation
import Testing

extension ClusterSuites {
    /// A decode worker that computes long prompts itself while the prefill worker is behind.
    @Suite struct ReliefTests {
        private static let jobs = 10

        @Test func promptsComputedWhereTheyDecodeGiveTheTextsOfThoseThatTravelled() async throws {
            let shape = TestCluster.Shape(
                coordinatorArguments: ["--relief-wait-ms", "1", "--prefill-window", "1"],
                workerArguments: ["--step-limit-ms", "5", "--chunk-tokens", "32"])
            try await TestCluster.with(shape) { cluster in
                let prompts = (0..<Self.jobs).map { Prompts.text(words: 120, seed: cluster.seed &+ UInt64($0)) }
                var alone: [String] = []
                for (index, prompt) in prompts.enumerated() {
                    alone.append(try await text(prompt, index, "alone", cluster))
                }
                #expect(try await locally(cluster) == 0, "seed \(cluster.seed): nothing waited")
                let together = try await withThrowingTaskGroup(of: (Int, String).self) { group in
                    for (index, prompt) in prompts.enumerated() {
                        group.addTask { (index, try await text(prompt, index, "together", cluster)) }
                    }
                    return try await group.reduce(into: [Int: String]()) { $0[$1.0] = $1.1 }
                }
                for index in prompts.indices {
                    #expect(together[index] == alone[index], "seed \(cluster.seed): job \(index)")
                }
                let count = try await locally(cluster)
                #expect((1..<Self.jobs).contains(count), "seed \(cluster.seed): \(count) of \(Self.jobs)")
                try await cluster.waitUntilPagesAreBack()
            }
        }

        private func text(_ prompt: String, _ seed: Int, _ tenant: String, _ cluster: TestCluster) async throws
            -> String
        {
            try await cluster.client.stream(prompt, maxTokens: 60, seed: seed, tenant: tenant).text
        }

        private func locally(_ cluster: TestCluster) async throws -> Int {
            try await cluster.client.get("/admin/cluster")["counters"]?["decoded_locally"]?.intValue ?? -1
        }
    }
}
