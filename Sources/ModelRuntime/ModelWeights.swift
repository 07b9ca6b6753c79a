import CKernels
import ServingTypes

/// A matrix in mapped memory: `[rows][columns]`, the shape of a projection's `[out][in]`.
struct Matrix {
    var base: UnsafeRawPointer
    var rows: Int
    var columns: Int
    var type: ElementType

    func row(_ index: Int) -> UnsafeRawPointer { base + index * columns * type.byteCount }
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
}

/// All weights of a model by role, shapes checked. Matrices stay where their source mapped them;
/// vectors (norms, biases) are expanded to f32 here.
///
/// Unchecked because of the pointers: everything is written in `init` and read-only after it, and
/// the source is kept.
final class ModelWeights: @unchecked Sendable {
    private(set) var embedding: Matrix
    private(set) var head: Projection
    private(set) var finalNorm: UnsafePointer<Float>
    private(set) var layers: [LayerWeights]
    private let reader: WeightReader

    /// Looks up, checks and touches every tensor the spec asks for. `progress` is called after each
    /// with (bytes so far, bytes in all).
    init(
        spec: ModelSpec, source: any TensorSource, progress: (@Sendable (Int, Int) -> Void)?
    ) throws(ServingError) {
        let reader = WeightReader(source: source, spec: spec, progress: progress)
        embedding = try reader.matrix("model.embed_tokens.weight", spec.vocabularySize, spec.hiddenSize)
        var layers: [LayerWeights] = []
        for index in 0..<spec.layerCount { layers.append(try reader.layer(index)) }
        self.layers = layers
        finalNorm = try reader.vector("model.norm.weight", spec.hiddenSize)
        if spec.tiedEmbeddings {
            head = Projection(matrix: embedding, bias: nil)
        } else {
            head = Projection(
                matrix: try reader.matrix("lm_head.weight", spec.vocabularySize, spec.hiddenSize), bias: nil)
        }
        self.reader = reader
    }
}

/// Reads tensors one by one; owns the expanded vectors.
private final class WeightReader {
    private let source: any TensorSource
    private let spec: ModelSpec
    private let progress: (@Sendable (Int, Int) -> Void)?
    private var loadedBytes = 0
    private let totalBytes: Int
    private var vectors: [UnsafeMutablePointer<Float>] = []

    init(source: any TensorSource, spec: ModelSpec, progress: (@Sendable (Int, Int) -> Void)?) {
        self.source = source
        self.spec = spec
        self.progress = progress
        totalBytes = progress == nil ? 0 : Self.expectedBytes(source)
    }

    deinit {
        for vector in vectors { vector.deallocate() }
    }

    private static func expectedBytes(_ source: any TensorSource) -> Int {
        source.tensorNames.reduce(0) { sum, name in
            let view = try? source.tensor(named: name)
            return sum + (view?.byteCount ?? 0)
        }
    }

    func layer(_ index: Int) throws(ServingError) -> LayerWeights {
        let prefix = "model.layers.\(index)."
        let attention = prefix + "self_attn."
        let mlp = prefix + "mlp."
        let queries = spec.headCount * spec.headDim
        let keys = spec.kvHeadCount * spec.headDim
        return LayerWeights(
            attentionNorm: try vector(prefix + "input_layernorm.weight", spec.hiddenSize),
            query: try projection(attention + "q_proj", queries, spec.hiddenSize, bias: spec.attentionBias),
            key: try projection(attention + "k_proj", keys, spec.hiddenSize, bias: spec.attentionBias),
            value: try projection(attention + "v_proj", keys, spec.hiddenSize, bias: spec.attentionBias),
            queryNorm: spec.qkNorm ? try vector(attention + "q_norm.weight", spec.headDim) : nil,
            keyNorm: spec.qkNorm ? try vector(attention + "k_norm.weight", spec.headDim) : nil,
            output: try projection(attention + "o_proj", spec.hiddenSize, queries, bias: spec.outputBias),
            mlpNorm: try vector(prefix + "post_attention_layernorm.weight", spec.hiddenSize),
            gate: try projection(mlp + "gate_proj", spec.ffnSize, spec.hiddenSize, bias: spec.mlpBias),
            up: try projection(mlp + "up_proj", spec.ffnSize, spec.hiddenSize, bias: spec.mlpBias),
            down: try projection(mlp + "down_proj", spec.hiddenSize, spec.ffnSize, bias: spec.mlpBias))
    }

    func projection(_ name: String, _ rows: Int, _ columns: Int, bias: Bool) throws(ServingError) -> Projection {
        Projection(
            matrix: try matrix(name + ".weight", rows, columns), bias: bias ? try vector(name + ".bias", rows) : nil)
    }

    func matrix(_ name: String, _ rows: Int, _ columns: Int) throws(ServingError) -> Matrix {
        let view = try tensor(name, [rows, columns])
        return Matrix(base: view.base, rows: rows, columns: columns, type: view.type)
    }

    func vector(_ name: String, _ count: Int) throws(ServingError) -> UnsafePointer<Float> {
        let view = try tensor(name, [count])
        let floats = UnsafeMutablePointer<Float>.allocate(capacity: count)
        vectors.append(floats)
        tk_kernels_scalar().pointee.widen(floats, view.base, view.type.code, count)
        return UnsafePointer(floats)
    }

    private func tensor(_ name: String, _ shape: [Int]) throws(ServingError) -> TensorView {
        guard let view = try source.tensor(named: name) else {
            throw ServingError(
                .malformed, "\(name): no such tensor, expected one of shape \(shape)", field: name, blast: .process)
        }
        guard view.shape == shape else {
            throw ServingError(
                .malformed, "\(name): shape \(view.shape), expected \(shape)", field: name, blast: .process)
        }
        if let progress {
            _ = tk_touch(view.base, view.byteCount)
            loadedBytes += view.byteCount
            progress(loadedBytes, totalBytes)
        }
        return view
    }
}
