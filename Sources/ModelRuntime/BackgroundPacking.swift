import CKernels
import Glibc
import ServingTypes

/// A thread that packs a model's matrices while the engine computes with them already. It yields to those who
/// compute (`nice` 5), and ends with its owner.
final class BackgroundPacking {
    private let work: PackingWork
    private let thread: pthread_t

    /// nil where the system gives no thread.
    init?(_ matrices: PackedMatrices, report: (@Sendable (PackedWeightsReport) -> Void)?) {
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
    private let report: (@Sendable (PackedWeightsReport) -> Void)?
    private let mutex = UnsafeMutablePointer<pthread_mutex_t>.allocate(capacity: 1)
    private let ended = UnsafeMutablePointer<pthread_cond_t>.allocate(capacity: 1)
    private var hasEnded = false

    /// Added to the priority of the thread: about a third of a computing thread's share where cores are short.
    private static let niceness: Int32 = 5

    init(_ matrices: PackedMatrices, _ report: (@Sendable (PackedWeightsReport) -> Void)?) {
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
            report?(.notPacked(reason: error.message))
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
