import CNGHTTP2
import ServingTypes
import Testing

@testable import HTTPSession

@Suite struct SessionTests {
    @Test func aRequestArrivesWithItsHeadAndIsAnswered() throws {
        let pair = try Pair()
        let stream = pair.client.request(
            "/v1/models?x=1", headers: [("authorization", "Bearer k"), ("x-a", "1"), ("x-a", "2")])
        #expect(
            summary(pair.exchange()) == [
                "request 1 GET test/v1/models?x=1 [authorization=Bearer k,x-a=1,x-a=2] end"
            ])
        pair.server.respond(stream, status: 200, headers: [("Content-Type", "application/json")])
        #expect(pair.server.write(stream, [1, 2, 3]) == .ok)
        pair.server.finish(stream)
        #expect(summary(pair.exchange()) == ["closed 1"])
        let response = try #require(pair.client.responses[stream])
        #expect(response.status == "200" && response.body == [1, 2, 3] && response.isEnded)
        #expect(response.headers.map(\.name) == ["content-type"])
        #expect(response.resetCode == nil)
        #expect(pair.server.openStreamCount == 0 && pair.server.unsentBytes == 0)
    }

    @Test func aHostFieldStandsInForAMissingAuthority() throws {
        let server = try HTTP2ServerSession()
        // Literal without indexing, name index 38: host.
        let events = server.receive(Raw.opening() + Raw.headers(1, [0x82, 0x86, 0x84, 0x0F, 0x17, 0x01, 0x79]))
        #expect(summary(events) == ["request 1 GET y/ [host=y] end"])
    }

    @Test func aBodyWaitsForTheDriverToConsume() throws {
        var limits = HTTP2Limits()
        limits.streamWindowBytes = 100_000
        let pair = try Pair(limits)
        pair.exchange()
        let body = (0..<250_000).map { UInt8(truncatingIfNeeded: $0 &* 13) }
        let stream = pair.client.request(method: "POST", body: body)
        var received: [UInt8] = []
        var isEnded = false
        func take(_ events: [HTTP2Event]) {
            for case .data(_, let bytes, let end) in events {
                received += bytes
                isEnded = isEnded || end
            }
        }
        take(pair.exchange())
        #expect(received.count == 100_000 && !isEnded)
        // More than was received frees no more than that.
        pair.server.consume(stream, 1 << 30)
        take(pair.exchange())
        #expect(received.count == 200_000)
        pair.server.consume(stream, -5)
        take(pair.exchange())
        #expect(received.count == 200_000)
        pair.server.consume(stream, 100_000)
        take(pair.exchange())
        #expect(received == body && isEnded)
    }

    @Test func bytesOfStreamsThatDiedUnreadAreGivenBackToTheConnection() throws {
        var limits = HTTP2Limits()
        limits.connectionWindowBytes = 100_000
        let pair = try Pair(limits)
        pair.exchange()
        for round in 0..<10 {
            let stream = pair.client.request(
                method: "POST", body: [UInt8](repeating: 1, count: 60_000), keepsOpen: true)
            let bytes = pair.exchange().reduce(0) { sum, event in
                if case .data(stream, let bytes, _) = event { sum + bytes.count } else { sum }
            }
            #expect(bytes == 60_000, "round \(round)")
            pair.client.reset(stream)
            #expect(summary(pair.exchange()) == ["reset \(stream) CANCEL"])
        }
    }

    @Test func everyTokenLeavesInTheTurnThatWroteIt() throws {
        let pair = try Pair()
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(stream, status: 200)
        pair.exchange()
        for size in 1...20 {
            #expect(pair.server.write(stream, [UInt8](repeating: 9, count: size)) == .ok)
            pair.exchange()
        }
        #expect(pair.client.responses[stream]?.pieces == Array(1...20))
        pair.server.finish(stream)
        #expect(summary(pair.exchange()) == ["closed \(stream)"])
        #expect(pair.server.write(stream, [1]) == .closed)
    }

    @Test func bytesWrittenBeforeTheHeadFollowIt() throws {
        let pair = try Pair()
        let stream = pair.client.request()
        pair.exchange()
        #expect(pair.server.write(stream, [1, 2]) == .ok)
        pair.exchange()
        #expect(pair.client.responses[stream] == nil)
        pair.server.respond(stream, status: 200, endStream: true)
        pair.exchange()
        #expect(pair.client.responses[stream]?.body == [1, 2])
        #expect(pair.client.responses[stream]?.isEnded == true)
    }

    @Test func aStreamPausesAtItsLimitAndWakesBelowHalf() throws {
        let pair = try Pair(window: 70_000)
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(stream, status: 200)
        #expect(pair.server.write(stream, [UInt8](repeating: 1, count: 65_535)) == .ok)
        #expect(pair.server.write(stream, [1]) == .paused)
        #expect(summary(pair.exchange()).contains("writable \(stream)"))
        #expect(pair.server.unsentBytes == 0)
        #expect(pair.client.responses[stream]?.body.count == 65_536)
    }

    @Test func manyStreamsPauseAtTheConnectionsLimit() throws {
        var limits = HTTP2Limits()
        limits.connectionOutputBytesMax = 100_000
        let pair = try Pair(limits, window: 65_535)
        let streams = (0..<5).map { _ in pair.client.request() }
        pair.exchange()
        for stream in streams { pair.server.respond(stream, status: 200) }
        let states = streams.map { pair.server.write($0, [UInt8](repeating: 1, count: 25_000)) }
        #expect(states == [.ok, .ok, .ok, .paused, .paused])
        #expect(summary(pair.exchange()) == ["writable \(streams[3])", "writable \(streams[4])"])
    }

    @Test func anEndAfterAPauseBringsNoWakeUp() throws {
        let pair = try Pair()
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(stream, status: 200)
        #expect(pair.server.write(stream, [UInt8](repeating: 1, count: 300_000)) == .paused)
        pair.server.finish(stream)
        #expect(summary(pair.exchange()) == ["closed \(stream)"])
        #expect(pair.client.responses[stream]?.body.count == 300_000)
    }

    @Test func aClientsResetIsToldAndDropsItsOutput() throws {
        let pair = try Pair(window: 10, reads: false)
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(stream, status: 200)
        _ = pair.server.write(stream, [UInt8](repeating: 1, count: 5000))
        pair.exchange()
        #expect(pair.server.unsentBytes == 4990)
        pair.client.reset(stream)
        #expect(summary(pair.exchange()) == ["reset \(stream) CANCEL"])
        #expect(pair.server.unsentBytes == 0 && pair.server.openStreamCount == 0)
    }

    @Test func theDriversResetReachesTheClientAndBringsNoEvent() throws {
        let pair = try Pair()
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(stream, status: 200)
        _ = pair.server.write(stream, [1])
        pair.server.reset(stream, .internalError)
        #expect(pair.server.write(stream, [2]) == .closed)
        #expect(summary(pair.exchange()).isEmpty)
        #expect(pair.client.responses[stream]?.resetCode == 2)
        #expect(pair.server.openStreamCount == 0)
    }

    @Test func anAnswerBeforeTheEndOfTheRequestStopsItWithoutBlame() throws {
        let pair = try Pair()
        let stream = pair.client.request(method: "POST", body: [1], keepsOpen: true)
        pair.exchange()
        pair.server.respond(stream, status: 413, endStream: true)
        #expect(summary(pair.exchange()) == ["closed \(stream)"])
        #expect(pair.client.responses[stream]?.status == "413")
        #expect(pair.client.responses[stream]?.resetCode == 0)
    }

    @Test func anInterimResponseIsFollowedByTheFinalOne() throws {
        let pair = try Pair()
        let stream = pair.client.request(method: "POST", body: [1], keepsOpen: true)
        pair.exchange()
        pair.server.respond(stream, status: 100)
        pair.server.respond(stream, status: 204, endStream: true)
        pair.exchange()
        #expect(pair.client.responses[stream]?.status == "204")
    }

    @Test func trailersEndABodyAndAreNotSeen() throws {
        let pair = try Pair()
        pair.exchange()
        let head = Raw.headers(1, Raw.post, flags: 0x4)
        let body = Raw.frame(NGHTTP2_DATA, stream: 1, [5, 6])
        // Literal field a: b.
        let trailer = Raw.headers(1, [0x00, 0x01, 0x61, 0x01, 0x62], flags: 0x5)
        let server = try HTTP2ServerSession()
        #expect(
            summary(server.receive(Raw.opening() + head + body + trailer)) == [
                "request 1 POST x/ []", "data 1 2 161 end",
            ])
    }

    @Test func connectionFieldsAndMalformedOnesAreLeftOut() throws {
        let pair = try Pair()
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(
            stream, status: 200,
            headers: [
                ("Connection", "close"), ("Transfer-Encoding", "chunked"), ("x-bad", "a\r\nb"), ("x bad", "1"),
                (":status", "500"), ("", "1"), ("X-Good", "yes"),
            ], endStream: true)
        pair.exchange()
        #expect(pair.client.responses[stream]?.status == "200")
        #expect(pair.client.responses[stream]?.headers.map { "\($0.name)=\($0.value)" } == ["x-good=yes"])
    }

    @Test func callsForUnknownStreamsAreIgnored() throws {
        let pair = try Pair()
        pair.exchange()
        for stream: Int32 in [-1, 0, 1, 2, .max] {
            pair.server.respond(stream, status: 200)
            #expect(pair.server.write(stream, [1]) == .closed)
            pair.server.finish(stream)
            pair.server.reset(stream, .cancel)
            pair.server.consume(stream, 10)
        }
        #expect(summary(pair.exchange()).isEmpty)
        #expect(!pair.server.wantsToClose)
    }

    @Test func aShutdownLetsOpenStreamsFinishAndThenCloses() throws {
        let pair = try Pair()
        let stream = pair.client.request()
        pair.exchange()
        pair.server.shutdown()
        pair.server.shutdown()
        pair.exchange()
        #expect(pair.client.goAwayCode == 0)
        #expect(!pair.server.wantsToClose)
        pair.server.respond(stream, status: 200, endStream: true)
        #expect(summary(pair.exchange()) == ["closed \(stream)"])
        #expect(pair.client.responses[stream]?.isEnded == true)
        #expect(pair.server.wantsToClose)
    }

    @Test func aClientsGoAwayIsTold() throws {
        let server = try HTTP2ServerSession()
        let goAway = Raw.frame(NGHTTP2_GOAWAY, [0, 0, 0, 0, 0, 0, 0, 0])
        #expect(summary(server.receive(Raw.opening() + goAway)) == ["goaway 0 NO_ERROR"])
    }

    @Test func bytesToSendKeepsToItsBoundByOneFrame() throws {
        let pair = try Pair()
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(stream, status: 200)
        _ = pair.server.write(stream, [UInt8](repeating: 1, count: 400_000))
        pair.server.finish(stream)
        var sizes: [Int] = []
        while case let bytes = pair.server.bytesToSend(upTo: 40_000), !bytes.isEmpty {
            sizes.append(bytes.count)
            pair.client.receive(bytes)
        }
        #expect(sizes.max().map { $0 < 40_000 + 16_384 + 9 } == true)
        #expect(pair.client.responses[stream]?.body.count == 400_000)
    }
}
