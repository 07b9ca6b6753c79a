import CKernels
import Glibc
import Synchronization

/// What a pool's threads work on: parts that do not depend on each other or on who computes them.
protocol PartRunner: AnyObject {
    /// Called once for each part, from any worker.
    func runPart(_ part: Int, worker: Int)
}

/// Threads that share the parts of one computation. The caller is worker 0; a pool of one has no
/// thread of its own. Which worker takes which part is left to chance.
///
/// Between `begin` and `end` waiting threads spin, then yield the core to whoever else can run, then
/// sleep; outside they sleep at once, so an idle engine takes nothing from its neighbours. With a share
/// of the machine's cores only as many take part as it allows, looked up before every region; the others
/// sleep.
final class ComputePool {
    private let shared: SharedWork
    private let share: CoreShare?
    private var threads: [pthread_t] = []
    private let cores: [Int]
    private var pinnedCaller: pthread_t?

    enum Limits {
        static let workersMax = 1024
        /// Looks at the other side before a waiting thread yields: some ten microseconds.
        static let spins = 400
        /// Yields before it sleeps; each returns at once on an idle machine, or after whoever else
        /// had something to do on this core.
        static let yields = 200
    }

    /// `workers` is at least 1 and counts the caller. Fewer run where the system refuses a thread.
    /// Worker i is pinned to `cores[i % cores.count]`, the caller with the first `begin`; nobody where
    /// there are none.
    init(workers: Int, cores: [Int] = [], share: CoreShare? = nil) {
        shared = SharedWork(workers: max(1, min(workers, Limits.workersMax)))
        self.cores = cores
        self.share = share
        for _ in 1..<max(1, min(workers, Limits.workersMax)) {
            let index = threads.count + 1
            let core = cores.isEmpty ? nil : cores[index % cores.count]
            let entry = Unmanaged.passRetained(WorkerEntry(shared: shared, index: index, core: core))
            var thread = pthread_t()
            let failure = pthread_create(
                &thread, nil,
                { argument in
                    guard let argument else { return nil }
                    let entry = Unmanaged<WorkerEntry>.fromOpaque(argument).takeRetainedValue()
                    if let core = entry.core { _ = tk_pin_thread(core) }
                    entry.shared.workerLoop(index: entry.index)
                    return nil
                }, entry.toOpaque())
            if failure == 0 {
                threads.append(thread)
            } else {
                entry.release()
            }
        }
    }

    deinit {
        shared.stop()
        for thread in threads { pthread_join(thread, nil) }
    }

    var workerCount: Int { threads.count + 1 }

    /// Regions follow closely from here on: wakes the workers and keeps them awake.
    func begin() {
        if let core = cores.first, pinnedCaller != pthread_self() {
            pinnedCaller = pthread_self()
            _ = tk_pin_thread(core)
        }
        guard !threads.isEmpty else { return }
        if let share { shared.admit(share.begin(workerCount)) }
        shared.begin()
    }

    /// No more regions for now.
    func end() {
        guard !threads.isEmpty else { return }
        share?.end()
        shared.end()
    }

    /// Runs `parts` parts and returns when all have returned; allocates nothing. Only one thread at a
    /// time may call this.
    func run(_ parts: Int, on runner: some PartRunner) {
        if let share, share.current > 0 { shared.admit(share.adjust(workerCount)) }
        if threads.isEmpty || parts <= 1 || shared.admitted == 1 {
            for part in 0..<max(0, parts) { runner.runPart(part, worker: 0) }
        } else {
            shared.run(parts, runner)
        }
    }

    /// The same with a closure, for work that is rare.
    func run(_ parts: Int, _ body: (_ part: Int, _ worker: Int) -> Void) {
        withoutActuallyEscaping(body) { run(parts, on: ClosureRunner(body: $0)) }
    }
}

private final class ClosureRunner: PartRunner {
    private let body: (Int, Int) -> Void

    init(body: @escaping (Int, Int) -> Void) { self.body = body }

    func runPart(_ part: Int, worker: Int) { body(part, worker) }
}

private final class WorkerEntry {
    let shared: SharedWork
    let index: Int
    /// A core that this process may not use leaves the thread where it was.
    let core: Int?

    init(shared: SharedWork, index: Int, core: Int?) {
        self.shared = shared
        self.index = index
        self.core = core
    }
}

