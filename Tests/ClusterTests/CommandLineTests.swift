import BoundedJSON
import Foundation
import Testing

/// The `tandem` program as a person uses it.
struct CommandLine {
    /// Far beyond what any command takes on a busy machine.
    static let secondsMax = 240.0

    let state: URL

    init() {
        state = FileManager.default.temporaryDirectory.appendingPathComponent(
            "tandem-cli-\(UUID().uuidString.prefix(8))")
    }

    /// Runs one command to its end.
    @discardableResult
    func run(_ arguments: [String], expecting status: Int32 = 0) throws -> String {
        let process = Process()
        // A file, not a pipe: a process started meanwhile might inherit a pipe's end and keep it open.
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("tandem-out-\(UUID().uuidString)")
        FileManager.default.createFile(atPath: file.path, contents: nil)
        defer { try? FileManager.default.removeItem(at: file) }
        let output = try FileHandle(forWritingTo: file)
        process.executableURL = Paths.products.appendingPathComponent("tandem")
        let isStateless = ["doctor", "demo", "simulate"].contains(arguments.first)
        process.arguments = arguments + (isStateless ? [] : ["--state", state.path])
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = output
        process.standardError = output
        try process.run()
        // A command that hangs must fail its test, not stall the suite.
        let watchdog = DispatchWorkItem { kill(process.processIdentifier, SIGKILL) }
        DispatchQueue.global().asyncAfter(deadline: .now() + Self.secondsMax, execute: watchdog)
        defer { watchdog.cancel() }
        process.waitUntilExit()
        let text = (try? String(contentsOf: file, encoding: .utf8)) ?? ""
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

    var supervisor: pid_t? { card?["supervisor"]?.intValue.map { pid_t($0) } }

    var client: TestClient {
        TestClient(port: UInt16(URL(string: card?["url"]?.stringValue ?? "")?.port ?? 0))
    }

    /// Repeats a look until it shows what is wanted.
    func wait(_ what: String, until done: () async throws -> Bool) async throws {
        let start = ContinuousClock.now
        while ContinuousClock.now - start < Patience.stretched(TestCluster.readyWithin) {
            if try await done() { return }
            try await Task.sleep(for: .milliseconds(50))
        }
        throw TestFailure("\(what): not within \(ContinuousClock.now - start)")
    }

    func tearDown() {
        if let supervisor { kill(supervisor, SIGKILL) }
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
            // The verb before or behind the options, and an error that says what to write.
            #expect(try tandem.run(["tenants", "set", "acme", "weight=4"]).contains("\"weight\": 4"))
            #expect(try tandem.run(["tenants", "--state", tandem.state.path, "set", "acme", "weight=3"]).contains("3"))
            #expect(try tandem.run(["tenants", "--window", "10"]).contains("shares of the last 10 s"))
            #expect(try tandem.run(["tenants", "--window", "9", "show"]).contains("shares of the last 9 s"))
            for words in [["--window", "10", "set"], ["--window", "10", "acme", "weight=4"], ["sett", "acme"]] {
                let refusal = try tandem.run(["tenants"] + words, expecting: 1)
                #expect(refusal.contains("tandem tenants set TENANT NAME=VALUE"), "\(words): \(refusal)")
            }
            #expect(try tandem.run(["down"]).contains("stopped"))
            #expect(tandem.card == nil)
            #expect(try tandem.run(["status", "--url", "http://127.0.0.1:1"], expecting: 1).contains("tandem up"))
        }

        @Test func scalingUnderLoadLosesNothing() async throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            _ = try tandem.up()
            let client = tandem.client
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
            let workers = try await tandem.client.get("/admin/cluster")["workers"]?.arrayValue ?? []
            let processes = workers.compactMap { $0["pid"]?.intValue }
            #expect(processes.count == 2)
            kill(try #require(tandem.supervisor), SIGKILL)
            try await tandem.wait("processes \(processes) gone") {
                processes.allSatisfy { kill(pid_t($0), 0) != 0 || Self.isZombie($0) }
            }
            // What it left behind hinders nobody.
            #expect(tandem.card != nil)
            #expect(try tandem.run(["down"], expecting: 1).contains("nothing to stop"))
            #expect(try tandem.up().contains("ready: http://127.0.0.1:"))
            try tandem.run(["down"])
        }

        @Test func aKilledWorkerAndAKilledCoordinatorComeBackAndStatusSaysSo() async throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            _ = try tandem.up()
            let clean = try await tandem.client.stream("Once upon a time", maxTokens: 200, seed: 5, tenant: "clean")
                .text
            let workers = try await tandem.client.get("/admin/cluster")["workers"]?.arrayValue ?? []
            let decode = try #require(workers.first { $0["name"]?.stringValue == "decode-0" }?["pid"]?.intValue)
            async let streamed = tandem.client.stream("Once upon a time", maxTokens: 200, seed: 5, tenant: "other").text
            kill(pid_t(decode), SIGKILL)
            #expect(try await streamed == clean)
            try await tandem.wait("decode-0 restarted") {
                let status = try tandem.run(["status"])
                return status.contains("was ended by signal 9") && status.contains("ready")
            }
            let whole = try tandem.run([
                "submit", "Once upon a time", "--max-tokens", "200", "--seed", "5", "--tenant", "clean",
            ])
            let keyed = Task {
                try tandem.run([
                    "submit", "Once upon a time", "--max-tokens", "200", "--seed", "5", "--idempotency-key", "k",
                ])
            }
            try await tandem.wait("the keyed job") {
                try await tandem.client.get("/v1/jobs")["data"]?.arrayValue?.contains {
                    $0["usage"]?["completion_tokens"]?.intValue ?? 0 > 0 && $0["tenant"]?.stringValue == "default"
                } == true
            }
            kill(try Self.child(of: try #require(tandem.supervisor), program: "tandem-coordinator"), SIGKILL)
            try await tandem.wait("workers at the new coordinator") {
                let snapshot = try? await tandem.client.get("/admin/cluster")
                let ready = (snapshot?["workers"]?.arrayValue ?? []).filter { $0["state"]?.stringValue == "ready" }
                return ready.count == 2
            }
            let again = try tandem.run(["submit", "Once upon a time", "--max-tokens", "200", "--seed", "5"])
            #expect(again == whole)
            let resumed = try await keyed.value
            let complaint = "tandem: the coordinator went away; waiting for it\n"
            #expect(resumed.replacingOccurrences(of: complaint, with: "") == whole)
            #expect(try tandem.run(["status"]).contains("coordinator  running"))
            try tandem.run(["down"])
        }

        @Test func aModelThatCannotBeReadEndsTheStartAtOnceWithOneSentence() throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            let model = tandem.state.appendingPathComponent("model")
            try FileManager.default.createDirectory(at: model, withIntermediateDirectories: true)
            try Data("{".utf8).write(to: model.appendingPathComponent("config.json"))
            for detach in [[], ["--detach"]] {
                let refusal = try tandem.run(["up", "--model", model.path, "--port", "0"] + detach, expecting: 1)
                #expect(refusal.contains("cannot start") && refusal.contains("config.json"), "\(refusal)")
            }
        }

        @Test func badFlagsAndBadFilesAreRefusedWithTheirNames() throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            try FileManager.default.createDirectory(at: tandem.state, withIntermediateDirectories: true)
            let file = tandem.state.appendingPathComponent("cluster.yaml")
            for (yaml, word) in [
                ("prefil: 2\n", "unknown setting prefil"), ("prefill: [1\n", "not YAML"), ("prefill: two\n", "two"),
            ] {
                try Data(yaml.utf8).write(to: file)
                let refusal = try tandem.run(["up", "--config", file.path, "--model", Paths.model], expecting: 1)
                #expect(refusal.contains(word), "\(refusal)")
            }
            try Data("prefill: 3\nmodel: \(Paths.model)\n".utf8).write(to: file)
            let settings = try tandem.run(["up", "--show-config", "--config", file.path, "--decode", "2"])
            #expect(settings.contains { $0.isNewline } && settings.contains("flag") && settings.contains("file"))
            #expect(try tandem.run(["up", "--prefil", "2"], expecting: 64).contains("--prefill"))
            #expect(try tandem.run(["up", "--model", "/nonexistent"], expecting: 1).contains("/nonexistent"))
            #expect(try tandem.run(["submit", "x", "--url", "nonsense"], expecting: 1).contains("nonsense"))
            #expect(try tandem.run(["down"], expecting: 1).contains("nothing to stop"))
        }

