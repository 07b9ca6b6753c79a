import BoundedJSON
import Foundation
import ModelRuntime
import ServingTypes
import Testing

@testable import ModelFiles

@Suite struct WeightsTests {
    private func open(_ folder: TemporaryFolder) throws -> SafetensorsWeights {
        try SafetensorsWeights(FolderReader(path: folder.path))
    }

    private let four = safetensors([HandTensor(name: "a", shape: [1], begin: 0, end: 4)], dataBytes: 4)
    private let other = safetensors([HandTensor(name: "b", shape: [1], begin: 0, end: 4)], dataBytes: 4)

    @Test func aViewShowsTheBytesOfItsTensor() throws {
        try TemporaryFolder.use { folder in
            let text = #"{"a":{"dtype":"BF16","shape":[2,1],"data_offsets":[0,4]}}"#
            let padded = text + String(repeating: " ", count: (8 - text.utf8.count % 8) % 8)
            try folder.write("model.safetensors", safetensors(padded, dataBytes: 4))
            let weights = try open(folder)
            let view = try #require(try weights.tensor(named: "a"))
            #expect(view.shape == [2, 1])
            #expect(view.type == .bf16)
            #expect([UInt8](UnsafeRawBufferPointer(start: view.base, count: view.byteCount)) == [3, 10, 17, 24])
            #expect(try weights.tensor(named: "z") == nil)
            #expect(weights.tensorNames == ["a"])
        }
    }

    @Test func anIdentityFollowsContentSizeAndTime() throws {
        try TemporaryFolder.use { folder in
            try folder.write("model.safetensors", four)
            let first = try #require(try open(folder).identity)
            #expect(try open(folder).identity == first)
            let path = folder.path + "/model.safetensors"
            let time = Date(timeIntervalSince1970: 1_000_000_000)
            try FileManager.default.setAttributes([.modificationDate: time], ofItemAtPath: path)
            let touched = try #require(try open(folder).identity)
            #expect(touched != first && touched.name == first.name)
            // Another content of the same size and time.
            var other = four
            other[other.count - 1] ^= 1
            try folder.write("model.safetensors", other)
            try FileManager.default.setAttributes([.modificationDate: time], ofItemAtPath: path)
            let changed = try #require(try open(folder).identity)
            #expect(changed != touched && changed.facts.dropLast() == touched.facts.dropLast())
        }
    }

    @Test func aTensorAtAnOddAddressIsCopiedToAnAlignedOne() throws {
        try TemporaryFolder.use { folder in
            for extra in 0..<8 {
                let text =
                    #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"# + String(repeating: " ", count: extra)
                try folder.write("model.safetensors", safetensors(text, dataBytes: 8))
                let weights = try open(folder)
                let view = try #require(try weights.tensor(named: "a"))
                #expect(UInt(bitPattern: view.base) % 4 == 0)
                #expect([UInt8](UnsafeRawBufferPointer(start: view.base, count: 8)) == [3, 10, 17, 24, 31, 38, 45, 52])
                #expect(try weights.tensor(named: "a")?.base == view.base)
            }
        }
    }

    @Test func otherElementTypesAreRefusedOnlyWhenAskedFor() throws {
        try TemporaryFolder.use { folder in
            let tensors = [
                HandTensor(name: "a", shape: [1], begin: 0, end: 4),
                HandTensor(name: "q", type: "I8", shape: [4], begin: 4, end: 8),
            ]
            try folder.write("model.safetensors", safetensors(tensors, dataBytes: 8))
            let weights = try open(folder)
            #expect(try weights.tensor(named: "a") != nil)
            expectFault("model.safetensors", "\"q\"", "I8", "F32, F16 and BF16") { _ = try weights.tensor(named: "q") }
        }
    }

    @Test func shardsAreJoinedByTheirIndex() throws {
        try TemporaryFolder.use { folder in
            try folder.write("one.safetensors", four)
            try folder.write("two.safetensors", other)
            try folder.write(
                "model.safetensors.index.json",
                ["metadata": ["total_size": 8], "weight_map": ["b": "two.safetensors", "a": "one.safetensors"]])
            let weights = try open(folder)
            #expect(weights.tensorNames == ["a", "b"])
            #expect(try weights.tensor(named: "b")?.shape == [1])
        }
    }

