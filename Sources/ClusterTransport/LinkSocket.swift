import Glibc
import ServingTypes

/// Why a link ended, as a sentence.
struct LinkEnd: Error {
    var reason: String
    /// The other end was reached and said no: another way to it would not help.
    var isRefusal = false

    init(_ reason: String) { self.reason = reason }

    init(refused reason: String) {
        self.reason = reason
        isRefusal = true
    }

    /// `operation` failed with the current errno.
    static func system(_ operation: String, _ code: Int32 = errno) -> LinkEnd {
        LinkEnd("\(operation): \(String(cString: strerror(code))).")
    }
}

/// One blocking TCP socket. Any thread may shut it down, which wakes whoever waits in it; the
/// descriptor itself lives until the last user is gone, so that its number is never another's.
final class LinkSocket: Sendable {
    let descriptor: Int32

    init(adopting descriptor: Int32) { self.descriptor = descriptor }

    deinit { close(descriptor) }

    /// Both directions end, now.
    func shutDown() { shutdown(descriptor, Int32(SHUT_RDWR)) }

    /// The peer sees the end of what was sent; receiving goes on.
    func finishSending() { shutdown(descriptor, Int32(SHUT_WR)) }

    /// How often a receive that waits inside a frame looks whether it is still wanted.
    static let receiveTick = TimeSpan.milliseconds(100)

    func configure(_ configuration: PageLinkConfiguration) {
        set(Int32(IPPROTO_TCP), TCP_NODELAY, 1)
        set(SOL_SOCKET, SO_KEEPALIVE, 1)
        set(Int32(IPPROTO_TCP), TCP_KEEPIDLE, 10)
        set(Int32(IPPROTO_TCP), TCP_KEEPINTVL, 5)
        set(Int32(IPPROTO_TCP), TCP_KEEPCNT, 3)
        setTime(SO_SNDTIMEO, configuration.minimumProgress)
        setTime(SO_RCVTIMEO, Self.receiveTick)
        if configuration.socketBufferBytes > 0 {
            set(SOL_SOCKET, SO_SNDBUF, Int32(clamping: configuration.socketBufferBytes))
            set(SOL_SOCKET, SO_RCVBUF, Int32(clamping: configuration.socketBufferBytes))
        }
    }

    private func set(_ level: Int32, _ option: Int32, _ value: Int32) {
        var value = value
        setsockopt(descriptor, level, option, &value, socklen_t(MemoryLayout<Int32>.size))
    }

    private func setTime(_ option: Int32, _ span: TimeSpan) {
        let micros = max(1, span.nanoseconds / 1000)
        var time = timeval(tv_sec: Int(micros / 1_000_000), tv_usec: Int(micros % 1_000_000))
        setsockopt(descriptor, SOL_SOCKET, option, &time, socklen_t(MemoryLayout<timeval>.size))
    }

    // Receiving.

    enum Received {
        case bytes(Int)
        /// The peer has closed its side.
        case end
        /// Nothing came within a tick.
        case nothing
    }

    /// With `all`, waits for the whole buffer or a tick without any byte.
    func receive(into buffer: UnsafeMutableRawBufferPointer, all: Bool) throws(LinkEnd) -> Received {
        let flags = all ? Int32(MSG_WAITALL) : 0
        while true {
            let count = recv(descriptor, buffer.baseAddress, buffer.count, flags)
            if count > 0 { return .bytes(count) }
            if count == 0 { return .end }
            switch errno {
            case EINTR: continue
            case EAGAIN: return .nothing
            default: throw LinkEnd.system("Receiving failed")
            }
        }
    }

    /// Waits until there is something to receive, without end if `deadline` is nil.
    func waitReadable(until deadline: Instant?) throws(LinkEnd) -> Bool {
        var request = pollfd(fd: descriptor, events: Int16(POLLIN), revents: 0)
        while true {
            var milliseconds: Int32 = -1
            if let deadline {
                let left = deadline - TransportClock.now
                guard left > .zero else { return false }
                milliseconds = Int32(clamping: left.nanoseconds / 1_000_000 + 1)
            }
            let status = poll(&request, 1, milliseconds)
            if status > 0 { return true }
            if status < 0 && errno != EINTR { throw LinkEnd.system("Waiting failed") }
        }
    }

