import Foundation
import Testing

/// The `openai` package of PyPI, where `ops/test.sh` puts it.
enum OpenAIPackage {
    static let folder = Paths.repository.appendingPathComponent(".build/openai-client").path
    static let script = Paths.repository.appendingPathComponent("Tests/ClientTests/openai_client_test.py").path

    static var isThere: Bool {
        get async { (try? await python(["-c", "import openai"]))?.status == 0 }
    }

    static func python(_ arguments: [String]) async throws -> Tool.Output {
        try await Tool.run(
            "python3", arguments, environment: ["PYTHONPATH": folder, "PYTHONDONTWRITEBYTECODE": "1"])
    }

    /// Runs one set of checks of the script; a check that fails shows by its name.
    static func check(_ url: String, _ arguments: [String] = []) async throws {
        let output = try await python([script, "\(url)/v1"] + arguments)
        #expect(output.status == 0, "\(output.text)")
        #expect(output.text.contains("checks with openai"), "\(output.text)")
    }
}

extension ClusterSuites {
    @Suite(
        .enabled("python3 cannot import PyPI's openai from .build/openai-client; ops/test.sh installs it") {
            await OpenAIPackage.isThere
        })
    struct OpenAIClientTests {
        @Test func theOfficialClientWorksUnchanged() async throws {
            try await TestCluster.with(.init(journal: true), seed: 41) { cluster in
                try await OpenAIPackage.check("http://127.0.0.1:\(cluster.httpPort)")
                try await cluster.waitUntilPagesAreBack()
                let counters = try await cluster.client.get("/admin/cluster")["counters"]
                #expect(counters?["failed"]?.intValue == 0)
            }
        }

        @Test func theOfficialClientKnowsKeysByTheirErrors() async throws {
            let folder = try Scratch.folder()
            defer { try? FileManager.default.removeItem(at: folder) }
            let file = folder.appendingPathComponent("keys").path
            try "sk-infer somebody infer\n".write(toFile: file, atomically: true, encoding: .utf8)
            try await SmallCluster.with(["--api-keys", file]) { cluster in
                try await OpenAIPackage.check(cluster.url, ["--api-key", "sk-infer", "--set", "keys"])
            }
        }

        @Test func theOfficialClientSeesAFullQueueAsARateLimit() async throws {
            try await SmallCluster.with(["--queue", "1"], worker: false) { cluster in
                try await OpenAIPackage.check(cluster.url, ["--set", "full"])
            }
        }
    }
}
