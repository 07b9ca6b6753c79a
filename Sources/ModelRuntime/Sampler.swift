import CKernels
import Glibc
import ServingTypes

/// Draws tokens: a pure function of (logits, request). The order is vLLM's: bias, minimum length,
/// penalties, temperature, min-p, top-k, top-p. The only randomness is keyed by (seed, position).
public struct Sampler: Sendable {
    private let kernels: Kernels

    public init(kernels: Kernels = .scalar) {
        self.kernels = kernels
    }

    /// Changes `logits` in place. `scratch` has as many elements; its contents do not matter.
    /// Logits that are not finite fail the request.
    public func draw(
        _ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest,
        scratch: UnsafeMutableBufferPointer<Float>
    ) -> StepOutcome {
        guard let base = logits.baseAddress, scratch.baseAddress != nil, scratch.count >= logits.count else {
            return .failed(ServingError(.internalError, "logits: none to draw from"))
        }
        let best = tk_argmax_finite(base, logits.count)
        guard best < logits.count else {
            return .failed(ServingError(.internalError, "logits: at least one of \(logits.count) is not finite"))
        }
        let raw = Distribution(logits: logits, scratch: scratch, best: best, request, kernels)
        adjust(logits, request)
        let token = choose(logits, request, scratch: scratch)
        return .sampled(raw.describe(token))
    }

    /// The same on a copy, for callers with an array.
    public func draw(_ logits: [Float], _ request: SampleRequest) -> StepOutcome {
        var copy = logits
        var scratch = logits
        return copy.withUnsafeMutableBufferPointer { logits in
            scratch.withUnsafeMutableBufferPointer { scratch in draw(logits, request, scratch: scratch) }
        }
    }

    // MARK: - Adjusting

    private func adjust(_ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest) {
        let parameters = request.parameters
        for entry in parameters.logitBias where entry.token.value < logits.count {
            logits[Int(entry.token.value)] += entry.bias
        }
        if request.outputTokens < parameters.minTokens {
            for token in parameters.stopTokens where token.value < logits.count {
                logits[Int(token.value)] = -.infinity
            }
        }
        if parameters.needsHistory { penalize(logits, request) }
    }

    /// Repetition over prompt and output, presence and frequency over output.
    private func penalize(_ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest) {
        let parameters = request.parameters
        if parameters.repetitionPenalty != 1 {
            for (token, _) in counts(request.history, below: logits.count) {
                let value = logits[token]
                logits[token] =
                    value > 0 ? value / parameters.repetitionPenalty : value * parameters.repetitionPenalty
            }
        }
        if parameters.presencePenalty != 0 || parameters.frequencyPenalty != 0 {
            let output = request.history.dropFirst(max(0, request.promptTokens))
            for (token, count) in counts(output, below: logits.count) {
                logits[token] -= parameters.frequencyPenalty * Float(count) + parameters.presencePenalty
            }
        }
    }

    /// How often each token occurs, by ascending token.
    private func counts(_ tokens: some Sequence<TokenID>, below limit: Int) -> [(token: Int, count: Int)] {
        var counts: [(token: Int, count: Int)] = []
        for token in tokens.sorted() where token.value < limit {
            if let last = counts.last, last.token == Int(token.value) {
                counts[counts.count - 1].count += 1
            } else {
                counts.append((Int(token.value), 1))
            }
        }
        return counts
    }

    // MARK: - Choosing

    private func choose(
        _ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest,
        scratch: UnsafeMutableBufferPointer<Float>
    ) -> Int {
        let parameters = request.parameters
        let best = largest(logits)
        guard parameters.temperature > 0, parameters.topK != 1, logits[best].isFinite else { return best }
        let inverse = 1 / parameters.temperature
        guard inverse.isFinite, let target = scratch.baseAddress, let source = logits.baseAddress else { return best }
        _ = kernels.table.pointee.exp_shifted(target, source, logits[best], inverse, logits.count)
        let weights = UnsafeMutableBufferPointer(start: target, count: logits.count)
        let draw = Self.uniform(seed: parameters.seed, position: request.promptTokens + request.outputTokens)
        if parameters.topK > 0, parameters.topK < logits.count {
            return pick(bestCandidates(weights, parameters), draw) ?? best
        }
        if parameters.minP > 0 { drop(weights) { $0 < parameters.minP } }
        if parameters.topP < 1 { dropOutsideNucleus(weights, parameters.topP) }
        return pick(weights, draw) ?? best
    }

    private func largest(_ logits: UnsafeMutableBufferPointer<Float>) -> Int {
        logits.baseAddress.map { tk_argmax($0, logits.count) } ?? 0
    }

    /// A token that may be drawn; weights are relative to the largest, which is 1.
    struct Candidate: Comparable {
        var token: Int
        var weight: Float

        /// Best first; equals by ascending token.
        static func < (a: Candidate, b: Candidate) -> Bool {
            a.weight > b.weight || (a.weight == b.weight && a.token < b.token)
        }
    }

    /// At most top-k tokens that min-p and top-p keep, best first.
    private func bestCandidates(
        _ weights: UnsafeMutableBufferPointer<Float>, _ parameters: SamplingParameters
    ) -> [Candidate] {
        var kept = largestWeights(weights, parameters.topK, atLeast: parameters.minP)
        kept.sort()
        guard parameters.topP < 1 else { return kept }
        let wanted = Double(parameters.topP) * kept.reduce(0.0) { $0 + Double($1.weight) }
        var sum = 0.0
        let last = kept.firstIndex { candidate in
            sum += Double(candidate.weight)
            return sum >= wanted
        }
        return last.map { Array(kept[...$0]) } ?? kept
    }

