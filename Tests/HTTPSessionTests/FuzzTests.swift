import CNGHTTP2
import ServingTypes
import Testing

@testable import HTTPSession

@Suite struct FuzzTests {
    /// What a client with several requests, bodies, a reset and a ping sends.
    private func recording() throws -> [UInt8] {
        let client = try TestClient()
        client.request("/a", headers: [("x-long", String(repeating: "v", count: 3000))])
        client.request("/b", method: "POST", body: (0..<40_000).map { UInt8(truncatingIfNeeded: $0 &* 7) })
        var bytes = client.bytesToSend()
        let third = client.request("/c", method: "PUT", body: [1, 2, 3], keepsOpen: true)
        bytes += client.bytesToSend()
        client.ping()
        client.reset(third)
        client.request("/d", method: "POST", body: [])
        return bytes + client.bytesToSend()
    }

    @Test func anySlicingOfTheInputGivesTheSameEvents() throws {
        let bytes = try recording()
        let whole = summary(try HTTP2ServerSession().receive(bytes))
        #expect(whole.count == 8)
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        for round in 0..<40 {
            let server = try HTTP2ServerSession()
            var events: [HTTP2Event] = []
            var place = 0
            // The first round goes byte by byte.
            let largest = round == 0 ? 1 : Int.random(in: 1...9000, using: &random)
            while place < bytes.count {
                let end = min(bytes.count, place + Int.random(in: 1...largest, using: &random))
                events += server.receive(Array(bytes[place..<end]))
                place = end
            }
            #expect(summary(events) == whole, "seed \(seed) round \(round)")
        }
    }

    @Test func framesAreFoundAtAnySlicing() throws {
        let bytes = try recording()
        func headers(_ size: Int) -> [FrameWalker.Header] {
            var walker = FrameWalker()
            var found: [FrameWalker.Header] = []
            bytes.withUnsafeBytes { bytes in
                for start in stride(from: 0, to: bytes.count, by: size) {
                    walker.walk(UnsafeRawBufferPointer(rebasing: bytes[start..<min(bytes.count, start + size)])) {
                        found.append($0)
                    }
                }
            }
            return found
        }
        let whole = headers(bytes.count)
        #expect(whole.reduce(24) { $0 + 9 + $1.length } == bytes.count)
        #expect(whole.first?.type == UInt8(NGHTTP2_SETTINGS.rawValue))
        for size in 1...40 { #expect(headers(size) == whole, "size \(size)") }
    }

    @Test func randomBytesNeverTrap() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        for round in 0..<200 {
            let server = try HTTP2ServerSession()
            var events = round.isMultiple(of: 4) ? [] : server.receive(Raw.opening())
            let noise = (0..<Int.random(in: 1...3000, using: &random)).map { _ in
                UInt8.random(in: 0...255, using: &random)
            }
            events += server.receive(noise)
            expectEnd(server, "seed \(seed) round \(round)")
        }
    }

    @Test func randomFramesAndCallsNeverTrap() throws {
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        for round in 0..<150 {
            var limits = HTTP2Limits()
            limits.streamOutputBytesMax = 100
            let server = try HTTP2ServerSession(limits: limits)
            _ = server.receive(Raw.opening())
            for step in 0..<60 {
                let stream = Int32.random(in: 0...9, using: &random)
                if Bool.random(using: &random) {
                    _ = server.receive(frame(&random), at: Instant.zero + .milliseconds(Int64(step)))
                } else {
                    call(server, stream, &random)
                }
                #expect(server.unsentBytes >= 0, "seed \(seed) round \(round) step \(step)")
            }
            expectEnd(server, "seed \(seed) round \(round)")
        }
    }

    @Test func mutatedRecordingsNeverTrap() throws {
        let bytes = try recording()
        let seed = UInt64.random(in: 0 ... .max)
        var random = SplitMix(state: seed)
        for round in 0..<150 {
            var changed = bytes
            for _ in 0..<Int.random(in: 1...8, using: &random) {
                let place = Int.random(in: 24..<changed.count, using: &random)
                switch Int.random(in: 0..<3, using: &random) {
                case 0: changed[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
                case 1: changed.remove(at: place)
                default: changed.insert(UInt8.random(in: 0...255, using: &random), at: place)
                }
            }
            let server = try HTTP2ServerSession()
            for event in server.receive(changed) {
                if case .request(let stream, _, _) = event { server.respond(stream, status: 200, endStream: true) }
            }
            expectEnd(server, "seed \(seed) round \(round)")
        }
    }

    private func call(_ server: HTTP2ServerSession, _ stream: Int32, _ random: inout SplitMix) {
        switch Int.random(in: 0..<7, using: &random) {
        case 0:
            server.respond(
                stream, status: Int.random(in: 100...599, using: &random), endStream: Bool.random(using: &random))
        case 1: _ = server.write(stream, [UInt8](repeating: 3, count: Int.random(in: 0...300, using: &random)))
        case 2: server.finish(stream)
        case 3: server.reset(stream, .cancel)
        case 4: server.consume(stream, Int.random(in: -10...10_000, using: &random))
        case 5: _ = server.bytesToSend(upTo: Int.random(in: 0...500, using: &random))
        default: _ = server.tick(at: .zero)
        }
    }

    private func frame(_ random: inout SplitMix) -> [UInt8] {
        let stream = UInt32.random(in: 0...9, using: &random)
        switch Int.random(in: 0..<8, using: &random) {
        case 0, 1, 2: return Raw.headers(stream | 1, Bool.random(using: &random) ? Raw.get : Raw.post, flags: 0x4)
        case 3:
            return Raw.frame(NGHTTP2_DATA, flags: UInt8.random(in: 0...1, using: &random), stream: stream, [1, 2, 3])
        case 4: return Raw.reset(stream)
        case 5: return Bool.random(using: &random) ? Raw.windowUpdate(stream, 3) : Raw.windowOverflow(stream | 1)
        case 6: return Raw.settings(entries: 1)
        default: return Raw.ping()
        }
    }

    /// Whatever came in, a finite number of bytes goes out, and a dead session stays silent.
    private func expectEnd(_ server: HTTP2ServerSession, _ comment: String) {
        _ = server.drain()
        _ = server.takeEvents()
        if server.wantsToClose { #expect(server.bytesToSend(upTo: 100).isEmpty, "\(comment)") }
        #expect(server.openStreamCount <= 128, "\(comment)")
    }
}
