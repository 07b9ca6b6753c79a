import BoundedJSON
import ServingTypes

/// Bounds on what a model folder may hold. Files come from strangers; nothing is allocated or
/// mapped in proportion to a number in a file before that number was compared with one of these.
public enum ModelFileLimits {
    /// Bytes of config.json and generation_config.json.
    public static let configBytesMax = 4 << 20
    /// Bytes of tokenizer.json; multilingual vocabularies of 260 000 tokens take about 40 MiB.
    public static let tokenizerBytesMax = 256 << 20
    /// Bytes of tokenizer_config.json and of chat_template.jinja.
    public static let templateBytesMax = 16 << 20
    /// Bytes of model.safetensors.index.json.
    public static let indexBytesMax = 64 << 20
    /// Bytes of the JSON header of one safetensors file.
    public static let headerBytesMax = 32 << 20
    /// Tensors in one safetensors file and in one folder.
    public static let tensorsMax = 65_536
    /// Dimensions of one tensor.
    public static let dimensionsMax = 8
    /// safetensors files of one folder.
    public static let shardsMax = 1024
    /// Tokens that end an output.
    public static let endTokensMax = 128
    /// Characters of a file's value that an error message repeats.
    static let shownCharactersMax = 80
}

/// A fault in a model file: ends the program that wanted the model, not one request.
func fileFault(
    _ file: String, _ problem: String, field: String? = nil, code: ServingError.Code = .malformed
) -> ServingError {
    ServingError(code, "\(file): \(problem)", field: field ?? file, blast: .process)
}

/// A file's value for an error message: JSON, cut to a bearable length.
func shown(_ value: JSONValue) -> String {
    switch value {
    case .null, .bool, .integer, .number: JSON.text(value)
    case .string(let text): shown(text)
    case .array(let values): "an array of \(values.count)"
    case .object(let object): "an object of \(object.count)"
    }
}

/// Quoted, and cut to a bearable length.
func shown(_ text: String) -> String {
    let cut = text.unicodeScalars.prefix(ModelFileLimits.shownCharactersMax)
    let isWhole = cut.endIndex == text.unicodeScalars.endIndex
    return JSON.quoted(String(cut)) + (isWhole ? "" : "...")
}
