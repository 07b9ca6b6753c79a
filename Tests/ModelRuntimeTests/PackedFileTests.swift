import Dispatch
import Foundation
import ServingTypes
import Synchronization
import Testing

@testable import ModelRuntime

/// Another source's tensors, with an identity.
///
/// Unchecked because of the other source, which is read here only.
final class KnownTensors: TensorSource, @unchecked Sendable {
    private let other: any TensorSource
    let identity: SourceIdentity?

    init(_ other: any TensorSource, _ fact: String = "file a, 5 bytes") {
        self.other = other
        identity = SourceIdentity(name: "tiny model", facts: [fact])
    }

    var tensorNames: [String] { other.tensorNames }
    func tensor(named name: String) throws(ServingError) -> TensorView? { try other.tensor(named: name) }
    func storedTensor(named name: String) throws(ServingError) -> StoredTensor? {
        try other.storedTensor(named: name)
    }
}

/// What a cache said.
final class Reports: Sendable {
    private let reports = Mutex<[PackedWeightsReport]>([])
    var all: [String] { reports.withLock { $0.map(\.description) } }
    func add(_ report: PackedWeightsReport) { reports.withLock { $0.append(report) } }
    func take() -> [String] {
        reports.withLock { reports in
            defer { reports = [] }
            return reports.map(\.description)
        }
    }
    /// Files that had to go.
    var deleted: [String] {
        reports.withLock { reports in
            reports.compactMap { report in
                if case .deleted(let file, _) = report { file } else { nil }
            }
        }
    }
}

struct PackedFileTests {
    private static let spec = ModelSpec(
        family: .llama, layerCount: 2, hiddenSize: 64, headCount: 4, kvHeadCount: 2, headDim: 32, ffnSize: 96,
        vocabularySize: 70, contextTokensMax: 64)

    /// A folder that is gone afterwards.
    private func inFolder<T>(_ body: (String) throws -> T) throws -> T {
        let path = NSTemporaryDirectory() + "packed-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        return try body(path)
    }

    private func logits(
        _ source: any TensorSource, _ cache: PackedWeightsCache?, quantise: BlockFormat? = .q8_0,
        kernels: KernelVariant? = nil, spec: ModelSpec = spec
    ) throws -> [[UInt32]] {
        let paged = try Paged(spec, blockTokens: 4, type: .f32, positions: 16)
        var options = EngineOptions()
        options.quantise = quantise
        options.kernels = kernels
        options.packedWeights = cache
        options.threads = 2
        let engine = try CPUEngine(spec: spec, weights: source, store: paged.store, options: options)
        let tokens = (0..<9).map { TokenID(UInt32($0 * 7 % 70)) }
        let batch = StepBatch(entries: [entry(tokens, at: 0, paged.table(0, positions: 16))])
        return try engine.logits(batch, rows: .all).map { $0.map(\.bitPattern) }
    }

    private func cache(_ folder: String, _ reports: Reports) -> PackedWeightsCache {
        PackedWeightsCache(folder: folder, bytesMin: 0) { reports.add($0) }
    }

