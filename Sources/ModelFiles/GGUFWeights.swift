import CKernels
import ModelRuntime
import ServingTypes
import Synchronization

/// The weights of a GGUF model under Hugging Face's names. The engine packs tensors as the files have
/// them (`storedTensor`). As plain tensors, F32, F16 and BF16 are views of the mapped files; quantised
/// ones are expanded into memory of their own when they are first asked for: the correct and simple
/// path, which references and exports take.
///
/// The queries and keys of the architecture `llama` lie in llama.cpp's order, with the two halves of
/// each rotary pair beside each other; their rows are copied back to Hugging Face's order.
public final class GGUFWeights: StoredWeights {
    private struct Entry {
        var tensor: GGUFTensor
        var file: MappedFile
        /// Rows of a head to put back in order; nil for tensors that stay as they are.
        var interleavedHeadDim: Int?
    }

    public let tensorNames: [String]
    /// What quantised tensors expand to.
    public let expandedType: ElementType
    private let entries: [String: Entry]
    private let file: GGUFFile
    private let copies = Mutex<[String: TensorMemory]>([:])

    init(
        _ file: GGUFFile, _ configuration: GGUFConfiguration, expandedType: ElementType
    ) throws(ServingError) {
        self.file = file
        self.expandedType = expandedType
        var entries: [String: Entry] = [:]
        for shard in file.shards {
            for tensor in shard.header.tensors {
                guard let role = try GGUFNames.role(of: tensor.name, file: shard.file.name) else { continue }
                let turns = configuration.interleavesRotaryPairs && role.isRotated
                entries[role.name] = Entry(
                    tensor: tensor, file: shard.file, interleavedHeadDim: turns ? configuration.spec.headDim : nil)
            }
        }
        self.entries = entries
        tensorNames = entries.keys.sorted()
    }

    public var byteCount: Int { file.byteCount }

    public func tensor(named name: String) throws(ServingError) -> TensorView? {
        guard let entry = entries[name] else { return nil }
        let storage = try Self.storage(entry)
        if case .elements(let type) = storage, entry.interleavedHeadDim == nil,
            let start = UnsafeRawBufferPointer(rebasing: entry.file.bytes[entry.tensor.range]).baseAddress,
            UInt(bitPattern: start).isMultiple(of: UInt(type.byteCount))
        {
            return TensorView(base: start, shape: entry.tensor.shape, type: type)
        }
        let memory = try copies.withLock { copies throws(ServingError) in
            if let copy = copies[name] { return copy }
            let copy = try expanded(entry, storage)
            copies[name] = copy
            return copy
        }
        return TensorView(base: memory.base, shape: entry.tensor.shape, type: memory.type)
    }

    /// The tensor as the file has it: what the engine packs.
    public func storedTensor(named name: String) throws(ServingError) -> StoredTensor? {
        guard let entry = entries[name] else { return nil }
        let source = UnsafeRawBufferPointer(rebasing: entry.file.bytes[entry.tensor.range])
        guard let base = source.baseAddress else { return nil }
        let shape = entry.tensor.shape
        if let columns = shape.last, columns > 0 {
            _ = try RowOrder(
                entry.interleavedHeadDim, rows: shape.reduce(1, *) / columns, entry.tensor, file: entry.file.name)
        }
        let format: StoredFormat =
            switch try Self.storage(entry) {
            case .elements(let type): .elements(type)
            case .blocks(let format): .blocks(format)
            }
        return StoredTensor(
            base: base, byteCount: source.count, shape: shape, format: format,
            interleavedHeadDim: entry.interleavedHeadDim)
    }

    public func release(named name: String) {
        guard let entry = entries[name] else { return }
        entry.file.release(entry.tensor.range)
        copies.withLock { $0[name] = nil }
    }

    /// The files' versions, and a fingerprint of their headers and of samples of every tensor.
    public var identity: SourceIdentity? {
        var fingerprint = Fingerprint()
        file.add(to: &fingerprint)
        return SourceIdentity(
            name: file.modelName, facts: file.shards.map(\.file.version) + [fingerprint.finished().fact])
    }

