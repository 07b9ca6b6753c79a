import CNGHTTP2
import ServingTypes
import Testing

@testable import HTTPSession

/// One test per row of reliability.md §3.1, and one per option: each value takes effect.
@Suite struct AttackTests {
    private let calm = HTTP2ErrorCode.enhanceYourCalm.value

    /// What a client that only listens makes of the server's bytes.
    private func goAwayCode(_ server: HTTP2ServerSession) throws -> UInt32? {
        let client = try TestClient()
        _ = client.bytesToSend()
        client.receive(server.drain())
        return client.goAwayCode
    }

    @Test func theServersSettingsAreAnnounced() throws {
        let pair = try Pair()
        pair.exchange()
        #expect(pair.client.serverSetting(NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS) == 128)
        #expect(pair.client.serverSetting(NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE) == 16_384)
        #expect(pair.client.serverSetting(NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE) == 262_144)
    }

    @Test func streamsBeyondTheLimitAreRefusedWithoutAnEvent() throws {
        let server = try HTTP2ServerSession()
        _ = server.receive(Raw.opening())
        _ = server.drain()
        // The limit binds once the client has acknowledged it.
        _ = server.receive(Raw.frame(NGHTTP2_SETTINGS, flags: 1))
        var bytes: [UInt8] = []
        for number in 0..<130 { bytes += Raw.headers(UInt32(number * 2 + 1)) }
        let events = summary(server.receive(bytes))
        #expect(events.count == 128 && events.allSatisfy { $0.hasPrefix("request") })
        #expect(server.openStreamCount == 128)
    }

    @Test func aRapidResetIsStoppedAfterItsBurst() throws {
        func state(resets: Int) throws -> (Bool, UInt32?) {
            let server = try HTTP2ServerSession()
            _ = server.receive(Raw.opening())
            for number in 0..<resets {
                let stream = UInt32(number * 2 + 1)
                _ = server.receive(Raw.headers(stream) + Raw.reset(stream))
            }
            return (try goAwayCode(server) != nil, nil)
        }
        #expect(try state(resets: 100).0 == false)
        // Ten tokens a second come back while the test runs.
        #expect(try state(resets: 1000).0)
    }

    @Test func continuationsAreLimitedToEight() throws {
        func isAccepted(_ count: Int) throws -> Bool {
            let server = try HTTP2ServerSession()
            var bytes = Raw.opening() + Raw.headers(1, Raw.get, flags: 0x1)
            for number in 1...count {
                bytes += Raw.frame(NGHTTP2_CONTINUATION, flags: number == count ? 0x4 : 0, stream: 1)
            }
            return summary(server.receive(bytes)).contains { $0.hasPrefix("request") }
        }
        #expect(try isAccepted(8))
        #expect(try !isAccepted(9))
    }

    @Test func settingsFramesAreLimitedTo32Entries() throws {
        func isAccepted(_ entries: Int) throws -> Bool {
            let server = try HTTP2ServerSession()
            return summary(server.receive(Raw.opening(entries: entries) + Raw.headers(1))).contains {
                $0.hasPrefix("request")
            }
        }
        #expect(try isAccepted(32))
        #expect(try !isAccepted(33))
    }

    @Test func unsentAcknowledgementsAreLimitedTo64() throws {
        func outcome(_ pings: Int) throws -> [String] {
            let server = try HTTP2ServerSession()
            _ = server.receive(Raw.opening())
            _ = server.drain()
            return summary(server.receive((0..<pings).flatMap { _ in Raw.ping() }))
        }
        #expect(try outcome(64).isEmpty)
        #expect(try outcome(66).first?.hasPrefix("error") == true)
    }

    @Test func controlFramesAreLimitedPerMinute() throws {
        var limits = HTTP2Limits()
        limits.controlFramesMax = 500
        let server = try HTTP2ServerSession(limits: limits)
        _ = server.receive(Raw.opening())
        func flood(_ count: Int, at second: Int64) -> [String] {
            var lines: [String] = []
            for _ in 0..<count {
                lines += summary(server.receive(Raw.ping(), at: Instant.zero + .seconds(second)))
                _ = server.drain()
            }
            return lines
        }
        #expect(flood(499, at: 0).isEmpty)
        #expect(flood(500, at: 61).isEmpty)
        #expect(flood(1, at: 119) == ["error more than 500 control frames in a minute"])
        #expect(server.wantsToClose)
    }

    @Test func everyKindOfEmptyFrameCountsAsControl() throws {
        var limits = HTTP2Limits()
        limits.controlFramesMax = 50
        let kinds: [[UInt8]] = [
            Raw.frame(NGHTTP2_DATA, stream: 1), Raw.frame(NGHTTP2_PRIORITY, stream: 1, [0, 0, 0, 3, 1]),
            Raw.windowUpdate(0, 1), Raw.settings(), [0, 0, 0, 0xEE, 0, 0, 0, 0, 0],
        ]
        for (kind, frame) in kinds.enumerated() {
            let server = try HTTP2ServerSession(limits: limits)
            _ = server.receive(Raw.opening() + Raw.headers(1, Raw.post, flags: 0x4))
            var lines: [String] = []
            for _ in 0..<60 {
                lines += summary(server.receive(frame))
                _ = server.drain()
            }
            #expect(lines == ["error more than 50 control frames in a minute"], "kind \(kind)")
        }
    }

