import Foundation
import Testing

/// Style is a test (design §3, aesthetics.md §4 habit 14): it reads the sources as text.
@Suite struct LayeringTests {
    /// What each target of ours may import of ours. L0 to L2 may import nothing else at all.
    static let pure: [String: Set<String>] = [
        "ServingTypes": [],
        "BoundedJSON": [],
        "Messages": ["ServingTypes"],
        "KVPaging": ["ServingTypes", "Messages"],
        "Scheduling": ["ServingTypes"],
        "ServingMetrics": ["ServingTypes"],
        "Tokenization": ["ServingTypes", "BoundedJSON"],
        "ChatTemplate": ["ServingTypes", "BoundedJSON"],
        "CoordinatorCore": ["ServingTypes", "Messages", "Scheduling", "ServingMetrics", "KVPaging"],
        "PrefillCore": ["ServingTypes", "Messages", "Scheduling", "KVPaging"],
        "DecodeCore": ["ServingTypes", "Messages", "Scheduling", "KVPaging"],
    ]

    static let mechanisms: Set<String> = ["HTTPSession", "ModelRuntime", "WireCodec", "ModelFiles", "LoadBench"]
    static let drivers: Set<String> = ["FrontDoor", "Hosting", "ClusterTransport", "Ledger", "LocalSupervisor"]

    @Test func pureTargetsImportOnlyWhatTheirLayerAllows() {
        for (target, allowed) in Self.pure.sorted(by: { $0.key < $1.key }) {
            let files = SourceTree.swiftFiles(in: "Sources/\(target)")
            #expect(!files.isEmpty, "Sources/\(target) holds no Swift file")
            for file in files {
                for imported in file.imports where imported != "Swift" && !allowed.contains(imported) {
                    Issue.record("\(file.path) imports \(imported); \(target) may import \(allowed.sorted())")
                }
            }
        }
    }

    @Test func mechanismsOpenNoSocketAndImportNoDriver() {
        for target in Self.mechanisms.sorted() {
            for file in SourceTree.swiftFiles(in: "Sources/\(target)") {
                for imported in file.imports {
                    let lawful = !imported.hasPrefix("NIO") && !Self.drivers.contains(imported)
                    #expect(lawful, "\(file.path) imports \(imported)")
                }
            }
        }
    }

    /// The simulator drives the production cores: what it needs of the world, it makes itself.
    @Test func simulationImportsOnlyPureTargets() {
        for file in SourceTree.swiftFiles(in: "Sources/Simulation") {
            for imported in file.imports {
                #expect(Self.pure.keys.contains(imported), "\(file.path) imports \(imported)")
            }
        }
    }

    @Test func driversImportNoProgram() {
        for target in Self.drivers.sorted() {
            for file in SourceTree.swiftFiles(in: "Sources/\(target)") {
                for imported in file.imports {
                    #expect(!imported.hasPrefix("tandem"), "\(file.path) imports \(imported)")
                }
            }
        }
    }

    /// Calls that would let a core read a clock, draw unseeded numbers, wait, or speak to the world.
    static let banned: [(call: String, why: String)] = [
        ("Date(", "a core receives `now`"), ("ContinuousClock", "a core receives `now`"),
        ("SuspendingClock", "a core receives `now`"), ("DispatchTime", "a core receives `now`"),
        ("SystemRandomNumberGenerator", "randomness comes from one seed"),
        (".random(in: ", "randomness comes from one seed, `using:` a generator"),
        (".shuffled()", "randomness comes from one seed"), (".randomElement()", "randomness comes from one seed"),
        ("Task.sleep", "a core never waits"), ("Task {", "a core owns no task"), ("async ", "a core never awaits"),
        ("await ", "a core never awaits"), ("print(", "a core speaks in actions"),
    ]

    @Test func pureTargetsReadNoClockDrawNoDiceAndPrintNothing() {
        for target in Self.pure.keys.sorted() {
            for file in SourceTree.swiftFiles(in: "Sources/\(target)") {
                for (number, line) in file.codeLines {
                    for (call, why) in Self.banned where line.contains(call) && !line.contains("using:") {
                        Issue.record("\(file.path):\(number): \(call) — \(why)")
                    }
                }
            }
        }
    }

    @Test func nothingIsLeftForLater() {
        let marks = ["TO" + "DO", "FIX" + "ME", "XX" + "X"]
        for folder in ["Sources", "Tests"] {
            for file in SourceTree.swiftFiles(in: folder) {
                for (number, line) in file.lines {
                    let found = marks.first { line.contains($0) }
                    #expect(found == nil, "\(file.path):\(number): \(found ?? "")")
                }
            }
        }
    }

    @Test func sourcesHoldNoForceTryForceCastOrFatalError() {
        for file in SourceTree.swiftFiles(in: "Sources") {
            for (number, line) in file.codeLines {
                for call in ["try!", " as! ", "fatalError("] {
                    #expect(!line.contains(call), "\(file.path):\(number): \(call)")
                }
            }
        }
    }

    @Test func everyUncheckedSendableSaysWhyItHolds() {
        for file in SourceTree.swiftFiles(in: "Sources") {
            let lines = file.lines
            for (index, (number, line)) in lines.enumerated() where line.contains("@unchecked Sendable") {
                guard !line.trimmingCharacters(in: .whitespaces).hasPrefix("//") else { continue }
                let around = lines[max(0, index - 12)...index].map(\.1).joined(separator: "\n")
                #expect(
                    around.contains("//"), "\(file.path):\(number): @unchecked Sendable without a reason above it")
            }
        }
    }

    @Test func noFileNamesAPathOfTheMachineItWasWrittenOn() {
        let roots = ["/wo" + "rk/", "/ro" + "ot/", "/tmp/tan" + "dem", "/ho" + "me/"]
        for folder in ["Sources", "Tests", "ops", "proto", "cluster", "Fuzz"] {
            for file in SourceTree.textFiles(in: folder) {
                for (number, line) in file.lines {
                    for root in roots {
                        #expect(!line.contains(root), "\(file.path):\(number) names \(root)")
                    }
                }
            }
        }
    }
}
