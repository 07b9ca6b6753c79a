import Glibc
import ServingTypes

/// The memory of all packed matrices of a model: private memory in huge pages where the system has them,
/// or windows of a file that other workers of the machine map too.
///
/// Unchecked because of the pointer: written while the model is loaded, read-only after it.
final class PackedArena: @unchecked Sendable {
    private let mapping: UnsafeMutableRawPointer
    private let mappedBytes: Int
    /// A multiple of `windowBytes`.
    let base: UnsafeMutableRawPointer
    let byteCount: Int

    /// A huge page: what of a file is mapped, checked and written at once.
    static let windowBytes = 2 << 20

    /// Windows of that many bytes, the last one perhaps not filled.
    static func windowCount(_ byteCount: Int) -> Int { (byteCount + windowBytes - 1) / windowBytes }

    /// Memory that is all 0.
    convenience init(byteCount: Int) throws(ServingError) {
        try self.init(byteCount: byteCount, protection: PROT_READ | PROT_WRITE)
        // Whole huge pages only, so that a small model does not take 2 MiB for its last kilobytes.
        madvise(base, byteCount / Self.windowBytes * Self.windowBytes, MADV_HUGEPAGE)
    }

    /// The windows of a file from `offset` on, a multiple of `windowBytes`, read-only and shared.
    convenience init(byteCount: Int, mapping descriptor: Int32, offset: Int) throws(ServingError) {
        try self.init(byteCount: byteCount, protection: PROT_NONE)
        guard map(0..<Self.windowCount(byteCount), of: descriptor, offset: offset) else {
            throw ServingError(
                .internalError, "weights: \(byteCount) bytes of a file cannot be mapped", field: "weights",
                blast: .process)
        }
    }

    private init(byteCount: Int, protection: Int32) throws(ServingError) {
        self.byteCount = byteCount
        mappedBytes = byteCount + 2 * Self.windowBytes
        guard
            let address = mmap(
                nil, mappedBytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0),
            address != MAP_FAILED
        else {
            throw ServingError(
                .internalError, "weights: \(byteCount) bytes of memory cannot be mapped", field: "weights",
                blast: .process)
        }
        mapping = address
        let start = UInt(bitPattern: address)
        let window = UInt(Self.windowBytes)
        base = address + Int((start + window - 1) / window * window - start)
    }

    /// Puts some windows of a file in the place of those in memory. Windows lie in the file as they do here,
    /// so huge pages of the page cache are mapped as such, and neighbours become one mapping.
    func map(_ windows: Range<Int>, of descriptor: Int32, offset: Int) -> Bool {
        guard !windows.isEmpty else { return true }
        let start = windows.lowerBound * Self.windowBytes
        let bytes = windows.count * Self.windowBytes
        guard
            let address = mmap(
                base + start, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, descriptor, off_t(offset + start)),
            address != MAP_FAILED
        else { return false }
        // What is not in the page cache is read by huge pages then.
        madvise(address, bytes, MADV_HUGEPAGE)
        return true
    }

    /// The bytes of a window, all of them readable.
    func window(_ index: Int) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(start: base + index * Self.windowBytes, count: Self.windowBytes)
    }

    deinit {
        munmap(mapping, mappedBytes)
    }
}