    @Test func theClientHearsWhyItIsSentAway() throws {
        var limits = HTTP2Limits()
        limits.controlFramesMax = 50
        let server = try HTTP2ServerSession(limits: limits)
        _ = server.receive(Raw.opening() + (0..<60).flatMap { _ in Raw.ping() })
        #expect(!server.wantsToClose)
        #expect(try goAwayCode(server) == calm)
        #expect(server.wantsToClose)
        #expect(summary(server.receive(Raw.headers(1))).isEmpty)
    }

    @Test func windowUpdatesThatAnswerDataAreFree() throws {
        var limits = HTTP2Limits()
        limits.controlFramesMax = 20
        let pair = try Pair(limits)
        let stream = pair.client.request()
        pair.exchange()
        pair.server.respond(stream, status: 200)
        for _ in 0..<100 {
            _ = pair.server.write(stream, [1])
            pair.exchange()
            #expect(summary(pair.server.receive(Raw.windowUpdate(0, 1) + Raw.windowUpdate(1, 1))).isEmpty)
        }
    }

    @Test func resetsThatAClientProvokesAreLimited() throws {
        func flood(_ count: Int) throws -> [String] {
            let server = try HTTP2ServerSession()
            _ = server.receive(Raw.opening())
            _ = server.drain()
            var lines: [String] = []
            for number in 0..<count {
                let stream = UInt32(number * 2 + 1)
                lines += summary(server.receive(Raw.headers(stream) + Raw.windowOverflow(stream)))
                _ = server.drain()
                lines += summary(server.takeEvents())
            }
            return lines.filter { $0.hasPrefix("error") }
        }
        #expect(try flood(50).isEmpty)
        #expect(try flood(52).count == 1)
    }

    @Test func resetsOfTheDriverAreNotHeldAgainstTheClient() throws {
        let pair = try Pair()
        for _ in 0..<200 {
            let stream = pair.client.request()
            pair.exchange()
            pair.server.reset(stream, .internalError)
            pair.exchange()
        }
        #expect(pair.client.goAwayCode == nil && !pair.server.wantsToClose)
    }

    @Test func aQueueThatNobodyReadsEndsTheSession() throws {
        var limits = HTTP2Limits()
        limits.outboundQueueMax = 20
        let server = try HTTP2ServerSession(limits: limits)
        _ = server.receive(Raw.opening())
        _ = server.drain()
        var lines: [String] = []
        for number in 0..<40 {
            let stream = UInt32(number * 2 + 1)
            lines += summary(server.receive(Raw.headers(stream) + Raw.windowOverflow(stream)))
        }
        #expect(lines.contains("error more than 20 frames wait to be sent"))
        #expect(server.wantsToClose)
    }

    @Test func headsBeyondALimitAreAnsweredWith431() throws {
        let heads: [[(String, String)]] = [
            (0..<97).map { ("x-\($0)", "1") },
            [("x-long", String(repeating: "a", count: 8193))],
            (0..<3).map { ("x-\($0)", String(repeating: "a", count: 6000)) },
        ]
        for (kind, head) in heads.enumerated() {
            let pair = try Pair()
            let stream = pair.client.request(method: "POST", headers: head, body: [1, 2, 3], keepsOpen: true)
            #expect(summary(pair.exchange()).isEmpty, "kind \(kind)")
            #expect(pair.client.responses[stream]?.status == "431", "kind \(kind)")
            #expect(pair.client.responses[stream]?.resetCode == 0)
            #expect(pair.server.openStreamCount == 0)
            let next = pair.client.request()
            #expect(summary(pair.exchange()) == ["request \(next) GET test/ [] end"])
        }
    }

    @Test func headsAtTheLimitAreTaken() throws {
        let heads: [[(String, String)]] = [
            (0..<96).map { ("x-\($0)", "1") }, [("x-long", String(repeating: "a", count: 8192))],
        ]
        for head in heads {
            let pair = try Pair()
            pair.client.request(headers: head)
            #expect(pair.exchange().count == 1)
        }
    }

    @Test func aWrongPrefaceEndsTheSession() throws {
        let server = try HTTP2ServerSession()
        #expect(
            summary(server.receive([UInt8]("GET / HTTP/1.1\r\nhost: x\r\n\r\n".utf8))).first?.hasPrefix("error") == true
        )
        #expect(server.wantsToClose)
        #expect(server.bytesToSend(upTo: 1000).isEmpty)
    }
}
