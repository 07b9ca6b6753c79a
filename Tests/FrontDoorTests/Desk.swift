import BoundedJSON
import ChatTemplate
import NIOCore
import NIOEmbedded
import ServingTypes
import Testing
import Tokenization

@testable import FrontDoor

/// A model of 256 byte tokens, an end token and one word.
enum TinyModel {
    static let end = TokenID(256)
    static let word = TokenID(257)

    static func make(contextTokensMax: Int = 200) throws -> ServedModel {
        var model = try shared.get()
        model.contextTokensMax = contextTokensMax
        return model
    }

    /// Made once: every test wants one.
    private static let shared = Result { try build() }

    private static func build() throws -> ServedModel {
        var model = TokenizerModel()
        for byte in 0..<256 {
            model.vocabulary.append(TokenizerModel.Entry(text: spelling(UInt8(byte)), id: UInt32(byte)))
        }
        model.vocabulary.append(TokenizerModel.Entry(text: "tandem", id: word.value))
        var end = TokenizerModel.AddedToken(id: end.value, content: "<|end|>")
        end.special = true
        model.addedTokens = [end]
        model.preTokenizers = [.gpt2]
        var served = ServedModel(
            name: "tiny", contextTokensMax: 200, vocabularySize: 258, tokenizer: try Tokenizer(model),
            chatTemplate: try ChatTemplate(source: template), endTokens: [Self.end])
        served.aliases = ["org/tiny"]
        served.eosToken = "<|end|>"
        return served
    }

    static let template =
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
        + "{% if tools %}tools {{ tools | length }}\n{% endif %}{% if add_generation_prompt %}assistant:{% endif %}"

    /// GPT-2's spelling of a byte.
    private static func spelling(_ byte: UInt8) -> String {
        let printable: [ClosedRange<UInt8>] = [33...126, 161...172, 174...255]
        if printable.contains(where: { $0.contains(byte) }) { return String(UnicodeScalar(byte)) }
        let rank = (0..<byte).filter { other in !printable.contains { $0.contains(other) } }.count
        return UnicodeScalar(256 + rank).map { String($0) } ?? ""
    }
}

/// A front door on an embedded loop with one connection: bytes in, bytes out, time by hand.
final class Desk {
    let loop = EmbeddedEventLoop()
    let jobs = FakeJobs()
    let door: FrontDoor
    private(set) var channel: EmbeddedChannel

    init(
        contextTokensMax: Int = 200, metricsPage: String = "",
        _ change: (inout FrontDoorConfiguration) -> Void = { _ in }
    ) throws {
        var configuration = FrontDoorConfiguration(
            model: try TinyModel.make(contextTokensMax: contextTokensMax), version: "0.0")
        change(&configuration)
        door = FrontDoor(on: loop, configuration: configuration, service: jobs) { metricsPage }
        channel = try Self.connect(door, loop)
    }

    private static func connect(_ door: FrontDoor, _ loop: EmbeddedEventLoop) throws -> EmbeddedChannel {
        let channel = EmbeddedChannel(loop: loop)
        try channel.pipeline.syncOperations.addHandler(ProtocolSniffer(door: door))
        try channel.connect(to: SocketAddress(ipAddress: "127.0.0.1", port: 1)).wait()
        return channel
    }

    /// Opens another connection in the first one's place.
    func reconnect() throws { channel = try Self.connect(door, loop) }

    func send(_ text: String) throws {
        try send(bytes: Array(text.utf8))
    }

    func send(bytes: [UInt8]) throws {
        try channel.writeInbound(ByteBuffer(bytes: bytes))
        loop.run()
    }

    /// Bytes that the socket gives in several reads before the loop comes to anything else.
    func sendInOneTurn(_ text: String, cutAt length: Int) throws {
        var rest = Array(text.utf8)[...]
        while !rest.isEmpty {
            channel.pipeline.fireChannelRead(ByteBuffer(bytes: rest.prefix(length)))
            rest = rest.dropFirst(length)
        }
        channel.pipeline.fireChannelReadComplete()
        loop.run()
    }

    func post(_ path: String, _ body: String, headers: [String] = []) throws {
        let fields = ["host: x", "content-type: application/json", "content-length: \(body.utf8.count)"] + headers
        try send("POST \(path) HTTP/1.1\r\n\(fields.joined(separator: "\r\n"))\r\n\r\n\(body)")
    }

