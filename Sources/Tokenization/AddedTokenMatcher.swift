/// Finds added tokens in text: leftmost first, the longest of those that start at one place. A byte
/// trie in flat arrays.
struct AddedTokenMatcher: Sendable {
    private struct Edge: Hashable {
        var node: UInt32
        var byte: UInt8
    }

    private var edges: [Edge: UInt32] = [:]
    /// Which added token ends at a node.
    private var tokenAtNode: [Int?] = [nil]
    private var startsToken = [Bool](repeating: false, count: 256)

    var isEmpty: Bool { tokenAtNode.count == 1 }

    /// The first of equal contents keeps its place.
    mutating func insert(_ content: [UInt8], index: Int) {
        guard let first = content.first else { return }
        startsToken[Int(first)] = true
        var node: UInt32 = 0
        for byte in content {
            let edge = Edge(node: node, byte: byte)
            if let next = edges[edge] {
                node = next
            } else {
                let next = UInt32(tokenAtNode.count)
                tokenAtNode.append(nil)
                edges[edge] = next
                node = next
            }
        }
        if tokenAtNode[Int(node)] == nil { tokenAtNode[Int(node)] = index }
    }

    /// The longest token that starts at a place, as (index given to `insert`, end).
    func longestMatch(in bytes: UnsafeBufferPointer<UInt8>, at place: Int, end: Int) -> (index: Int, end: Int)? {
        guard startsToken[Int(bytes[place])] else { return nil }
        var node: UInt32 = 0
        var at = place
        var found: (index: Int, end: Int)?
        while at < end, let next = edges[Edge(node: node, byte: bytes[at])] {
            node = next
            at += 1
            if let index = tokenAtNode[Int(node)] { found = (index, at) }
        }
        return found
    }
}
