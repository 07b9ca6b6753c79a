import Foundation
import Synchronization

/// Which way bytes flow: from the side that connected, or back to it.
public enum FlowDirection: Hashable, Sendable, CaseIterable {
    case forward
    case backward
}

/// What a link does to the bytes that pass (reliability.md §2.2). Everything is drawn from one seed.
public enum LinkFault: Hashable, Sendable {
    /// Bytes pass untouched.
    case none
    /// Connection open, nothing moves: a gray partition.
    case stall
    /// Bytes pass in pieces of at most this many bytes, each its own write.
    case slice(bytesMax: Int)
    /// Closes the connection after exactly this many more bytes in this direction.
    case cutAfter(bytes: Int)
    /// Flips one bit in about one of this many bytes.
    case corrupt(oneIn: Int)
    /// Bytes wait this long before they go on.
    case delay(milliseconds: Int)
    /// At most this many bytes per second.
    case throttle(bytesPerSecond: Int)
}

/// Stands between two processes on one link. Real sockets, two threads per connection; the faults
/// can change while bytes flow.
public final class FaultProxy: Sendable {
    private struct State {
        var faults: [FlowDirection: LinkFault] = [:]
        var refusing = false
        var stopped = false
        var sockets: Set<Int32> = []
        var generator: SplitMix
        var counts = Counts()
    }

    /// Proof that a fault really happened.
    public struct Counts: Sendable {
        public var connections = 0
        public var bytesForward = 0
        public var bytesBackward = 0
        public var cuts = 0
        public var flippedBits = 0
        public var refusedConnections = 0
        /// Times that bytes met a fault, whatever it did to them.
        public var disturbances = 0
    }

    public let port: UInt16
    private let upstream: @Sendable () -> UInt16?
    private let listener: Int32
    private let state: Mutex<State>

    /// - Parameter upstream: asked at each connection, so that the real server may move.
    public init(seed: UInt64, upstream: @escaping @Sendable () -> UInt16?) throws {
        (listener, port) = try Self.listen()
        self.upstream = upstream
        state = Mutex(State(generator: SplitMix(state: seed)))
        Self.spawn("proxy-accept") { [self] in acceptLoop() }
    }

    public var counts: Counts { state.withLock { $0.counts } }

    /// Sets the fault of one direction, or of both.
    public func set(_ fault: LinkFault, _ direction: FlowDirection? = nil) {
        state.withLock { state in
            for one in direction.map({ [$0] }) ?? FlowDirection.allCases { state.faults[one] = fault }
        }
    }

    /// Closes every connection at once; new ones are still let in.
    public func cutAll() {
        state.withLock { state in
            state.counts.cuts += state.sockets.isEmpty ? 0 : 1
            for socket in state.sockets { shutdown(socket, Int32(SHUT_RDWR)) }
        }
    }

    /// New connections are closed at once.
    public func refuse(_ refusing: Bool) { state.withLock { $0.refusing = refusing } }

    public func stop() {
        state.withLock { $0.stopped = true }
        shutdown(listener, Int32(SHUT_RDWR))
        cutAll()
    }

    private func acceptLoop() {
        while true {
            let client = accept(listener, nil, nil)
            if state.withLock({ $0.stopped }) {
                if client >= 0 { close(client) }
                close(listener)
                return
            }
            guard client >= 0 else { continue }
            Self.spawn("proxy-connect") { [self] in serve(client) }
        }
    }

    private func serve(_ client: Int32) {
        let refusing = state.withLock { state in
            if state.refusing { state.counts.refusedConnections += 1 }
            return state.refusing
        }
        guard !refusing, let port = upstream(), let server = Self.connect(port) else {
            close(client)
            return
        }
        state.withLock { state in
            state.counts.connections += 1
            state.sockets.formUnion([client, server])
        }
        let done = DispatchGroup()
        for (from, to, direction) in [(client, server, FlowDirection.forward), (server, client, .backward)] {
            done.enter()
            Self.spawn("proxy-flow") { [self] in
                flow(from, to, direction)
                shutdown(from, Int32(SHUT_RDWR))
                shutdown(to, Int32(SHUT_RDWR))
                done.leave()
            }
        }
        done.wait()
        state.withLock { $0.sockets.subtract([client, server]) }
        close(client)
        close(server)
    }

    private func flow(_ from: Int32, _ to: Int32, _ direction: FlowDirection) {
        var buffer = [UInt8](repeating: 0, count: 65_536)
        while true {
            let count = recv(from, &buffer, buffer.count, 0)
            guard count > 0 else { return }
            guard pass(Array(buffer[..<count]), to, direction) else { return }
        }
    }

