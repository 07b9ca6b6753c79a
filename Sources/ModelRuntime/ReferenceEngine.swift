import Glibc
import ServingTypes

/// The oracle: the transformer's definition written out plainly, one token after another, f32
/// values with sums in f64. Slow. Same pages as `CPUEngine`, in f32.
///
/// Unchecked because weights are read-only and the store's pages are written by `step` alone,
/// which callers run from one thread at a time.
public final class ReferenceEngine: InferenceEngine, @unchecked Sendable {
    public let spec: ModelSpec
    public let store: KVStore
    private let weights: ModelWeights
    private let frequencies: RotaryFrequencies
    private let checker: StepChecker
    private let sampler = Sampler()

    public init(spec: ModelSpec, weights source: any TensorSource, store: KVStore) throws(ServingError) {
        try spec.validate()
        try spec.validate(store.layout)
        guard store.layout.elementType == .f32 else {
            throw ServingError(
                .unsupported, "kv-type: the reference engine keeps f32, not \(store.layout.elementType.rawValue)",
                field: "kv-type", blast: .process)
        }
        self.spec = spec
        self.store = store
        weights = try ModelWeights(spec: spec, source: source, packing: nil, progress: nil)
        frequencies = RotaryFrequencies(spec: spec)
        checker = StepChecker(spec: spec, slotCount: store.slotCount, blockTokens: store.layout.blockTokens)
    }

    public func step(_ batch: StepBatch) -> StepResult {
        let watch = Stopwatch()
        let outcomes = batch.entries.map { entry -> StepOutcome in
            if let fault = checker.fault(entry) { return .failed(fault) }
            let hidden = entry.tokens.indices.map { forward(entry, $0) }
            guard let sample = entry.sample, let last = hidden.last else { return .extended }
            return sampler.draw(outputLogits(last), sample)
        }
        return StepResult(outcomes: outcomes, computeTime: watch.elapsed)
    }

    /// The logits themselves, `vocabularySize` per row.
    public func logits(_ batch: StepBatch, rows: LogitRows) throws(ServingError) -> [[Float]] {
        var result: [[Float]] = []
        for entry in batch.entries {
            if let fault = checker.fault(entry) { throw fault }
            let hidden = entry.tokens.indices.map { forward(entry, $0) }
            switch rows {
            case .all: result += hidden.map(outputLogits)
            case .last: result += hidden.suffix(1).map(outputLogits)
            }
        }
        return result
    }

    // MARK: - One token

    private func forward(_ entry: StepEntry, _ index: Int) -> [Float] {
        let position = entry.startPosition + index
        var hidden = [Float](unsafeUninitializedCapacity: spec.hiddenSize) { values, count in
            count = spec.hiddenSize
            guard let base = values.baseAddress else { return }
            weights.embedRow(Int(entry.tokens[index].value), into: base, .scalar)
        }
        for (layer, layerWeights) in weights.layers.enumerated() {
            let attended = attention(layer, layerWeights, hidden, position, entry.blockTable)
            hidden = zip(hidden, attended).map { $0 + $1 }
            let update = mlp(layerWeights, hidden)
            hidden = zip(hidden, update).map { $0 + $1 }
        }
        return hidden
    }

    private func outputLogits(_ hidden: [Float]) -> [Float] {
        multiply(weights.head, normalized(hidden, weights.finalNorm))
    }

    private func attention(
        _ index: Int, _ layer: LayerWeights, _ hidden: [Float], _ position: Int, _ table: [BlockSlot]
    ) -> [Float] {
        let normed = normalized(hidden, layer.attentionNorm)
        let queries = heads(multiply(layer.query, normed), layer.queryNorm).map { rotated($0, position) }
        let keys = heads(multiply(layer.key, normed), layer.keyNorm).map { rotated($0, position) }
        let values = heads(multiply(layer.value, normed), nil)
        for head in keys.indices {
            _ = row(store.layout.keyOffset(layer: index, kvHead: head), position, table).update(from: keys[head])
            _ = row(store.layout.valueOffset(layer: index, kvHead: head), position, table).update(from: values[head])
        }
        let group = spec.headCount / spec.kvHeadCount
        let first = max(0, position + 1 - (spec.slidingWindow ?? position + 1))
        let attended = queries.enumerated().flatMap { head, query in
            attend(index, query, kvHead: head / group, first...position, table)
        }
        return multiply(layer.output, attended)
    }

