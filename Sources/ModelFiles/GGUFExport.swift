import CKernels
import ModelRuntime
import ServingTypes
import Tokenization

/// Writes a Hugging Face folder as one GGUF file, with weights as they are, in another element type,
/// or quantised; llama.cpp's names, order of rotary rows and metadata.
public enum GGUFExport {
    /// What matrices become. Norms and biases are f32 in every file.
    public enum Target: String, Hashable, Sendable, CaseIterable {
        case f32
        case f16
        case bf16
        case q8_0
        /// The output projection (or the embeddings, where they are it) stays in Q8_0, which costs
        /// little and keeps most of the quality.
        case q4_0

        /// What a matrix of that GGUF name becomes; one whose rows are no whole blocks becomes f16.
        func type(of name: String, columns: Int, tied: Bool) -> GGUFTensorType {
            switch self {
            case .f32: return .f32
            case .f16: return .f16
            case .bf16: return .bf16
            case .q8_0, .q4_0:
                guard columns.isMultiple(of: 32) else { return .f16 }
                let isOutput = name == (tied ? "token_embd.weight" : "output.weight")
                return self == .q8_0 || isOutput ? .q8_0 : .q4_0
            }
        }
    }

    /// What rounding one tensor cost.
    public struct TensorError: Hashable, Sendable {
        /// GGUF's name.
        public var name: String
        /// As the file has it, such as `Q8_0`.
        public var type: String
        /// Root of the mean squared error over that of the mean squared value; 0 for zeros.
        public var relativeError: Double
        public var largestError: Double
    }

    /// Tensors that do the same work in different layers, together.
    public struct TensorClass: Hashable, Sendable {
        /// GGUF's name without the layer: `ffn_down.weight`.
        public var name: String
        public var tensorCount = 0
        /// As the file has them, sorted.
        public var types: [String] = []
        public var byteCount = 0
        /// Root of the mean squared error over that of the mean squared value; 0 for zeros.
        public var relativeError = 0.0
        public var largestError = 0.0
    }

    /// What was written.
    public struct Report: Hashable, Sendable {
        /// In the file's order.
        public var tensors: [TensorError] = []
        /// In the order of the first of each in the file.
        public var classes: [TensorClass] = []
        /// Of all matrices together.
        public var relativeError = 0.0
        public var bytesWritten = 0
    }

    /// Bytes gathered before they are written.
    private static let sliceBytes = 4 << 20

    /// Writes `file` (under another name until it is whole). `progress` is called after each tensor
    /// with (tensors so far, tensors in all). Throws for a tokenizer or a scaling of positions that
    /// GGUF's metadata cannot express.
    @discardableResult
    public static func write(
        folder path: String, to file: String, as target: Target, progress: ((_ done: Int, _ all: Int) -> Void)? = nil
    ) throws(ServingError) -> Report {
        let folder = try ModelFolder(path: path)
        let reader = try FolderReader(path: path)
        guard let json = try reader.json(ModelFolder.tokenizerFile, max: ModelFileLimits.tokenizerBytesMax) else {
            throw fileFault(path, "the folder holds no \(ModelFolder.tokenizerFile)", code: .notFound)
        }
        let config = try reader.json(ModelFolder.tokenizerConfigFile, max: ModelFileLimits.templateBytesMax)
        let tokenizer = try TokenizerModel(tokenizerJSON: json, config: config)
        var plans = try folder.weights.tensorNames.map { name throws(ServingError) in
            try plan(name, folder, target)
        }
        var metadata = GGUFMetadataWriter()
        try metadata.describe(folder)
        try metadata.describe(tokenizer, folder)
        if let factors = try ropeFactors(folder.spec) { plans.insert(factors, at: 0) }
        let output = try OutputFile(path: file)
        var report = Report()
        report.bytesWritten = try writeHeader(metadata, plans, output)
        var (all, classes) = (tk_rounding_error(), ClassErrors())
        for (done, plan) in plans.enumerated() {
            let error = try write(plan, output, &report.bytesWritten)
            report.tensors.append(
                TensorError(
                    name: plan.name, type: plan.type.name, relativeError: relative(error),
                    largestError: error.largest_error))
            if plan.shape.count > 1 { merge(error, into: &all) }
            classes.add(plan, error)
            progress?(done + 1, plans.count)
        }
        report.relativeError = relative(all)
        report.classes = classes.list
        try output.finish()
        return report
    }

