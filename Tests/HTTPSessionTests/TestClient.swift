import CNGHTTP2
import ServingTypes
import Testing

@testable import HTTPSession

/// What a client saw of one response.
struct SeenResponse {
    var status = ""
    var headers: [(name: String, value: String)] = []
    var body: [UInt8] = []
    /// Sizes of the pieces that arrived.
    var pieces: [Int] = []
    var isEnded = false
    var resetCode: UInt32?
}

/// nghttp2's own client, in memory.
final class TestClient {
    private var session: OpaquePointer?
    private var uploads: [Int32: [UInt8]] = [:]
    private var openUploads: Set<Int32> = []
    private(set) var responses: [Int32: SeenResponse] = [:]
    private(set) var goAwayCode: UInt32?

    /// - reads: whether the windows open again as bytes arrive.
    init(window: Int32 = 1 << 24, reads: Bool = true) throws {
        var option: OpaquePointer?
        try #require(nghttp2_option_new(&option) == 0)
        defer { nghttp2_option_del(option) }
        // Without this the library keeps a client below 100 streams until it has the server's settings.
        nghttp2_option_set_peer_max_concurrent_streams(option, 10_000)
        nghttp2_option_set_no_auto_window_update(option, reads ? 0 : 1)
        let user = Unmanaged.passUnretained(self).toOpaque()
        try #require(nghttp2_session_client_new2(&session, Self.callbacks, user, option) == 0)
        let settings = [
            nghttp2_settings_entry(
                settings_id: Int32(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE.rawValue), value: UInt32(window))
        ]
        try #require(nghttp2_submit_settings(session, 0, settings, settings.count) == 0)
        try #require(nghttp2_session_set_local_window_size(session, 0, 0, window) == 0)
    }

    deinit { nghttp2_session_del(session) }

    // MARK: requests

    /// Starts a request. A nil body ends with its head; `keepsOpen` leaves the body unfinished.
    @discardableResult
    func request(
        _ path: String = "/", method: String = "GET", headers: [(String, String)] = [], body: [UInt8]? = nil,
        keepsOpen: Bool = false
    ) -> Int32 {
        let fields =
            [(":method", method), (":scheme", "http"), (":authority", "test"), (":path", path)] + headers
        var provider = nghttp2_data_provider()
        provider.read_callback = Self.readUpload
        let hasBody = body != nil || keepsOpen
        let stream = withFields(fields) { views, count in
            hasBody
                ? nghttp2_submit_request(session, nil, views, count, &provider, nil)
                : nghttp2_submit_request(session, nil, views, count, nil, nil)
        }
        uploads[stream] = body ?? []
        if keepsOpen { openUploads.insert(stream) }
        return stream
    }

    func trailer(_ stream: Int32, _ fields: [(String, String)]) {
        _ = withFields(fields) { nghttp2_submit_trailer(session, stream, $0, $1) }
    }

    func reset(_ stream: Int32, _ code: UInt32 = 8) { nghttp2_submit_rst_stream(session, 0, stream, code) }

    func ping() { nghttp2_submit_ping(session, 0, nil) }

    func serverSetting(_ id: nghttp2_settings_id) -> UInt32 { nghttp2_session_get_remote_settings(session, id) }

    private func withFields<T>(_ fields: [(String, String)], _ body: (UnsafePointer<nghttp2_nv>?, Int) -> T) -> T {
        var bytes: [UInt8] = []
        var ranges: [(Int, Int, Int)] = []
        for (name, value) in fields {
            let start = bytes.count
            bytes += name.utf8
            let middle = bytes.count
            bytes += value.utf8
            ranges.append((start, middle, bytes.count))
        }
        return bytes.withUnsafeMutableBufferPointer { buffer in
            let views = ranges.map { start, middle, end in
                nghttp2_nv(
                    name: buffer.baseAddress.map { $0 + start }, value: buffer.baseAddress.map { $0 + middle },
                    namelen: middle - start, valuelen: end - middle, flags: 0)
            }
            return views.withUnsafeBufferPointer { body($0.baseAddress, $0.count) }
        }
    }

    // MARK: bytes

