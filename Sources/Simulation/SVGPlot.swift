/// A plot as SVG text: lines over two axes, with ticks at round numbers and a legend. The same values
/// give the same bytes.
public struct SVGPlot: Sendable {
    public struct Series: Hashable, Sendable {
        public var name: String
        public var points: [Point]
        /// Holds its value until the next point.
        public var isStepped: Bool

        public init(name: String, points: [Point], isStepped: Bool = false) {
            self.name = name
            self.points = points
            self.isStepped = isStepped
        }
    }

    public struct Point: Hashable, Sendable {
        public var x: Double
        public var y: Double

        public init(_ x: Double, _ y: Double) {
            self.x = x
            self.y = y
        }
    }

    public var title: String
    public var xLabel: String
    public var yLabel: String
    public var series: [Series]
    /// The x axis by powers of ten; points at or below zero are left out.
    public var isLogarithmic = false

    public init(title: String, xLabel: String, yLabel: String, series: [Series]) {
        self.title = title
        self.xLabel = xLabel
        self.yLabel = yLabel
        self.series = series
    }

    /// The share of a sample at or below each value, thinned to at most `pointsMax` points.
    public static func distribution(_ name: String, _ values: [Double], pointsMax: Int = 400) -> Series {
        let sorted = values.sorted()
        let count = sorted.count
        let picks = count <= pointsMax ? Array(0..<count) : (0..<pointsMax).map { $0 * (count - 1) / (pointsMax - 1) }
        return Series(
            name: name, points: picks.map { Point(sorted[$0], Double($0 + 1) / Double(count)) }, isStepped: true)
    }

    // MARK: Text

    private enum Size {
        static let width = 760.0
        static let height = 460.0
        static let left = 80.0
        static let right = 20.0
        static let top = 40.0
        static let bottom = 56.0
    }

    static let colours = [
        "#1b6ca8", "#d1495b", "#2e933c", "#edae49", "#7b4b94", "#00798c", "#8d6a4f", "#5c6b73", "#e07a5f", "#3d405b",
    ]
    /// Lines that a legend names.
    static let legendMax = 30

    public var text: String {
        let shown = series.map(visible)
        let (x, y) = (
            Axis(shown.flatMap { $0.points.map(\.x) }, isLogarithmic),
            Axis(shown.flatMap { $0.points.map(\.y) } + [0], false)
        )
        var lines = [
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"\(Int(Size.width))\" height=\"\(Int(Size.height))\" "
                + "viewBox=\"0 0 \(Int(Size.width)) \(Int(Size.height))\" font-family=\"sans-serif\" font-size=\"12\">",
            "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>",
            label(title, at: Size.width / 2, 22, anchor: "middle", size: 15),
            label(xLabel, at: (Size.left + Size.width - Size.right) / 2, Size.height - 14, anchor: "middle"),
            "<text x=\"18\" y=\"\(number(Size.height / 2))\" text-anchor=\"middle\" "
                + "transform=\"rotate(-90 18 \(number(Size.height / 2)))\">\(escaped(yLabel))</text>",
        ]
        lines += grid(x, y)
        for (index, one) in shown.enumerated() {
            lines.append(line(one, Self.colours[index % Self.colours.count], x, y))
        }
        if shown.count > 1 { lines += legend(shown) }
        lines.append("</svg>")
        return lines.joined(separator: "\n") + "\n"
    }

    private func visible(_ series: Series) -> Series {
        var series = series
        series.points = series.points.filter { $0.x.isFinite && $0.y.isFinite && (!isLogarithmic || $0.x > 0) }
        return series
    }

    private func grid(_ x: Axis, _ y: Axis) -> [String] {
        var lines: [String] = []
        let (bottom, right) = (Size.height - Size.bottom, Size.width - Size.right)
        for tick in x.ticks {
            let at = place(x, tick, horizontal: true)
            lines.append(rule(at, Size.top, at, bottom))
            lines.append(label(axisText(tick), at: at, bottom + 18, anchor: "middle"))
        }
        for tick in y.ticks {
            let at = place(y, tick, horizontal: false)
            lines.append(rule(Size.left, at, right, at))
            lines.append(label(axisText(tick), at: Size.left - 6, at + 4, anchor: "end"))
        }
        return lines
    }

    private func rule(_ x1: Double, _ y1: Double, _ x2: Double, _ y2: Double) -> String {
        "<line x1=\"\(number(x1))\" y1=\"\(number(y1))\" x2=\"\(number(x2))\" y2=\"\(number(y2))\" stroke=\"#dddddd\"/>"
    }

