import BoundedJSON
import Foundation
import ServingTypes
import Simulation

/// A cost model as a file: what `tandem profile` writes and `tandem simulate --profile FILE` reads.
/// Times in milliseconds, coefficients in the order of `CostProfile.Line`.
enum ProfileFile {
    static func read(_ path: String) throws -> CostProfile {
        guard let data = FileManager.default.contents(atPath: path), data.count <= 1 << 20 else {
            throw ServingError(.notFound, "--profile: \(path) cannot be read", field: "profile")
        }
        guard let json = try? JSON.parse(Array(data)), let profile = profile(json) else {
            throw ServingError(.malformed, "--profile: \(path) is no cost profile", field: "profile")
        }
        return profile
    }

    /// A name that ships, or a file.
    static func named(_ text: String) throws -> CostProfile {
        if let profile = CostProfile(named: text) { return profile }
        guard text.contains("/") || text.hasSuffix(".json") else {
            let names = CostProfile.all.map(\.name).joined(separator: ", ")
            throw ServingError(
                .invalidValue, "--profile: \(text) is no file and none of \(names)", field: "profile")
        }
        return try read(text)
    }

    private static func profile(_ json: JSONValue) -> CostProfile? {
        guard let name = json["name"]?.stringValue, let prefill = line(json["prefill"]),
            let decode = line(json["decode"]), let bytes = count(json["bytes_per_token"]),
            let pool = count(json["pool_tokens"]), let batch = count(json["batch_jobs_max"]),
            let steps = count(json["step_tokens_max"])
        else { return nil }
        var profile = CostProfile(
            name: name, prefill: prefill, decode: decode, decodeLarge: line(json["decode_large"]),
            largeBatch: count(json["large_batch"]) ?? 95, factor: positive(json["factor"]) ?? 1, bytesPerToken: bytes,
            poolTokens: pool, batchJobsMax: batch, stepTokensMax: steps,
            linkBytesPerSecond: positive(json["link_bytes_per_second"]) ?? 25e9,
            linkLatency: TimeSpan(seconds: (positive(json["link_latency_ms"]) ?? 0.05) / 1000))
        profile.sharesIterations = json["shares_iterations"]?.boolValue ?? true
        profile.prefillInterference = positive(json["prefill_interference"]) ?? 0
        profile.decodeInterference = positive(json["decode_interference"]) ?? 0
        profile.pageLatency = positive(json["page_latency_ms"]).map { TimeSpan(seconds: $0 / 1000) }
        profile.chunkTokensMax = count(json["chunk_tokens_max"])
        profile.prefillVariation = quantiles(json["prefill_variation"])
        profile.decodeVariation = quantiles(json["decode_variation"])
        profile.paceVariation = quantiles(json["pace_variation"])
        profile.prefillShape = knots(json["prefill_shape"])
        profile.decodeShape = knots(json["decode_shape"])
        profile.mixedFactor = positive(json["mixed_factor"]) ?? 1
        profile.threads = count(json["threads"]) ?? 1
        profile.hostSecondsPerToken = (positive(json["host_us_per_token"]) ?? 0) / 1e6
        profile.processors = count(json["processors"]) ?? 0
        profile.frontDoorSeconds = (positive(json["front_door_ms"]) ?? 0) / 1000
        return profile
    }

    private static func line(_ json: JSONValue?) -> CostProfile.Line? {
        guard let values = json?.arrayValue?.compactMap(\.doubleValue), values.count == 3,
            values.allSatisfy({ $0.isFinite && $0 >= 0 && $0 < 1e9 })
        else { return nil }
        return CostProfile.Line(values[0], values[1], values[2])
    }

    private static func knots(_ json: JSONValue?) -> [CostProfile.Knot] {
        let pairs = (json?.arrayValue ?? []).compactMap { pair -> CostProfile.Knot? in
            guard let values = pair.arrayValue?.compactMap(positive), values.count == 2 else { return nil }
            return CostProfile.Knot(at: values[0], factor: values[1])
        }
        return pairs.count <= 1024 && zip(pairs, pairs.dropFirst()).allSatisfy { $0.at < $1.at } ? pairs : []
    }

    private static func quantiles(_ json: JSONValue?) -> [Double] {
        let values = (json?.arrayValue ?? []).compactMap(positive)
        return values.count <= 1024 && zip(values, values.dropFirst()).allSatisfy { $0 <= $1 } ? values : []
    }

    private static func count(_ json: JSONValue?) -> Int? {
        json?.intValue.flatMap { (1...1_000_000_000).contains($0) ? $0 : nil }
    }

    private static func positive(_ json: JSONValue?) -> Double? {
        json?.doubleValue.flatMap { $0.isFinite && $0 >= 0 && $0 < 1e15 ? $0 : nil }
    }

    static func json(_ profile: CostProfile, method: [String]) -> JSONValue {
        func line(_ line: CostProfile.Line) -> JSONValue {
            .array([.number(line.base), .number(line.linear), .number(line.other)])
        }
        var members: [(String, JSONValue)] = [
            ("name", .string(profile.name)), ("method", .array(method.map { .string($0) })),
            ("prefill", line(profile.prefill)), ("decode", line(profile.decode)),
            ("decode_large", line(profile.decodeLarge)), ("large_batch", .integer(Int64(profile.largeBatch))),
            ("factor", .number(profile.factor)), ("shares_iterations", .bool(profile.sharesIterations)),
            ("prefill_interference", .number(profile.prefillInterference)),
            ("decode_interference", .number(profile.decodeInterference)),
            ("mixed_factor", .number(profile.mixedFactor)), ("threads", .integer(Int64(profile.threads))),
            ("bytes_per_token", .integer(Int64(profile.bytesPerToken))),
            ("pool_tokens", .integer(Int64(profile.poolTokens))),
            ("batch_jobs_max", .integer(Int64(profile.batchJobsMax))),
            ("step_tokens_max", .integer(Int64(profile.stepTokensMax))),
            ("link_bytes_per_second", .number(profile.linkBytesPerSecond)),
            ("link_latency_ms", .number(profile.linkLatency.seconds * 1000)),
            ("front_door_ms", .number(profile.frontDoorSeconds * 1000)),
        ]
        for (key, quantiles) in [
            ("prefill_variation", profile.prefillVariation), ("decode_variation", profile.decodeVariation),
            ("pace_variation", profile.paceVariation),
        ] where !quantiles.isEmpty {
            members.append((key, .array(quantiles.map { .number(($0 * 1e5).rounded() / 1e5) })))
        }
        for (key, knots) in [("prefill_shape", profile.prefillShape), ("decode_shape", profile.decodeShape)]
        where !knots.isEmpty {
            members.append((key, .array(knots.map { .array([.number($0.at), .number($0.factor)]) })))
        }
        if profile.processors > 0 {
            members.append(("processors", .integer(Int64(profile.processors))))
            members.append(("host_us_per_token", .number(profile.hostSecondsPerToken * 1e6)))
        }
        if let latency = profile.pageLatency { members.append(("page_latency_ms", .number(latency.seconds * 1000))) }
        if let chunk = profile.chunkTokensMax { members.append(("chunk_tokens_max", .integer(Int64(chunk)))) }
        return .object(JSONObject(members))
    }
}
