import Messages
import ServingTypes

/// The books of one worker's pool: which slot is in which state and held by how many jobs. No
/// bytes; those are the engine's. Asking for what there is not is answered with nil; breaking the
/// order of states is a bug of ours and traps.
public struct BlockPool: Sendable {
    /// free -> reserved -> filling -> verified -> committed -> evictable -> free; `fencing` is the
    /// way back of a slot that a remote writer may still touch.
    public enum State: String, Hashable, Sendable, CaseIterable {
        case free, reserved, filling, verified, committed, evictable, fencing
    }

    private struct Slot: Sendable {
        /// The name of a committed full block; nil for partial and private ones. First, so that the rest lies
        /// in its padding: a pool has thousands of these.
        var page: PageID?
        var state = State.free
        var references: Int32 = 0
    }

    private var slots: [Slot]
    private var tally = BlockCounts()
    /// Taken from the end.
    private var freeSlots: [BlockSlot]
    private var evictable: RecencyList
    private var cache = PrefixCache()

    public init(blockCount: Int) {
        precondition(blockCount > 0 && blockCount < Int(UInt32.max))
        slots = Array(repeating: Slot(), count: blockCount)
        freeSlots = (0..<UInt32(blockCount)).reversed().map { BlockSlot($0) }
        evictable = RecencyList(capacity: blockCount)
        tally.free = blockCount
    }

    public var blockCount: Int { slots.count }

    /// Blocks by state; the sum is `blockCount`.
    public func counts() -> BlockCounts { tally }

    /// What `reserve` can give: free slots and cached ones that nobody holds.
    public var available: Int { tally.available }

    public func state(of slot: BlockSlot) -> State { slots[Int(slot.index)].state }

    public func references(to slot: BlockSlot) -> Int { Int(slots[Int(slot.index)].references) }

    public func page(of slot: BlockSlot) -> PageID? { slots[Int(slot.index)].page }

    // MARK: Taking

    /// Slots for one holder, free ones first and then the least recently used cached ones; all or
    /// none. nil where fewer are available.
    public mutating func reserve(_ count: Int) -> [BlockSlot]? {
        guard count <= available else { return nil }
        var taken: [BlockSlot] = []
        taken.reserveCapacity(count)
        while taken.count < count {
            if freeSlots.isEmpty { evictOldest() }
            guard let slot = freeSlots.popLast() else { break }
            move(slot, to: .reserved)
            slots[Int(slot.index)].references = 1
            taken.append(slot)
        }
        precondition(taken.count == count)
        return taken
    }

    /// How many leading pages are committed here.
    public func prefixLength(of pages: some Sequence<PageID>) -> Int {
        var length = 0
        for page in pages {
            guard cache[page] != nil else { break }
            length += 1
        }
        return length
    }

    /// One more holder of a committed page; a cached one comes back to life. nil: not here.
    public mutating func retain(_ page: PageID) -> BlockSlot? {
        guard let slot = cache[page] else { return nil }
        let index = Int(slot.index)
        if slots[index].state == .evictable {
            evictable.remove(slot)
            move(slot, to: .committed)
        }
        slots[index].references += 1
        return slot
    }

    private mutating func evictOldest() {
        guard let slot = evictable.oldest else { return }
        evictable.remove(slot)
        if let page = slots[Int(slot.index)].page { cache.remove(page) }
        slots[Int(slot.index)].page = nil
        move(slot, to: .free)
        freeSlots.append(slot)
    }

    // MARK: Filling

    /// A writer (the engine, or the network) is about to write. Repeats are harmless.
    public mutating func beginFilling(_ slot: BlockSlot) {
        switch state(of: slot) {
        case .reserved: move(slot, to: .filling)
        case .filling: break
        case .committed: precondition(slots[Int(slot.index)].page == nil, "a shared block is never written")
        case .free, .verified, .evictable, .fencing: preconditionFailure("slot \(slot) is \(state(of: slot))")
        }
    }

    /// All bytes are there and their checksums held.
    public mutating func verify(_ slot: BlockSlot) {
        beginFilling(slot)
        precondition(state(of: slot) == .filling, "slot \(slot) is \(state(of: slot))")
        move(slot, to: .verified)
    }

    /// The block may be read. With a name it is full and enters the index, unless another copy of
    /// the page came first: then it stays private to its holder. False in that case.
    @discardableResult
    public mutating func commit(_ slot: BlockSlot, as page: PageID?) -> Bool {
        let index = Int(slot.index)
        switch slots[index].state {
        case .filling, .verified: move(slot, to: .committed)
        case .committed: precondition(slots[index].page == nil, "slot \(slot) has a name already")
        case .free, .reserved, .evictable, .fencing: preconditionFailure("slot \(slot) is \(state(of: slot))")
        }
        guard let page, cache.insert(page, slot) else { return false }
        slots[index].page = page
        return true
    }

    // MARK: Giving back