    private func line(_ series: Series, _ colour: String, _ x: Axis, _ y: Axis) -> String {
        var parts: [String] = []
        var before: Double?
        for point in series.points {
            let (px, py) = (place(x, point.x, horizontal: true), place(y, point.y, horizontal: false))
            if series.isStepped, let before { parts.append("\(number(px)),\(number(before))") }
            parts.append("\(number(px)),\(number(py))")
            before = py
        }
        return "<polyline fill=\"none\" stroke=\"\(colour)\" stroke-width=\"1.6\" points=\""
            + parts.joined(separator: " ") + "\"/>"
    }

    private func legend(_ shown: [Series]) -> [String] {
        shown.prefix(Self.legendMax).enumerated().flatMap { index, one -> [String] in
            let (x, y) = (Size.left + 12, Size.top + 14 + Double(index) * 14)
            let colour = Self.colours[index % Self.colours.count]
            return [
                "<rect x=\"\(number(x))\" y=\"\(number(y - 8))\" width=\"14\" height=\"4\" fill=\"\(colour)\"/>",
                label(one.name, at: x + 20, y, anchor: "start", size: 11),
            ]
        }
    }

    private func label(_ text: String, at x: Double, _ y: Double, anchor: String, size: Int = 12) -> String {
        "<text x=\"\(number(x))\" y=\"\(number(y))\" text-anchor=\"\(anchor)\" font-size=\"\(size)\">\(escaped(text))</text>"
    }

    private func place(_ axis: Axis, _ value: Double, horizontal: Bool) -> Double {
        let share = axis.share(value)
        return horizontal
            ? Size.left + share * (Size.width - Size.left - Size.right)
            : Size.height - Size.bottom - share * (Size.height - Size.top - Size.bottom)
    }

    private func number(_ value: Double) -> String { Decimals.fixed(value, 1) }

    private func axisText(_ value: Double) -> String {
        if value == 0 { return "0" }
        let text =
            abs(value) >= 100
            ? Decimals.fixed(value, 0) : abs(value) >= 1 ? Decimals.fixed(value, 2) : Decimals.fixed(value, 4)
        guard text.contains(".") else { return text }
        var trimmed = text[...]
        while trimmed.hasSuffix("0") { trimmed = trimmed.dropLast() }
        return String(trimmed.hasSuffix(".") ? trimmed.dropLast() : trimmed)
    }

    private func escaped(_ text: String) -> String {
        var result = ""
        for character in text {
            switch character {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            case "\"": result += "&quot;"
            default: result.append(character)
            }
        }
        return result
    }

    /// A range rounded outward to round numbers, and the ticks inside it.
    struct Axis {
        var from: Double
        var to: Double
        var ticks: [Double]
        var isLogarithmic: Bool

        init(_ values: [Double], _ isLogarithmic: Bool) {
            self.isLogarithmic = isLogarithmic
            let least = values.min() ?? 0
            let most = values.max() ?? 1
            if isLogarithmic, least > 0 {
                (from, to) = (Self.power(below: least), Self.power(above: most))
                if to <= from { to = from * 10 }
                ticks = []
                var tick = from
                while tick <= to * 1.001, ticks.count < 40 {
                    ticks.append(tick)
                    tick *= 10
                }
                return
            }
            self.isLogarithmic = false
            let step = Self.step(max(most - least, abs(most) * 1e-9, 1e-12))
            from = (least / step).rounded(.down) * step
            to = max((most / step).rounded(.up) * step, from + step)
            let (start, count) = (from, Int(((to - from) / step).rounded()))
            ticks = (0...count).map { start + Double($0) * step }
        }

        func share(_ value: Double) -> Double {
            guard isLogarithmic else { return (value - from) / (to - from) }
            let span = Draws.logarithm(to / from)
            return Draws.logarithm(max(value, from) / from) / span
        }

        private static func power(below value: Double) -> Double {
            var power = 1.0
            while power > value { power /= 10 }
            while power * 10 <= value { power *= 10 }
            return power
        }

        private static func power(above value: Double) -> Double {
            let below = power(below: value)
            return below == value ? below : below * 10
        }

        /// 1, 2 or 5 times a power of ten, for five to ten ticks.
        private static func step(_ span: Double) -> Double {
            let unit = power(below: span / 5)
            for factor in [1.0, 2, 5] where span / (unit * factor) <= 8 { return unit * factor }
            return unit * 10
        }
    }
}
