import ServingTypes

/// A key that mixes its own bits. Only for identities that no client chooses: nothing defends a
/// table of such keys against somebody who picks them to collide.
public protocol SlotKey: Hashable, Sendable {
    /// 64 well mixed bits; equal keys have equal ones.
    var slotHash: UInt64 { get }
}

extension JobID: SlotKey {
    @inlinable public var slotHash: UInt64 { SlotHashing.mix(high, low) }
}

extension TransferID: SlotKey {
    @inlinable public var slotHash: UInt64 { SlotHashing.mix(job.slotHash, UInt64(attempt.number)) }
}

@usableFromInline enum SlotHashing {
    @inlinable static func mix(_ a: UInt64, _ b: UInt64) -> UInt64 {
        var bits = (a ^ 0x9e37_79b9_7f4a_7c15) &* 0xbf58_476d_1ce4_e5b9
        bits = (bits ^ (bits >> 29) ^ b) &* 0x94d0_49bb_1331_11eb
        return bits ^ (bits >> 32)
    }
}

/// A dictionary whose values stay where they are: `read` and `change` reach a value in its place, so
/// nothing is copied on the way and a long array inside it keeps its one owner. Lookups cost a few
/// nanoseconds; the order of `keys` and `values` follows the calls that were made, not a hash seed.
public struct SlotTable<Key: SlotKey, Value: Sendable>: Sendable {
    @usableFromInline static var none: UInt32 { .max }

    /// Values by slot; the vacant value where the slot is free.
    @usableFromInline var rows: ContiguousArray<Value> = []
    @usableFromInline var rowKeys: ContiguousArray<Key?> = []
    @usableFromInline var freeSlots: [UInt32] = []
    /// Slot numbers by hash, open addressing with linear probing; never more than half full.
    @usableFromInline var index: [UInt32] = []
    @usableFromInline var entryCount = 0
    @usableFromInline let vacant: Value

    /// `vacant` fills the slots that nobody uses; it should own nothing.
    @inlinable public init(vacant: Value) { self.vacant = vacant }

    @inlinable public var count: Int { entryCount }
    @inlinable public var isEmpty: Bool { entryCount == 0 }

    /// Copies out, or changes by way of a copy that is moved out and back; for what happens often
    /// there are `read` and `change`.
    @inlinable public subscript(key: Key) -> Value? {
        get {
            let slot = find(key)
            return slot == Self.none ? nil : rows[Int(slot)]
        }
        _modify {
            let slot = find(key)
            var value: Value?
            if slot != Self.none {
                value = rows.withUnsafeMutableBufferPointer { $0.moveElement(from: Int(slot)) }
            }
            defer {
                if slot == Self.none {
                    if let value { insert(value, key) }
                } else {
                    let left = value ?? vacant
                    rows.withUnsafeMutableBufferPointer { $0.initializeElement(at: Int(slot), to: left) }
                    if value == nil { release(slot, key) }
                }
            }
            yield &value
        }
    }

    /// Looks at a value in its place; nil where there is none.
    @inlinable @inline(__always)
    public func read<Result>(_ key: Key, _ body: (borrowing Value) -> Result) -> Result? {
        let slot = find(key)
        return slot == Self.none ? nil : body(rows[Int(slot)])
    }

    /// The same for what may itself be nil.
    @inlinable @inline(__always)
    public func readOptional<Result>(_ key: Key, _ body: (borrowing Value) -> Result?) -> Result? {
        let slot = find(key)
        return slot == Self.none ? nil : body(rows[Int(slot)])
    }

    /// Changes a value in its place; nil, and nothing done, where there is none.
    @inlinable @inline(__always) @discardableResult
    public mutating func changeOptional<Result>(_ key: Key, _ body: (inout Value) -> Result?) -> Result? {
        let slot = find(key)
        return slot == Self.none ? nil : body(&rows[Int(slot)])
    }

