import BoundedJSON
import Foundation
import ServingTypes
import Simulation

/// Traces of two kinds: `arrival_s`, `tenant`, `input_tokens`, `output_tokens`; and Mooncake's
/// `timestamp` (milliseconds), `input_length`, `output_length`, `hash_ids` (of 512 tokens each).
enum TraceFile {
    static let tokensMax = 10_000_000

    static func read(_ path: String) throws -> [TraceEntry] {
        guard let data = FileManager.default.contents(atPath: path) else {
            throw ServingError(.notFound, "--trace-file: \(path) cannot be read", field: "trace-file")
        }
        var entries: [TraceEntry] = []
        for (number, line) in data.split(separator: UInt8(ascii: "\n")).enumerated() {
            guard let json = try? JSON.parse(Array(line)), let entry = entry(json) else {
                throw ServingError(
                    .malformed, "--trace-file: line \(number + 1) of \(path) is no request", field: "trace-file")
            }
            entries.append(entry)
        }
        return entries.enumerated().sorted {
            ($0.element.arrivalSeconds, $0.offset) < ($1.element.arrivalSeconds, $1.offset)
        }.map(\.element)
    }

    private static func entry(_ json: JSONValue) -> TraceEntry? {
        guard let input = count(json["input_tokens"] ?? json["input_length"]),
            let output = count(json["output_tokens"] ?? json["output_length"]),
            let arrival = json["arrival_s"]?.doubleValue ?? json["timestamp"]?.doubleValue.map({ $0 / 1000 }),
            arrival.isFinite, arrival >= 0
        else { return nil }
        let stretches = (json["hash_ids"]?.arrayValue ?? []).compactMap {
            $0.intValue.map { UInt64(bitPattern: Int64($0)) }
        }
        return TraceEntry(
            arrivalSeconds: arrival, tenant: tenant(json["tenant"]), inputTokens: input, outputTokens: output,
            stretches: stretches)
    }

    private static func count(_ value: JSONValue?) -> Int? {
        guard let count = value?.intValue, (0...tokensMax).contains(count) else { return nil }
        return max(count, 1)
    }

    private static func tenant(_ value: JSONValue?) -> String {
        if let number = value?.intValue {
            let digits = String(number)
            return "tenant-" + String(repeating: "0", count: max(0, 3 - digits.count)) + digits
        }
        return value?.stringValue ?? "default"
    }
}
