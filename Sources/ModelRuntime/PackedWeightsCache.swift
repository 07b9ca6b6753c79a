import Glibc
import ServingTypes

/// What tells one model's files from another's, for files derived from them.
public struct SourceIdentity: Hashable, Sendable {
    /// For the names of files.
    public var name: String
    /// Lines without line breaks: names, sizes and times of the model's files, a fingerprint of what they hold.
    public var facts: [String]

    public init(name: String, facts: [String]) {
        self.name = name
        self.facts = facts.map { $0.replacing("\n", with: " ") }
    }
}

/// What became of a file of packed weights; its description is a sentence for people.
public enum PackedWeightsReport: Hashable, Sendable, CustomStringConvertible {
    case mapped(file: String)
    case written(file: String, bytes: Int)
    /// It was no good and is made anew.
    case replaced(file: String, reason: String)
    /// Another one, so that the folder keeps to its limit.
    case deleted(file: String, limit: Int)
    /// No file: every worker packs in memory of its own.
    case packedInMemory(reason: String)
    /// Nor that: products go on reading the model's files.
    case notPacked(reason: String)

    public var description: String {
        let sentence =
            switch self {
            case .mapped(let file): "\(file) mapped"
            case .written(let file, let bytes): "\(file) written, \(bytes >> 20) MiB"
            case .replaced(let file, let reason): "\(file) is written anew: \(reason)"
            case .deleted(let file, let limit): "\(file) deleted, the folder's limit is \(limit) bytes"
            case .packedInMemory(let reason): "packed in memory, \(reason)"
            case .notPacked(let reason): "not packed, \(reason)"
            }
        return "packed weights: \(sentence)"
    }
}

/// A folder of files with packed weights: the first worker that loads a model writes one, later ones map it,
/// so that they share its memory and start without packing. Files are private to the user, written under a
/// temporary name and renamed, never changed after; whoever cuts one short while it is mapped ends the
/// workers that map it, so they are replaced and deleted, not edited.
public struct PackedWeightsCache: Sendable {
    /// Made where it is missing.
    public var folder: String
    /// Bytes of all files; the ones not used for longest go first.
    public var bytesMax: Int
    /// Bytes of packed weights from which a file is worth it.
    public var bytesMin: Int
    /// Told what became of the file, from the loading thread.
    public var report: @Sendable (PackedWeightsReport) -> Void
    /// How many times in a row a writer in another process may be found without a sign of life.
    var silentPollsMax = Limits.silentPollsMax

    public enum Limits {
        public static let bytesMax = 64 << 30
        public static let bytesMin = 64 << 20
        /// Files of the folder that are looked at.
        static let filesMax = 4096
        /// A file may take one part in so many of the disk's free space.
        static let freeShare = 2
        /// How often a writer in another process is looked at, and how many times without a sign of life.
        static let pollMicroseconds: UInt32 = 50_000
        static let silentPollsMax = 200
    }

    public init(
        folder: String, bytesMax: Int = Limits.bytesMax, bytesMin: Int = Limits.bytesMin,
        report: @escaping @Sendable (PackedWeightsReport) -> Void = { _ in }
    ) {
        self.folder = folder
        self.bytesMax = bytesMax
        self.bytesMin = bytesMin
        self.report = report
    }

    /// `tandem/packed` in the user's folder for such things: `$XDG_CACHE_HOME`, or `.cache` at home; nil where
    /// the environment names neither.
    public static var standardFolder: String? {
        if let cache = environment("XDG_CACHE_HOME") { return cache + "/tandem/packed" }
        return environment("HOME").map { $0 + "/.cache/tandem/packed" }
    }

    private static func environment(_ name: String) -> String? {
        guard let text = getenv(name) else { return nil }
        let value = String(cString: text)
        return value.hasPrefix("/") ? value : nil
    }

    /// A file of packed weights.
    public struct File: Hashable, Sendable {
        /// Inside the cache's folder.
        public var name: String
        public var byteCount: Int
        /// Whether it was there before.
        public var wasThere: Bool
    }

