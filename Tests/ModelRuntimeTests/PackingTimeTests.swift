import Foundation
import ServingTypes
import Synchronization
import Testing

@testable import ModelRuntime

/// Matrices that are packed beside the first steps, or never.
struct PackingTimeTests {
    private static let spec = ModelSpec(
        family: .llama, layerCount: 3, hiddenSize: 64, headCount: 4, kvHeadCount: 2, headDim: 32, ffnSize: 96,
        vocabularySize: 70, contextTokensMax: 64)

    private func inFolder<T>(_ body: (String) throws -> T) throws -> T {
        let path = NSTemporaryDirectory() + "packing-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        return try body(path)
    }

    @Test(arguments: PackedEngineTests.formats) func productsWithFilesRowsGiveEqualBits(
        _ format: BlockFormat, _ variant: KernelVariant
    ) throws {
        for seed in UInt64(101)...102 {
            var model = PackedEngineTests.model(seed: seed, blocks: format.valueCount)
            if variant == .scalar { model.sequences = model.sequences.map { Array($0.prefix(5)) } }
            let source = BlockTensors(model.weights, format, interleavedHeadDim: model.spec.headDim)
            let plain = try model.logits(.init(variant: variant), source)
            for way in [
                RandomModel.Way(variant: variant, chunk: 1, together: true, packing: .never),
                .init(variant: variant, chunk: 9, threads: 2, together: true, packing: .never),
                .init(variant: variant, chunk: 3, threads: 2, packing: .besides),
            ] {
                #expect(try model.logits(way, source) == plain, "seed \(seed), \(way)")
            }
        }
    }

    @Test func elementsGiveEqualBitsToo() throws {
        for (seed, type) in [(UInt64(111), ElementType.bf16), (112, .f16), (113, .f32)] {
            let model = PackedEngineTests.model(seed: seed, blocks: 32, type: type)
            for quantise in [nil, BlockFormat.q8_0, .q4_0] {
                let plain = try model.logits(.init(variant: .best, quantise: quantise))
                for time in [PackingTime.besides, .never] {
                    let way = RandomModel.Way(
                        variant: .best, chunk: 4, threads: 2, quantise: quantise, packing: time)
                    #expect(try model.logits(way) == plain, "seed \(seed), \(way)")
                }
            }
        }
    }

    private func engine(
        _ source: any TensorSource, _ paged: Paged, _ change: (inout EngineOptions) -> Void = { _ in }
    ) throws -> CPUEngine {
        var options = EngineOptions()
        options.packing = .besides
        change(&options)
        return try CPUEngine(spec: Self.spec, weights: source, store: paged.store, options: options)
    }

    private func logits(_ engine: CPUEngine, _ paged: Paged) throws -> [[UInt32]] {
        let tokens = (0..<9).map { TokenID(UInt32($0 * 7 % 70)) }
        let batch = StepBatch(entries: [entry(tokens, at: 0, paged.table(0, positions: 16))])
        return try engine.logits(batch, rows: .all).map { $0.map(\.bitPattern) }
    }