    /// The quantisation of a tensor as the file has it; nil for one that is not quantised.
    public func blockFormat(ofTensor name: String) -> BlockFormat? {
        guard let entry = entries[name], case .blocks(let format)? = try? Self.storage(entry) else { return nil }
        return format
    }

    // MARK: expansion

    private enum Storage {
        case elements(ElementType)
        case blocks(BlockFormat)
    }

    private static func storage(_ entry: Entry) throws(ServingError) -> Storage {
        switch entry.tensor.type {
        case .f32: return .elements(.f32)
        case .f16: return .elements(.f16)
        case .bf16: return .elements(.bf16)
        case .q8_0: return .blocks(.q8_0)
        case .q4_0: return .blocks(.q4_0)
        case .q4_K: return .blocks(.q4_K)
        case .q5_K: return .blocks(.q5_K)
        case .q6_K: return .blocks(.q6_K)
        case .q4_1, .q5_0, .q5_1, .q8_1, .q2_K, .q3_K, .q8_K, .iq2_XXS, .iq2_XS, .iq3_XXS, .iq1_S, .iq4_NL, .iq3_S,
            .iq2_S, .iq4_XS, .i8, .i16, .i32, .i64, .f64, .iq1_M, .tq1_0, .tq2_0, .mxfp4:
            let known = ["F32", "F16", "BF16"] + BlockFormat.allCases.map(\.rawValue)
            throw fileFault(
                entry.file.name,
                "tensor \(shown(entry.tensor.name)) has the type \(entry.tensor.type.name), and only "
                    + "\(known.joined(separator: ", ")) are read", field: entry.tensor.name, code: .unsupported)
        }
    }

    private func expanded(_ entry: Entry, _ storage: Storage) throws(ServingError) -> TensorMemory {
        let shape = entry.tensor.shape
        let source = UnsafeRawBufferPointer(rebasing: entry.file.bytes[entry.tensor.range])
        let columns = shape.count == 1 ? 1 : shape[shape.count - 1]
        let rows = shape.reduce(1, *) / columns
        let order = try RowOrder(entry.interleavedHeadDim, rows: rows, entry.tensor, file: entry.file.name)
        switch storage {
        case .elements(let type):
            let memory = TensorMemory(type: type, elementCount: rows * columns)
            let rowBytes = columns * type.byteCount
            guard let first = source.baseAddress else { return memory }
            for row in 0..<rows {
                (memory.start + order.target(row) * rowBytes).copyMemory(
                    from: first + row * rowBytes, byteCount: rowBytes)
            }
            return memory
        case .blocks(let format):
            guard shape.count > 1 || entry.interleavedHeadDim == nil else {
                throw fileFault(
                    entry.file.name, "tensor \(shown(entry.tensor.name)) is a quantised vector to be rotated",
                    field: entry.tensor.name, code: .unsupported)
            }
            let width = shape[shape.count - 1]
            return expandedBlocks(source, format, rows: shape.reduce(1, *) / width, columns: width, order)
        }
    }

    private func expandedBlocks(
        _ source: UnsafeRawBufferPointer, _ format: BlockFormat, rows: Int, columns: Int, _ order: RowOrder
    ) -> TensorMemory {
        let memory = TensorMemory(type: expandedType, elementCount: rows * columns)
        let blocks = columns / format.valueCount
        let rowBytes = columns * expandedType.byteCount
        let floats = UnsafeMutablePointer<Float>.allocate(capacity: columns)
        defer { floats.deallocate() }
        guard let packed = source.baseAddress else { return memory }
        for row in 0..<rows {
            let place = memory.start + order.target(row) * rowBytes
            format.dequantise(packed + row * blocks * format.byteCount, into: floats, blocks: blocks)
            switch expandedType {
            case .f32: place.copyMemory(from: floats, byteCount: rowBytes)
            case .f16: tk_narrow_f16(place.assumingMemoryBound(to: UInt16.self), floats, columns)
            case .bf16: tk_narrow_bf16(place.assumingMemoryBound(to: UInt16.self), floats, columns)
            }
        }
        return memory
    }
}

/// Where the rows of a tensor belong.
private struct RowOrder {
    private let headDim: Int?

