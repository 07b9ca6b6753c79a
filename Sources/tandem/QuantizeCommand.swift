import ArgumentParser
import Foundation
import ModelFiles
import ServingTypes

/// A Hugging Face folder as one GGUF file, and what the rounding cost.
struct QuantizeCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "quantize", abstract: "Write a model as one GGUF file, with smaller numbers.",
        discussion: """
            q8_0 keeps the quality of 16 bit at half its size; q4_0 is smaller still and costs some quality (its
            output projection stays in q8_0). f32, f16 and bf16 write the weights in that type. Norms and biases are
            f32 in every file. llama.cpp reads the files too.

              tandem quantize ./Qwen2.5-0.5B qwen-q8_0.gguf --type q8_0
              tandem up --model qwen-q8_0.gguf
            """)

    @Argument(help: "Hugging Face model folder.") var model: String
    @Argument(help: "File to write, ending in .gguf.") var out: String
    @Option(help: "\(GGUFExport.Target.allCases.map(\.rawValue).joined(separator: ", ")).")
    var type: GGUFExport.Target = .q8_0

    func validate() throws {
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
    }
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
