import BoundedJSON
import ServingTypes

/// What rendering may cost at most. The bounds hold whatever the template says.
public struct TemplateLimits: Sendable {
    /// Steps: one per evaluated node, and one per 32 bytes or element produced on the way.
    public var stepsMax = 5_000_000
    /// Macro calls inside one another.
    public var depthMax = 64
    /// Bytes of the rendered text, and of any string on the way to it.
    public var outputBytesMax = 4 << 20

    public init() {}
}

/// A date that `strftime_now` shows; templates see no clock. In the calendar and zone of the caller's choice.
public struct TemplateDate: Sendable, Hashable {
    public var year: Int
    /// 1 to 12.
    public var month: Int
    /// 1 to 31.
    public var day: Int
    public var hour: Int
    public var minute: Int
    public var second: Int

    public init(year: Int, month: Int, day: Int, hour: Int = 0, minute: Int = 0, second: Int = 0) {
        self.year = year
        self.month = month
        self.day = day
        self.hour = hour
        self.minute = minute
        self.second = second
    }
}

/// A chat template: the part of Jinja that models' templates use, with the environment that Hugging
/// Face transformers gives them (`trim_blocks`, `lstrip_blocks`, loop controls, an immutable sandbox).
/// It touches nothing but the variables that it is given, so it is safe to run whatever its source.
public struct ChatTemplate: Sendable {
    private let body: [Statement]

    /// Parses the source. Throws with the line of what is not understood; every filter and test must be known.
    public init(source: String) throws(ServingError) {
        guard source.utf8.count <= SyntaxLimits.sourceBytesMax else {
            throw ServingError(
                .malformed,
                "chat template has \(source.utf8.count) bytes, the limit is \(SyntaxLimits.sourceBytesMax)",
                field: SyntaxLimits.field)
        }
        var lexer = TemplateLexer(source: source)
        var parser = TemplateParser(tokens: try lexer.tokens())
        body = try parser.template()
    }

    /// The rendered text. A template's own `raise_exception(message)` throws that message; every other
    /// fault names its line.
    /// - now: what `strftime_now` shows; without it that function is undefined, which templates test for.
    public func render(
        _ variables: JSONObject, now: TemplateDate? = nil, limits: TemplateLimits = TemplateLimits()
    ) throws(ServingError) -> String {
        try Interpreter(variables: variables, now: now, limits: limits).render(body)
    }
}

/// Bounds of what is accepted as a template.
enum SyntaxLimits {
    static let sourceBytesMax = 1 << 20
    /// Expressions and blocks inside one another in the source.
    static let nestingMax = 64
    /// Evaluations inside one another at run time, over all macro calls.
    static let evaluationNestingMax = 400
    /// Lists and dictionaries inside one another.
    static let valueDepthMax = 128
    /// Elements of a range, as in Jinja's sandbox.
    static let rangeMax = 100_000
    static let field = "chat_template"
}

/// A fault of the template itself.
func templateError(_ message: String, line: Int) -> ServingError {
    ServingError(.malformed, "chat template, line \(line): \(message)", field: SyntaxLimits.field)
}
