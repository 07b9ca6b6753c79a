/// A binary min-heap of small numbers that stand for jobs or tenants. Where each one lies is kept by
/// the owner, in an array that several heaps may share as long as a number is in one of them only:
/// no hashing, and twelve bytes less a node than `KeyedHeap`. Every operation but `first` is O(log n).
struct SlotHeap<Key: Comparable & Sendable>: Sendable {
    private var nodes: ContiguousArray<Node> = []

    private struct Node: Sendable {
        var key: Key
        var slot: Int32
    }

    /// Position of what is in no heap.
    static var absent: Int32 { -1 }

    var count: Int { nodes.count }
    var isEmpty: Bool { nodes.isEmpty }
    /// The number with the least key.
    var first: Int32? { nodes.first?.slot }
    var firstKey: Key? { nodes.first?.key }

    /// Every number, in no order that means anything.
    var unordered: [Int32] { nodes.map(\.slot) }

    /// Inserts the number or moves it to a new key.
    mutating func set(_ slot: Int32, to key: Key, _ positions: inout ContiguousArray<Int32>) {
        let position = Int(positions[Int(slot)])
        guard position >= 0 else {
            nodes.append(Node(key: key, slot: slot))
            rise(nodes.count - 1, &positions)
            return
        }
        let isLess = key < nodes[position].key
        nodes[position].key = key
        if isLess { rise(position, &positions) } else { sink(position, &positions) }
    }

    mutating func remove(_ slot: Int32, _ positions: inout ContiguousArray<Int32>) {
        let position = Int(positions[Int(slot)])
        guard position >= 0 else { return }
        positions[Int(slot)] = Self.absent
        let last = nodes.removeLast()
        guard position < nodes.count else { return }
        let isLess = last.key < nodes[position].key
        nodes[position] = last
        if isLess { rise(position, &positions) } else { sink(position, &positions) }
    }

    /// Moves a hole instead of exchanging nodes: one write a level.
    private mutating func rise(_ start: Int, _ positions: inout ContiguousArray<Int32>) {
        let node = nodes[start]
        var hole = start
        while hole > 0 {
            let parent = (hole - 1) / 2
            guard node.key < nodes[parent].key else { break }
            put(nodes[parent], at: hole, &positions)
            hole = parent
        }
        put(node, at: hole, &positions)
    }

    private mutating func sink(_ start: Int, _ positions: inout ContiguousArray<Int32>) {
        let node = nodes[start]
        let count = nodes.count
        var hole = start
        while true {
            var child = 2 * hole + 1
            guard child < count else { break }
            if child + 1 < count, nodes[child + 1].key < nodes[child].key { child += 1 }
            guard nodes[child].key < node.key else { break }
            put(nodes[child], at: hole, &positions)
            hole = child
        }
        put(node, at: hole, &positions)
    }

    private mutating func put(_ node: Node, at position: Int, _ positions: inout ContiguousArray<Int32>) {
        nodes[position] = node
        positions[Int(node.slot)] = Int32(truncatingIfNeeded: position)
    }
}
