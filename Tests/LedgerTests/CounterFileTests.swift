import Foundation
import ServingTypes
import Testing

@testable import Ledger

@Suite struct CounterFileTests {
    private static func withPath(_ body: (String) throws -> Void) throws {
        let folder = FileManager.default.temporaryDirectory.appendingPathComponent("counters-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        defer { try? FileManager.default.removeItem(at: folder) }
        try body(folder.appendingPathComponent("ledger.counters").path)
    }

    private static func row(_ name: String, _ value: Int64) -> CounterRow {
        var row = CounterRow(tenant: TenantID(name), value: value, lifted: value / 2)
        (row.prefillWork, row.decodeWork) = (value + 1, value + 2)
        (row.promptAhead, row.outputAhead, row.ceasedWaiting) = (3, 4, value + 5)
        return row
    }

    /// Without the stamp, which the file gives.
    private static func bare(_ rows: [CounterRow]) -> [CounterRow] {
        rows.sorted { $0.tenant < $1.tenant }.map { row in
            var row = row
            row.stamp = 0
            return row
        }
    }

    /// The file as the next process finds it while the first still has it: a kill takes nothing from it.
    private static func copied(_ path: String) throws -> CounterFile {
        let copy = path + "-\(UUID().uuidString)"
        try FileManager.default.copyItem(atPath: path, toPath: copy)
        return try CounterFile(path: copy)
    }

    @Test func everyCounterIsThereAtEveryMoment() throws {
        try Self.withPath { path in
            let file = try CounterFile(path: path)
            #expect(file.found.isEmpty)
            var kept: [String: CounterRow] = [:]
            for step in Int64(0)..<200 {
                let name = "t\(step % 7)"
                let row = Self.row(name, step)
                kept[name] = row
                let isKept = file.keep(row)
                #expect(isKept)
                if step % 23 == 0 {
                    #expect(try Self.bare(Self.copied(path).found) == Self.bare(Array(kept.values)), "step \(step)")
                }
            }
            let found = try Self.copied(path).found
            #expect(Set(found.map(\.stamp)).count == 7, "the later has the greater stamp")
            #expect(found.max { $0.stamp < $1.stamp }?.tenant.name == "t\(199 % 7)")
        }
    }

    @Test func stampsGoOnBehindThoseOfTheLastProcessAndOfAnotherFile() throws {
        try Self.withPath { path in
            let file = try CounterFile(path: path)
            for _ in 0..<5 { file.keep(Self.row("a", 1)) }
            let next = try Self.copied(path)
            #expect(next.stamp(of: TenantID("a")) == 5)
            next.keep(Self.row("b", 1))
            #expect(next.stamp(of: TenantID("b")) == 6)
            next.stampsFollow(100)
            next.keep(Self.row("a", 1))
            #expect(next.stamp(of: TenantID("a")) == 101)
            #expect(next.stamp(of: TenantID("nobody")) == 0)
        }
    }

    /// A kill between any two bytes of a store leaves the counter before it or the one after it.
    @Test func aStoreThatWasCutOffLeavesTheCounterBeforeIt() throws {
        try Self.withPath { path in
            let file = try CounterFile(path: path)
            file.keep(Self.row("a", 1000))
            let before = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
            file.keep(Self.row("a", 2000))
            let after = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
            // Words are stored one by one, the one that says which copy counts last.
            let changed = before.indices.filter { before[$0] != after[$0] }
            let words = Array(Set(changed.map { $0 / 8 })).sorted()
            let order = words.dropFirst() + words.prefix(1)
            var bytes = before
            for word in order {
                let cut = path + "-cut-\(word)"
                try Data(bytes).write(to: URL(fileURLWithPath: cut))
                #expect(try Self.bare(CounterFile(path: cut).found) == [Self.bare([Self.row("a", 1000)])[0]], "\(word)")
                for at in word * 8..<word * 8 + 8 { bytes[at] = after[at] }
            }
            #expect(bytes == after)
        }
    }

    /// After a loss of power pages may be torn: a damaged copy is not believed, the other one is.
    @Test func aDamagedCopyGivesWayToTheOlderOneAndTwoToNone() throws {
        try Self.withPath { path in
            let file = try CounterFile(path: path)
            file.keep(Self.row("a", 1000))
            file.keep(Self.row("a", 2000))
            file.keep(Self.row("b", 7))
            var bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
            // The second store of "a" is its second copy.
            bytes[MappedFile.headerBytes + (2 + 9) * 8] ^= 1
            try Data(bytes).write(to: URL(fileURLWithPath: path + "-1"))
            let older = try CounterFile(path: path + "-1")
            #expect(Self.bare(older.found) == Self.bare([Self.row("a", 1000), Self.row("b", 7)]))
            bytes[MappedFile.headerBytes + 2 * 8] ^= 1
            try Data(bytes).write(to: URL(fileURLWithPath: path + "-2"))
            let none = try CounterFile(path: path + "-2")
            #expect(Self.bare(none.found) == [Self.row("b", 7)])
            #expect(none.unreadableSlots == 1)
            let isKept = none.keep(Self.row("a", 3))
            #expect(isKept)
        }
    }

    @Test func randomBytesAreTakenAsNothingOrRefusedAndNeverTrap() throws {
        try Self.withPath { path in
            _ = try CounterFile(path: path)
            let clean = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
            for seed in UInt64(1)...6 {
                var state = seed &* 0x9E37_79B9_7F4A_7C15
                var bytes = clean
                for at in MappedFile.headerBytes..<MappedFile.headerBytes + 64 * 256 {
                    state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
                    // Half of the words small, so that states and lengths are met.
                    bytes[at] = at % 8 == 0 || seed % 2 == 0 ? UInt8(truncatingIfNeeded: state >> 33) & 3 : 0
                }
                let damaged = path + "-\(seed)"
                try Data(bytes).write(to: URL(fileURLWithPath: damaged))
                let file = try CounterFile(path: damaged)
                #expect(file.found.isEmpty, "seed \(seed)")
                let isKept = file.keep(Self.row("a", 1))
                #expect(isKept)
            }
        }
    }

    @Test func aFileOfAnotherKindIsSetAsideAndAHeldOneIsRefused() throws {
        try Self.withPath { path in
            try Data(repeating: 7, count: 100).write(to: URL(fileURLWithPath: path))
            let file = try CounterFile(path: path)
            #expect(FileManager.default.fileExists(atPath: path + ".unreadable"))
            #expect { try CounterFile(path: path) } throws: {
                ($0 as? ServingError)?.message.contains("another coordinator") == true
            }
            file.keep(Self.row("a", 1))
        }
    }

    @Test func aFullFileTakesNoMoreUntilSomebodyIsForgotten() throws {
        try Self.withPath { path in
            let file = try CounterFile(path: path)
            for number in 0..<CounterFile.Limits.slots { file.keep(Self.row("t\(number)", 1)) }
            #expect(!file.keep(Self.row("more", 1)))
            #expect(file.stamp(of: TenantID("more")) == 0)
            file.forget(allBut: Set((10..<CounterFile.Limits.slots).map { TenantID("t\($0)") }))
            #expect(file.count == CounterFile.Limits.slots - 10)
            let isKept = file.keep(Self.row("more", 1))
            #expect(isKept)
            let long = String(repeating: "x", count: CounterFile.Limits.tenantBytesMax + 1)
            #expect(!file.keep(Self.row(long, 1)))
        }
    }

    @Test func whatIsClearedIsGoneAndWhatIsCountedIsRemembered() throws {
        try Self.withPath { path in
            let file = try CounterFile(path: path)
            #expect(file.counting == nil)
            file.setCounting(-5)
            file.keep(Self.row("a", 1))
            #expect(try Self.copied(path).counting == -5)
            file.clear()
            #expect(file.count == 0)
            #expect(try Self.copied(path).found.isEmpty)
        }
    }
}
