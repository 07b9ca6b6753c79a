import BoundedJSON
import Foundation
import Testing

extension ClusterSuites {
    /// Jobs that together need more than the decode worker's pool: their pages go to the host tier and
    /// come back, and every text is the one of an undisturbed run.
    @Suite struct SwapTests {
        /// Jobs of 7 to 10 blocks that grow to 16 and more; the pool holds three of them grown.
        private static let jobs = 6
        private static let maxTokens = 140

        private func shape(_ swapFolder: URL, swapBytes: Int = 64 << 20) -> TestCluster.Shape {
            TestCluster.Shape(
                workerArguments: ["--swap-bytes", "\(swapBytes)", "--swap-dir", swapFolder.path], blocks: 56)
        }

        private func prompts(_ cluster: TestCluster) -> [String] {
            (0..<Self.jobs).map { Prompts.text(words: 70 + 5 * $0, seed: cluster.seed &+ UInt64($0)) }
        }

        private func clean(_ prompts: [String], on cluster: TestCluster) async throws -> [String] {
            var texts: [String] = []
            for (index, prompt) in prompts.enumerated() {
                let done = try await cluster.client.stream(
                    prompt, maxTokens: Self.maxTokens, seed: index, tenant: "clean")
                texts.append(done.text)
            }
            return texts
        }

        private func together(_ prompts: [String], on cluster: TestCluster) async throws -> [Int: String] {
            try await withThrowingTaskGroup(of: (Int, String).self) { group in
                for (index, prompt) in prompts.enumerated() {
                    group.addTask {
                        let done = try await cluster.client.stream(
                            prompt, maxTokens: Self.maxTokens, seed: index, tenant: "tenant-\(index % 2)")
                        return (index, done.text)
                    }
                }
                return try await group.reduce(into: [Int: String]()) { $0[$1.0] = $1.1 }
            }
        }

        private func counter(_ name: String, of cluster: TestCluster) async -> Int {
            (try? await cluster.client.get("/admin/cluster"))?["counters"]?[name]?.intValue ?? -1
        }

        private func waitUntilHostTierIsEmpty(_ cluster: TestCluster) async throws {
            try await cluster.wait("the host tier to be empty") {
                let workers = (try? await cluster.client.get("/admin/cluster"))?["workers"]?.arrayValue ?? []
                return workers.allSatisfy { worker in
                    let swap = worker["load"]?["swap"]
                    return swap?["held"]?.intValue == 0 && swap?["reserved"]?.intValue == 0
                }
            }
        }

        @Test func jobsWhosePagesWereSwappedGiveTheTextsOfAnUndisturbedRun() async throws {
            let folder = try Scratch.folder()
            defer { try? FileManager.default.removeItem(at: folder) }
            try await TestCluster.with(shape(folder)) { cluster in
                let prompts = prompts(cluster)
                let clean = try await clean(prompts, on: cluster)
                let texts = try await together(prompts, on: cluster)
                for index in prompts.indices {
                    #expect(texts[index] == clean[index], "seed \(cluster.seed): job \(index)")
                }
                let (out, back) = (
                    await counter("swapped_out", of: cluster), await counter("swapped_back", of: cluster)
                )
                #expect(out > 0, "seed \(cluster.seed): the pool was never short")
                #expect(back == out, "seed \(cluster.seed)")
                #expect(await counter("requeued", of: cluster) == 0, "seed \(cluster.seed): a job was computed again")
                try await cluster.waitUntilPagesAreBack()
                try await waitUntilHostTierIsEmpty(cluster)
            }
        }

        @Test func aDecodeWorkerKilledWithSwappedJobsLeavesNothingBehind() async throws {
            let folder = try Scratch.folder()
            defer { try? FileManager.default.removeItem(at: folder) }
            try await TestCluster.with(shape(folder)) { cluster in
                let prompts = prompts(cluster)
                let clean = try await clean(prompts, on: cluster)
                async let fault: Void = {
                    try await cluster.wait("a job to be swapped out") {
                        await counter("swapped_out", of: cluster) > 0
                    }
                    cluster.kill("decode-0")
                    try cluster.startWorker("decode-0")
                }()
                let texts = try await together(prompts, on: cluster)
                try await fault
                for index in prompts.indices {
                    #expect(texts[index] == clean[index], "seed \(cluster.seed): job \(index)")
                }
                try await cluster.waitUntilReady()
                try await cluster.waitUntilPagesAreBack()
                try await waitUntilHostTierIsEmpty(cluster)
                let left = try FileManager.default.contentsOfDirectory(atPath: folder.path)
                #expect(left.isEmpty, "seed \(cluster.seed): \(left)")
            }
        }
    }
}
