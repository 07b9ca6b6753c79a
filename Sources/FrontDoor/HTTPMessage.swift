import NIOCore

/// Header fields in order; names are lower case.
struct HeaderList: Hashable, ExpressibleByDictionaryLiteral {
    struct Field: Hashable {
        var name: String
        var value: String
    }

    private(set) var fields: [Field] = []

    init() {}

    init(dictionaryLiteral elements: (String, String)...) {
        for (name, value) in elements { add(name, value) }
    }

    mutating func add(_ name: String, _ value: String) {
        fields.append(Field(name: name.lowercased(), value: value))
    }

    mutating func set(_ name: String, _ value: String) {
        let name = name.lowercased()
        fields.removeAll { $0.name == name }
        fields.append(Field(name: name, value: value))
    }

    mutating func add(contentsOf other: HeaderList) { fields += other.fields }

    /// The first value of a field, without surrounding blanks.
    subscript(name: String) -> String? {
        fields.first { $0.name == name }.map { trimmed($0.value) }
    }

    /// The comma-separated members of all values of a field, lower case.
    func list(_ name: String) -> [String] {
        fields.filter { $0.name == name }.flatMap { $0.value.split(separator: ",") }.map { trimmed($0).lowercased() }
    }
}

func trimmed(_ text: some StringProtocol) -> String {
    var part = text[...]
    while let first = part.first, first == " " || first == "\t" { part.removeFirst() }
    while let last = part.last, last == " " || last == "\t" { part.removeLast() }
    return String(part)
}

enum HTTPGeneration: String, Hashable {
    case http10 = "HTTP/1.0"
    case http11 = "HTTP/1.1"
    case http2 = "HTTP/2"
}

/// The start of a request, whatever carried it.
struct RequestHead: Hashable {
    var method: String
    /// Path and query as sent.
    var target: String
    var headers: HeaderList
    var generation: HTTPGeneration
    /// Whether a body may follow.
    var expectsBody: Bool
    /// The client's, without its port; `unix` where it has none.
    var address = "unix"

    var path: String { String(target.prefix { $0 != "?" && $0 != "#" }) }

    /// Query members, percent-decoded; the first of a name wins.
    func query(_ name: String) -> String? {
        guard let mark = target.firstIndex(of: "?") else { return nil }
        for pair in target[target.index(after: mark)...].split(separator: "&") {
            let halves = pair.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
            if let first = halves.first, percentDecoded(first) == name {
                return halves.count > 1 ? percentDecoded(halves[1]) : ""
            }
        }
        return nil
    }

    /// The declared length of the body; nil where none or no number is given.
    var contentLength: Int? { headers["content-length"].flatMap { Int($0) } }
}

/// Undoes percent-encoding; bytes that are no UTF-8 become U+FFFD, a lone percent sign stays.
func percentDecoded(_ text: some StringProtocol) -> String {
    func digit(_ byte: UInt8) -> UInt8? {
        switch byte {
        case 0x30...0x39: byte - 0x30
        case 0x41...0x46: byte - 0x41 + 10
        case 0x61...0x66: byte - 0x61 + 10
        default: nil
        }
    }
    let source = Array(text.utf8)
    var bytes: [UInt8] = []
    var at = 0
    while at < source.count {
        if source[at] == UInt8(ascii: "%"), at + 2 < source.count, let high = digit(source[at + 1]),
            let low = digit(source[at + 2])
        {
            bytes.append(high << 4 | low)
            at += 3
        } else {
            bytes.append(source[at])
            at += 1
        }
    }
    return String(decoding: bytes, as: UTF8.self)
}

/// The response side of one request, on a connection of any HTTP version. Calls after `end` or
/// `reset` do nothing. Nothing is sent before the end of the loop's turn.
protocol ExchangeWriter: AnyObject {
    /// Whether more body may be handed over: below the cap on bytes in flight.
    var isWritable: Bool { get }
    func head(status: Int, headers: HeaderList)
    func body(_ bytes: ByteBuffer)
    func end()
    /// Ends the response so that the client sees it is broken: RST_STREAM, or a closed connection.
    func reset()
    /// Sends an interim response where the protocol has one: `100 Continue`, `102 Processing`.
    func interim(status: Int)
}
