import BoundedJSON
import ServingTypes

/// What a completion or chat request asks for, checked against every limit that needs no tokens.
struct GenerationRequest: Sendable {
    var kind: JobRequestRecord.Kind
    /// The model's name as the client wrote it: responses repeat it.
    var model: String
    var prompts: PromptSource
    /// Choices per prompt.
    var n = 1
    /// Without `maxTokens` and without end tokens of the model, which need the prompt's length.
    var sampling = SamplingParameters()
    var seed: UInt64?
    /// Nil where the request names none.
    var maxTokens: Int?
    /// The field that `maxTokens` came from.
    var maxTokensField = "max_tokens"
    var stopStrings: [String] = []
    var stream = false
    var includeUsage = false
    var continuousUsage = false
    var echo = false
    var skipsSpecialTokens = true
    /// Inside the tenant, lower first, as in vLLM.
    var priority = 0
    var objectives = Objectives()
    /// Keeps the prompt's pages from being shared with jobs that have another salt, or none.
    var cacheSalt: String?
    var requestID: String?
    var ignoredFields: [String] = []
}

/// Prompts before tokenisation.
enum PromptSource: Sendable {
    case texts([String], addSpecialTokens: Bool)
    case tokens([[TokenID]])
    case chat(ChatPrompt)

    var count: Int {
        switch self {
        case .texts(let texts, _): texts.count
        case .tokens(let lists): lists.count
        case .chat: 1
        }
    }

    /// The request field that a prompt came in.
    var field: String {
        switch self {
        case .texts, .tokens: "prompt"
        case .chat: "messages"
        }
    }
}

/// What the chat template is given.
struct ChatPrompt: Sendable {
    var messages: [JSONValue]
    var tools: [JSONValue] = []
    var addGenerationPrompt = true
    /// `chat_template_kwargs` and `reasoning_effort`.
    var variables = JSONObject()
}

/// Turns a JSON body into a `GenerationRequest`.
struct GenerationRequestParser {
    let model: ServedModel
    let limits: FrontDoorLimits

    static let penaltyRange = -2.0...2.0
    static let biasRange = -100.0...100.0
    static let repetitionMax = 100.0
    static let priorityMax = 1_000_000
    static let ignoredNamesMax = 16
    static let cacheSaltBytesMax = 1024
    /// What any count of tokens must stay below to be looked at; the context is checked with the prompt.
    static let tokensMax = Int(Int32.max)

    func completion(_ body: JSONObject) throws(ServingError) -> GenerationRequest {
        var fields = FieldReader(body)
        let name = try modelName(&fields)
        let addSpecial = try fields.bool("add_special_tokens") ?? true
        var request = GenerationRequest(
            kind: .completion, model: name, prompts: try prompts(&fields, addSpecialTokens: addSpecial))
        try common(&fields, &request)
        request.echo = try fields.bool("echo") ?? false
        if try fields.string("suffix") != nil {
            throw .unsupported("suffix", "is not supported: this model has no fill-in-the-middle tokens")
        }
        if let count = try fields.integer("logprobs", in: 0...SamplingLimits.topLogprobsMax) {
            guard !request.echo else { throw .unsupported("logprobs", "is not supported together with 'echo'") }
            request.sampling.wantsLogprobs = true
            request.sampling.topLogprobs = count
        }
        if let best = try fields.integer("best_of", in: 1...SamplingLimits.choicesMax), best != request.n {
            throw .unsupported("best_of", "is \(best); it is supported only where it equals 'n' (\(request.n))")
        }
        request.maxTokens = try fields.integer("max_tokens", in: (request.echo ? 0 : 1)...Self.tokensMax)
        try finish(&fields, &request)
        return request
    }

    func chat(_ body: JSONObject) throws(ServingError) -> GenerationRequest {
        var fields = FieldReader(body)
        let name = try modelName(&fields)
        var request = GenerationRequest(kind: .chat, model: name, prompts: .chat(try chatPrompt(&fields)))
        try common(&fields, &request)
        let wanted = try fields.bool("logprobs") ?? false
        request.sampling.wantsLogprobs = wanted
        if let top = try fields.integer("top_logprobs", in: 0...SamplingLimits.topLogprobsMax) {
            guard wanted || top == 0 else {
                throw .invalid("top_logprobs", "is \(top), which needs 'logprobs' to be true")
            }
            request.sampling.topLogprobs = top
        }
        let range = 1...Self.tokensMax
        request.maxTokens = try fields.integer("max_tokens", in: range)
        if let count = try fields.integer("max_completion_tokens", in: range) {
            request.maxTokens = count
            request.maxTokensField = "max_completion_tokens"
        }
        try finish(&fields, &request)
        return request
    }

