/// A binary min-heap whose elements are found, moved and removed by identity: every operation but
/// `first` is O(log n). The order is total as long as keys are distinct, so nothing observable
/// depends on how the dictionary of positions hashes.
public struct KeyedHeap<ID: Hashable & Sendable, Key: Comparable & Sendable>: Sendable {
    private var nodes: [(id: ID, key: Key)] = []
    private var positions: [ID: Int] = [:]

    public init() {}

    public var count: Int { nodes.count }
    public var isEmpty: Bool { nodes.isEmpty }
    /// The element with the least key.
    public var first: (id: ID, key: Key)? { nodes.first }

    public func contains(_ id: ID) -> Bool { positions[id] != nil }

    public func key(of id: ID) -> Key? {
        positions[id].map { nodes[$0].key }
    }

    /// Inserts the element or moves it to a new key.
    public mutating func set(_ id: ID, to key: Key) {
        if let position = positions[id] {
            let wasLess = key < nodes[position].key
            nodes[position].key = key
            if wasLess { siftUp(position) } else { siftDown(position) }
        } else {
            nodes.append((id, key))
            positions[id] = nodes.count - 1
            siftUp(nodes.count - 1)
        }
    }

    @discardableResult
    public mutating func remove(_ id: ID) -> Key? {
        guard let position = positions.removeValue(forKey: id) else { return nil }
        let removed = nodes[position].key
        let last = nodes.removeLast()
        if position < nodes.count {
            nodes[position] = last
            positions[last.id] = position
            siftUp(position)
            siftDown(position)
        }
        return removed
    }

    @discardableResult
    public mutating func removeFirst() -> (id: ID, key: Key)? {
        guard let first = nodes.first else { return nil }
        remove(first.id)
        return first
    }

    private mutating func siftUp(_ start: Int) {
        var child = start
        while child > 0 {
            let parent = (child - 1) / 2
            guard nodes[child].key < nodes[parent].key else { return }
            exchange(child, parent)
            child = parent
        }
    }

    private mutating func siftDown(_ start: Int) {
        var parent = start
        while true {
            var least = parent
            for child in [2 * parent + 1, 2 * parent + 2] where child < nodes.count {
                if nodes[child].key < nodes[least].key { least = child }
            }
            guard least != parent else { return }
            exchange(parent, least)
            parent = least
        }
    }

    private mutating func exchange(_ a: Int, _ b: Int) {
        nodes.swapAt(a, b)
        positions[nodes[a].id] = a
        positions[nodes[b].id] = b
    }
}
