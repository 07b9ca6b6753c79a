import AsyncHTTPClient
import BoundedJSON
import Foundation
import NIOCore

/// A plain HTTP client for tests: JSON in, JSON or a stream out.
struct TestClient: Sendable {
    let port: UInt16

    struct Completion: Equatable, Sendable {
        var job: String
        var text: String
        var finishReason: String?
        /// Sum of pieces; a stream that repeats or loses one differs in text.
        var pieces: Int
    }

    func get(_ path: String) async throws -> JSONValue { try await send(path, "GET", nil).json }

    func delete(_ path: String) async throws -> JSONValue { try await send(path, "DELETE", nil).json }

    func post(_ path: String, _ body: JSONValue, headers: [(String, String)] = []) async throws -> (
        status: Int, json: JSONValue
    ) {
        let reply = try await send(path, "POST", body, headers)
        return (reply.status, reply.json)
    }

    private func send(_ path: String, _ method: String, _ body: JSONValue?, _ headers: [(String, String)] = [])
        async throws -> (status: Int, json: JSONValue)
    {
        let response = try await HTTPClient.shared.execute(
            request(path, method, body, headers), timeout: .seconds(120))
        let bytes = try await response.body.collect(upTo: 16 << 20)
        return (Int(response.status.code), try JSON.parse([UInt8](bytes.readableBytesView)))
    }

    private func request(_ path: String, _ method: String, _ body: JSONValue?, _ headers: [(String, String)])
        -> HTTPClientRequest
    {
        var request = HTTPClientRequest(url: "http://127.0.0.1:\(port)\(path)")
        request.method = .init(rawValue: method)
        for (name, value) in headers { request.headers.add(name: name, value: value) }
        if let body {
            request.headers.add(name: "content-type", value: "application/json")
            request.body = .bytes(ByteBuffer(string: JSON.text(body)))
        }
        return request
    }

    /// Streams a completion to its end. `onPiece` sees the number of pieces so far; the client leaves
    /// where it throws.
    func stream(
        _ prompt: String, maxTokens: Int, seed: Int, tenant: String = "default", temperature: Double = 0.9,
        more: [(String, JSONValue)] = [], headers: [(String, String)] = [],
        onPiece: (@Sendable (Int) async throws -> Void)? = nil, onUsage: (@Sendable (Int) -> Void)? = nil
    ) async throws -> Completion {
        let body = JSONObject(
            [
                ("prompt", .string(prompt)), ("max_tokens", .integer(Int64(maxTokens))),
                ("seed", .integer(Int64(seed))), ("temperature", .number(temperature)), ("stream", .bool(true)),
                ("ignore_eos", .bool(true)),
            ] + more)
        return try await follow(
            request("/v1/completions", "POST", .object(body), headers + [("x-tandem-tenant", tenant)]), onPiece,
            onUsage)
    }

    /// Follows a job from the start of its output.
    func attach(_ job: String) async throws -> Completion {
        try await follow(request("/v1/jobs/\(job)/events?offset=0", "GET", nil, []), nil)
    }

    private func follow(
        _ request: HTTPClientRequest, _ onPiece: (@Sendable (Int) async throws -> Void)?,
        _ onUsage: (@Sendable (Int) -> Void)? = nil
    ) async throws -> Completion {
        let response = try await HTTPClient.shared.execute(request, timeout: .seconds(180))
        guard response.status.code == 200 else {
            let body = try await response.body.collect(upTo: 1 << 20)
            throw ServerRefusal(description: "status \(response.status.code): \(String(buffer: body))")
        }
        var completion = Completion(
            job: response.headers.first(name: "x-tandem-job-id") ?? "", text: "", finishReason: nil, pieces: 0)
        var pending: [UInt8] = []
        for try await chunk in response.body {
            pending += chunk.readableBytesView
            while let end = pending.firstIndex(of: UInt8(ascii: "\n")) {
                let line = String(decoding: pending[..<end], as: UTF8.self)
                pending.removeSubrange(...end)
                guard line.hasPrefix("data: ") else { continue }
                if line == "data: [DONE]" { return completion }
                let usage = try Self.add(line.dropFirst(6), to: &completion)
                if let usage { onUsage?(usage) }
                try await onPiece?(completion.pieces)
            }
        }
        throw TestFailure("the stream of job \(completion.job) ended without [DONE] after \(completion.pieces) pieces")
    }

    /// The output tokens that the event tells of, where it does.
    private static func add(_ data: Substring, to completion: inout Completion) throws -> Int? {
        let event = try JSON.parse(Array(data.utf8))
        if let message = event["error"]?["message"]?.stringValue {
            throw ServerRefusal(description: "in-stream error: \(message)")
        }
        let usage = event["usage"]?["completion_tokens"]?.intValue
        guard let choice = event["choices"]?.arrayValue?.first else { return usage }
        completion.text += choice["text"]?.stringValue ?? choice["delta"]?["content"]?.stringValue ?? ""
        completion.finishReason = choice["finish_reason"]?.stringValue ?? completion.finishReason
        completion.pieces += 1
        return usage
    }
}

/// The server said no, as opposed to a connection that broke.
struct ServerRefusal: Error, CustomStringConvertible {
    var description: String
}

/// Prompts long enough to fill many blocks, all different.
enum Prompts {
    private static let words = [
        "king", "forest", "little", "girl", "river", "golden", "mother", "house", "went", "looked", "garden", "said",
        "the", "and", "a", "of", "into", "with", "night", "morning", "old", "bird", "song", "away",
    ]

    /// About `words` words; the same for the same seed.
    static func text(words count: Int, seed: UInt64) -> String {
        var state = seed &* 0x9E37_79B9_7F4A_7C15 | 1
        return (0..<count).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return words[Int(state >> 33) % words.count]
        }.joined(separator: " ")
    }
}