    /// One holder less. The last one of an indexed block leaves it in the cache; any other block
    /// is free at once, so no writer may be left.
    public mutating func release(_ slot: BlockSlot) {
        let index = Int(slot.index)
        precondition(slots[index].references > 0, "slot \(slot) is held by nobody")
        slots[index].references -= 1
        guard slots[index].references == 0 else { return }
        if slots[index].state == .committed, slots[index].page != nil {
            move(slot, to: .evictable)
            evictable.append(slot)
        } else {
            move(slot, to: .free)
            freeSlots.append(slot)
        }
    }

    /// Given back by its holder, but a remote writer may still touch it.
    public mutating func fence(_ slot: BlockSlot) {
        let index = Int(slot.index)
        switch slots[index].state {
        case .reserved, .filling, .verified: move(slot, to: .fencing)
        case .free, .committed, .evictable, .fencing: preconditionFailure("slot \(slot) is \(state(of: slot))")
        }
        slots[index].references = 0
    }

    /// The writer is gone.
    public mutating func unfence(_ slot: BlockSlot) {
        precondition(state(of: slot) == .fencing, "slot \(slot) is \(state(of: slot))")
        move(slot, to: .free)
        freeSlots.append(slot)
    }

    private mutating func move(_ slot: BlockSlot, to state: State) {
        tally[keyPath: Self.count(of: slots[Int(slot.index)].state)] -= 1
        tally[keyPath: Self.count(of: state)] += 1
        slots[Int(slot.index)].state = state
    }

    private static func count(of state: State) -> WritableKeyPath<BlockCounts, Int> {
        switch state {
        case .free: \.free
        case .reserved: \.reserved
        case .filling: \.filling
        case .verified: \.verified
        case .committed: \.committed
        case .evictable: \.evictable
        case .fencing: \.fencing
        }
    }

    // MARK: Telling

    /// Changes of the index since the last call, in order.
    public mutating func takeChanges() -> [KVEvent.Change] { cache.takeChanges() }

    /// Every indexed page, in slot order.
    public var indexedPages: [PageID] { slots.compactMap(\.page) }

    // MARK: Audit

    /// Recounts everything; the first broken invariant, or nil. `tables` are all holders.
    public func audit(tables: [BlockTable]) -> String? {
        var holders = Array(repeating: 0, count: slots.count)
        for table in tables {
            for slot in table.slots { holders[Int(slot.index)] += 1 }
        }
        return auditTally() ?? auditFree() ?? auditEvictable() ?? auditIndex() ?? auditReferences(holders)
    }

    private func auditTally() -> String? {
        var recount = BlockCounts()
        for slot in slots { recount[keyPath: Self.count(of: slot.state)] += 1 }
        if recount != tally { return "counts \(tally) differ from the slots' \(recount)" }
        return tally.total == slots.count ? nil : "counts sum to \(tally.total), the pool is \(slots.count)"
    }

    private func auditFree() -> String? {
        if Set(freeSlots).count != freeSlots.count { return "the free list holds a slot twice" }
        for slot in freeSlots where state(of: slot) != .free {
            return "slot \(slot) on the free list is \(state(of: slot))"
        }
        return freeSlots.count == tally.free ? nil : "\(tally.free) slots are free, the list has \(freeSlots.count)"
    }

    private func auditEvictable() -> String? {
        let listed = evictable.slots
        if listed.count != tally.evictable || evictable.count != tally.evictable {
            return "\(tally.evictable) slots are evictable, the list has \(listed.count)"
        }
        for slot in listed where state(of: slot) != .evictable {
            return "slot \(slot) on the eviction list is \(state(of: slot))"
        }
        return nil
    }

    private func auditIndex() -> String? {
        var named = 0
        for (index, slot) in slots.enumerated() {
            guard let page = slot.page else {
                if slot.state == .evictable { return "slot \(index) is evictable without a name" }
                continue
            }
            named += 1
            if slot.state != .committed && slot.state != .evictable {
                return "slot \(index) is named and \(slot.state)"
            }
            if cache[page] != BlockSlot(UInt32(index)) { return "page \(page) is not indexed at slot \(index)" }
        }
        return named == cache.count ? nil : "\(cache.count) pages are indexed, \(named) slots are named"
    }

    private func auditReferences(_ holders: [Int]) -> String? {
        for (index, slot) in slots.enumerated() {
            if Int(slot.references) != holders[index] {
                return "slot \(index) counts \(slot.references) holders, there are \(holders[index])"
            }
            switch slot.state {
            case .free, .evictable, .fencing:
                if slot.references != 0 { return "slot \(index) is \(slot.state) and held" }
            case .reserved, .filling, .verified:
                if slot.references != 1 { return "slot \(index) is \(slot.state) with \(slot.references) holders" }
            case .committed:
                if slot.references == 0 { return "slot \(index) is committed and held by nobody" }
                if slot.references > 1 && slot.page == nil { return "private slot \(index) is shared" }
            }
        }
        return nil
    }
}