    private func attend(
        _ layer: Int, _ query: [Float], kvHead: Int, _ past: ClosedRange<Int>, _ table: [BlockSlot]
    ) -> [Float] {
        let keyOffset = store.layout.keyOffset(layer: layer, kvHead: kvHead)
        let valueOffset = store.layout.valueOffset(layer: layer, kvHead: kvHead)
        let scale = 1 / Double(spec.headDim).squareRoot()
        let scores = past.map { position in
            zip(query, row(keyOffset, position, table)).reduce(0.0) { $0 + Double($1.0) * Double($1.1) } * scale
        }
        let largest = scores.max() ?? 0
        let exponentials = scores.map { exp($0 - largest) }
        let total = exponentials.reduce(0, +)
        var sums = [Double](repeating: 0, count: spec.headDim)
        for (weight, position) in zip(exponentials, past) {
            for (index, value) in row(valueOffset, position, table).enumerated() {
                sums[index] += weight / total * Double(value)
            }
        }
        return sums.map { Float($0) }
    }

    private func mlp(_ layer: LayerWeights, _ hidden: [Float]) -> [Float] {
        let normed = normalized(hidden, layer.mlpNorm)
        let gated = zip(multiply(layer.gate, normed), multiply(layer.up, normed)).map { gate, up in
            Float(Double(gate) / (1 + exp(-Double(gate)))) * up
        }
        return multiply(layer.down, gated)
    }

    // MARK: - Arithmetic

    /// One token's key or value in its page.
    private func row(_ offset: Int, _ position: Int, _ table: [BlockSlot]) -> UnsafeMutableBufferPointer<Float> {
        let layout = store.layout
        let page = store.page(table[position / layout.blockTokens])
        let start = offset + position % layout.blockTokens * layout.rowBytes
        return UnsafeMutableRawBufferPointer(rebasing: page[start..<start + layout.rowBytes]).bindMemory(to: Float.self)
    }

    private func multiply(_ projection: Projection, _ input: [Float]) -> [Float] {
        let matrix = projection.matrix
        guard case .rows(let base, let type) = matrix.layout else { return [] }
        return (0..<matrix.rows).map { output in
            let sum = dot(base + output * matrix.columns * type.byteCount, type, input)
            return Float(sum) + (projection.bias.map { $0[output] } ?? 0)
        }
    }

    private func dot(_ row: UnsafeRawPointer, _ type: ElementType, _ input: [Float]) -> Double {
        input.withUnsafeBufferPointer { input in
            var sum = 0.0
            var index = 0
            while index < input.count {
                sum += Double(input[index]) * Double(Self.element(row, type, index))
                index += 1
            }
            return sum
        }
    }

    private func normalized(_ input: [Float], _ weight: UnsafePointer<Float>) -> [Float] {
        let mean = input.reduce(0.0) { $0 + Double($1) * Double($1) } / Double(input.count)
        let scale = Float(1 / (mean + Double(spec.rmsNormEpsilon)).squareRoot())
        return input.enumerated().map { weight[$0] * ($1 * scale) }
    }

    private func heads(_ flat: [Float], _ norm: UnsafePointer<Float>?) -> [[Float]] {
        stride(from: 0, to: flat.count, by: spec.headDim).map { start in
            let head = Array(flat[start..<start + spec.headDim])
            return norm.map { normalized(head, $0) } ?? head
        }
    }

    private func rotated(_ head: [Float], _ position: Int) -> [Float] {
        let half = head.count / 2
        var result = head
        for index in 0..<half {
            let angle = Double(Float(position) * frequencies.frequencies[index])
            let cosine = Float(cos(angle)) * frequencies.factor
            let sine = Float(sin(angle)) * frequencies.factor
            result[index] = head[index] * cosine - head[index + half] * sine
            result[index + half] = head[index + half] * cosine + head[index] * sine
        }
        return result
    }

    private static func element(_ base: UnsafeRawPointer, _ type: ElementType, _ index: Int) -> Float {
        switch type {
        case .f32: base.loadUnaligned(fromByteOffset: 4 * index, as: Float.self)
        case .f16: halfPrecision(base.loadUnaligned(fromByteOffset: 2 * index, as: UInt16.self))
        case .bf16:
            Float(bitPattern: UInt32(base.loadUnaligned(fromByteOffset: 2 * index, as: UInt16.self)) << 16)
        }
    }

    /// IEEE binary16 by its definition.
    private static func halfPrecision(_ bits: UInt16) -> Float {
        let sign: Float = bits & 0x8000 == 0 ? 1 : -1
        let exponent = Int(bits >> 10) & 0x1F
        let fraction = Float(bits & 0x3FF)
        switch exponent {
        case 0: return sign * fraction * 0x1p-24
        case 0x1F: return fraction == 0 ? sign * .infinity : .nan
        default: return sign * (1 + fraction / 1024) * Float(sign: .plus, exponent: exponent - 15, significand: 1)
        }
    }
}
