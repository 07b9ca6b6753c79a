/// Counts of observations by fixed upper edges, as Prometheus wants them.
public struct Histogram: Hashable, Sendable {
    /// Inclusive upper edges, ascending; values above the last one are counted only in the total.
    public let edges: [Double]
    /// Observations per bucket, not cumulative; one more than there are edges.
    public private(set) var counts: [UInt64]
    public private(set) var sum: Double = 0
    public private(set) var count: UInt64 = 0

    public init(edges: [Double]) {
        self.edges = edges
        counts = Array(repeating: 0, count: edges.count + 1)
    }

    /// Counts a value so many times. What is not a number is not counted.
    public mutating func observe(_ value: Double, times: Int = 1) {
        guard times > 0, value.isFinite else { return }
        counts[bucket(of: value)] += UInt64(times)
        count += UInt64(times)
        sum += value * Double(times)
    }

    /// Observations at or below each edge, and at last all of them.
    public var cumulative: [UInt64] {
        var total: UInt64 = 0
        return counts.map { bucket in
            total += bucket
            return total
        }
    }

    /// The first edge that is not below the value.
    private func bucket(of value: Double) -> Int {
        var (low, high) = (0, edges.count)
        while low < high {
            let middle = (low + high) / 2
            if edges[middle] < value { low = middle + 1 } else { high = middle }
        }
        return low
    }
}

/// Bucket edges: those of vLLM (`vllm/v1/metrics/loggers.py`), so that recorded rules go on working,
/// and finer ones below, since small models answer in milliseconds.
public enum HistogramEdges {
    public static let timeToFirstToken: [Double] = [
        0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
        160, 640, 2560,
    ]
    public static let timePerToken: [Double] = [
        0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
        20,
        40, 80,
    ]
    public static let requestTime: [Double] = [
        0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60,
        120,
        240, 480, 960, 1920, 7680,
    ]
    public static let tokens: [Double] = [
        1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000, 500_000,
        1_000_000,
    ]
    public static let bytes: [Double] = (0...10).map { Double(1 << (10 + 2 * $0)) }
}
