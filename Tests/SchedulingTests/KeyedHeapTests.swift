import Testing

@testable import Scheduling

struct KeyedHeapTests {
    @Test func theHeapAgreesWithASortedListWhateverIsDoneToIt() {
        for seed in UInt64(0)..<30 {
            var random = SeededGenerator(seed: seed)
            var heap = KeyedHeap<Int, Int>()
            var list: [Int: Int] = [:]
            for step in 0..<300 {
                let id = random.pick(0...40)
                if random.chance(65) {
                    let key = random.pick(0...1000) * 1000 + step
                    heap.set(id, to: key)
                    list[id] = key
                } else {
                    #expect(heap.remove(id) == list.removeValue(forKey: id), "seed \(seed)")
                }
                #expect(heap.first?.key == list.values.min(), "seed \(seed) step \(step)")
                #expect(heap.count == list.count, "seed \(seed)")
            }
            var drained: [Int] = []
            while let first = heap.removeFirst() { drained.append(first.key) }
            #expect(drained == list.values.sorted(), "seed \(seed)")
        }
    }
}
