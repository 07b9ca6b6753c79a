/// One request and its response. The session owns it; nghttp2 knows its number only.
final class HTTP2Stream {
    let id: Int32

    // The request.
    private(set) var method = ""
    private(set) var path = ""
    private(set) var authority = ""
    private(set) var scheme = ""
    private(set) var headers: [(name: String, value: String)] = []
    private var headerBytes = 0
    private var headerFields = 0
    private(set) var isHeadTooLarge = false
    var isHeadComplete = false
    var isRequestEnded = false
    /// Body bytes given to the driver that it has not consumed.
    var unconsumedBytes = 0

    // The response.
    private var output: [UInt8] = []
    private var outputStart = 0
    var isResponding = false
    /// The driver has written all; END_STREAM follows the last byte.
    var isFinished = false
    /// END_STREAM was sent.
    var isResponseSent = false
    /// nghttp2 asked for bytes, got none and waits for `nghttp2_session_resume_data`.
    var isDeferred = false
    /// The driver was told to pause.
    var isPaused = false
    var isResetByDriver = false

    init(id: Int32) { self.id = id }

    // MARK: request head

    /// Takes one field of the request's head. Past a limit, fields are counted no more and dropped.
    func addField(_ name: UnsafeBufferPointer<UInt8>, _ value: UnsafeBufferPointer<UInt8>, limits: HTTP2Limits) {
        guard !isHeadTooLarge else { return }
        headerFields += 1
        headerBytes += name.count + value.count + 32
        guard headerFields <= limits.headerFieldsMax, headerBytes <= limits.headerListBytesMax,
            value.count <= limits.headerValueBytesMax
        else {
            isHeadTooLarge = true
            headers = []
            return
        }
        let text = String(decoding: value, as: UTF8.self)
        switch String(decoding: name, as: UTF8.self) {
        case ":method": method = text
        case ":path": path = text
        case ":authority": authority = text
        case ":scheme": scheme = text
        case let other: headers.append((other, text))
        }
    }

    /// The finished head; the fields go with it.
    func takeHead() -> HTTPRequestHead {
        if authority.isEmpty { authority = headers.first { $0.name == "host" }?.value ?? "" }
        defer { headers = [] }
        return HTTPRequestHead(method: method, path: path, authority: authority, scheme: scheme, headers: headers)
    }

    // MARK: response body

    var bufferedBytes: Int { output.count - outputStart }

    func append(_ bytes: [UInt8]) { output += bytes }

    /// Moves up to `room` bytes to nghttp2's buffer and returns how many.
    func moveOutput(to target: UnsafeMutablePointer<UInt8>, room: Int) -> Int {
        let count = min(room, bufferedBytes)
        output.withUnsafeBufferPointer { source in
            guard let base = source.baseAddress, count > 0 else { return }
            target.update(from: base + outputStart, count: count)
        }
        outputStart += count
        if outputStart == output.count {
            output.removeAll(keepingCapacity: output.capacity <= Self.keptCapacity)
            outputStart = 0
        } else if outputStart >= Self.keptCapacity {
            output.removeSubrange(0..<outputStart)
            outputStart = 0
        }
        return count
    }

    func dropOutput() {
        output = []
        outputStart = 0
    }

    /// Bytes that may lie used in front of the buffer, or be kept for the next write.
    private static let keptCapacity = 65_536
}
