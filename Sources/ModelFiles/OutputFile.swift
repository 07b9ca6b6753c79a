import Glibc
import ServingTypes

/// A new file, written from start to end under a temporary name and put in its place when complete.
final class OutputFile {
    private let path: String
    private let descriptor: Int32
    private var isFinished = false

    convenience init(folder: String, name: String) throws(ServingError) { try self.init(path: "\(folder)/\(name)") }

    init(path: String) throws(ServingError) {
        self.path = path
        descriptor = open(path + ".part", O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0o644)
        guard descriptor >= 0 else { throw fileFault(path, "cannot be made (\(systemError()))") }
    }

    func write(_ bytes: [UInt8]) throws(ServingError) {
        let failure: String? = bytes.withUnsafeBytes { buffer in
            var written = 0
            while written < buffer.count {
                let count = Glibc.write(descriptor, buffer.baseAddress.map { $0 + written }, buffer.count - written)
                if count < 0 && errno == EINTR { continue }
                if count <= 0 { return systemError() }
                written += count
            }
            return nil
        }
        if let failure { throw fileFault(path, "cannot be written (\(failure))") }
    }

    func finish() throws(ServingError) {
        isFinished = true
        guard close(descriptor) == 0, rename(path + ".part", path) == 0 else {
            throw fileFault(path, "cannot be put in its place (\(systemError()))")
        }
    }

    deinit {
        guard !isFinished, descriptor >= 0 else { return }
        close(descriptor)
        unlink(path + ".part")
    }
}
