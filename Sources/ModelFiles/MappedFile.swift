import Glibc
import ServingTypes

/// A whole file mapped read-only. The mapping lives as long as this object; whoever holds a pointer
/// into it holds the object. A file that is cut short by somebody else while it is mapped ends the
/// process with SIGBUS: replace model files by renaming, never in place.
///
/// Unchecked because of the pointer: it and the bytes behind it never change after `init`.
final class MappedFile: @unchecked Sendable {
    let name: String
    let bytes: UnsafeRawBufferPointer
    /// Name, size and time of its last change, in one line: what tells it from a later version of itself.
    let version: String

    /// - leastBytes: how many bytes such a file has at least, in words, for messages.
    init(
        path: String, name: String, leastBytes: String = "the 8 of a safetensors length field"
    ) throws(ServingError) {
        self.name = name
        let descriptor = open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            throw fileFault(name, "cannot be opened (\(systemError()))", code: errno == ENOENT ? .notFound : .malformed)
        }
        defer { close(descriptor) }
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw fileFault(name, "cannot be inspected (\(systemError()))") }
        let size = try regularFileSize(descriptor, name: name)
        guard size > 0 else { throw fileFault(name, "0 bytes, fewer than \(leastBytes)") }
        guard let address = mmap(nil, size, PROT_READ, MAP_PRIVATE, descriptor, 0), address != MAP_FAILED else {
            throw fileFault(name, "\(size) bytes cannot be mapped (\(systemError()))")
        }
        version = "file \(name), \(size) bytes, changed \(status.st_mtim.tv_sec) s \(status.st_mtim.tv_nsec) ns"
        bytes = UnsafeRawBufferPointer(start: address, count: size)
    }

    /// Gives whole pages of a range back to the system; they are read from the file again when touched.
    func release(_ range: Range<Int>) {
        guard let base = bytes.baseAddress else { return }
        let page = Int(sysconf(Int32(_SC_PAGESIZE)))
        let start = (range.lowerBound + page - 1) / page * page
        let end = range.upperBound / page * page
        guard end > start else { return }
        madvise(UnsafeMutableRawPointer(mutating: base + start), end - start, MADV_DONTNEED)
    }

    deinit {
        munmap(UnsafeMutableRawPointer(mutating: bytes.baseAddress), bytes.count)
    }
}
