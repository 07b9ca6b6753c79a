import CKernels
import Glibc

/// The whole pages that some bytes lie in.
struct MemoryPages {
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
