import CKernels
import Glibc
import ServingTypes
import Synchronization

/// All packed matrices of a model, and the work of packing them: mapped from the cache's file, or packed and
/// written to it, or packed in private memory.
///
/// Unchecked: matrices are made in `init` and change by their atomic alone; arenas are touched by whoever packs,
/// which is one thread, and only kept by others; `steps` is a mutex.
final class PackedMatrices: @unchecked Sendable {
    /// In the order of their plans.
    let matrices: UnsafeMutableBufferPointer<PackedMatrix>
    /// Bytes of all panels.
    let byteCount: Int
    private let plans: [PackingPlan]
    private let source: any TensorSource
    private let kernels: Kernels
    private let cache: PackedWeightsCache?
    /// Where they are from, once all are packed.
    private(set) var origin = Origin.memory("nothing is packed yet")
    /// Whatever matrices point into.
    private var arenas: [PackedArena] = []
    private let steps = Mutex(Steps())
    private let isStopping = Atomic<Bool>(false)
    /// Everything is packed and released.
    private let isSettled = Atomic<Bool>(false)

    /// Where packed matrices lie.
    enum Origin {
        /// A file that was there.
        case mapped(PackedImage)
        /// A file that was made.
        case written(PackedImage)
        /// Private memory, and why.
        case memory(String)
    }

    /// What keeps sources in memory while a step may read them.
    private struct Steps {
        var isRunning = false
        var packed: [String] = []
        var isPackingDone = false
        var count = 0
    }

    private enum Limits {
        /// Bytes of a source that are made resident at once.
        static let touchBytes = 4 << 20
        /// How long packing waits for the first step to come and go: half a second at most.
        static let firstStepPolls = 50
        static let pollMicroseconds: UInt32 = 10_000
    }

    init(
        plans: [PackingPlan], byteCount: Int, source: any TensorSource, kernels: Kernels, cache: PackedWeightsCache?
    ) {
        (self.plans, self.byteCount, self.source) = (plans, byteCount, source)
        (self.kernels, self.cache) = (kernels, cache)
        matrices = .allocate(capacity: plans.count)
        for (index, plan) in plans.enumerated() { matrices.initializeElement(at: index, to: PackedMatrix(plan)) }
    }

    deinit {
        matrices.deinitialize()
        matrices.deallocate()
    }

    /// Bytes of the plans' tensors as the source has them.
    private var storedBytes: Int { plans.reduce(0) { $0 + $1.stored.byteCount } }

    /// Whether no matrix has to be quantised, which is too dear to be done again for every product.
    var canWait: Bool { plans.allSatisfy { !$0.quantises } }

    private var image: PackedImage? {
        source.identity.map { PackedImage(source: $0, plans: plans, byteCount: byteCount) }
    }

    // MARK: - Having them

    /// Maps the cache's file if there is a good one; `progress` is called with (source bytes so far).
    func mapIfWritten(_ pool: ComputePool, _ progress: @escaping (Int) -> Void) -> Bool {
        guard let cache, let image, let arena = cache.find(image, pool: pool, progress: share(progress)) else {
            return false
        }
        adopt(arena, image)
        return true
    }

    /// Packs everything, or maps it; `progress` is called with (source bytes so far). Throws where there is no
    /// memory for it, or `needsFile` and no file. Ends early after `stop`.
    func pack(
        _ pool: ComputePool, needsFile: Bool = false, _ progress: @escaping (Int) -> Void
    ) throws(ServingError) {
        if let cache, let image {
            let isCancelled = { self.isStopping.load(ordering: .relaxed) }
            switch cache.open(image, pool: pool, progress: share(progress), isCancelled: isCancelled) {
            case .mapped(let arena): return adopt(arena, image)
            case .writer(let writer): try packAndWrite(writer, pool, cache, progress)
            case .unavailable(let reason): origin = .memory(reason)
            }
        } else {
            origin = .memory(cache == nil ? "no folder for it was named" : "the model is not in files")
        }
        if needsFile, case .memory(let reason) = origin {
            throw ServingError(
                .internalError, "packed weights: no file was written, \(reason)", field: "packed-cache",
                blast: .process)
        }
        try packInMemory(pool, progress)
    }

    /// Reads in what the system does not hold of the sources, so that the first products find all of them in
    /// memory. What it holds is left to them to map, which is cheaper then.
    func touch(_ pool: ComputePool, _ progress: (Int) -> Void) {
        var touched = 0
        for plan in plans {
            let stored = plan.stored
            pool.run((stored.byteCount + Limits.touchBytes - 1) / Limits.touchBytes) { part, _ in
                let start = part * Limits.touchBytes
                let piece = MemoryPages(stored.base + start, min(Limits.touchBytes, stored.byteCount - start))
                if !piece.areHeld { piece.readIn() }
            }
            touched += stored.byteCount
            progress(touched)
        }
    }

