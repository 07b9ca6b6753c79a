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

    /// Changes `logits` in place. `scratch` has as many elements; its contents do not matter, and neither do
    /// those of `memory`. Logits that are not finite fail the request.
    public func draw(
        _ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest,
        scratch: UnsafeMutableBufferPointer<Float>, memory: SamplerMemory
    ) -> StepOutcome {
        guard let base = logits.baseAddress, scratch.baseAddress != nil, scratch.count >= logits.count else {
            return .failed(ServingError(.internalError, "logits: none to draw from"))
        }
        let best = tk_argmax_finite(base, logits.count)
        guard best < logits.count else {
            return .failed(ServingError(.internalError, "logits: at least one of \(logits.count) is not finite"))
        }
        let raw = Distribution(logits: logits, scratch: scratch, memory: memory, best: best, request, kernels)
        adjust(logits, request, memory)
        let token = choose(logits, request, scratch: scratch, memory)
        return .sampled(raw.describe(token))
    }

    /// The same on a copy, for callers with an array.
    public func draw(_ logits: [Float], _ request: SampleRequest) -> StepOutcome {
        var copy = logits
        var scratch = logits
        return copy.withUnsafeMutableBufferPointer { logits in
            scratch.withUnsafeMutableBufferPointer { scratch in
                draw(logits, request, scratch: scratch, memory: SamplerMemory())
            }
        }
    }

    // MARK: - Adjusting

    private func adjust(
        _ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest, _ memory: SamplerMemory
    ) {
        let parameters = request.parameters
        for entry in parameters.logitBias where entry.token.value < logits.count {
            logits[Int(entry.token.value)] += entry.bias
        }
        if request.outputTokens < parameters.minTokens {
            for token in parameters.stopTokens where token.value < logits.count {
                logits[Int(token.value)] = -.infinity
            }
        }
        if parameters.needsHistory { penalize(logits, request, memory) }
    }

    /// Repetition over prompt and output, presence and frequency over output.
    private func penalize(
        _ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest, _ memory: SamplerMemory
    ) {
        let parameters = request.parameters
        if parameters.repetitionPenalty != 1 {
            forEachToken(of: request.history[...], below: logits.count, memory) { token, _ in
                let value = logits[token]
                logits[token] =
                    value > 0 ? value / parameters.repetitionPenalty : value * parameters.repetitionPenalty
            }
        }
        if parameters.presencePenalty != 0 || parameters.frequencyPenalty != 0 {
            let output = request.history.dropFirst(max(0, request.promptTokens))
            forEachToken(of: output, below: logits.count, memory) { token, count in
                logits[token] -= parameters.frequencyPenalty * Float(count) + parameters.presencePenalty
            }
        }
    }

    /// Calls `body` with each token and how often it occurs, by ascending token.
    private func forEachToken(
        of tokens: ArraySlice<TokenID>, below limit: Int, _ memory: SamplerMemory, _ body: (Int, Int) -> Void
    ) {
        var sorted = memory.list(tokens.count)
        for token in tokens where token.value < limit { sorted.append(Candidate(token: Int(token.value), weight: 0)) }
        sorted.sort()
        var start = 0
        while start < sorted.count {
            var end = start
            while end < sorted.count, sorted[end].token == sorted[start].token { end += 1 }
            body(sorted[start].token, end - start)
            start = end
        }
    }

    // MARK: - Choosing

    private func choose(
        _ logits: UnsafeMutableBufferPointer<Float>, _ request: SampleRequest,
        scratch: UnsafeMutableBufferPointer<Float>, _ memory: SamplerMemory
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
            return pick(bestCandidates(weights, parameters, memory), draw) ?? best
        }
        if parameters.minP > 0 { drop(weights) { $0 < parameters.minP } }
        if parameters.topP < 1 { dropOutsideNucleus(weights, parameters.topP, memory) }
        return pick(weights, draw) ?? best
    }

    private func largest(_ logits: UnsafeMutableBufferPointer<Float>) -> Int {
        logits.baseAddress.map { tk_argmax($0, logits.count) } ?? 0
    }

    /// At most top-k tokens that min-p and top-p keep, best first.
    private func bestCandidates(
        _ weights: UnsafeMutableBufferPointer<Float>, _ parameters: SamplingParameters, _ memory: SamplerMemory
    ) -> CandidateList {
        var kept = memory.list(parameters.topK)
        for index in weights.indices where weights[index] >= parameters.minP && weights[index] > 0 {
            kept.offer(Candidate(token: index, weight: weights[index]))
        }
        kept.sort()
        guard parameters.topP < 1 else { return kept }
        let wanted = Double(parameters.topP) * Self.total(kept)
        var sum = 0.0
        for (index, candidate) in kept.elements.enumerated() {
            sum += Double(candidate.weight)
            if sum >= wanted {
                kept.cut(to: index + 1)
                break
            }
        }
        return kept
    }

    private static func total(_ kept: CandidateList) -> Double {
        kept.elements.reduce(0.0) { $0 + Double($1.weight) }
    }

    private func drop(_ weights: UnsafeMutableBufferPointer<Float>, where isDropped: (Float) -> Bool) {
        for index in weights.indices where isDropped(weights[index]) { weights[index] = 0 }
    }

    /// Zeroes what lies outside the smallest set of best tokens whose share reaches p, without
    /// sorting them all: weights of equal upper bits form a bin, and only the bin on the border is sorted.
    private func dropOutsideNucleus(
        _ weights: UnsafeMutableBufferPointer<Float>, _ p: Float, _ memory: SamplerMemory
    ) {
        let sums = UnsafeMutableBufferPointer(
            start: memory.bins.reserve(SamplerLimits.bins), count: SamplerLimits.bins)
        sums.initialize(repeating: 0)
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
        var onBorder = memory.list(weights.count)
        for index in weights.indices where SamplerLimits.bin(weights[index]) <= border {
            if SamplerLimits.bin(weights[index]) == border {
                onBorder.append(Candidate(token: index, weight: weights[index]))
            }
            weights[index] = 0
        }
        onBorder.sort()
        for candidate in onBorder.elements {
            weights[candidate.token] = candidate.weight
            above += Double(candidate.weight)
            if above >= wanted { return }
        }
    }

    /// The candidate at which the running sum passes `draw` of the whole.
    private func pick(_ kept: CandidateList, _ draw: Double) -> Int? {
        let target = draw * Self.total(kept)
        var sum = 0.0
        for candidate in kept.elements {
            sum += Double(candidate.weight)
            if sum > target { return candidate.token }
        }
        return kept.elements.last?.token
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
    /// Raw logits, which `adjust` would change; nil where no logprob is asked for.
    private var raw: UnsafeMutablePointer<Float>?

    init(
        logits: UnsafeMutableBufferPointer<Float>, scratch: UnsafeMutableBufferPointer<Float>, memory: SamplerMemory,
        best: Int, _ request: SampleRequest, _ kernels: Kernels
    ) {
        guard request.parameters.wantsLogprobs, let source = logits.baseAddress, let target = scratch.baseAddress else {
            return
        }
        let sum = kernels.table.pointee.exp_shifted(target, source, logits[best], 1, logits.count)
        let logSum = logits[best] + log(sum)
        self.logSum = logSum
        let raw = memory.raw.reserve(logits.count)
        raw.update(from: source, count: logits.count)
        self.raw = raw
        let count = min(request.parameters.topLogprobs, SamplingLimits.topLogprobsMax, logits.count)
        guard count > 0 else { return }
        var largest = memory.list(count)
        for index in logits.indices { largest.offer(Candidate(token: index, weight: raw[index])) }
        largest.sort()
        top = largest.elements.map { TokenLogprob(token: TokenID(UInt32($0.token)), logprob: $0.weight - logSum) }
    }

    func describe(_ token: Int) -> SampledToken {
        let logprob = logSum.flatMap { sum in raw.map { $0[token] - sum } }
        return SampledToken(token: TokenID(UInt32(token)), logprob: logprob, top: top)
    }
}
