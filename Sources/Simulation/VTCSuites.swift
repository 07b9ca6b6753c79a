import ServingTypes

/// VTC's workloads (scheduling.md §3.5), by rule. The phases of its uniform arrivals are drawn from
/// the seed, since the artifact's come from NumPy's generator.
public enum VTCSuite: String, CaseIterable, Hashable, Sendable {
    case overload
    case proportional
    case onOffLess = "on_off_less"
    case onOffOverload = "on_off_overload"
    case poissonShortLong = "poisson_short_long"
    case poissonShortLong2 = "poisson_short_long_2"
    case increase
    case distShift = "dist_shift"
    case overloadMulti = "overload-multi"
    case overloadWeighted = "overload-weighted"

    /// Seconds of arrivals.
    public var seconds: Double {
        switch self {
        case .overload, .overloadMulti, .overloadWeighted: 360
        case .distShift: 900
        case .proportional, .onOffLess, .onOffOverload, .poissonShortLong, .poissonShortLong2, .increase: 600
        }
    }

    /// Entitlements, where they are not equal.
    public var weights: [TenantID: Double] {
        switch self {
        case .overloadWeighted:
            Dictionary(uniqueKeysWithValues: (0..<4).map { (TenantID(Self.tenant($0)), Double($0 + 1)) })
        case .overload, .proportional, .onOffLess, .onOffOverload, .poissonShortLong, .poissonShortLong2, .increase,
            .distShift, .overloadMulti:
            [:]
        }
    }

    public func requests(seed: UInt64) -> [TraceEntry] {
        var random = SimulationRandom(seed: Hashing.mix(seed ^ 0x7674_6373))
        let entries: [TraceEntry]
        switch self {
        case .overload: entries = Self.uniform([1.5, 3], seconds, random: &random)
        case .proportional: entries = Self.uniform([0.25, 0.5, 1.5], seconds, random: &random)
        case .onOffLess: entries = Self.uniform([0.5, 2], seconds, onOff: true, random: &random)
        case .onOffOverload: entries = Self.uniform([2, 3], seconds, onOff: true, random: &random)
        case .poissonShortLong:
            entries = Self.poisson([(8, 64, 64), (1.5, 256, 256)], seconds, random: &random)
        case .poissonShortLong2:
            entries = Self.poisson([(8, 512, 32), (1.5, 32, 512)], seconds, random: &random)
        case .increase: entries = Self.increasing(seconds, random: &random)
        case .distShift:
            entries =
                Self.uniform([0.5, 2], 300, onOff: true, random: &random)
                + Self.uniform([1, 1], 300, from: 300, random: &random)
                + Self.uniform([0.5, 1.5], 300, from: 600, random: &random)
        case .overloadMulti:
            entries = Self.uniform([0.4, 0.4, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6], seconds, random: &random)
        case .overloadWeighted: entries = Self.uniform([0.4, 0.8, 1.2, 1.6], seconds, random: &random)
        }
        return entries.sorted { ($0.arrivalSeconds, $0.tenant) < ($1.arrivalSeconds, $1.tenant) }
    }

    static func tenant(_ index: Int) -> String {
        "tenant-" + String(repeating: "0", count: index < 10 ? 2 : 1) + String(index)
    }

    /// Fixed gaps with a random phase; under `onOff` the first tenant is silent in odd minutes.
    private static func uniform(
        _ rates: [Double], _ seconds: Double, from start: Double = 0, onOff: Bool = false,
        random: inout SimulationRandom
    ) -> [TraceEntry] {
        var entries: [TraceEntry] = []
        for (index, rate) in rates.enumerated() {
            var time = random.unit() / rate
            for _ in 0..<Int(rate * seconds) {
                time += 1 / rate
                if onOff, index == 0, !Int(time / 60).isMultiple(of: 2) { continue }
                entries.append(
                    TraceEntry(arrivalSeconds: start + time, tenant: tenant(index), inputTokens: 256, outputTokens: 256)
                )
            }
        }
        return entries
    }

    private static func poisson(
        _ streams: [(rate: Double, input: Int, output: Int)], _ seconds: Double, random: inout SimulationRandom
    ) -> [TraceEntry] {
        let total = streams.reduce(0) { $0 + $1.rate }
        var time = 0.0
        return (0..<Int(total * seconds)).map { _ in
            time += Draws.exponentialGap(&random) / total
            var choice = random.unit() * total
            let index = streams.firstIndex { stream in
                choice -= stream.rate
                return choice < 0
            }
            let stream = streams[index ?? 0]
            return TraceEntry(
                arrivalSeconds: time, tenant: tenant(index ?? 0), inputTokens: stream.input,
                outputTokens: stream.output)
        }
    }

    /// One tenant at 0.5 per second, the other from 0.2 up to 2.
    private static func increasing(_ seconds: Double, random: inout SimulationRandom) -> [TraceEntry] {
        var entries = uniform([0.5], seconds, random: &random)
        var time = 0.0
        for _ in 0..<Int(0.5 * 2.2 * seconds) {
            time += 1 / (0.2 + 1.8 * time / seconds)
            entries.append(
                TraceEntry(arrivalSeconds: time, tenant: tenant(1), inputTokens: 256, outputTokens: 256))
        }
        return entries
    }
}
