import Foundation
import LocalSupervisor
import ServingTypes
import Testing

@Suite struct StateDirectoryTests {
    /// A fresh folder for one test.
    private func withDirectory(_ body: (StateDirectory) async throws -> Void) async throws {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("tsd-\(UUID().uuidString.prefix(8))")
            .path
        defer { try? FileManager.default.removeItem(atPath: path) }
        try await body(StateDirectory(path: path))
    }

    @Test func oneSupervisorHoldsADirectoryUntilItLetsGo() async throws {
        try await withDirectory { directory in
            #expect(!directory.isHeld)
            try directory.create()
            var lock: StateLock? = try directory.lock()
            #expect(directory.isHeld)
            let refusal = #expect(throws: ServingError.self) { try directory.lock() }
            #expect(refusal?.message.contains("already running") == true)
            #expect(refusal?.message.contains("\(getpid())") == true)
            #expect(lock != nil)
            lock = nil
            #expect(!directory.isHeld)
            _ = try directory.lock()
        }
    }

    @Test func aPathTooLongForASocketIsRefusedInOneSentence() {
        let directory = StateDirectory(path: "/tmp/" + String(repeating: "a", count: StateDirectory.pathBytesMax))
        let refusal = #expect(throws: ServingError.self) { try directory.create() }
        #expect(refusal?.message.contains("\(StateDirectory.pathBytesMax)") == true)
        #expect(refusal?.field == "state")
    }

    @Test func theCardComesBackAsItWasWrittenAndAnUnreadableOneIsNone() async throws {
        try await withDirectory { directory in
            try directory.create()
            #expect(directory.readCard() == nil)
            let card = ClusterCard(url: "http://127.0.0.1:8000", model: "/m", apiKey: "k", supervisorProcessID: 7)
            try directory.writeCard(card)
            #expect(directory.readCard() == card)
            try Data("{".utf8).write(to: URL(fileURLWithPath: directory.cardFile))
            #expect(directory.readCard() == nil)
            directory.removeCard()
            #expect(!FileManager.default.fileExists(atPath: directory.cardFile))
        }
    }

    @Test func aLogPastItsBoundIsSetAsideAndASmallOneIsLeftAlone() async throws {
        try await withDirectory { directory in
            try directory.create()
            let log = directory.logFile(of: "decode-0")
            try Data(repeating: 1, count: 100).write(to: URL(fileURLWithPath: log))
            LogFiles.rotate(log, bytesMax: 100)
            #expect(FileManager.default.contents(atPath: log)?.count == 100)
            LogFiles.rotate(log, bytesMax: 99)
            #expect(!FileManager.default.fileExists(atPath: log))
            #expect(FileManager.default.contents(atPath: log + ".1")?.count == 100)
        }
    }
}
