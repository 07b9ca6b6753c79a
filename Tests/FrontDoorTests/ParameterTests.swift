import ChatTemplate
import ServingTypes
import Testing

@testable import FrontDoor

/// What a request says reaches the job; what it leaves out comes from the model's defaults.
@Suite struct ParameterTests {
    private func sampling(
        _ fields: String, path: String = "/v1/completions", _ change: (inout FrontDoorConfiguration) -> Void = { _ in }
    ) throws -> SamplingParameters {
        let desk = try Desk(change)
        let prompt = path == "/v1/completions" ? #""prompt":"abc""# : #""messages":[{"role":"user","content":"abc"}]"#
        try desk.post(path, "{\(prompt)\(fields.isEmpty ? "" : ",")\(fields)}")
        return try #require(desk.jobs.all.first).submission.sampling
    }

    @Test func everyParameterReachesTheJob() throws {
        let got = try sampling(
            #""max_tokens":9,"min_tokens":2,"temperature":0.5,"top_p":0.9,"top_k":40,"min_p":0.1,"presence_penalty":1,"#
                + #""frequency_penalty":-1,"repetition_penalty":1.5,"seed":-3,"stop_token_ids":[7,5],"logprobs":2,"#
                + #""logit_bias":{"9":-100,"3":1.5}"#)
        #expect(got.maxTokens == 9)
        #expect(got.minTokens == 2)
        #expect(got.temperature == 0.5)
        #expect(got.topP == 0.9)
        #expect(got.topK == 40)
        #expect(got.minP == 0.1)
        #expect(got.presencePenalty == 1)
        #expect(got.frequencyPenalty == -1)
        #expect(got.repetitionPenalty == 1.5)
        #expect(got.seed == UInt64(bitPattern: -3))
        #expect(got.stopTokens == [TokenID(5), TokenID(7), TinyModel.end])
        #expect(got.wantsLogprobs)
        #expect(got.topLogprobs == 2)
        #expect(
            got.logitBias == [TokenBias(token: TokenID(3), bias: 1.5), TokenBias(token: TokenID(9), bias: -100)])
    }

