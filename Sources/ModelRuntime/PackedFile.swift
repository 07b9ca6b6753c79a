import CKernels
import Glibc
import Synchronization

/// What distinguishes one file of packed matrices from all others: the layout, the model's files, and what is
/// packed how and where. A file is used only where its own account equals the one expected, byte for byte; so
/// nothing in it is ever used as an offset or a count.
struct PackedImage {
    /// Changes with the layout of panels, the definition of quantisation or that of the file.
    static let layout = "tandem packed weights 1, panels of 32 outputs, little-endian"

    /// The account: lines of text.
    let description: [UInt8]
    /// Bytes of all panels.
    let byteCount: Int
    /// Without folder.
    let fileName: String

    static let fileEnding = ".tandem-packed"

    init(source: SourceIdentity, plans: [PackingPlan], byteCount: Int) {
        let lines = [Self.layout] + source.facts + plans.map(\.facts) + ["bytes \(byteCount)"]
        description = Array(lines.joined(separator: "\n").utf8)
        self.byteCount = byteCount
        fileName = "\(Self.stem(source.name))-\(Self.hex(Self.checksum(description)))\(Self.fileEnding)"
    }

    var windowCount: Int { PackedArena.windowCount(byteCount) }

    /// Bytes of the whole file: the header's window and the panels'.
    var fileBytes: Int { (1 + windowCount) * PackedArena.windowBytes }

    /// Where panels begin in the file.
    static let dataOffset = PackedArena.windowBytes

    /// A name that is safe in every folder.
    private static func stem(_ name: String) -> String {
        let kept = name.utf8.prefix(64).map { byte -> UInt8 in
            let isPlain =
                (0x30...0x39).contains(byte) || (0x41...0x5A).contains(byte) || (0x61...0x7A).contains(byte)
                || byte == UInt8(ascii: "-") || byte == UInt8(ascii: "_")
            return isPlain ? byte : UInt8(ascii: "_")
        }
        return kept.isEmpty ? "model" : String(decoding: kept, as: UTF8.self)
    }

    private static func hex(_ value: UInt64) -> String {
        let digits = String(value, radix: 16)
        return String(repeating: "0", count: 16 - digits.count) + digits
    }

    // MARK: - The header

    /// magic, version, bytes of the account, windows, the header's own checksum, the account (padded with 0 to
    /// a multiple of 8), and the checksum of each window. Integers are little-endian.
    private enum Field {
        static let magic = Array("TANDEMPW".utf8)
        static let version: UInt32 = 1
        static let descriptionBytes = 12
        static let windowCount = 16
        static let checksum = 24
        static let description = 32
    }

    private var checksumsOffset: Int { Field.description + (description.count + 7) / 8 * 8 }

    var headerBytes: Int { checksumsOffset + 8 * windowCount }

    /// Whether the header fits its window.
    var hasRoom: Bool { headerBytes <= PackedArena.windowBytes }

    func header(checksums: [UInt64]) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: headerBytes)
        bytes.replaceSubrange(0..<8, with: Field.magic)
        Self.put(UInt64(Field.version) | UInt64(description.count) << 32, &bytes, 8)
        Self.put(UInt64(windowCount), &bytes, Field.windowCount)
        bytes.replaceSubrange(Field.description..<Field.description + description.count, with: description)
        for (index, sum) in checksums.enumerated() { Self.put(sum, &bytes, checksumsOffset + 8 * index) }
        Self.put(Self.checksum(bytes), &bytes, Field.checksum)
        return bytes
    }

    /// The checksums of the windows; throws what is wrong with a header of `headerBytes` bytes.
    func checksums(_ header: [UInt8]) throws(PackedFileFault) -> [UInt64] {
        guard header.count == headerBytes, Array(header.prefix(8)) == Field.magic else { throw .header("magic") }
        let first = Self.word(header, 8)
        guard UInt32(truncatingIfNeeded: first) == Field.version else { throw .header("version") }
        var unsigned = header
        Self.put(0, &unsigned, Field.checksum)
        guard Self.word(header, Field.checksum) == Self.checksum(unsigned) else { throw .header("checksum") }
        guard first >> 32 == UInt64(description.count),
            header[Field.description..<Field.description + description.count].elementsEqual(description)
        else { throw .header("account of the model") }
        guard Self.word(header, Field.windowCount) == UInt64(windowCount) else { throw .header("size") }
        return (0..<windowCount).map { Self.word(header, checksumsOffset + 8 * $0) }
    }

    private static func put(_ value: UInt64, _ bytes: inout [UInt8], _ place: Int) {
        withUnsafeBytes(of: value.littleEndian) { bytes.replaceSubrange(place..<place + 8, with: $0) }
    }

    private static func word(_ bytes: [UInt8], _ place: Int) -> UInt64 {
        (0..<8).reduce(0) { $0 | UInt64(bytes[place + $1]) << UInt64(8 * $1) }
    }

    static func checksum(_ bytes: [UInt8]) -> UInt64 {
        bytes.withUnsafeBytes { buffer in
            guard let base = buffer.baseAddress else { return 0 }
            return tk_checksum(base, buffer.count)
        }
    }
}