    func get(_ path: String, headers: [String] = [], method: String = "GET") throws {
        let fields = (["host: x"] + headers).joined(separator: "\r\n")
        try send("\(method) \(path) HTTP/1.1\r\n\(fields)\r\n\r\n")
    }

    /// Everything written since the last call.
    func output() throws -> String {
        loop.run()
        return try flushed()
    }

    /// What has been given to the socket in the turn of the loop that is under way.
    func flushed() throws -> String { String(decoding: try flushedBytes(), as: UTF8.self) }

    func flushedBytes() throws -> [UInt8] {
        var bytes: [UInt8] = []
        while let part = try channel.readOutbound(as: IOData.self) {
            guard case .byteBuffer(let buffer) = part else { continue }
            bytes += buffer.readableBytesView
        }
        return bytes
    }

    func answer() throws -> Answer { try Answer(output()) }
}

/// One HTTP/1.1 response, read strictly.
struct Answer {
    var status: Int
    var headers: [(name: String, value: String)]
    var body: String
    /// What follows the response.
    var rest: String
    /// A chunked body that has its last chunk, or any other body.
    var isWhole: Bool

    struct NoResponse: Error { var text: String }

    init(_ text: String) throws {
        let bytes = Array(text.utf8)
        guard let end = Self.find(Array("\r\n\r\n".utf8), in: bytes, from: 0) else { throw NoResponse(text: text) }
        let lines = String(decoding: bytes[..<end], as: UTF8.self).components("\r\n")
        let words = lines[0].split(separator: " ")
        guard words.count >= 2, let status = Int(words[1]) else { throw NoResponse(text: text) }
        self.status = status
        headers = lines.dropFirst().compactMap { line in
            guard let colon = line.firstIndex(of: ":") else { return nil }
            return (line[..<colon].lowercased(), trimmed(line[line.index(after: colon)...]))
        }
        var at = end + 4
        var content: [UInt8] = []
        isWhole = true
        if headers.contains(where: { $0.name == "transfer-encoding" && $0.value == "chunked" }) {
            isWhole = false
            while let lineEnd = Self.find([13, 10], in: bytes, from: at),
                let size = Int(String(decoding: bytes[at..<lineEnd], as: UTF8.self), radix: 16)
            {
                content += bytes[lineEnd + 2..<lineEnd + 2 + size]
                at = lineEnd + 2 + size + 2
                if size == 0 {
                    isWhole = true
                    break
                }
            }
        } else if let length = headers.first(where: { $0.name == "content-length" }).flatMap({ Int($0.value) }) {
            let stop = min(bytes.count, at + length)
            content = Array(bytes[at..<stop])
            at = stop
        }
        body = String(decoding: content, as: UTF8.self)
        rest = String(decoding: bytes[min(at, bytes.count)...], as: UTF8.self)
    }

    subscript(name: String) -> String? { headers.first { $0.name == name }?.value }

    var json: JSONValue { (try? JSON.parse(Array(body.utf8))) ?? .null }
    var error: JSONValue? { json["error"] }

    /// The data of each event.
    var events: [String] {
        body.components("\n\n").filter { $0.hasPrefix("data: ") }.map { String($0.dropFirst(6)) }
    }

    private static func find(_ needle: [UInt8], in bytes: [UInt8], from: Int) -> Int? {
        guard bytes.count >= needle.count, from <= bytes.count - needle.count else { return nil }
        return (from...bytes.count - needle.count).first { Array(bytes[$0..<$0 + needle.count]) == needle }
    }
}

extension String {
    /// Split at every occurrence of a separator.
    func components(_ separator: String) -> [String] {
        var parts: [String] = []
        var current: [UInt8] = []
        let bytes = Array(utf8)
        let mark = Array(separator.utf8)
        var at = 0
        while at < bytes.count {
            if bytes[at...].starts(with: mark) {
                parts.append(String(decoding: current, as: UTF8.self))
                current = []
                at += mark.count
            } else {
                current.append(bytes[at])
                at += 1
            }
        }
        parts.append(String(decoding: current, as: UTF8.self))
        return parts
    }
}
