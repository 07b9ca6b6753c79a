import BoundedJSON
import CoordinatorCore
import ServingTypes

/// Usage as OpenAI spells it.
struct UsageReport: Hashable {
    var promptTokens = 0
    var completionTokens = 0
    var cachedTokens = 0

    var json: JSONValue {
        [
            "prompt_tokens": .integer(Int64(promptTokens)), "completion_tokens": .integer(Int64(completionTokens)),
            "total_tokens": .integer(Int64(promptTokens + completionTokens)),
            "prompt_tokens_details": ["cached_tokens": .integer(Int64(cachedTokens))],
        ]
    }
}

/// Spells whole answers and chunks of one request (user-experience.md §1.3).
struct ResponseShape {
    var kind: JobRequestRecord.Kind
    /// Equal in all chunks.
    var id: String
    var created: Int64
    var model: String
    /// Chunks carry `usage: null` before the one that carries numbers.
    var includesUsage = false
    var wantsLogprobs = false
    /// Whether the completion's `top_logprobs` is given.
    var wantsTop = false

    static func id(_ kind: JobRequestRecord.Kind, job: JobID) -> String {
        switch kind {
        case .chat: "chatcmpl-\(job)"
        case .completion: "cmpl-\(job)"
        }
    }

    // MARK: Chunks

    /// The first chunk of a chat's choice: whose turn it is.
    func roleChunk(index: Int, usage: UsageReport?) -> String {
        chunk(
            [
                "index": .integer(Int64(index)), "delta": ["role": "assistant", "content": ""], "logprobs": nil,
                "finish_reason": nil,
            ], usage: usage)
    }

    func textChunk(index: Int, text: String, entries: [ChoiceText.Entry], usage: UsageReport?) -> String {
        let content: JSONValue = .string(text)
        return switch kind {
        case .chat:
            chunk(
                [
                    "index": .integer(Int64(index)), "delta": ["content": content], "logprobs": logprobs(entries),
                    "finish_reason": nil,
                ], usage: usage)
        case .completion:
            chunk(
                [
                    "index": .integer(Int64(index)), "text": content, "logprobs": logprobs(entries),
                    "finish_reason": nil,
                ], usage: usage)
        }
    }

    func finishChunk(index: Int, reason: FinishReason, usage: UsageReport?) -> String {
        let body: (String, JSONValue) =
            switch kind {
            case .chat: ("delta", [:])
            case .completion: ("text", "")
            }
        return chunk(
            .object(
                JSONObject([
                    ("index", .integer(Int64(index))), body, ("logprobs", nil),
                    ("finish_reason", .string(reason.rawValue)),
                ])), usage: usage)
    }

    /// The chunk before `[DONE]` that `include_usage` asks for.
    func usageChunk(_ usage: UsageReport) -> String { text(object: chunkObject, choices: [], usage: usage.json) }

    private func chunk(_ choice: JSONValue, usage: UsageReport?) -> String {
        text(object: chunkObject, choices: [choice], usage: usage?.json ?? (includesUsage ? .some(.null) : .none))
    }

    private var chunkObject: String {
        switch kind {
        case .chat: "chat.completion.chunk"
        case .completion: "text_completion"
        }
    }

    // MARK: Whole answers

    func choice(index: Int, text: String, entries: [ChoiceText.Entry], reason: FinishReason) -> JSONValue {
        switch kind {
        case .chat:
            [
                "index": .integer(Int64(index)),
                "message": ["role": "assistant", "content": .string(text), "refusal": nil],
                "logprobs": logprobs(entries), "finish_reason": .string(reason.rawValue),
            ]
        case .completion:
            [
                "index": .integer(Int64(index)), "text": .string(text), "logprobs": logprobs(entries),
                "finish_reason": .string(reason.rawValue),
            ]
        }
    }

    func answer(choices: [JSONValue], usage: UsageReport) -> JSONValue {
        let object =
            switch kind {
            case .chat: "chat.completion"
            case .completion: "text_completion"
            }
        return .object(members(object: object, choices: choices, usage: usage.json))
    }

    private func text(object: String, choices: [JSONValue], usage: JSONValue?) -> String {
        JSON.text(.object(members(object: object, choices: choices, usage: usage)))
    }

    private func members(object: String, choices: [JSONValue], usage: JSONValue?) -> JSONObject {
        var members = JSONObject([
            ("id", .string(id)), ("object", .string(object)), ("created", .integer(created)),
            ("model", .string(model)), ("choices", .array(choices)),
        ])
        if let usage { members["usage"] = usage }
        return members
    }

    // MARK: Log probabilities

    private func logprobs(_ entries: [ChoiceText.Entry]) -> JSONValue {
        guard wantsLogprobs else { return .null }
        switch kind {
        case .chat: return ["content": .array(entries.map { chatEntry($0) }), "refusal": nil]
        case .completion: return completionLogprobs(entries)
        }
    }

    private func chatEntry(_ entry: ChoiceText.Entry) -> JSONValue {
        var members = Self.chatToken(entry.bytes, entry.logprob)
        members["top_logprobs"] = .array(entry.top.map { .object(Self.chatToken($0.bytes, $0.logprob)) })
        return .object(members)
    }

    private static func chatToken(_ bytes: [UInt8], _ logprob: Float) -> JSONObject {
        JSONObject([
            ("token", .string(String(decoding: bytes, as: UTF8.self))), ("logprob", number(logprob)),
            ("bytes", .array(bytes.map { .integer(Int64($0)) })),
        ])
    }

    private func completionLogprobs(_ entries: [ChoiceText.Entry]) -> JSONValue {
        let tops: JSONValue =
            wantsTop
            ? .array(
                entries.map { entry in
                    var object = JSONObject(entry.top.map { (Self.tokenText($0.bytes), Self.number($0.logprob)) })
                    object[Self.tokenText(entry.bytes)] = Self.number(entry.logprob)
                    return .object(object)
                }) : .null
        return [
            "tokens": .array(entries.map { .string(Self.tokenText($0.bytes)) }),
            "token_logprobs": .array(entries.map { Self.number($0.logprob) }), "top_logprobs": tops,
            "text_offset": .array(entries.map { .integer(Int64($0.textOffset)) }),
        ]
    }

    /// The decimal that a Float prints as, rather than its 17-digit double.
    private static func number(_ logprob: Float) -> JSONValue {
        guard logprob.isFinite else { return .number(-9999) }
        return .number(Double(logprob.description) ?? Double(logprob))
    }

    /// A token that is no whole character is spelled `bytes:\xe2\x80`, so that different ones differ.
    private static func tokenText(_ bytes: [UInt8]) -> String {
        if let text = String(validating: bytes, as: UTF8.self) { return text }
        return "bytes:"
            + bytes.map { byte in
                let digits = String(byte, radix: 16)
                return "\\x" + (digits.utf8.count == 1 ? "0" : "") + digits
            }.joined()
    }
}