    private func modelName(_ fields: inout FieldReader) throws(ServingError) -> String {
        guard let name = try fields.string("model") else { return model.name }
        guard model.answers(to: name) else { throw Self.unknownModel(name) }
        return name
    }

    static func unknownModel(_ name: String) -> ServingError {
        let shown = String(quotedForPeople(name).dropFirst().dropLast())
        return ServingError(
            .modelNotFound, "The model `\(shown)` does not exist or you do not have access to it.", field: "model")
    }

    // MARK: What both kinds have

    private func common(_ fields: inout FieldReader, _ request: inout GenerationRequest) throws(ServingError) {
        request.n = try fields.integer("n", in: 1...SamplingLimits.choicesMax) ?? 1
        let choices = request.n * request.prompts.count
        guard choices <= limits.choicesPerRequestMax else {
            throw .invalid(
                request.prompts.field,
                "and 'n' ask for \(choices) choices; the limit of one request is \(limits.choicesPerRequestMax)")
        }
        try sampling(&fields, &request.sampling)
        request.seed = try fields.integer("seed", in: Int.min...Int.max).map { UInt64(bitPattern: Int64($0)) }
        try stops(&fields, &request)
        request.stream = try fields.bool("stream") ?? false
        if let options = try fields.object("stream_options") {
            guard request.stream else { throw .invalid("stream_options", "is only allowed when 'stream' is true") }
            var reader = FieldReader(options)
            request.includeUsage = try reader.bool("include_usage") ?? false
            request.continuousUsage = try reader.bool("continuous_usage_stats") ?? false
        }
        request.priority =
            try fields.integer("priority", in: -Self.priorityMax...Self.priorityMax) ?? 0
        request.requestID = try fields.string("request_id")
        request.skipsSpecialTokens = try fields.bool("skip_special_tokens") ?? true
        _ = try fields.string("user")
        if let salt = try fields.string("cache_salt") {
            guard (1...Self.cacheSaltBytesMax).contains(salt.utf8.count) else {
                throw .invalid(
                    "cache_salt", "has \(salt.utf8.count) bytes; it must have from 1 to \(Self.cacheSaltBytesMax)")
            }
            request.cacheSalt = salt
        }
        try responseFormat(&fields)
    }

    private func sampling(
        _ fields: inout FieldReader, _ sampling: inout SamplingParameters
    ) throws(ServingError) {
        let defaults = model.defaults
        // Beyond OpenAI's limit of 2, as vLLM: who sends more means it.
        sampling.temperature =
            try fields.number("temperature", in: 0...Double(SamplingLimits.temperatureMax)) ?? defaults.temperature
        sampling.topP = try fields.number("top_p", in: 0...1) ?? defaults.topP
        guard sampling.topP > 0 else { throw .invalid("top_p", "is 0; it must be above 0 and at most 1") }
        sampling.topK = max(0, try fields.integer("top_k", in: -1...Int(Int32.max)) ?? defaults.topK)
        sampling.minP = try fields.number("min_p", in: 0...1) ?? defaults.minP
        sampling.presencePenalty = try fields.number("presence_penalty", in: Self.penaltyRange) ?? 0
        sampling.frequencyPenalty = try fields.number("frequency_penalty", in: Self.penaltyRange) ?? 0
        let repetition = try fields.number("repetition_penalty", in: 0...Self.repetitionMax)
        let repeated = try fields.number("repeat_penalty", in: 0...Self.repetitionMax)
        sampling.repetitionPenalty = repetition ?? repeated ?? defaults.repetitionPenalty
        guard sampling.repetitionPenalty > 0 else {
            throw .invalid("repetition_penalty", "is 0; it must be above 0 and at most \(Self.repetitionMax)")
        }
        sampling.minTokens = try fields.integer("min_tokens", in: 0...Self.tokensMax) ?? 0
        sampling.logitBias = try logitBias(&fields)
    }

