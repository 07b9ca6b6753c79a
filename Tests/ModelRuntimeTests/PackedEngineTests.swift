import CKernels
import ServingTypes
import Testing

@testable import ModelRuntime

/// The matrices of another source, quantised to blocks of a format.
///
/// Unchecked because of the pointers: written in `init`, read afterwards; `released` is touched by the
/// loading thread alone.
final class BlockTensors: TensorSource, @unchecked Sendable {
    private let plain: MemoryTensors
    private var stored: [String: StoredTensor] = [:]
    private(set) var released: [String] = []

    /// Blocks of random bytes with sane scales for the K formats; else the plain values, quantised.
    /// - interleavedHeadDim: put queries and keys in llama.cpp's order of rotary pairs.
    /// - head: the format of the output head and the embedding, where it is another.
    init(
        _ plain: MemoryTensors, _ body: BlockFormat, head: BlockFormat? = nil, interleavedHeadDim: Int? = nil,
        seed: UInt64 = 1
    ) {
        self.plain = plain
        var random = SeededGenerator(seed: seed)
        for (name, view) in plain.views where view.shape.count == 2 && view.shape[1].isMultiple(of: body.valueCount) {
            let isHead = name == "lm_head.weight" || name == "model.embed_tokens.weight"
            let format = isHead ? head ?? body : body
            let (rows, columns) = (view.shape[0], view.shape[1])
            var bytes: [UInt8] = []
            let isRotated = name.contains("q_proj") || name.contains("k_proj")
            var tensor = StoredTensor(
                base: view.base, byteCount: 0, shape: view.shape, format: .blocks(format),
                interleavedHeadDim: isRotated ? interleavedHeadDim : nil)
            bytes.reserveCapacity(rows * columns * 2)
            for row in 0..<rows {
                bytes += Self.blocks(Self.row(view, Self.source(row, tensor), columns), format, &random)
            }
            let memory = UnsafeMutableRawPointer.allocate(byteCount: max(1, bytes.count), alignment: 2)
            memory.copyMemory(from: bytes, byteCount: bytes.count)
            tensor.base = UnsafeRawPointer(memory)
            tensor.byteCount = bytes.count
            stored[name] = tensor
        }
    }

    deinit {
        for tensor in stored.values { tensor.base.deallocate() }
    }

    /// The row of the plain tensor that is stored at `place`.
    private static func source(_ place: Int, _ tensor: StoredTensor) -> Int {
        guard tensor.interleavedHeadDim != nil else { return place }
        return (0..<tensor.shape[0]).first { tensor.storedRow($0) == place } ?? 0
    }

    private static func row(_ view: TensorView, _ row: Int, _ columns: Int) -> [Float] {
        var values = [Float](repeating: 0, count: columns)
        Kernels.scalar.table.pointee.widen(
            &values, view.base + row * columns * view.type.byteCount, view.type.code, columns)
        return values
    }

    private static func blocks(_ values: [Float], _ format: BlockFormat, _ random: inout SeededGenerator) -> [UInt8] {
        if let quantised = format.quantised(values) { return quantised }
        let count = values.count / format.valueCount * format.byteCount
        var bytes = [UInt8](unsafeUninitializedCapacity: count + 8) { bytes, filled in
            let raw = UnsafeMutableRawBufferPointer(bytes)
            for start in stride(from: 0, to: count, by: 8) {
                raw.storeBytes(of: random.next(), toByteOffset: start, as: UInt64.self)
            }
            filled = count
        }
        let scales = format == .q6_K ? [(208, Float(0.0001))] : [(0, 0.0008), (2, 0.006)]
        for block in 0..<values.count / format.valueCount {
            for (place, scale) in scales {
                let half = MemoryTensors.bytes([scale], .f16)
                bytes.replaceSubrange(
                    block * format.byteCount + place..<block * format.byteCount + place + 2, with: half)
            }
        }
        return bytes
    }

    var tensorNames: [String] { plain.tensorNames }

    func storedTensor(named name: String) throws(ServingError) -> StoredTensor? {
        if let tensor = stored[name] { return tensor }
        return try plain.tensor(named: name).map {
            StoredTensor(base: $0.base, byteCount: $0.byteCount, shape: $0.shape, format: .elements($0.type))
        }
    }

