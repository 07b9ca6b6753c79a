import Foundation
import ServingTypes
import Synchronization

/// A file of fixed size that is mapped and shared with the kernel: what is stored in it stays when the
/// process is killed, without a system call. It begins with a header of one page that says what it is,
/// and belongs to one process at a time.
///
/// `@unchecked Sendable`: the mapping lives as long as the object, and its users order their stores.
final class MappedFile: @unchecked Sendable {
    static let headerBytes = 4096
    /// What lies behind the header: slots of so many bytes, which begin with words.
    static let slotBytes = 256

    /// Where the header begins.
    let base: UnsafeMutableRawPointer
    private let bytes: Int
    private let descriptor: Int32
    /// Whether a file that no version of this program wrote was set aside.
    let setAside: Bool

    /// Opens or makes the file and holds it against another coordinator. A file with a foreign header
    /// or of another size is set aside under the name `<path>.unreadable`.
    init(path: String, magic: UInt64, bytes: Int) throws(ServingError) {
        func failed(_ what: String) -> ServingError {
            ServingError(.internalError, "\(path): \(what): \(String(cString: strerror(errno)))", blast: .process)
        }
        var descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw failed("cannot be opened") }
        setAside = Self.isForeign(descriptor, magic: magic, bytes: bytes)
        if setAside {
            rename(path, path + ".unreadable")
            close(descriptor)
            descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o600)
            guard descriptor >= 0 else { throw failed("cannot be opened") }
        }
        guard flock(descriptor, LOCK_EX | LOCK_NB) == 0 else {
            close(descriptor)
            throw failed("another coordinator keeps its accounts there")
        }
        // Room is taken now: a store into a mapped hole of a full disk would kill the process.
        let error = posix_fallocate(descriptor, 0, off_t(bytes))
        errno = error
        guard error == 0 else {
            close(descriptor)
            throw failed("\(bytes) bytes cannot be had")
        }
        let mapped = mmap(nil, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let mapped, mapped != MAP_FAILED else {
            close(descriptor)
            throw failed("cannot be mapped")
        }
        mapped.storeBytes(of: magic, as: UInt64.self)
        base = mapped
        self.bytes = bytes
        self.descriptor = descriptor
    }

    deinit {
        munmap(base, bytes)
        close(descriptor)
    }

    /// Where a slot begins.
    func start(of slot: Int) -> UnsafeMutableRawPointer { base + Self.headerBytes + slot * Self.slotBytes }

    /// A word of a slot.
    func word(_ slot: Int, _ word: Int) -> UnsafeMutablePointer<Atomic<UInt64>> {
        start(of: slot).assumingMemoryBound(to: Atomic<UInt64>.self) + word
    }

    /// Whether the file has content that is not of this layout.
    private static func isForeign(_ descriptor: Int32, magic: UInt64, bytes: Int) -> Bool {
        var status = stat()
        guard fstat(descriptor, &status) == 0, status.st_size > 0 else { return false }
        var found: UInt64 = 0
        let read = pread(descriptor, &found, 8, 0)
        return read != 8 || found != magic || status.st_size != off_t(bytes)
    }
}
