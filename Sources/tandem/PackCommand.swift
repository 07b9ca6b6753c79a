import ArgumentParser
import Foundation
import ModelFiles
import ModelRuntime
import ServingTypes

/// Writes the file of packed weights that a model's workers map, ahead of the first of them.
struct PackCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "pack", abstract: "Write the packed weights of a model, so that its first worker starts fast too.",
        discussion: """
            Workers map the file and share its memory. Without it the first worker of a model writes it beside its
            first steps. A file belongs to one version of one model's files, one --quantize and one processor family;
            what else lies in the folder is left alone until its limit is reached.

              tandem pack qwen-q8_0.gguf
              tandem pack ./Qwen2.5-0.5B --quantize q8_0
            """)

    @Argument(help: "Hugging Face model folder or GGUF file.") var model: String
    @Option(help: "As workers are to be given it: none, q8_0, q4_0.") var quantize: String = "none"
    @OptionGroup var folder: PackedFolder

    func validate() throws {
        guard folder.packedCache != "none" else { throw ValidationError("--packed-cache: none leaves nothing to do") }
        _ = try format
    }

    private var format: BlockFormat? {
        get throws {
            if quantize == "none" { return nil }
            let known = BlockFormat.allCases.filter(\.canQuantise)
            guard let format = known.first(where: { $0.rawValue.lowercased() == quantize }) else {
                throw ValidationError("--quantize: \(quantize) is not one of none, q8_0, q4_0")
            }
            return format
        }
    }

    func run() async throws {
        var options = EngineOptions()
        options.quantise = try format
        guard let cache = try folder.cache else { return }
        Terminal.say(try PackedFolder.write(model, to: cache, options))
    }
}

/// Where files of packed weights are kept, for commands that write them.
struct PackedFolder: ParsableArguments {
    @Option(
        help: "Folder of packed weights, as workers are to be given it; auto: tandem/packed in the user's cache folder."
    )
    var packedCache: String = "auto"

    @Option(help: "Bytes of that folder's files; the ones not used for longest are deleted first.")
    var packedCacheBytes: Int = PackedWeightsCache.Limits.bytesMax

    func validate() throws {
        guard packedCacheBytes >= 0 else {
            throw ValidationError("--packed-cache-bytes: \(packedCacheBytes) is negative")
        }
    }

    /// nil where none is wanted.
    var cache: PackedWeightsCache? {
        get throws {
            if packedCache == "none" { return nil }
            guard let path = packedCache == "auto" ? PackedWeightsCache.standardFolder : packedCache else {
                throw CLIError("packed-cache: neither XDG_CACHE_HOME nor HOME names a folder; name one with it")
            }
            return PackedWeightsCache(folder: path, bytesMax: packedCacheBytes) { report in
                switch report {
                case .deleted: Terminal.note("\(report)")
                // What becomes of the file itself is the command's own answer.
                case .mapped, .written, .replaced, .packedInMemory, .notPacked: break
                }
            }
        }
    }

    /// Writes the file of a model, unless it is there; what came of it, in a sentence.
    static func write(
        _ model: String, to cache: PackedWeightsCache, _ options: EngineOptions = EngineOptions()
    ) throws(ServingError) -> String {
        let started = ContinuousClock.now
        let folder = try EngineFolder(path: model)
        var options = options
        options.threads = ProcessInfo.processInfo.activeProcessorCount
        let file = try cache.write(spec: folder.spec, weights: folder.weights, options: options)
        let seconds = String(format: "%.1f", (ContinuousClock.now - started).seconds)
        let path = "\(cache.folder)/\(file.name)"
        return file.wasThere
            ? "\(path) is there already: \(Terminal.bytes(Double(file.byteCount))), checked in \(seconds) s"
            : "packed \(path): \(Terminal.bytes(Double(file.byteCount))) in \(seconds) s"
    }
}