    private static func merge(_ error: tk_rounding_error, into sum: inout tk_rounding_error) {
        sum.squared_error += error.squared_error
        sum.squared_value += error.squared_value
        sum.largest_error = max(sum.largest_error, error.largest_error)
    }

    /// Errors by the work that tensors do.
    private struct ClassErrors {
        private var places: [String: Int] = [:]
        private var sums: [tk_rounding_error] = []
        private(set) var list: [TensorClass] = []

        mutating func add(_ plan: Plan, _ error: tk_rounding_error) {
            let parts = plan.name.split(separator: ".")
            let name = parts.first == "blk" ? parts.dropFirst(2).joined(separator: ".") : plan.name
            let place = places[name] ?? list.count
            if place == list.count {
                places[name] = place
                list.append(TensorClass(name: name))
                sums.append(tk_rounding_error())
            }
            merge(error, into: &sums[place])
            list[place].tensorCount += 1
            list[place].byteCount += plan.byteCount
            list[place].types = Set(list[place].types + [plan.type.name]).sorted()
            list[place].relativeError = relative(sums[place])
            list[place].largestError = sums[place].largest_error
        }
    }

    private static func relative(_ error: tk_rounding_error) -> Double {
        error.squared_value > 0 ? (error.squared_error / error.squared_value).squareRoot() : 0
    }

    // MARK: tensors

    /// A tensor to be written.
    private struct Plan {
        var name: String
        var type: GGUFTensorType
        var shape: [Int]
        var byteCount: Int
        var source: Source
        /// Heads whose rows are interleaved.
        var interleavedHeadDim: Int?
    }

    private enum Source {
        case view(TensorView)
        case values([Float])
    }

    private static func plan(_ name: String, _ folder: ModelFolder, _ target: Target) throws(ServingError) -> Plan {
        guard let role = GGUFNames.gguf(of: name), let view = try folder.weights.tensor(named: name) else {
            throw fileFault(
                folder.modelName, "tensor \(shown(name)) has no place in a GGUF file", field: name,
                code: .unsupported)
        }
        let columns = view.shape.last ?? 1
        let type =
            view.shape.count == 1
            ? .f32 : target.type(of: role.name, columns: columns, tied: folder.spec.tiedEmbeddings)
        guard let byteCount = GGUFHeader.byteCount(view.shape, type) else {
            throw fileFault(folder.modelName, "tensor \(shown(name)) is too large", field: name)
        }
        let isLlama = GGUFMetadataWriter.architecture(folder.spec.family) == "llama"
        return Plan(
            name: role.name, type: type, shape: view.shape, byteCount: byteCount, source: .view(view),
            interleavedHeadDim: isLlama && role.isRotated ? folder.spec.headDim : nil)
    }

    /// Llama 3's scaling as a tensor of divisors, the form that llama.cpp reads.
    private static func ropeFactors(_ spec: ModelSpec) throws(ServingError) -> Plan? {
        guard case .llama3(let factor, let low, let high, let context) = spec.ropeScaling else { return nil }
        let factors = GGUFRope.factors(
            factor: factor, low: low, high: high, context: Double(context), theta: spec.ropeTheta,
            headDim: spec.headDim
        ).map { Float($0) }
        guard GGUFRope.llama3(factors: factors, theta: spec.ropeTheta, headDim: spec.headDim) == spec.ropeScaling else {
            throw ServingError(
                .unsupported,
                "rope_scaling: a GGUF file holds Llama 3's scaling only with low 1, high 4 and context 8192",
                field: "rope_scaling", blast: .process)
        }
        return Plan(
            name: "rope_freqs.weight", type: .f32, shape: [factors.count], byteCount: factors.count * 4,
            source: .values(factors))
    }

