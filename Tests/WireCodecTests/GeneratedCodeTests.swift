import Foundation
import Testing

@Suite struct GeneratedCodeTests {
    @Test func theCommittedCodeIsWhatTheSchemaGenerates() throws {
        let root = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
            .deletingLastPathComponent().resolvingSymlinksInPath()
        let target = FileManager.default.temporaryDirectory.appending(path: "tandem-wire-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: target, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: target) }
        let script = Process()
        script.executableURL = URL(filePath: "/bin/sh")
        script.arguments = [repository(from: root).appending(path: "proto/regenerate.sh").path, target.path]
        try script.run()
        script.waitUntilExit()
        #expect(script.terminationStatus == 0, "protoc-c is missing or refuses the schema: run 'make setup'")
        for file in ["tandem.pb-c.c", "include/tandem.pb-c.h"] {
            let committed = repository(from: root).appending(path: "Sources/CWire").appending(path: file)
            #expect(
                try Data(contentsOf: target.appending(path: file)) == Data(contentsOf: committed),
                "\(file) is not current: run 'make proto'")
        }
    }

    /// The checkout, also where its Tests folder is reached through a link from elsewhere.
    private func repository(from root: URL) -> URL {
        let direct = root.appending(path: "proto/tandem.proto")
        if FileManager.default.fileExists(atPath: direct.path) { return root }
        return root.appending(path: "Tests").resolvingSymlinksInPath().deletingLastPathComponent()
    }
}
