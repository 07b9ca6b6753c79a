import KVPaging
import Messages
import ServingTypes
import Testing

@Suite struct BlockPoolTests {
    /// A slot that is committed under a name and held once.
    private func commit(_ pool: inout BlockPool, _ number: Int) throws -> BlockSlot {
        let slot = try #require(pool.reserve(1)?.first)
        pool.beginFilling(slot)
        pool.commit(slot, as: page(number))
        return slot
    }

    @Test func aFullPoolRefusesAndTakesNothing() {
        var pool = BlockPool(blockCount: 3)
        #expect(pool.reserve(2)?.count == 2)
        #expect(pool.reserve(2) == nil)
        #expect(pool.counts().free == 1)
        #expect(pool.reserve(1)?.count == 1)
        #expect(pool.reserve(0) == [])
        #expect(pool.counts().total == 3)
    }

    @Test func aCommittedBlockStaysInTheCacheWhenItsLastHolderLeaves() throws {
        var pool = BlockPool(blockCount: 2)
        let slot = try commit(&pool, 1)
        #expect(pool.prefixLength(of: [page(1), page(2)]) == 1)
        pool.release(slot)
        #expect(pool.state(of: slot) == .evictable)
        #expect(pool.available == 2)
        #expect(pool.retain(page(1)) == slot)
        #expect(pool.state(of: slot) == .committed)
        #expect(pool.audit(tables: []) != nil, "an audit that is not told of a holder must say so")
    }

    @Test func anUncommittedBlockIsFreeAtOnceAndNotInTheIndex() throws {
        var pool = BlockPool(blockCount: 1)
        let slot = try #require(pool.reserve(1)?.first)
        pool.beginFilling(slot)
        pool.verify(slot)
        #expect(pool.counts().verified == 1)
        pool.release(slot)
        #expect(pool.state(of: slot) == .free)
        #expect(pool.takeChanges() == [])
        #expect(pool.audit(tables: []) == nil)
    }

    @Test func theLeastRecentlyReleasedBlockIsEvictedFirst() throws {
        var pool = BlockPool(blockCount: 3)
        let slots = try (0..<3).map { try commit(&pool, $0) }
        pool.release(slots[1])
        pool.release(slots[0])
        pool.release(slots[2])
        // Revived and released again: now the youngest.
        #expect(pool.retain(page(1)) == slots[1])
        pool.release(slots[1])
        #expect(pool.reserve(1) == [slots[0]])
        #expect(pool.reserve(1) == [slots[2]])
        #expect(pool.prefixLength(of: [page(1)]) == 1)
        #expect(pool.reserve(1) == [slots[1]])
        #expect(pool.prefixLength(of: [page(1)]) == 0)
        #expect(pool.reserve(1) == nil)
    }

    @Test func aHeldBlockIsNeverEvicted() throws {
        var pool = BlockPool(blockCount: 2)
        let slot = try commit(&pool, 1)
        #expect(pool.reserve(1)?.count == 1)
        #expect(pool.reserve(1) == nil)
        #expect(pool.state(of: slot) == .committed)
    }

    @Test func theFirstCopyOfAPageWinsAndTheOtherStaysPrivate() throws {
        var pool = BlockPool(blockCount: 2)
        let first = try commit(&pool, 1)
        let second = try #require(pool.reserve(1)?.first)
        pool.beginFilling(second)
        #expect(pool.commit(second, as: page(1)) == false)
        #expect(pool.retain(page(1)) == first)
        pool.release(first)
        pool.release(second)
        #expect(pool.state(of: second) == .free)
        pool.release(first)
        #expect(pool.state(of: first) == .evictable)
        #expect(pool.audit(tables: []) == nil)
    }

    @Test func aFencedSlotIsNotGivenOutBeforeItsFenceOpens() throws {
        var pool = BlockPool(blockCount: 1)
        let slot = try #require(pool.reserve(1)?.first)
        pool.fence(slot)
        #expect(pool.counts().fencing == 1)
        #expect(pool.reserve(1) == nil)
        pool.unfence(slot)
        #expect(pool.reserve(1) == [slot])
    }

    @Test func changesOfTheIndexAreToldInOrder() throws {
        var pool = BlockPool(blockCount: 2)
        let first = try commit(&pool, 1)
        let second = try commit(&pool, 2)
        #expect(pool.takeChanges() == [.stored([page(1), page(2)])])
        pool.release(first)
        pool.release(second)
        #expect(pool.takeChanges() == [])
        _ = pool.reserve(2)
        #expect(pool.takeChanges() == [.removed([page(1), page(2)])])
        #expect(pool.indexedPages.isEmpty)
    }

    @Test func thePoolIsConservedThroughRandomUse() {
        for seed: UInt64 in 0..<150 {
            var random = SeededGenerator(seed: seed)
            var pool = BlockPool(blockCount: 4 + random.below(20))
            var tables: [BlockTable] = []
            var fenced: [BlockSlot] = []
            var mirror: Set<PageID> = []
            for step in 0..<120 {
                let choice = random.below(10)
                if choice < 4 {
                    let sequence = tokens((0..<1 + random.below(24)).map { _ in random.below(2) })
                    var table = BlockTable(
                        tokens: sequence, names: [], tenant: tenant, blockTokens: 4, naming: SumNaming())
                    table.pin(limit: sequence.count / 4, in: &pool)
                    let reused = table.sealed * 4
                    if table.grow(toCover: sequence.count, in: &pool) {
                        if random.below(2) == 0 {
                            table.beginFilling(reused..<sequence.count, in: &pool)
                            table.seal(through: sequence.count, of: sequence, naming: SumNaming(), in: &pool)
                        }
                        tables.append(table)
                    } else {
                        table.release(in: &pool)
                    }
                } else if choice < 7, !tables.isEmpty {
                    var table = tables.remove(at: random.below(tables.count))
                    table.release(in: &pool)
                } else if choice < 8, let index = tables.indices.first(where: { self.isUnwritten(tables[$0], pool) }) {
                    var table = tables.remove(at: index)
                    fenced += table.releaseFencing(in: &pool)
                } else if !fenced.isEmpty {
                    pool.unfence(fenced.remove(at: random.below(fenced.count)))
                }
                for change in pool.takeChanges() {
                    switch change {
                    case .stored(let pages): mirror.formUnion(pages)
                    case .removed(let pages): mirror.subtract(pages)
                    case .snapshot: Issue.record("the pool tells no snapshots")
                    }
                }
                let broken = pool.audit(tables: tables)
                #expect(broken == nil, "seed \(seed), step \(step)")
                #expect(pool.counts().fencing == fenced.count, "seed \(seed), step \(step)")
                #expect(mirror == Set(pool.indexedPages), "seed \(seed), step \(step)")
                if broken != nil { return }
            }
            for index in tables.indices { tables[index].release(in: &pool) }
            for slot in fenced { pool.unfence(slot) }
            #expect(pool.available == pool.blockCount, "seed \(seed)")
        }
    }

    private func isUnwritten(_ table: BlockTable, _ pool: BlockPool) -> Bool {
        table.slots.dropFirst(table.sealed).allSatisfy { pool.state(of: $0) == .reserved }
    }
}