    private func files(_ folder: String) -> [String] {
        ((try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []).sorted()
    }

    @Test func freshWrittenAndMappedWeightsGiveEqualBits() throws {
        let wide = ModelSpec(
            family: .llama, layerCount: 1, hiddenSize: 256, headCount: 4, kvHeadCount: 2, headDim: 64, ffnSize: 256,
            vocabularySize: 70, contextTokensMax: 64)
        for variant in KernelVariant.allCases where variant.isSupported {
            for format in BlockFormat.allCases {
                try inFolder { folder in
                    let reports = Reports()
                    let source = KnownTensors(
                        BlockTensors(MemoryTensors(random: wide, type: .f32, seed: 7), format))
                    let fresh = try logits(source, nil, quantise: nil, kernels: variant, spec: wide)
                    for word in ["written", "mapped", "mapped"] {
                        let cached = try logits(
                            source, cache(folder, reports), quantise: nil, kernels: variant, spec: wide)
                        #expect(cached == fresh, "\(variant) \(format) \(word)")
                        #expect(reports.take().map { $0.contains(word) } == [true], "\(variant) \(format) \(word)")
                    }
                }
            }
        }
    }

    @Test func quantisedAndBF16MatricesAreKeptToo() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .bf16, seed: 3))
            for quantise in [nil, BlockFormat.q8_0, .q4_0] {
                let fresh = try logits(source, nil, quantise: quantise)
                #expect(try logits(source, cache(folder, reports), quantise: quantise) == fresh)
                #expect(try logits(source, cache(folder, reports), quantise: quantise) == fresh)
            }
            let files = files(folder)
            #expect(files.count == (Kernels.best.multipliesBF16 ? 3 : 2), "\(files)")
            #expect(files.allSatisfy { $0.hasPrefix("tiny_model-") && $0.hasSuffix(".tandem-packed") })
        }
    }

    /// Packed by one instruction set, mapped by another: panels are the same for all.
    @Test func variantsShareAFile() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 3))
            for variant in KernelVariant.allCases where variant.isSupported {
                let fresh = try logits(source, nil, kernels: variant)
                #expect(try logits(source, cache(folder, reports), kernels: variant) == fresh, "\(variant)")
            }
            #expect(files(folder).count == 1)
        }
    }

    @Test func anotherModelHasAnotherFile() throws {
        try inFolder { folder in
            let reports = Reports()
            let tensors = MemoryTensors(random: Self.spec, type: .f32, seed: 3)
            for fact in ["file a, 5 bytes", "file a, 6 bytes", "file a, 5 bytes"] {
                _ = try logits(KnownTensors(tensors, fact), cache(folder, reports))
            }
            #expect(reports.all.map { $0.contains("written") } == [true, true, false])
            #expect(files(folder).count == 2)
        }
    }

    /// A file of one model under the name of another's is not used, though every checksum is right.
    @Test func aFileUnderAnotherNameIsWrittenAnew() throws {
        try inFolder { folder in
            let reports = Reports()
            let (a, b) = (MemoryTensors(random: Self.spec, type: .f32, seed: 3), "file b, 9 bytes")
            _ = try logits(KnownTensors(a), cache(folder, reports))
            let mine = try #require(files(folder).first)
            let other = MemoryTensors(random: Self.spec, type: .f32, seed: 4)
            let fresh = try logits(KnownTensors(other, b), nil)
            _ = try logits(KnownTensors(other, b), cache(folder, reports))
            let theirs = try #require(files(folder).first { $0 != mine })
            try FileManager.default.removeItem(atPath: "\(folder)/\(theirs)")
            try FileManager.default.copyItem(atPath: "\(folder)/\(mine)", toPath: "\(folder)/\(theirs)")
            _ = reports.take()
            #expect(try logits(KnownTensors(other, b), cache(folder, reports)) == fresh)
            #expect(reports.all.contains { $0.contains("written anew: its") }, "\(reports.all)")
        }
    }

    @Test func damagedAndCutFilesAreWrittenAnew() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 3))
            let fresh = try logits(source, cache(folder, reports))
            let path = try folder + "/" + #require(files(folder).first)
            let whole = try Data(contentsOf: URL(fileURLWithPath: path))
            var random = SeededGenerator(seed: 21)
            let window = PackedArena.windowBytes
            var places = [0, 9, 13, 17, 25, 40, window, window + 70_000, whole.count - 1]
            places += (0..<6).map { _ in Int.random(in: window..<window + 100_000, using: &random) }
            for place in places {
                var damaged = whole
                damaged[place] ^= 1 << UInt8(place % 8)
                try replace(path, damaged)
                _ = reports.take()
                #expect(try logits(source, cache(folder, reports)) == fresh, "byte \(place), seed 21")
                #expect(reports.all.count == 2, "byte \(place): \(reports.all)")
                #expect(reports.all.first?.contains("written anew") == true, "byte \(place)")
            }
            for bytes in [0, 1, 4096, window, window + 1, whole.count - 1, whole.count + 1] {
                try replace(path, whole.prefix(bytes) + Data(repeating: 0, count: max(0, bytes - whole.count)))
                _ = reports.take()
                #expect(try logits(source, cache(folder, reports)) == fresh, "\(bytes) bytes")
                #expect(reports.all.first?.contains("expected \(whole.count)") == true, "\(reports.all)")
            }
        }
    }

    /// By renaming, as this user's own.
    private func replace(_ path: String, _ data: Data) throws {
        try data.write(to: URL(fileURLWithPath: path), options: .atomic)
        try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
    }

    @Test func aFileThatOthersMayWriteIsNotUsed() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 3))
            let fresh = try logits(source, cache(folder, reports))
            let path = try folder + "/" + #require(files(folder).first)
            try FileManager.default.setAttributes([.posixPermissions: 0o666], ofItemAtPath: path)
            _ = reports.take()
            #expect(try logits(source, cache(folder, reports)) == fresh)
            #expect(reports.all.map { $0.contains("not this user's alone") } == [true], "\(reports.all)")
        }
    }

    @Test func withoutRoomWeightsArePackedInMemory() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 3))
            let fresh = try logits(source, nil)
            var small = cache(folder, reports)
            small.bytesMax = PackedArena.windowBytes
            #expect(try logits(source, small) == fresh)
            #expect(reports.take().map { $0.contains("exceed the limit") } == [true])
            // A file where the folder should be.
            FileManager.default.createFile(atPath: folder, contents: Data([1]))
            #expect(try logits(source, cache(folder, reports)) == fresh)
            #expect(reports.take().map { $0.contains("cannot be made") } == [true])
            var unworthy = cache(folder + "-2", reports)
            unworthy.bytesMin = 1 << 20
            #expect(try logits(source, unworthy) == fresh)
            #expect(reports.all == [])
            #expect(files(folder + "-2") == [])
        }
    }

    /// A full disk shows while writing: the writer says so, and its temporary file is gone.
    @Test func aWriterThatFailsLeavesNothing() throws {
        try inFolder { folder in
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
            let path = folder + "/a.tandem-packed"
            FileManager.default.createFile(atPath: path + ".part", contents: Data())
            let image = PackedImage(
                source: SourceIdentity(name: "m", facts: []), plans: [], byteCount: PackedArena.windowBytes + 64)
            // Opened for reading only, so that every write fails.
            let descriptor = open(path + ".part", O_RDONLY)
            let pool = ComputePool(workers: 1, cores: [])
            do {
                let writer = PackedFileWriter(
                    image: image, pool: pool, descriptor: descriptor, partPath: path + ".part", path: path)
                #expect(writer.reserve() != nil)
                let arena = try PackedArena(byteCount: image.byteCount)
                #expect(writer.write(arena, upTo: image.byteCount) != nil)
                #expect(
                    writer.account(of: "no space")
                        == .packedInMemory(reason: "\(image.fileName) cannot be written (no space)"))
            }
            #expect(files(folder) == [])
        }
    }

    @Test func theLeastRecentlyUsedGoFirst() throws {
        try inFolder { folder in
            let reports = Reports()
            let tensors = MemoryTensors(random: Self.spec, type: .f32, seed: 3)
            var bounded = cache(folder, reports)
            // Room for two.
            bounded.bytesMax = 5 * PackedArena.windowBytes
            var names: [String] = []
            for (number, fact) in ["a", "b", "c"].enumerated() {
                _ = try logits(KnownTensors(tensors, fact), bounded)
                let new = try #require(files(folder).first { !names.contains($0) })
                names.append(new)
                let time = Date(timeIntervalSince1970: Double(1_000_000 + number))
                try FileManager.default.setAttributes([.modificationDate: time], ofItemAtPath: "\(folder)/\(new)")
                // The first is used again, so the second is the oldest.
                if number == 1 { _ = try logits(KnownTensors(tensors, "a"), bounded) }
            }
            #expect(Set(files(folder)) == [names[0], names[2]])
            #expect(reports.deleted == [names[1]], "\(reports.all)")
        }
    }

    @Test func theTemporaryFileOfADeadWriterIsTakenOver() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 3))
            _ = try logits(source, cache(folder, reports))
            let name = try #require(files(folder).first)
            try FileManager.default.moveItem(atPath: "\(folder)/\(name)", toPath: "\(folder)/\(name).part")
            let abandoned = "\(folder)/other.tandem-packed.part"
            FileManager.default.createFile(atPath: abandoned, contents: Data([1]))
            _ = try logits(source, cache(folder, reports))
            #expect(files(folder) == [name])
        }
    }

    @Test func aWriterThatHangsIsNotWaitedForForever() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 3))
            let fresh = try logits(source, cache(folder, reports))
            let name = try #require(files(folder).first)
            try FileManager.default.moveItem(atPath: "\(folder)/\(name)", toPath: "\(folder)/\(name).part")
            let descriptor = open("\(folder)/\(name).part", O_RDWR)
            defer { close(descriptor) }
            #expect(flock(descriptor, LOCK_EX | LOCK_NB) == 0)
            var patient = cache(folder, reports)
            patient.silentPollsMax = 2
            _ = reports.take()
            #expect(try logits(source, patient) == fresh)
            #expect(reports.all.map { $0.contains("makes no progress") } == [true], "\(reports.all)")
        }
    }

    @Test func ofSeveralAtOnceOneWritesAndAllAgree() throws {
        try inFolder { folder in
            let reports = Reports()
            let source = KnownTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 3))
            let fresh = try logits(source, nil)
            let equal = Atomic<Int>(0)
            DispatchQueue.concurrentPerform(iterations: 4) { _ in
                if (try? logits(source, cache(folder, reports))) == fresh { equal.add(1, ordering: .relaxed) }
            }
            #expect(equal.load(ordering: .relaxed) == 4)
            let written = reports.all.filter { $0.contains("written") }
            #expect(written.count == 1, "\(reports.all)")
            #expect(reports.all.filter { $0.contains("mapped") }.count == 3, "\(reports.all)")
        }
    }
}
