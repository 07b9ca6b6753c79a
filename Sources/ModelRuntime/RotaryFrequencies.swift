import Glibc

/// Rotary frequencies of each pair of dimensions, as Hugging Face's `modeling_rope_utils` computes
/// them: in f32, so that angles at far positions agree too.
struct RotaryFrequencies: Sendable {
    /// Radians per position; `headDim / 2` of them.
    var frequencies: [Float]
    /// Multiplies cos and sin (yarn's attention factor; else 1).
    var factor: Float

    init(spec: ModelSpec) {
        let plain = Self.plain(theta: spec.ropeTheta, dim: spec.headDim)
        factor = 1
        switch spec.ropeScaling {
        case .none:
            frequencies = plain
        case .linear(let factor):
            frequencies = plain.map { $0 / Float(factor) }
        case .llama3(let factor, let low, let high, let original):
            frequencies = plain.map {
                Self.llama3($0, factor: Float(factor), low: Float(low), high: Float(high), context: Float(original))
            }
        case .yarn(let factor, let original, let betaFast, let betaSlow, let attention, let mscale, let mscaleAllDim):
            let ramp = Self.yarnRamp(
                theta: spec.ropeTheta, dim: spec.headDim, context: original, betaFast: betaFast, betaSlow: betaSlow)
            frequencies = zip(plain, ramp).map { frequency, share in
                frequency / Float(factor) * share + frequency * (1 - share)
            }
            self.factor = Float(attention ?? Self.yarnFactor(factor, mscale: mscale, mscaleAllDim: mscaleAllDim))
        }
    }

    private static func plain(theta: Double, dim: Int) -> [Float] {
        (0..<dim / 2).map { 1 / Float(pow(theta, Double(Float(2 * $0) / Float(dim)))) }
    }

    private static func llama3(_ frequency: Float, factor: Float, low: Float, high: Float, context: Float) -> Float {
        let wavelength = 2 * Float.pi / frequency
        if wavelength < context / high { return frequency }
        if wavelength > context / low { return frequency / factor }
        let smooth = (context / wavelength - low) / (high - low)
        return (1 - smooth) * frequency / factor + smooth * frequency
    }

    /// How far each pair is interpolated: 0 for fast ones, 1 for slow ones.
    private static func yarnRamp(theta: Double, dim: Int, context: Int, betaFast: Double, betaSlow: Double) -> [Float] {
        func correction(_ rotations: Double) -> Double {
            Double(dim) * log(Double(context) / (rotations * 2 * .pi)) / (2 * log(theta))
        }
        let low = max(correction(betaFast).rounded(.down), 0)
        var high = min(correction(betaSlow).rounded(.up), Double(dim - 1))
        if low == high { high += 0.001 }
        return (0..<dim / 2).map { Float(min(max((Double($0) - low) / (high - low), 0), 1)) }
    }

    private static func yarnFactor(_ factor: Double, mscale: Double?, mscaleAllDim: Double?) -> Double {
        func scale(_ weight: Double) -> Double { factor <= 1 ? 1 : 0.1 * weight * log(factor) + 1 }
        guard let mscale, let mscaleAllDim, mscale != 0, mscaleAllDim != 0 else { return scale(1) }
        return scale(mscale) / scale(mscaleAllDim)
    }
}
