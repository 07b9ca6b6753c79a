import CKernels
import ServingTypes

/// A projection's matrix `[rows][columns]`, its outputs by its inputs.
struct Matrix {
    enum Layout {
        /// As the source has it in memory, row after row.
        case rows(UnsafeRawPointer, ElementType)
        /// Packed, or to be packed; the format is its plan's.
        case packed(UnsafePointer<PackedMatrix>, PackedFormat)
    }

    var rows: Int
    var columns: Int
    var layout: Layout

    /// How inputs are prepared for it.
    var inputForm: InputForms {
        switch layout {
        case .rows: .floats
        case .packed(_, let format): format.inputForm
        }
    }

    /// For the variant's name: `f32`, `q8_0`; `bf16x2` for products of bf16 pairs.
    var formatName: String {
        switch layout {
        case .rows(_, let type): type.rawValue
        case .packed(_, .bf16): "bf16x2"
        case .packed(_, let format): format.rawValue
        }
    }
}

/// A projection with its bias, if it has one.
struct Projection {
    var matrix: Matrix
    var bias: UnsafePointer<Float>?
}

struct LayerWeights {
    var attentionNorm: UnsafePointer<Float>
    var query: Projection
    var key: Projection
    var value: Projection
    var queryNorm: UnsafePointer<Float>?
    var keyNorm: UnsafePointer<Float>?
    var output: Projection
    var mlpNorm: UnsafePointer<Float>
    var gate: Projection
    var up: Projection
    var down: Projection

    /// How the inputs of queries, keys and values are prepared, and so on.
    var attentionForms: InputForms {
        [query.matrix.inputForm, key.matrix.inputForm, value.matrix.inputForm]
    }
    var outputForms: InputForms { output.matrix.inputForm }
    var mlpForms: InputForms { [gate.matrix.inputForm, up.matrix.inputForm] }
    var downForms: InputForms { down.matrix.inputForm }

    var projections: [Projection] { [query, key, value, output, gate, up, down] }
}

/// Where the vectors of tokens come from.
enum EmbeddingTable {
    case rows(UnsafeRawPointer, ElementType)
    case blocks(UnsafeRawPointer, BlockFormat)
    /// The output projection's matrix.
    case packed(UnsafePointer<PackedMatrix>)
}

/// All weights of a model by role, shapes checked. With `packing`, matrices that have a packed format
/// are copied to panels and their source pages released; the others stay where their source mapped
/// them. Vectors (norms, biases) are expanded to f32 here.
///
/// Unchecked because of the pointers: everything is written in `init` and read-only after it, and
/// the source is kept.
final class ModelWeights: @unchecked Sendable {
    private(set) var embedding: EmbeddingTable
    private(set) var head: Projection
    private(set) var finalNorm: UnsafePointer<Float>
    private(set) var layers: [LayerWeights]
    /// The packed matrices; nil where none are.
    let packed: PackedMatrices?
    private let hiddenSize: Int
    private let reader: WeightReader
    private var background: BackgroundPacking?

    /// How matrices are packed, and by whom.
    struct Packing {
        var kernels: Kernels
        var pool: ComputePool
        /// What 16- and 32-bit matrices become; nil to keep them.
        var quantise: BlockFormat?
        /// Whether bf16 matrices are packed.
        var packsBF16: Bool
        /// Where packed matrices are kept between processes, if anywhere.
        var cache: PackedWeightsCache?
        var time: PackingTime
        /// Whether being without a file in the cache is an error.
        var needsFile: Bool

        /// Checks the options. The pool's workers pack.
        init(_ options: EngineOptions, pool: ComputePool, needsFile: Bool = false) throws(ServingError) {
            let variant = options.kernels ?? .best
            guard let kernels = Kernels(variant) else {
                throw ServingError(
                    .unsupported, "kernels: this processor does not run \(variant.rawValue)", field: "kernels",
                    blast: .process)
            }
            guard options.quantise?.canQuantise ?? true else {
                throw ServingError(
                    .unsupported,
                    "quantize: \(options.quantise?.rawValue ?? "") is only read, not written; q8_0 and q4_0 are",
                    field: "quantize", blast: .process)
            }
            (self.kernels, self.pool, self.needsFile) = (kernels, pool, needsFile)
            (quantise, cache, time) = (options.quantise, options.packedWeights, options.packing)
            packsBF16 = options.bf16Products && kernels.multipliesBF16
        }
    }

