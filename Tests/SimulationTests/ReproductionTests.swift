import Testing

@testable import Simulation

/// Property 25 of scheduling.md §6, the part that needs nobody's data: VTC's synthetic suites at reduced size, with
/// the orders that the paper shows (§3.5). The whole tables come from `tandem simulate --reproduce`.
@Suite struct ReproductionTests {
    /// Avg Diff of the first `seconds` of a suite.
    private static func difference(_ suite: VTCSuite, _ policy: String, seconds: Double) throws -> Double {
        let policy = try #require(VTCReproduction.policy(policy))
        let trace = suite.requests(seed: 5).filter { $0.arrivalSeconds < seconds }
        let report = VTCReproduction.run(policy: policy, trace: trace, seed: 5)
        #expect(report.failure == nil && report.finished == trace.count, "\(report.failure ?? "")")
        var metric = DiffMetric()
        metric.seconds = seconds
        metric.window = 30
        metric.shift = 15
        metric.ticks = 10
        return metric.measure(report.records).mean
    }

    /// Oracle lengths charge ahead, so they leave the least difference; first come first served leaves the most.
    @Test func anOverloadIsSharedBestWithTrueLengthsAndWorstInOrderOfArrival() throws {
        let (fcfs, vtc, oracle) = (
            try Self.difference(.overload, "fcfs", seconds: 60), try Self.difference(.overload, "vtc", seconds: 60),
            try Self.difference(.overload, "vtc-oracle", seconds: 60)
        )
        #expect(oracle < 0.5 * vtc && vtc < 0.7 * fcfs, "fcfs \(fcfs), vtc \(vtc), vtc-oracle \(oracle)")
    }

    @Test(arguments: [VTCSuite.poissonShortLong, .poissonShortLong2])
    func shortAndLongRequestsGetTheirSharesFromCountersOnly(suite: VTCSuite) throws {
        let (fcfs, vtc) = (
            try Self.difference(suite, "fcfs", seconds: 60), try Self.difference(suite, "vtc", seconds: 60)
        )
        #expect(vtc < 0.85 * fcfs, "\(suite.rawValue): fcfs \(fcfs), vtc \(vtc)")
    }
}
