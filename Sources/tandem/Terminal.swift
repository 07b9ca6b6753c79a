import Foundation

/// Standard output and error as a person sees them. Every write is at once: a Swift `print` into a
/// pipe would wait for a full buffer.
enum Terminal {
    static var isInteractive: Bool { isatty(STDOUT_FILENO) == 1 }

    static func say(_ text: String) { write(text + "\n", to: STDOUT_FILENO) }

    /// Without a line feed, for streamed text.
    static func stream(_ text: String) { write(text, to: STDOUT_FILENO) }

    /// Progress: out of the way of what is piped on.
    static func note(_ text: String) { write(text + "\n", to: STDERR_FILENO) }

    static func complain(_ text: String) { write("tandem: \(text)\n", to: STDERR_FILENO) }

    private static func write(_ text: String, to descriptor: Int32) {
        var bytes = Array(text.utf8)[...]
        while !bytes.isEmpty {
            let count = bytes.withUnsafeBytes { Glibc.write(descriptor, $0.baseAddress, $0.count) }
            if count < 0 && errno == EINTR { continue }
            guard count > 0 else { return }
            bytes = bytes.dropFirst(count)
        }
    }

    /// Columns padded to their widest cell, two spaces between; columns of numbers to the right.
    static func table(_ header: [String], _ rows: [[String]]) -> String {
        let widths = header.indices.map { column in
            ([header] + rows).map { column < $0.count ? $0[column].count : 0 }.max() ?? 0
        }
        let areNumbers = header.indices.map { column in
            rows.allSatisfy { row in column >= row.count || row[column].first.map { $0.isNumber || $0 == "-" } ?? true }
        }
        func line(_ cells: [String]) -> String {
            let text = cells.indices.map { column in
                let padding = String(repeating: " ", count: max(0, widths[column] - cells[column].count))
                return areNumbers[column] ? padding + cells[column] : cells[column] + padding
            }.joined(separator: "  ")
            return String(text.reversed().drop { $0 == " " }.reversed())
        }
        return ([line(header)] + rows.map(line)).joined(separator: "\n")
    }

    static func milliseconds(_ value: Double?) -> String {
        guard let value else { return "-" }
        return value < 10 ? String(format: "%.2f ms", value) : String(format: "%.0f ms", value)
    }

    static func bytes(_ count: Double) -> String {
        switch count {
        case ..<1024: String(format: "%.0f B", count)
        case ..<1_048_576: String(format: "%.1f KiB", count / 1024)
        case ..<1_073_741_824: String(format: "%.1f MiB", count / 1_048_576)
        default: String(format: "%.2f GiB", count / 1_073_741_824)
        }
    }
}