    private func logitBias(_ fields: inout FieldReader) throws(ServingError) -> [TokenBias] {
        guard let object = try fields.object("logit_bias") else { return [] }
        guard object.count <= SamplingLimits.logitBiasMax else {
            throw .tooMany("logit_bias", object.count, limit: SamplingLimits.logitBiasMax)
        }
        var biases: [TokenBias] = []
        for (key, value) in object.members {
            guard let id = UInt32(key), Int(id) < model.vocabularySize else {
                throw .invalid(
                    "logit_bias",
                    "has the key \(quotedForPeople(key)); keys are token ids from 0 to \(model.vocabularySize - 1)")
            }
            let bias = try FieldReader.number(value, name: "logit_bias.\(id)", in: Self.biasRange)
            biases.append(TokenBias(token: TokenID(id), bias: bias))
        }
        return biases.sorted { $0.token < $1.token }
    }

    private func stops(_ fields: inout FieldReader, _ request: inout GenerationRequest) throws(ServingError) {
        switch fields.value("stop") {
        case nil: break
        case .string(let text): request.stopStrings = [text]
        case .array(let values):
            guard values.count <= SamplingLimits.stopStringsMax else {
                throw .tooMany("stop", values.count, limit: SamplingLimits.stopStringsMax)
            }
            for value in values {
                guard let text = value.stringValue else { throw .wrongKind("stop", value, "a string or strings") }
                request.stopStrings.append(text)
            }
        case .some(let value): throw .wrongKind("stop", value, "a string or an array of strings")
        }
        for text in request.stopStrings where !(1...SamplingLimits.stopStringBytesMax).contains(text.utf8.count) {
            throw .invalid(
                "stop",
                "has a string of \(text.utf8.count) bytes; it must have from 1 to \(SamplingLimits.stopStringBytesMax)")
        }
        var stopTokens: [TokenID] = []
        if let values = try fields.array("stop_token_ids", countMax: SamplingLimits.stopTokensMax) {
            stopTokens = try FieldReader.tokens(values, name: "stop_token_ids", vocabularySize: model.vocabularySize)
        }
        if !(try fields.bool("ignore_eos") ?? false) { stopTokens += model.endTokens }
        request.sampling.stopTokens = Array(Set(stopTokens)).sorted()
    }

    private func responseFormat(_ fields: inout FieldReader) throws(ServingError) {
        guard let format = try fields.object("response_format") else { return }
        guard let type = format["type"]?.stringValue else { throw .missing("response_format.type") }
        guard type == "text" else {
            throw .unsupported(
                "response_format", "has the type \(quotedForPeople(type)); only \"text\" is supported so far")
        }
    }

    private func finish(_ fields: inout FieldReader, _ request: inout GenerationRequest) throws(ServingError) {
        if let most = request.maxTokens, request.sampling.minTokens > most {
            throw .invalid(
                "min_tokens", "is \(request.sampling.minTokens), above '\(request.maxTokensField)', which is \(most)")
        }
        request.ignoredFields = fields.ignored
    }

    // MARK: Prompts

    private func prompts(
        _ fields: inout FieldReader, addSpecialTokens: Bool
    ) throws(ServingError) -> PromptSource {
        guard let value = fields.value("prompt") else { throw .missing("prompt") }
        let wanted = "a string, an array of strings, an array of token ids or an array of those"
        if let text = value.stringValue { return .texts([text], addSpecialTokens: addSpecialTokens) }
        guard let values = value.arrayValue else { throw .wrongKind("prompt", value, wanted) }
        guard let first = values.first else { throw .invalid("prompt", "is empty; it must be \(wanted)") }
        switch first {
        case .string:
            try checkPromptCount(values.count)
            var texts: [String] = []
            for value in values {
                guard let text = value.stringValue else { throw .wrongKind("prompt", value, wanted) }
                texts.append(text)
            }
            return .texts(texts, addSpecialTokens: addSpecialTokens)
        case .integer, .number:
            return .tokens([try tokenPrompt(values)])
        case .array:
            try checkPromptCount(values.count)
            var lists: [[TokenID]] = []
            for value in values {
                guard let list = value.arrayValue else { throw .wrongKind("prompt", value, wanted) }
                lists.append(try tokenPrompt(list))
            }
            return .tokens(lists)
        case .null, .bool, .object: throw .wrongKind("prompt", first, wanted)
        }
    }

