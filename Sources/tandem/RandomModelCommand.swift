import ArgumentParser
import Foundation
import ModelFiles
import ModelRuntime
import ServingTypes

/// A model of a known shape with random weights, for measurements and tries.
struct RandomModelCommand: AsyncParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "random-model", abstract: "Write a model folder of a known shape with random weights.",
        discussion: """
            The folder serves like any other, but the text is noise: it is for measuring speed at a real size.
            The same shape and seed give the same bytes.

              tandem random-model --shape qwen2.5-0.5b --out /tmp/qwen-shape
              tandem up --model /tmp/qwen-shape
            """, shouldDisplay: false)

    enum Shape: String, CaseIterable, ExpressibleByArgument {
        case qwen05 = "qwen2.5-0.5b"
        case llama1 = "llama-3.2-1b"
        case tiny

        /// As the config.json of the published model says.
        var spec: ModelSpec {
            switch self {
            case .qwen05:
                ModelSpec(
                    family: .qwen2, layerCount: 24, hiddenSize: 896, headCount: 14, kvHeadCount: 2, headDim: 64,
                    ffnSize: 4864, vocabularySize: 151_936, contextTokensMax: 32_768, rmsNormEpsilon: 1e-6,
                    ropeTheta: 1_000_000, attentionBias: true, tiedEmbeddings: true)
            case .llama1:
                ModelSpec(
                    family: .llama, layerCount: 16, hiddenSize: 2048, headCount: 32, kvHeadCount: 8, headDim: 64,
                    ffnSize: 8192, vocabularySize: 128_256, contextTokensMax: 131_072, ropeTheta: 500_000,
                    ropeScaling: .llama3(factor: 32, lowFreqFactor: 1, highFreqFactor: 4, originalContext: 8192),
                    tiedEmbeddings: true)
            case .tiny:
                ModelSpec(
                    family: .llama, layerCount: 2, hiddenSize: 64, headCount: 4, kvHeadCount: 2, headDim: 16,
                    ffnSize: 128, vocabularySize: 512)
            }
        }
    }

    @Option(help: "Whose shape: \(Shape.allCases.map(\.rawValue).joined(separator: ", ")).")
    var shape: Shape

    @Option(help: "Folder to fill; made where it is missing.")
    var out: String

    @Option(help: "Seed of the weights.")
    var seed: UInt64 = 1

    func run() async throws {
        Terminal.say("writing the shape of \(shape.rawValue) to \(out)")
        let bytes = try RandomModel.write(folder: out, spec: shape.spec, seed: seed)
        Terminal.say("wrote \(Terminal.bytes(Double(bytes))) of weights; serve them with `tandem up --model \(out)`")
    }
}