    @Test func aCacheSaltNamesItsOwnPageSpace() throws {
        func space(_ fields: String, tenant: String) throws -> TenantID {
            let desk = try Desk()
            try desk.post(
                "/v1/completions", #"{"prompt":"ab"\#(fields)}"#, headers: ["x-tandem-tenant: \(tenant)"])
            let job = try #require(desk.jobs.all.first)
            #expect(job.submission.tenant == TenantID(tenant))
            return job.submission.pageSpace
        }
        #expect(try space("", tenant: "one") == TenantID("one"))
        let salted = try space(#","cache_salt":"a""#, tenant: "one")
        #expect(try space(#","cache_salt":"a""#, tenant: "one") == salted)
        let others = try [
            space(#","cache_salt":"b""#, tenant: "one"), space(#","cache_salt":"a""#, tenant: "two"), TenantID("one"),
        ]
        #expect(!others.contains(salted))
    }

    @Test func silenceTakesTheModelsDefaults() throws {
        let got = try sampling("") { configuration in
            configuration.model.defaults.temperature = 0.6
            configuration.model.defaults.topP = 0.95
            configuration.model.defaults.topK = 20
            configuration.model.defaults.repetitionPenalty = 1.1
        }
        #expect(got.temperature == 0.6)
        #expect(got.topP == 0.95)
        #expect(got.topK == 20)
        #expect(got.repetitionPenalty == 1.1)
        #expect(got.maxTokens == 16)
        #expect(got.stopTokens == [TinyModel.end])
        #expect(!got.wantsLogprobs)
    }

    @Test func nullIsSilence() throws {
        let got = try sampling(#""temperature":null,"max_tokens":null,"stop":null,"seed":null,"logit_bias":null"#)
        #expect(got.temperature == 1)
        #expect(got.maxTokens == 16)
    }

    @Test func endTokensCanBeIgnoredAndOtherSpellingsAreKnown() throws {
        #expect(try sampling(#""ignore_eos":true"#).stopTokens.isEmpty)
        #expect(try sampling(#""repeat_penalty":1.2"#).repetitionPenalty == 1.2)
        #expect(try sampling(#""top_k":-1"#).topK == 0)
    }

    @Test func aChatTakesWhatTheContextLeaves() throws {
        let path = "/v1/chat/completions"
        let promptTokens = "user: abc\nassistant:".utf8.count
        #expect(try sampling("", path: path).maxTokens == 200 - promptTokens)
        #expect(try sampling(#""max_tokens":50,"max_completion_tokens":7"#, path: path).maxTokens == 7)
        #expect(try sampling(#""logprobs":true"#, path: path).topLogprobs == 0)
    }

    @Test func aCompletionTakesLessWhereTheContextIsShort() throws {
        let desk = try Desk(contextTokensMax: 10)
        try desk.post("/v1/completions", #"{"prompt":"abcdefg"}"#)
        #expect(desk.jobs.all.first?.submission.sampling.maxTokens == 3)
    }

    @Test func seedsDifferWhereNoneIsGiven() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"a","n":4}"#)
        #expect(Set(desk.jobs.all.map(\.submission.sampling.seed)).count == 4)
    }

    @Test func toolsReachTheTemplateUnlessTheChoiceIsNone() throws {
        func prompt(_ fields: String) throws -> String {
            let desk = try Desk()
            try desk.post(
                "/v1/chat/completions",
                #"{"messages":[{"role":"user","content":"a"}],"tools":[{"type":"function"}]\#(fields)}"#)
            let tokens = try #require(desk.jobs.all.first).submission.promptTokens
            return desk.door.configuration.model.tokenizer.decode(tokens)
        }
        #expect(try prompt("") == "user: a\ntools 1\nassistant:")
        #expect(try prompt(#","tool_choice":"auto""#) == "user: a\ntools 1\nassistant:")
        #expect(try prompt(#","tool_choice":"none""#) == "user: a\nassistant:")
        #expect(try prompt(#","tool_choice":"none","add_generation_prompt":false"#) == "user: a\n")
    }

    @Test func textPartsAreJoined() throws {
        let desk = try Desk()
        try desk.post(
            "/v1/chat/completions",
            #"{"messages":[{"role":"user","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]},{"role":"assistant"}]}"#
        )
        let tokens = try #require(desk.jobs.all.first).submission.promptTokens
        #expect(desk.door.configuration.model.tokenizer.decode(tokens) == "user: a\nb\nassistant: \nassistant:")
    }

    @Test func priorityAndDetachmentReachTheJob() throws {
        let desk = try Desk()
        try desk.post(
            "/v1/completions", #"{"prompt":"a","priority":-5,"cache_salt":"s"}"#,
            headers: ["x-tandem-on-disconnect: continue", "idempotency-key: k"])
        let job = try #require(desk.jobs.all.first)
        #expect(job.submission.priority == -5)
        #expect(job.submission.idempotencyKey == "k")
        #expect(job.request.detached)
        #expect(job.request.kind == .completion)
        #expect(job.request.created == 1_700_000_000)
    }

    @Test func datesAreCivilDates() {
        func spelled(_ seconds: Int64) -> String {
            let date = TemplateDate(secondsSince1970: seconds)
            return "\(date.year)-\(date.month)-\(date.day) \(date.hour):\(date.minute):\(date.second)"
        }
        #expect(spelled(0) == "1970-1-1 0:0:0")
        #expect(spelled(951_827_696) == "2000-2-29 12:34:56")
        #expect(spelled(1_700_000_000) == "2023-11-14 22:13:20")
        #expect(spelled(-1) == "1969-12-31 23:59:59")
    }
}
