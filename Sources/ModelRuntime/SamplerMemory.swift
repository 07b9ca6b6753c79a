/// A token that may be drawn; weights are relative to the largest, which is 1.
struct Candidate: Comparable, BitwiseCopyable {
    var token: Int
    var weight: Float

    /// Best first; equals by ascending token.
    static func < (a: Candidate, b: Candidate) -> Bool {
        a.weight > b.weight || (a.weight == b.weight && a.token < b.token)
    }
}

/// What drawing needs beside the logits, kept from draw to draw; used by one thread at a time. It grows with
/// the vocabulary and with the longest history that a penalty looks at.
public final class SamplerMemory {
    let candidates = GrowingBuffer<Candidate>()
    /// Sums of weights by their upper bits.
    let bins = GrowingBuffer<Double>()
    /// Logits before they are adjusted, for log-probabilities.
    let raw = GrowingBuffer<Float>()

    public init() {}

    /// A list without elements, with room for `capacity`.
    func list(_ capacity: Int) -> CandidateList {
        CandidateList(base: candidates.reserve(capacity), capacity: capacity)
    }
}

/// Candidates in memory that is there already: in any order, or as a heap whose root is the worst of them.
struct CandidateList {
    private let base: UnsafeMutablePointer<Candidate>
    private let capacity: Int
    private(set) var count = 0

    init(base: UnsafeMutablePointer<Candidate>, capacity: Int) {
        self.base = base
        self.capacity = capacity
    }

    subscript(index: Int) -> Candidate { base[index] }

    /// In the order of the list.
    var elements: UnsafeMutableBufferPointer<Candidate> { UnsafeMutableBufferPointer(start: base, count: count) }

    /// Adds at the end; there is room.
    mutating func append(_ candidate: Candidate) {
        guard count < capacity else { return }
        base[count] = candidate
        count += 1
    }

    /// Keeps the `capacity` best of all that were offered, as a heap.
    mutating func offer(_ candidate: Candidate) {
        if count < capacity {
            append(candidate)
            siftUp()
        } else if capacity > 0, candidate < base[0] {
            base[0] = candidate
            siftDown(0, count)
        }
    }

    /// Puts the best first.
    mutating func sort() {
        for parent in stride(from: count / 2 - 1, through: 0, by: -1) { siftDown(parent, count) }
        for end in stride(from: count - 1, to: 0, by: -1) {
            (base[0], base[end]) = (base[end], base[0])
            siftDown(0, end)
        }
    }

    /// Drops all from `length` on.
    mutating func cut(to length: Int) { count = min(count, length) }

    private func siftUp() {
        var child = count - 1
        while child > 0, base[(child - 1) / 2] < base[child] {
            (base[child], base[(child - 1) / 2]) = (base[(child - 1) / 2], base[child])
            child = (child - 1) / 2
        }
    }

    private func siftDown(_ start: Int, _ end: Int) {
        var parent = start
        while true {
            var worst = parent
            let left = 2 * parent + 1
            if left < end, base[worst] < base[left] { worst = left }
            if left + 1 < end, base[worst] < base[left + 1] { worst = left + 1 }
            if worst == parent { return }
            (base[parent], base[worst]) = (base[worst], base[parent])
            parent = worst
        }
    }
}