    // Sending.

    /// Sends all of both buffers, or throws: on a closed link, and where the peer takes no byte for
    /// the configured time (SO_SNDTIMEO).
    func send(_ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer) throws(LinkEnd) {
        var sent = 0
        let total = first.count + second.count
        while sent < total {
            let count = sendOnce(first, second, from: sent)
            if count > 0 {
                sent += count
            } else if count < 0 && errno == EINTR {
                continue
            } else if count < 0 && errno == EAGAIN {
                throw LinkEnd("The peer took no byte for too long.")
            } else {
                throw LinkEnd.system("Sending failed")
            }
        }
    }

    private func sendOnce(_ first: UnsafeRawBufferPointer, _ second: UnsafeRawBufferPointer, from sent: Int) -> Int {
        let skipFirst = min(sent, first.count)
        let skipSecond = sent - skipFirst
        return withUnsafeTemporaryAllocation(of: iovec.self, capacity: 2) { parts in
            parts[0] = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: first.baseAddress?.advanced(by: skipFirst)),
                iov_len: first.count - skipFirst)
            parts[1] = iovec(
                iov_base: UnsafeMutableRawPointer(mutating: second.baseAddress?.advanced(by: skipSecond)),
                iov_len: second.count - skipSecond)
            var message = msghdr()
            message.msg_iov = parts.baseAddress
            message.msg_iovlen = 2
            return sendmsg(descriptor, &message, Int32(MSG_NOSIGNAL))
        }
    }

    func send(_ bytes: [UInt8]) throws(LinkEnd) {
        try bytes.withUnsafeBufferPointer { bytes throws(LinkEnd) in
            try send(UnsafeRawBufferPointer(bytes), UnsafeRawBufferPointer(start: nil, count: 0))
        }
    }
}

/// Making sockets.
enum SocketFactory {
    /// Connects within `limit` to the first address that answers.
    static func connect(host: String, port: Int, within limit: TimeSpan) throws(LinkEnd) -> LinkSocket {
        let deadline = TransportClock.now + limit
        var last = LinkEnd("The host \(host) has no address.")
        for address in try addresses(host: host, port: port, passive: false) {
            do throws(LinkEnd) {
                return try connect(address, until: deadline)
            } catch { last = LinkEnd("No connection to \(host):\(port). \(error.reason)") }
        }
        throw last
    }

    private static func connect(_ address: Address, until deadline: Instant) throws(LinkEnd) -> LinkSocket {
        let socket = try make(address)
        let flags = fcntl(socket.descriptor, F_GETFL)
        _ = fcntl(socket.descriptor, F_SETFL, flags | O_NONBLOCK)
        let status = address.withPointer { Glibc.connect(socket.descriptor, $0, $1) }
        if status != 0 {
            guard errno == EINPROGRESS else { throw LinkEnd.system("Connecting failed") }
            try waitConnected(socket, until: deadline)
        }
        _ = fcntl(socket.descriptor, F_SETFL, flags)
        return socket
    }

    private static func waitConnected(_ socket: LinkSocket, until deadline: Instant) throws(LinkEnd) {
        var request = pollfd(fd: socket.descriptor, events: Int16(POLLOUT), revents: 0)
        while true {
            let left = deadline - TransportClock.now
            guard left > .zero else { throw LinkEnd("Connecting took too long.") }
            let status = poll(&request, 1, Int32(clamping: left.nanoseconds / 1_000_000 + 1))
            if status > 0 { break }
            if status < 0 && errno != EINTR { throw LinkEnd.system("Connecting failed") }
        }
        var code: Int32 = 0
        var size = socklen_t(MemoryLayout<Int32>.size)
        getsockopt(socket.descriptor, SOL_SOCKET, SO_ERROR, &code, &size)
        guard code == 0 else { throw LinkEnd.system("Connecting failed", code) }
    }