    /// Looks up and checks every tensor the spec asks for, and packs. `progress` is called with
    /// (bytes so far, bytes in all), from this thread.
    init(
        spec: ModelSpec, source: any TensorSource, packing: Packing?, progress: (@Sendable (Int, Int) -> Void)?
    ) throws(ServingError) {
        let reader = try WeightReader(source: source, spec: spec, packing: packing, progress: progress)
        hiddenSize = spec.hiddenSize
        let table = WeightNames.embedding
        let headName = spec.tiedEmbeddings ? table : WeightNames.head
        head = Projection(matrix: try reader.matrix(headName, spec.vocabularySize, spec.hiddenSize), bias: nil)
        if spec.tiedEmbeddings {
            switch head.matrix.layout {
            case .rows(let base, let type): embedding = .rows(base, type)
            case .packed(let packed, _): embedding = .packed(packed)
            }
        } else {
            embedding = try reader.embedding(table, spec.vocabularySize, spec.hiddenSize)
        }
        var layers: [LayerWeights] = []
        for index in 0..<spec.layerCount { layers.append(try reader.layer(index)) }
        self.layers = layers
        finalNorm = try reader.vector("model.norm.weight", spec.hiddenSize)
        self.reader = reader
        packed = reader.packed
        guard let packed, !reader.isPacked, let packing, packing.time == .besides else { return }
        background = BackgroundPacking(packed, report: packing.cache?.report)
    }

    /// Bytes of the packed matrices.
    var packedBytes: Int { packed?.byteCount ?? 0 }

    /// Whether nothing is being packed (any more).
    var isSettled: Bool { background?.isDone ?? true }

    /// Returns once nothing is being packed.
    func waitUntilSettled() { background?.wait() }

    /// The vector of one token, `hiddenSize` values.
    func embedRow(_ token: Int, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {
        switch embedding {
        case .rows(let base, let type):
            let row = base + token * hiddenSize * type.byteCount
            kernels.table.pointee.widen(values, row, type.code, hiddenSize)
        case .blocks(let base, let format):
            let blocks = hiddenSize / format.valueCount
            format.dequantise(base + token * blocks * format.byteCount, into: values, blocks: blocks)
        case .packed(let matrix): matrix.pointee.unpackRow(token, into: values, kernels)
        }
    }

    /// Formats of the matrices in use, sorted: `["bf16", "q8_0"]`.
    var formatNames: [String] {
        let matrices = layers.flatMap { $0.projections.map(\.matrix) } + [head.matrix]
        return Set(matrices.map(\.formatName)).sorted()
    }
}

/// Hugging Face's names of a model's tensors.
private enum WeightNames {
    static let embedding = "model.embed_tokens.weight"
    static let head = "lm_head.weight"

    static func layer(_ index: Int) -> String { "model.layers.\(index)." }

    /// The projections of a layer: name without ending, outputs, inputs.
    static func projections(_ spec: ModelSpec, _ index: Int) -> [(name: String, rows: Int, columns: Int)] {
        let queries = spec.headCount * spec.headDim
        let keys = spec.kvHeadCount * spec.headDim
        let hidden = spec.hiddenSize
        let shapes = [
            ("self_attn.q_proj", queries, hidden), ("self_attn.k_proj", keys, hidden),
            ("self_attn.v_proj", keys, hidden), ("self_attn.o_proj", hidden, queries),
            ("mlp.gate_proj", spec.ffnSize, hidden), ("mlp.up_proj", spec.ffnSize, hidden),
            ("mlp.down_proj", hidden, spec.ffnSize),
        ]
        return shapes.map { (layer(index) + $0.0, $0.1, $0.2) }
    }
}

/// Packs matrices, then reads the other tensors one by one; owns the packed copy and the expanded vectors.
private final class WeightReader {
    private let source: any TensorSource
    private let spec: ModelSpec
    private let packing: ModelWeights.Packing?
    private let progress: (@Sendable (Int, Int) -> Void)?
    private var loadedBytes = 0
    private var totalBytes = 0
    private var vectors: [UnsafeMutablePointer<Float>] = []
    /// What is packed, where, in this order.
    private var plans: [PackingPlan] = []
    private var planNumbers: [String: Int] = [:]
    private(set) var packed: PackedMatrices?
    /// Whether all packed matrices are ready.
    private(set) var isPacked = false

