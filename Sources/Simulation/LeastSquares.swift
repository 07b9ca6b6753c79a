/// Fits of linear models to times, by relative error: a tenth too much counts as much at a
/// millisecond as at a second.
public enum LeastSquares {
    /// Coefficients at or above zero that minimise the sum of ((row * x - value) / value)^2; nil where
    /// the rows do not determine them. Coefficients that would be negative are held at zero.
    public static func relative(_ rows: [[Double]], _ values: [Double]) -> [Double]? {
        guard let width = rows.first?.count, width > 0, rows.count == values.count else { return nil }
        let samples = zip(rows, values).filter { $0.1 > 0 && $0.0.count == width }
        let scaled = samples.map { row, value in row.map { $0 / value } }
        var used = Array(0..<width)
        while !used.isEmpty {
            guard let solution = solve(scaled.map { row in used.map { row[$0] } }) else { return nil }
            if let worst = solution.indices.filter({ solution[$0] < 0 }).min(by: { solution[$0] < solution[$1] }) {
                used.remove(at: worst)
                continue
            }
            var result = Array(repeating: 0.0, count: width)
            for (column, value) in zip(used, solution) { result[column] = value }
            return result
        }
        return nil
    }

    /// Mean of |row * x - value| / value.
    public static func meanError(_ rows: [[Double]], _ values: [Double], _ x: [Double]) -> Double {
        let errors = zip(rows, values).filter { $0.1 > 0 }.map { row, value in
            abs(zip(row, x).reduce(0) { $0 + $1.0 * $1.1 } - value) / value
        }
        return errors.isEmpty ? 0 : errors.reduce(0, +) / Double(errors.count)
    }

    /// Normal equations of rows * x = 1, by elimination with pivoting on scaled columns.
    private static func solve(_ rows: [[Double]]) -> [Double]? {
        let width = rows.first?.count ?? 0
        let scales = (0..<width).map { column in rows.reduce(0) { max($0, abs($1[column])) } }
        guard rows.count >= width, scales.allSatisfy({ $0 > 0 }) else { return nil }
        let unit = rows.map { row in zip(row, scales).map { $0 / $1 } }
        func product(_ i: Int, _ j: Int) -> Double { unit.reduce(0.0) { $0 + $1[i] * $1[j] } }
        func total(_ i: Int) -> Double { unit.reduce(0.0) { $0 + $1[i] } }
        var matrix: [[Double]] = (0..<width).map { i in (0..<width).map { product(i, $0) } + [total(i)] }
        for pivot in 0..<width {
            guard let best = (pivot..<width).max(by: { abs(matrix[$0][pivot]) < abs(matrix[$1][pivot]) }),
                abs(matrix[best][pivot]) > 1e-10
            else { return nil }
            matrix.swapAt(pivot, best)
            for row in 0..<width where row != pivot {
                let factor = matrix[row][pivot] / matrix[pivot][pivot]
                for column in pivot...width { matrix[row][column] -= factor * matrix[pivot][column] }
            }
        }
        return (0..<width).map { matrix[$0][width] / matrix[$0][$0] / scales[$0] }
    }
}