    private func checkPromptCount(_ count: Int) throws(ServingError) {
        guard count <= limits.choicesPerRequestMax else {
            throw .tooMany("prompt", count, limit: limits.choicesPerRequestMax)
        }
    }

    private func tokenPrompt(_ values: [JSONValue]) throws(ServingError) -> [TokenID] {
        guard !values.isEmpty else { throw .invalid("prompt", "holds an empty list of tokens") }
        guard values.count <= model.contextTokensMax else {
            throw .contextTooLong(prompt: values.count, output: 0, limit: model.contextTokensMax, field: "prompt")
        }
        return try FieldReader.tokens(values, name: "prompt", vocabularySize: model.vocabularySize)
    }

    // MARK: Chat

    /// Also what `/tokenize` reads where it is given messages.
    func chatPrompt(_ fields: inout FieldReader) throws(ServingError) -> ChatPrompt {
        guard let values = try fields.array("messages", countMax: limits.messagesMax) else {
            throw .missing("messages")
        }
        guard !values.isEmpty else { throw .invalid("messages", "is empty; it must have at least one message") }
        var prompt = ChatPrompt(messages: [])
        for (index, value) in values.enumerated() {
            prompt.messages.append(try message(value, field: "messages[\(index)]"))
        }
        prompt.addGenerationPrompt = try fields.bool("add_generation_prompt") ?? true
        if let variables = try fields.object("chat_template_kwargs") { prompt.variables = variables }
        if let effort = try fields.string("reasoning_effort") { prompt.variables["reasoning_effort"] = .string(effort) }
        prompt.tools = try tools(&fields)
        return prompt
    }

    private func tools(_ fields: inout FieldReader) throws(ServingError) -> [JSONValue] {
        let tools = try fields.array("tools", countMax: 128) ?? []
        for tool in tools where tool.objectValue == nil { throw .wrongKind("tools", tool, "an array of objects") }
        switch fields.value("tool_choice") {
        case nil, .string("auto"): return tools
        case .string("none"): return []
        case .some(let value):
            throw .unsupported(
                "tool_choice", "is \(FieldReader.shown(value)); only \"none\" and \"auto\" are supported so far")
        }
    }

    private static let roles: Set<String> = ["system", "developer", "user", "assistant", "tool", "function"]

    private func message(_ value: JSONValue, field: String) throws(ServingError) -> JSONValue {
        guard var message = value.objectValue else { throw .wrongKind(field, value, "an object") }
        guard let role = message["role"] else { throw .missing("\(field).role") }
        guard let name = role.stringValue, Self.roles.contains(name) else {
            throw .wrongKind("\(field).role", role, "one of system, developer, user, assistant, tool, function")
        }
        switch message["content"] {
        case .string: break
        case nil, .null:
            guard name == "assistant" else { throw .missing("\(field).content") }
            message["content"] = ""
        case .array(let parts): message["content"] = .string(try text(of: parts, field: "\(field).content"))
        case .some(let other): throw .wrongKind("\(field).content", other, "a string or an array of parts")
        }
        return .object(message)
    }

    /// Text parts, one per line, as templates that know only strings want them.
    private func text(of parts: [JSONValue], field: String) throws(ServingError) -> String {
        var texts: [String] = []
        for (index, part) in parts.enumerated() {
            let place = "\(field)[\(index)]"
            guard let object = part.objectValue else { throw .wrongKind(place, part, "an object") }
            guard let type = object["type"]?.stringValue else { throw .missing("\(place).type") }
            guard type == "text" else {
                throw .unsupported(place, "has the type \(quotedForPeople(type)); this model takes only \"text\"")
            }
            guard let text = object["text"]?.stringValue else { throw .missing("\(place).text") }
            texts.append(text)
        }
        return texts.joined(separator: "\n")
    }
}

extension ServingError {
    /// `field` is the prompt's; `outputField` is given where the prompt alone would fit.
    static func contextTooLong(
        prompt: Int, output: Int, limit: Int, field: String, outputField: String? = nil
    ) -> ServingError {
        let source = outputField.map { " ('\($0)')" } ?? ""
        let asked = output == 0 ? "" : " and \(output) for the output\(source)"
        return ServingError(
            .contextTooLong,
            "This model's context is \(limit) tokens; '\(field)' has \(prompt) tokens\(asked). Shorten one of them.",
            field: outputField ?? field)
    }
}
