import Foundation
import ServingTypes

/// How many tokens prompts or outputs have.
public enum LengthDistribution: Hashable, Sendable, CustomStringConvertible {
    case fixed(Int)
    /// Every length of the range alike.
    case uniform(ClosedRange<Int>)
    /// The logarithm is normal with the given deviation round the median's; cut at `max`.
    case lognormal(median: Double, deviation: Double, max: Int)
    /// The k-th shortest length of the range has weight 1 / k^exponent: many short, few long.
    case zipf(exponent: Double, ClosedRange<Int>)

    public enum Limits {
        public static let tokensMax = 1_000_000
        /// Lengths of a Zipf range; its weights are kept in a table.
        static let zipfRangeMax = 1 << 17
    }

    /// `256`, `uniform:64-512`, `lognormal:256:0.8:4096`, `zipf:1.2:16-2048`; nil for anything else.
    public init?(_ text: String) {
        let parts = text.split(separator: ":", omittingEmptySubsequences: false).map(String.init)
        switch (parts[0], parts.count) {
        case ("uniform", 2):
            guard let range = Self.range(parts[1]) else { return nil }
            self = .uniform(range)
        case ("lognormal", 4):
            guard let median = Double(parts[1]), let deviation = Double(parts[2]), let max = Self.length(parts[3]),
                (1...Double(max)).contains(median), (0...10).contains(deviation)
            else { return nil }
            self = .lognormal(median: median, deviation: deviation, max: max)
        case ("zipf", 3):
            guard let exponent = Double(parts[1]), let range = Self.range(parts[2]), (0...20).contains(exponent),
                range.count <= Limits.zipfRangeMax
            else { return nil }
            self = .zipf(exponent: exponent, range)
        case (_, 1):
            guard let length = Self.length(parts[0]) else { return nil }
            self = .fixed(length)
        default: return nil
        }
    }

    public static let forms = "256, uniform:64-512, lognormal:MEDIAN:DEVIATION:MAX or zipf:EXPONENT:16-2048"

    private static func length(_ text: String) -> Int? {
        guard let length = Int(text), (1...Limits.tokensMax).contains(length) else { return nil }
        return length
    }

    private static func range(_ text: String) -> ClosedRange<Int>? {
        let ends = text.split(separator: "-", omittingEmptySubsequences: false).map { length(String($0)) }
        guard ends.count == 2, let low = ends[0], let high = ends[1], low <= high else { return nil }
        return low...high
    }

    public var description: String {
        switch self {
        case .fixed(let length): "\(length)"
        case .uniform(let range): "uniform:\(range.lowerBound)-\(range.upperBound)"
        case .lognormal(let median, let deviation, let max): "lognormal:\(median):\(deviation):\(max)"
        case .zipf(let exponent, let range): "zipf:\(exponent):\(range.lowerBound)-\(range.upperBound)"
        }
    }

    /// The given number of lengths, the same for the same generator.
    public func draw(_ count: Int, using generator: inout SplitMix64) -> [Int] {
        switch self {
        case .fixed(let length): return Array(repeating: length, count: count)
        case .uniform(let range):
            return (0..<count).map { _ in range.lowerBound + Int(generator.unit() * Double(range.count)) }
        case .lognormal(let median, let deviation, let max):
            return (0..<count).map { _ in
                let length = median * exp(deviation * generator.normal())
                return Int(Swift.min(Double(max), Swift.max(1, length.rounded())))
            }
        case .zipf(let exponent, let range):
            let sums = Self.zipfSums(exponent, range.count)
            return (0..<count).map { _ in
                let point = generator.unit() * (sums.last ?? 0)
                return range.lowerBound + Self.firstAbove(point, sums)
            }
        }
    }

    private static func zipfSums(_ exponent: Double, _ count: Int) -> [Double] {
        var sum = 0.0
        return (1...count).map { rank in
            sum += pow(Double(rank), -exponent)
            return sum
        }
    }

    /// Place of the first sum above the point; the last one at most.
    private static func firstAbove(_ point: Double, _ sums: [Double]) -> Int {
        var (low, high) = (0, sums.count - 1)
        while low < high {
            let middle = (low + high) / 2
            if sums[middle] > point { high = middle } else { low = middle + 1 }
        }
        return low
    }
}

/// SplitMix64 (Steele et al. 2014), and the distributions made from it.
public struct SplitMix64: RandomNumberGenerator, Sendable {
    public var state: UInt64

    public init(state: UInt64) { self.state = state }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    /// In [0, 1).
    public mutating func unit() -> Double { Double(next() >> 11) * 0x1p-53 }

    /// Mean 0, deviation 1 (Box and Muller).
    public mutating func normal() -> Double {
        let radius = (-2 * log(1 - unit())).squareRoot()
        return radius * cos(2 * Double.pi * unit())
    }

    /// Mean 1 and variance 1 / shape (Marsaglia and Tsang 2000).
    public mutating func gamma(shape: Double) -> Double {
        // Below 1 the method does not hold; Gamma(a) = Gamma(a + 1) * U^(1 / a).
        guard shape >= 1 else {
            return gamma(shape: shape + 1) * (shape + 1) / shape * pow(1 - unit(), 1 / shape)
        }
        let d = shape - 1.0 / 3
        let c = 1 / (9 * d).squareRoot()
        while true {
            let x = normal()
            let v = pow(1 + c * x, 3)
            guard v > 0 else { continue }
            if log(1 - unit()) < 0.5 * x * x + d - d * v + d * log(v) { return d * v / shape }
        }
    }
}
