import KVPaging
import Messages
import ServingTypes
import Testing

@Suite struct BlockTableTests {
    private func table(_ sequence: [TokenID], names: [PageID] = []) -> BlockTable {
        BlockTable(tokens: sequence, names: names, tenant: tenant, blockTokens: 4, naming: SumNaming())
    }

    @Test func aFullBlockIsSharedByTwoJobs() {
        var pool = BlockPool(blockCount: 8)
        let sequence = tokens(0..<10)
        var first = table(sequence)
        #expect(first.pin(limit: 2, in: &pool) == 0)
        #expect(first.grow(toCover: 10, in: &pool) == true)
        first.beginFilling(0..<10, in: &pool)
        first.seal(through: 10, of: sequence, naming: SumNaming(), in: &pool)
        #expect(first.sealed == 2)

        var second = table(sequence)
        #expect(second.cachedBlocks(limit: 2, in: pool) == 2)
        #expect(second.pin(limit: 2, in: &pool) == 2)
        #expect(second.slots == Array(first.slots.prefix(2)))
        #expect(pool.references(to: first.slots[0]) == 2)
        #expect(pool.audit(tables: [first, second]) == nil)
        first.release(in: &pool)
        #expect(pool.counts().committed == 2)
        second.release(in: &pool)
        #expect(pool.counts().evictable == 2)
        #expect(pool.counts().free == 6)
    }

    @Test func aPinnedPrefixStopsAtItsLimit() {
        var pool = BlockPool(blockCount: 8)
        let sequence = tokens(0..<8)
        var first = table(sequence)
        #expect(first.grow(toCover: 8, in: &pool) == true)
        first.beginFilling(0..<8, in: &pool)
        first.seal(through: 8, of: sequence, naming: SumNaming(), in: &pool)
        var second = table(sequence)
        #expect(second.pin(limit: 1, in: &pool) == 1)
        #expect(second.slots.count == 1)
    }

    @Test func anotherTenantFindsNothing() {
        var pool = BlockPool(blockCount: 4)
        let sequence = tokens(0..<4)
        var first = table(sequence)
        #expect(first.grow(toCover: 4, in: &pool) == true)
        first.beginFilling(0..<4, in: &pool)
        first.seal(through: 4, of: sequence, naming: SumNaming(), in: &pool)
        let other = BlockTable(
            tokens: sequence, names: [], tenant: TenantID("other"), blockTokens: 4, naming: SumNaming())
        #expect(other.cachedBlocks(limit: 1, in: pool) == 0)
    }

    @Test func missingNamesAreMadeFromTheTokens() {
        let naming = SumNaming()
        let sequence = tokens(0..<12)
        let names = naming.names(of: sequence, blockTokens: 4, tenant: tenant)
        var pool = BlockPool(blockCount: 4)
        var first = table(sequence, names: Array(names.prefix(1)))
        #expect(first.grow(toCover: 12, in: &pool) == true)
        first.beginFilling(0..<12, in: &pool)
        first.seal(through: 12, of: sequence, naming: naming, in: &pool)
        #expect(pool.prefixLength(of: names) == 3)
    }

    @Test func growthThatDoesNotFitTakesNothing() {
        var pool = BlockPool(blockCount: 2)
        var first = table(tokens(0..<4))
        #expect(first.grow(toCover: 5, in: &pool) == true)
        #expect(first.slots.count == 2)
        #expect(first.grow(toCover: 9, in: &pool) == false)
        #expect(first.slots.count == 2)
        #expect(first.grow(toCover: 8, in: &pool) == true)
    }

    @Test func aReceivedTailIsReadableButHasNoNameUntilItIsFull() {
        var pool = BlockPool(blockCount: 4)
        var sequence = tokens(0..<6)
        var first = table(sequence)
        #expect(first.grow(toCover: 7, in: &pool) == true)
        for slot in first.slots { pool.verify(slot) }
        first.commitReceived(through: 6, in: &pool)
        #expect(pool.counts().committed == 2)
        #expect(pool.indexedPages.count == 1)
        sequence += tokens(6..<9)
        #expect(first.grow(toCover: 9, in: &pool) == true)
        first.beginFilling(6..<9, in: &pool)
        first.seal(through: 8, of: sequence, naming: SumNaming(), in: &pool)
        #expect(pool.indexedPages == SumNaming().names(of: sequence, blockTokens: 4, tenant: tenant))
        #expect(pool.audit(tables: [first]) == nil)
    }

    @Test func theCacheForgetsEndsBeforeBeginnings() {
        var pool = BlockPool(blockCount: 3)
        let sequence = tokens(0..<12)
        var first = table(sequence)
        #expect(first.grow(toCover: 12, in: &pool) == true)
        first.beginFilling(0..<12, in: &pool)
        first.seal(through: 12, of: sequence, naming: SumNaming(), in: &pool)
        first.release(in: &pool)
        _ = pool.reserve(1)
        #expect(table(sequence).cachedBlocks(limit: 3, in: pool) == 2)
    }

    @Test func aFencedTableGivesItsSharedBlocksBackAtOnce() {
        var pool = BlockPool(blockCount: 4)
        let sequence = tokens(0..<8)
        var first = table(sequence)
        #expect(first.grow(toCover: 4, in: &pool) == true)
        first.beginFilling(0..<4, in: &pool)
        first.seal(through: 4, of: sequence, naming: SumNaming(), in: &pool)
        #expect(first.grow(toCover: 8, in: &pool) == true)
        let fenced = first.releaseFencing(in: &pool)
        #expect(fenced.count == 1)
        #expect(pool.counts().evictable == 1)
        #expect(pool.counts().fencing == 1)
        #expect(pool.audit(tables: [first]) == nil)
    }
}