    private static func writeHeader(
        _ metadata: GGUFMetadataWriter, _ plans: [Plan], _ output: OutputFile
    ) throws(ServingError) -> Int {
        var header = Array("GGUF".utf8) + GGUFMetadataWriter.little(GGUFHeader.version)
        header += GGUFMetadataWriter.little(UInt64(plans.count)) + GGUFMetadataWriter.little(UInt64(metadata.count))
        header += metadata.bytes
        var offset = 0
        for plan in plans {
            header += GGUFMetadataWriter.text(plan.name) + GGUFMetadataWriter.little(UInt32(plan.shape.count))
            for size in plan.shape.reversed() { header += GGUFMetadataWriter.little(UInt64(size)) }
            header += GGUFMetadataWriter.little(plan.type.rawValue) + GGUFMetadataWriter.little(UInt64(offset))
            offset += padded(plan.byteCount)
        }
        header += [UInt8](repeating: 0, count: padded(header.count) - header.count)
        try output.write(header)
        return header.count
    }

    private static func padded(_ count: Int) -> Int { (count + 31) & ~31 }

    /// Rows go in slices, each widened, packed and measured at once.
    private static func write(
        _ plan: Plan, _ output: OutputFile, _ bytesWritten: inout Int
    ) throws(ServingError) -> tk_rounding_error {
        let columns = plan.interleavedHeadDim != nil && plan.shape.count == 1 ? 1 : plan.shape.last ?? 1
        let rows = plan.shape.reduce(1, *) / columns
        let rowsPerSlice = max(1, sliceBytes / (columns * 4))
        var error = tk_rounding_error()
        for first in stride(from: 0, to: rows, by: rowsPerSlice) {
            let slice = first..<min(rows, first + rowsPerSlice)
            let exact = values(plan, rows: slice, columns: columns)
            let (packed, rounded) = pack(exact, plan.type)
            tk_add_rounding_error(&error, exact, rounded, exact.count)
            try output.write(packed)
        }
        try output.write([UInt8](repeating: 0, count: padded(plan.byteCount) - plan.byteCount))
        bytesWritten += padded(plan.byteCount)
        return error
    }

    /// Row 2 i + half of a head comes from row half * headDim / 2 + i.
    private static func sourceRow(_ row: Int, _ headDim: Int?) -> Int {
        guard let headDim else { return row }
        let (head, within) = row.quotientAndRemainder(dividingBy: headDim)
        return head * headDim + within % 2 * (headDim / 2) + within / 2
    }

    private static func values(_ plan: Plan, rows: Range<Int>, columns: Int) -> [Float] {
        switch plan.source {
        case .values(let all): return Array(all[rows.lowerBound * columns..<rows.upperBound * columns])
        case .view(let view):
            let kind =
                switch view.type {
                case .f32: TK_F32
                case .f16: TK_F16
                case .bf16: TK_BF16
                }
            let count = rows.count * columns
            return [Float](unsafeUninitializedCapacity: count) { values, filled in
                filled = count
                guard let target = values.baseAddress else { return }
                for (place, row) in rows.enumerated() {
                    let start = view.base + sourceRow(row, plan.interleavedHeadDim) * columns * view.type.byteCount
                    tk_kernels_scalar().pointee.widen(target + place * columns, start, kind, columns)
                }
            }
        }
    }

    /// Whole rows' bytes, and the values that they stand for.
    private static func pack(_ exact: [Float], _ type: GGUFTensorType) -> (packed: [UInt8], rounded: [Float]) {
        switch type {
        case .f16, .bf16:
            let (kind, narrow) = type == .f16 ? (TK_F16, tk_narrow_f16) : (TK_BF16, tk_narrow_bf16)
            var halves = [UInt16](repeating: 0, count: exact.count)
            narrow(&halves, exact, exact.count)
            var rounded = exact
            tk_kernels_scalar().pointee.widen(&rounded, halves, kind, exact.count)
            return (halves.withUnsafeBytes { [UInt8]($0) }, rounded)
        case .q8_0, .q4_0:
            let format = type == .q8_0 ? BlockFormat.q8_0 : .q4_0
            let packed = format.quantised(exact) ?? []
            return (packed, format.dequantised(packed))
        default:
            return (exact.withUnsafeBytes { [UInt8]($0) }, exact)
        }
    }
}

