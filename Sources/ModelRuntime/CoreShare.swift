import CKernels
import Glibc
import Synchronization

/// How many threads each engine of a machine computes with at the moment, in memory that the user's engines
/// share, so that together they take no more than there are cores: with more, threads wait at the end of every
/// region for one that has no core.
///
/// An engine that is alone takes all it may. Of several that compute at the same time each takes its share of
/// the cores, and what others leave. Results do not depend on it. Engines that may use different cores do not
/// count each other. An engine that ended without a word is noticed by the lock that it held.
///
/// Unchecked because of the pointer: the memory is mapped as long as this lives and holds atomics alone.
final class CoreShare: @unchecked Sendable {
    /// One engine's entry, in a cache line of its own.
    private struct Entry: ~Copyable {
        /// Threads in use; 0 between steps.
        let threads = Atomic<UInt32>(0)
        /// Which cores it may use, as `tk_core_set` has them.
        let cores = Atomic<UInt64>(0)
    }

    enum Limits {
        static let engines = 64
        static let entryBytes = 128
        /// Steps between two looks for engines that are gone, while others seem to compute.
        static let stepsPerLook = 64
        /// Regions for which more cores must have been free before a step takes them: others pause for less
        /// between two steps.
        static let regionsUntilMore = 12
    }

    private let descriptor: Int32
    private let memory: UnsafeMutableRawPointer
    private let mine: Int
    private let coreSet: UInt64
    private let coreCount: Int
    private var steps = 0
    private var regionsWithMore = 0
    /// Threads of this engine now.
    private(set) var current = 0

    /// For all engines of this user.
    static var standardPath: String { "/dev/shm/tandem-cores-\(geteuid())" }

    /// nil where the system gives no such memory, or all its entries are taken.
    /// - pinned: the cores that threads are pinned to; those of the process where there are none.
    init?(path: String, pinned: [Int] = []) {
        let bytes = Limits.engines * Limits.entryBytes
        let file = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard file >= 0 else { return nil }
        var status = stat()
        guard fstat(file, &status) == 0, status.st_uid == geteuid(), status.st_mode & S_IFMT == S_IFREG,
            status.st_mode & 0o022 == 0, Int(status.st_size) == bytes || ftruncate(file, off_t(bytes)) == 0,
            let address = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0), address != MAP_FAILED
        else {
            close(file)
            return nil
        }
        guard let entry = (0..<Limits.engines).first(where: { Self.lock(file, $0) }) else {
            munmap(address, bytes)
            close(file)
            return nil
        }
        (descriptor, memory, mine) = (file, address, entry)
        coreSet = pinned.isEmpty ? tk_core_set() : pinned.reduce(0) { $0 | 1 << UInt64($1 % 64) }
        coreCount = pinned.isEmpty ? tk_core_count() : Set(pinned).count
        self.entry(mine).pointee.threads.store(0, ordering: .relaxed)
        self.entry(mine).pointee.cores.store(coreSet, ordering: .relaxed)
    }

    deinit {
        entry(mine).pointee.threads.store(0, ordering: .relaxed)
        munmap(memory, Limits.engines * Limits.entryBytes)
        // The lock goes with it.
        close(descriptor)
    }

    /// Threads to begin a step with, of `wanted`; the step is counted from here on.
    func begin(_ wanted: Int) -> Int {
        steps &+= 1
        if steps.isMultiple(of: Limits.stepsPerLook) { forgetTheDead() }
        regionsWithMore = 0
        return take(allowed(wanted))
    }

    /// Threads to go on with: fewer at once where others have begun, more once they have been away for a while.
    func adjust(_ wanted: Int) -> Int {
        let allowed = allowed(wanted)
        guard allowed > current else {
            regionsWithMore = 0
            return allowed == current ? current : take(allowed)
        }
        regionsWithMore += 1
        guard regionsWithMore >= Limits.regionsUntilMore else { return current }
        regionsWithMore = 0
        return take(allowed)
    }

    /// The step is over.
    func end() { _ = take(0) }

    private func take(_ threads: Int) -> Int {
        current = threads
        entry(mine).pointee.threads.store(UInt32(threads), ordering: .relaxed)
        return threads
    }

    private func allowed(_ wanted: Int) -> Int {
        var (engines, threads) = (1, 0)
        for index in 0..<Limits.engines where index != mine {
            let other = entry(index).pointee.threads.load(ordering: .relaxed)
            guard other > 0, entry(index).pointee.cores.load(ordering: .relaxed) & coreSet != 0 else { continue }
            engines += 1
            threads += Int(other)
        }
        return min(wanted, max(1, coreCount / engines, coreCount - threads))
    }

    private func entry(_ index: Int) -> UnsafeMutablePointer<Entry> {
        (memory + index * Limits.entryBytes).assumingMemoryBound(to: Entry.self)
    }

    // MARK: - Engines that are gone

    /// Entries in use whose lock is free are those of processes that were killed.
    private func forgetTheDead() {
        for index in 0..<Limits.engines
        where index != mine && entry(index).pointee.threads.load(ordering: .relaxed) > 0 && Self.lock(descriptor, index)
        {
            entry(index).pointee.threads.store(0, ordering: .relaxed)
            Self.setLock(descriptor, index, F_UNLCK)
        }
    }

    private static func lock(_ descriptor: Int32, _ index: Int) -> Bool { setLock(descriptor, index, F_WRLCK) }

    /// Locks belong to the open file, so that engines of one process have their own too.
    @discardableResult
    private static func setLock(_ descriptor: Int32, _ index: Int, _ type: Int32) -> Bool {
        var lock = flock()
        lock.l_type = Int16(type)
        lock.l_whence = Int16(SEEK_SET)
        lock.l_start = off_t(index)
        lock.l_len = 1
        return fcntl(descriptor, setOpenFileLock, &lock) == 0
    }

    /// Linux's F_OFD_SETLK, which headers hide.
    private static let setOpenFileLock: Int32 = 37
}
