import Foundation
import ServingTypes
import Synchronization
import Testing

@testable import ModelRuntime

struct CoreShareTests {
    private func withPath<T>(_ body: (String) throws -> T) throws -> T {
        let path = NSTemporaryDirectory() + "cores-\(UUID().uuidString)"
        defer { try? FileManager.default.removeItem(atPath: path) }
        return try body(path)
    }

    private func share(_ path: String, _ cores: [Int] = [0, 1, 2, 3]) throws -> CoreShare {
        try #require(CoreShare(path: path, pinned: cores))
    }

    @Test func anEngineAloneTakesAllItMay() throws {
        try withPath { path in
            let share = try share(path)
            #expect(share.begin(4) == 4)
            #expect(share.adjust(4) == 4)
            share.end()
            #expect(share.begin(3) == 3)
            // More threads than cores serve nobody.
            #expect(share.begin(9) == 4)
        }
    }

    @Test func twoThatComputeShareTheCores() throws {
        try withPath { path in
            let (a, b) = (try share(path), try share(path))
            #expect(a.begin(4) == 4)
            #expect(b.begin(4) == 2)
            // The first gives way at its next region.
            #expect(a.adjust(4) == 2)
            #expect(b.adjust(4) == 2)
            b.end()
            // Others pause for less than a few regions between two steps.
            for _ in 1..<CoreShare.Limits.regionsUntilMore { #expect(a.adjust(4) == 2) }
            #expect(a.adjust(4) == 4)
            a.end()
        }
    }

    @Test func whatOthersLeaveIsTaken() throws {
        try withPath { path in
            let (a, b, c) = (try share(path), try share(path), try share(path))
            #expect(b.begin(1) == 1)
            #expect(a.begin(4) == 3)
            #expect(c.begin(4) == 1)
            #expect(a.adjust(4) == 2)
        }
    }

    /// Never more than the cores once all have looked, unless there are more engines than cores; never none.
    @Test func togetherTheyTakeNoMoreThanThereAre() throws {
        try withPath { path in
            for seed in UInt64(1)...20 {
                var random = SeededGenerator(seed: seed)
                let cores = Array(0..<Int.random(in: 1...12, using: &random))
                let shares = try (0..<Int.random(in: 1...6, using: &random)).map { _ in try share(path, cores) }
                let wanted = shares.map { _ in Int.random(in: 1...12, using: &random) }
                for (share, wanted) in zip(shares, wanted) { #expect(share.begin(wanted) >= 1) }
                for _ in 0..<2 * CoreShare.Limits.regionsUntilMore {
                    for (share, wanted) in zip(shares, wanted) { _ = share.adjust(wanted) }
                }
                let taken = shares.map(\.current)
                #expect(taken.reduce(0, +) <= max(cores.count, shares.count), "seed \(seed): \(taken)")
                #expect(zip(taken, wanted).allSatisfy { $0 >= 1 && $0 <= $1 }, "seed \(seed)")
                for share in shares { share.end() }
            }
        }
    }

    @Test func enginesOnOtherCoresDoNotCount() throws {
        try withPath { path in
            let (a, b) = (try share(path, [0, 1]), try share(path, [2, 3]))
            #expect(a.begin(2) == 2)
            #expect(b.begin(2) == 2)
            #expect(try share(path, [1, 2]).begin(2) == 1)
        }
    }

    /// A process that was killed leaves its threads behind, but not its lock.
    @Test func theDeadAreForgotten() throws {
        try withPath { path in
            let share = try share(path)
            let file = try FileHandle(forUpdating: URL(fileURLWithPath: path))
            try file.seek(toOffset: UInt64(5 * CoreShare.Limits.entryBytes))
            try file.write(contentsOf: Data([4, 0, 0, 0, 0, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0]))
            #expect(share.begin(4) == 2)
            for _ in 0..<CoreShare.Limits.stepsPerLook { _ = share.begin(4) }
            #expect(share.begin(4) == 4)
            // The living are not.
            let other = try self.share(path)
            _ = other.begin(4)
            for _ in 0..<2 * CoreShare.Limits.stepsPerLook { _ = share.begin(4) }
            #expect(share.begin(4) == 2)
        }
    }

    @Test func withoutMemoryOfItsOwnThereIsNoShare() throws {
        try withPath { path in
            #expect(CoreShare(path: path + "/none/such") == nil)
            FileManager.default.createFile(
                atPath: path, contents: Data(), attributes: [.posixPermissions: 0o666])
            #expect(CoreShare(path: path) == nil)
        }
        try withPath { path in
            let all = try (0..<CoreShare.Limits.engines).map { _ in try share(path) }
            #expect(CoreShare(path: path) == nil)
            withExtendedLifetime(all) {}
        }
    }

    private final class Counter: PartRunner {
        let counts = Mutex<[Int]>([])
        let workers = Mutex<Set<Int>>([])

        func runPart(_ part: Int, worker: Int) {
            counts.withLock { $0[part] += 1 }
            workers.withLock { _ = $0.insert(worker) }
        }
    }

    /// Workers come and go with another engine's steps, at any moment; every part is run once.
    @Test func everyPartIsRunOnceWhoeverTakesPart() throws {
        try withPath { path in
            let (mine, other) = (try share(path), try share(path))
            let pool = ComputePool(workers: 4, share: mine)
            var random = SeededGenerator(seed: 12)
            let counter = Counter()
            var isBusy = false
            for step in 0..<40 {
                pool.begin()
                for region in 0..<25 {
                    if Int.random(in: 0..<6, using: &random) == 0 {
                        isBusy.toggle()
                        if isBusy { _ = other.begin(4) } else { other.end() }
                    }
                    let parts = Int.random(in: 0...9, using: &random)
                    counter.counts.withLock { $0 = [Int](repeating: 0, count: parts) }
                    pool.run(parts, on: counter)
                    let counts = counter.counts.withLock { $0 }
                    #expect(counts.allSatisfy { $0 == 1 }, "seed 12, step \(step), region \(region): \(counts)")
                }
                pool.end()
                if step % 8 == 0 { usleep(300) }
            }
        }
    }

    @Test func onlyAsManyWorkersTakePartAsThereAreCoresLeft() throws {
        try withPath { path in
            let (mine, other) = (try share(path, [0, 1]), try share(path, [0, 1]))
            let pool = ComputePool(workers: 2, share: mine)
            _ = other.begin(2)
            let counter = Counter()
            counter.counts.withLock { $0 = [Int](repeating: 0, count: 64) }
            for _ in 0..<20 {
                pool.begin()
                for _ in 0..<10 { pool.run(64, on: counter) }
                pool.end()
            }
            #expect(counter.workers.withLock { $0 } == [0])
        }
    }

    @Test func aSharedMachineChangesNoBit() throws {
        try withPath { path in
            let spec = ModelSpec(
                family: .llama, layerCount: 2, hiddenSize: 256, headCount: 4, kvHeadCount: 2, headDim: 64, ffnSize: 320,
                vocabularySize: 70, contextTokensMax: 64)
            let weights = MemoryTensors(random: spec, type: .bf16, seed: 13)
            let other = try share(path, [0, 1])
            let logits = try [false, true].map { isShared in
                let paged = try Paged(spec, blockTokens: 4, type: .f32, positions: 32)
                var options = EngineOptions()
                options.threads = 3
                options.sharesCores = isShared
                options.coreSharePath = path
                let engine = try CPUEngine(spec: spec, weights: weights, store: paged.store, options: options)
                return try (0..<8).map { step in
                    if step % 3 == 0 { _ = other.begin(2) } else { other.end() }
                    let tokens = (0..<4).map { TokenID(UInt32(step * 4 + $0)) }
                    let batch = StepBatch(entries: [entry(tokens, at: step * 4, paged.table(0, positions: 32))])
                    return try engine.logits(batch, rows: .all).map { $0.map(\.bitPattern) }
                }
            }
            #expect(logits[0] == logits[1])
        }
    }
}