/// Gathers metadata in a file's own form.
struct GGUFMetadataWriter {
    private(set) var bytes: [UInt8] = []
    private(set) var count = 0

    static func little<T: FixedWidthInteger>(_ value: T) -> [UInt8] {
        withUnsafeBytes(of: value.littleEndian) { [UInt8]($0) }
    }

    static func text(_ text: String) -> [UInt8] { little(UInt64(text.utf8.count)) + Array(text.utf8) }

    /// Mistral is Llama with a window.
    static func architecture(_ family: ModelSpec.Family) -> String {
        switch family {
        case .llama, .mistral: "llama"
        case .qwen2: "qwen2"
        case .qwen3: "qwen3"
        }
    }

    private mutating func add(_ key: String, _ type: GGUFValueType, _ value: [UInt8]) {
        bytes += Self.text(key) + Self.little(type.rawValue) + value
        count += 1
    }

    private mutating func add(_ key: String, _ value: Int) {
        add(key, .uint32, Self.little(UInt32(clamping: value)))
    }

    private mutating func add(_ key: String, _ value: Float) { add(key, .float32, Self.little(value.bitPattern)) }

    private mutating func add(_ key: String, _ value: String) { add(key, .string, Self.text(value)) }

    private mutating func add(_ key: String, _ value: Bool) { add(key, .bool, [value ? 1 : 0]) }

    private mutating func add<T>(_ key: String, _ type: GGUFValueType, _ values: [T], _ bytes: (T) -> [UInt8]) {
        add(key, .array, Self.little(type.rawValue) + Self.little(UInt64(values.count)) + values.flatMap(bytes))
    }

    // MARK: the model

    mutating func describe(_ folder: ModelFolder) throws(ServingError) {
        let spec = folder.spec
        let name = Self.architecture(spec.family)
        add("general.architecture", name)
        add("general.name", folder.modelName)
        add("general.alignment", 32)
        add("\(name).vocab_size", spec.vocabularySize)
        add("\(name).context_length", spec.contextTokensMax)
        add("\(name).embedding_length", spec.hiddenSize)
        add("\(name).block_count", spec.layerCount)
        add("\(name).feed_forward_length", spec.ffnSize)
        add("\(name).attention.head_count", spec.headCount)
        add("\(name).attention.head_count_kv", spec.kvHeadCount)
        add("\(name).attention.key_length", spec.headDim)
        add("\(name).attention.value_length", spec.headDim)
        add("\(name).attention.layer_norm_rms_epsilon", spec.rmsNormEpsilon)
        add("\(name).rope.dimension_count", spec.headDim)
        add("\(name).rope.freq_base", Float(spec.ropeTheta))
        if let window = spec.slidingWindow { add("\(name).attention.sliding_window", window) }
        try describe(spec.ropeScaling, "\(name).rope.scaling.")
        describe(folder.generation, folder.tokenizer)
        if let template = folder.chatTemplateSource { add("tokenizer.chat_template", template) }
    }

    private mutating func describe(_ scaling: ModelSpec.RopeScaling, _ prefix: String) throws(ServingError) {
        switch scaling {
        case .none, .llama3: return
        case .linear(let factor):
            add(prefix + "type", "linear")
            add(prefix + "factor", Float(factor))
        case .yarn(let factor, let original, let fast, let slow, nil, nil, nil):
            add(prefix + "type", "yarn")
            add(prefix + "factor", Float(factor))
            add(prefix + "original_context_length", original)
            add(prefix + "yarn_beta_fast", Float(fast))
            add(prefix + "yarn_beta_slow", Float(slow))
        case .yarn:
            throw ServingError(
                .unsupported, "rope_scaling: GGUF's metadata have no form for YaRN's attention_factor and mscale",
                field: "rope_scaling", blast: .process)
        }
    }

