import Foundation
import NIOCore
import ServingTypes
import Testing

@testable import FrontDoor

/// Real sockets and real clients: curl and nghttp.
@Suite struct LoopbackTests {
    private let chat = #"{"messages":[{"role":"user","content":"hi"}],"stream":true}"#

    @Test func curlStreamsAChat() async throws {
        let server = try await LoopbackServer { jobs, loop in jobs.streamEverything("Hello", on: loop) }
        let result = try await LoopbackServer.run(
            "curl",
            [
                "-sS", "-N", "-i", "--http1.1", "-H", "content-type: application/json", "-d", chat,
                "http://127.0.0.1:\(server.port)/v1/chat/completions",
            ])
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.output.hasPrefix("HTTP/1.1 200 OK\r\n"))
        #expect(result.output.components(#""delta":{"content":"#).count == 6)
        #expect(result.output.hasSuffix("data: [DONE]\n\n"))
        try await server.stop()
    }

    @Test func curlSendsALongBodyAfterAskingFirst() async throws {
        let server = try await LoopbackServer { jobs, _ in jobs.answerEverything(with: "z") }
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("front-door-\(UUID()).json")
        try Data(#"{"prompt":"\#(String(repeating: "a b ", count: 20_000))"}"#.utf8).write(to: file)
        defer { try? FileManager.default.removeItem(at: file) }
        let result = try await LoopbackServer.run(
            "curl",
            [
                "-sS", "-i", "-H", "content-type: application/json", "-H", "expect: 100-continue", "--data-binary",
                "@\(file.path)", "http://127.0.0.1:\(server.port)/v1/completions",
            ])
        #expect(result.output.hasPrefix("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 400 Bad Request\r\n"))
        #expect(result.output.contains("'prompt' has 80000 tokens"))
        try await server.stop()
    }

    @Test func curlIsToldThatItsBodyIsTooLarge() async throws {
        let server = try await LoopbackServer {
            $0.limits.bodyBytesMax = 1 << 20
        } jobs: { _, _ in
        }
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("front-door-\(UUID()).json")
        try Data(repeating: 0x20, count: 4 << 20).write(to: file)
        defer { try? FileManager.default.removeItem(at: file) }
        for header in ["expect:", "transfer-encoding: chunked"] {
            let result = try await LoopbackServer.run(
                "curl",
                [
                    "-sS", "-H", "content-type: application/json", "-H", header, "--data-binary", "@\(file.path)",
                    "http://127.0.0.1:\(server.port)/v1/completions",
                ])
            #expect(result.output.contains(#""code":"request_too_large""#), "\(header): \(result.errors)")
        }
        try await server.stop()
    }

    @Test func aClientThatClosesWhileItsJobIsQueuedLeaves() async throws {
        let server = try await LoopbackServer { _, _ in }
        let body = #"{"prompt":"ab"}"#
        do {
            let socket = try RawSocket(port: server.port)
            socket.send(
                "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: \(body.utf8.count)\r\n\r\n\(body)")
            #expect(try await server.eventually { _, jobs in jobs.all.count == 1 })
            _ = socket
        }
        #expect(try await server.eventually { _, jobs in jobs.left.count == 1 })
        #expect(try await server.eventually { door, _ in door.connections.count == 0 })
        try await server.stop()
    }

    @Test func aClientThatClosesAStreamLeaves() async throws {
        let server = try await LoopbackServer { jobs, _ in jobs.onSubmit = { $0.admit($1) } }
        do {
            let socket = try RawSocket(port: server.port)
            socket.send(
                "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: \(chat.utf8.count)\r\n\r\n\(chat)")
            #expect(socket.read(until: "assistant").contains("200 OK"))
        }
        #expect(try await server.eventually { _, jobs in jobs.left.count == 1 })
        try await server.stop()
    }

    @Test func aClientThatOnlyStopsSendingGetsItsAnswer() async throws {
        let server = try await LoopbackServer { _, _ in }
        let body = #"{"prompt":"ab"}"#
        let socket = try RawSocket(port: server.port)
        socket.send("POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: \(body.utf8.count)\r\n\r\n\(body)")
        #expect(try await server.eventually { _, jobs in jobs.all.count == 1 })
        socket.finishSending()
        #expect(socket.read(until: "\r\n\r\n") == "HTTP/1.1 102 Processing\r\n\r\n")
        try await server.on { _, jobs in
            guard let job = jobs.all.first else { return }
            jobs.admit(job)
            jobs.emit(job, "z")
            jobs.end(job, .finished(.length))
        }
        let answer = try Answer(socket.read())
        #expect(answer.status == 200)
        #expect(answer.json["usage"]?["completion_tokens"]?.intValue == 1)
        #expect(try await server.on { _, jobs in jobs.left.isEmpty })
        try await server.stop()
    }

    @Test func connectionsBeyondTheLimitAreClosed() async throws {
        let server = try await LoopbackServer {
            $0.limits.connectionsPerAddressMax = 2
        } jobs: { _, _ in
        }
        let first = try RawSocket(port: server.port)
        let second = try RawSocket(port: server.port)
        #expect(try await server.eventually { door, _ in door.connections.count == 2 })
        let third = try RawSocket(port: server.port)
        #expect(third.read() == "")
        first.send("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        second.send("GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        #expect(first.read().contains("200 OK"))
        #expect(second.read().contains("200 OK"))
        try await server.stop()
    }

    @Test func aUnixSocketServesToo() async throws {
        let path = NSTemporaryDirectory() + "front-door-\(UUID().uuidString.prefix(8)).sock"
        let server = try await LoopbackServer {
            $0.unixPath = path
        } jobs: { _, _ in
        }
        let result = try await LoopbackServer.run("curl", ["-sS", "--unix-socket", path, "http://localhost/livez"])
        #expect(result.output == #"{"status":"ok"}"#)
        try await server.stop()
        try? FileManager.default.removeItem(atPath: path)
    }

    @Test func longTextIsTokenisedElsewhere() async throws {
        let server = try await LoopbackServer {
            $0.limits.inlineTextBytesMax = 8
        } jobs: { jobs, _ in
            jobs.answerEverything(with: "z")
        }
        let result = try await LoopbackServer.run(
            "curl",
            [
                "-sS", "-H", "content-type: application/json", "-d", #"{"prompt":"this is longer than eight"}"#,
                "http://127.0.0.1:\(server.port)/v1/completions",
            ])
        #expect(result.output.contains(#""prompt_tokens":25"#))
        try await server.stop()
    }

    // MARK: HTTP/2

    @Test func curlStreamsAChatOverHTTP2() async throws {
        let server = try await LoopbackServer { jobs, loop in jobs.streamEverything("Hello", on: loop) }
        let result = try await LoopbackServer.run(
            "curl",
            [
                "-sS", "-N", "-i", "--http2-prior-knowledge", "-H", "content-type: application/json", "-d", chat,
                "http://127.0.0.1:\(server.port)/v1/chat/completions",
            ])
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.output.hasPrefix("HTTP/2 200 \r\n"))
        #expect(!result.output.contains("connection:"))
        #expect(result.output.components(#""delta":{"content":"#).count == 6)
        #expect(result.output.hasSuffix("data: [DONE]\n\n"))
        try await server.stop()
    }

    @Test func oneHTTP2ConnectionCarriesManyStreams() async throws {
        let server = try await LoopbackServer { jobs, loop in jobs.streamEverything("Hello", on: loop) }
        let body = FileManager.default.temporaryDirectory.appendingPathComponent("front-door-\(UUID()).json")
        try Data(chat.utf8).write(to: body)
        defer { try? FileManager.default.removeItem(at: body) }
        let result = try await LoopbackServer.run(
            "nghttp",
            [
                "-m", "20", "-d", body.path, "-H", "content-type: application/json",
                "http://127.0.0.1:\(server.port)/v1/chat/completions",
            ])
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.output.components("data: [DONE]").count == 21)
        #expect(try await server.on { _, jobs in jobs.all.count } == 20)
        try await server.stop()
    }

    @Test func anHTTP2RequestIsFreedWithItsStream() async throws {
        let server = try await LoopbackServer { _, _ in }
        let result = try await LoopbackServer.run(
            "nghttp", ["-m", "20", "http://127.0.0.1:\(server.port)/v1/models"])
        #expect(result.status == 0, "\(result.errors)")
        #expect(try await server.eventually { door, _ in door.counts.requestsOpen == 0 })
        try await server.stop()
    }

    @Test func errorsOverHTTP2HaveTheirBodies() async throws {
        let server = try await LoopbackServer {
            $0.limits.bodyBytesMax = 300_000
        } jobs: { _, _ in
        }
        let url = "http://127.0.0.1:\(server.port)"
        let missing = try await LoopbackServer.run("curl", ["-sS", "-i", "--http2-prior-knowledge", "\(url)/nowhere"])
        #expect(missing.output.hasPrefix("HTTP/2 404 "))
        #expect(missing.output.contains(#""code":"not_found""#))
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("front-door-\(UUID()).json")
        try Data(repeating: 0x20, count: 400_000).write(to: file)
        defer { try? FileManager.default.removeItem(at: file) }
        let large = try await LoopbackServer.run(
            "curl",
            [
                "-sS", "-i", "--http2-prior-knowledge", "-H", "content-type: application/json", "--data-binary",
                "@\(file.path)", "\(url)/v1/completions",
            ])
        #expect(large.output.hasPrefix("HTTP/2 413 "), "\(large.errors)")
        #expect(large.output.contains(#""code":"request_too_large""#))
        try await server.stop()
    }

    @Test func aLongAnswerOverHTTP2IsWhole() async throws {
        let text = String(repeating: "0123456789", count: 1500)
        let server = try await LoopbackServer { jobs, _ in jobs.answerEverything(with: text) }
        let result = try await LoopbackServer.run(
            "curl",
            [
                "-sS", "--http2-prior-knowledge", "-H", "content-type: application/json", "-d",
                #"{"prompt":"a","max_tokens":15000,"n":8}"#, "http://127.0.0.1:\(server.port)/v1/completions",
            ])
        #expect(result.output.components(text).count == 9)
        try await server.stop()
    }

    @Test func aClientThatLeavesAnHTTP2StreamLeavesItsJob() async throws {
        let server = try await LoopbackServer { jobs, _ in jobs.onSubmit = { $0.admit($1) } }
        let result = try await LoopbackServer.run(
            "curl",
            [
                "-sS", "-N", "--max-time", "1", "--http2-prior-knowledge", "-H", "content-type: application/json",
                "-d", chat, "http://127.0.0.1:\(server.port)/v1/chat/completions",
            ])
        #expect(result.status == 28)
        #expect(try await server.eventually { _, jobs in jobs.left.count == 1 })
        #expect(try await server.eventually { door, _ in door.connections.count == 0 })
        try await server.stop()
    }

    @Test func drainingSendsGoAwayAndFinishesTheStream() async throws {
        let server = try await LoopbackServer { jobs, _ in jobs.onSubmit = { $0.admit($1) } }
        async let client = LoopbackServer.run(
            "curl",
            [
                "-sS", "-N", "--http2-prior-knowledge", "-H", "content-type: application/json", "-d", chat,
                "http://127.0.0.1:\(server.port)/v1/chat/completions",
            ])
        #expect(try await server.eventually { _, jobs in jobs.all.count == 1 })
        try await server.on { door, jobs in
            door.drain()
            guard let job = jobs.all.first else { return }
            jobs.emit(job, "z")
            jobs.end(job, .finished(.length))
        }
        let result = try await client
        #expect(result.status == 0, "\(result.errors)")
        #expect(result.output.hasSuffix("data: [DONE]\n\n"))
        #expect(try await server.eventually { door, _ in door.connections.count == 0 })
        try await server.stop()
    }
}