    /// Listens; 0 lets the kernel choose a port, which is returned.
    static func listen(host: String, port: Int) throws(LinkEnd) -> (socket: LinkSocket, port: Int) {
        var last = LinkEnd("The host \(host) has no address.")
        for address in try addresses(host: host, port: port, passive: true) {
            do throws(LinkEnd) {
                return try listen(address)
            } catch { last = LinkEnd("Cannot listen on \(host):\(port). \(error.reason)") }
        }
        throw last
    }

    private static func listen(_ address: Address) throws(LinkEnd) -> (socket: LinkSocket, port: Int) {
        let socket = try make(address)
        var yes: Int32 = 1
        setsockopt(socket.descriptor, SOL_SOCKET, SO_REUSEADDR, &yes, socklen_t(MemoryLayout<Int32>.size))
        guard address.withPointer({ bind(socket.descriptor, $0, $1) }) == 0 else {
            throw LinkEnd.system("Binding failed")
        }
        guard Glibc.listen(socket.descriptor, 256) == 0 else { throw LinkEnd.system("Listening failed") }
        return (socket, localPort(socket))
    }

    private static func localPort(_ socket: LinkSocket) -> Int {
        var storage = sockaddr_storage()
        var size = socklen_t(MemoryLayout<sockaddr_storage>.size)
        let status = withUnsafeMutablePointer(to: &storage) { pointer in
            pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(socket.descriptor, $0, &size) }
        }
        guard status == 0 else { return 0 }
        // The port is at the same place in both address families, in network order.
        return withUnsafeBytes(of: storage) { bytes in
            Int(UInt16(bigEndian: bytes.loadUnaligned(fromByteOffset: 2, as: UInt16.self)))
        }
    }

    /// The next connection; nil once the listening socket is shut down.
    static func accept(_ listener: LinkSocket) -> LinkSocket? {
        while true {
            let descriptor = Glibc.accept(listener.descriptor, nil, nil)
            if descriptor >= 0 {
                _ = fcntl(descriptor, F_SETFD, FD_CLOEXEC)
                return LinkSocket(adopting: descriptor)
            }
            switch errno {
            case EINTR, ECONNABORTED: continue
            case EMFILE, ENFILE, ENOBUFS, ENOMEM:
                // The system is out of something; it comes back when links end.
                usleep(50_000)
            default: return nil
            }
        }
    }

    private static func make(_ address: Address) throws(LinkEnd) -> LinkSocket {
        let kind = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        let descriptor = socket(address.family, kind, 0)
        guard descriptor >= 0 else { throw LinkEnd.system("No socket") }
        return LinkSocket(adopting: descriptor)
    }

    struct Address {
        var family: Int32
        var bytes: [UInt8]

        func withPointer<R>(_ body: (UnsafePointer<sockaddr>, socklen_t) -> R) -> R {
            bytes.withUnsafeBytes { raw in
                // An address has at least the family, so the memory is there.
                withUnsafeTemporaryAllocation(byteCount: max(raw.count, 16), alignment: 8) { copy in
                    copy.copyMemory(from: raw)
                    let pointer = copy.assumingMemoryBound(to: sockaddr.self)
                    return body(UnsafePointer(pointer.baseAddress.unsafelyUnwrapped), socklen_t(raw.count))
                }
            }
        }
    }

    private static func addresses(host: String, port: Int, passive: Bool) throws(LinkEnd) -> [Address] {
        guard (0...65_535).contains(port) else { throw LinkEnd("The port \(port) is not within 0...65535.") }
        var hints = addrinfo()
        hints.ai_socktype = Int32(SOCK_STREAM.rawValue)
        hints.ai_flags = AI_NUMERICSERV | (passive ? AI_PASSIVE : 0)
        var list: UnsafeMutablePointer<addrinfo>?
        let status = getaddrinfo(host, String(port), &hints, &list)
        guard status == 0 else {
            throw LinkEnd("The host \(host) is not known: \(String(cString: gai_strerror(status))).")
        }
        defer { freeaddrinfo(list) }
        var found: [Address] = []
        var next = list
        while let entry = next?.pointee {
            if let address = entry.ai_addr {
                let bytes = Array(UnsafeRawBufferPointer(start: address, count: Int(entry.ai_addrlen)))
                found.append(Address(family: entry.ai_family, bytes: bytes))
            }
            next = entry.ai_next
        }
        return found
    }
}
