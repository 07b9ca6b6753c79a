import BoundedJSON
import ModelRuntime
import ServingTypes
import Synchronization

/// The weights of a model folder: one safetensors file, or several with an index, mapped read-only.
/// Opening checks every header; the weights themselves are read when they are first touched.
public final class SafetensorsWeights: StoredWeights {
    private struct Entry {
        var tensor: SafetensorsTensor
        var shard: Int
    }

    private let modelName: String
    private let shards: [MappedFile]
    private let entries: [String: Entry]
    public let tensorNames: [String]
    /// Aligned copies of tensors that lie at odd addresses in their file (old writers did not pad).
    private let copies = Mutex<[String: AlignedCopy]>([:])

    static let singleFile = "model.safetensors"
    static let indexFile = "model.safetensors.index.json"

    init(_ folder: FolderReader) throws(ServingError) {
        let (shards, entries) = try Self.open(folder)
        modelName = folder.name
        self.shards = shards
        self.entries = entries
        tensorNames = entries.keys.sorted()
    }

    /// Bytes of all files.
    public var byteCount: Int { shards.reduce(0) { $0 + $1.bytes.count } }

    /// A view of the mapped tensor. Throws for an element type that the engine does not read.
    public func tensor(named name: String) throws(ServingError) -> TensorView? {
        guard let entry = entries[name] else { return nil }
        let file = shards[entry.shard]
        guard let type = Self.elementType(entry.tensor.type) else {
            throw fileFault(
                file.name,
                "tensor \(shown(name)) has the dtype \(entry.tensor.type.rawValue), "
                    + "and only F32, F16 and BF16 are read",
                field: name, code: .unsupported)
        }
        guard let start = UnsafeRawBufferPointer(rebasing: file.bytes[entry.tensor.range]).baseAddress else {
            return nil
        }
        let base = UInt(bitPattern: start) % UInt(type.byteCount) == 0 ? start : aligned(name, entry, file)
        return TensorView(base: base, shape: entry.tensor.shape, type: type)
    }

    public func release(named name: String) {
        guard let entry = entries[name] else { return }
        shards[entry.shard].release(entry.tensor.range)
        copies.withLock { $0[name] = nil }
    }

    /// The files' versions, and a fingerprint of names, types, shapes and of samples of every tensor.
    public var identity: SourceIdentity? {
        var fingerprint = Fingerprint()
        add(to: &fingerprint)
        return SourceIdentity(name: modelName, facts: shards.map(\.version) + [fingerprint.finished().fact])
    }

    private func aligned(_ name: String, _ entry: Entry, _ file: MappedFile) -> UnsafeRawPointer {
        copies.withLock { copies in
            if let copy = copies[name] { return copy.base }
            let copy = AlignedCopy(UnsafeRawBufferPointer(rebasing: file.bytes[entry.tensor.range]))
            copies[name] = copy
            return copy.base
        }
    }

    private static func elementType(_ type: SafetensorsType) -> ElementType? {
        switch type {
        case .float32: .f32
        case .float16: .f16
        case .bfloat16: .bf16
        case .bool, .uint8, .int8, .float4, .float6e2m3, .float6e3m2, .float8e4m3, .float8e5m2, .float8e8m0, .uint16,
            .int16, .uint32, .int32, .uint64, .int64, .float64, .complex64:
            nil
        }
    }

    // MARK: opening

    private static func open(_ folder: FolderReader) throws(ServingError) -> ([MappedFile], [String: Entry]) {
        if folder.exists(singleFile) {
            let file = try MappedFile(path: folder.file(singleFile), name: singleFile)
            let header = try SafetensorsHeader(file.bytes, fileBytes: file.bytes.count, file: singleFile)
            var entries: [String: Entry] = [:]
            for tensor in header.tensors { entries[tensor.name] = Entry(tensor: tensor, shard: 0) }
            return ([file], entries)
        }
        guard let index = try folder.json(indexFile, max: ModelFileLimits.indexBytesMax) else {
            throw fileFault(
                folder.path, "the folder holds neither \(singleFile) nor \(indexFile)", field: singleFile,
                code: .notFound)
        }
        return try openShards(folder, weightMap(index))
    }

