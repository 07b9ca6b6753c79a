/// Random lengths and gaps. Logarithm and exponential are computed here, so that a seed gives the
/// same workload whatever the system's mathematical library rounds to.
enum Draws {
    static let logarithmOfTwo = 0.693147180559945309417232121458

    /// Natural logarithm of a positive finite number, to some 1e-15.
    static func logarithm(_ x: Double) -> Double {
        let (m, exponent) = (x.significand, Double(x.exponent))
        let z = (m - 1) / (m + 1)
        let square = z * z
        var (term, sum) = (z, 0.0)
        var n = 1.0
        while n < 60 {
            sum += term / n
            term *= square
            n += 2
        }
        return 2 * sum + exponent * logarithmOfTwo
    }

    static func exponential(_ x: Double) -> Double {
        guard x > -700 else { return 0 }
        let k = (min(x, 700) / logarithmOfTwo).rounded()
        let r = min(x, 700) - k * logarithmOfTwo
        var (term, sum) = (1.0, 1.0)
        for n in 1...22 {
            term *= r / Double(n)
            sum += term
        }
        return sum * Double(sign: .plus, exponent: Int(k), significand: 1)
    }

    /// Exponential with mean 1.
    static func exponentialGap(_ random: inout SimulationRandom) -> Double {
        -logarithm(1 - random.unit())
    }

    /// Standard normal, by Marsaglia's polar method.
    static func normal(_ random: inout SimulationRandom) -> Double {
        while true {
            let (u, v) = (2 * random.unit() - 1, 2 * random.unit() - 1)
            let s = u * u + v * v
            if s > 0, s < 1 { return u * (-2 * logarithm(s) / s).squareRoot() }
        }
    }

    /// Gamma of this shape with mean 1 (Marsaglia and Tsang 2000).
    static func gamma(shape: Double, _ random: inout SimulationRandom) -> Double {
        if shape < 1 {
            let boosted = gamma(shape: shape + 1, &random) * (shape + 1)
            return boosted * exponential(logarithm(1 - random.unit()) / shape) / shape
        }
        let d = shape - 1.0 / 3
        let c = 1 / (9 * d).squareRoot()
        while true {
            let x = normal(&random)
            let v = (1 + c * x) * (1 + c * x) * (1 + c * x)
            guard v > 0 else { continue }
            if logarithm(1 - random.unit()) < 0.5 * x * x + d - d * v + d * logarithm(v) { return d * v / shape }
        }
    }
}

/// How many tokens a prompt or an output has.
public enum LengthDistribution: Hashable, Sendable {
    case fixed(Int)
    case uniform(Int, Int)
    case exponential(mean: Double)
    /// Of this mean and coefficient of variation.
    case lognormal(mean: Double, variation: Double)
    /// Measured: equally spaced quantiles from the least to the greatest, linearly between.
    case quantiles([Int])

    /// Reads `256`, `uniform:1:512`, `exp:256` or `lognormal:256:0.8`; nil for anything else.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        let numbers = parts.dropFirst().compactMap { Double($0) }.filter { $0.isFinite && $0 > 0 && $0 <= 1e7 }
        switch (parts.first, numbers.count, parts.count) {
        case ("uniform", 2, 3) where numbers[0] <= numbers[1]: self = .uniform(Int(numbers[0]), Int(numbers[1]))
        case ("exp", 1, 2): self = .exponential(mean: numbers[0])
        case ("lognormal", 2, 3): self = .lognormal(mean: numbers[0], variation: numbers[1])
        default:
            guard parts.count == 1, let count = Int(text), (1...10_000_000).contains(count) else { return nil }
            self = .fixed(count)
        }
    }

    public static let forms = "256, uniform:1:512, exp:256 or lognormal:256:0.8"

    func draw(_ random: inout SimulationRandom, max limit: Int) -> Int {
        let value: Double
        switch self {
        case .fixed(let count): value = Double(count)
        case .uniform(let low, let high): value = Double(random.within(low...max(low, high)))
        case .exponential(let mean): value = Draws.exponentialGap(&random) * mean
        case .lognormal(let mean, let variation):
            let variance = Draws.logarithm(1 + variation * variation)
            value = mean * Draws.exponential(Draws.normal(&random) * variance.squareRoot() - variance / 2)
        case .quantiles(let counts): value = CostProfile.draw(counts.map(Double.init), &random)
        }
        return min(max(Int(min(value.rounded(), 1e9)), 1), limit)
    }
}

/// When requests come, at a mean rate.
public enum ArrivalProcess: Hashable, Sendable {
    case poisson
    /// Gamma gaps of this coefficient of variation: above 1 burstier than Poisson.
    case gamma(variation: Double)
    case uniform
    /// Groups of this size at once, at Poisson instants.
    case burst(Int)

    /// Reads `poisson`, `uniform`, `gamma:2` or `burst:16`; nil for anything else.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        switch (parts.first, parts.count) {
        case ("poisson", 1): self = .poisson
        case ("uniform", 1): self = .uniform
        case ("gamma", 2):
            guard let variation = Double(parts[1]), variation > 0.01, variation <= 100 else { return nil }
            self = .gamma(variation: variation)
        case ("burst", 2):
            guard let size = Int(parts[1]), (1...1_000_000).contains(size) else { return nil }
            self = .burst(size)
        default: return nil
        }
    }

    public static let forms = "poisson, uniform, gamma:2 or burst:16"

    /// Seconds until the next request, of which `index` have come.
    func gap(_ index: Int, rate: Double, _ random: inout SimulationRandom) -> Double {
        guard rate > 0 else { return 0 }
        switch self {
        case .poisson: return Draws.exponentialGap(&random) / rate
        case .uniform: return 1 / rate
        case .gamma(let variation): return Draws.gamma(shape: 1 / (variation * variation), &random) / rate
        case .burst(let size):
            return index.isMultiple(of: size) ? Draws.exponentialGap(&random) * Double(size) / rate : 0
        }
    }
}