    /// Writes a model's file ahead of its first load, unless there is a good one. Throws where the model cannot
    /// be read, or the file not written: no room, no folder, too small to be worth it.
    ///
    /// - options: as the engine that is to use the file has them; threads, kernels and quantisation count.
    public func write(
        spec: ModelSpec, weights: any TensorSource, options: EngineOptions = EngineOptions()
    ) throws(ServingError) -> File {
        var options = options
        (options.packedWeights, options.packing) = (self, .beforehand)
        try spec.validate()
        let packing = try ModelWeights.Packing(
            options, pool: ComputePool(workers: options.threads, cores: []), needsFile: true)
        let packed = try ModelWeights(spec: spec, source: weights, packing: packing, progress: options.progress).packed
        switch packed?.origin {
        case .mapped(let image): return File(name: image.fileName, byteCount: image.fileBytes, wasThere: true)
        case .written(let image): return File(name: image.fileName, byteCount: image.fileBytes, wasThere: false)
        case .memory, nil:
            throw ServingError(
                .unsupported, "packed weights: no file was written, the model has no matrices that are packed",
                field: "packed-cache", blast: .process)
        }
    }

    /// How the weights of an image are had.
    enum Opening {
        case mapped(PackedArena)
        /// They are packed and written.
        case writer(PackedFileWriter)
        /// They are packed in memory, and why; it was reported.
        case unavailable(String)
    }

    /// The file's matrices, where there is a good one; without waiting for others. A bad one is deleted.
    func find(_ image: PackedImage, pool: ComputePool, progress: @escaping (Int, Int) -> Void) -> PackedArena? {
        guard image.byteCount >= bytesMin, image.hasRoom else { return nil }
        let reader = PackedFileReader(image: image, pool: pool, progress: progress)
        switch mapped(folder + "/" + image.fileName, reader) {
        case .mapped(let arena): return arena
        case .writer, .unavailable, nil: return nil
        }
    }

    /// - isCancelled: ends the waiting for a writer in another process.
    func open(
        _ image: PackedImage, pool: ComputePool, progress: @escaping (Int, Int) -> Void,
        isCancelled: () -> Bool = { false }
    ) -> Opening {
        guard image.byteCount >= bytesMin else {
            return .unavailable("\(image.byteCount) bytes are fewer than \(bytesMin), from which a file is worth it")
        }
        let path = folder + "/" + image.fileName
        guard image.hasRoom, image.fileBytes <= bytesMax else {
            return unavailable("\(image.fileBytes) bytes exceed the limit of \(bytesMax)")
        }
        guard makeFolder() else { return unavailable("\(folder) cannot be made (\(lastSystemError()))") }
        let reader = PackedFileReader(image: image, pool: pool, progress: progress)
        return mapped(path, reader) ?? wait(image, reader, pool, path, isCancelled)
    }

    /// The file, where there is a good one; a bad one is deleted.
    private func mapped(_ path: String, _ reader: PackedFileReader) -> Opening? {
        do throws(PackedFileFault) {
            let arena = try reader.map(path)
            report(.mapped(file: reader.image.fileName))
            return .mapped(arena)
        } catch {
            switch error {
            case .missing: return nil
            case .untrusted, .unreadable: return unavailable("\(reader.image.fileName): \(error)")
            case .size, .header, .damaged:
                report(.replaced(file: reader.image.fileName, reason: "\(error)"))
                unlink(path)
                return nil
            }
        }
    }

    /// Becomes the writer, or waits for the one there is.
    private func wait(
        _ image: PackedImage, _ reader: PackedFileReader, _ pool: ComputePool, _ path: String,
        _ isCancelled: () -> Bool
    ) -> Opening {
        let partPath = path + ".part"
        var (silentPolls, lastSign) = (0, PartSign(partPath))
        while silentPolls < silentPollsMax, !isCancelled() {
            switch lock(partPath) {
            case .failed(let reason): return unavailable("\(image.fileName) cannot be made (\(reason))")
            case .locked(let descriptor):
                let writer = PackedFileWriter(
                    image: image, pool: pool, descriptor: descriptor, partPath: partPath, path: path)
                // Whoever held the lock may have finished; the writer's end deletes the temporary file.
                if let opening = mapped(path, reader) { return opening }
                makeRoom(image.fileBytes)
                if let reason = room(image.fileBytes) ?? writer.reserve() {
                    return unavailable("\(image.fileName) is not written: \(reason)")
                }
                return .writer(writer)
            case .busy:
                usleep(Limits.pollMicroseconds)
                let sign = PartSign(partPath)
                silentPolls = sign == lastSign ? silentPolls + 1 : 0
                lastSign = sign
            }
        }
        return unavailable("\(image.fileName) is being written by a process that makes no progress")
    }

