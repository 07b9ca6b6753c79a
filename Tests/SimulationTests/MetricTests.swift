import Foundation
import ServingTypes
import Testing

@testable import Simulation

@Suite struct MetricTests {
    /// The artifact's logs are others' data and stay outside: fair_bench/*/all_results_real.jsonl of
    /// Ying1123/VTC-artifact as tenant, input and output tokens, arrival, time to first token and latency
    /// in seconds, tabs between them, one file per policy.
    static let logs = ProcessInfo.processInfo.environment["TANDEM_VTC_LOGS"]

    static func log(_ name: String) throws -> [JobRecord] {
        let folder = URL(fileURLWithPath: try #require(logs))
        let text = try String(contentsOf: folder.appendingPathComponent("vtc-artifact-\(name).tsv"), encoding: .utf8)
        return try text.split(separator: "\n").map { line in
            let cells = line.split(separator: "\t").compactMap { Double($0) }
            try #require(cells.count == 6, "\(line)")
            return JobRecord(
                tenant: TenantID("tenant-\(Int(cells[0]))"), arrival: cells[3], firstToken: cells[3] + cells[4],
                end: cells[3] + cells[5], inputTokens: Int(cells[1]), outputTokens: Int(cells[2]))
        }
    }

    /// Property 24 of scheduling.md §6, with the artifact's own logs.
    @Test(
        .enabled(if: logs != nil, "TANDEM_VTC_LOGS names no folder with the artifact's logs"),
        arguments: [
            ("fcfs", 1500, 759.97, 433.53, 32112.0), ("vtc", 1500, 368.40, 251.66, 6549.16),
            ("rpm5", 581, 143.86, 83.58, 1020.46),
        ])
    func theDiffMetricGivesThePublishedValues(
        name: String, count: Int, max: Double, mean: Double, variance: Double
    ) throws {
        let records = try Self.log(name)
        #expect(records.count == count)
        let result = DiffMetric().measure(records)
        #expect(result.differences.count == 19)
        #expect(abs(result.max - max) < 0.02, "\(name): \(result.max)")
        #expect(abs(result.mean - mean) < 0.02, "\(name): \(result.mean)")
        #expect(abs(result.variance / variance - 1) < 1e-3, "\(name): \(result.variance)")
    }

    @Test func equalServiceOfTwoTenantsHasNoDifference() {
        let records = ["a", "b"].flatMap { tenant in
            (0..<60).map { second in
                JobRecord(
                    tenant: TenantID(tenant), arrival: Double(second) * 10, firstToken: Double(second) * 10 + 1,
                    end: Double(second) * 10 + 9, inputTokens: 100, outputTokens: 50)
            }
        }
        #expect(DiffMetric().measure(records).max < 40)
        let alone = DiffMetric().measure(records.filter { $0.tenant == TenantID("a") })
        #expect(alone.max == 0)
    }

    @Test func theProfiledCostIsTheArtifacts() {
        #expect(ServiceCost.linear.units(input: 10, output: 5) == 20)
        let units = ServiceCost.profiled.units(input: 100, output: 200)
        #expect(abs(units - (21.001891 + 20.15079 + 79.736 + 129.8932 + 1.14601454)) < 1e-6)
    }

    @Test func aComparisonJudgesByItsTolerance() {
        func row(_ ours: Double?, _ tolerance: Tolerance) -> Bool? {
            ComparisonRow("e", "m", reference: 100, ours: ours, tolerance).holds
        }
        #expect(row(105, .relative(0.05)) == true)
        #expect(row(105.1, .relative(0.05)) == false)
        #expect(row(95, .absolute(4)) == false)
        #expect(row(99, .atMost) == true && row(101, .atMost) == false)
        #expect(row(101, .atLeast) == true && row(nil, .atLeast) == false)
        #expect(row(5, .none) == nil)
        var table = ComparisonTable(title: "t", method: ["m"])
        table.rows = [
            ComparisonRow("e", "m", reference: 100, ours: 90, .relative(0.2)),
            ComparisonRow("e", "n", reference: 100, ours: 90, .relative(0.05)),
        ]
        #expect(table.held == 1 && table.judged == 2)
        #expect(table.markdown.contains("| e | n | 100.0 | 90.00 |  | -10.0 % | within 5.000 % | no |  |"))
    }

    @Test func decimalsAreRoundedAndKeepTheirPlaces() {
        for (value, places, text) in [
            (1.005, 1, "1.0"), (0.05, 1, "0.1"), (-0.04, 1, "0.0"), (-2.5, 0, "-3"), (12.3456, 3, "12.346"),
            (3.00049, 3, "3.000"),
        ] { #expect(Decimals.fixed(value, places) == text, "\(value)") }
        #expect(Decimals.short(0) == "0" && Decimals.short(12345.6) == "12346" && Decimals.short(0.12345) == "0.1235")
        #expect(Decimals.short(.infinity) == "inf")
    }

    @Test func aPlotIsTheSameBytesAndStaysInsideItsFrame() {
        var random = SimulationRandom(seed: 4)
        let values = (0..<1000).map { _ in random.unit() * 30 }
        var plot = SVGPlot(
            title: "a < b & c", xLabel: "x", yLabel: "y",
            series: [SVGPlot.distribution("one", values), SVGPlot.distribution("two", [1, 2, 3])])
        for isLogarithmic in [false, true] {
            plot.isLogarithmic = isLogarithmic
            let text = plot.text
            #expect(text == plot.text)
            #expect(text.hasPrefix("<svg ") && text.hasSuffix("</svg>\n"))
            #expect(text.contains("a &lt; b &amp; c") && !text.contains("nan") && !text.contains("inf"))
            for points in text.components(separatedBy: "points=\"").dropFirst() {
                for pair in points.prefix(while: { $0 != "\"" }).split(separator: " ") {
                    let xy = pair.split(separator: ",").compactMap { Double($0) }
                    #expect(xy.count == 2 && (80...740).contains(xy[0]) && (40...404).contains(xy[1]), "\(pair)")
                }
            }
        }
        #expect(SVGPlot(title: "", xLabel: "", yLabel: "", series: []).text.contains("</svg>"))
    }
}