    init(
        source: any TensorSource, spec: ModelSpec, packing: ModelWeights.Packing?,
        progress: (@Sendable (Int, Int) -> Void)?
    ) throws(ServingError) {
        self.source = source
        self.spec = spec
        self.packing = packing
        self.progress = progress
        if progress != nil { totalBytes = Self.expectedBytes(source) }
        guard let packing else { return }
        var bytes = 0
        let head = spec.tiedEmbeddings ? WeightNames.embedding : WeightNames.head
        try plan(head, spec.vocabularySize, spec.hiddenSize, &bytes)
        for index in 0..<spec.layerCount {
            for projection in WeightNames.projections(spec, index) {
                try plan(projection.name + ".weight", projection.rows, projection.columns, &bytes)
            }
        }
        if bytes > 0 { try pack(bytes, packing) }
    }

    deinit {
        for vector in vectors { vector.deallocate() }
    }

    private static func expectedBytes(_ source: any TensorSource) -> Int {
        source.tensorNames.reduce(0) { sum, name in
            let stored = try? source.storedTensor(named: name)
            return sum + (stored?.byteCount ?? 0)
        }
    }

    // MARK: What is packed

    /// Adds the tensor to the plans where it has a packed format; one that is missing is found out later.
    private func plan(_ name: String, _ rows: Int, _ columns: Int, _ bytes: inout Int) throws(ServingError) {
        guard let stored = try source.storedTensor(named: name),
            let (format, quantises) = packedFormat(name, stored, columns)
        else { return }
        try check(name, stored.shape, [rows, columns])
        guard let rowBytes = stored.format.rowBytes(columns), stored.byteCount == rows * rowBytes else {
            throw ServingError(
                .malformed, "\(name): \(stored.byteCount) bytes do not hold the shape \(stored.shape)", field: name,
                blast: .process)
        }
        let plan = PackingPlan(
            name: name, stored: stored, rows: rows, columns: columns, format: format, quantises: quantises,
            offset: bytes)
        planNumbers[name] = plans.count
        plans.append(plan)
        bytes += plan.byteCount
    }

    /// Tied embeddings are the head too.
    private func isHead(_ name: String) -> Bool {
        name == WeightNames.head || name == WeightNames.embedding
    }

    /// nil for what stays in rows: f32 and f16, and bf16 where the kernels do not multiply it. The output
    /// head keeps 8 bits where the rest is asked for with 4, as GGUF files have it: 4 would double the loss.
    private func packedFormat(
        _ name: String, _ stored: StoredTensor, _ columns: Int
    ) -> (PackedFormat, quantises: Bool)? {
        guard let packing else { return nil }
        switch stored.format {
        case .blocks(let format): return (PackedFormat(format), false)
        case .elements(let type):
            let asked = packing.quantise.map { isHead(name) && $0 == .q4_0 ? BlockFormat.q8_0 : $0 }
            if let wanted = asked.map(PackedFormat.init), wanted.takes(columns: columns) {
                return (wanted, true)
            }
            return type == .bf16 && packing.packsBF16 ? (.bf16, false) : nil
        }
    }

    // MARK: Packing

    /// Makes the packed matrices ready, or their sources where packing may wait.
    private func pack(_ bytes: Int, _ packing: ModelWeights.Packing) throws(ServingError) {
        let packed = PackedMatrices(
            plans: plans, byteCount: bytes, source: source, kernels: packing.kernels, cache: packing.cache)
        self.packed = packed
        let isLater = packing.time != .beforehand && packed.canWait
        if !isLater {
            try packed.pack(packing.pool, needsFile: packing.needsFile) { self.report(upTo: $0) }
        } else if packing.time == .never || !packed.mapIfWritten(packing.pool, { self.report(upTo: $0) }) {
            packed.touch(packing.pool) { self.report(upTo: $0) }
            return
        }
        isPacked = true
        packed.settle()
    }

