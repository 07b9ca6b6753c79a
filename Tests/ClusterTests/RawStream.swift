import BoundedJSON
import Foundation
import Synchronization

/// A completion streamed over a plain socket, of which every byte that the kernel has is read: a client
/// library drops what it has and nobody has asked for yet when a connection breaks.
///
/// `@unchecked Sendable`: what the reading thread writes is in `state`.
final class RawStream: @unchecked Sendable {
    private struct State {
        var bytes: [UInt8] = []
        var tokens = 0
        var scanned = 0
        var isOver = false
    }

    private let state = Mutex(State())
    private let socket: Int32

    /// Connects and asks for `count` tokens; each event tells how many there are so far.
    init(port: UInt16, prompt: String, maxTokens count: Int, seed: Int, tenant: String) throws {
        socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = inet_addr("127.0.0.1")
        let connected = withUnsafePointer(to: &address) { [socket] in
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
                connect(socket, $0, socklen_t(MemoryLayout<sockaddr_in>.size))
            }
        }
        guard connected == 0 else {
            close(socket)
            throw TestFailure("port \(port) takes no connection: \(String(cString: strerror(errno)))")
        }
        let body = JSON.text([
            "prompt": .string(prompt), "max_tokens": .integer(Int64(count)), "seed": .integer(Int64(seed)),
            "temperature": .number(0.9), "stream": true, "ignore_eos": true,
            "stream_options": ["include_usage": true, "continuous_usage_stats": true],
        ])
        let request =
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nx-tandem-tenant: \(tenant)\r\n"
            + "content-length: \(body.utf8.count)\r\n\r\n\(body)"
        let sent = Array(request.utf8).withUnsafeBytes {
            send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL))
        }
        guard sent == request.utf8.count else {
            close(socket)
            throw TestFailure("the request could not be sent")
        }
        Thread.detachNewThread { self.read() }
    }

    private func read() {
        var buffer = [UInt8](repeating: 0, count: 64 << 10)
        while true {
            let count = buffer.withUnsafeMutableBytes { recv(socket, $0.baseAddress, $0.count, 0) }
            if count < 0, errno == EINTR { continue }
            guard count > 0 else { break }
            state.withLock { state in
                state.bytes += buffer[..<count]
                Self.scan(&state)
            }
        }
        close(socket)
        state.withLock { $0.isOver = true }
    }

    /// The greatest number behind `"completion_tokens":` in whole events.
    private static func scan(_ state: inout State) {
        let name = Array("\"completion_tokens\":".utf8)
        while let end = state.bytes[state.scanned...].firstIndex(of: UInt8(ascii: "\n")) {
            let line = state.bytes[state.scanned..<end]
            state.scanned = end + 1
            guard let start = line.firstRange(of: name)?.upperBound else { continue }
            let digits = line[start...].prefix { (UInt8(ascii: "0")...UInt8(ascii: "9")).contains($0) }
            state.tokens = max(state.tokens, Int(String(decoding: digits, as: UTF8.self)) ?? 0)
        }
    }

    /// Output tokens that have been received.
    var tokens: Int { state.withLock { $0.tokens } }
    /// Whether the connection has ended, and nothing more will come.
    var isOver: Bool { state.withLock { $0.isOver } }
}