    private mutating func describe(_ generation: GenerationDefaults, _ tokenizer: Tokenizer) {
        let prefix = "general.sampling."
        if let value = generation.temperature { add(prefix + "temp", value) }
        if let value = generation.topK { add(prefix + "top_k", .int32, Self.little(Int32(clamping: value))) }
        if let value = generation.topP { add(prefix + "top_p", value) }
        if let value = generation.minP { add(prefix + "min_p", value) }
        if let value = generation.repetitionPenalty { add(prefix + "penalty_repeat", value) }
        let end = tokenizer.eosToken
        let ends = [end].compactMap { $0 } + generation.endTokens.filter { $0 != end }
        for (name, token) in zip(["eos", "eot", "eom"], ends) {
            add("tokenizer.ggml.\(name)_token_id", Int(token.value))
        }
        if let begin = tokenizer.bosToken ?? generation.beginToken {
            add("tokenizer.ggml.bos_token_id", Int(begin.value))
        }
    }

    // MARK: the tokenizer

    private static func fault(_ what: String) -> ServingError {
        ServingError(
            .unsupported, "tokenizer.json: GGUF's metadata have no form for \(what)", field: "tokenizer.json",
            blast: .process)
    }

    mutating func describe(_ model: TokenizerModel, _ folder: ModelFolder) throws(ServingError) {
        let pre = try Self.preTokenizer(model)
        guard !model.addsPrefixSpace else { throw Self.fault("a prefix space") }
        let begins = !model.prefixTokens.isEmpty
        let begin = (folder.tokenizer.bosToken ?? folder.generation.beginToken)?.value
        guard model.suffixTokens.isEmpty, !begins || model.prefixTokens == [begin].compactMap({ $0 }) else {
            throw Self.fault("special tokens around the text other than one that begins it")
        }
        // Ids that nothing uses are padding of the embeddings.
        var texts = (0..<folder.spec.vocabularySize).map { "[PAD\($0)]" }
        var types = [Int32](repeating: 5, count: texts.count)
        for entry in model.vocabulary where Int(entry.id) < texts.count {
            (texts[Int(entry.id)], types[Int(entry.id)]) = (entry.text, 1)
        }
        for token in model.addedTokens where Int(token.id) < texts.count {
            guard !token.lstrip, !token.rstrip, !token.singleWord else {
                throw Self.fault("\(shown(token.content)), an added token that takes its surroundings into account")
            }
            (texts[Int(token.id)], types[Int(token.id)]) = (token.content, token.special ? 3 : 4)
        }
        add("tokenizer.ggml.model", "gpt2")
        add("tokenizer.ggml.pre", pre)
        add("tokenizer.ggml.tokens", .string, texts, Self.text)
        add("tokenizer.ggml.token_type", .int32, types, Self.little)
        add("tokenizer.ggml.merges", .string, model.merges) { Self.text("\($0.left) \($0.right)") }
        add("tokenizer.ggml.add_bos_token", begins)
    }

    /// The name that stands for the pattern and for what else goes with it.
    private static func preTokenizer(_ model: TokenizerModel) throws(ServingError) -> String {
        switch (model.preTokenizers, model.normalizesNFC, model.ignoresMergesForKnownWords) {
        case ([.gpt2], false, false): return "gpt-2"
        case ([.digits(individually: true), .gpt2], false, false): return "smollm"
        case ([.llama3], false, true): return "llama-bpe"
        case ([.qwen2], true, false): return "qwen2"
        default:
            throw fault(
                "the pre-tokenizers \(model.preTokenizers) with NFC \(model.normalizesNFC) and ignore_merges "
                    + "\(model.ignoresMergesForKnownWords)")
        }
    }
}