    // MARK: Tensors by role

    func layer(_ index: Int) throws(ServingError) -> LayerWeights {
        let prefix = WeightNames.layer(index)
        let shapes = WeightNames.projections(spec, index)
        let biases =
            [spec.attentionBias, spec.attentionBias, spec.attentionBias, spec.outputBias]
            + [spec.mlpBias, spec.mlpBias, spec.mlpBias]
        let projection = { (number: Int) throws(ServingError) -> Projection in
            try self.projection(shapes[number].name, shapes[number].rows, shapes[number].columns, bias: biases[number])
        }
        return LayerWeights(
            attentionNorm: try vector(prefix + "input_layernorm.weight", spec.hiddenSize),
            query: try projection(0), key: try projection(1), value: try projection(2),
            queryNorm: spec.qkNorm ? try vector(prefix + "self_attn.q_norm.weight", spec.headDim) : nil,
            keyNorm: spec.qkNorm ? try vector(prefix + "self_attn.k_norm.weight", spec.headDim) : nil,
            output: try projection(3),
            mlpNorm: try vector(prefix + "post_attention_layernorm.weight", spec.hiddenSize),
            gate: try projection(4), up: try projection(5), down: try projection(6))
    }

    private func projection(_ name: String, _ rows: Int, _ columns: Int, bias: Bool) throws(ServingError) -> Projection
    {
        Projection(
            matrix: try matrix(name + ".weight", rows, columns), bias: bias ? try vector(name + ".bias", rows) : nil)
    }

    func matrix(_ name: String, _ rows: Int, _ columns: Int) throws(ServingError) -> Matrix {
        if let number = planNumbers[name], let first = packed?.matrices.baseAddress {
            return Matrix(
                rows: rows, columns: columns, layout: .packed(UnsafePointer(first + number), plans[number].format))
        }
        let view = try tensor(name, [rows, columns], touched: true)
        return Matrix(rows: rows, columns: columns, layout: .rows(view.base, view.type))
    }

    /// A table of which single rows are read: left where it is.
    func embedding(_ name: String, _ rows: Int, _ columns: Int) throws(ServingError) -> EmbeddingTable {
        if packing != nil, let stored = try source.storedTensor(named: name), case .blocks(let format) = stored.format,
            stored.interleavedHeadDim == nil
        {
            try check(name, stored.shape, [rows, columns])
            return .blocks(stored.base, format)
        }
        let view = try tensor(name, [rows, columns], touched: false)
        return .rows(view.base, view.type)
    }

    func vector(_ name: String, _ count: Int) throws(ServingError) -> UnsafePointer<Float> {
        let view = try tensor(name, [count], touched: true)
        let floats = UnsafeMutablePointer<Float>.allocate(capacity: count)
        vectors.append(floats)
        tk_kernels_scalar().pointee.widen(floats, view.base, view.type.code, count)
        return UnsafePointer(floats)
    }

    private func tensor(_ name: String, _ shape: [Int], touched: Bool) throws(ServingError) -> TensorView {
        guard let view = try source.tensor(named: name) else {
            throw ServingError(
                .malformed, "\(name): no such tensor, expected one of shape \(shape)", field: name, blast: .process)
        }
        try check(name, view.shape, shape)
        if progress != nil, touched { _ = tk_touch(view.base, view.byteCount) }
        report(view.byteCount)
        return view
    }

    private func check(_ name: String, _ shape: [Int], _ expected: [Int]) throws(ServingError) {
        guard shape == expected else {
            throw ServingError(
                .malformed, "\(name): shape \(shape), expected \(expected)", field: name, blast: .process)
        }
    }

    private func report(_ bytes: Int) {
        guard let progress else { return }
        loadedBytes += bytes
        progress(min(loadedBytes, totalBytes), totalBytes)
    }

    /// For the packed matrices, which are the first of all: bytes of their sources so far.
    private func report(upTo bytes: Int) {
        loadedBytes = bytes
        report(0)
    }
}