    init(_ headDim: Int?, rows: Int, _ tensor: GGUFTensor, file: String) throws(ServingError) {
        self.headDim = headDim
        guard let headDim, !rows.isMultiple(of: headDim) else { return }
        throw fileFault(
            file, "tensor \(shown(tensor.name)) has \(rows) rows, which are no whole heads of \(headDim)",
            field: tensor.name)
    }

    /// Row 2 i + half of a head goes to row half * headDim / 2 + i.
    func target(_ row: Int) -> Int {
        guard let headDim else { return row }
        let (head, within) = row.quotientAndRemainder(dividingBy: headDim)
        return head * headDim + within % 2 * (headDim / 2) + within / 2
    }
}

/// Memory of one tensor, aligned for vectors. Unchecked because of the pointer: whoever makes it
/// fills it before anyone else sees it, and nothing changes after.
private final class TensorMemory: @unchecked Sendable {
    let type: ElementType
    let start: UnsafeMutableRawPointer

    init(type: ElementType, elementCount: Int) {
        self.type = type
        start = .allocate(byteCount: max(1, elementCount * type.byteCount), alignment: 64)
    }

    var base: UnsafeRawPointer { UnsafeRawPointer(start) }

    deinit { start.deallocate() }
}

/// GGUF's tensor names and Hugging Face's.
enum GGUFNames {
    /// What a tensor is for.
    struct Role: Hashable {
        /// Hugging Face's name.
        var name: String
        /// Whether its rows are those of queries or keys, which rotary positions turn.
        var isRotated = false
    }

    private static let model: [(gguf: String, huggingFace: String)] = [
        ("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head"),
    ]
    private static let layer: [(gguf: String, huggingFace: String, isRotated: Bool)] = [
        ("attn_norm", "input_layernorm", false), ("attn_q", "self_attn.q_proj", true),
        ("attn_k", "self_attn.k_proj", true), ("attn_v", "self_attn.v_proj", false),
        ("attn_output", "self_attn.o_proj", false), ("attn_q_norm", "self_attn.q_norm", false),
        ("attn_k_norm", "self_attn.k_norm", false), ("ffn_norm", "post_attention_layernorm", false),
        ("ffn_gate", "mlp.gate_proj", false), ("ffn_up", "mlp.up_proj", false), ("ffn_down", "mlp.down_proj", false),
    ]

    /// nil for a tensor that is read elsewhere; throws for one that nobody reads.
    static func role(of name: String, file: String) throws(ServingError) -> Role? {
        if name == "rope_freqs.weight" { return nil }
        let parts = name.split(separator: ".", omittingEmptySubsequences: false).map(String.init)
        if parts.count == 2, let match = model.first(where: { $0.gguf == parts[0] }), parts[1] == "weight" {
            return Role(name: "\(match.huggingFace).weight")
        }
        if parts.count == 4, parts[0] == "blk", let number = Int(parts[1]), String(number) == parts[1],
            let match = layer.first(where: { $0.gguf == parts[2] }), ["weight", "bias"].contains(parts[3])
        {
            return Role(
                name: "model.layers.\(number).\(match.huggingFace).\(parts[3])", isRotated: match.isRotated)
        }
        throw fileFault(
            file, "has the tensor \(shown(name)), which no known model of this architecture has", field: name,
            code: .unsupported)
    }

    /// GGUF's name of one of Hugging Face's; nil for an unknown one.
    static func gguf(of name: String) -> Role? {
        for entry in model where name == "\(entry.huggingFace).weight" { return Role(name: "\(entry.gguf).weight") }
        let prefix = "model.layers."
        guard name.hasPrefix(prefix) else { return nil }
        let rest = name.dropFirst(prefix.count)
        guard let dot = rest.firstIndex(of: "."), let number = Int(rest[..<dot]) else { return nil }
        let within = rest[rest.index(after: dot)...]
        for entry in layer {
            for ending in ["weight", "bias"] where within == "\(entry.huggingFace).\(ending)" {
                return Role(name: "blk.\(number).\(entry.gguf).\(ending)", isRotated: entry.isRotated)
            }
        }
        return nil
    }
}
