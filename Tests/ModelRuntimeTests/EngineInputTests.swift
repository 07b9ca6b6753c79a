import ServingTypes
import Synchronization
import Testing

@testable import ModelRuntime

struct EngineInputTests {
    let spec = ModelSpec(
        family: .llama, layerCount: 1, hiddenSize: 16, headCount: 2, kvHeadCount: 1, headDim: 8, ffnSize: 24,
        vocabularySize: 20, contextTokensMax: 32)

    private func engine(_ weights: MemoryTensors, _ options: EngineOptions = EngineOptions()) throws -> CPUEngine {
        let paged = try Paged(spec, blockTokens: 4, type: .bf16, positions: 32)
        return try CPUEngine(spec: spec, weights: weights, store: paged.store, options: options)
    }

    private func failure(_ weights: MemoryTensors) -> ServingError? {
        do {
            _ = try engine(weights)
            return nil
        } catch {
            return error as? ServingError
        }
    }

    @Test func aMissingTensorIsNamedWithTheShapeItShouldHave() {
        let weights = MemoryTensors(random: spec, type: .f32, seed: 1)
        weights.remove("model.layers.0.mlp.up_proj.weight")
        let error = failure(weights)
        #expect(error?.message.contains("model.layers.0.mlp.up_proj.weight") == true)
        #expect(error?.message.contains("[24, 16]") == true)
        #expect(error?.blast == .process)
    }

    @Test func aTensorOfAnotherShapeIsNamedWithBothShapes() {
        let weights = MemoryTensors(random: spec, type: .f32, seed: 1)
        weights.set("lm_head.weight", [20, 15], .f32, [UInt8](repeating: 0, count: 1200))
        let error = failure(weights)
        #expect(error?.message == "lm_head.weight: shape [20, 15], expected [20, 16]")
    }

    @Test func progressReachesTheWhole() throws {
        let seen = Mutex<[(Int, Int)]>([])
        var options = EngineOptions()
        options.progress = { loaded, total in seen.withLock { $0.append((loaded, total)) } }
        _ = try engine(MemoryTensors(random: spec, type: .f16, seed: 1), options)
        let calls = seen.withLock { $0 }
        let total = try #require(calls.last).1
        #expect(calls.last?.0 == total)
        #expect(calls.map(\.0) == calls.map(\.0).sorted())
    }

    @Test func aPoolCutForAnotherModelIsRefused() throws {
        var other = spec
        other.headDim = 4
        let paged = try Paged(other, blockTokens: 4, type: .bf16, positions: 32)
        let weights = MemoryTensors(random: spec, type: .f32, seed: 1)
        #expect(throws: ServingError.self) { try CPUEngine(spec: spec, weights: weights, store: paged.store) }
    }

    @Test func sizesThatCannotBeComputedAreRefused() throws {
        let paged = try Paged(spec, blockTokens: 4, type: .bf16, positions: 32)
        let weights = MemoryTensors(random: spec, type: .f32, seed: 1)
        for change in [
            { (spec: inout ModelSpec) in spec.headCount = 3 }, { $0.headDim = 7 }, { $0.layerCount = 0 },
            { $0.vocabularySize = 1 << 40 },
        ] {
            var broken = spec
            broken.kvHeadCount = 2
            change(&broken)
            #expect(throws: ServingError.self) { try CPUEngine(spec: broken, weights: weights, store: paged.store) }
        }
    }

    @Test func aBadEntryFailsAlone() throws {
        let engine = try engine(MemoryTensors(random: spec, type: .f32, seed: 1))
        let good = entry(
            [TokenID(1), TokenID(2)], at: 0, [BlockSlot(0)], sample: greedy(promptTokens: 2, outputTokens: 0))
        let alone = engine.step(StepBatch(entries: [good])).outcomes[0]
        let bad = [
            entry([], at: 0, [BlockSlot(1)]), entry([TokenID(20)], at: 0, [BlockSlot(1)]),
            entry([TokenID(1)], at: 0, []), entry([TokenID(1)], at: 4, [BlockSlot(1)]),
            entry([TokenID(1)], at: 0, [BlockSlot(99)]), entry([TokenID(1)], at: -1, [BlockSlot(1)]),
            entry([TokenID(1)], at: .max, [BlockSlot(1)]),
            entry([TokenID(1)], at: 32, [BlockSlot](repeating: BlockSlot(1), count: 9)),
        ]
        for one in bad {
            let outcomes = engine.step(StepBatch(entries: [one, good])).outcomes
            guard case .failed(let error) = outcomes[0] else {
                Issue.record("\(outcomes[0])")
                continue
            }
            #expect(error.blast == .request && !error.message.isEmpty)
            #expect(outcomes[1] == alone)
        }
    }

