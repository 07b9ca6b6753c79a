import CKernels
import Glibc
import Synchronization

/// Threads that share the parts of one computation. The caller is worker 0; a pool of one has no
/// thread of its own. Which worker takes which part is left to chance, so parts must not depend on
/// each other or on who computes them.
final class ComputePool {
    private let shared: SharedWork
    private var threads: [pthread_t] = []

    enum Limits {
        static let workersMax = 1024
        /// Pauses before a waiting thread sleeps: tens of microseconds, because several processes
        /// may share the cores.
        static let spins = 1000
    }

    /// `workers` is at least 1 and counts the caller. Fewer run where the system refuses a thread.
    init(workers: Int) {
        shared = SharedWork()
        for _ in 1..<max(1, min(workers, Limits.workersMax)) {
            let entry = Unmanaged.passRetained(WorkerEntry(shared: shared, index: threads.count + 1))
            var thread = pthread_t()
            let failure = pthread_create(
                &thread, nil,
                { argument in
                    guard let argument else { return nil }
                    let entry = Unmanaged<WorkerEntry>.fromOpaque(argument).takeRetainedValue()
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

    /// Calls `body(part, worker)` once for each part and returns when all have returned. Only one
    /// thread at a time may call this.
    func run(_ parts: Int, _ body: @escaping (_ part: Int, _ worker: Int) -> Void) {
        if threads.isEmpty || parts <= 1 {
            for part in 0..<parts { body(part, 0) }
        } else {
            shared.run(parts, body)
        }
    }
}

private final class WorkerEntry {
    let shared: SharedWork
    let index: Int

    init(shared: SharedWork, index: Int) {
        self.shared = shared
        self.index = index
    }
}

/// The hand-over between the caller and its workers.
///
/// A worker first counts itself in (`inside`), then looks whether work is `open`; the caller closes
/// the work, then waits until nobody is inside. So `body` and `parts` are never replaced under a
/// reader, and a worker that wakes late delays nobody.
private final class SharedWork {
    private var body: ((Int, Int) -> Void)?
    private var parts = 0
    private let next = Atomic<Int>(0)
    private let open = Atomic<Bool>(false)
    private let inside = Atomic<Int>(0)
    private let generation = Atomic<UInt64>(0)
    private let stopping = Atomic<Bool>(false)
    private let sleepers = Atomic<Int>(0)
    private let callerSleeps = Atomic<Bool>(false)
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let workCame = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private let allLeft = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)

    init() {
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(workCame, nil)
        pthread_cond_init(allLeft, nil)
    }

    deinit {
        pthread_cond_destroy(allLeft)
        pthread_cond_destroy(workCame)
        pthread_mutex_destroy(mutex)
        allLeft.deallocate()
        workCame.deallocate()
        mutex.deallocate()
    }

    func run(_ parts: Int, _ body: @escaping (Int, Int) -> Void) {
        self.body = body
        self.parts = parts
        next.store(0, ordering: .sequentiallyConsistent)
        open.store(true, ordering: .sequentiallyConsistent)
        announce()
        takeParts(parts, body, worker: 0)
        open.store(false, ordering: .sequentiallyConsistent)
        waitUntilAllLeft()
        self.body = nil
    }

    func stop() {
        stopping.store(true, ordering: .sequentiallyConsistent)
        announce()
    }

    func workerLoop(index: Int) {
        var seen: UInt64 = 0
        while true {
            seen = waitForWork(after: seen)
            if stopping.load(ordering: .sequentiallyConsistent) { return }
            inside.add(1, ordering: .sequentiallyConsistent)
            if open.load(ordering: .sequentiallyConsistent), let body {
                takeParts(parts, body, worker: index)
            }
            leave()
        }
    }

    private func takeParts(_ parts: Int, _ body: (Int, Int) -> Void, worker: Int) {
        while true {
            let part = next.add(1, ordering: .relaxed).oldValue
            guard part < parts else { return }
            body(part, worker)
        }
    }

    private func announce() {
        generation.add(1, ordering: .sequentiallyConsistent)
        guard sleepers.load(ordering: .sequentiallyConsistent) > 0 else { return }
        pthread_mutex_lock(mutex)
        pthread_cond_broadcast(workCame)
        pthread_mutex_unlock(mutex)
    }

    private func waitForWork(after seen: UInt64) -> UInt64 {
        for _ in 0..<ComputePool.Limits.spins {
            let current = generation.load(ordering: .sequentiallyConsistent)
            if current != seen { return current }
            tk_pause()
        }
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        sleepers.add(1, ordering: .sequentiallyConsistent)
        defer { sleepers.subtract(1, ordering: .sequentiallyConsistent) }
        while true {
            let current = generation.load(ordering: .sequentiallyConsistent)
            if current != seen { return current }
            pthread_cond_wait(workCame, mutex)
        }
    }

    private func leave() {
        let left = inside.subtract(1, ordering: .sequentiallyConsistent).newValue
        guard left == 0, callerSleeps.load(ordering: .sequentiallyConsistent) else { return }
        pthread_mutex_lock(mutex)
        pthread_cond_signal(allLeft)
        pthread_mutex_unlock(mutex)
    }

    private func waitUntilAllLeft() {
        for _ in 0..<ComputePool.Limits.spins {
            if inside.load(ordering: .sequentiallyConsistent) == 0 { return }
            tk_pause()
        }
        pthread_mutex_lock(mutex)
        callerSleeps.store(true, ordering: .sequentiallyConsistent)
        while inside.load(ordering: .sequentiallyConsistent) != 0 { pthread_cond_wait(allLeft, mutex) }
        callerSleeps.store(false, ordering: .sequentiallyConsistent)
        pthread_mutex_unlock(mutex)
    }
}
