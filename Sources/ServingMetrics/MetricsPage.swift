/// Writes the Prometheus text format, version 0.0.4: families with HELP and TYPE lines, then samples.
public struct MetricsPage: Sendable {
    public typealias Labels = [(name: String, value: String)]

    /// One value of a family.
    public struct Sample: Sendable {
        public var labels: Labels
        public var value: Double

        public init(_ value: Double, _ labels: Labels = []) {
            self.labels = labels
            self.value = value
        }

        public init(_ value: UInt64, _ labels: Labels = []) {
            self.init(Double(value), labels)
        }

        public init(_ value: Int, _ labels: Labels = []) {
            self.init(Double(value), labels)
        }
    }

    public private(set) var text = ""

    public init() {}

    /// A value that only grows; by custom its name ends in `_total`.
    public mutating func counter(_ name: String, _ help: String, _ samples: [Sample]) {
        family(name, help, type: "counter", samples)
    }

    public mutating func gauge(_ name: String, _ help: String, _ samples: [Sample]) {
        family(name, help, type: "gauge", samples)
    }

    public mutating func histogram(_ name: String, _ help: String, _ histogram: Histogram, _ labels: Labels = []) {
        head(name, help, type: "histogram")
        for (index, total) in histogram.cumulative.enumerated() {
            let edge = index < histogram.edges.count ? Self.number(histogram.edges[index]) : "+Inf"
            line(name + "_bucket", labels + [("le", edge)], String(total))
        }
        line(name + "_sum", labels, Self.number(histogram.sum))
        line(name + "_count", labels, String(histogram.count))
    }

    private mutating func family(_ name: String, _ help: String, type: String, _ samples: [Sample]) {
        guard !samples.isEmpty else { return }
        head(name, help, type: type)
        for sample in samples { line(name, sample.labels, Self.number(sample.value)) }
    }

    private mutating func head(_ name: String, _ help: String, type: String) {
        text += "# HELP \(name) \(Self.escaped(help, quotes: false))\n# TYPE \(name) \(type)\n"
    }

    private mutating func line(_ name: String, _ labels: Labels, _ value: String) {
        text += name
        if !labels.isEmpty {
            let pairs = labels.map { "\($0.name)=\"\(Self.escaped($0.value, quotes: true))\"" }
            text += "{" + pairs.joined(separator: ",") + "}"
        }
        text += " " + value + "\n"
    }

    /// Shortest digits that read back as the same number; the format's words for what is none.
    static func number(_ value: Double) -> String {
        if value.isNaN { return "NaN" }
        if value.isInfinite { return value < 0 ? "-Inf" : "+Inf" }
        return "\(value)"
    }

    static func escaped(_ text: String, quotes: Bool) -> String {
        var result = ""
        for scalar in text.unicodeScalars {
            switch scalar {
            case "\\": result += "\\\\"
            case "\n": result += "\\n"
            case "\"" where quotes: result += "\\\""
            default: result.unicodeScalars.append(scalar)
            }
        }
        return result
    }
}