    /// The values by the format's definition.
    func tensor(named name: String) throws(ServingError) -> TensorView? {
        guard let tensor = stored[name], case .blocks(let format) = tensor.format else {
            return try plain.tensor(named: name)
        }
        let columns = tensor.shape[1], blocks = columns / format.valueCount
        var values = [Float](repeating: 0, count: tensor.shape[0] * columns)
        for row in 0..<tensor.shape[0] {
            values.withUnsafeMutableBufferPointer { values in
                guard let target = values.baseAddress else { return }
                format.dequantise(
                    tensor.base + tensor.storedRow(row) * blocks * format.byteCount, into: target + row * columns,
                    blocks: blocks)
            }
        }
        expanded.set(name, tensor.shape, .f32, MemoryTensors.bytes(values, .f32))
        return try expanded.tensor(named: name)
    }

    private let expanded = MemoryTensors()

    func release(named name: String) { released.append(name) }
}

/// The engine on packed weights.
struct PackedEngineTests {
    /// A model whose rows fill whole blocks: of 256 for the K formats.
    static func model(seed: UInt64, blocks: Int, type: ElementType = .bf16) -> RandomModel {
        var model = RandomModel(seed: seed)
        let isSuper = blocks == 256
        model.spec.layerCount = isSuper ? 1 : 2
        model.spec.hiddenSize = isSuper ? 256 : 64
        model.spec.headDim = isSuper ? 64 : 16
        model.spec.kvHeadCount = 2
        model.spec.headCount = isSuper ? 4 : 6
        model.spec.ffnSize = isSuper ? 256 : 96
        model.spec.vocabularySize = 77
        model.spec.slidingWindow = nil
        model.sequences = model.sequences.map { $0.prefix(24).map { TokenID($0.value % 77) } }
        model.weights = MemoryTensors(random: model.spec, type: type, seed: seed)
        return model
    }

    static let formats = BlockFormat.allCases.flatMap { format in
        KernelVariant.allCases.filter(\.isSupported).map { (format, $0) }
    }

    @Test(arguments: formats) func batchChunkAndThreadsChangeNoBit(_ format: BlockFormat, _ variant: KernelVariant)
        throws
    {
        let seed = UInt64(31)
        var model = Self.model(seed: seed, blocks: format.valueCount)
        if variant == .scalar { model.sequences = model.sequences.map { Array($0.prefix(9)) } }
        let source = BlockTensors(model.weights, format)
        let plain = try model.logits(.init(variant: variant, slotSeed: 3), source)
        for way in [
            RandomModel.Way(variant: variant, chunk: 1, together: true),
            .init(variant: variant, chunk: 7, threads: 2, together: true),
            .init(variant: variant, threads: 3, rowsMax: 13),
        ] {
            #expect(try model.logits(way, source) == plain, "seed \(seed), \(way)")
        }
    }

    /// bf16 products and matrices quantised at load.
    @Test(arguments: [nil, BlockFormat.q8_0, .q4_0]) func elementsPackedAtLoadChangeNoBitEither(
        _ quantise: BlockFormat?
    ) throws {
        for seed in UInt64(41)...42 {
            let model = Self.model(seed: seed, blocks: 32)
            let variant = KernelVariant.best
            let plain = try model.logits(.init(variant: variant, quantise: quantise))
            for way in [
                RandomModel.Way(variant: variant, chunk: 1, together: true, quantise: quantise),
                .init(variant: variant, chunk: 5, threads: 2, together: true, quantise: quantise),
            ] {
                #expect(try model.logits(way) == plain, "seed \(seed), \(way)")
            }
        }
    }

    /// 8-bit inputs: a few parts in a thousand per product, more behind two layers of random weights.
    @Test(arguments: formats) func logitsAreNearTheReferencesOnDequantisedWeights(
        _ format: BlockFormat, _ variant: KernelVariant
    ) throws {
        var model = Self.model(seed: 51, blocks: format.valueCount)
        model.kvType = .f32
        model.sequences = [Array(model.sequences[0].prefix(3))]
        let source = BlockTensors(model.weights, format)
        let mine = try model.logits(.init(variant: variant, chunk: 3), source)[0]
        let paged = try Paged(model.spec, blockTokens: 3, type: .f32, positions: 70)
        let reference = try ReferenceEngine(spec: model.spec, weights: source, store: paged.store)
        let batch = StepBatch(entries: [entry(model.sequences[0], at: 0, paged.table(0, positions: 70))])
        for (row, expected) in zip(mine, try reference.logits(batch, rows: .all)) {
            #expect(relativeError(row.map(Float.init(bitPattern:)), expected) < 0.15)
        }
    }

