import BoundedJSON
import Glibc
import ServingTypes

/// Reads the small files of one folder, each below a cap of its own.
struct FolderReader {
    let path: String

    init(path: String) throws(ServingError) {
        var status = stat()
        guard stat(path, &status) == 0 else {
            throw fileFault(path, "the model folder cannot be opened (\(systemError()))", code: .notFound)
        }
        guard status.st_mode & S_IFMT == S_IFDIR else {
            throw fileFault(
                path, "this is no folder; give the folder that holds config.json, or a .gguf file", code: .notFound)
        }
        self.path = path
    }

    /// The last part of the folder's path, links not followed; a Hugging Face cache folder
    /// (`models--org--name/snapshots/<commit>`) is named for its model.
    var name: String {
        let parts = path.split(separator: "/").filter { $0 != "." }
        if parts.count >= 3, parts[parts.count - 2] == "snapshots" {
            let cached = parts[parts.count - 3]
            if cached.hasPrefix("models--") { return String(cached.split(separator: "-").last ?? cached) }
        }
        return parts.last.map(String.init) ?? "model"
    }

    func file(_ name: String) -> String { path + "/" + name }

    func exists(_ name: String) -> Bool { access(file(name), F_OK) == 0 }

    /// The file's bytes; nil where there is no such file.
    func bytes(_ name: String, max: Int) throws(ServingError) -> [UInt8]? {
        let descriptor = open(file(name), O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else {
            if errno == ENOENT { return nil }
            throw fileFault(name, "cannot be opened (\(systemError()))")
        }
        defer { close(descriptor) }
        let size = try regularFileSize(descriptor, name: name)
        guard size <= max else { throw fileFault(name, "\(size) bytes, more than the limit of \(max)") }
        return try read(descriptor, size, name)
    }

    private func read(_ descriptor: Int32, _ size: Int, _ name: String) throws(ServingError) -> [UInt8] {
        var failure: String?
        let bytes = [UInt8](unsafeUninitializedCapacity: size) { buffer, filled in
            while filled < size {
                let count = Glibc.read(descriptor, buffer.baseAddress.map { $0 + filled }, size - filled)
                if count < 0 && errno == EINTR { continue }
                if count < 0 { failure = systemError() }
                if count <= 0 { break }
                filled += count
            }
        }
        if let failure { throw fileFault(name, "cannot be read (\(failure))") }
        guard bytes.count == size else {
            throw fileFault(name, "ended after \(bytes.count) of \(size) bytes while it was read")
        }
        return bytes
    }

    /// The file as JSON; nil where there is no such file.
    func json(_ name: String, max: Int) throws(ServingError) -> JSONValue? {
        guard let bytes = try bytes(name, max: max) else { return nil }
        var limits = JSONLimits()
        limits.bytesMax = max
        do {
            return try JSON.parse(bytes, limits: limits)
        } catch {
            throw fileFault(name, "is no valid JSON (\(error))")
        }
    }

    /// The file as text; nil where there is no such file.
    func text(_ name: String, max: Int) throws(ServingError) -> String? {
        guard let bytes = try bytes(name, max: max) else { return nil }
        guard let text = String(validating: bytes, as: UTF8.self) else {
            throw fileFault(name, "is not valid UTF-8")
        }
        return text
    }
}

/// Size of an open regular file.
func regularFileSize(_ descriptor: Int32, name: String) throws(ServingError) -> Int {
    var status = stat()
    guard fstat(descriptor, &status) == 0 else {
        throw fileFault(name, "cannot be inspected (\(systemError()))")
    }
    guard status.st_mode & S_IFMT == S_IFREG else { throw fileFault(name, "is not a regular file") }
    return Int(status.st_size)
}

/// What `errno` says.
func systemError() -> String { String(cString: strerror(errno)) }
