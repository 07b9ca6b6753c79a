import Glibc
import ServingTypes

/// A model in one GGUF file or in several (`name-00001-of-0000N.gguf`), mapped and checked.
struct GGUFFile: Sendable {
    /// One file of the model.
    struct Shard: Sendable {
        var file: MappedFile
        var header: GGUFHeader
    }

    let shards: [Shard]
    /// The file's name without its number and ending.
    let modelName: String
    /// The first file's name, for messages.
    let name: String

    /// Metadata of the first file, which has all of them.
    var fields: GGUFFields { GGUFFields(metadata: shards.first?.header.metadata ?? [:], file: name) }

    /// Whether the path names a GGUF file rather than a folder.
    static func isNamed(by path: String) -> Bool {
        var status = stat()
        return path.hasSuffix(".gguf") && (stat(path, &status) != 0 || status.st_mode & S_IFMT != S_IFDIR)
    }

    /// Maps the file and, where it is the first of several, the others beside it.
    init(path: String) throws(ServingError) {
        let parts = path.split(separator: "/", omittingEmptySubsequences: false)
        let name = parts.last.map(String.init) ?? path
        let folder = path.dropLast(name.count)
        let first = try Self.shard(path, name)
        let split = ShardName(name)
        let count =
            try GGUFFields(metadata: first.header.metadata, file: name)
            .optionalInteger("split.count", 0...ModelFileLimits.shardsMax) ?? 1
        self.name = name
        modelName = split?.model ?? String(name.dropLast(".gguf".count))
        guard count > 1 else {
            shards = [first]
            try checkNames()
            return
        }
        guard let split, split.number == 1, split.count == count else {
            throw fileFault(
                name, "split.count is \(count), and the name is not that of the first of them (\(Self.example(count)))",
                field: "split.count")
        }
        var shards = [first]
        for number in 2...count {
            let other = split.sibling(number)
            shards.append(try Self.shard(folder + other, other))
        }
        self.shards = shards
        try checkSplit(count)
        try checkNames()
    }

    private static func example(_ count: Int) -> String {
        ShardName(model: "model", number: 1, count: count).sibling(1)
    }

    private static func shard(_ path: String, _ name: String) throws(ServingError) -> Shard {
        let file = try MappedFile(path: path, name: name, leastBytes: "the 24 of a GGUF header")
        return Shard(file: file, header: try GGUFHeader(file.bytes, file: name))
    }

    /// Every file's own idea of its number, and of how many tensors there are.
    private func checkSplit(_ count: Int) throws(ServingError) {
        var tensorCount = 0
        for (number, shard) in shards.enumerated() {
            let fields = GGUFFields(metadata: shard.header.metadata, file: shard.file.name)
            let written = try fields.integer("split.count", 0...ModelFileLimits.shardsMax)
            guard written == count else {
                throw fields.fault("split.count", "is \(written), the first file's is \(count)")
            }
            let own = try fields.integer("split.no", 0...ModelFileLimits.shardsMax)
            guard own == number else { throw fields.fault("split.no", "is \(own) in file \(number)") }
            tensorCount += shard.header.tensors.count
        }
        guard let wanted = try fields.optionalInteger("split.tensors.count", 0...ModelFileLimits.tensorsMax) else {
            return
        }
        guard wanted == tensorCount else {
            throw fields.fault("split.tensors.count", "is \(wanted), and the files hold \(tensorCount)")
        }
    }

    private func checkNames() throws(ServingError) {
        var names: Set<String> = []
        for shard in shards {
            for tensor in shard.header.tensors where !names.insert(tensor.name).inserted {
                throw fileFault(
                    shard.file.name, "has the tensor \(shown(tensor.name)), which an earlier file has too",
                    field: tensor.name)
            }
        }
        guard names.count <= ModelFileLimits.tensorsMax else {
            throw fileFault(
                name,
                "and the files beside it have \(names.count) tensors, more than "
                    + "\(ModelFileLimits.tensorsMax)", field: "tensor count")
        }
    }

    /// Bytes of all files.
    var byteCount: Int { shards.reduce(0) { $0 + $1.file.bytes.count } }

    /// Adds all metadata, names, types, shapes and sampled bytes of all tensors.
    func add(to fingerprint: inout Fingerprint) {
        for shard in shards {
            let headerEnd = min(shard.header.dataStart, shard.file.bytes.count)
            fingerprint.add(UnsafeRawBufferPointer(rebasing: shard.file.bytes[..<headerEnd]))
            for tensor in shard.header.tensors {
                fingerprint.addSamples(UnsafeRawBufferPointer(rebasing: shard.file.bytes[tensor.range]))
            }
        }
    }
}

/// `model-00002-of-00005.gguf`.
private struct ShardName {
    var model: String
    var number: Int
    var count: Int

    private static let digits = 5

    init(model: String, number: Int, count: Int) {
        self.model = model
        self.number = number
        self.count = count
    }

    /// nil where the name is not of that form.
    init?(_ name: String) {
        let tail = [UInt8]("-00000-of-00000.gguf".utf8)
        let bytes = [UInt8](name.utf8)
        guard bytes.count > tail.count else { return nil }
        let end = bytes.suffix(tail.count)
        var numbers: [Int] = [0, 0]
        for (place, (byte, wanted)) in zip(end, tail).enumerated() {
            if wanted == UInt8(ascii: "0") {
                guard (0x30...0x39).contains(byte) else { return nil }
                let which = place < 8 ? 0 : 1
                numbers[which] = numbers[which] * 10 + Int(byte - 0x30)
            } else if byte != wanted {
                return nil
            }
        }
        self.init(
            model: String(decoding: bytes.dropLast(tail.count), as: UTF8.self), number: numbers[0], count: numbers[1])
    }

    func sibling(_ number: Int) -> String {
        func padded(_ number: Int) -> String {
            let text = String(number)
            return String(repeating: "0", count: max(0, Self.digits - text.count)) + text
        }
        return "\(model)-\(padded(number))-of-\(padded(count)).gguf"
    }
}
