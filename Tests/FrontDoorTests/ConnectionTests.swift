import NIOCore
import NIOEmbedded
import ServingTypes
import Testing

@testable import FrontDoor

/// HTTP/1.1 as a connection: limits, pipelining, keep-alive, half-closing, time.
@Suite struct ConnectionTests {
    private let simple = "GET /livez HTTP/1.1\r\nhost: x\r\n\r\n"

    @Test func bytesMayComeOneByOne() throws {
        let desk = try Desk()
        for byte in Array(simple.utf8) { try desk.send(bytes: [byte]) }
        #expect(try desk.answer().status == 200)
    }

    @Test func pipelinedRequestsAreAnsweredInOrder() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        let body = #"{"prompt":"ab"}"#
        let post =
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: \(body.utf8.count)\r\n\r\n\(body)"
        try desk.send(simple + post + "GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n" + simple)
        var rest = try desk.output()
        var statuses: [Int] = []
        while !rest.isEmpty {
            let answer = try Answer(rest)
            statuses.append(answer.status)
            rest = answer.rest
        }
        #expect(statuses == [200, 200, 404, 200])
        #expect(desk.channel.isActive)
    }

    @Test func aPipelinedRequestWaitsForTheStreamBeforeIt() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        try desk.send(simple)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        let head = try desk.output()
        #expect(!head.contains("\"ok\""))
        desk.jobs.end(job, .finished(.length))
        let stream = try Answer(head + desk.output())
        #expect(stream.isWhole)
        #expect(try Answer(stream.rest).status == 200)
    }

    @Test func manyPipelinedRequestsNeedNoDeepStack() throws {
        let desk = try Desk()
        try desk.send(String(repeating: simple, count: 2000))
        let text = try desk.output()
        #expect(text.components("HTTP/1.1 200 OK").count == 2001)
    }

    @Test func chunkedBodiesAreRead() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        try desk.send(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
                + "5\r\n{\"pro\r\n9\r\nmpt\":\"a\"}\r\n0\r\n\r\n")
        #expect(try desk.answer().status == 200)
    }

    @Test func expectContinueIsAnsweredBeforeTheBody() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        let body = #"{"prompt":"ab"}"#
        try desk.send(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: \(body.utf8.count)\r\n\r\n"
        )
        #expect(try desk.output() == "HTTP/1.1 100 Continue\r\n\r\n")
        try desk.send(body)
        #expect(try desk.answer().status == 200)
    }

    @Test func expectContinueIsNotAnsweredWhereTheRequestIsRefused() throws {
        let desk = try Desk()
        try desk.send(
            "POST /nowhere HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 10\r\n\r\n")
        let answer = try desk.answer()
        #expect(answer.status == 404)
        #expect(answer["connection"] == "close")
    }

    struct Bad: CustomTestStringConvertible {
        var request: String
        var status: Int
        var testDescription: String { String(request.prefix(60)) }
    }

    static let refused: [Bad] = [
        Bad(request: "GET /\(String(repeating: "a", count: 9000)) HTTP/1.1\r\nhost: x\r\n\r\n", status: 414),
        Bad(request: "GET / HTTP/1.1\r\nhost: x\r\nx: \(String(repeating: "a", count: 9000))\r\n\r\n", status: 431),
        Bad(
            request: "GET / HTTP/1.1\r\nhost: x\r\n"
                + (0..<3).map { "x\($0): \(String(repeating: "a", count: 7000))\r\n" }.joined() + "\r\n", status: 431),
        Bad(
            request: "GET / HTTP/1.1\r\nhost: x\r\n" + (0..<101).map { "x\($0): a\r\n" }.joined() + "\r\n", status: 431),
        Bad(
            request:
                "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            status: 400),
        Bad(
            request: "POST /tokenize HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nabcdef",
            status: 400),
        Bad(request: "GET /livez HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n", status: 400),
        Bad(request: "GET /livez HTTP/1.1\r\nhost : x\r\n\r\n", status: 400),
        Bad(request: "GET /livez HTTP/1.1\r\n\r\n", status: 400),
        Bad(request: "GET /livez HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", status: 400),
        Bad(request: "hello there\r\n\r\n", status: 400),
        Bad(request: "POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", status: 400),
    ]

    @Test(arguments: refused) func whatIsNoLawfulRequestIsRefusedAndTheConnectionCloses(bad: Bad) throws {
        let desk = try Desk()
        try desk.send(bad.request)
        let answer = try desk.answer()
        #expect(answer.status == bad.status)
        #expect(answer["connection"] == "close")
        #expect(answer.error?["message"]?.stringValue?.isEmpty == false)
        #expect(answer.rest == "")
    }

    @Test(arguments: refused) func whatFollowsABrokenRequestDoesNotCostItsAnswer(bad: Bad) throws {
        let desk = try Desk()
        try desk.sendInOneTurn(bad.request + String(repeating: "b", count: 3000), cutAt: 700)
        let answer = try desk.answer()
        #expect(answer.status == bad.status)
        #expect(answer.rest == "")
    }

    @Test func aGoodRequestBeforeABrokenOneIsStillAnswered() throws {
        let desk = try Desk()
        try desk.send(simple + "nonsense\r\n\r\n")
        let first = try desk.answer()
        #expect(first.status == 200)
        #expect(try Answer(first.rest).status == 400)
    }

    @Test func aDeclaredBodyOverTheCapIsRefusedUnread() throws {
        let desk = try Desk()
        try desk.send("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999\r\n\r\n{")
        let answer = try desk.answer()
        #expect(answer.status == 413)
        #expect(
            answer.error?["message"]?.stringValue
                == "The body has 99999999 bytes; the limit is 8388608 bytes.")
        #expect(answer["connection"] == "close")
    }

    @Test func aChunkedBodyOverTheCapIsReadALittleFurtherAndRefused() throws {
        let start = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        let chunk = "40\r\n\(String(repeating: "a", count: 64))\r\n"
        let desk = try Desk { $0.limits.bodyBytesMax = 100 }
        try desk.send(start + chunk + chunk)
        #expect(try desk.output() == "")
        try desk.send("0\r\n\r\n")
        let short = try desk.answer()
        #expect(short.status == 413)
        #expect(short["connection"] == nil)
        try desk.send(start + String(repeating: chunk, count: 1100))
        let long = try desk.answer()
        #expect(long.status == 413)
        #expect(long["connection"] == "close")
        #expect(long.error?["message"]?.stringValue == "The body is too long; the limit is 100 bytes.")
    }

    @Test func aShortRefusedBodyIsReadSoThatTheConnectionStays() throws {
        let desk = try Desk()
        try desk.post("/nowhere", "{}")
        let answer = try desk.answer()
        #expect(answer.status == 404)
        #expect(answer["connection"] == nil)
        try desk.get("/livez")
        #expect(try desk.answer().status == 200)
    }

    @Test func connectionCloseAndHTTP10AreHonoured() throws {
        for request in ["GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", "GET /livez HTTP/1.0\r\n\r\n"] {
            let desk = try Desk()
            try desk.send(request)
            let answer = try desk.answer()
            #expect(answer.status == 200)
            #expect(answer["connection"] == "close")
            #expect(answer["content-length"] == "15")
        }
    }

    @Test func anUpgradeIsIgnored() throws {
        let desk = try Desk()
        try desk.send(
            "GET /livez HTTP/1.1\r\nhost: x\r\nconnection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAAA\r\n\r\n"
        )
        let answer = try desk.answer()
        #expect(answer.status == 200)
        #expect(answer["connection"] == "close")
    }

    // MARK: Requests and ids

    @Test func theRequestIdComesBackFromHeaderOrBody() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        try desk.get("/livez", headers: ["x-request-id: abc-1"])
        #expect(try desk.answer()["x-request-id"] == "abc-1")
        try desk.post("/v1/completions", #"{"prompt":"a","request_id":"from-body"}"#)
        #expect(try desk.answer()["x-request-id"] == "from-body")
        try desk.get("/livez", headers: ["x-request-id: \(String(repeating: "a", count: 200))"])
        #expect(try desk.answer()["x-request-id"]?.hasPrefix("req-") == true)
    }

    @Test func ignoredFieldsAreListed() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        try desk.post("/v1/completions", #"{"prompt":"a","user":"u","metadata":{},"top_a":0.2,"evil\r\nx: y":1}"#)
        #expect(try desk.answer()["x-tandem-ignored-fields"] == "metadata, top_a")
    }

    // MARK: Clients that leave

    @Test func aClosedConnectionLeavesItsJobInEveryPhase() throws {
        for phase in 0...2 {
            let desk = try Desk()
            try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
            let job = try #require(desk.jobs.all.first)
            if phase > 0 { desk.jobs.admit(job) }
            if phase > 1 { desk.jobs.emit(job, "x") }
            try desk.channel.close().wait()
            desk.loop.run()
            #expect(desk.jobs.left == [job.submission.job], "phase \(phase)")
            #expect(desk.door.generations == 0)
        }
    }

    @Test func aDetachedJobWithStopStringsIsFollowedAfterItsClientLeft() throws {
        let desk = try Desk()
        try desk.post(
            "/v1/completions", #"{"prompt":"ab","stop":"X"}"#, headers: ["x-tandem-on-disconnect: continue"])
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        try desk.channel.close().wait()
        desk.loop.run()
        #expect(desk.jobs.left.isEmpty)
        desk.jobs.emit(job, "abX")
        #expect(desk.jobs.stopped.map(\.outputTokens) == [3])
    }

    @Test func aHalfClosedConnectionIsProbedAndStillAnswered() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab"}"#)
        let job = try #require(desk.jobs.all.first)
        desk.channel.pipeline.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
        #expect(try desk.output() == "HTTP/1.1 102 Processing\r\n\r\n")
        #expect(desk.jobs.left.isEmpty)
        desk.jobs.admit(job)
        desk.jobs.emit(job, "z")
        desk.jobs.end(job, .finished(.length))
        #expect(try desk.answer().status == 200)
        desk.loop.run()
        #expect(!desk.channel.isActive)
    }

    @Test func aHalfClosedStreamIsProbedWithAComment() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        let head = try desk.output()
        desk.channel.pipeline.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
        #expect(try Answer(head + desk.output()).body == ": ping\n\n")
    }

    @Test func aRequestThatBreaksOffIsDropped() throws {
        let desk = try Desk()
        try desk.send("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{")
        desk.channel.pipeline.fireUserInboundEventTriggered(ChannelEvent.inputClosed)
        desk.loop.run()
        #expect(!desk.channel.isActive)
        #expect(desk.jobs.all.isEmpty)
    }

    // MARK: Time

    @Test func aSlowHeaderIsRefused() throws {
        let desk = try Desk()
        try desk.send("GET /livez HT")
        desk.loop.advanceTime(by: .seconds(10))
        #expect(try desk.answer().status == 408)
        desk.loop.advanceTime(by: .seconds(3))
        #expect(!desk.channel.isActive)
    }

    @Test func aSilentConnectionIsClosedWithoutAWord() throws {
        let desk = try Desk()
        desk.loop.advanceTime(by: .seconds(10))
        #expect(try desk.output() == "")
        #expect(!desk.channel.isActive)
    }

    @Test func aSlowBodyIsRefused() throws {
        let desk = try Desk()
        try desk.send("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 90000\r\n\r\n{")
        desk.loop.advanceTime(by: .seconds(10))
        let answer = try desk.answer()
        #expect(answer.status == 408)
        #expect(answer.error?["message"]?.stringValue == "The request's body came too slowly.")
    }

    @Test func aBodyThatComesSteadilyMayTakeItsTime() throws {
        let desk = try Desk()
        try desk.send("POST /nowhere HTTP/1.1\r\nhost: x\r\ncontent-length: 60000\r\n\r\n")
        for _ in 0..<6 {
            try desk.send(String(repeating: "a", count: 10_000))
            desk.loop.advanceTime(by: .seconds(5))
        }
        #expect(try desk.answer().status == 404)
    }

    @Test func anIdleConnectionIsClosedAfterTwoMinutes() throws {
        let desk = try Desk()
        try desk.send(simple)
        _ = try desk.output()
        desk.loop.advanceTime(by: .seconds(119))
        #expect(desk.channel.isActive)
        desk.loop.advanceTime(by: .seconds(1))
        #expect(!desk.channel.isActive)
    }

    @Test func aWaitForTheFirstTokenIsNoIdleness() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab"}"#)
        desk.loop.advanceTime(by: .seconds(500))
        #expect(desk.channel.isActive)
        #expect(desk.jobs.left.isEmpty)
    }

    // MARK: Slow readers

    @Test func aSlowReaderIsBufferedThenGivenUp() throws {
        let desk = try Desk { $0.limits.streamBytesBufferedMax = 2000 }
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true,"max_tokens":150}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        _ = try desk.output()
        desk.channel.isWritable = false
        for _ in 0..<100 { desk.jobs.emit(job, "x") }
        #expect(try desk.output() == "")
        desk.loop.advanceTime(by: .seconds(29))
        #expect(desk.jobs.left.isEmpty)
        desk.loop.advanceTime(by: .seconds(2))
        #expect(desk.jobs.left == [job.submission.job])
        #expect(!desk.channel.isActive)
    }

    @Test func whatASlowReaderMissedComesTogetherWhenItReadsAgain() throws {
        let desk = try Desk { $0.limits.streamBytesBufferedMax = 500 }
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true,"max_tokens":150}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        let head = try desk.output()
        desk.channel.isWritable = false
        for _ in 0..<100 { desk.jobs.emit(job, "x") }
        desk.jobs.end(job, .finished(.length))
        desk.channel.isWritable = true
        desk.channel.pipeline.fireChannelWritabilityChanged()
        let answer = try Answer(head + desk.output())
        #expect(answer.isWhole)
        #expect(answer.events.last == "[DONE]")
        #expect(answer.events.count < 20)
        #expect(answer.body.filter { $0 == "x" }.count >= 100)
    }

    // MARK: Keys

    private func guarded() throws -> Desk {
        try Desk { configuration in
            configuration.keys = [
                APIKey(name: "a", plain: "key-a", tenant: TenantID("alice")),
                APIKey(name: "b", plain: "key-b", tenant: TenantID("bob"), scopes: [.metrics]),
                APIKey(name: "root", plain: "key-root", tenant: TenantID("ops"), scopes: [.admin]),
            ]
        }
    }

    @Test func everyRouteButHealthWantsAKey() throws {
        let desk = try guarded()
        for path in ["/v1/models", "/v1/jobs", "/admin/cluster", "/metrics", "/version", "/ping", "/v1/embeddings"] {
            try desk.get(path)
            let answer = try desk.answer()
            #expect(answer.status == 401, "\(path)")
            #expect(answer.error?["type"]?.stringValue == "authentication_error")
            #expect(answer.error?["code"]?.stringValue == "invalid_api_key")
        }
        for path in ["/v1/completions", "/tokenize", "/detokenize", "/admin/drain"] {
            try desk.post(path, "{}", headers: ["authorization: Bearer wrong"])
            #expect(try desk.answer().status == 401, "\(path)")
        }
        for path in ["/health", "/livez", "/readyz", "/live", "/ready"] {
            try desk.get(path)
            #expect(try desk.answer().status == 200, "\(path)")
        }
    }

    @Test func whoGuessesKeysHasToWaitAndWhoHasOneDoesNot() throws {
        let desk = try guarded()
        func ask(_ key: String) throws -> Answer {
            try desk.get("/v1/models", headers: ["authorization: Bearer \(key)"])
            return try desk.answer()
        }
        for guess in 0..<KeyFailures.Limits.failuresMax { #expect(try ask("guess-\(guess)").status == 401) }
        let refused = try ask("guess")
        #expect(refused.status == 429 && refused["retry-after"] == "60", "\(refused)")
        try desk.get("/livez")
        #expect(try desk.answer().status == 200)
        #expect(try ask("key-a").status == 429, "the key is not looked at")
        desk.loop.advanceTime(by: KeyFailures.Limits.window)
        try desk.reconnect()
        #expect(try ask("key-a").status == 200)
        for guess in 0..<(2 * KeyFailures.Limits.failuresMax) { #expect(try ask("more-\(guess)").status == 401) }
        #expect(try ask("key-a").status == 200)
    }

    @Test func scopesAndTenantsHold() throws {
        let desk = try guarded()
        desk.jobs.answerEverything(with: "z")
        try desk.post(
            "/v1/completions", #"{"prompt":"a"}"#,
            headers: ["authorization: Bearer key-a", "x-tandem-tenant: mallory"])
        #expect(try desk.answer().status == 200)
        let job = try #require(desk.jobs.all.first)
        #expect(job.submission.tenant == TenantID("alice"))
        try desk.get("/admin/cluster", headers: ["authorization: Bearer key-a"])
        #expect(try desk.answer().status == 403)
        try desk.get("/metrics", headers: ["authorization: bearer key-b"])
        #expect(try desk.answer().status == 200)
        try desk.get("/v1/models", headers: ["authorization: Bearer key-b"])
        #expect(try desk.answer().status == 403)
        try desk.get("/admin/cluster", headers: ["authorization: Bearer key-root"])
        #expect(try desk.answer().status == 200)
        try desk.get("/v1/jobs/\(job.submission.job)", headers: ["authorization: Bearer key-root"])
        #expect(try desk.answer().status == 200)
    }

    @Test func aTenantSeesNoOtherTenantsJobs() throws {
        let desk = try Desk { configuration in
            configuration.keys = [
                APIKey(name: "a", plain: "key-a", tenant: TenantID("alice")),
                APIKey(name: "b", plain: "key-b", tenant: TenantID("bob")),
            ]
        }
        desk.jobs.answerEverything(with: "z")
        try desk.post("/v1/completions", #"{"prompt":"a"}"#, headers: ["authorization: Bearer key-a"])
        _ = try desk.output()
        let id = try #require(desk.jobs.all.first).submission.job
        for path in ["/v1/jobs/\(id)", "/v1/jobs/\(id)/events"] {
            try desk.get(path, headers: ["authorization: Bearer key-b"])
            #expect(try desk.answer().status == 404, "\(path)")
        }
        try desk.get("/v1/jobs", headers: ["authorization: Bearer key-b"])
        #expect(try desk.answer().json["data"]?.arrayValue?.isEmpty == true)
    }

    @Test func withoutKeysTheTenantHeaderCounts() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "z")
        try desk.post("/v1/completions", #"{"prompt":"a"}"#, headers: ["x-tandem-tenant: team-1"])
        _ = try desk.output()
        try desk.post("/v1/completions", #"{"prompt":"a"}"#)
        _ = try desk.output()
        #expect(desk.jobs.all.map(\.submission.tenant.name) == ["team-1", "default"])
        try desk.get("/v1/models", headers: ["x-tandem-tenant: a b"])
        #expect(try desk.answer().status == 400)
    }

    @Test func aHashedKeyIsTheKeyItself() throws {
        // SHA-256 of "abc", FIPS 180-2 appendix B.1.
        let digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        let hashed = try #require(APIKey(name: "k", sha256: digest, tenant: TenantID("t")))
        #expect(hashed.sha256 == APIKey(name: "k", plain: "abc", tenant: TenantID("t")).sha256)
        #expect(APIKey(name: "k", sha256: "zz", tenant: TenantID("t")) == nil)
    }

    // MARK: Idempotency

    @Test func aRepeatedKeyJoinsTheSameJobAndAnotherBodyConflicts() throws {
        let desk = try Desk()
        desk.jobs.answerEverything(with: "same")
        let key = ["idempotency-key: k 1"]
        try desk.post("/v1/completions", #"{"prompt":"a","n":2}"#, headers: key)
        let first = try desk.answer()
        try desk.post("/v1/completions", #"{"prompt":"a","n":2}"#, headers: key)
        let second = try desk.answer()
        #expect(first.body == second.body)
        #expect(desk.jobs.all.count == 2)
        try desk.post("/v1/completions", #"{"prompt":"b"}"#, headers: key)
        let conflict = try desk.answer()
        #expect(conflict.status == 409)
        #expect(conflict["x-should-retry"] == "false")
        try desk.post("/v1/completions", #"{"prompt":"b"}"#, headers: ["idempotency-key: \u{7F}"])
        #expect(try desk.answer().status == 400)
    }

    // MARK: Draining

    @Test func aDrainingDoorFinishesItsStreamsAndRefusesNewOnes() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        let head = try desk.output()
        var isDrained = false
        desk.door.drain().assumeIsolated().whenSuccess { isDrained = true }
        let streaming = desk.channel
        try desk.reconnect()
        try desk.get("/readyz")
        #expect(try desk.answer().status == 503)
        try desk.reconnect()
        try desk.post("/v1/completions", #"{"prompt":"ab"}"#)
        let refused = try desk.answer()
        #expect(refused.status == 503)
        #expect(refused["retry-after"] == "5")
        #expect(refused.error?["code"]?.stringValue == "draining")
        desk.loop.run()
        #expect(!isDrained)
        desk.jobs.end(job, .finished(.length))
        desk.loop.run()
        #expect(isDrained)
        var bytes: [UInt8] = []
        while case .byteBuffer(let buffer)? = try streaming.readOutbound(as: IOData.self) {
            bytes += buffer.readableBytesView
        }
        #expect(try Answer(head + String(decoding: bytes, as: UTF8.self)).isWhole)
    }

    @Test func connectionsAreCountedPerAddressAndInAll() {
        var limits = FrontDoorLimits()
        limits.connectionsMax = 3
        limits.connectionsPerAddressMax = 2
        var book = ConnectionBook(limits: limits)
        let admitted = ["a", "a", "a", "b", "c"].map { book.admit($0) }
        #expect(admitted == [true, true, false, true, false])
        book.leave("a")
        let after = ["c", "b"].map { book.admit($0) }
        #expect(after == [true, false])
        #expect(book.count == 3)
    }
}