    /// Tensor names and shard numbers in the index's order, and the shards' names in order of first use.
    private static func weightMap(
        _ index: JSONValue
    ) throws(ServingError) -> (files: [String], tensors: [(name: String, shard: Int)]) {
        guard let map = index["weight_map"]?.objectValue else {
            throw fileFault(indexFile, "weight_map is missing or no object", field: "weight_map", code: .missingField)
        }
        guard map.count <= ModelFileLimits.tensorsMax else {
            throw fileFault(
                indexFile, "weight_map names \(map.count) tensors, more than \(ModelFileLimits.tensorsMax)",
                field: "weight_map")
        }
        var files: [String] = []
        var numbers: [String: Int] = [:]
        var tensors: [(name: String, shard: Int)] = []
        for (name, value) in map.members {
            guard let file = value.stringValue, isPlainFileName(file) else {
                throw fileFault(
                    indexFile,
                    "weight_map[\(shown(name))] is \(shown(value)), not the name of a .safetensors file of this folder",
                    field: "weight_map")
            }
            let number = numbers[file] ?? files.count
            if number == files.count {
                files.append(file)
                numbers[file] = number
            }
            tensors.append((name, number))
        }
        guard !files.isEmpty, files.count <= ModelFileLimits.shardsMax else {
            throw fileFault(
                indexFile, "weight_map names \(files.count) files, outside 1 to \(ModelFileLimits.shardsMax)",
                field: "weight_map")
        }
        return (files, tensors)
    }

    /// A name that stays in its folder: no separator, no leading dot, no NUL.
    private static func isPlainFileName(_ name: String) -> Bool {
        name.hasSuffix(".safetensors") && name.utf8.count <= 255 && !name.hasPrefix(".")
            && !name.utf8.contains { $0 == UInt8(ascii: "/") || $0 == UInt8(ascii: "\\") || $0 == 0 }
    }

    private static func openShards(
        _ folder: FolderReader, _ map: (files: [String], tensors: [(name: String, shard: Int)])
    ) throws(ServingError) -> ([MappedFile], [String: Entry]) {
        var files: [MappedFile] = []
        var found: [[String: SafetensorsTensor]] = []
        for name in map.files {
            let file = try MappedFile(path: folder.file(name), name: name)
            var tensors: [String: SafetensorsTensor] = [:]
            let header = try SafetensorsHeader(file.bytes, fileBytes: file.bytes.count, file: name)
            for tensor in header.tensors { tensors[tensor.name] = tensor }
            files.append(file)
            found.append(tensors)
        }
        var entries: [String: Entry] = [:]
        for (name, shard) in map.tensors {
            guard let tensor = found[shard][name] else {
                throw fileFault(
                    indexFile, "weight_map has tensor \(shown(name)) in \(map.files[shard]), which does not hold it",
                    field: "weight_map")
            }
            entries[name] = Entry(tensor: tensor, shard: shard)
        }
        return (files, entries)
    }

    // MARK: fingerprint

    /// Adds names, types, shapes and sampled bytes of all tensors, whatever files they lie in.
    func add(to fingerprint: inout Fingerprint) {
        for name in tensorNames {
            guard let entry = entries[name] else { continue }
            fingerprint.add(name)
            fingerprint.add(entry.tensor.type.rawValue)
            for size in entry.tensor.shape { fingerprint.add(UInt64(size)) }
            let bytes = UnsafeRawBufferPointer(rebasing: shards[entry.shard].bytes[entry.tensor.range])
            fingerprint.addSamples(bytes)
        }
    }
}

/// A tensor copied to where its elements are aligned. Unchecked because of the pointer: the bytes
/// never change after `init`.
private final class AlignedCopy: @unchecked Sendable {
    private let memory: UnsafeMutableRawPointer

    init(_ bytes: UnsafeRawBufferPointer) {
        memory = UnsafeMutableRawPointer.allocate(byteCount: max(1, bytes.count), alignment: 64)
        UnsafeMutableRawBufferPointer(start: memory, count: bytes.count).copyMemory(from: bytes)
    }

    var base: UnsafeRawPointer { UnsafeRawPointer(memory) }

    deinit { memory.deallocate() }
}