        /// Both forms of recorded requests, prefixes by their hash ids, and twice the same bytes.
        @Test func theSimulatorReadsTracesAndGivesTheSameBytesTwice() throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            try FileManager.default.createDirectory(at: tandem.state, withIntermediateDirectories: true)
            let trace = tandem.state.appendingPathComponent("trace.jsonl")
            let prefixed = (0..<3).map {
                #"{"timestamp": \#($0 * 10_000), "input_length": 1100, "output_length": 4, "hash_ids": [7, 8]}"#
            }
            let plain = #"{"arrival_s": 40.5, "tenant": 3, "input_tokens": 20, "output_tokens": 6}"#
            try Data((prefixed + [plain]).joined(separator: "\n").utf8).write(to: trace)
            let results = try ["one", "two"].map { name -> Data in
                let file = tandem.state.appendingPathComponent("\(name).json")
                try tandem.run(
                    ["simulate", "--trace-file", trace.path, "--json", file.path, "--policy-settings", "theta=500"])
                return try Data(contentsOf: file)
            }
            #expect(results[0] == results[1])
            let report = try JSON.parse([UInt8](results[0]))
            #expect(report["finished"]?.intValue == 4 && report["cached_tokens"]?.intValue == 2 * 1024)
            let tenants = report["tenants"]?.arrayValue?.compactMap { $0["tenant"]?.stringValue }
            #expect(tenants == ["default", "tenant-003"])
            try Data("\(plain)\n{}".utf8).write(to: trace)
            #expect(try tandem.run(["simulate", "--trace-file", trace.path], expecting: 1).contains("line 2"))
        }

        @Test func goodputIsToldAsATableAsJSONAndAsAPlot() throws {
            let tandem = CommandLine()
            defer { tandem.tearDown() }
            try FileManager.default.createDirectory(at: tandem.state, withIntermediateDirectories: true)
            let file = tandem.state.appendingPathComponent("rates.json")
            let table = try tandem.run(
                ["simulate", "--rates", "1,4", "--jobs", "40", "--json", file.path, "--out", tandem.state.path])
            #expect(table.contains("GOODPUT"))
            let rates = try JSON.parse([UInt8](Data(contentsOf: file))).arrayValue ?? []
            #expect(rates.map { $0["rate"]?.doubleValue } == [1, 4])
            #expect(rates.allSatisfy { $0["goodput"]?.doubleValue ?? 0 > 0 && $0["finished"]?.intValue == 40 })
            let plot = try String(contentsOf: tandem.state.appendingPathComponent("goodput.svg"), encoding: .utf8)
            #expect(plot.contains("offered") && plot.contains("</svg>"))
            for (flag, value, word) in [
                ("--policy-settings", "theta=x", "theta"), ("--policy-settings", "zeta=1", "zeta"),
                ("--policy", "best", "best"),
            ] {
                #expect(try tandem.run(["simulate", flag, value], expecting: 64).contains(word))
            }
            let wrong = ["up", "--model", Paths.model, "--policy-settings", "levels=0"]
            #expect(try tandem.run(wrong, expecting: 1).contains("levels"))
        }

        /// Linux lists a process's children under its main thread and under the thread that made them.
        private static func child(of parent: pid_t, program: String) throws -> pid_t {
            let tasks = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(parent)/task")
            let children = tasks.flatMap { task in
                ((try? String(contentsOfFile: "/proc/\(parent)/task/\(task)/children", encoding: .utf8)) ?? "")
                    .split(separator: " ")
            }
            let found = children.first { child in
                (try? String(contentsOfFile: "/proc/\(child)/cmdline", encoding: .utf8))?.contains(program) == true
            }
            return try #require(found.flatMap { pid_t($0) }, "no child \(program) of \(parent)")
        }

        /// Ended, but not yet reaped by whoever inherited it.
        private static func isZombie(_ process: Int) -> Bool {
            let stat = (try? String(contentsOfFile: "/proc/\(process)/stat", encoding: .utf8)) ?? ""
            return stat.split(separator: ")").last?.hasPrefix(" Z") ?? true
        }

        @Test func theDemonstrationOfMakeRunEndsWithStatusZeroAndShowsTwoDecodeWorkers() throws {
            let text = try CommandLine().run(["demo", "--model", Paths.model])
            #expect(text.contains("decode-1") && text.contains("the cluster has stopped"), "\(text)")
        }
    }
}
