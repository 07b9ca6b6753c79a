import CKernels
import Glibc
import ServingTypes
import Synchronization

/// When an engine packs its matrices.
public enum PackingTime: String, Hashable, Sendable, CaseIterable {
    /// Before it is ready.
    case beforehand
    /// Beside its first steps, by a thread of its own. Until a matrix is packed, products read it as the model's
    /// files have it and pack each panel for themselves: some two to three times slower for few rows, and the
    /// same bits. So an engine is ready as soon as the files are in memory. Matrices that are quantised while
    /// they are packed are packed beforehand.
    case besides
    /// Never: for tests, and to measure what `besides` costs.
    case never
}

/// One matrix of a model, packed from some moment on.
struct PackedMatrix: ~Copyable {
    let plan: PackingPlan
    /// Where the panels lie; nil until they are packed. Stored once, after the last byte of them.
    let panels = Atomic<UnsafePointer<UInt8>?>(nil)

    init(_ plan: PackingPlan) { self.plan = plan }

    /// As the kernels take it; nil until it is packed.
    var packed: tk_packed? {
        guard let panels = panels.load(ordering: .acquiring) else { return nil }
        return tk_packed(panels: panels, outputs: plan.rows, inputs: plan.columns, format: plan.format.code)
    }

    /// Runs `body` with each panel of some columns, packed for this alone: the panel's first column, how many
    /// columns it has, and the panel as a matrix of its own. `columns` start at a multiple of 32.
    func forEachPanel(_ columns: Range<Int>, _ kernels: Kernels, _ body: (Int, Int, inout tk_packed) -> Void) {
        let bytes = plan.format.panelBytes(plan.columns)
        withUnsafeTemporaryAllocation(byteCount: bytes, alignment: 64) { memory in
            guard let base = memory.baseAddress else { return }
            for first in stride(from: columns.lowerBound, to: columns.upperBound, by: TK_PANEL_OUTPUTS) {
                let count = min(TK_PANEL_OUTPUTS, columns.upperBound - first)
                let panel = first / TK_PANEL_OUTPUTS
                plan.pack(panel..<panel + 1, at: base, kernels: kernels)
                var packed = tk_packed(
                    panels: UnsafePointer(base.assumingMemoryBound(to: UInt8.self)), outputs: count,
                    inputs: plan.columns, format: plan.format.code)
                body(first, count, &packed)
            }
        }
    }

    /// The f32 values of one row.
    func unpackRow(_ row: Int, into values: UnsafeMutablePointer<Float>, _ kernels: Kernels) {
        if var packed {
            tk_unpack_row(values, &packed, row)
        } else {
            let first = row / TK_PANEL_OUTPUTS * TK_PANEL_OUTPUTS
            forEachPanel(first..<min(plan.rows, first + TK_PANEL_OUTPUTS), kernels) { first, _, packed in
                tk_unpack_row(values, &packed, row - first)
            }
        }
    }
}

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

    private func isPacked(_ index: Int) -> Bool { matrices[index].panels.load(ordering: .relaxed) != nil }

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

/// A thread that packs a model's matrices while the engine computes with them already. It yields to those who
/// compute (`nice` 5), and ends with its owner.
final class BackgroundPacking {
    private let work: PackingWork
    private let thread: pthread_t

    /// nil where the system gives no thread.
    init?(_ matrices: PackedMatrices, report: (@Sendable (String) -> Void)?) {
        work = PackingWork(matrices, report)
        var thread = pthread_t()
        let argument = Unmanaged.passRetained(work)
        let failure = pthread_create(
            &thread, nil,
            { argument in
                guard let argument else { return nil }
                Unmanaged<PackingWork>.fromOpaque(argument).takeRetainedValue().run()
                return nil
            }, argument.toOpaque())
        guard failure == 0 else {
            argument.release()
            return nil
        }
        self.thread = thread
    }

    /// Returns once everything is packed, or cannot be.
    func wait() { work.wait() }

    var isDone: Bool { work.isDone }

    deinit {
        work.matrices.stop()
        pthread_join(thread, nil)
    }
}

/// Held by the thread and by its owner. Unchecked because of the mutex and the condition, whose addresses stay.
private final class PackingWork: @unchecked Sendable {
    let matrices: PackedMatrices
    private let report: (@Sendable (String) -> Void)?
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let ended = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var hasEnded = false

    /// Added to the priority of the thread: about a third of a computing thread's share where cores are short.
    private static let niceness: Int32 = 5

    init(_ matrices: PackedMatrices, _ report: (@Sendable (String) -> Void)?) {
        (self.matrices, self.report) = (matrices, report)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(ended, nil)
    }

    deinit {
        pthread_cond_destroy(ended)
        pthread_mutex_destroy(mutex)
        ended.deallocate()
        mutex.deallocate()
    }

    func run() {
        tk_lower_priority(Self.niceness)
        matrices.letTheFirstStepPass()
        do throws(ServingError) {
            try matrices.pack(ComputePool(workers: 1)) { _ in }
        } catch {
            // Products go on reading the model's files.
            report?("packed weights: not packed, \(error.message)")
        }
        matrices.settle()
        pthread_mutex_lock(mutex)
        hasEnded = true
        pthread_cond_broadcast(ended)
        pthread_mutex_unlock(mutex)
    }

    var isDone: Bool {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return hasEnded
    }

    func wait() {
        pthread_mutex_lock(mutex)
        while !hasEnded { pthread_cond_wait(ended, mutex) }
        pthread_mutex_unlock(mutex)
    }
}

/// The whole pages that some bytes lie in.
private struct MemoryPages {
    private let base: UnsafeRawPointer
    private let byteCount: Int
    private let pageBytes = Int(sysconf(Int32(_SC_PAGESIZE)))

    private enum Limits {
        /// Pages of which one is asked after; files come and go by larger pieces.
        static let sampledPages = 64
        /// Linux's MADV_POPULATE_READ, which older headers lack.
        static let populateRead: Int32 = 22
    }

    init(_ start: UnsafeRawPointer, _ count: Int) {
        let before = Int(UInt(bitPattern: start) % UInt(pageBytes))
        (base, byteCount) = (start - before, count + before)
    }

    /// Whether the system holds them in memory, as far as samples tell.
    var areHeld: Bool {
        for place in stride(from: 0, to: byteCount, by: Limits.sampledPages * pageBytes) {
            var answer: UInt8 = 0
            guard mincore(UnsafeMutableRawPointer(mutating: base + place), pageBytes, &answer) == 0, answer & 1 == 1
            else { return false }
        }
        return true
    }

    /// Maps them, reading a file's in. What the disk does not give is left to whoever reads it.
    func readIn() {
        let failure = madvise(UnsafeMutableRawPointer(mutating: base), byteCount, Limits.populateRead)
        if failure != 0, errno == EINVAL { _ = tk_touch(base, byteCount) }
    }
}
