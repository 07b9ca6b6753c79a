import BoundedJSON
import ServingTypes
import Testing

@testable import FrontDoor

/// Whatever comes in, the door stands, answers lawfully or closes, and keeps no job it should not.
@Suite struct AnyBytesTests {
    /// SplitMix64 (Steele, Lea, Flood 2014).
    struct Seeded: RandomNumberGenerator {
        var state: UInt64

        mutating func next() -> UInt64 {
            state &+= 0x9E37_79B9_7F4A_7C15
            var z = state
            z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
            z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
            return z ^ (z >> 31)
        }
    }

    static let requests = [
        "GET /v1/models HTTP/1.1\r\nhost: x\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 43\r\n\r\n"
            + #"{"prompt":"abc","stream":true,"stop":["x"]}"#,
        "POST /tokenize HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\ne\r\n{\"prompt\":\"a\"}\r\n0\r\n\r\n",
        "GET /v1/jobs/0000/events?offset=%31&x HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\n\r\n",
    ]

    @Test func damagedRequestsAreAnsweredOrClosed() throws {
        for seed in 0..<400 as Range<UInt64> {
            var generator = Seeded(state: seed)
            let desk = try Desk()
            desk.jobs.answerEverything(with: "z")
            var bytes = (0..<3).flatMap { _ in
                Array(Self.requests[Int.random(in: 0..<Self.requests.count, using: &generator)].utf8)
            }
            for _ in 0..<Int.random(in: 0...4, using: &generator) {
                bytes[Int.random(in: 0..<bytes.count, using: &generator)] = UInt8.random(in: 0...255, using: &generator)
            }
            var at = 0
            while at < bytes.count, desk.channel.isActive {
                let end = min(bytes.count, at + Int.random(in: 1...80, using: &generator))
                try desk.send(bytes: Array(bytes[at..<end]))
                at = end
            }
            var rest = try desk.output()
            while !rest.isEmpty {
                let answer = try Answer(rest)
                #expect(answer.isWhole && (100..<600).contains(answer.status), "seed \(seed): \(rest)")
                rest = answer.rest
            }
            if desk.channel.isActive { try desk.channel.close().wait() }
            desk.loop.run()
            #expect(desk.door.generations == 0, "seed \(seed)")
        }
    }

    @Test func anyBytesAfterThePrefaceLeaveTheDoorStanding() throws {
        for seed in 0..<200 as Range<UInt64> {
            var generator = Seeded(state: seed)
            let desk = try Desk()
            try desk.send(bytes: ProtocolSniffer.preface)
            // A lawful SETTINGS frame, then frames of any kind whose lengths are right.
            try desk.send(bytes: [0, 0, 0, 4, 0, 0, 0, 0, 0])
            for _ in 0..<10 where desk.channel.isActive {
                let length = Int.random(in: 0...40, using: &generator)
                let stream = UInt8.random(in: 0...5, using: &generator)
                let payload = (0..<length).map { _ in UInt8.random(in: 0...255, using: &generator) }
                let head: [UInt8] = [
                    0, 0, UInt8(length), UInt8.random(in: 0...10, using: &generator),
                    UInt8.random(in: 0...255, using: &generator), 0, 0, 0, stream,
                ]
                try desk.send(bytes: head + payload)
            }
            _ = try desk.output()
            try desk.reconnect()
            try desk.get("/livez")
            #expect(try desk.answer().status == 200, "seed \(seed)")
        }
    }

    @Test func bodiesOfAnyTypesAreRefusedWithTheirField() throws {
        let names = [
            "prompt", "n", "max_tokens", "temperature", "top_p", "top_k", "stop", "stream", "stream_options",
            "logit_bias",
            "seed", "logprobs", "messages", "tools", "response_format", "priority", "user", "echo", "best_of",
        ]
        let values = [
            "null", "true", "-1", "0", "1", "1e300", "3.5", "9223372036854775807", #""""#, #""a""#, "[]", "{}", "[[]]",
            "[1]", #"["a"]"#, #"{"a":1}"#, #"[{"role":"user","content":"a"}]"#,
        ]
        for seed in 0..<600 as Range<UInt64> {
            var generator = Seeded(state: seed)
            let desk = try Desk()
            desk.jobs.answerEverything(with: "z")
            var fields = [seed % 2 == 0 ? #""prompt":"a""# : #""messages":[{"role":"user","content":"a"}]"#]
            var used: Set<String> = ["prompt", "messages"]
            for _ in 0..<Int.random(in: 1...3, using: &generator) {
                let name = names[Int.random(in: 0..<names.count, using: &generator)]
                guard used.insert(name).inserted else { continue }
                fields.append("\"\(name)\":\(values[Int.random(in: 0..<values.count, using: &generator)])")
            }
            let body = "{\(fields.joined(separator: ","))}"
            try desk.post(seed % 2 == 0 ? "/v1/completions" : "/v1/chat/completions", body)
            let answer = try desk.answer()
            #expect(answer.isWhole, "seed \(seed): \(body)")
            if answer.status != 200 {
                #expect(answer.status == 400, "seed \(seed): \(body)")
                #expect(answer.error?["param"]?.stringValue != nil, "seed \(seed): \(body)")
            }
        }
    }

    @Test func aStreamAddsUpToTheWholeAnswerHoweverItsTokensCome() throws {
        for seed in 0..<60 as Range<UInt64> {
            var generator = Seeded(state: seed)
            let alphabet = Array("ab€é<X>END".utf8)
            let tokens = (0..<Int.random(in: 1...60, using: &generator)).map { _ in
                SampledToken(token: TokenID(UInt32(alphabet[Int.random(in: 0..<alphabet.count, using: &generator)])))
            }
            func texts(stream: Bool, cuts: [Int]) throws -> String {
                let desk = try Desk()
                try desk.post(
                    "/v1/completions", #"{"prompt":"a","max_tokens":100,"stop":["END","<X>"],"stream":\#(stream)}"#)
                let job = try #require(desk.jobs.all.first)
                desk.jobs.admit(job)
                var at = 0
                for cut in cuts where at < tokens.count && job.outcome == nil {
                    desk.jobs.emit(job, Array(tokens[at..<min(tokens.count, at + cut)]))
                    at += cut
                }
                desk.jobs.end(job, .finished(.length))
                let answer = try desk.answer()
                guard stream else { return answer.json["choices"]?.arrayValue?.first?["text"]?.stringValue ?? "?" }
                return answer.events.dropLast().map { event in
                    (try? JSON.parse(Array(event.utf8)))?["choices"]?.arrayValue?.first?["text"]?.stringValue ?? "?"
                }.joined()
            }
            let cuts = (0..<60).map { _ in Int.random(in: 1...5, using: &generator) }
            let whole = try texts(stream: false, cuts: [tokens.count])
            #expect(try texts(stream: true, cuts: cuts) == whole, "seed \(seed)")
            #expect(try texts(stream: true, cuts: [tokens.count]) == whole, "seed \(seed)")
        }
    }
}