    private func unavailable(_ reason: String) -> Opening {
        report(.packedInMemory(reason: reason))
        return .unavailable(reason)
    }

    // MARK: - Folder and locks

    /// The folder and those above it, for this user alone.
    private func makeFolder() -> Bool {
        var path = folder.hasPrefix("/") ? "" : "."
        for part in folder.split(separator: "/") {
            path += "/" + part
            if mkdir(path, 0o700) != 0 && errno != EEXIST { return false }
        }
        var status = stat()
        return stat(folder, &status) == 0 && status.st_mode & S_IFMT == S_IFDIR
    }

    private enum Lock {
        case locked(Int32)
        case busy
        case failed(String)
    }

    /// Locks the temporary file as long as the descriptor is open. Its writer renames or deletes it under the
    /// lock, so the name may mean another file by then: busy, to be tried again.
    private func lock(_ path: String) -> Lock {
        let descriptor = Glibc.open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0o600)
        guard descriptor >= 0 else { return .failed(lastSystemError()) }
        var (held, named) = (stat(), stat())
        if flock(descriptor, LOCK_EX | LOCK_NB) == 0, fstat(descriptor, &held) == 0, stat(path, &named) == 0,
            held.st_ino == named.st_ino, held.st_dev == named.st_dev
        {
            if ftruncate(descriptor, 0) == 0 { return .locked(descriptor) }
            let reason = lastSystemError()
            close(descriptor)
            return .failed(reason)
        }
        close(descriptor)
        return .busy
    }

    /// Changes while a file is written.
    private struct PartSign: Equatable {
        var seconds = 0
        var nanoseconds = 0

        init(_ path: String) {
            var status = stat()
            guard stat(path, &status) == 0 else { return }
            (seconds, nanoseconds) = (status.st_mtim.tv_sec, status.st_mtim.tv_nsec)
        }
    }

    // MARK: - Room

    /// Why the disk should not take so many bytes more.
    private func room(_ bytes: Int) -> String? {
        var disk = statvfs()
        guard statvfs(folder, &disk) == 0 else { return lastSystemError() }
        let (free, isTooMuch) = Int(disk.f_bavail).multipliedReportingOverflow(by: Int(disk.f_frsize))
        guard isTooMuch || bytes <= free / Limits.freeShare else {
            return "\(bytes) bytes are more than half of the disk's free \(free)"
        }
        return nil
    }

    /// Deletes files whose writer is gone, and those not used for longest until `bytes` more stay below the limit.
    private func makeRoom(_ bytes: Int) {
        var files = storedFiles()
        var total = files.reduce(0) { $0 + $1.bytes } + bytes
        while total > bytesMax, let oldest = files.popLast() {
            guard unlink(folder + "/" + oldest.name) == 0 else { continue }
            report(.deleted(file: oldest.name, limit: bytesMax))
            total -= oldest.bytes
        }
    }

    private struct StoredFile {
        var name: String
        var bytes: Int
        var seconds: Int
    }

    /// The folder's files of packed weights, latest use first.
    private func storedFiles() -> [StoredFile] {
        guard let directory = opendir(folder) else { return [] }
        defer { closedir(directory) }
        var files: [StoredFile] = []
        var seen = 0
        while seen < Limits.filesMax, let entry = readdir(directory) {
            seen += 1
            let name = withUnsafeBytes(of: entry.pointee.d_name) { bytes in
                String(decoding: bytes.prefix { $0 != 0 }, as: UTF8.self)
            }
            if name.hasSuffix(PackedImage.fileEnding + ".part") { deleteIfAbandoned(folder + "/" + name) }
            var status = stat()
            guard name.hasSuffix(PackedImage.fileEnding), lstat(folder + "/" + name, &status) == 0,
                status.st_mode & S_IFMT == S_IFREG
            else { continue }
            files.append(StoredFile(name: name, bytes: Int(status.st_blocks) * 512, seconds: status.st_mtim.tv_sec))
        }
        return files.sorted { ($0.seconds, $0.name) > ($1.seconds, $1.name) }
    }

    private func deleteIfAbandoned(_ path: String) {
        let descriptor = Glibc.open(path, O_RDWR | O_CLOEXEC | O_NOFOLLOW)
        guard descriptor >= 0 else { return }
        defer { close(descriptor) }
        if flock(descriptor, LOCK_EX | LOCK_NB) == 0 { unlink(path) }
    }
}
