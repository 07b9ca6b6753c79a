/// The pictures of one run.
public enum WorkloadPlots {
    /// Times by their distribution, and service per tenant over time.
    public static func all(_ records: [JobRecord]) -> [(name: String, plot: SVGPlot)] {
        var result = [
            ("ttft", distribution("Time to first token", records.map(\.timeToFirstToken))),
            ("jct", distribution("Job completion time", records.map(\.completion))),
        ]
        if !records.isEmpty { result.append(("service", service(records))) }
        return result.map { (name: $0.0, plot: $0.1) }
    }

    private static func distribution(_ title: String, _ values: [Double]) -> SVGPlot {
        var plot = SVGPlot(
            title: "\(title) (\(values.count) jobs)", xLabel: "seconds", yLabel: "share of jobs",
            series: [SVGPlot.distribution(title, values)])
        plot.isLogarithmic = true
        return plot
    }

    /// Units per second in windows of a twentieth of the run, per tenant; the busiest tenants only.
    static func service(_ records: [JobRecord], tenantsMax: Int = 10) -> SVGPlot {
        var metric = DiffMetric()
        let end = records.map(\.end).max() ?? 0
        metric.window = max(end / 20, 1e-3)
        let centers = (0..<60).map { end * (Double($0) + 0.5) / 60 }
        let rates = centers.map { metric.rates(records, at: $0) }
        var totals: [(name: String, units: Double)] = []
        for tenant in Set(records.map(\.tenant)).sorted() {
            let units = rates.reduce(0) { $0 + ($1[tenant]?.service ?? 0) }
            totals.append((tenant.name, units))
        }
        let busiest = totals.enumerated().sorted {
            ($1.element.units, $0.offset) < ($0.element.units, $1.offset)
        }.prefix(tenantsMax).map(\.element.name).sorted()
        let series = busiest.map { name in
            SVGPlot.Series(
                name: name,
                points: zip(centers, rates).map { center, rate in
                    SVGPlot.Point(center, rate.first { $0.key.name == name }?.value.service ?? 0)
                })
        }
        return SVGPlot(
            title: "Service per tenant", xLabel: "seconds", yLabel: "service units per second", series: series)
    }

    /// Goodput, and offered load, against the arrival rate.
    public static func goodput(_ points: [(rate: Double, goodput: Double)]) -> SVGPlot {
        SVGPlot(
            title: "Goodput", xLabel: "requests per second", yLabel: "requests per second within their limits",
            series: [
                SVGPlot.Series(name: "goodput", points: points.map { SVGPlot.Point($0.rate, $0.goodput) }),
                SVGPlot.Series(name: "offered", points: points.map { SVGPlot.Point($0.rate, $0.rate) }),
            ])
    }
}