/// Why a file of packed matrices is not used.
enum PackedFileFault: Error, Hashable, CustomStringConvertible {
    case missing
    case unreadable(String)
    /// Belongs to somebody else, or others may write to it.
    case untrusted
    case size(Int, expected: Int)
    case header(String)
    case damaged(window: Int)

    var description: String {
        switch self {
        case .missing: "there is none"
        case .unreadable(let reason): "it cannot be read (\(reason))"
        case .untrusted: "it is not this user's alone"
        case .size(let size, let expected): "it has \(size) bytes, expected \(expected)"
        case .header(let part): "its \(part) is not the expected one"
        case .damaged(let window): "its part \(window) does not have the checksum written with it"
        }
    }
}

/// Opens and checks files of packed matrices.
struct PackedFileReader {
    let image: PackedImage
    let pool: ComputePool
    /// (windows checked, windows in all).
    let progress: (Int, Int) -> Void

    private enum Limits {
        /// Windows between two reports of progress.
        static let windowsPerReport = 64
    }

    /// The panels of a file, mapped, every byte of it checked.
    func map(_ path: String) throws(PackedFileFault) -> PackedArena {
        let descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        guard descriptor >= 0 else { throw errno == ENOENT ? .missing : .unreadable(lastSystemError()) }
        defer { close(descriptor) }
        try checkFile(descriptor)
        let checksums = try image.checksums(try header(descriptor))
        let arena: PackedArena
        do {
            arena = try PackedArena(byteCount: image.byteCount, mapping: descriptor, offset: PackedImage.dataOffset)
        } catch { throw .unreadable(error.message) }
        try check(arena, checksums)
        // When it was last used, for those who make room.
        futimens(descriptor, nil)
        return arena
    }

    private func checkFile(_ descriptor: Int32) throws(PackedFileFault) {
        var status = stat()
        guard fstat(descriptor, &status) == 0 else { throw .unreadable(lastSystemError()) }
        guard status.st_mode & S_IFMT == S_IFREG, status.st_uid == geteuid(), status.st_mode & 0o022 == 0 else {
            throw .untrusted
        }
        guard Int(status.st_size) == image.fileBytes else {
            throw .size(Int(status.st_size), expected: image.fileBytes)
        }
    }

    private func header(_ descriptor: Int32) throws(PackedFileFault) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: image.headerBytes)
        let count = bytes.withUnsafeMutableBytes { buffer in
            var filled = 0
            while filled < buffer.count {
                let count = pread(descriptor, buffer.baseAddress.map { $0 + filled }, buffer.count - filled, filled)
                if count < 0 && errno == EINTR { continue }
                if count <= 0 { break }
                filled += count
            }
            return filled
        }
        guard count == bytes.count else { throw .unreadable("it ends after \(count) bytes") }
        return bytes
    }

    /// Reads every window once, which also maps it, and compares checksums.
    private func check(_ arena: PackedArena, _ checksums: [UInt64]) throws(PackedFileFault) {
        let firstBad = Atomic<Int>(Int.max)
        var done = 0
        while done < checksums.count {
            let group = done..<min(checksums.count, done + Limits.windowsPerReport)
            pool.run(group.count) { part, _ in
                let index = group.lowerBound + part
                if !Self.check(arena.window(index), checksums[index]) {
                    firstBad.min(index, ordering: .relaxed)
                }
            }
            let bad = firstBad.load(ordering: .relaxed)
            guard bad == Int.max else { throw .damaged(window: bad) }
            done = group.upperBound
            progress(done, checksums.count)
        }
    }

    private static func check(_ window: UnsafeMutableRawBufferPointer, _ checksum: UInt64) -> Bool {
        guard let base = window.baseAddress else { return false }
        // A part that the disk does not give, or that was cut off, is an error here and no signal. Kernels
        // that do not know the advice refuse it as invalid.
        if madvise(base, window.count, populateRead) != 0, errno != EINVAL { return false }
        return tk_checksum(base, window.count) == checksum
    }

    /// Linux's MADV_POPULATE_READ, which older headers lack.
    private static let populateRead: Int32 = 22
}

