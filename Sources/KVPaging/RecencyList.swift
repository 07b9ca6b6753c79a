import ServingTypes

/// Evictable slots, least recently used first: a doubly linked list threaded through arrays, so
/// that each change is O(1) and the order depends on nothing but the order of calls.
struct RecencyList: Sendable {
    private static let none = UInt32.max
    private var next: [UInt32]
    private var previous: [UInt32]
    private var first = none
    private var last = none
    private(set) var count = 0

    init(capacity: Int) {
        next = Array(repeating: Self.none, count: capacity)
        previous = next
    }

    var oldest: BlockSlot? { first == Self.none ? nil : BlockSlot(first) }

    mutating func append(_ slot: BlockSlot) {
        let index = Int(slot.index)
        previous[index] = last
        next[index] = Self.none
        if last == Self.none { first = slot.index } else { next[Int(last)] = slot.index }
        last = slot.index
        count += 1
    }

    mutating func remove(_ slot: BlockSlot) {
        let (before, after) = (previous[Int(slot.index)], next[Int(slot.index)])
        if before == Self.none { first = after } else { next[Int(before)] = after }
        if after == Self.none { last = before } else { previous[Int(after)] = before }
        count -= 1
    }

    /// Oldest first. A broken list ends after as many steps as there are slots.
    var slots: [BlockSlot] {
        var found: [BlockSlot] = []
        var index = first
        while index != Self.none, found.count <= next.count {
            found.append(BlockSlot(index))
            index = next[Int(index)]
        }
        return found
    }
}
