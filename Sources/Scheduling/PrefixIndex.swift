import ServingTypes

/// Which worker holds which page, told by the workers' KV events: a hint for placement only, since
/// the page's owner decides (disaggregation.md §6.1 P2). Bounded; a page beyond the bound is not
/// remembered, which costs a missed reuse and nothing else.
public struct PrefixIndex: Sendable {
    /// (page, worker) pairs remembered.
    public let entriesMax: Int
    private var pages: [WorkerID: Set<PageID>] = [:]
    private var sequences: [WorkerID: UInt64] = [:]
    public private(set) var entryCount = 0

    public init(entriesMax: Int = 1 << 18) { self.entriesMax = entriesMax }

    /// Pages of one worker that are known.
    public func pageCount(of worker: WorkerID) -> Int { pages[worker]?.count ?? 0 }

    /// Applies one numbered change. A gap in the numbers empties what was known of the worker, and
    /// deltas stay without effect until its next snapshot.
    public mutating func apply(_ change: Change, sequence: UInt64, from worker: WorkerID) {
        if case .snapshot(let held) = change {
            forget(worker)
            sequences[worker] = sequence
            add(held, worker)
            return
        }
        let expected = sequences[worker].map { $0 &+ 1 }
        guard expected == sequence || (expected == nil && sequence <= 1) else {
            forget(worker)
            return
        }
        sequences[worker] = sequence
        switch change {
        case .stored(let stored): add(stored, worker)
        case .removed(let removed): drop(removed, worker)
        case .snapshot: break
        }
    }

    public enum Change: Hashable, Sendable {
        case stored([PageID])
        case removed([PageID])
        case snapshot([PageID])
    }

    /// The worker is gone, and its pages with it.
    public mutating func forget(_ worker: WorkerID) {
        sequences[worker] = nil
        entryCount -= pages.removeValue(forKey: worker)?.count ?? 0
    }

    /// How many leading pages of `ids` the worker holds.
    public func prefixLength(of ids: [PageID], on worker: WorkerID) -> Int {
        guard let held = pages[worker], !held.isEmpty else { return 0 }
        var length = 0
        for id in ids {
            guard held.contains(id) else { break }
            length += 1
        }
        return length
    }

    private mutating func add(_ stored: [PageID], _ worker: WorkerID) {
        for page in stored where entryCount < entriesMax {
            if pages[worker, default: []].insert(page).inserted { entryCount += 1 }
        }
    }

    private mutating func drop(_ removed: [PageID], _ worker: WorkerID) {
        for page in removed where pages[worker]?.remove(page) != nil { entryCount -= 1 }
    }
}
