import ArgumentParser
import Foundation
import ModelFiles
import ModelRuntime
import ServingTypes

/// A Hugging Face folder as one GGUF file, and what the rounding cost.
struct QuantizeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "quantize", abstract: "Write a model as one GGUF file, with smaller numbers.",
        discussion: """
            q8_0 keeps the quality of 16 bit at half its size; q4_0 is smaller still and costs some quality (its
            output projection stays in q8_0). f32, f16 and bf16 write the weights in that type. Norms and biases are
            f32 in every file. llama.cpp reads the files too. The packed weights of the file are written as well, for
            workers of this machine to map (see `tandem help pack`), unless it is small or --packed-cache is none.

              tandem quantize ./Qwen2.5-0.5B qwen-q8_0.gguf --type q8_0
              tandem quantize ./Qwen2.5-0.5B qwen-q4_0.gguf --type q4_0 --text held-out.txt
              tandem up --model qwen-q8_0.gguf
            """)

    @Argument(help: "Hugging Face model folder.") var model: String
    @Argument(help: "File to write, ending in .gguf.") var out: String
    @Option(help: "\(GGUFExport.Target.allCases.map(\.rawValue).joined(separator: ", ")).")
    var type: GGUFExport.Target = .q8_0

    @Option(help: "Also measure perplexity and KL divergence against f32 on this UTF-8 text.") var text: String?
    @Option(help: "Only the last Nth of each text of --text, texts being joined by <|endoftext|>; 0: all of it.")
    var heldOut: Int = 0
    @Option(help: "Windows of --text at most, spread over it; 0: all.") var windows: Int = 32
    @OptionGroup var packed: PackedFolder

    func validate() throws {
        guard (0...1000).contains(heldOut), (0...1_000_000).contains(windows) else {
            throw ValidationError("--held-out takes 0 to 1000, --windows 0 to 1000000")
        }
        guard out.hasSuffix(".gguf") else { throw ValidationError("OUT: \(out) does not end in .gguf") }
    }

    func run() async throws {
        let started = ContinuousClock.now
        var shown = 0
        let report = try GGUFExport.write(folder: model, to: out, as: type) { done, all in
            let percent = done * 100 / all
            guard percent >= shown + 10 || done == all else { return }
            shown = percent
            Terminal.say("  \(done) of \(all) tensors")
        }
        Terminal.say(QuantizeReport(report).text)
        let seconds = String(format: "%.1f", (ContinuousClock.now - started).seconds)
        Terminal.say("wrote \(out): \(Terminal.bytes(Double(report.bytesWritten))) in \(seconds) s")
        if report.bytesWritten >= PackedWeightsCache.Limits.bytesMin, let cache = try packed.cache {
            try pack(cache)
        }
        if let text { try measure(on: text) }
    }

    /// Without that file the model serves as well, so a disk without room for it is no failure.
    private func pack(_ cache: PackedWeightsCache) throws {
        do throws(ServingError) {
            Terminal.say(try PackedFolder.write(out, to: cache))
        } catch {
            Terminal.note(error.message)
        }
    }

    /// The file against the folder's own numbers, with products in f32 for both where they are f32.
    private func measure(on path: String) throws {
        guard let written = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw CLIError("text: \(path) cannot be read as UTF-8")
        }
        let exactFile = FileManager.default.temporaryDirectory.appendingPathComponent("tandem-\(getpid())-f32.gguf")
            .path
        defer { try? FileManager.default.removeItem(atPath: exactFile) }
        try GGUFExport.write(folder: model, to: exactFile, as: .f32)
        let folder = try ModelFolder(path: model)
        let pieces = heldOut > 0 ? HeldOutText.endings(of: written, share: heldOut) : [written]
        let tokens = pieces.flatMap { folder.tokenizer.encode($0, addSpecialTokens: false) }
        let length = min(Self.windowTokens, folder.spec.contextTokensMax)
        let starts = TextWindows.starts(tokens: tokens.count, window: length, most: windows)
        guard !starts.isEmpty else { throw CLIError("text: \(tokens.count) tokens fill no window of \(length)") }
        var options = EngineOptions()
        options.threads = ProcessInfo.processInfo.activeProcessorCount
        var judges = try [("f32", exactFile), (type.rawValue, out)].map {
            try VariantJudge(
                name: $0.0, path: $0.1, kvType: .f32, options: options, vocabularySize: folder.spec.vocabularySize,
                window: length)
        }
        for start in starts {
            let window = Array(tokens[start...start + length])
            let exact = try judges[0].measure(window, against: nil)
            _ = try judges[1].measure(window, against: exact)
        }
        let change = (judges[1].perplexity / judges[0].perplexity - 1) * 100
        Terminal.say(
            String(
                format:
                    "perplexity %.4f against %.4f in f32 (%+.3f %%), KL divergence %.2e nats, same top token %.2f %%",
                judges[1].perplexity, judges[0].perplexity, change, judges[1].meanKL, judges[1].sameTop * 100)
                + " (\(starts.count) windows of \(length) tokens)")
    }

    private static let windowTokens = 512
}

extension GGUFExport.Target: ExpressibleByArgument {}

/// The error of each kind of tensor, against the weights as they were.
struct QuantizeReport {
    private let report: GGUFExport.Report

    init(_ report: GGUFExport.Report) { self.report = report }

    var text: String {
        let rows = report.classes.map { entry in
            [
                entry.name, "\(entry.tensorCount)", entry.types.joined(separator: " "),
                Terminal.bytes(Double(entry.byteCount)), Self.percent(entry.relativeError),
                String(format: "%.3g", entry.largestError),
            ]
        }
        let all = [
            "all matrices", "", "", Terminal.bytes(Double(report.bytesWritten)), Self.percent(report.relativeError), "",
        ]
        return Terminal.table(["TENSORS", "COUNT", "TYPE", "SIZE", "RELATIVE ERROR", "LARGEST"], rows + [all])
    }

    private static func percent(_ value: Double) -> String { String(format: "%.4f %%", value * 100) }
}
