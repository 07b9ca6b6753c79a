import Foundation
import ModelRuntime
import ServingTypes

/// The held-out ending of each text, as cluster/models/training/train.py cuts it.
public enum HeldOutText {
    private static let separator = "<|endoftext|>"

    /// One text per `<|endoftext|>` of the file: its last `share`-th, whole paragraphs.
    public static func endings(of text: String, share: Int) -> [String] {
        text.components(separatedBy: separator).map { piece in
            let paragraphs = piece.components(separatedBy: "\n\n").map {
                $0.trimmingCharacters(in: .whitespacesAndNewlines)
            }.filter { !$0.isEmpty }
            var rest = Double(paragraphs.reduce(0) { $0 + $1.unicodeScalars.count }) / Double(share)
            var cut = paragraphs.count
            while rest > 0, cut > 0 {
                cut -= 1
                rest -= Double(paragraphs[cut].unicodeScalars.count)
            }
            return separator + paragraphs[cut...].joined(separator: "\n\n") + "\n\n"
        }
    }
}

/// Where a text is cut.
public enum TextWindows {
    /// Where windows of `window` tokens and the one after them begin: one after the other, or as many as
    /// asked for, evenly spread.
    public static func starts(tokens: Int, window: Int, most: Int) -> [Int] {
        let all = max(0, (tokens - 1) / window)
        let count = most > 0 ? min(most, all) : all
        return (0..<count).map { ($0 * all / count) * window }
    }
}

/// One way to hold a model, its engine, and what it has measured so far.
public struct VariantJudge {
    private static let blockTokens = 16

    public let name: String
    public let kvType: KVElementType
    private let engine: CPUEngine
    private var loss = 0.0
    private var divergence = 0.0
    /// The most at one position, in nats.
    public private(set) var largestKL = 0.0
    private var tops = 0
    private var predictions = 0

    /// - path: as `EngineFolder` takes it.
    /// - vocabularySize: the reference's, which this model must have too.
    /// - window: tokens measured at once at most.
    public init(
        name: String, path: String, kvType: KVElementType, options: EngineOptions, vocabularySize: Int, window: Int
    ) throws(ServingError) {
        let folder = try EngineFolder(path: path)
        guard folder.spec.vocabularySize == vocabularySize else {
            throw fileFault(
                name, "has a vocabulary of \(folder.spec.vocabularySize), the reference one of \(vocabularySize)",
                field: "vocab_size")
        }
        let layout = KVStore.Layout(
            blockTokens: Self.blockTokens, layerCount: folder.spec.layerCount, kvHeadCount: folder.spec.kvHeadCount,
            headDim: folder.spec.headDim, elementType: kvType)
        let store = try KVStore(layout: layout, slotCount: window / Self.blockTokens + 1)
        try folder.weights.load(progress: nil)
        engine = try CPUEngine(spec: folder.spec, weights: folder.weights, store: store, options: options)
        (self.name, self.kvType) = (name, kvType)
    }

    /// The engine's, with the formats of its weights.
    public var variantName: String { engine.variantName }
    /// Of all predictions so far.
    public var perplexity: Double { predictions > 0 ? exp(loss / Double(predictions)) : .nan }
    /// KL divergence of the reference from this, nats per prediction.
    public var meanKL: Double { predictions > 0 ? divergence / Double(predictions) : 0 }
    /// Share of predictions whose most likely token is the reference's.
    public var sameTop: Double { predictions > 0 ? Double(tops) / Double(predictions) : 1 }

    /// Predicts every token of the window but the first; answers log probabilities, row after row. `exact`
    /// are those of the reference for the same window.
    public mutating func measure(
        _ window: [TokenID], against exact: [[Float]]?
    ) throws(ServingError) -> [[Float]] {
        let count = window.count - 1
        let blocks = UInt32((count + Self.blockTokens - 1) / Self.blockTokens)
        let entry = StepEntry(
            transfer: TransferID(job: JobID(high: 0, low: 0), attempt: .first), tokens: Array(window.prefix(count)),
            startPosition: 0, blockTable: (0..<blocks).map { BlockSlot($0) }, sample: nil)
        var rows = try engine.logits(StepBatch(entries: [entry]), rows: .all)
        for place in rows.indices {
            LogProbabilities.normalise(&rows[place])
            loss -= Double(rows[place][Int(window[place + 1].value)])
            let compared =
                exact.map { LogProbabilities.compare($0[place], rows[place]) } ?? (divergence: 0, sameTop: true)
            divergence += compared.divergence
            largestKL = max(largestKL, compared.divergence)
            if compared.sameTop { tops += 1 }
        }
        predictions += count
        return rows
    }
}

/// Rows of log probabilities.
enum LogProbabilities {
    /// Logits to log probabilities.
    static func normalise(_ row: inout [Float]) {
        let most = row.max() ?? 0
        var sum = 0.0
        for value in row { sum += Double(exp(value - most)) }
        let shift = most + Float(log(sum))
        for place in row.indices { row[place] -= shift }
    }

    /// KL divergence of `exact` from `other` in nats, and whether both have the same most likely token.
    static func compare(_ exact: [Float], _ other: [Float]) -> (divergence: Double, sameTop: Bool) {
        var divergence = 0.0
        var (top, otherTop) = (0, 0)
        for place in exact.indices {
            divergence += Double(exp(exact[place])) * Double(exact[place] - other[place])
            if exact[place] > exact[top] { top = place }
            if other[place] > other[otherTop] { otherTop = place }
        }
        return (divergence, top == otherTop)
    }
}