/// Writes a file of packed matrices beside the work of packing them, under a temporary name that it holds
/// locked; `finish` puts it in its place.
final class PackedFileWriter {
    let image: PackedImage
    private let pool: ComputePool
    private let descriptor: Int32
    private let partPath: String
    private let path: String
    private var checksums: [UInt64]
    private var written = 0
    private var isFinished = false

    /// - descriptor: of the empty file at `partPath`, locked; closed here.
    init(image: PackedImage, pool: ComputePool, descriptor: Int32, partPath: String, path: String) {
        self.image = image
        self.pool = pool
        self.descriptor = descriptor
        self.partPath = partPath
        self.path = path
        checksums = [UInt64](repeating: 0, count: image.windowCount)
    }

    deinit {
        if !isFinished { unlink(partPath) }
        close(descriptor)
    }

    /// Asks for the room that the file needs; the reason where the system has none.
    func reserve() -> String? {
        let code = posix_fallocate(descriptor, 0, off_t(image.fileBytes))
        return code == 0 ? nil : String(cString: strerror(code))
    }

    /// Writes the windows that are packed up to byte `end`, and maps them in the place of the memory that
    /// they were packed to. The reason where that fails; the arena is of no use then.
    func write(_ arena: PackedArena, upTo end: Int) -> String? {
        let last = end == image.byteCount ? image.windowCount : end / PackedArena.windowBytes
        let windows = written..<max(written, last)
        guard !windows.isEmpty else { return nil }
        let failure = Atomic<Int32>(0)
        let descriptor = descriptor
        checksums.withUnsafeMutableBufferPointer { sums in
            nonisolated(unsafe) let sums = sums
            pool.run(windows.count) { part, _ in
                let index = windows.lowerBound + part
                guard let base = arena.window(index).baseAddress else { return }
                sums[index] = tk_checksum(base, PackedArena.windowBytes)
                let place = PackedImage.dataOffset + index * PackedArena.windowBytes
                let code = writeWhole(descriptor, base, PackedArena.windowBytes, at: place)
                if code != 0 { failure.store(code, ordering: .relaxed) }
            }
        }
        let code = failure.load(ordering: .relaxed)
        guard code == 0 else { return String(cString: strerror(code)) }
        written = windows.upperBound
        return arena.map(windows, of: descriptor, offset: PackedImage.dataOffset) ? nil : lastSystemError()
    }

    /// Bytes of the arena, from its start, that are the file's.
    var mappedBytes: Int { min(image.byteCount, written * PackedArena.windowBytes) }

    /// What became of the file.
    func account(of failure: String?) -> PackedWeightsReport {
        guard let failure else { return .written(file: image.fileName, bytes: image.fileBytes) }
        return .packedInMemory(reason: "\(image.fileName) cannot be written (\(failure))")
    }

    /// Writes the header and gives the file its name; the reason where that fails.
    func finish() -> String? {
        let header = image.header(checksums: checksums)
        let code = header.withUnsafeBytes { buffer in
            buffer.baseAddress.map { writeWhole(descriptor, $0, buffer.count, at: 0) } ?? 0
        }
        guard code == 0 else { return String(cString: strerror(code)) }
        guard rename(partPath, path) == 0 else { return lastSystemError() }
        isFinished = true
        return nil
    }
}

/// Writes all bytes at a place of a file: 0, or what `errno` said.
private func writeWhole(_ descriptor: Int32, _ bytes: UnsafeRawPointer, _ count: Int, at place: Int) -> Int32 {
    var done = 0
    while done < count {
        let step = pwrite(descriptor, bytes + done, count - done, off_t(place + done))
        if step < 0 && errno == EINTR { continue }
        if step <= 0 { return step < 0 ? errno : EIO }
        done += step
    }
    return 0
}

/// What `errno` says.
func lastSystemError() -> String { String(cString: strerror(errno)) }
