import BoundedJSON
import NIOCore
import ServingTypes
import Testing

@testable import FrontDoor

/// Golden transcripts: what a client reads, byte for byte.
@Suite struct StreamTests {
    static let id = "00000000000000000000000000000002"

    private func chunk(_ choices: String, _ usage: String = "", object: String = "text_completion") -> String {
        let prefix = object == "text_completion" ? "cmpl" : "chatcmpl"
        return #"{"id":"\#(prefix)-\#(Self.id)","object":"\#(object)","created":1700000000,"model":"tiny","#
            + #""choices":[\#(choices)]\#(usage)}"#
    }

    private func text(_ text: String, index: Int = 0, logprobs: String = "null", reason: String = "null") -> String {
        #"{"index":\#(index),"text":"\#(text)","logprobs":\#(logprobs),"finish_reason":\#(reason)}"#
    }

    private func delta(_ delta: String, index: Int = 0, logprobs: String = "null", reason: String = "null") -> String {
        #"{"index":\#(index),"delta":\#(delta),"logprobs":\#(logprobs),"finish_reason":\#(reason)}"#
    }

    @Test func aCompletionStreamsTextThenItsReasonThenDone() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        #expect(try desk.output() == "")
        desk.jobs.admit(job)
        let head = try desk.output()
        #expect(
            head
                == "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
                + "x-accel-buffering: no\r\nx-tandem-job-id: \(Self.id)\r\n"
                + "x-request-id: req-00000000000000000000000000000001\r\nserver: tandem/0.0\r\n"
                + "transfer-encoding: chunked\r\n\r\n")
        desk.jobs.emit(job, "Hi")
        desk.jobs.emit(job, " you")
        desk.jobs.end(job, .finished(.length))
        let answer = try Answer(head + desk.output())
        #expect(answer.isWhole)
        #expect(
            answer.events == [
                chunk(text("Hi")), chunk(text(" you")), chunk(text("", reason: "\"length\"")), "[DONE]",
            ])
    }

    /// What a coordinator that is killed in a long turn of its loop has settled and not sent is bounded.
    @Test func aLongTurnOfTheLoopGivesEventsToTheSocketAsTheyCome() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true,"max_tokens":100}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        var text = try desk.output()
        for count in 1...60 {
            desk.jobs.emit(job, "x")
            text += try desk.flushed()
            let events = try Answer(text).events.count
            #expect(events > count - HTTP1Connection.Limits.unflushedMax, "\(count) tokens, \(events) with the socket")
        }
        desk.jobs.end(job, .finished(.length))
        #expect(try Answer(text + desk.output()).events.count == 62)
    }

    /// Likewise where the streams of one connection share its bound.
    @Test func aLongTurnOfTheLoopGivesTheEventsOfAllStreamsToTheSocket() throws {
        let desk = try Desk()
        let body = #"{"prompt":"ab","stream":true,"max_tokens":100}"#
        try desk.send(bytes: HTTP2Frames.preface)
        for stream: UInt8 in [1, 3] {
            try desk.send(bytes: HTTP2Frames.post("/v1/completions", body, stream: stream))
        }
        #expect(desk.jobs.all.count == 2)
        for job in desk.jobs.all { desk.jobs.admit(job) }
        desk.loop.run()
        var bytes = try desk.flushedBytes()
        func events() -> Int {
            HTTP2Frames.bodies(bytes).split(separator: "data: ", omittingEmptySubsequences: false).count - 1
        }
        var mostHeldBack = 0
        for count in 1...60 {
            desk.jobs.emit(desk.jobs.all[count % 2], "x")
            bytes += try desk.flushedBytes()
            mostHeldBack = max(mostHeldBack, count - events())
        }
        #expect((1..<HTTP2Connection.Limits.unflushedMax).contains(mostHeldBack), "\(mostHeldBack)")
        for job in desk.jobs.all { desk.jobs.end(job, .finished(.length)) }
        desk.loop.run()
        bytes += try desk.flushedBytes()
        #expect(events() == 60 + 2 * 2)
    }

    @Test func aChatStartsWithItsRoleAndEndsWithUsage() throws {
        let desk = try Desk()
        try desk.post(
            "/v1/chat/completions",
            #"{"model":"tiny","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}"#
        )
        let job = try #require(desk.jobs.all.first)
        #expect(job.submission.promptTokens.map { UInt8($0.value) } == Array("user: hi\nassistant:".utf8))
        desk.jobs.admit(job)
        desk.jobs.emit(job, "Hello")
        desk.jobs.emit(job, [SampledToken(token: TinyModel.end)])
        desk.jobs.end(job, .finished(.stop))
        let object = "chat.completion.chunk"
        let null = #","usage":null"#
        #expect(
            try desk.answer().events == [
                chunk(delta(#"{"role":"assistant","content":""}"#), null, object: object),
                chunk(delta(#"{"content":"Hello"}"#), null, object: object),
                chunk(delta("{}", reason: "\"stop\""), null, object: object),
                chunk(
                    "",
                    #","usage":{"prompt_tokens":19,"completion_tokens":6,"total_tokens":25,"prompt_tokens_details":{"cached_tokens":2}}"#,
                    object: object), "[DONE]",
            ])
    }

    @Test func continuousUsageCountsEachChunk() throws {
        let desk = try Desk()
        try desk.post(
            "/v1/completions", #"{"prompt":"ab","stream":true,"stream_options":{"continuous_usage_stats":true}}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        desk.jobs.emit(job, "abc")
        desk.jobs.emit(job, "d")
        desk.jobs.end(job, .finished(.length))
        let counts = try desk.answer().events.compactMap { event in
            (try? JSON.parse(Array(event.utf8)))?["usage"]?["completion_tokens"]?.intValue
        }
        #expect(counts == [3, 4, 4])
    }

    @Test func twoChoicesKeepTheirIndices() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","n":2,"stream":true,"seed":5}"#)
        #expect(desk.jobs.all.map(\.submission.sampling.seed) == [5, 6])
        let (first, second) = (desk.jobs.all[0], desk.jobs.all[1])
        desk.jobs.admit(first)
        desk.jobs.emit(first, "x")
        #expect(try desk.output() == "")
        desk.jobs.admit(second)
        desk.jobs.emit(second, "y")
        desk.jobs.end(second, .finished(.length))
        desk.jobs.end(first, .finished(.stop))
        let answer = try desk.answer()
        #expect(answer["x-tandem-job-id"] == "\(Self.id),00000000000000000000000000000003")
        #expect(
            answer.events == [
                chunk(text("x")), chunk(text("y", index: 1)), chunk(text("", index: 1, reason: "\"length\"")),
                chunk(text("", reason: "\"stop\"")), "[DONE]",
            ])
    }

    @Test func chatLogprobsCarryBytesAndAlternatives() throws {
        let desk = try Desk()
        try desk.post(
            "/v1/chat/completions",
            #"{"messages":[{"role":"user","content":"a"}],"stream":true,"logprobs":true,"top_logprobs":1}"#)
        let job = try #require(desk.jobs.all.first)
        #expect(job.submission.sampling.wantsLogprobs)
        #expect(job.submission.sampling.topLogprobs == 1)
        desk.jobs.admit(job)
        desk.jobs.emit(
            job,
            [
                SampledToken(
                    token: TokenID(97), logprob: -0.25, top: [TokenLogprob(token: TokenID(98), logprob: -0.1)])
            ])
        desk.jobs.end(job, .finished(.length))
        let entry =
            #"{"token":"a","logprob":-0.25,"bytes":[97],"top_logprobs":[{"token":"b","logprob":-0.1,"bytes":[98]}]}"#
        #expect(
            try desk.answer().events[1]
                == chunk(
                    delta(#"{"content":"a"}"#, logprobs: #"{"content":[\#(entry)],"refusal":null}"#),
                    object: "chat.completion.chunk"))
    }

    @Test func completionLogprobsCarryOffsetsAndHalfCharacters() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true,"logprobs":1}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        func token(_ id: UInt32) -> SampledToken {
            SampledToken(
                token: TokenID(id), logprob: -0.5, top: [TokenLogprob(token: TokenID(id), logprob: -0.5)])
        }
        desk.jobs.emit(job, [token(97), token(0xC3), token(0xA9)])
        desk.jobs.end(job, .finished(.length))
        let tokens = #"["a","bytes:\\xc3","bytes:\\xa9"]"#
        let tops = #"[{"a":-0.5},{"bytes:\\xc3":-0.5},{"bytes:\\xa9":-0.5}]"#
        #expect(
            try desk.answer().events[0]
                == chunk(
                    text(
                        "aé",
                        logprobs:
                            #"{"tokens":\#(tokens),"token_logprobs":[-0.5,-0.5,-0.5],"top_logprobs":\#(tops),"text_offset":[0,1,2]}"#
                    )))
    }

    @Test func aStopStringIsCutAcrossTokensAndTheJobIsToldWhere() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true,"stop":["END"]}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        for piece in ["one E", "N", "x E", "ND more"] { desk.jobs.emit(job, piece) }
        #expect(desk.jobs.stopped.map(\.outputTokens) == [11])
        // The second piece is held back whole: an event without text tells of its token.
        #expect(
            try desk.answer().events == [
                chunk(text("one ")), chunk(text("")), chunk(text("ENx ")), chunk(text("", reason: "\"stop\"")),
                "[DONE]",
            ])
    }

    @Test func whatWasHeldBackForAStopStringComesAtTheEnd() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true,"stop":"END"}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        desk.jobs.emit(job, "xEN")
        desk.jobs.end(job, .finished(.length))
        #expect(
            try desk.answer().events == [
                chunk(text("x")), chunk(text("EN")), chunk(text("", reason: "\"length\"")), "[DONE]",
            ])
    }

    @Test func halfACharacterIsNeverSent() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        for byte in Array("€".utf8) { desk.jobs.emit(job, [SampledToken(token: TokenID(UInt32(byte)))]) }
        desk.jobs.end(job, .finished(.length))
        #expect(
            try desk.answer().events == [
                chunk(text("")), chunk(text("")), chunk(text("€")), chunk(text("", reason: "\"length\"")), "[DONE]",
            ])
    }

    @Test func aTokenWithoutTextIsAnEventAndAStopTokenIsNone() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true,"stop":"END"}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        desk.jobs.emit(job, "E")
        desk.jobs.emit(job, [SampledToken(token: TinyModel.end)])
        desk.jobs.end(job, .finished(.stop))
        #expect(
            try desk.answer().events == [
                chunk(text("")), chunk(text("E")), chunk(text("", reason: "\"stop\"")), "[DONE]",
            ])
    }

    @Test func anErrorInTheMiddleIsAnEventAndTheStreamStillEnds() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        desk.jobs.emit(job, "x")
        desk.jobs.end(job, .failed(ServingError(.poisoned, "The job stopped two workers.")))
        let answer = try desk.answer()
        #expect(answer.isWhole)
        #expect(
            answer.events == [
                chunk(text("x")),
                #"{"error":{"message":"The job stopped two workers.","type":"server_error","param":null,"code":"request_poisoned"}}"#,
                "[DONE]",
            ])
    }

    @Test func aCancelledJobEndsItsStreamWithAnError() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        desk.jobs.cancel(job.submission.job)
        let events = try desk.answer().events
        #expect(events.count == 2)
        #expect(events[0].contains(#""code":"cancelled""#))
    }

    @Test func silenceIsBrokenByAPing() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        let head = try desk.output()
        desk.loop.advanceTime(by: .seconds(14))
        #expect(try desk.output() == "")
        desk.loop.advanceTime(by: .seconds(1))
        desk.loop.advanceTime(by: .seconds(15))
        desk.jobs.end(job, .finished(.length))
        let answer = try Answer(head + desk.output())
        #expect(answer.body.hasPrefix(": ping\n\n: ping\n\ndata: "))
        #expect(answer.isWhole)
    }

    @Test func aWholeAnswerHasTextUsageAndReason() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "Hi")
        try desk.post("/v1/completions", #"{"prompt":"ab"}"#)
        #expect(
            try desk.answer().body
                == #"{"id":"cmpl-\#(Self.id)","object":"text_completion","created":1700000000,"model":"tiny","choices":["#
                + #"{"index":0,"text":"Hi","logprobs":null,"finish_reason":"length"}],"#
                + #""usage":{"prompt_tokens":2,"completion_tokens":2,"total_tokens":4,"prompt_tokens_details":{"cached_tokens":2}}}"#
        )
        try desk.post("/v1/chat/completions", #"{"messages":[{"role":"user","content":"a"}]}"#)
        let chat = try desk.answer().json
        #expect(chat["object"]?.stringValue == "chat.completion")
        #expect(chat["choices"]?.arrayValue?.first?["message"]?["content"]?.stringValue == "Hi")
        #expect(chat["choices"]?.arrayValue?.first?["message"]?["role"]?.stringValue == "assistant")
    }

    @Test func severalPromptsGetSeveralChoicesEach() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        try desk.post("/v1/completions", #"{"prompt":["a","bb"],"n":2,"echo":true,"seed":1}"#)
        let json = try desk.answer().json
        let choices = json["choices"]?.arrayValue ?? []
        #expect(choices.compactMap { $0["text"]?.stringValue } == ["az", "az", "bbz", "bbz"])
        #expect(choices.compactMap { $0["index"]?.intValue } == [0, 1, 2, 3])
        #expect(json["usage"]?["prompt_tokens"]?.intValue == 3)
        #expect(json["usage"]?["completion_tokens"]?.intValue == 4)
        #expect(json["usage"]?["prompt_tokens_details"]?["cached_tokens"]?.intValue == 4)
        #expect(desk.jobs.all.map(\.submission.sampling.seed) == [1, 2, 1, 2])
    }

    @Test func tokenPromptsAreTakenAsTheyAre() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        try desk.post("/v1/completions", #"{"prompt":[[97,257],[98]],"echo":true}"#)
        let texts = try desk.answer().json["choices"]?.arrayValue?.compactMap { $0["text"]?.stringValue }
        #expect(texts == ["atandemz", "bz"])
        #expect(desk.jobs.all.first?.submission.promptTokens == [TokenID(97), TinyModel.word])
    }

    @Test func echoWithoutOutputRunsNoJob() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","echo":true,"max_tokens":0}"#)
        let json = try desk.answer().json
        #expect(json["choices"]?.arrayValue?.first?["text"]?.stringValue == "ab")
        #expect(json["usage"]?["completion_tokens"]?.intValue == 0)
        #expect(desk.jobs.all.isEmpty)
    }

    @Test func aClientThatAttachesReadsTheSameStreamFromItsOffset() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        desk.jobs.emit(job, "a€b")
        _ = try desk.output()
        try desk.reconnect()
        try desk.get("/v1/jobs/\(job.submission.job)/events?offset=2&include_usage=true")
        desk.jobs.emit(job, "c")
        desk.jobs.end(job, .finished(.length))
        let answer = try desk.answer()
        let usage =
            #","usage":{"prompt_tokens":2,"completion_tokens":6,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":2}}"#
        #expect(
            answer.events == [
                chunk(text("€b"), #","usage":null"#), chunk(text("c"), #","usage":null"#),
                chunk(text("", reason: "\"length\""), #","usage":null"#), chunk("", usage), "[DONE]",
            ])
    }

    @Test func rawEventsCarryTokensAndOffsets() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "abc")
        try desk.post("/v1/completions", #"{"prompt":"ab"}"#)
        let id = try #require(desk.jobs.all.first).submission.job
        _ = try desk.output()
        try desk.get("/v1/jobs/\(id)/events?offset=1&format=raw")
        let events = try desk.answer().events
        #expect(events.count == 3)
        #expect(events[0] == #"{"offset":1,"tokens":[98,99],"text":"bc"}"#)
        #expect(events[1].hasPrefix(#"{"finish_reason":"length","usage":"#))
    }

    @Test func anAttachedStreamEndsItsTextWhereTheRequestsOwnStopTokensDo() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stop_token_ids":[99],"skip_special_tokens":false}"#)
        let job = try #require(desk.jobs.all.first)
        #expect(job.request.stopTokens == [TokenID(99), TinyModel.end])
        #expect(!job.request.skipsSpecialTokens)
        desk.jobs.admit(job)
        desk.jobs.emit(job, "abc")
        desk.jobs.end(job, .finished(.stop))
        let whole = try desk.answer().json["choices"]?.arrayValue?.first?["text"]?.stringValue
        #expect(whole == "ab")
        try desk.get("/v1/jobs/\(job.submission.job)/events")
        #expect(try desk.answer().events == [chunk(text("ab")), chunk(text("", reason: "\"stop\"")), "[DONE]"])
    }

    @Test func anAttachedChatKeepsItsShapeAndItsStopStrings() throws {
        let desk = try Desk()
        try desk.post(
            "/v1/chat/completions", #"{"messages":[{"role":"user","content":"a"}],"stop":"X"}"#,
            headers: ["x-tandem-on-disconnect: continue"])
        let job = try #require(desk.jobs.all.first)
        #expect(job.request.detached)
        #expect(job.request.stopStrings == ["X"])
        desk.jobs.admit(job)
        desk.jobs.emit(job, "abXcd")
        try desk.reconnect()
        try desk.get("/v1/jobs/\(job.submission.job)/events")
        let events = try desk.answer().events
        #expect(events.count == 4)
        #expect(events[0].contains(#""delta":{"role":"assistant","content":""}"#))
        #expect(events[1].contains(#""delta":{"content":"ab"}"#))
        #expect(events[2].contains(#""finish_reason":"stop""#))
    }
}