    /// Changes a value in its place; nil, and nothing done, where there is none.
    @inlinable @inline(__always) @discardableResult
    public mutating func change<Result>(_ key: Key, _ body: (inout Value) -> Result) -> Result? {
        let slot = find(key)
        return slot == Self.none ? nil : body(&rows[Int(slot)])
    }

    @inlinable public func contains(_ key: Key) -> Bool { find(key) != Self.none }

    @discardableResult @inlinable
    public mutating func removeValue(forKey key: Key) -> Value? {
        let slot = find(key)
        guard slot != Self.none else { return nil }
        var value = vacant
        swap(&value, &rows[Int(slot)])
        release(slot, key)
        return value
    }

    @inlinable public var keys: [Key] { rowKeys.compactMap { $0 } }
    @inlinable public var values: [Value] { rowKeys.indices.filter { rowKeys[$0] != nil }.map { rows[$0] } }

    // MARK: The index

    @inlinable func find(_ key: Key) -> UInt32 {
        guard !index.isEmpty else { return Self.none }
        let mask = index.count - 1
        var place = Int(truncatingIfNeeded: key.slotHash) & mask
        while index[place] != Self.none {
            if rowKeys[Int(index[place])] == key { return index[place] }
            place = (place + 1) & mask
        }
        return Self.none
    }

    @inlinable mutating func insert(_ value: Value, _ key: Key) {
        if (count + 1) * 2 > index.count { growIndex() }
        let slot: UInt32
        if let free = freeSlots.popLast() {
            slot = free
            rows[Int(slot)] = value
            rowKeys[Int(slot)] = key
        } else {
            slot = UInt32(rows.count)
            rows.append(value)
            rowKeys.append(key)
        }
        entryCount += 1
        enter(slot, key)
    }

    @inlinable mutating func enter(_ slot: UInt32, _ key: Key) {
        let mask = index.count - 1
        var place = Int(truncatingIfNeeded: key.slotHash) & mask
        while index[place] != Self.none { place = (place + 1) & mask }
        index[place] = slot
    }

    @inlinable mutating func growIndex() {
        index = Array(repeating: Self.none, count: max(index.count * 2, 16))
        for (slot, key) in rowKeys.enumerated() {
            if let key { enter(UInt32(slot), key) }
        }
    }

    /// Takes the key out of the index and closes the gap behind it.
    @inlinable mutating func release(_ slot: UInt32, _ key: Key) {
        let mask = index.count - 1
        var place = Int(truncatingIfNeeded: key.slotHash) & mask
        while index[place] != slot { place = (place + 1) & mask }
        var next = (place + 1) & mask
        while index[next] != Self.none {
            let home = rowKeys[Int(index[next])].map { Int(truncatingIfNeeded: $0.slotHash) & mask } ?? next
            // It may move back where its own home is not behind the gap.
            if (next - home) & mask >= (next - place) & mask {
                index[place] = index[next]
                place = next
            }
            next = (next + 1) & mask
        }
        index[place] = Self.none
        rowKeys[Int(slot)] = nil
        freeSlots.append(slot)
        entryCount -= 1
    }
}

/// First in, first out; taking from the front costs O(1) on the average.
public struct FrontQueue<Element: Sendable>: Sendable {
    @usableFromInline var elements: [Element] = []
    @usableFromInline var head = 0

    @inlinable public init() {}

    @inlinable public var count: Int { elements.count - head }
    @inlinable public var isEmpty: Bool { count == 0 }
    @inlinable public var first: Element? { isEmpty ? nil : elements[head] }
    /// Oldest first.
    @inlinable public var all: ArraySlice<Element> { elements[head...] }

    @inlinable public mutating func append(_ element: Element) { elements.append(element) }

    @inlinable public mutating func removeFirst() {
        guard !isEmpty else { return }
        head += 1
        guard head > 16, head * 2 > elements.count else { return }
        elements.removeFirst(head)
        head = 0
    }

    @inlinable public mutating func removeAll() {
        elements.removeAll()
        head = 0
    }
}