    /// The k best at or above a floor, in no order: a heap whose root is the worst of them.
    private func largestWeights(
        _ weights: UnsafeMutableBufferPointer<Float>, _ k: Int, atLeast floor: Float
    ) -> [Candidate] {
        var heap: [Candidate] = []
        for index in weights.indices where weights[index] >= floor && weights[index] > 0 {
            let candidate = Candidate(token: index, weight: weights[index])
            if heap.count < k {
                heap.append(candidate)
                siftUp(&heap)
            } else if candidate < heap[0] {
                heap[0] = candidate
                siftDown(&heap)
            }
        }
        return heap
    }

    private func siftUp(_ heap: inout [Candidate]) {
        var child = heap.count - 1
        while child > 0, heap[(child - 1) / 2] < heap[child] {
            heap.swapAt(child, (child - 1) / 2)
            child = (child - 1) / 2
        }
    }

    private func siftDown(_ heap: inout [Candidate]) {
        var parent = 0
        while true {
            var worst = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < heap.count && heap[worst] < heap[child] {
                worst = child
            }
            if worst == parent { return }
            heap.swapAt(parent, worst)
            parent = worst
        }
    }

    private func drop(_ weights: UnsafeMutableBufferPointer<Float>, where isDropped: (Float) -> Bool) {
        for index in weights.indices where isDropped(weights[index]) { weights[index] = 0 }
    }

    /// Zeroes what lies outside the smallest set of best tokens whose share reaches p, without
    /// sorting them all: weights of equal upper bits form a bin, and only the bin on the border is sorted.
    private func dropOutsideNucleus(_ weights: UnsafeMutableBufferPointer<Float>, _ p: Float) {
        var sums = [Double](repeating: 0, count: SamplerLimits.bins)
        var total = 0.0
        for weight in weights {
            sums[SamplerLimits.bin(weight)] += Double(weight)
            total += Double(weight)
        }
        let wanted = Double(p) * total
        var above = 0.0
        var border = sums.count - 1
        while border > 0, above + sums[border] < wanted {
            above += sums[border]
            border -= 1
        }
        var onBorder: [Candidate] = []
        for index in weights.indices where SamplerLimits.bin(weights[index]) <= border {
            if SamplerLimits.bin(weights[index]) == border {
                onBorder.append(Candidate(token: index, weight: weights[index]))
            }
            weights[index] = 0
        }
        for candidate in onBorder.sorted() {
            weights[candidate.token] = candidate.weight
            above += Double(candidate.weight)
            if above >= wanted { return }
        }
    }

    /// The candidate at which the running sum passes `draw` of the whole.
    private func pick(_ kept: [Candidate], _ draw: Double) -> Int? {
        let target = draw * kept.reduce(0.0) { $0 + Double($1.weight) }
        var sum = 0.0
        for candidate in kept {
            sum += Double(candidate.weight)
            if sum > target { return candidate.token }
        }
        return kept.last?.token
    }

    private func pick(_ weights: UnsafeMutableBufferPointer<Float>, _ draw: Double) -> Int? {
        guard let base = weights.baseAddress else { return nil }
        let picked = tk_pick(base, weights.count, draw)
        return picked < weights.count ? picked : weights.lastIndex { $0 > 0 }
    }

    // MARK: - Randomness

    /// A number in 0 ..< 1 that depends on seed and position only (SplitMix64's finaliser, twice).
    static func uniform(seed: UInt64, position: Int) -> Double {
        let bits = mix(mix(seed) ^ UInt64(bitPattern: Int64(position)))
        return Double(bits >> 11) * 0x1p-53
    }

    private static func mix(_ value: UInt64) -> UInt64 {
        var z = value &+ 0x9E37_79B9_7F4A_7C15
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

enum SamplerLimits {
    /// Weights are in 0 ... 1; their upper 16 bits number the bins, from 2^-40 (and all below it) up.
    static let bins = 40 * 128 + 1

    static func bin(_ weight: Float) -> Int {
        let lowest = Int(Float(0x1p-40).bitPattern >> 16)
        return min(bins - 1, max(0, Int(weight.bitPattern >> 16) - lowest))
    }
}

/// What is reported about the model's raw distribution, taken before logits are adjusted.
private struct Distribution {
    private var logSum: Float?
    private var top: [TokenLogprob] = []
    /// Raw logits, which `adjust` would change; empty where no logprob is asked for.
    private var raw: [Float] = []

    init(
        logits: UnsafeMutableBufferPointer<Float>, scratch: UnsafeMutableBufferPointer<Float>, best: Int,
        _ request: SampleRequest, _ kernels: Kernels
    ) {
        guard request.parameters.wantsLogprobs, let source = logits.baseAddress, let target = scratch.baseAddress else {
            return
        }
        let sum = kernels.table.pointee.exp_shifted(target, source, logits[best], 1, logits.count)
        let logSum = logits[best] + log(sum)
        self.logSum = logSum
        raw = Array(logits)
        let count = min(request.parameters.topLogprobs, SamplingLimits.topLogprobsMax, logits.count)
        top = Self.largest(raw, count).map {
            TokenLogprob(token: TokenID(UInt32($0)), logprob: raw[$0] - logSum)
        }
    }

    func describe(_ token: Int) -> SampledToken {
        SampledToken(token: TokenID(UInt32(token)), logprob: logSum.map { raw[token] - $0 }, top: top)
    }

    /// Indices of the `count` largest, best first, equals by ascending index: insertion into a short list.
    private static func largest(_ values: [Float], _ count: Int) -> [Int] {
        guard count > 0 else { return [] }
        var best: [Int] = []
        for index in values.indices {
            if best.count == count, let worst = best.last, values[index] <= values[worst] { continue }
            let place = best.firstIndex { values[$0] < values[index] } ?? best.count
            best.insert(index, at: place)
            if best.count > count { best.removeLast() }
        }
        return best
    }
}
