import Testing

@testable import Scheduling

struct LoadTreeTests {
    private func load(_ random: inout SeededGenerator) -> WorkerLoad {
        WorkerLoad(
            queuedTokens: random.pick(0...5), jobs: random.pick(0...5), blocks: random.pick(0...9))
    }

    @Test(arguments: UInt64(1)...60)
    func looksInOrderOfCostAndTiesInOrderOfPosition(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed)
        let count = random.pick(1...40)
        var loads = (0..<count).map { _ in random.chance(70) ? load(&random) : nil }
        var tree = LoadTree()
        tree.fill(loads)
        for _ in 0..<20 {
            let place = random.pick(0...count - 1)
            loads[place] = random.chance(80) ? load(&random) : nil
            tree.set(place, to: loads[place])
            let (a, b, blocks) = (Double(random.pick(0...2)), Double(random.pick(0...2)), random.pick(0...9))
            func cost(_ load: WorkerLoad) -> Double { a * Double(load.queuedTokens) + b * Double(load.jobs) }
            var seen: [Int] = []
            let found = tree.first(blocks: blocks, cost: cost) { position, seconds in
                #expect(loads[position].map(cost) == seconds)
                seen.append(position)
                return .pass
            }
            let expected = loads.indices.filter { loads[$0].map { $0.blocks >= blocks } ?? false }
                .sorted { x, y in
                    let (p, q) = (loads[x].map(cost) ?? 0, loads[y].map(cost) ?? 0)
                    return p == q ? x < y : p < q
                }
            #expect(found == nil)
            #expect(seen == expected, "seed \(seed)")
            #expect(tree.isEmpty == loads.allSatisfy { $0 == nil })
            #expect(tree.least?.jobs == loads.compactMap { $0?.jobs }.min())
        }
    }

    @Test func endsWithTheOneThatIsTakenOrWhereItIsToStop() {
        var tree = LoadTree()
        tree.fill((0..<9).map { WorkerLoad(queuedTokens: 9 - $0, jobs: 0, blocks: 1) })
        func cost(_ load: WorkerLoad) -> Double { Double(load.queuedTokens) }
        #expect(tree.first(cost: cost) { position, _ in position < 6 ? .take : .pass } == 5)
        #expect(tree.first(cost: cost) { position, _ in position == 7 ? .stop : .pass } == nil)
        #expect(tree.first(blocks: 2, cost: cost) { _, _ in .take } == nil)
    }

    /// What a search looks at grows with the logarithm of the number of workers.
    @Test func takesFewLooksAmongManyWorkers() {
        for count in [10, 100, 1000, 10_000] {
            var tree = LoadTree()
            tree.fill((0..<count).map { WorkerLoad(queuedTokens: 0, jobs: ($0 * 7919) % 97, blocks: 1) })
            var prices = 0
            let found = tree.first { load in
                prices += 1
                return Double(load.jobs)
            } where: { _, _ in
                .take
            }
            #expect(found != nil)
            #expect(prices <= 2 * 14 + 1, "\(count) workers")
        }
    }
}