    @Test func logitsThatAreNotNumbersFailTheirOwnJobOnly() throws {
        let weights = MemoryTensors(random: spec, type: .f32, seed: 1)
        let view = try #require(try weights.tensor(named: "model.embed_tokens.weight"))
        UnsafeMutableRawPointer(mutating: view.base).storeBytes(of: .nan, toByteOffset: 3 * 16 * 4, as: Float.self)
        let engine = try engine(weights)
        let request = greedy(promptTokens: 1, outputTokens: 0)
        let outcomes = engine.step(
            StepBatch(entries: [
                entry([TokenID(3)], at: 0, [BlockSlot(0)], sample: request),
                entry([TokenID(4)], at: 0, [BlockSlot(1)], sample: request), entry([TokenID(4)], at: 0, [BlockSlot(2)]),
            ])
        ).outcomes
        guard case .failed = outcomes[0], case .sampled = outcomes[1] else {
            Issue.record("\(outcomes)")
            return
        }
        #expect(outcomes[2] == .extended)
    }
}

struct KVStoreTests {
    let layout = KVStore.Layout(blockTokens: 3, layerCount: 2, kvHeadCount: 2, headDim: 6, elementType: .f16)

    @Test func aPageIsLayersOfKeysThenValuesByHead() {
        #expect(layout.pageBytes == 2 * 2 * 2 * 3 * 6 * 2)
        #expect(layout.layerRangeBytes(1..<2) == 144..<288)
        #expect(layout.keyOffset(layer: 1, kvHead: 1) == 144 + 36)
        #expect(layout.valueOffset(layer: 0, kvHead: 1) == 72 + 36)
    }

    @Test func pagesDoNotOverlapAndStayWhereTheyAre() throws {
        let store = try KVStore(layout: layout, slotCount: 5)
        for index in 0..<5 {
            let page = store.page(BlockSlot(UInt32(index)))
            #expect(page.count == layout.pageBytes && page.allSatisfy { $0 == 0 })
            page.initializeMemory(as: UInt8.self, repeating: UInt8(index + 1))
        }
        for index in 0..<5 {
            #expect(store.page(BlockSlot(UInt32(index))).allSatisfy { $0 == UInt8(index + 1) })
        }
        #expect(Int(bitPattern: store.page(BlockSlot(0)).baseAddress).isMultiple(of: 4096))
    }

    @Test func aPoolBeyondAllMemoryIsRefused() {
        #expect(throws: ServingError.self) { try KVStore(layout: layout, slotCount: 0) }
        var wide = layout
        wide.headDim = 1 << 40
        #expect(throws: ServingError.self) { try KVStore(layout: wide, slotCount: 1) }
        wide = KVStore.Layout(blockTokens: 1024, layerCount: 1024, kvHeadCount: 1024, headDim: 1024, elementType: .f32)
        #expect(throws: ServingError.self) { try KVStore(layout: wide, slotCount: 1 << 24) }
    }
}

struct ComputePoolTests {
    @Test(arguments: [1, 2, 3, 6]) func everyPartRunsOnceHoweverManyWorkersThereAre(_ workers: Int) {
        let pool = ComputePool(workers: workers)
        #expect(pool.workerCount == workers)
        for round in 0..<300 {
            let parts = round % 17
            let counts = UnsafeMutablePointer<Int>.allocate(capacity: 17)
            counts.initialize(repeating: 0, count: 17)
            defer { counts.deallocate() }
            pool.run(parts) { part, worker in
                counts[part] += worker < workers ? 1 : 100
            }
            let all = (0..<17).map { counts[$0] }
            #expect(all == (0..<17).map { $0 < parts ? 1 : 0 }, "round \(round)")
        }
    }

    @Test func workersThatSleptWakeAgain() {
        let pool = ComputePool(workers: 3)
        let sum = Atomic<Int>(0)
        for _ in 0..<20 {
            // Long enough for the others to stop spinning.
            for _ in 0..<20_000 { _ = sum.load(ordering: .relaxed) }
            pool.run(8) { part, _ in sum.add(part, ordering: .relaxed) }
        }
        #expect(sum.load(ordering: .relaxed) == 20 * 28)
    }
}
