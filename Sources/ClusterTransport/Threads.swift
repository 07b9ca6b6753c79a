import Glibc
import ServingTypes

/// State under a lock with a condition: who changes it may wake those who wait for it.
///
/// `@unchecked Sendable`: `state` is only touched while `mutex` is held.
final class Monitor<State: Sendable>: @unchecked Sendable {
    private var state: State
    private let mutex: UnsafeMutablePointer<pthread_mutex_t>
    private let condition: UnsafeMutablePointer<pthread_cond_t>

    init(_ state: State) {
        self.state = state
        mutex = .allocate(capacity: 1)
        condition = .allocate(capacity: 1)
        pthread_mutex_init(mutex, nil)
        pthread_cond_init(condition, nil)
    }

    deinit {
        pthread_cond_destroy(condition)
        pthread_mutex_destroy(mutex)
        condition.deallocate()
        mutex.deallocate()
    }

    /// Changes the state and wakes all who wait.
    @discardableResult
    func change<R>(_ body: (inout State) -> R) -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        let result = body(&state)
        pthread_cond_broadcast(condition)
        return result
    }

    func read<R>(_ body: (State) -> R) -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        return body(state)
    }

    /// Waits until `body` gives something, trying it after every change.
    func wait<R>(_ body: (inout State) -> R?) -> R {
        pthread_mutex_lock(mutex)
        defer { pthread_mutex_unlock(mutex) }
        while true {
            if let result = body(&state) { return result }
            pthread_cond_wait(condition, mutex)
        }
    }
}

/// Threads of one owner, which can be waited for together.
final class ThreadGroup: Sendable {
    private let running = Monitor(0)

    /// Starts a thread; its name (at most 15 bytes) shows in tools. False where the system has no more.
    @discardableResult
    func start(_ name: String, _ body: @escaping @Sendable () -> Void) -> Bool {
        running.change { $0 += 1 }
        let job = Unmanaged.passRetained(
            Job { [running] in
                Self.nameThread(name)
                body()
                running.change { $0 -= 1 }
            })
        var thread = pthread_t()
        var attributes = pthread_attr_t()
        pthread_attr_init(&attributes)
        pthread_attr_setdetachstate(&attributes, Int32(PTHREAD_CREATE_DETACHED))
        let status = pthread_create(
            &thread, &attributes,
            { argument in
                guard let argument else { return nil }
                Unmanaged<Job>.fromOpaque(argument).takeRetainedValue().body()
                return nil
            }, job.toOpaque())
        pthread_attr_destroy(&attributes)
        if status != 0 {
            job.release()
            running.change { $0 -= 1 }
        }
        return status == 0
    }

    /// The kernel's own file for it; the C function is not visible to Swift. A name is a courtesy, so
    /// errors are nobody's concern.
    private static func nameThread(_ name: String) {
        let file = open("/proc/thread-self/comm", O_WRONLY)
        guard file >= 0 else { return }
        _ = name.withCString { write(file, $0, min(strlen($0), 15)) }
        close(file)
    }

    /// Waits until every thread has ended.
    func join() { running.wait { $0 == 0 ? () : nil } }

    private final class Job {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
}

/// Time for deadlines within the transport.
enum TransportClock {
    static var now: Instant {
        var time = timespec()
        clock_gettime(CLOCK_MONOTONIC, &time)
        return Instant(nanoseconds: Int64(time.tv_sec) * 1_000_000_000 + Int64(time.tv_nsec))
    }
}
