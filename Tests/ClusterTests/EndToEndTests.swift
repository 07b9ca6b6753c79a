import BoundedJSON
import Foundation
import Testing

extension ClusterSuites {
    @Suite struct EndToEndTests {
        @Test func theSameJobGivesTheSameTextDisaggregatedMixedRelayedAndLocal() async throws {
            let prompt = Prompts.text(words: 120, seed: 1)
            var texts: [String: String] = [:]
            let shapes: [(String, TestCluster.Shape)] = [
                ("direct", .init(coordinatorArguments: ["--kv-path", "direct"])),
                ("relay", .init(coordinatorArguments: ["--kv-path", "relay"])),
                ("mixed", .init(prefill: 0, decode: 0, mixed: 1)),
                ("local", .init(coordinatorArguments: ["--local-prefill-tokens", "100000"])),
                ("small chunks", .init(workerArguments: ["--chunk-tokens", "7", "--threads", "2"])),
            ]
            for (name, shape) in shapes {
                try await TestCluster.with(shape, seed: 1) { cluster in
                    let done = try await cluster.client.stream(prompt, maxTokens: 40, seed: 5)
                    texts[name] = done.text
                    try await cluster.waitUntilPagesAreBack()
                    let moved = try await cluster.client.get("/v1/jobs/\(done.job)")["route"]?["kv_bytes_moved"]?
                        .intValue
                    switch name {
                    case "mixed", "local": #expect(moved == 0, "\(name)")
                    default: #expect(moved ?? 0 > 0, "\(name) moved no page")
                    }
                }
            }
            #expect(Set(texts.values).count == 1, "\(texts)")
            #expect(texts["direct"]?.isEmpty == false)
        }

        @Test func manyJobsAtOnceAllEndAndEachEqualsItsLonelyRun() async throws {
            try await TestCluster.with(.init(prefill: 2, decode: 2), seed: 2) { cluster in
                let prompts = (0..<12).map { Prompts.text(words: 20 + 13 * $0, seed: UInt64($0)) }
                var lonely: [String] = []
                for (index, prompt) in prompts.enumerated() {
                    lonely.append(
                        try await cluster.client.stream(prompt, maxTokens: 24, seed: index, tenant: "one").text)
                }
                let together = try await withThrowingTaskGroup(of: (Int, String).self) { group in
                    for (index, prompt) in prompts.enumerated() {
                        group.addTask {
                            let done = try await cluster.client.stream(
                                prompt, maxTokens: 24, seed: index, tenant: "tenant-\(index % 3)")
                            return (index, done.text)
                        }
                    }
                    return try await group.reduce(into: [Int: String]()) { $0[$1.0] = $1.1 }
                }
                for index in prompts.indices { #expect(together[index] == lonely[index], "job \(index)") }
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test func aClientThatLeavesFreesItsPagesOnBothRoles() async throws {
            try await TestCluster.with(seed: 3) { cluster in
                let leaving = Task {
                    try await cluster.client.stream(Prompts.text(words: 150, seed: 9), maxTokens: 300, seed: 1)
                }
                try await cluster.wait("the job to decode") {
                    (try? await cluster.client.get("/admin/cluster"))?["live_jobs"]?.intValue == 1
                }
                leaving.cancel()
                _ = try? await leaving.value
                try await cluster.wait("the job to be gone") {
                    (try? await cluster.client.get("/admin/cluster"))?["live_jobs"]?.intValue == 0
                }
                try await cluster.waitUntilPagesAreBack()
            }
        }

        @Test func aRepeatedPromptMovesOnlyWhatTheDecodeWorkerLacks() async throws {
            try await TestCluster.with(seed: 4) { cluster in
                let prompt = Prompts.text(words: 150, seed: 4)
                let first = try await cluster.client.stream(prompt, maxTokens: 4, seed: 1)
                let second = try await cluster.client.stream(prompt, maxTokens: 4, seed: 1)
                #expect(first.text == second.text)
                func moved(_ job: String) async throws -> Int {
                    try await cluster.client.get("/v1/jobs/\(job)")["route"]?["kv_bytes_moved"]?.intValue ?? -1
                }
                let (one, two) = (try await moved(first.job), try await moved(second.job))
                #expect(two < one / 4, "first moved \(one), second \(two) bytes")
            }
        }

        @Test func badRequestsNameTheirFieldAndHarmNothing() async throws {
            try await TestCluster.with(seed: 5) { cluster in
                let cases: [(JSONValue, Int, String)] = [
                    (["prompt": "a", "temperature": -1], 400, "temperature"),
                    (["prompt": "a", "max_tokens": "many"], 400, "max_tokens"),
                    (["prompt": "a", "model": "gpt-17"], 404, "model"),
                    (["prompt": "a", "max_tokens": 1_000_000], 400, "max_tokens"),
                    (["temperature": 1], 400, "prompt"),
                ]
                for (body, status, field) in cases {
                    let reply = try await cluster.client.post("/v1/completions", body)
                    #expect(reply.status == status, "\(JSON.text(reply.json))")
                    let named = reply.json["error"]?["param"]?.stringValue ?? ""
                    #expect(named == field, "\(JSON.text(reply.json))")
                }
                let done = try await cluster.client.stream("Once upon a time", maxTokens: 5, seed: 1)
                #expect(done.finishReason == "length")
            }
        }
    }
}
