import ServingTypes

/// Which worker holds which page, told by the workers' KV events: a hint for placement only, since
/// the page's owner decides (disaggregation.md §6.1 P2). Bounded; a page beyond the bound is not
/// remembered, which costs a missed reuse and nothing else.
public struct PrefixIndex: Sendable {
    /// (page, worker) pairs remembered.
    public let entriesMax: Int
    private var pages: [WorkerID: Set<PageID>] = [:]
    /// The other way round: who holds a page, by name.
    private var holders: [PageID: [WorkerID]] = [:]
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
        let known = pages.removeValue(forKey: worker) ?? []
        for page in known { removeHolder(worker, of: page) }
        entryCount -= known.count
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

    /// How many leading pages of `ids` each worker holds, for all workers at once: what it costs
    /// depends on how many hold any of them, not on how many there are.
    public func prefixLengths(of ids: [PageID]) -> PrefixLengths {
        var result = PrefixLengths()
        guard let first = ids.first, var alive = holders[first] else { return result }
        var length = 1
        for id in ids.dropFirst() {
            let next = holders[id] ?? []
            if next != alive {
                let stays = Set(next)
                for worker in alive where !stays.contains(worker) { result.set(worker, length) }
                alive.removeAll { !stays.contains($0) }
            }
            guard !alive.isEmpty else { return result }
            length += 1
        }
        for worker in alive { result.set(worker, length) }
        return result
    }

    private mutating func removeHolder(_ worker: WorkerID, of page: PageID) {
        guard let place = holders[page]?.firstIndex(of: worker) else { return }
        holders[page]?.remove(at: place)
        if holders[page]?.isEmpty ?? false { holders[page] = nil }
    }

    private mutating func add(_ stored: [PageID], _ worker: WorkerID) {
        for page in stored where entryCount < entriesMax {
            guard pages[worker, default: []].insert(page).inserted else { continue }
            holders[page, default: []].append(worker)
            entryCount += 1
        }
    }

    private mutating func drop(_ removed: [PageID], _ worker: WorkerID) {
        for page in removed where pages[worker]?.remove(page) != nil {
            removeHolder(worker, of: page)
            entryCount -= 1
        }
    }
}

/// Leading pages held, by worker; most workers hold none and are not listed.
public struct PrefixLengths: Sendable {
    private var lengths: [WorkerID: Int] = [:]
    /// The most that any worker holds.
    public private(set) var longest = 0

    init() {}

    /// Those that hold any, in no order that means anything.
    public var workers: some Collection<WorkerID> { lengths.keys }

    public subscript(worker: WorkerID) -> Int { lengths.isEmpty ? 0 : lengths[worker] ?? 0 }

    mutating func set(_ worker: WorkerID, _ length: Int) {
        lengths[worker] = length
        longest = max(longest, length)
    }
}
