/// What makes one worker dearer than another for a job of which neither holds anything, and what it has room for.
public struct WorkerLoad: Hashable, Sendable {
    /// Prompt tokens before a new one.
    public var queuedTokens: Int
    /// Jobs that hold or will hold memory there.
    public var jobs: Int
    /// Blocks that a job may have; no worker with fewer than a search asks for is looked at.
    public var blocks: Int

    public init(queuedTokens: Int, jobs: Int, blocks: Int) {
        (self.queuedTokens, self.jobs, self.blocks) = (queuedTokens, jobs, blocks)
    }

    /// Dearer than any worker, and without room.
    static let none = WorkerLoad(queuedTokens: .max, jobs: .max, blocks: .min)

    var isNone: Bool { blocks == .min }

    /// No dearer than either, with the room of both: what can be said of two workers at once.
    static func bound(_ a: WorkerLoad, _ b: WorkerLoad) -> WorkerLoad {
        WorkerLoad(
            queuedTokens: min(a.queuedTokens, b.queuedTokens), jobs: min(a.jobs, b.jobs),
            blocks: max(a.blocks, b.blocks))
    }
}

/// Workers by position, so that the cheapest is found without looking at all: a binary tree whose nodes bound
/// the loads below them. A change costs O(log n). A search looks at workers in the order of their cost, ties
/// by position, and costs O(log n) for each that it looks at, as long as one kind of load decides; where two
/// do, nodes whose least loads lie on different workers are opened in vain.
public struct LoadTree: Sendable {
    /// Node 1 is the root, 2i and 2i + 1 are the children of i, and leaf p is node `width` + p.
    private var nodes: ContiguousArray<WorkerLoad> = [.none, .none]
    private var width = 1

    public init() {}

    public var isEmpty: Bool { nodes[1].isNone }

    /// No dearer than any worker here; nil where there is none.
    public var least: WorkerLoad? { isEmpty ? nil : nodes[1] }

    /// Takes these loads in place of all that it has: by position, nil where a position is somebody else's.
    public mutating func fill(_ loads: some Collection<WorkerLoad?>) {
        width = 1
        while width < loads.count { width *= 2 }
        nodes = ContiguousArray(repeating: .none, count: 2 * width)
        for (position, load) in loads.enumerated() { nodes[width + position] = load ?? .none }
        for node in stride(from: width - 1, to: 0, by: -1) {
            nodes[node] = WorkerLoad.bound(nodes[2 * node], nodes[2 * node + 1])
        }
    }

    /// Puts a worker in, or changes its load; nil takes it out.
    public mutating func set(_ position: Int, to load: WorkerLoad?) {
        var node = width + position
        guard nodes[node] != load ?? .none else { return }
        nodes[node] = load ?? .none
        while node > 1 {
            node /= 2
            let bound = WorkerLoad.bound(nodes[2 * node], nodes[2 * node + 1])
            guard bound != nodes[node] else { return }
            nodes[node] = bound
        }
    }

    public enum Look: Hashable, Sendable {
        /// This one.
        case take
        /// The next one, please.
        case pass
        /// None of those that follow either.
        case stop
    }

    /// The first worker that is taken, in the order of cost; ties by position. `cost` must not fall as a
    /// load grows.
    public func first(
        blocks: Int = .min + 1, cost: (WorkerLoad) -> Double, where look: (Int, Double) -> Look
    ) -> Int? {
        guard nodes[1].blocks >= blocks else { return nil }
        var frontier = Frontier()
        frontier.push(Frontier.Entry(cost: cost(nodes[1]), first: 0, node: 1))
        while let entry = frontier.pop() {
            guard entry.node < width else {
                switch look(entry.first, entry.cost) {
                case .take: return entry.first
                case .pass: continue
                case .stop: return nil
                }
            }
            for child in [2 * entry.node, 2 * entry.node + 1] where nodes[child].blocks >= blocks {
                frontier.push(Frontier.Entry(cost: cost(nodes[child]), first: firstPosition(under: child), node: child))
            }
        }
        return nil
    }

    private func firstPosition(under node: Int) -> Int {
        (node << (width.trailingZeroBitCount - (Int.bitWidth - 1 - node.leadingZeroBitCount))) - width
    }
}

/// Nodes whose workers have not been looked at: a binary heap by cost, ties by position.
private struct Frontier {
    struct Entry {
        var cost: Double
        /// The first position below it.
        var first: Int
        var node: Int

        func precedes(_ other: Entry) -> Bool { cost == other.cost ? first < other.first : cost < other.cost }
    }

    private var entries: ContiguousArray<Entry> = []

    init() { entries.reserveCapacity(32) }

    mutating func push(_ entry: Entry) {
        entries.append(entry)
        var child = entries.count - 1
        while child > 0, entry.precedes(entries[(child - 1) / 2]) {
            entries[child] = entries[(child - 1) / 2]
            child = (child - 1) / 2
        }
        entries[child] = entry
    }

    mutating func pop() -> Entry? {
        guard let first = entries.first, let last = entries.popLast() else { return nil }
        guard !entries.isEmpty else { return first }
        var parent = 0
        while true {
            var least = 2 * parent + 1
            guard least < entries.count else { break }
            if least + 1 < entries.count, entries[least + 1].precedes(entries[least]) { least += 1 }
            guard entries[least].precedes(last) else { break }
            entries[parent] = entries[least]
            parent = least
        }
        entries[parent] = last
        return first
    }
}
