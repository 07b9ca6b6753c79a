import ArgumentParser
import Foundation
import ModelFiles
import ModelRuntime
import ServingTypes

/// Perplexity of models on one text, and how far each one's distributions are from the reference's.
struct PerplexityCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "perplexity", abstract: "Perplexity of formats on one text, and KL divergence from the first.",
        discussion: """
            The text is tokenised once with the reference's tokenizer and cut into windows; every token of a window
            is predicted from those before it in the window. KL divergence is that of the reference's distribution
            from the other's at each position, in nats.

            A variant is NAME=PATH, then options after commas: kv=f32|f16|bf16|int8, quantize=q8_0|q4_0,
            kernels=scalar|avx2|avx512.

              tandem-measure perplexity --text stories.txt --held-out 40 --reference f32=model-f32.gguf,kv=f32 \\
                --variant q8_0=model-q8_0.gguf,kv=f32 --variant int8-kv=model-f32.gguf,kv=int8
            """)

    @Option(help: "UTF-8 text.") var text: String
    @Option(
        help: """
            Only the last Nth of each text of the file, cut at paragraph ends as cluster/models/training does it; \
            texts are joined by <|endoftext|>. 0: the whole file.
            """)
    var heldOut: Int = 0
    @Option(help: "What the others are measured against.") var reference: ModelVariant
    @Option(help: "May be given several times.") var variant: [ModelVariant] = []
    @Option(help: "Tokens of a window (default: 512, or the model's context if that is less).") var window: Int?
    @Option(help: "Windows at most, spread over the text; 0: all.") var windows: Int = 0
    @Option(help: "Compute threads.") var threads: Int = 2
    @Flag(help: "One JSON object instead of a table.") var json = false

    func validate() throws {
        guard (0...1000).contains(heldOut), (0...1_000_000).contains(windows), (2...65_536).contains(window ?? 512),
            (1...1024).contains(threads)
        else {
            throw ValidationError(
                "--held-out takes 0 to 1000, --windows 0 to 1000000, --window 2 to 65536, --threads 1 to 1024")
        }
    }

    func run() throws {
        let model = try ModelFolder(path: reference.path)
        guard let written = try? String(contentsOfFile: text, encoding: .utf8) else {
            throw ValidationError("--text: \(text) cannot be read as UTF-8")
        }
        let pieces = heldOut > 0 ? HeldOutText.endings(of: written, share: heldOut) : [written]
        let tokens = pieces.flatMap { model.tokenizer.encode($0, addSpecialTokens: false) }
        let length = min(window ?? 512, model.spec.contextTokensMax)
        let starts = TextWindows.starts(tokens: tokens.count, window: length, most: windows)
        guard !starts.isEmpty else {
            throw ValidationError("--text: \(tokens.count) tokens fill no window of \(length)")
        }
        var judges = try ([reference] + variant).map {
            try VariantJudge(
                name: $0.name, path: $0.path, kvType: $0.kvType, options: $0.options(threads: threads),
                vocabularySize: model.spec.vocabularySize, window: length)
        }
        for start in starts {
            let window = Array(tokens[start...start + length])
            let exact = try judges[0].measure(window, against: nil)
            for place in judges.indices.dropFirst() { _ = try judges[place].measure(window, against: exact) }
        }
        let counts = (all: tokens.count, windows: starts.count, length: length)
        json ? printJSON(judges, counts) : printTable(judges, counts)
    }

    private func printTable(_ judges: [VariantJudge], _ counts: (all: Int, windows: Int, length: Int)) {
        print(Machine.line)
        print(
            "text: \(counts.all) tokens, \(counts.windows) windows of \(counts.length), "
                + "\(counts.windows * counts.length) predictions")
        print(
            "variant               kernels                       KV    perplexity  against ref  KL mean    KL max  same top"
        )
        let first = judges[0].perplexity
        for judge in judges {
            let change = String(format: "%+.3f %%", (judge.perplexity / first - 1) * 100)
            let figures = String(
                format: "%10.4f  %11@  %7.2e  %7.2e  %7.2f %%", judge.perplexity, change as NSString, judge.meanKL,
                judge.largestKL, judge.sameTop * 100)
            func cell(_ text: String, _ width: Int) -> String {
                text.count < width ? text.padding(toLength: width, withPad: " ", startingAt: 0) : text
            }
            let names = cell(judge.name, 22) + cell(judge.variantName, 30) + cell(judge.kvType.rawValue, 6)
            print(names + figures)
        }
    }

    private func printJSON(_ judges: [VariantJudge], _ counts: (all: Int, windows: Int, length: Int)) {
        let rows = judges.map { judge in
            """
            {"variant": "\(judge.name)", "kernels": "\(judge.variantName)", "kv": "\(judge.kvType.rawValue)", \
            "perplexity": \(judge.perplexity), "mean_kl": \(judge.meanKL), "max_kl": \(judge.largestKL), \
            "same_top": \(judge.sameTop)}
            """
        }
        print(
            "{\"tokens\": \(counts.all), \"windows\": \(counts.windows), \"window\": \(counts.length), \"variants\": ["
                + rows.joined(separator: ", ") + "]}")
    }
}

/// `NAME=PATH,kv=int8,quantize=q8_0`.
struct ModelVariant: ExpressibleByArgument {
    var name: String
    var path: String
    var kvType = KVElementType.f32
    var quantize: QuantizeChoice?
    var kernels: KernelVariant?

    func options(threads: Int) -> EngineOptions {
        var options = EngineOptions()
        options.threads = threads
        options.kernels = kernels
        options.quantise = quantize?.format
        return options
    }

    init?(argument: String) {
        var parts = argument.split(separator: ",").map(String.init)[...]
        guard let head = parts.popFirst()?.split(separator: "=", maxSplits: 1), head.count == 2 else { return nil }
        (name, path) = (String(head[0]), String(head[1]))
        for part in parts {
            let pair = part.split(separator: "=").map(String.init)
            guard pair.count == 2 else { return nil }
            switch pair[0] {
            case "kv":
                guard let type = KVElementType(rawValue: pair[1]) else { return nil }
                kvType = type
            case "quantize":
                guard let choice = QuantizeChoice(rawValue: pair[1]) else { return nil }
                quantize = choice
            case "kernels":
                guard let variant = KernelVariant(rawValue: pair[1]) else { return nil }
                kernels = variant
            default: return nil
            }
        }
    }
}