    func bytesToSend() -> [UInt8] {
        var bytes: [UInt8] = []
        var frame: UnsafePointer<UInt8>?
        while true {
            let count = nghttp2_session_mem_send(session, &frame)
            guard count > 0, let frame else { return bytes }
            bytes += UnsafeBufferPointer(start: frame, count: count)
        }
    }

    func receive(_ bytes: [UInt8]) { _ = nghttp2_session_mem_recv(session, bytes, bytes.count) }

    private static let readUpload: nghttp2_data_source_read_callback = { _, stream, target, room, flags, _, user in
        guard let client = TestClient.from(user), let target, let flags else { return -902 }
        let upload = client.uploads[stream] ?? []
        let count = min(room, upload.count)
        for place in 0..<count { target[place] = upload[place] }
        client.uploads[stream] = Array(upload[count...])
        if upload.count == count {
            if client.openUploads.contains(stream) {
                return count == 0 ? Int(NGHTTP2_ERR_DEFERRED.rawValue) : count
            }
            flags.pointee |= UInt32(NGHTTP2_DATA_FLAG_EOF.rawValue)
        }
        return count
    }

    private static func from(_ user: UnsafeMutableRawPointer?) -> TestClient? {
        user.map { Unmanaged<TestClient>.fromOpaque($0).takeUnretainedValue() }
    }

    private nonisolated(unsafe) static let callbacks: OpaquePointer? = {
        var callbacks: OpaquePointer?
        nghttp2_session_callbacks_new(&callbacks)
        nghttp2_session_callbacks_set_on_header_callback(callbacks) {
            _, frame, name, nameCount, value, valueCount, _, user in
            guard let client = TestClient.from(user), let stream = frame?.pointee.hd.stream_id else { return 0 }
            let name = String(decoding: UnsafeBufferPointer(start: name, count: nameCount), as: UTF8.self)
            let value = String(decoding: UnsafeBufferPointer(start: value, count: valueCount), as: UTF8.self)
            if name == ":status" {
                client.responses[stream, default: SeenResponse()].status = value
            } else {
                client.responses[stream, default: SeenResponse()].headers.append((name, value))
            }
            return 0
        }
        nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks) { _, _, stream, bytes, count, user in
            TestClient.from(user)?.responses[stream, default: SeenResponse()].body += UnsafeBufferPointer(
                start: bytes, count: count)
            return 0
        }
        nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks) { _, frame, user in
            guard let client = TestClient.from(user), let frame = frame?.pointee else { return 0 }
            let stream = frame.hd.stream_id
            switch UInt32(frame.hd.type) {
            case NGHTTP2_GOAWAY.rawValue: client.goAwayCode = frame.goaway.error_code
            case NGHTTP2_RST_STREAM.rawValue:
                client.responses[stream, default: SeenResponse()].resetCode = frame.rst_stream.error_code
            case NGHTTP2_DATA.rawValue:
                if frame.hd.length > 0 { client.responses[stream]?.pieces.append(frame.hd.length) }
            default: break
            }
            if stream != 0, frame.hd.flags & UInt8(NGHTTP2_FLAG_END_STREAM.rawValue) != 0 {
                client.responses[stream, default: SeenResponse()].isEnded = true
            }
            return 0
        }
        return callbacks
    }()
}

/// A client and a server session whose bytes meet in memory.
final class Pair {
    let client: TestClient
    let server: HTTP2ServerSession
    private(set) var events: [HTTP2Event] = []
    var now = Instant.zero

    init(_ limits: HTTP2Limits = HTTP2Limits(), window: Int32 = 1 << 24, reads: Bool = true) throws {
        client = try TestClient(window: window, reads: reads)
        server = try HTTP2ServerSession(limits: limits)
    }

    /// Carries bytes both ways until neither end has any, and returns the new events.
    @discardableResult
    func exchange() -> [HTTP2Event] {
        var new: [HTTP2Event] = []
        while true {
            let up = client.bytesToSend()
            new += server.receive(up, at: now)
            let down = server.bytesToSend(upTo: 1 << 20)
            client.receive(down)
            new += server.takeEvents()
            if up.isEmpty, down.isEmpty { break }
        }
        events += new
        return new
    }
}

extension HTTP2ServerSession {
    func receive(_ bytes: [UInt8], at now: Instant = .zero) -> [HTTP2Event] {
        bytes.withUnsafeBytes { receive($0, at: now) }
    }

