/// How far a value of ours may be from a published one, or which side of a bound it must be on.
public enum Tolerance: Hashable, Sendable {
    /// Share of the published value.
    case relative(Double)
    case absolute(Double)
    case atMost
    case atLeast
    /// Shown, never judged.
    case none
}

/// One line of a comparison.
public struct ComparisonRow: Hashable, Sendable {
    public var experiment: String
    public var measure: String
    /// Published, or the bound of a goal.
    public var reference: Double?
    public var ours: Double?
    public var tolerance: Tolerance
    public var note: String
    /// One value per seed, where there were several: `ours` is their mean.
    public var samples: [Double] = []
    /// Whether the mean is judged; else every seed must hold.
    public var isJudgedByMean = false

    public init(
        _ experiment: String, _ measure: String, reference: Double?, ours: Double?, _ tolerance: Tolerance = .none,
        note: String = ""
    ) {
        self.experiment = experiment
        self.measure = measure
        self.reference = reference
        self.ours = ours
        self.tolerance = tolerance
        self.note = note
    }

    /// Nil where nothing is judged.
    public var holds: Bool? {
        guard let reference else { return nil }
        if case .none = tolerance { return nil }
        guard let ours else { return false }
        return (samples.isEmpty || isJudgedByMean ? [ours] : samples).allSatisfy { isWithin($0, reference) }
    }

    private func isWithin(_ ours: Double, _ reference: Double) -> Bool {
        switch tolerance {
        case .relative(let share): return abs(ours - reference) <= share * abs(reference)
        case .absolute(let span): return abs(ours - reference) <= span
        case .atMost: return ours <= reference
        case .atLeast: return ours >= reference
        case .none: return true
        }
    }

    /// The same rows of several seeds as one.
    public static func merged(_ rows: [[ComparisonRow]], judgingMeans: Bool = false) -> [ComparisonRow] {
        guard rows.count > 1, let first = rows.first else { return rows.first ?? [] }
        return first.map { row in
            var row = row
            row.isJudgedByMean = judgingMeans
            let same = rows.compactMap { seed in
                seed.first { $0.experiment == row.experiment && $0.measure == row.measure }
            }
            row.samples = same.compactMap(\.ours)
            guard row.samples.count == rows.count else {
                row.ours = nil
                row.samples = []
                row.note += (row.note.isEmpty ? "" : "; ") + "not reached with every seed"
                return row
            }
            row.ours = row.samples.reduce(0, +) / Double(row.samples.count)
            return row
        }
    }

    /// From the least to the greatest of the seeds.
    public var spread: String {
        guard let least = samples.min(), let most = samples.max() else { return "" }
        return "\(Decimals.short(least)) to \(Decimals.short(most))"
    }

    public var difference: String {
        guard let reference, let ours, reference != 0 else { return "" }
        let percent = ((ours - reference) / abs(reference) * 1000).rounded() / 10
        return "\(percent > 0 ? "+" : "")\(percent) %"
    }

    public var verdict: String { holds.map { $0 ? "yes" : "no" } ?? "" }

    public var bound: String {
        switch tolerance {
        case .relative(let share): "within \(Decimals.short(share * 100)) %"
        case .absolute(let span): "within \(Decimals.short(span))"
        case .atMost: "at most"
        case .atLeast: "at least"
        case .none: ""
        }
    }
}

/// A comparison, as a person keeps it.
public struct ComparisonTable: Sendable {
    public var title: String
    /// How the numbers came about.
    public var method: [String]
    public var rows: [ComparisonRow] = []

    public init(title: String, method: [String]) {
        self.title = title
        self.method = method
    }

    public var judged: Int { rows.filter { $0.holds != nil }.count }
    public var held: Int { rows.filter { $0.holds == true }.count }

    public static let header = [
        "EXPERIMENT", "MEASURE", "REFERENCE", "OURS", "SEEDS", "DIFFERENCE", "BOUND", "HOLDS", "NOTE",
    ]

    public var cells: [[String]] {
        rows.map { row in
            [
                row.experiment, row.measure, row.reference.map(Decimals.short) ?? "-",
                row.ours.map(Decimals.short) ?? "-", row.spread, row.difference, row.bound, row.verdict, row.note,
            ]
        }
    }

    public var markdown: String {
        var lines = ["# \(title)", ""]
        lines += method.map { "- \($0)" }
        lines += ["", "\(held) of \(judged) judged rows hold.", ""]
        lines.append("| " + Self.header.map { $0.lowercased() }.joined(separator: " | ") + " |")
        lines.append("|" + String(repeating: " --- |", count: Self.header.count))
        lines += cells.map { "| " + $0.joined(separator: " | ") + " |" }
        return lines.joined(separator: "\n") + "\n"
    }
}

/// Numbers as text without Foundation.
public enum Decimals {
    /// Four significant digits; whole numbers from 1000 on.
    public static func short(_ value: Double) -> String {
        guard value.isFinite else { return "\(value)" }
        let size = abs(value)
        switch size {
        case 1000...: return fixed(value, 0)
        case 100..<1000: return fixed(value, 1)
        case 10..<100: return fixed(value, 2)
        case 1..<10: return fixed(value, 3)
        case 0: return "0"
        default: return fixed(value, 4)
        }
    }

    /// Rounded half away from zero to so many places.
    public static func fixed(_ value: Double, _ places: Int) -> String {
        guard value.isFinite, abs(value) < 1e15 else { return "\(value)" }
        var scale = 1.0
        for _ in 0..<max(places, 0) { scale *= 10 }
        let scaled = Int64((abs(value) * scale).rounded())
        let sign = value < 0 && scaled > 0 ? "-" : ""
        guard places > 0 else { return "\(sign)\(scaled)" }
        let digits = String(scaled % Int64(scale))
        return "\(sign)\(scaled / Int64(scale))." + String(repeating: "0", count: places - digits.count) + digits
    }
}
