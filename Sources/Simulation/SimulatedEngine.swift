import KVPaging
import ServingTypes

/// The model of the simulation: the next token is a pure hash of all tokens before it, so that
/// every output is known beforehand and equality with it is the oracle of every fault. The stream
/// ends where the length that was drawn for the job ends it; no core is told that length.
struct TokenOracle: Sendable {
    static let endToken = TokenID(0)
    static let vocabulary: UInt64 = 50_000
    static let start: UInt64 = 0x7461_6e64_656d

    /// Of every token so far.
    private(set) var hash = start
    private(set) var outputTokens = 0
    /// Output tokens in all, the end token included.
    let length: Int

    init(prompt: [TokenID], length: Int) {
        self.length = length
        for token in prompt { hash = Hashing.fold(hash, UInt64(token.value)) }
    }

    static func token(after hash: UInt64, isLast: Bool) -> TokenID {
        isLast ? endToken : TokenID(UInt32(1 + Hashing.mix(hash) % (vocabulary - 1)))
    }

    mutating func next() -> TokenID {
        let token = Self.token(after: hash, isLast: outputTokens + 1 >= length)
        hash = Hashing.fold(hash, UInt64(token.value))
        outputTokens += 1
        return token
    }
}

/// What a block's storage holds: the hash of the sequence before it and after its filled positions.
struct SlotContent: Hashable, Sendable {
    var before: UInt64 = 0
    var after: UInt64 = 0
    var filled: Int32 = 0
    /// Whose tokens were written: nobody else may read them. No part of the page's bytes.
    var owner: UInt32 = 0

    /// Stands for the CRC of the page's bytes.
    var checksum: UInt32 {
        UInt32(truncatingIfNeeded: Hashing.fold(Hashing.fold(before, after), UInt64(clamping: filled)))
    }
}

/// Runs steps over slots without tensors. It reads what attention would read, so a block that was
/// reused too early, or never arrived, shows at once.
struct SimulatedEngine: Sendable {
    let blockTokens: Int
    /// Whether every block before the new tokens is checked, or the last one only.
    let readsEverything: Bool
    var slots: [SlotContent]

    init(blockCount: Int, blockTokens: Int, readsEverything: Bool) {
        self.blockTokens = blockTokens
        self.readsEverything = readsEverything
        slots = Array(repeating: SlotContent(), count: blockCount)
    }

    /// `length` says how many output tokens a job was drawn, `owner` stands for its tenant.
    mutating func run(
        _ batch: StepBatch, length: (JobID) -> Int?, owner: (JobID) -> UInt32 = { _ in 0 },
        complain: (String) -> Void
    ) -> [StepOutcome] {
        batch.entries.map { entry in
            guard let hash = write(entry, owner(entry.transfer.job), complain) else {
                return .failed(ServingError(.internalError, "the simulated engine read a block that is not there"))
            }
            guard let sample = entry.sample else { return .extended }
            let drawn = length(entry.transfer.job) ?? 1
            return .sampled(
                SampledToken(token: TokenOracle.token(after: hash, isLast: sample.outputTokens + 1 >= drawn)))
        }
    }

    private mutating func write(_ entry: StepEntry, _ owner: UInt32, _ complain: (String) -> Void) -> UInt64? {
        guard var hash = read(entry, owner, complain) else { return nil }
        var position = entry.startPosition
        for token in entry.tokens {
            let block = position / blockTokens
            guard block < entry.blockTable.count else {
                complain("\(entry.transfer) has no slot for position \(position)")
                return nil
            }
            let slot = Int(entry.blockTable[block].index)
            if position.isMultiple(of: blockTokens) {
                slots[slot] = SlotContent(before: hash, after: hash, filled: 0, owner: owner)
            }
            hash = Hashing.fold(hash, UInt64(token.value))
            slots[slot].after = hash
            slots[slot].filled += 1
            position += 1
        }
        return hash
    }

    /// The hash of everything before the new tokens.
    private func read(_ entry: StepEntry, _ owner: UInt32, _ complain: (String) -> Void) -> UInt64? {
        guard entry.startPosition > 0 else { return TokenOracle.start }
        let last = (entry.startPosition - 1) / blockTokens
        guard last < entry.blockTable.count else {
            complain("\(entry.transfer) has no slot for position \(entry.startPosition - 1)")
            return nil
        }
        var expected = TokenOracle.start
        for block in (readsEverything ? 0 : last)...last {
            let content = slots[Int(entry.blockTable[block].index)]
            let filled = block < last ? blockTokens : entry.startPosition - block * blockTokens
            if Int(content.filled) != filled || (readsEverything && content.before != expected) {
                complain(
                    "\(entry.transfer) reads block \(block) in slot \(entry.blockTable[block]): \(content.filled) of "
                        + "\(filled) positions, \(content.before == expected ? "right" : "other") prefix")
                return nil
            }
            if content.owner != owner {
                complain("\(entry.transfer) reads block \(block), which another tenant's job has written")
                return nil
            }
            expected = content.after
        }
        return expected
    }
}

/// Page names without a cryptographic library; good enough where nobody attacks.
public struct SimulatedNaming: PageNaming {
    /// A naming without tenants, so that their pages are shared: the checks must notice. For tests of them.
    var ignoresTenants = false

    public init() {}

    public func root(tenant: TenantID) -> PageID {
        var hash: UInt64 = 0x7061_6765
        for byte in ignoresTenants ? "".utf8 : tenant.name.utf8 { hash = Hashing.fold(hash, UInt64(byte)) }
        return PageID(hash, 1, 0, 0)
    }

    public func child(of parent: PageID, tokens: ArraySlice<TokenID>) -> PageID {
        var hash = parent.words.0
        for token in tokens { hash = Hashing.fold(hash, UInt64(token.value)) }
        return PageID(hash, Hashing.mix(hash ^ parent.words.1), 0, 0)
    }
}
