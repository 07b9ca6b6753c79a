/// The members of an object in the order they were written, found by byte-exact name. Small objects
/// are searched, large ones carry an index, so a vocabulary of 150 000 members is still one look-up.
public struct JSONObject: Sendable {
    public private(set) var members: [(key: String, value: JSONValue)]
    private var index: [ByteKey: Int]?

    /// Up to here a search is no slower than a hash.
    private static let searchedMax = 8

    public init() {
        members = []
        index = nil
    }

    /// A name given twice keeps its first place and its last value.
    public init(_ members: [(String, JSONValue)]) {
        self.init()
        self.members.reserveCapacity(members.count)
        for (key, value) in members { self[key] = value }
    }

    public var count: Int { members.count }
    public var isEmpty: Bool { members.isEmpty }

    /// Setting nil removes the member.
    public subscript(key: String) -> JSONValue? {
        get { position(of: key).map { members[$0].value } }
        set {
            switch (position(of: key), newValue) {
            case (let place?, let value?): members[place].value = value
            case (let place?, nil): remove(at: place)
            case (nil, let value?): append(key, value)
            case (nil, nil): break
            }
        }
    }

    /// Appends a member unless the name is taken.
    mutating func insert(_ key: String, _ value: JSONValue) -> Bool {
        guard position(of: key) == nil else { return false }
        append(key, value)
        return true
    }

    private func position(of key: String) -> Int? {
        if let index { return index[ByteKey(key)] }
        for place in 0..<members.count where sameBytes(members[place].key, key) { return place }
        return nil
    }

    private mutating func append(_ key: String, _ value: JSONValue) {
        members.append((key, value))
        if index != nil {
            index?[ByteKey(key)] = members.count - 1
        } else if members.count > Self.searchedMax {
            rebuildIndex()
        }
    }

    private mutating func remove(at place: Int) {
        members.remove(at: place)
        if index != nil { rebuildIndex() }
    }

    private mutating func rebuildIndex() {
        var built: [ByteKey: Int] = [:]
        for place in 0..<members.count { built[ByteKey(members[place].key)] = place }
        index = built
    }
}

extension JSONObject: Hashable {
    /// The same members in the same order.
    public static func == (a: JSONObject, b: JSONObject) -> Bool {
        guard a.count == b.count else { return false }
        for place in 0..<a.count {
            let (x, y) = (a.members[place], b.members[place])
            guard sameBytes(x.key, y.key), x.value == y.value else { return false }
        }
        return true
    }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(members.count)
        for member in members {
            ByteKey(member.key).hash(into: &hasher)
            hasher.combine(member.value)
        }
    }
}

extension JSONObject: ExpressibleByDictionaryLiteral {
    public init(dictionaryLiteral elements: (String, JSONValue)...) { self.init(elements) }
}

/// A string as a table key: equality and hash over its UTF-8 bytes, the hash keyed per process, so
/// that neither look-alike spellings nor chosen collisions change what a look-up finds or costs.
struct ByteKey: Hashable {
    var text: String

    init(_ text: String) { self.text = text }

    static func == (a: ByteKey, b: ByteKey) -> Bool { sameBytes(a.text, b.text) }

    func hash(into hasher: inout Hasher) {
        var text = text
        text.withUTF8 { hasher.combine(bytes: UnsafeRawBufferPointer($0)) }
        hasher.combine(UInt8(0xFF))
    }
}

/// Whether two strings hold the same UTF-8 bytes.
func sameBytes(_ a: String, _ b: String) -> Bool {
    let count = a.utf8.count
    guard count == b.utf8.count else { return false }
    var (a, b) = (a, b)
    return a.withUTF8 { x in
        b.withUTF8 { y in
            for place in 0..<count where x[place] != y[place] { return false }
            return true
        }
    }
}