    /// All panels, once all are packed and lie in one piece.
    var panels: UnsafeRawBufferPointer? {
        guard plans.indices.allSatisfy(isPacked), arenas.count == 1, let arena = arenas.first else { return nil }
        return UnsafeRawBufferPointer(start: arena.base, count: byteCount)
    }

    /// Asks whoever packs to end soon.
    func stop() { isStopping.store(true, ordering: .relaxed) }

    /// Work that is counted otherwise, in bytes of the source.
    private func share(_ progress: @escaping (Int) -> Void) -> (Int, Int) -> Void {
        let bytes = storedBytes
        return { done, count in progress(done == count ? bytes : bytes / count * done) }
    }

    private func adopt(_ arena: PackedArena, _ image: PackedImage) {
        origin = .mapped(image)
        arenas.append(arena)
        publish(plans.indices, in: arena)
    }

    func packInMemory(_ pool: ComputePool, _ progress: (Int) -> Void) throws(ServingError) {
        guard let first = plans.indices.first(where: { !isPacked($0) }) else { return }
        // Of a writer that failed, the memory of matrices packed before is kept, and no other touched here.
        let arena = try PackedArena(byteCount: byteCount)
        arenas.append(arena)
        for index in first..<plans.count {
            guard pack(index, to: arena, pool, progress) else { return }
            publish(index..<index + 1, in: arena)
        }
    }

    /// What was packed when a write failed is published nevertheless, as far as it is mapped.
    func packAndWrite(
        _ writer: PackedFileWriter, _ pool: ComputePool, _ cache: PackedWeightsCache, _ progress: (Int) -> Void
    ) throws(ServingError) {
        let arena = try PackedArena(byteCount: byteCount)
        arenas.append(arena)
        var published = 0
        for (index, plan) in plans.enumerated() {
            guard pack(index, to: arena, pool, progress) else { return }
            if let failure = writer.write(arena, upTo: plan.range.upperBound) {
                origin = .memory(failure)
                return cache.report(writer.account(of: failure))
            }
            // Windows that have still to be exchanged for the file's are read by nobody.
            let end = plans[published...].firstIndex { $0.range.upperBound > writer.mappedBytes } ?? plans.count
            let ready = published..<end
            publish(ready, in: arena)
            published = ready.upperBound
        }
        let failure = writer.finish()
        origin = failure.map { .memory($0) } ?? .written(writer.image)
        cache.report(writer.account(of: failure))
    }

    private func isPacked(_ index: Int) -> Bool { matrices[index].panels.load(ordering: .acquiring) != nil }

    /// false where it was told to stop.
    private func pack(_ index: Int, to arena: PackedArena, _ pool: ComputePool, _ progress: (Int) -> Void) -> Bool {
        let plan = plans[index]
        plan.pack(to: arena, kernels: kernels, pool: pool) { isStopping.load(ordering: .relaxed) }
        guard !isStopping.load(ordering: .relaxed) else { return false }
        progress(plans[...index].reduce(0) { $0 + $1.stored.byteCount })
        return true
    }

    /// From here on the matrices are read from the arena.
    private func publish(_ indices: Range<Int>, in arena: PackedArena) {
        for index in indices {
            let panels = (arena.base + plans[index].offset).assumingMemoryBound(to: UInt8.self)
            matrices[index].panels.store(UnsafePointer(panels), ordering: .releasing)
            release(plans[index].name)
        }
    }

    // MARK: - Sources

    /// Around each step: sources that it may read are not given back before its end.
    func beginStep() {
        guard !isSettled.load(ordering: .acquiring) else { return }
        steps.withLock { steps in
            steps.isRunning = true
            steps.count += 1
        }
    }

    func endStep() {
        guard !isSettled.load(ordering: .acquiring) else { return }
        steps.withLock { steps in
            steps.isRunning = false
            for name in steps.packed { source.release(named: name) }
            steps.packed = []
            if steps.isPackingDone { isSettled.store(true, ordering: .releasing) }
        }
    }

    /// Waits a moment for the first step to be over: nobody has a token before.
    func letTheFirstStepPass() {
        for _ in 0..<Limits.firstStepPolls {
            let isOver = steps.withLock { $0.count > 1 || $0.count == 1 && !$0.isRunning }
            if isOver || isStopping.load(ordering: .relaxed) { return }
            usleep(Limits.pollMicroseconds)
        }
    }

    private func release(_ name: String) {
        steps.withLock { steps in
            if steps.isRunning {
                steps.packed.append(name)
            } else {
                source.release(named: name)
            }
        }
    }

    /// Nothing more will be packed.
    func settle() {
        steps.withLock { steps in
            steps.isPackingDone = true
            if !steps.isRunning { isSettled.store(true, ordering: .releasing) }
        }
    }
}
