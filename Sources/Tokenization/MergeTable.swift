import ServingTypes

/// The merges of a byte-level BPE and the procedure that applies them to one word: of all adjacent
/// pairs that have a merge, always the lowest rank first, the leftmost of equals.
struct MergeTable: Sendable {
    /// The token of each single byte, nil where the vocabulary has none (the byte is dropped, as
    /// Hugging Face does without an unknown token).
    private var tokenOfByte: [UInt32?]
    /// Rank by pair, left id in the upper half.
    private var rankOfPair: [UInt64: UInt32]
    /// The merged token, by rank.
    private var tokenOfRank: [UInt32]

    /// Up to here looking at every pair again after each merge is quicker than a heap.
    private static let searchedSymbolsMax = 24

    init(tokenOfByte: [UInt32?], mergesCapacity: Int) {
        self.tokenOfByte = tokenOfByte
        rankOfPair = [:]
        rankOfPair.reserveCapacity(mergesCapacity)
        tokenOfRank = []
        tokenOfRank.reserveCapacity(mergesCapacity)
    }

    /// The next rank goes to this pair; a pair given again keeps only its later rank.
    mutating func append(left: UInt32, right: UInt32, merged: UInt32) {
        rankOfPair[Self.pair(left, right)] = UInt32(tokenOfRank.count)
        tokenOfRank.append(merged)
    }

    private static func pair(_ left: UInt32, _ right: UInt32) -> UInt64 { UInt64(left) << 32 | UInt64(right) }

    private func rank(_ left: UInt32, _ right: UInt32) -> UInt32? { rankOfPair[Self.pair(left, right)] }

    /// The tokens of one word. O(n log n) in its length.
    func tokens(of word: some Sequence<UInt8>) -> [TokenID] {
        var symbols: [UInt32] = []
        for byte in word {
            if let token = tokenOfByte[Int(byte)] { symbols.append(token) }
        }
        if symbols.count <= Self.searchedSymbolsMax {
            mergeBySearch(&symbols)
        } else {
            mergeByHeap(&symbols)
        }
        return symbols.map { TokenID($0) }
    }

    func mergeBySearch(_ symbols: inout [UInt32]) {
        var ranks: [UInt32] = []
        for place in symbols.indices.dropLast() {
            ranks.append(rank(symbols[place], symbols[place + 1]) ?? .max)
        }
        while true {
            var best = UInt32.max
            var place = 0
            for (candidate, rank) in ranks.enumerated() where rank < best {
                best = rank
                place = candidate
            }
            guard best < .max else { return }
            symbols[place] = tokenOfRank[Int(best)]
            symbols.remove(at: place + 1)
            ranks.remove(at: place)
            if place < ranks.count { ranks[place] = rank(symbols[place], symbols[place + 1]) ?? .max }
            if place > 0 { ranks[place - 1] = rank(symbols[place - 1], symbols[place]) ?? .max }
        }
    }

    /// Symbols in a doubly linked list; candidate merges in a heap by (rank, place). A candidate that
    /// its neighbours have outgrown is recognised when it surfaces, because its rank is no longer the
    /// pair's.
    func mergeByHeap(_ symbols: inout [UInt32]) {
        let count = symbols.count
        var next = (1...max(count, 1)).map { Int32(truncatingIfNeeded: $0) }
        var previous = (0..<count).map { Int32(truncatingIfNeeded: $0 - 1) }
        var alive = [Bool](repeating: true, count: count)
        var heap = CandidateHeap()
        for place in 0..<max(count - 1, 0) {
            if let rank = rank(symbols[place], symbols[place + 1]) { heap.append(rank: rank, place: place) }
        }
        heap.order()
        while let (candidate, place) = heap.pop() {
            let right = Int(next[place])
            guard alive[place], right < count, rank(symbols[place], symbols[right]) == candidate else { continue }
            symbols[place] = tokenOfRank[Int(candidate)]
            alive[right] = false
            let after = Int(next[right])
            next[place] = Int32(truncatingIfNeeded: after)
            if after < count {
                previous[after] = Int32(truncatingIfNeeded: place)
                if let rank = rank(symbols[place], symbols[after]) { heap.push(rank: rank, place: place) }
            }
            let before = Int(previous[place])
            if before >= 0, let rank = rank(symbols[before], symbols[place]) { heap.push(rank: rank, place: before) }
        }
        var kept = 0
        for place in 0..<count where alive[place] {
            symbols[kept] = symbols[place]
            kept += 1
        }
        symbols.removeLast(count - kept)
    }
}

/// A binary min-heap of (rank, place), packed so that one comparison orders both.
struct CandidateHeap {
    private var entries: [UInt64] = []

    mutating func append(rank: UInt32, place: Int) {
        entries.append(UInt64(rank) << 32 | UInt64(UInt32(truncatingIfNeeded: place)))
    }

    /// Makes a heap of what `append` gathered.
    mutating func order() {
        var parent = entries.count / 2
        while parent > 0 {
            parent -= 1
            sink(parent)
        }
    }

    mutating func push(rank: UInt32, place: Int) {
        append(rank: rank, place: place)
        var child = entries.count - 1
        while child > 0 {
            let parent = (child - 1) / 2
            guard entries[child] < entries[parent] else { return }
            entries.swapAt(child, parent)
            child = parent
        }
    }

    mutating func pop() -> (rank: UInt32, place: Int)? {
        guard let first = entries.first, let last = entries.popLast() else { return nil }
        if !entries.isEmpty {
            entries[0] = last
            sink(0)
        }
        return (UInt32(truncatingIfNeeded: first >> 32), Int(UInt32(truncatingIfNeeded: first)))
    }

    private mutating func sink(_ start: Int) {
        var parent = start
        while true {
            var least = parent
            let left = 2 * parent + 1
            if left < entries.count, entries[left] < entries[least] { least = left }
            if left + 1 < entries.count, entries[left + 1] < entries[least] { least = left + 1 }
            guard least != parent else { return }
            entries.swapAt(least, parent)
            parent = least
        }
    }
}
