import Foundation
import Logging
import Messages
import ModelFiles
import ModelRuntime
import ServingTypes

/// A model made ready to serve: its weights, the memory of its pages, and the digests that say
/// which other workers may exchange pages with this one.
public struct WorkerModel: Sendable {
    public let spec: ModelSpec
    public let store: KVStore
    public let engine: CPUEngine
    public let naming: SHA256PageNaming
    public let compatibility: CompatibilityDigest
    public let contextTokensMax: Int

    /// A share of the machine's free memory that one worker's pool may take when it sizes itself.
    static let poolMemoryShare = 0.1
    static let poolBytesMax = 4 << 30

    /// Reads the folder and lays out the pool. Progress goes to the log, for `tandem up` to show.
    public static func load(_ flags: WorkerFlags, log: Logger) throws(ServingError) -> WorkerModel {
        let folder = try EngineFolder(path: flags.model)
        let layout = try pageLayout(folder.spec, flags)
        let slots = flags.blocks > 0 ? flags.blocks : defaultSlots(folder.spec, layout)
        let store = try KVStore(layout: layout, slotCount: slots)
        let progress = LoadReporter(log: log)
        var options = EngineOptions()
        options.threads = flags.threads
        options.pinnedCores = try cores(flags.pinCores)
        options.kernels = try kernels(flags.kernels)
        options.quantise = try quantised(flags.quantize)
        options.packedWeights = packedCache(flags, log: log)
        options.packing = .besides
        options.sharesCores = !flags.keepThreads
        options.progress = { loaded, total in progress.report(loaded, total) }
        try folder.weights.load { loaded, total in progress.report(loaded, total) }
        let engine = try CPUEngine(spec: folder.spec, weights: folder.weights, store: store, options: options)
        let base = ClusterDigest.base(model: folder.digest, kvType: flags.kvType, blockTokens: flags.blockTokens)
        return WorkerModel(
            spec: folder.spec, store: store, engine: engine, naming: SHA256PageNaming(compatibility: base),
            compatibility: ClusterDigest.full(base: base, kernels: engine.variantName),
            contextTokensMax: min(folder.spec.contextTokensMax, slots * flags.blockTokens))
    }

    /// nil where none is wanted, or the environment names no folder for it.
    static func packedCache(_ flags: WorkerFlags, log: Logger) -> PackedWeightsCache? {
        let folder: String?
        switch flags.packedCache {
        case "none": folder = nil
        case "auto": folder = PackedWeightsCache.standardFolder
        default: folder = flags.packedCache
        }
        return folder.map { folder in
            PackedWeightsCache(folder: folder, bytesMax: max(0, flags.packedCacheBytes)) { log.info("\($0)") }
        }
    }

    private static func pageLayout(_ spec: ModelSpec, _ flags: WorkerFlags) throws(ServingError) -> KVStore.Layout {
        guard let type = KVElementType(rawValue: flags.kvType) else {
            throw ServingError(
                .invalidValue, "kv-type: \(flags.kvType) is not one of \(KVElementType.names)", field: "kv-type",
                blast: .process)
        }
        return KVStore.Layout(
            blockTokens: flags.blockTokens, layerCount: spec.layerCount, kvHeadCount: spec.kvHeadCount,
            headDim: spec.headDim, elementType: type)
    }

    /// Numbers of cores, separated by commas; none for an empty text.
    static func cores(_ text: String) throws(ServingError) -> [Int] {
        var cores: [Int] = []
        guard !text.isEmpty else { return cores }
        for part in text.split(separator: ",", omittingEmptySubsequences: false) {
            guard let core = Int(part), (0...1023).contains(core) else {
                throw ServingError(
                    .invalidValue, "pin-cores: \(part) is not the number of a core, 0 to 1023", field: "pin-cores",
                    blast: .process)
            }
            cores.append(core)
        }
        return cores
    }

    /// Only formats that are written can be asked for. The engine's variant names what came of it, so
    /// workers with different weights have different digests.
    static func quantised(_ name: String) throws(ServingError) -> BlockFormat? {
        if name == "none" { return nil }
        let formats = BlockFormat.allCases.filter(\.canQuantise)
        guard let format = formats.first(where: { $0.rawValue.lowercased() == name }) else {
            let names = ["none"] + formats.map { $0.rawValue.lowercased() }
            throw ServingError(
                .invalidValue, "quantize: \(name) is not one of \(names.joined(separator: ", "))", field: "quantize",
                blast: .process)
        }
        return format
    }

    private static func kernels(_ name: String) throws(ServingError) -> KernelVariant? {
        if name == "auto" { return nil }
        guard let variant = KernelVariant(rawValue: name) else {
            throw ServingError(
                .invalidValue, "kernels: \(name) is not one of auto, scalar, avx2, avx512", field: "kernels",
                blast: .process)
        }
        return variant
    }

    /// Room for 16 full contexts, within the memory share.
    private static func defaultSlots(_ spec: ModelSpec, _ layout: KVStore.Layout) -> Int {
        let wanted = 16 * (spec.contextTokensMax / layout.blockTokens + 1)
        let memory = Double(ProcessInfo.processInfo.physicalMemory) * poolMemoryShare
        let affordable = min(Int(memory), poolBytesMax) / max(1, layout.pageBytes)
        return max(16, min(wanted, affordable))
    }
}

/// Which workers may exchange pages (disaggregation.md §6.2).
public enum ClusterDigest {
    /// What names pages: the model and the way its pages are cut. The coordinator knows this too.
    public static func base(model: PageID, kvType: String, blockTokens: Int) -> CompatibilityDigest {
        let text = "tandem/1 model=\(model.allWords) kv=\(kvType) block=\(blockTokens) layout=layer,kv,head,token,dim"
        return CompatibilityDigest(PageID(hashing: text.utf8))
    }

    /// The bits of a page depend on the kernels as well: different vector widths add in different
    /// orders, and bit-identical output is promised for one build on one kind of machine.
    public static func full(base: CompatibilityDigest, kernels: String) -> CompatibilityDigest {
        CompatibilityDigest(PageID(hashing: "\(base.page.allWords) kernels=\(kernels)".utf8))
    }
}

extension PageID {
    /// All 256 bits, unlike `description`.
    var allWords: String { "\(words.0).\(words.1).\(words.2).\(words.3)" }
}

/// Logs model loading at each tenth.
final class LoadReporter: Sendable {
    private let log: Logger
    private let lastTenth = Protected(-1)

    init(log: Logger) { self.log = log }

    func report(_ loadedBytes: Int, _ totalBytes: Int) {
        let tenth = totalBytes > 0 ? loadedBytes * 10 / totalBytes : 10
        let isNew = lastTenth.update { last in
            defer { last = max(last, tenth) }
            return tenth > last
        }
        guard isNew else { return }
        log.info("loading the model: \(tenth * 10) % of \(totalBytes / 1_048_576) MiB")
    }
}