    /// Steps meet the packing at many moments of it, whole and half done.
    @Test func stepsWhilePackingGoesOnGiveEqualBits() throws {
        let source = KnownTensors(BlockTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 5), .q8_0))
        let paged = try Paged(Self.spec, blockTokens: 4, type: .f32, positions: 16)
        let plain = try logits(engine(source, paged) { $0.packing = .beforehand }, paged)
        for round in 0..<30 {
            try inFolder { folder in
                let engine = try engine(source, paged) { options in
                    options.threads = 1 + round % 2
                    if round % 3 > 0 { options.packedWeights = PackedWeightsCache(folder: folder, bytesMin: 0) }
                }
                usleep(UInt32(round * 40))
                for _ in 0..<4 { #expect(try logits(engine, paged) == plain, "round \(round)") }
                engine.waitUntilSettled()
                #expect(engine.isSettled)
                #expect(try logits(engine, paged) == plain, "round \(round), packed")
            }
        }
    }

    /// Dropped at any moment, an engine ends its thread and leaves no half file.
    @Test func anEngineMayGoWhilePackingGoesOn() throws {
        let source = KnownTensors(MemoryTensors(random: Self.spec, type: .bf16, seed: 6))
        let paged = try Paged(Self.spec, blockTokens: 4, type: .f32, positions: 16)
        try inFolder { folder in
            for round in 0..<20 {
                let engine = try engine(source, paged) {
                    $0.packedWeights = PackedWeightsCache(folder: folder, bytesMin: 0)
                }
                usleep(UInt32(round * 30))
                withExtendedLifetime(engine) {}
            }
            let files = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
            #expect(files.allSatisfy { !$0.hasSuffix(".part") }, "\(files)")
        }
    }

    @Test func theFileIsWrittenBesideAndMappedByTheNext() throws {
        let source = KnownTensors(BlockTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 7), .q4_0))
        let paged = try Paged(Self.spec, blockTokens: 4, type: .f32, positions: 16)
        try inFolder { folder in
            let reports = Reports()
            let cached = { (options: inout EngineOptions) in
                options.packedWeights = PackedWeightsCache(folder: folder, bytesMin: 0) { reports.add($0) }
            }
            let first = try engine(source, paged, cached)
            first.waitUntilSettled()
            #expect(reports.take().map { $0.contains("written") } == [true])
            let second = try engine(source, paged, cached)
            // Mapped before it was ready, so there is nothing to wait for.
            #expect(second.isSettled)
            #expect(reports.all.map { $0.contains("mapped") } == [true])
            #expect(try logits(first, paged) == logits(second, paged))
        }
    }

    // MARK: - Sources

    private func matrices(_ source: any TensorSource, _ cache: PackedWeightsCache? = nil) throws -> PackedMatrices {
        var plans: [PackingPlan] = []
        var bytes = 0
        for name in source.tensorNames where name.hasSuffix("_proj.weight") {
            let stored = try #require(try source.storedTensor(named: name))
            let plan = PackingPlan(
                name: name, stored: stored, rows: stored.shape[0], columns: stored.shape[1], format: .q8_0,
                quantises: false, offset: bytes)
            plans.append(plan)
            bytes += plan.byteCount
        }
        return PackedMatrices(plans: plans, byteCount: bytes, source: source, kernels: .best, cache: cache)
    }

    /// A source that a step may be reading is given back when the step is over, not before.
    @Test func sourcesStayForTheLengthOfAStep() throws {
        let source = BlockTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 8), .q8_0)
        let matrices = try matrices(source)
        let pool = ComputePool(workers: 1)
        matrices.beginStep()
        try matrices.pack(pool) { _ in }
        matrices.settle()
        #expect(source.released == [])
        #expect(matrices.panels != nil)
        matrices.endStep()
        #expect(source.released == source.tensorNames.filter { $0.hasSuffix("_proj.weight") })
        // Settled: steps have nothing more to do with it.
        matrices.beginStep()
        matrices.endStep()
        #expect(source.released.count == 21)
    }

    @Test func progressCountsTheSourcesBytes() throws {
        let source = BlockTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 8), .q8_0)
        let all = try source.tensorNames.filter { $0.hasSuffix("_proj.weight") }
            .reduce(0) { try $0 + (source.storedTensor(named: $1)?.byteCount ?? 0) }
        for isPacked in [true, false] {
            let seen = Mutex<[Int]>([])
            let matrices = try matrices(source)
            let pool = ComputePool(workers: 2)
            let note = { (bytes: Int) in seen.withLock { $0.append(bytes) } }
            if isPacked { try matrices.pack(pool, note) } else { matrices.touch(pool, note) }
            let bytes = seen.withLock { $0 }
            #expect(bytes.count == 21 && bytes == bytes.sorted() && bytes.last == all)
        }
    }

    /// A disk that fills up in the middle: what was packed is kept, the rest is packed in memory.
    @Test func aWriterThatFailsLosesNoMatrix() throws {
        let source = KnownTensors(BlockTensors(MemoryTensors(random: Self.spec, type: .f32, seed: 9), .q8_0))
        try inFolder { folder in
            try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
            let reports = Reports()
            let cache = PackedWeightsCache(folder: folder, bytesMin: 0) { reports.add($0) }
            let (matrices, plain) = (try matrices(source, cache), try matrices(source))
            let pool = ComputePool(workers: 1)
            try plain.pack(pool) { _ in }
            let path = folder + "/a.part"
            FileManager.default.createFile(atPath: path, contents: Data())
            let image = PackedImage(
                source: SourceIdentity(name: "m", facts: []), plans: [], byteCount: matrices.byteCount)
            // Opened for reading only, so that every write fails.
            let writer = PackedFileWriter(
                image: image, pool: pool, descriptor: open(path, O_RDONLY), partPath: path, path: folder + "/a")
            try matrices.packAndWrite(writer, pool, cache) { _ in }
            #expect(reports.all.map { $0.contains("cannot be written") } == [true], "\(reports.all)")
            #expect(matrices.panels == nil)
            try matrices.packInMemory(pool) { _ in }
            for index in matrices.matrices.indices {
                let bytes = matrices.matrices[index].plan.byteCount
                let found = (matrices.matrices[index].packed, plain.matrices[index].packed)
                let (mine, expected) = (try #require(found.0), try #require(found.1))
                #expect(memcmp(mine.panels, expected.panels, bytes) == 0, "matrix \(index)")
            }
        }
    }

    // MARK: - Ahead of time

    @Test func aFileWrittenAheadIsMappedByTheFirstEngine() throws {
        let source = KnownTensors(MemoryTensors(random: Self.spec, type: .bf16, seed: 10))
        let paged = try Paged(Self.spec, blockTokens: 4, type: .f32, positions: 16)
        try inFolder { folder in
            let reports = Reports()
            let cache = PackedWeightsCache(folder: folder, bytesMin: 0) { reports.add($0) }
            for quantise in [nil, BlockFormat.q8_0, .q4_0] where quantise != nil || Kernels.best.multipliesBF16 {
                var options = EngineOptions()
                (options.quantise, options.threads) = (quantise, 2)
                let file = try cache.write(spec: Self.spec, weights: source, options: options)
                #expect(!file.wasThere && file.name.hasPrefix("tiny_model-"))
                let size = try FileManager.default.attributesOfItem(atPath: "\(folder)/\(file.name)")[.size] as? Int
                #expect(size == file.byteCount)
                let again = try cache.write(spec: Self.spec, weights: source, options: options)
                #expect(again.wasThere && again.name == file.name)
                _ = reports.take()
                let plain = try logits(engine(source, paged) { $0.quantise = quantise }, paged)
                let mapped = try engine(source, paged) {
                    $0.quantise = quantise
                    $0.packedWeights = cache
                }
                #expect(reports.take().map { $0.contains("mapped") } == [true])
                #expect(try logits(mapped, paged) == plain)
            }
        }
    }

    @Test func whatCannotBeWrittenAheadIsAnError() throws {
        let tensors = MemoryTensors(random: Self.spec, type: .f32, seed: 11)
        try inFolder { folder in
            let expect = {
                (words: String, cache: PackedWeightsCache, source: any TensorSource, quantise: BlockFormat?) in
                var options = EngineOptions()
                options.quantise = quantise
                let error = #expect(throws: ServingError.self) {
                    try cache.write(spec: Self.spec, weights: source, options: options)
                }
                #expect(error?.message.contains(words) == true, "\(error?.message ?? "")")
            }
            var cache = PackedWeightsCache(folder: folder, bytesMin: 0)
            expect("not in files", cache, tensors, .q8_0)
            expect("no matrices", cache, KnownTensors(tensors), nil)
            expect("only read", cache, KnownTensors(tensors), .q6_K)
            cache.bytesMax = PackedArena.windowBytes
            expect("exceed the limit", cache, KnownTensors(tensors), .q8_0)
            expect("fewer than", PackedWeightsCache(folder: folder), KnownTensors(tensors), .q8_0)
            FileManager.default.createFile(atPath: folder, contents: Data([1]))
            expect("cannot be made", PackedWeightsCache(folder: folder, bytesMin: 0), KnownTensors(tensors), .q8_0)
        }
    }
}
