import BoundedJSON
import Foundation
import Testing

/// The `tandem` program as a person uses it.
struct CommandLine {
    let state: URL

    init() {
        state = FileManager.default.temporaryDirectory.appendingPathComponent(
            "tandem-cli-\(UUID().uuidString.prefix(8))")
    }

    /// Runs one command to its end.
    @discardableResult
    func run(_ arguments: [String], expecting status: Int32 = 0) throws -> String {
        let process = Process()
        let output = Pipe()
        process.executableURL = Paths.products.appendingPathComponent("tandem")
        process.arguments = arguments + (arguments.contains("doctor") ? [] : ["--state", state.path])
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        #expect(process.terminationStatus == status, "tandem \(arguments.joined(separator: " ")):\n\(text)")
        return text
    }

    func up(_ more: [String] = []) throws -> String {
        try run(["up", "--detach", "--model", Paths.model, "--port", "0", "--blocks", "512"] + more)
    }

    var card: JSONValue? {
        FileManager.default.contents(atPath: state.appendingPathComponent("cluster.json").path)
            .flatMap { try? JSON.parse([UInt8]($0)) }
    }

    func tearDown() {
        if let process = card?["supervisor"]?.intValue { kill(pid_t(process), SIGKILL) }
        try? FileManager.default.removeItem(at: state)
    }
}

extension ClusterSuites {
    @Suite struct CommandLineTests {
        @Test func upSubmitStatusScaleDownWorkAndASecondUpIsRefused() async throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            #expect(try tandem.up().contains("ready: http://127.0.0.1:"))
            let refusal = try tandem.run(["up", "--model", Paths.model, "--port", "0"], expecting: 1)
            #expect(refusal.contains("already running"))
            let text = try tandem.run(["submit", "Once upon a time", "--max-tokens", "12", "--seed", "1"])
            #expect(text.count > 10)
            #expect(try tandem.run(["submit", "Once upon a time", "--max-tokens", "12", "--seed", "1"]) == text)
            #expect(try tandem.run(["status"]).contains("decode-0"))
            #expect(try tandem.run(["models"]).contains("tandem-stories-5m"))
            #expect(try tandem.run(["jobs"]).contains("length"))
            #expect(try tandem.run(["scale", "decode=0"], expecting: 1).contains("at least one"))
            #expect(try tandem.run(["down"]).contains("stopped"))
            #expect(tandem.card == nil)
            #expect(try tandem.run(["status", "--url", "http://127.0.0.1:1"], expecting: 1).contains("tandem up"))
        }

        @Test func scalingUnderLoadLosesNothing() async throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            _ = try tandem.up()
            let port = UInt16(URL(string: tandem.card?["url"]?.stringValue ?? "")?.port ?? 0)
            let client = TestClient(port: port)
            let prompts = (0..<4).map { Prompts.text(words: 60 + $0, seed: UInt64($0)) }
            var clean: [String] = []
            for (index, prompt) in prompts.enumerated() {
                clean.append(try await client.stream(prompt, maxTokens: 40, seed: index, tenant: "clean").text)
            }
            let expected = clean
            try await withThrowingTaskGroup(of: Void.self) { group in
                for round in 0..<6 {
                    for (index, prompt) in prompts.enumerated() {
                        group.addTask {
                            try await Task.sleep(for: .milliseconds(round * 400))
                            let done = try await client.stream(
                                prompt, maxTokens: 40, seed: index, tenant: "round-\(round)")
                            #expect(done.text == expected[index], "round \(round) job \(index)")
                        }
                    }
                }
                group.addTask {
                    for counts in [["prefill=2", "decode=3"], ["decode=1"], ["prefill=1", "decode=2"]] {
                        try tandem.run(["scale"] + counts)
                        try await Task.sleep(for: .milliseconds(700))
                    }
                }
                try await group.waitForAll()
            }
            let counters = try await client.get("/admin/cluster")["counters"]
            #expect(counters?["failed"]?.intValue == 0)
            try tandem.run(["down"])
        }

        @Test func noWorkerOutlivesASupervisorThatIsKilled() async throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            _ = try tandem.up()
            let client = TestClient(port: UInt16(URL(string: tandem.card?["url"]?.stringValue ?? "")?.port ?? 0))
            let workers = try await client.get("/admin/cluster")["workers"]?.arrayValue ?? []
            let processes = workers.compactMap { $0["pid"]?.intValue }
            #expect(processes.count == 2)
            kill(pid_t(tandem.card?["supervisor"]?.intValue ?? 0), SIGKILL)
            for _ in 0..<500 where processes.contains(where: { kill(pid_t($0), 0) == 0 && !Self.isZombie($0) }) {
                try await Task.sleep(for: .milliseconds(20))
            }
            for process in processes {
                #expect(kill(pid_t(process), 0) != 0 || Self.isZombie(process), "process \(process) lives on")
            }
        }

        /// Ended, but not yet reaped by whoever inherited it.
        private static func isZombie(_ process: Int) -> Bool {
            let stat = (try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)) ?? ""
            return stat.split(separator: ")").last?.hasPrefix(" Z") ?? true
        }

        @Test func theDemonstrationOfMakeRunEndsWithStatusZeroAndShowsTwoDecodeWorkers() throws {
            let process = Process()
            let output = Pipe()
            process.executableURL = Paths.products.appendingPathComponent("tandem")
            process.arguments = ["demo", "--model", Paths.model]
            process.standardOutput = output
            process.standardError = output
            try process.run()
            let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
            process.waitUntilExit()
            #expect(process.terminationStatus == 0, "\(text)")
            #expect(text.contains("decode-1") && text.contains("the cluster has stopped"), "\(text)")
        }
    }
}