/// A value in a cache line of its own, so that who spins on it does not slow those who write others.
private final class Lonely<Value: ~Copyable> {
    let at: UnsafeMutablePointer<Value>
    private let memory: UnsafeMutableRawPointer

    init(_ value: consuming Value) {
        memory = .allocate(byteCount: max(128, MemoryLayout<Value>.size), alignment: 128)
        at = memory.bindMemory(to: Value.self, capacity: 1)
        at.initialize(to: value)
    }

    deinit {
        at.deinitialize(count: 1)
        memory.deallocate()
    }
}

/// What the caller tells the workers; one cache line, written by the caller alone.
private struct Announcement: ~Copyable {
    /// Grows with each region.
    let generation = Atomic<UInt64>(0)
    let isOpen = Atomic<Bool>(false)
    let isActive = Atomic<Bool>(false)
    /// Grows with each `begin`.
    let begun = Atomic<UInt64>(0)
    let isStopping = Atomic<Bool>(false)
    /// Workers that take part, the caller included; the others sleep.
    let admitted: Atomic<Int>
    var parts = 0
    /// Not retained: whoever called `run` holds it until every worker has left.
    unowned(unsafe) var runner: (any PartRunner)?

    init(workers: Int) { admitted = Atomic(workers) }
}

/// The hand-over between the caller and its workers.
///
/// A worker first counts itself in (`inside`), then looks whether work is open; the caller closes
/// the work, then waits until nobody is inside. So runner and parts are never replaced under a
/// reader, and a worker that wakes late delays nobody.
private final class SharedWork {
    private let announcement: Lonely<Announcement>
    private let next = Lonely(Atomic<Int>(0))
    private let inside = Lonely(Atomic<Int>(0))
    private let sleepers = Lonely(Atomic<Int>(0))
    private let callerSleeps = Lonely(Atomic<Bool>(false))
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let workCame = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let allLeft = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    /// For workers that are not admitted.
    private let moreAdmitted = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    init(workers: Int) {
        announcement = Lonely(Announcement(workers: workers))
        pthread_cond_init(moreAdmitted, nil)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(workCame, nil)
        pthread_cond_init(allLeft, nil)
    }

    deinit {
        pthread_cond_destroy(moreAdmitted)
        moreAdmitted.deallocate()
        pthread_cond_destroy(allLeft)
        pthread_cond_destroy(workCame)
        pthread_mutex_destroy(mutex)
        allLeft.deallocate()
        workCame.deallocate()
        mutex.deallocate()
    }

    func run(_ parts: Int, _ runner: some PartRunner) {
        announcement.at.pointee.runner = runner
        announcement.at.pointee.parts = parts
        next.at.pointee.store(0, ordering: .relaxed)
        announcement.at.pointee.isOpen.store(true, ordering: .sequentiallyConsistent)
        announce()
        while true {
            let part = next.at.pointee.add(1, ordering: .relaxed).oldValue
            guard part < parts else { break }
            runner.runPart(part, worker: 0)
        }
        announcement.at.pointee.isOpen.store(false, ordering: .sequentiallyConsistent)
        waitUntilAllLeft()
    }

    func begin() {
        announcement.at.pointee.isActive.store(true, ordering: .sequentiallyConsistent)
        announcement.at.pointee.begun.add(1, ordering: .sequentiallyConsistent)
        wakeSleepers()
    }

    func end() {
        announcement.at.pointee.isActive.store(false, ordering: .sequentiallyConsistent)
    }

    func stop() {
        announcement.at.pointee.isStopping.store(true, ordering: .sequentiallyConsistent)
        announce()
        wakeAdmitted()
    }

    /// Workers that take part from the next region on, the caller included.
    var admitted: Int { announcement.at.pointee.admitted.load(ordering: .relaxed) }

    /// Between regions, by the caller.
    func admit(_ workers: Int) {
        let before = announcement.at.pointee.admitted.exchange(workers, ordering: .sequentiallyConsistent)
        if workers > before { wakeAdmitted() }
    }

    private func wakeAdmitted() {
        pthread_mutex_lock(mutex)
        pthread_cond_broadcast(moreAdmitted)
        pthread_mutex_unlock(mutex)
    }

