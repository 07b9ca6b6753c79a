import BoundedJSON
import Foundation
import Logging

/// One JSON object per line on standard error where that is no terminal, else one short line for a
/// person. Prompts and outputs are never logged (reliability.md §4.2).
public enum LogSetup {
    /// Call once, first thing in a program.
    public static func bootstrap(program: String, level: Logger.Level) {
        let forPeople = isatty(STDERR_FILENO) == 1
        LoggingSystem.bootstrap { label in
            LineLogHandler(label: label, program: program, logLevel: level, forPeople: forPeople)
        }
    }
}

struct LineLogHandler: LogHandler {
    var label: String
    var program: String
    var logLevel: Logger.Level
    var forPeople: Bool
    var metadata: Logger.Metadata = [:]

    subscript(metadataKey key: String) -> Logger.Metadata.Value? {
        get { metadata[key] }
        set { metadata[key] = newValue }
    }

    func log(event: LogEvent) {
        let all = metadata.merging(event.metadata ?? [:]) { _, new in new }
        let fields = all.sorted { $0.key < $1.key }.map { (key: $0.key, value: "\($0.value)") }
        let line =
            forPeople
            ? personLine(event.level, "\(event.message)", fields)
            : jsonLine(event.level, "\(event.message)", fields)
        write(line)
    }

    private func personLine(_ level: Logger.Level, _ message: String, _ fields: [(key: String, value: String)])
        -> String
    {
        let mark = level >= .warning ? "\(level): " : ""
        let rest = fields.map { " \($0.key)=\($0.value)" }.joined()
        return "\(program): \(mark)\(message)\(rest)\n"
    }

    private func jsonLine(_ level: Logger.Level, _ message: String, _ fields: [(key: String, value: String)]) -> String
    {
        var members: [(String, JSONValue)] = [
            ("time", .string(Date().ISO8601Format(Date.ISO8601FormatStyle(includingFractionalSeconds: true)))),
            ("level", .string(level.rawValue)), ("program", .string(program)), ("message", .string(message)),
        ]
        members += fields.map { ($0.key, .string($0.value)) }
        return JSON.text(.object(JSONObject(members))) + "\n"
    }

    /// One write per line, so that lines of several threads do not mix.
    private func write(_ line: String) {
        var bytes = Array(line.utf8)
        bytes.withUnsafeMutableBytes { buffer in
            _ = Glibc.write(STDERR_FILENO, buffer.baseAddress, buffer.count)
        }
    }
}
