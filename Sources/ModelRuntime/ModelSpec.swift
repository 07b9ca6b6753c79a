import ServingTypes

/// A model's architecture after its `config.json` has been understood: everything the engine needs
/// to know besides the weights.
public struct ModelSpec: Hashable, Sendable {
    /// The block layouts the engine computes. They differ in biases, QK-norm and windows, which have
    /// fields of their own; the name itself goes into digests and messages.
    public enum Family: String, Hashable, Sendable, CaseIterable {
        case llama
        case mistral
        case qwen2
        case qwen3
    }

    /// How rotary frequencies are stretched beyond the trained context, as Hugging Face's
    /// `rope_scaling` defines each type.
    public enum RopeScaling: Hashable, Sendable {
        case none
        /// All frequencies divided by `factor`.
        case linear(factor: Double)
        /// Low frequencies divided by `factor`, high ones kept, a linear blend between.
        case llama3(factor: Double, lowFreqFactor: Double, highFreqFactor: Double, originalContext: Int)
        /// NTK-by-parts interpolation; cos and sin are scaled by `attentionFactor`, or by what
        /// `mscale` and `mscaleAllDim` or else `factor` imply.
        case yarn(
            factor: Double, originalContext: Int, betaFast: Double, betaSlow: Double, attentionFactor: Double?,
            mscale: Double?, mscaleAllDim: Double?)
    }

    public var family: Family
    public var layerCount: Int
    public var hiddenSize: Int
    public var headCount: Int
    /// Key/value heads; divides `headCount`.
    public var kvHeadCount: Int
    public var headDim: Int
    public var ffnSize: Int
    public var vocabularySize: Int
    /// Positions a job may reach, prompt and output together.
    public var contextTokensMax: Int
    public var rmsNormEpsilon: Float
    /// Base of the rotary frequencies.
    public var ropeTheta: Double
    public var ropeScaling: RopeScaling
    /// A token attends to itself and at most `slidingWindow - 1` tokens before it; nil for all.
    public var slidingWindow: Int?
    /// Whether q, k and v projections have biases.
    public var attentionBias: Bool
    /// Whether the attention's output projection has a bias.
    public var outputBias: Bool
    /// Whether gate, up and down projections have biases.
    public var mlpBias: Bool
    /// Whether queries and keys pass an RMS norm per head before rotation.
    public var qkNorm: Bool
    /// Whether the output projection is the embedding table.
    public var tiedEmbeddings: Bool

    public init(
        family: Family, layerCount: Int, hiddenSize: Int, headCount: Int, kvHeadCount: Int, headDim: Int, ffnSize: Int,
        vocabularySize: Int, contextTokensMax: Int = 2048, rmsNormEpsilon: Float = 1e-5, ropeTheta: Double = 10_000,
        ropeScaling: RopeScaling = .none, slidingWindow: Int? = nil, attentionBias: Bool = false,
        outputBias: Bool = false, mlpBias: Bool = false, qkNorm: Bool = false, tiedEmbeddings: Bool = false
    ) {
        self.family = family
        self.layerCount = layerCount
        self.hiddenSize = hiddenSize
        self.headCount = headCount
        self.kvHeadCount = kvHeadCount
        self.headDim = headDim
        self.ffnSize = ffnSize
        self.vocabularySize = vocabularySize
        self.contextTokensMax = contextTokensMax
        self.rmsNormEpsilon = rmsNormEpsilon
        self.ropeTheta = ropeTheta
        self.ropeScaling = ropeScaling
        self.slidingWindow = slidingWindow
        self.attentionBias = attentionBias
        self.outputBias = outputBias
        self.mlpBias = mlpBias
        self.qkNorm = qkNorm
        self.tiedEmbeddings = tiedEmbeddings
    }
}

/// How one number is stored, in weights and in KV pages.
public enum ElementType: String, Hashable, Sendable, CaseIterable {
    case f32
    case f16
    case bf16

    /// Bytes per element.
    public var byteCount: Int {
        switch self {
        case .f32: 4
        case .f16, .bf16: 2
        }
    }
}

/// A tensor that lives in mapped memory owned by a `TensorSource`: row-major, the last dimension
/// contiguous.
///
/// Unchecked because of the pointer: the memory is read-only for as long as its source lives, and
/// whoever keeps a view keeps the source.
public struct TensorView: @unchecked Sendable {
    /// First element; aligned at least to the element's size.
    public var base: UnsafeRawPointer
    public var shape: [Int]
    public var type: ElementType

    public init(base: UnsafeRawPointer, shape: [Int], type: ElementType) {
        self.base = base
        self.shape = shape
        self.type = type
    }

    public var elementCount: Int { shape.reduce(1, *) }
    public var byteCount: Int { elementCount * type.byteCount }
}

/// Where weights come from; implemented by ModelFiles (mapped safetensors) and by tests (random).
/// Names are Hugging Face's, such as `model.layers.0.self_attn.q_proj.weight`.
public protocol TensorSource: AnyObject, Sendable {
    /// nil where the source has no tensor of that name; throws where it has one that cannot be read.
    func tensor(named name: String) throws(ServingError) -> TensorView?
    /// All names, sorted.
    var tensorNames: [String] { get }
    /// The tensor as the source stores it, quantised blocks and all; nil and errors as above. Where
    /// a source has nothing but elements, the default serves.
    func storedTensor(named name: String) throws(ServingError) -> StoredTensor?
    /// The caller has a copy of the tensor and reads it no more, so its memory may be given back; asked
    /// for again it is read again.
    func release(named name: String)
    /// What tells these weights from all others without reading them all; nil where nothing does, as for
    /// weights made in memory.
    var identity: SourceIdentity? { get }
}

extension TensorSource {
    public func storedTensor(named name: String) throws(ServingError) -> StoredTensor? {
        try tensor(named: name).map { view in
            StoredTensor(
                base: view.base, byteCount: view.byteCount, shape: view.shape, format: .elements(view.type))
        }
    }

    public func release(named name: String) {}

    public var identity: SourceIdentity? { nil }
}