    func workerLoop(index: Int) {
        var seen: UInt64 = 0
        while true {
            waitUntilAdmitted(index)
            seen = waitForWork(after: seen, index)
            if announcement.at.pointee.isStopping.load(ordering: .sequentiallyConsistent) { return }
            guard isAdmitted(index) else { continue }
            inside.at.pointee.add(1, ordering: .sequentiallyConsistent)
            if announcement.at.pointee.isOpen.load(ordering: .sequentiallyConsistent) { takeParts(index) }
            leave()
        }
    }

    private func takeParts(_ worker: Int) {
        let parts = announcement.at.pointee.parts
        guard let runner = announcement.at.pointee.runner else { return }
        while true {
            let part = next.at.pointee.add(1, ordering: .relaxed).oldValue
            guard part < parts else { return }
            runner.runPart(part, worker: worker)
        }
    }

    private func announce() {
        announcement.at.pointee.generation.add(1, ordering: .sequentiallyConsistent)
        wakeSleepers()
    }

    private func wakeSleepers() {
        guard sleepers.at.pointee.load(ordering: .sequentiallyConsistent) > 0 else { return }
        pthread_mutex_lock(mutex)
        pthread_cond_broadcast(workCame)
        pthread_mutex_unlock(mutex)
    }

    /// Sleeps as long as there are enough workers without this one.
    private func waitUntilAdmitted(_ index: Int) {
        guard !isAdmitted(index) else { return }
        pthread_mutex_lock(mutex)
        while !isAdmitted(index) { pthread_cond_wait(moreAdmitted, mutex) }
        pthread_mutex_unlock(mutex)
    }

    private func isAdmitted(_ index: Int) -> Bool {
        announcement.at.pointee.admitted.load(ordering: .sequentiallyConsistent) > index
            || announcement.at.pointee.isStopping.load(ordering: .sequentiallyConsistent)
    }

    /// The next generation, once there is one; at once where the worker is not admitted any more.
    private func waitForWork(after seen: UInt64, _ index: Int) -> UInt64 {
        while isAdmitted(index) {
            let begun = announcement.at.pointee.begun.load(ordering: .sequentiallyConsistent)
            if spinOrYield(until: { hasWork(after: seen) || !isAdmitted(index) }) { break }
            sleep(after: seen, begun: begun)
        }
        return announcement.at.pointee.generation.load(ordering: .sequentiallyConsistent)
    }

    private func hasWork(after seen: UInt64) -> Bool {
        announcement.at.pointee.generation.load(ordering: .acquiring) != seen
    }

    /// Sleeps until work or a `begin` later than `begun` comes.
    private func sleep(after seen: UInt64, begun: UInt64) {
        pthread_mutex_lock(mutex)
        sleepers.at.pointee.add(1, ordering: .sequentiallyConsistent)
        while announcement.at.pointee.generation.load(ordering: .sequentiallyConsistent) == seen,
            announcement.at.pointee.begun.load(ordering: .sequentiallyConsistent) == begun
        {
            pthread_cond_wait(workCame, mutex)
        }
        sleepers.at.pointee.subtract(1, ordering: .sequentiallyConsistent)
        pthread_mutex_unlock(mutex)
    }

    /// Whether the condition came true before it was time to sleep.
    private func spinOrYield(until condition: () -> Bool) -> Bool {
        for _ in 0..<ComputePool.Limits.spins {
            if condition() { return true }
            tk_pause()
        }
        for _ in 0..<ComputePool.Limits.yields {
            guard announcement.at.pointee.isActive.load(ordering: .relaxed) else { return condition() }
            sched_yield()
            if condition() { return true }
        }
        return false
    }

    private func leave() {
        let left = inside.at.pointee.subtract(1, ordering: .sequentiallyConsistent).newValue
        guard left == 0, callerSleeps.at.pointee.load(ordering: .sequentiallyConsistent) else { return }
        pthread_mutex_lock(mutex)
        pthread_cond_signal(allLeft)
        pthread_mutex_unlock(mutex)
    }

    private func waitUntilAllLeft() {
        if spinOrYield(until: { inside.at.pointee.load(ordering: .sequentiallyConsistent) == 0 }) { return }
        pthread_mutex_lock(mutex)
        callerSleeps.at.pointee.store(true, ordering: .sequentiallyConsistent)
        while inside.at.pointee.load(ordering: .sequentiallyConsistent) != 0 { pthread_cond_wait(allLeft, mutex) }
        callerSleeps.at.pointee.store(false, ordering: .sequentiallyConsistent)
        pthread_mutex_unlock(mutex)
    }
}
