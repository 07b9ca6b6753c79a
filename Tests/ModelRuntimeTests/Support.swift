import Foundation
import ServingTypes
import Testing

@testable import ModelRuntime

/// SplitMix64, so that a failing seed can be run again.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// Tensors in memory of their own.
///
/// Unchecked because of the pointers: written in `init` (or by one test before use), read afterwards.
final class MemoryTensors: TensorSource, @unchecked Sendable {
    private(set) var views: [String: TensorView] = [:]

    var tensorNames: [String] { views.keys.sorted() }

    func tensor(named name: String) throws(ServingError) -> TensorView? { views[name] }

    func set(_ name: String, _ shape: [Int], _ type: ElementType, _ bytes: some Collection<UInt8>) {
        let memory = UnsafeMutableRawPointer.allocate(byteCount: max(1, bytes.count), alignment: 64)
        UnsafeMutableRawBufferPointer(start: memory, count: bytes.count).copyBytes(from: bytes)
        views[name] = TensorView(base: UnsafeRawPointer(memory), shape: shape, type: type)
    }

    func remove(_ name: String) { views[name] = nil }

    deinit {
        for view in views.values { view.base.deallocate() }
    }

    /// Random weights of a spec, spread so that logits differ clearly.
    convenience init(random spec: ModelSpec, type: ElementType, seed: UInt64) {
        self.init()
        var random = SeededGenerator(seed: seed)
        for (name, shape) in Self.shapes(spec) {
            let offset: Float = name.hasSuffix("norm.weight") ? 1 : 0
            let values = (0..<shape.reduce(1, *)).map { _ in offset + Float.random(in: -0.35...0.35, using: &random) }
            set(name, shape, type, Self.bytes(values, type))
        }
    }

    static func bytes(_ values: [Float], _ type: ElementType) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: values.count * type.byteCount)
        Kernels.scalar.table.pointee.narrow(&bytes, values, type.code, values.count)
        return bytes
    }

    static func shapes(_ spec: ModelSpec) -> [(String, [Int])] {
        let hidden = spec.hiddenSize
        let (queries, keys) = (spec.headCount * spec.headDim, spec.kvHeadCount * spec.headDim)
        var shapes: [(String, [Int])] = [
            ("model.embed_tokens.weight", [spec.vocabularySize, hidden]), ("model.norm.weight", [hidden]),
        ]
        if !spec.tiedEmbeddings { shapes.append(("lm_head.weight", [spec.vocabularySize, hidden])) }
        for layer in 0..<spec.layerCount {
            let prefix = "model.layers.\(layer)."
            let add = { (name: String, shape: [Int]) in shapes.append((prefix + name, shape)) }
            add("input_layernorm.weight", [hidden])
            add("post_attention_layernorm.weight", [hidden])
            let projections = [
                ("self_attn.q_proj", queries, hidden, spec.attentionBias),
                ("self_attn.k_proj", keys, hidden, spec.attentionBias),
                ("self_attn.v_proj", keys, hidden, spec.attentionBias),
                ("self_attn.o_proj", hidden, queries, spec.outputBias),
                ("mlp.gate_proj", spec.ffnSize, hidden, spec.mlpBias),
                ("mlp.up_proj", spec.ffnSize, hidden, spec.mlpBias),
                ("mlp.down_proj", hidden, spec.ffnSize, spec.mlpBias),
            ]
            for (name, rows, columns, bias) in projections {
                add(name + ".weight", [rows, columns])
                if bias { add(name + ".bias", [rows]) }
            }
            if spec.qkNorm {
                add("self_attn.q_norm.weight", [spec.headDim])
                add("self_attn.k_norm.weight", [spec.headDim])
            }
        }
        return shapes
    }
}

/// A store with slots handed out in a shuffled order.
struct Paged {
    var store: KVStore
    var slots: [BlockSlot]

    init(_ spec: ModelSpec, blockTokens: Int, type: KVElementType, positions: Int, sequences: Int = 1, seed: UInt64 = 0)
        throws
    {
        let blocks = (positions + blockTokens - 1) / blockTokens
        let layout = KVStore.Layout(
            blockTokens: blockTokens, layerCount: spec.layerCount, kvHeadCount: spec.kvHeadCount,
            headDim: spec.headDim, elementType: type)
        store = try KVStore(layout: layout, slotCount: blocks * sequences + 2)
        slots = (0..<store.slotCount).map { BlockSlot(UInt32($0)) }
        if seed != 0 {
            var random = SeededGenerator(seed: seed)
            slots.shuffle(using: &random)
            // A page that was never written must not matter: fill all with NaN.
            for slot in slots { store.page(slot).initializeMemory(as: UInt8.self, repeating: 0xFF) }
        }
    }

    /// The block table of one of the sequences.
    func table(_ sequence: Int, positions: Int) -> [BlockSlot] {
        let blocks = (positions + store.layout.blockTokens - 1) / store.layout.blockTokens
        return Array(slots[sequence * blocks..<(sequence + 1) * blocks])
    }
}

func entry(
    _ tokens: some Collection<TokenID>, at start: Int, _ table: [BlockSlot], sample: SampleRequest? = nil
) -> StepEntry {
    StepEntry(
        transfer: TransferID(job: JobID(high: 0, low: 1), attempt: .first), tokens: Array(tokens), startPosition: start,
        blockTable: table, sample: sample)
}

func greedy(promptTokens: Int, outputTokens: Int) -> SampleRequest {
    var parameters = SamplingParameters()
    parameters.temperature = 0
    return SampleRequest(
        parameters: parameters, history: [], promptTokens: promptTokens, outputTokens: outputTokens)
}