    func drain() -> [UInt8] {
        var all: [UInt8] = []
        while true {
            let bytes = bytesToSend(upTo: 65_536)
            if bytes.isEmpty { return all }
            all += bytes
        }
    }
}

/// Events as text, pieces of one body joined, so that two runs can be compared.
func summary(_ events: [HTTP2Event]) -> [String] {
    var lines: [String] = []
    var body: (stream: Int32, bytes: [UInt8])?
    func flush(_ isEnd: Bool) {
        if let held = body, isEnd || !held.bytes.isEmpty {
            lines.append(
                "data \(held.stream) \(held.bytes.count) \(held.bytes.reduce(0) { $0 &* 31 &+ Int($1) })"
                    + (isEnd ? " end" : "")
            )
        }
        body = nil
    }
    for event in events {
        if case .data(let stream, let bytes, let isEnd) = event {
            if let held = body, held.stream != stream { flush(false) }
            body = (stream, (body?.bytes ?? []) + bytes)
            if isEnd { flush(true) }
            continue
        }
        flush(false)
        switch event {
        case .request(let stream, let head, let isEnd):
            let fields = head.headers.map { "\($0.name)=\($0.value)" }.joined(separator: ",")
            lines.append(
                "request \(stream) \(head.method) \(head.authority)\(head.path) [\(fields)]\(isEnd ? " end" : "")")
        case .data: break
        case .reset(let stream, let code): lines.append("reset \(stream) \(code)")
        case .closed(let stream): lines.append("closed \(stream)")
        case .streamWritable(let stream): lines.append("writable \(stream)")
        case .goAway(let stream, let code): lines.append("goaway \(stream) \(code)")
        case .connectionError(let reason): lines.append("error \(reason)")
        }
    }
    flush(false)
    return lines
}

/// Frames made by hand, for clients that no library would be.
enum Raw {
    static let preface = [UInt8]("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".utf8)
    /// GET / of authority x, in HPACK's static table.
    static let get: [UInt8] = [0x82, 0x86, 0x84, 0x01, 0x01, 0x78]
    static let post: [UInt8] = [0x83, 0x86, 0x84, 0x01, 0x01, 0x78]

    static func frame(_ type: nghttp2_frame_type, flags: UInt8 = 0, stream: UInt32 = 0, _ payload: [UInt8] = [])
        -> [UInt8]
    {
        let length = payload.count
        return [
            UInt8(length >> 16 & 0xFF), UInt8(length >> 8 & 0xFF), UInt8(length & 0xFF), UInt8(type.rawValue), flags,
            UInt8(stream >> 24 & 0x7F), UInt8(stream >> 16 & 0xFF), UInt8(stream >> 8 & 0xFF), UInt8(stream & 0xFF),
        ] + payload
    }

    static func settings(entries: Int = 0) -> [UInt8] {
        frame(NGHTTP2_SETTINGS, (0..<entries).flatMap { _ in [0, 4, 0, 1, 0, 0] as [UInt8] })
    }

    static func ping() -> [UInt8] { frame(NGHTTP2_PING, [UInt8](repeating: 7, count: 8)) }

    static func headers(_ stream: UInt32, _ block: [UInt8] = get, flags: UInt8 = 0x5) -> [UInt8] {
        frame(NGHTTP2_HEADERS, flags: flags, stream: stream, block)
    }

    static func windowUpdate(_ stream: UInt32, _ increment: UInt8) -> [UInt8] {
        frame(NGHTTP2_WINDOW_UPDATE, stream: stream, [0, 0, 0, increment])
    }

    /// A window beyond 2^31 - 1: an error of the stream, which the server must reset.
    static func windowOverflow(_ stream: UInt32) -> [UInt8] {
        frame(NGHTTP2_WINDOW_UPDATE, stream: stream, [0x7F, 0xFF, 0xFF, 0xFF])
    }

    static func reset(_ stream: UInt32) -> [UInt8] { frame(NGHTTP2_RST_STREAM, stream: stream, [0, 0, 0, 8]) }

    static func opening(entries: Int = 0) -> [UInt8] { preface + settings(entries: entries) }
}

/// A generator with a seed that a failure message can name.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
