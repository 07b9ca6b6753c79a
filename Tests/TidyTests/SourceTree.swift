import Foundation

/// The repository's files as text.
enum SourceTree {
    struct File {
        var path: String
        var lines: [(Int, String)]

        /// Lines without comments and string-only lines.
        var codeLines: [(Int, String)] {
            lines.filter { !$0.1.trimmingCharacters(in: .whitespaces).hasPrefix("//") }
        }

        var imports: [String] {
            lines.compactMap { _, line in
                let words = line.split(separator: " ").map(String.init)
                guard let at = words.firstIndex(of: "import"), at <= 2, at + 1 < words.count else { return nil }
                guard words[..<at].allSatisfy({ $0.hasPrefix("@") || $0 == "public" || $0 == "internal" }) else {
                    return nil
                }
                return words.last?.split(separator: ".").first.map(String.init)
            }
        }
    }

    static let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .deletingLastPathComponent()

    static func swiftFiles(in folder: String) -> [File] { files(in: folder) { $0 == "swift" } }

    static func textFiles(in folder: String) -> [File] {
        files(in: folder) { ["swift", "sh", "py", "yaml", "md", "c", "h", "proto", "json"].contains($0) }
    }

    private static func files(in folder: String, where wanted: (String) -> Bool) -> [File] {
        let base = root.appendingPathComponent(folder)
        let names = (FileManager.default.enumerator(atPath: base.path)?.allObjects as? [String] ?? []).sorted()
        return names.compactMap { name in
            let url = base.appendingPathComponent(name)
            guard wanted(url.pathExtension), !name.contains(".build/"),
                let text = try? String(contentsOf: url, encoding: .utf8)
            else { return nil }
            let lines = text.split(separator: "\n", omittingEmptySubsequences: false).map(String.init)
            return File(path: "\(folder)/\(name)", lines: Array(zip(1..., lines)))
        }
    }
}
