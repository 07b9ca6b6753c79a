/// SplitMix64: the only source of chance in a simulation. The same seed gives the same draws on
/// every machine.
public struct SimulationRandom: RandomNumberGenerator, Sendable {
    private var state: UInt64

    public init(seed: UInt64) { state = Hashing.mix(seed &+ 0x9e37_79b9_7f4a_7c15) }

    public mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        return Hashing.finish(state)
    }

    /// Uniform in the range; the bias of the remainder is far below what a simulation can see.
    public mutating func within(_ range: ClosedRange<Int>) -> Int {
        let width = UInt64(bitPattern: Int64(range.upperBound &- range.lowerBound)) &+ 1
        return width == 0 ? Int(truncatingIfNeeded: next()) : range.lowerBound &+ Int(next() % width)
    }

    public mutating func chance(_ percent: Int) -> Bool { within(0...99) < percent }

    /// Uniform in [0, 1).
    public mutating func unit() -> Double { Double(next() >> 11) * 0x1p-53 }

    mutating func pick<Element>(_ elements: [Element]) -> Element? {
        elements.isEmpty ? nil : elements[within(0...elements.count - 1)]
    }
}

/// Mixing of 64-bit words, for names of pages, contents of slots and tokens.
enum Hashing {
    static func finish(_ value: UInt64) -> UInt64 {
        var z = value
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }

    static func mix(_ value: UInt64) -> UInt64 { finish(value &+ 0x9e37_79b9_7f4a_7c15) }

    /// Appends a word to a running hash; order matters.
    static func fold(_ hash: UInt64, _ word: UInt64) -> UInt64 {
        finish((hash &* 0x100_0000_01b3) ^ word &+ 0x9e37_79b9_7f4a_7c15)
    }
}
