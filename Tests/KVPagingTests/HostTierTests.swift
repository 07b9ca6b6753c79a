import KVPaging
import ServingTypes
import Testing

struct HostTierTests {
    @Test func everyPlaceIsFreeReservedOrHeld() throws {
        var tier = HostTier(pages: 5)
        let reserved = tier.reserve(3)
        let taken = try #require(reserved)
        #expect(tier.counts().reserved == 3)
        let tooMany = tier.reserve(3)
        #expect(tooMany == nil, "two places are left")
        tier.hold(taken[0])
        tier.release(taken[1])
        #expect(tier.counts().held == 1 && tier.counts().reserved == 1 && tier.counts().free == 3)
        #expect(tier.counts().total == 5)
        #expect(tier.audit(reserved: [taken[2]], held: [taken[0]]) == nil)
        #expect(tier.audit(reserved: [], held: [taken[0]]) != nil, "a place without an owner is a leak")
        #expect(tier.audit(reserved: [taken[2]], held: [taken[2]]) != nil)
    }

    @Test func noTierGivesNoPlace() {
        var tier = HostTier(pages: 0)
        let (one, none) = (tier.reserve(1), tier.reserve(0))
        #expect(one == nil)
        #expect(none == [])
    }
}

struct SlotTableTests {
    @Test func whatHappensInATableHappensInADictionary() {
        var state: UInt64 = 7
        func draw(_ bound: UInt64) -> UInt64 {
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return (state >> 33) % bound
        }
        var table = SlotTable<JobID, [Int]>(vacant: [])
        var known: [JobID: [Int]] = [:]
        for step in 0..<20_000 {
            let key = JobID(high: draw(3), low: draw(200))
            switch draw(5) {
            case 0:
                table[key] = [step]
                known[key] = [step]
            case 1:
                let (removed, expected) = (table.removeValue(forKey: key), known.removeValue(forKey: key))
                #expect(removed == expected)
            case 2:
                table[key]?.append(step)
                known[key]?.append(step)
            case 3:
                table.change(key) { $0.append(step) }
                known[key]?.append(step)
            default: #expect(table.read(key) { $0.count } == known[key]?.count)
            }
            if step % 64 == 0 {
                #expect(table.count == known.count)
                #expect(Set(table.keys) == Set(known.keys))
            }
        }
        for (key, value) in known { #expect(table[key] == value) }
    }

    @Test func aQueueGivesItsElementsInTheOrderOfTheirComing() {
        var queue = FrontQueue<Int>()
        for number in 0..<1000 {
            queue.append(number)
            if number % 3 != 0 {
                #expect(queue.first == queue.all.first)
                queue.removeFirst()
            }
        }
        #expect(Array(queue.all) == Array(1000 - queue.count..<1000))
    }
}
