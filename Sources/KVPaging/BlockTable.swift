import Messages
import ServingTypes

/// One job's blocks in order: slot `slots[b]` holds positions `b * blockTokens ..< (b + 1) *
/// blockTokens`. Leading full blocks that may be read are `sealed`; they may be shared.
public struct BlockTable: Sendable {
    public let blockTokens: Int
    public private(set) var slots: [BlockSlot] = []
    /// Leading full blocks that are committed.
    public private(set) var sealed = 0
    /// Names of the leading full blocks, as far as they are known.
    private var names: [PageID]
    private let root: PageID

    /// `names` are those of the first full blocks of `tokens`, from whoever has them; the rest is
    /// named here.
    public init(
        tokens: [TokenID], names: [PageID], tenant: TenantID, blockTokens: Int, naming: any PageNaming
    ) {
        precondition(blockTokens > 0)
        self.blockTokens = blockTokens
        self.names = names
        root = naming.root(tenant: tenant)
        name(through: tokens.count / blockTokens, of: tokens, naming)
    }

    /// An empty table of nobody's, for places that are free.
    public static let vacant = BlockTable()

    private init() {
        blockTokens = 1
        names = []
        root = PageID(0, 0, 0, 0)
    }

    public var capacityTokens: Int { slots.count * blockTokens }

    /// Blocks that hold this many positions.
    public static func blocks(for tokens: Int, blockTokens: Int) -> Int {
        tokens / blockTokens + (tokens % blockTokens == 0 ? 0 : 1)
    }

    private mutating func name(through count: Int, of tokens: [TokenID], _ naming: any PageNaming) {
        while names.count < count {
            let start = names.count * blockTokens
            names.append(naming.child(of: names.last ?? root, tokens: tokens[start..<start + blockTokens]))
        }
    }

    // MARK: Taking

    /// How many leading blocks, `limit` at most, are committed in the pool.
    public func cachedBlocks(limit: Int, in pool: BlockPool) -> Int { pool.prefixLength(of: names.prefix(limit)) }

    /// Holds the longest cached prefix of at most `limit` blocks. First call on an empty table.
    @discardableResult
    public mutating func pin(limit: Int, in pool: inout BlockPool) -> Int {
        precondition(slots.isEmpty)
        for page in names.prefix(limit) {
            guard let slot = pool.retain(page) else { break }
            slots.append(slot)
        }
        sealed = slots.count
        return sealed
    }

    /// Room for this many positions. False, and nothing taken, where the pool has not enough.
    public mutating func grow(toCover tokens: Int, in pool: inout BlockPool) -> Bool {
        let lacking = Self.blocks(for: tokens, blockTokens: blockTokens) - slots.count
        guard lacking > 0 else { return true }
        guard let taken = pool.reserve(lacking) else { return false }
        slots.append(contentsOf: taken)
        return true
    }

    // MARK: Filling

    /// A step is about to write these positions.
    public func beginFilling(_ positions: Range<Int>, in pool: inout BlockPool) {
        guard !positions.isEmpty else { return }
        for block in positions.lowerBound / blockTokens...(positions.upperBound - 1) / blockTokens {
            pool.beginFilling(slots[block])
        }
    }

    /// Positions below `computed` are there: full blocks are committed and indexed under the name
    /// of their tokens.
    public mutating func seal(
        through computed: Int, of tokens: [TokenID], naming: any PageNaming, in pool: inout BlockPool
    ) {
        name(through: computed / blockTokens, of: tokens, naming)
        while (sealed + 1) * blockTokens <= computed {
            pool.commit(slots[sealed], as: names[sealed])
            sealed += 1
        }
    }

    /// The received blocks of a transfer become readable, the tail of `computed` positions without
    /// a name.
    public mutating func commitReceived(through computed: Int, in pool: inout BlockPool) {
        while (sealed + 1) * blockTokens <= computed {
            pool.commit(slots[sealed], as: names[sealed])
            sealed += 1
        }
        if sealed * blockTokens < computed { pool.commit(slots[sealed], as: nil) }
    }

    /// Blocks of `computed` positions came back from the host tier: those behind the ones that the
    /// cache still had, each written whole.
    public mutating func commitReturned(through computed: Int, in pool: inout BlockPool) {
        for block in sealed..<Self.blocks(for: computed, blockTokens: blockTokens) { pool.verify(slots[block]) }
        commitReceived(through: computed, in: &pool)
    }

    // MARK: Giving back

    /// Lets go of everything, last block first, so that the cache forgets ends before beginnings.
    public mutating func release(in pool: inout BlockPool) {
        for slot in slots.reversed() { pool.release(slot) }
        slots.removeAll()
        sealed = 0
    }

    /// Lets go of the sealed blocks and fences the others, which a remote writer may still touch;
    /// they are returned, for `unfence`.
    public mutating func releaseFencing(in pool: inout BlockPool) -> [BlockSlot] {
        let fenced = Array(slots[sealed...])
        for slot in fenced { pool.fence(slot) }
        for slot in slots[..<sealed].reversed() { pool.release(slot) }
        slots.removeAll()
        sealed = 0
        return fenced
    }
}
