import Messages
import ServingTypes

/// Which committed full block holds which page: the index behind prefix sharing. It also collects
/// its own changes, which the worker passes on to the coordinator as `KVEvent`s.
struct PrefixCache: Sendable {
    private var slots: [PageID: BlockSlot] = [:]
    private var changes: [(page: PageID, isStored: Bool)] = []

    var count: Int { slots.count }

    subscript(page: PageID) -> BlockSlot? { slots[page] }

    /// False where another copy came first: it stays.
    mutating func insert(_ page: PageID, _ slot: BlockSlot) -> Bool {
        guard slots[page] == nil else { return false }
        slots[page] = slot
        changes.append((page, true))
        return true
    }

    mutating func remove(_ page: PageID) {
        guard slots.removeValue(forKey: page) != nil else { return }
        changes.append((page, false))
    }

    /// Changes since the last call, in order, neighbours of one kind joined.
    mutating func takeChanges() -> [KVEvent.Change] {
        var joined: [KVEvent.Change] = []
        var run: [PageID] = []
        for (index, change) in changes.enumerated() {
            run.append(change.page)
            let isLast = index + 1 == changes.count || changes[index + 1].isStored != change.isStored
            guard isLast || run.count == KVEventLimits.pagesMax else { continue }
            joined.append(change.isStored ? .stored(run) : .removed(run))
            run.removeAll(keepingCapacity: true)
        }
        changes.removeAll(keepingCapacity: true)
        return joined
    }
}

/// Bounds of what a worker says about its pages.
public enum KVEventLimits {
    /// Page names in one event at most, so that its frame stays below the header limit.
    public static let pagesMax = 16_384
}