    @Test(arguments: [
        "../one.safetensors", "/etc/one.safetensors", "sub/one.safetensors", "..\\one.safetensors", ".safetensors",
        "one.bin", "one\u{0}.safetensors", "",
    ])
    func anIndexEntryMayNotLeaveTheFolder(name: String) throws {
        try TemporaryFolder.use { folder in
            try folder.write("one.safetensors", four)
            try folder.write("model.safetensors.index.json", ["weight_map": ["a": .string(name)]])
            expectFault("model.safetensors.index.json", "weight_map[\"a\"]") { _ = try open(folder) }
        }
    }

    @Test func anIndexMustTellTheTruth() throws {
        try TemporaryFolder.use { folder in
            try folder.write("one.safetensors", four)
            try folder.write("model.safetensors.index.json", ["weight_map": ["z": "one.safetensors"]])
            expectFault("\"z\"", "one.safetensors", "does not hold") { _ = try open(folder) }
            try folder.write("model.safetensors.index.json", ["weight_map": ["a": "none.safetensors"]])
            expectFault("none.safetensors", "No such file") { _ = try open(folder) }
            try folder.write("model.safetensors.index.json", ["weight_map": [:]])
            expectFault("0 files") { _ = try open(folder) }
            try folder.write("model.safetensors.index.json", ["weight_map": ["a": 1]])
            expectFault("weight_map[\"a\"] is 1") { _ = try open(folder) }
            try folder.write("model.safetensors.index.json", [:])
            expectFault("weight_map is missing") { _ = try open(folder) }
        }
    }

    @Test func aMissingOrEmptyFileIsNamed() throws {
        try TemporaryFolder.use { folder in
            expectFault(folder.path, "model.safetensors") { _ = try open(folder) }
            try folder.write("model.safetensors", [UInt8]())
            expectFault("model.safetensors: 0 bytes") { _ = try open(folder) }
        }
    }

    @Test func theFingerprintSeesNamesTypesShapesAndBytes() throws {
        func digest(_ bytes: [UInt8]) throws -> PageID {
            try TemporaryFolder.use { folder in
                try folder.write("model.safetensors", bytes)
                var fingerprint = Fingerprint()
                try open(folder).add(to: &fingerprint)
                return fingerprint.finished()
            }
        }
        let big = HandTensor(name: "a", type: "U8", shape: [20_000], begin: 0, end: 20_000)
        let base = safetensors([big], dataBytes: 20_000)
        var renamed = big
        renamed.name = "c"
        var retyped = big
        retyped.type = "I8"
        var reshaped = big
        reshaped.shape = [20, 1000]
        var changed = base
        changed[base.count - 1] ^= 1
        let digests = try [
            digest(base), digest(safetensors([renamed], dataBytes: 20_000)),
            digest(safetensors([retyped], dataBytes: 20_000)), digest(safetensors([reshaped], dataBytes: 20_000)),
            digest(changed),
        ]
        #expect(Set(digests).count == digests.count)
        #expect(try digest(base) == digests[0])
    }

    @Test func everyBitAndEveryLengthChangesAFingerprint() {
        func print(_ bytes: [UInt8]) -> PageID {
            var fingerprint = Fingerprint()
            fingerprint.add(bytes)
            return fingerprint.finished()
        }
        var seen: Set<PageID> = []
        for length in 0..<70 { seen.insert(print([UInt8](repeating: 0, count: length))) }
        let base = [UInt8](repeating: 0, count: 70)
        for bit in 0..<560 {
            var changed = base
            changed[bit / 8] ^= 1 << UInt8(bit % 8)
            seen.insert(print(changed))
        }
        #expect(seen.count == 630)
        var apart = Fingerprint()
        apart.add("ab")
        apart.add("c")
        var together = Fingerprint()
        together.add("a")
        together.add("bc")
        #expect(apart.finished() != together.finished())
    }
}