    @Test func quantisingAtLoadEqualsQuantisedBlocksWithTheHeadInEightBits() throws {
        let model = Self.model(seed: 61, blocks: 32)
        for format in [BlockFormat.q8_0, .q4_0] {
            let source = BlockTensors(model.weights, format, head: .q8_0)
            var way = RandomModel.Way(variant: .best)
            let stored = try model.logits(way, source)
            way.quantise = format
            var quantised = model
            // An untied table stays 16-bit when matrices are quantised at load.
            if !model.spec.tiedEmbeddings { quantised.spec.tiedEmbeddings = true }
            let tied = try quantised.logits(way, model.weights)
            #expect(try quantised.logits(.init(variant: .best), source) == tied)
            #expect(stored.count == tied.count)
        }
    }

    @Test func rowsInLlamaCppsOrderComeBackToTheirPlace() throws {
        let model = Self.model(seed: 71, blocks: 32)
        let way = RandomModel.Way(variant: .best)
        let plain = try model.logits(way, BlockTensors(model.weights, .q8_0))
        let turned = BlockTensors(model.weights, .q8_0, interleavedHeadDim: model.spec.headDim)
        #expect(try model.logits(way, turned) == plain)
    }

    @Test func packedTensorsAreReleasedAndNamed() throws {
        var model = Self.model(seed: 81, blocks: 32)
        model.spec.tiedEmbeddings = false
        model.weights = MemoryTensors(random: model.spec, type: .f32, seed: 81)
        let names = try [nil, BlockFormat.q8_0, .q4_0].map { quantise in
            let paged = try Paged(model.spec, blockTokens: 16, type: .f32, positions: 16)
            var options = EngineOptions()
            options.quantise = quantise
            return try CPUEngine(spec: model.spec, weights: model.weights, store: paged.store, options: options)
                .variantName
        }
        #expect(Set(names).count == 3)
        #expect(names[1].hasSuffix(":q8_0") && names[2].hasSuffix(":q4_0,q8_0"))
        let source = BlockTensors(model.weights, .q8_0)
        _ = try model.logits(.init(variant: .best), source)
        let matrices = source.tensorNames.filter { $0.contains("_proj.weight") || $0 == "lm_head.weight" }
        #expect(Set(source.released) == Set(matrices))
    }

    @Test func rowsThatFillNoBlocksStayAsTheyAre() throws {
        var model = RandomModel(seed: 91)
        model.spec.hiddenSize = 50
        model.spec.ffnSize = 70
        model.spec.headDim = 10
        model.weights = MemoryTensors(random: model.spec, type: .f16, seed: 91)
        let plain = try model.logits(.init(variant: .best))
        if model.spec.headCount * 10 % 32 != 0 {
            #expect(try model.logits(.init(variant: .best, quantise: .q8_0)) == plain)
        }
    }

    @Test func formatsThatAreOnlyReadAreRefused() throws {
        let model = Self.model(seed: 95, blocks: 32)
        #expect(throws: ServingError.self) { try model.logits(.init(variant: .best, quantise: .q4_K)) }
    }

    @Test func bytesThatDoNotFillTheShapeAreRefused() throws {
        let model = Self.model(seed: 96, blocks: 32)
        let paged = try Paged(model.spec, blockTokens: 16, type: .f32, positions: 16)
        let source = ShortTensors(BlockTensors(model.weights, .q8_0))
        #expect(throws: ServingError.self) {
            try CPUEngine(spec: model.spec, weights: source, store: paged.store)
        }
    }
}

/// Says of every stored matrix that it is a row shorter than its shape.
private final class ShortTensors: TensorSource {
    private let source: BlockTensors

    init(_ source: BlockTensors) { self.source = source }

    var tensorNames: [String] { source.tensorNames }

    func tensor(named name: String) throws(ServingError) -> TensorView? { try source.tensor(named: name) }

    func storedTensor(named name: String) throws(ServingError) -> StoredTensor? {
        var tensor = try source.storedTensor(named: name)
        tensor?.byteCount -= 34
        return tensor
    }
}
