import BoundedJSON
import ServingTypes
import Testing

@testable import FrontDoor

/// Every row of the table of errors: status, code, field, and what the client library is told to do.
@Suite struct ErrorTests {
    struct Row: CustomTestStringConvertible {
        var body: String
        var status = 400
        var code = "invalid_value"
        var field: String?
        var says: String
        var path = "/v1/completions"

        var testDescription: String { says }
    }

    static let refused: [Row] = [
        Row(body: "{", code: "malformed", field: "body", says: "not valid JSON"),
        Row(body: "[1]", code: "malformed", field: "body", says: "The body is an array; it must be an object."),
        Row(body: "{}", code: "missing_required_parameter", field: "prompt", says: "'prompt' is required."),
        Row(
            body: #"{"prompt":"a","model":"gpt-4"}"#, status: 404, code: "model_not_found", field: "model",
            says: "The model `gpt-4` does not exist or you do not have access to it."),
        Row(body: #"{"prompt":3}"#, field: "prompt", says: "'prompt' is 3; it must be a string"),
        Row(body: #"{"prompt":[]}"#, field: "prompt", says: "'prompt' is empty"),
        Row(body: #"{"prompt":[1,"a"]}"#, field: "prompt", says: #"'prompt' holds "a", which is no token id"#),
        Row(body: #"{"prompt":[999]}"#, field: "prompt", says: "ids are from 0 to 257"),
        Row(
            body: #"{"prompt":"a","max_tokens":"x"}"#, field: "max_tokens",
            says: #"'max_tokens' is "x"; it must be an integer."#),
        Row(body: #"{"prompt":"a","max_tokens":0}"#, field: "max_tokens", says: "it must be from 1 to"),
        Row(
            body: #"{"prompt":"a","max_tokens":1.5}"#, field: "max_tokens",
            says: "'max_tokens' is 1.5; it must be an integer"),
        Row(
            body: #"{"prompt":"a","max_tokens":500}"#, code: "context_length_exceeded", field: "max_tokens",
            says: "This model's context is 200 tokens; 'prompt' has 1 tokens and 500 for the output ('max_tokens')."),
        Row(body: #"{"prompt":"a","temperature":-1}"#, field: "temperature", says: "it must be from 0.0 to 100.0"),
        Row(body: #"{"prompt":"a","temperature":"hot"}"#, field: "temperature", says: "it must be a number"),
        Row(body: #"{"prompt":"a","top_p":0}"#, field: "top_p", says: "above 0"),
        Row(body: #"{"prompt":"a","top_p":1.1}"#, field: "top_p", says: "'top_p' is 1.1"),
        Row(body: #"{"prompt":"a","top_k":-2}"#, field: "top_k", says: "'top_k' is -2"),
        Row(body: #"{"prompt":"a","min_p":2}"#, field: "min_p", says: "'min_p' is 2.0"),
        Row(body: #"{"prompt":"a","presence_penalty":3}"#, field: "presence_penalty", says: "from -2.0 to 2.0"),
        Row(body: #"{"prompt":"a","frequency_penalty":-3}"#, field: "frequency_penalty", says: "from -2.0 to 2.0"),
        Row(body: #"{"prompt":"a","repetition_penalty":0}"#, field: "repetition_penalty", says: "above 0"),
        Row(body: #"{"prompt":"a","n":9}"#, field: "n", says: "'n' is 9; it must be from 1 to 8."),
        Row(body: #"{"prompt":"a","n":2,"best_of":3}"#, code: "unsupported", field: "best_of", says: "equals 'n'"),
        Row(body: #"{"prompt":"a","suffix":"b"}"#, code: "unsupported", field: "suffix", says: "not supported"),
        Row(
            body: #"{"prompt":"a","echo":true,"logprobs":1}"#, code: "unsupported", field: "logprobs",
            says: "together with 'echo'"),
        Row(body: #"{"prompt":"a","logprobs":21}"#, field: "logprobs", says: "from 0 to 20"),
        Row(body: #"{"prompt":"a","stop":[1]}"#, field: "stop", says: "'stop' is 1"),
        Row(body: #"{"prompt":"a","stop":""}"#, field: "stop", says: "has a string of 0 bytes"),
        Row(
            body: #"{"prompt":"a","stop":["\#(Array(repeating: "a", count: 17).joined(separator: "\",\""))"]}"#,
            field: "stop", says: "'stop' has 17 members; the limit is 16."),
        Row(body: #"{"prompt":"a","stop_token_ids":[-1]}"#, field: "stop_token_ids", says: "holds -1"),
        Row(body: #"{"prompt":"a","logit_bias":{"x":1}}"#, field: "logit_bias", says: #"has the key "x""#),
        Row(body: #"{"prompt":"a","logit_bias":{"5":101}}"#, field: "logit_bias.5", says: "from -100.0 to 100.0"),
        Row(body: #"{"prompt":"a","logit_bias":[5]}"#, field: "logit_bias", says: "it must be an object"),
        Row(body: #"{"prompt":"a","seed":1.5}"#, field: "seed", says: "'seed' is 1.5"),
        Row(body: #"{"prompt":"a","stream":1}"#, field: "stream", says: "it must be a boolean"),
        Row(body: #"{"prompt":"a","stream_options":{}}"#, field: "stream_options", says: "only allowed when 'stream'"),
        Row(body: #"{"prompt":"a","min_tokens":20}"#, status: 0, says: "fits the default"),
        Row(body: #"{"prompt":"a","min_tokens":9,"max_tokens":8}"#, field: "min_tokens", says: "above 'max_tokens'"),
        Row(body: #"{"prompt":"a","cache_salt":""}"#, field: "cache_salt", says: "from 1 to 1024"),
        Row(
            body: #"{"prompt":"a","response_format":{"type":"json_object"}}"#, code: "unsupported",
            field: "response_format", says: #"only "text" is supported"#),
        Row(body: #"{"prompt":""}"#, field: "prompt", says: "'prompt' has no tokens"),
        Row(
            body: #"{"messages":[]}"#, field: "messages", says: "'messages' is empty", path: "/v1/chat/completions"),
        Row(
            body: #"{"prompt":"a"}"#, code: "missing_required_parameter", field: "messages",
            says: "'messages' is required.", path: "/v1/chat/completions"),
        Row(
            body: #"{"messages":[{"role":"king","content":"a"}]}"#, field: "messages[0].role",
            says: #"is "king"; it must be one of"#, path: "/v1/chat/completions"),
        Row(
            body: #"{"messages":[{"role":"user"}]}"#, code: "missing_required_parameter", field: "messages[0].content",
            says: "is required", path: "/v1/chat/completions"),
        Row(
            body: #"{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}"#, code: "unsupported",
            field: "messages[0].content[0]", says: #"has the type "image_url""#, path: "/v1/chat/completions"),
        Row(
            body: #"{"messages":[{"role":"user","content":"a"}],"top_logprobs":2}"#, field: "top_logprobs",
            says: "needs 'logprobs'", path: "/v1/chat/completions"),
        Row(
            body: #"{"messages":[{"role":"user","content":"a"}],"tool_choice":"required"}"#, code: "unsupported",
            field: "tool_choice", says: "only \"none\" and \"auto\"", path: "/v1/chat/completions"),
        Row(
            body: #"{"messages":[{"role":"user","content":"a"}],"max_completion_tokens":400}"#,
            code: "context_length_exceeded", field: "max_completion_tokens", says: "and 400 for the output",
            path: "/v1/chat/completions"),
    ]

    @Test(arguments: refused) func aRefusalNamesFieldValueAndLimit(row: Row) throws {
        let desk = try Desk()
        try desk.post(row.path, row.body)
        guard row.status != 0 else { return #expect(desk.jobs.all.count == 1) }
        let answer = try desk.answer()
        #expect(answer.status == row.status)
        #expect(answer.error?["code"]?.stringValue == row.code)
        #expect(answer.error?["type"]?.stringValue == "invalid_request_error")
        #expect(answer.error?["param"]?.stringValue == row.field)
        let message = answer.error?["message"]?.stringValue ?? ""
        #expect(message.contains(row.says), "\(message)")
        #expect(desk.jobs.all.isEmpty)
    }

    @Test func aContextThatIsFullIsRefused() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"\#(String(repeating: "a", count: 200))"}"#)
        let answer = try desk.answer()
        #expect(answer.status == 400)
        #expect(answer.error?["code"]?.stringValue == "context_length_exceeded")
    }

    @Test func deepNestingIsRefused() throws {
        let desk = try Desk()
        let deep = String(repeating: "[", count: 70) + String(repeating: "]", count: 70)
        try desk.post("/v1/completions", #"{"prompt":"a","x":\#(deep)}"#)
        let answer = try desk.answer()
        #expect(answer.status == 400)
        #expect(answer.error?["code"]?.stringValue == "malformed")
    }

    @Test func tooManyMessagesAreRefused() throws {
        let desk = try Desk { $0.limits.messagesMax = 2 }
        let message = #"{"role":"user","content":"a"}"#
        try desk.post("/v1/chat/completions", #"{"messages":[\#(message),\#(message),\#(message)]}"#)
        #expect(
            try desk.answer().error?["message"]?.stringValue == "'messages' has 3 members; the limit is 2.")
    }

    @Test func tooManyChoicesAreRefused() throws {
        let desk = try Desk { $0.limits.choicesPerRequestMax = 4 }
        try desk.post("/v1/completions", #"{"prompt":["a","b"],"n":3}"#)
        #expect(try desk.answer().error?["message"]?.stringValue?.contains("ask for 6 choices") == true)
        try desk.post("/v1/completions", #"{"prompt":["a","b","c","d","e"]}"#)
        #expect(
            try desk.answer().error?["message"]?.stringValue == "'prompt' has 5 members; the limit is 4.")
    }

    @Test func aModelWithoutTemplateRefusesChat() throws {
        let desk = try Desk { $0.model.chatTemplate = nil }
        try desk.post("/v1/chat/completions", #"{"messages":[{"role":"user","content":"a"}]}"#)
        let answer = try desk.answer()
        #expect(answer.status == 400)
        #expect(answer.error?["code"]?.stringValue == "unsupported")
    }

    @Test func unknownRoutesMethodsAndAbsentFeaturesDiffer() throws {
        let desk = try Desk()
        try desk.get("/nowhere")
        #expect(try desk.answer().status == 404)
        try desk.get("/v1/completions")
        let wrong = try desk.answer()
        #expect(wrong.status == 405)
        #expect(wrong["allow"] == "POST")
        for path in ["/v1/embeddings", "/v1/responses", "/v1/images/generations", "/v1/files/x"] {
            try desk.post(path, "{}")
            let absent = try desk.answer()
            #expect(absent.status == 501, "\(path)")
            #expect(absent["x-should-retry"] == "false")
            #expect(absent.error?["message"]?.stringValue?.contains(path) == true)
        }
    }

    @Test func aFormIsNoJSON() throws {
        let desk = try Desk()
        let body = "prompt=a"
        try desk.send(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/x-www-form-urlencoded\r\n"
                + "content-length: \(body.utf8.count)\r\n\r\n\(body)")
        let answer = try desk.answer()
        #expect(answer.status == 415)
        #expect(answer.error?["message"]?.stringValue?.contains("send application/json") == true)
    }

    struct ServiceRow: CustomTestStringConvertible {
        var error: ServingError
        var status: Int
        var type: String
        var retryAfter: String?
        var shouldRetry: String?

        var testDescription: String { error.code.name }
    }

    static let fromService: [ServiceRow] = [
        ServiceRow(
            error: ServingError(.queueFull, "full", retryAfterSeconds: 3), status: 429, type: "rate_limit_error",
            retryAfter: "3"),
        ServiceRow(
            error: ServingError(.rateLimited, "slow down"), status: 429, type: "rate_limit_error", retryAfter: "1"),
        ServiceRow(
            error: ServingError(.noWorker, "no decode worker", retryAfterSeconds: 2), status: 503,
            type: "service_unavailable_error", retryAfter: "2"),
        ServiceRow(
            error: ServingError(.draining, "closing"), status: 503, type: "service_unavailable_error", retryAfter: "1"),
        ServiceRow(
            error: ServingError(.conflict, "other"), status: 409, type: "invalid_request_error", shouldRetry: "false"),
        ServiceRow(error: ServingError(.deadline, "late"), status: 504, type: "timeout_error", shouldRetry: "false"),
        ServiceRow(error: ServingError(.poisoned, "bad"), status: 500, type: "server_error", shouldRetry: "false"),
        ServiceRow(error: ServingError(.internalError, "bug"), status: 500, type: "server_error"),
        ServiceRow(error: ServingError(.cancelled, "gone"), status: 499, type: "cancelled_error"),
        ServiceRow(error: ServingError(.contextTooLong, "long"), status: 400, type: "invalid_request_error"),
        ServiceRow(error: ServingError(.forbidden, "no"), status: 403, type: "permission_error"),
    ]

    @Test(arguments: fromService) func aRefusalByTheCoordinatorTellsWhetherToRetry(row: ServiceRow) throws {
        for stream in ["true", "false"] {
            let desk = try Desk()
            desk.jobs.onSubmit = { $0.refuse($1, row.error) }
            try desk.post("/v1/completions", #"{"prompt":"a","stream":\#(stream)}"#)
            let answer = try desk.answer()
            #expect(answer.status == row.status)
            #expect(answer.error?["type"]?.stringValue == row.type)
            #expect(answer.error?["code"]?.stringValue == row.error.code.name)
            #expect(answer["retry-after"] == row.retryAfter)
            #expect(answer["retry-after-ms"] == row.retryAfter.map { $0 + "000" })
            #expect(answer["x-should-retry"] == row.shouldRetry)
        }
    }

    @Test func aBugAfterTokensWereBilledIsNotRetried() throws {
        let desk = try Desk()
        desk.jobs.onSubmit = { jobs, job in
            jobs.admit(job)
            jobs.emit(job, "ab")
            jobs.end(job, .failed(ServingError(.internalError, "lost")))
        }
        try desk.post("/v1/completions", #"{"prompt":"a"}"#)
        let answer = try desk.answer()
        #expect(answer.status == 500)
        #expect(answer["x-should-retry"] == "false")
    }

    @Test func oneRefusedChoiceRefusesTheRequestAndLeavesTheOthers() throws {
        let desk = try Desk()
        desk.jobs.onSubmit = { jobs, job in
            if jobs.all.count == 2 { jobs.refuse(job, ServingError(.queueFull, "full")) } else { jobs.admit(job) }
        }
        try desk.post("/v1/completions", #"{"prompt":"a","n":3}"#)
        #expect(try desk.answer().status == 429)
        #expect(desk.jobs.all.count == 2)
        #expect(desk.jobs.left == [JobID(high: 0, low: 2)])
    }
}