    /// False: the connection ends here.
    private func pass(_ bytes: [UInt8], _ to: Int32, _ direction: FlowDirection) -> Bool {
        var rest = bytes[...]
        while !rest.isEmpty {
            let fault = state.withLock { $0.stopped ? LinkFault.cutAfter(bytes: 0) : $0.faults[direction] ?? .none }
            var piece = rest
            var cut = false
            if fault != .none { state.withLock { $0.counts.disturbances += 1 } }
            switch fault {
            case .none: break
            case .stall:
                usleep(5_000)
                continue
            case .slice(let most): piece = rest.prefix(max(1, most))
            case .cutAfter(let left):
                piece = rest.prefix(left)
                cut = piece.count < rest.count || left == piece.count
                state.withLock { state in
                    if case .cutAfter = state.faults[direction] {
                        state.faults[direction] = cut ? LinkFault.none : .cutAfter(bytes: left - piece.count)
                    }
                    if cut { state.counts.cuts += 1 }
                }
            case .corrupt(let oneIn): piece = corrupted(rest, oneIn)[...]
            case .delay(let milliseconds): usleep(UInt32(milliseconds) * 1000)
            case .throttle(let rate):
                piece = rest.prefix(max(1, rate / 100))
                usleep(10_000)
            }
            guard Self.sendAll(piece, to) else { return false }
            count(piece.count, direction)
            rest = rest.dropFirst(piece.count)
            if cut { return false }
        }
        return true
    }

    private func corrupted(_ bytes: ArraySlice<UInt8>, _ oneIn: Int) -> [UInt8] {
        state.withLock { state in
            var result = Array(bytes)
            for index in result.indices where state.generator.next() % UInt64(max(1, oneIn)) == 0 {
                result[index] ^= 1 << UInt8(truncatingIfNeeded: state.generator.next() % 8)
                state.counts.flippedBits += 1
            }
            return result
        }
    }

    private func count(_ bytes: Int, _ direction: FlowDirection) {
        state.withLock { state in
            switch direction {
            case .forward: state.counts.bytesForward += bytes
            case .backward: state.counts.bytesBackward += bytes
            }
        }
    }
}

extension FaultProxy {
    public struct SocketError: Error, CustomStringConvertible {
        public var description: String
    }

    private static func spawn(_ name: String, _ body: @escaping @Sendable () -> Void) {
        let thread = Thread(block: body)
        thread.name = name
        thread.start()
    }

    private static func sendAll(_ bytes: ArraySlice<UInt8>, _ socket: Int32) -> Bool {
        var rest = bytes
        while !rest.isEmpty {
            let count = rest.withUnsafeBytes { send(socket, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
            guard count > 0 else { return false }
            rest = rest.dropFirst(count)
        }
        return true
    }

    private static func loopback(_ port: UInt16) -> sockaddr_in {
        var address = sockaddr_in()
        address.sin_family = sa_family_t(AF_INET)
        address.sin_port = port.bigEndian
        address.sin_addr.s_addr = UInt32(0x7F00_0001).bigEndian
        return address
    }

    private static func listen() throws -> (Int32, UInt16) {
        let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = loopback(0)
        var length = socklen_t(MemoryLayout<sockaddr_in>.size)
        let ready = withUnsafeMutablePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                bind(socket, generic, length) == 0 && Glibc.listen(socket, 64) == 0
                    && getsockname(socket, generic, &length) == 0
            }
        }
        guard ready else { throw SocketError(description: "the proxy cannot listen: \(errno)") }
        return (socket, UInt16(bigEndian: address.sin_port))
    }

    private static func connect(_ port: UInt16) -> Int32? {
        let socket = Glibc.socket(AF_INET, Int32(SOCK_STREAM.rawValue), 0)
        var address = loopback(port)
        var one: Int32 = 1
        setsockopt(socket, Int32(IPPROTO_TCP), TCP_NODELAY, &one, socklen_t(MemoryLayout<Int32>.size))
        let connected = withUnsafePointer(to: &address) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { generic in
                Glibc.connect(socket, generic, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
            }
        }
        if connected { return socket }
        close(socket)
        return nil
    }
}

/// A small seeded generator (SplitMix64, Steele et al. 2014), the same on every machine.
public struct SplitMix: RandomNumberGenerator, Sendable {
    public var state: UInt64

    public init(state: UInt64) { self.state = state }

    public mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
