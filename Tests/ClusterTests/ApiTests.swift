import BoundedJSON
import Foundation
import Testing

/// What a test asks of one cluster, through curl.
private struct Door {
    let url: String
    var flags: [String] = []

    func get(_ path: String, _ more: [String] = []) async throws -> Tool.Reply {
        try await Tool.curl(flags + more + [url + path])
    }

    func post(_ path: String, _ body: JSONValue, _ more: [String] = []) async throws -> Tool.Reply {
        try await post(path, text: JSON.text(body), more)
    }

    func post(_ path: String, text: String, _ more: [String] = []) async throws -> Tool.Reply {
        try await Tool.curl(flags + more + [url + path], sending: Array(text.utf8))
    }
}

extension TestCluster {
    fileprivate var door: Door { Door(url: "http://127.0.0.1:\(httpPort)") }
}

extension Tool.Reply {
    /// Of a stream in OpenAI's shape.
    fileprivate var streamedText: String {
        (events ?? []).compactMap { try? JSON.parse(Array($0.utf8)) }.compactMap { event in
            let choice = event["choices"]?.arrayValue?.first
            return choice?["text"]?.stringValue ?? choice?["delta"]?["content"]?.stringValue
        }.joined()
    }

    fileprivate var answeredText: String? { json?["choices"]?.arrayValue?.first?["text"]?.stringValue }
}

extension ClusterSuites {
    /// The front door over a real cluster, seen with other people's clients (curl, nghttp).
    @Suite struct ApiTests {
        private static let asked: JSONValue = [
            "prompt": "Once upon a time", "max_tokens": 12, "temperature": 0, "stop": "zzz",
        ]

        private static func with(_ key: String, _ value: JSONValue) -> JSONValue {
            var object = asked.objectValue ?? JSONObject()
            object[key] = value
            return .object(object)
        }

        // MARK: HTTP

        @Test func everyVersionOfHTTPGivesTheSameTextWholeAndStreamed() async throws {
            try await TestCluster.with(seed: 51) { cluster in
                var texts: Set<String> = []
                for (flag, version) in [("--http1.1", "1.1"), ("--http2-prior-knowledge", "2")] {
                    let door = Door(url: cluster.door.url, flags: [flag])
                    let whole = try await door.post("/v1/completions", Self.asked)
                    #expect(whole.status == 200 && whole.version == version)
                    texts.insert(whole.answeredText ?? "none from \(version)")
                    let stream = try await door.post("/v1/completions", Self.with("stream", true))
                    #expect(stream.headers["content-type"] == "text/event-stream")
                    #expect(stream.events?.last == "[DONE]", "\(stream.text)")
                    texts.insert(stream.streamedText)
                }
                let body = Array(JSON.text(Self.asked).utf8)
                let answer = try await Tool.nghttp(cluster.door.url + "/v1/completions", sending: body)
                let parsed = try JSON.parse(Array(answer.utf8))
                texts.insert(parsed["choices"]?.arrayValue?.first?["text"]?.stringValue ?? answer)
                #expect(texts.count == 1 && texts.first?.isEmpty == false, "\(texts)")
            }
        }

        @Test func oneTLSPortSpeaksBothVersionsByALPN() async throws {
            let folder = try Scratch.folder()
            defer { try? FileManager.default.removeItem(at: folder) }
            let (certificate, key) = (
                folder.appendingPathComponent("c.pem").path, folder.appendingPathComponent("k.pem").path
            )
            let made = try await Tool.run(
                "openssl",
                [
                    "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost",
                    "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate,
                ])
            #expect(made.status == 0, "\(made.text)")
            try await SmallCluster.with(["--tls-certificate", certificate, "--tls-key", key]) { cluster in
                var texts: Set<String> = []
                for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
                    let door = Door(url: cluster.url, flags: ["--cacert", certificate, flag])
                    let stream = try await door.post("/v1/completions", Self.with("stream", true))
                    #expect(stream.status == 200 && stream.version == version, "\(flag): \(stream)")
                    texts.insert(stream.streamedText)
                }
                let body = Array(JSON.text(Self.asked).utf8)
                let answer = try await Tool.nghttp(cluster.url + "/v1/completions", sending: body)
                #expect(texts.count == 1)
                for text in texts { #expect(answer.contains(JSON.quoted(text)), "\(answer)") }
                let plain = try await Tool.curl(["http://127.0.0.1:\(cluster.port)/livez"])
                #expect(plain.status != 200)
            }
        }

        @Test func aStreamIsMadeOfLawfulEventsInTheirOrder() async throws {
            try await TestCluster.with(seed: 52) { cluster in
                let chat: JSONValue = [
                    "messages": [["role": "user", "content": "Tell me a story."]], "max_tokens": 9, "temperature": 0,
                    "stream": true, "stream_options": ["include_usage": true],
                ]
                for flag in ["--http1.1", "--http2-prior-knowledge"] {
                    let reply = try await cluster.door.post("/v1/chat/completions", chat, [flag])
                    let events = try #require(reply.events, "\(reply.text)")
                    #expect(events.last == "[DONE]")
                    let chunks = try events.dropLast().map { try JSON.parse(Array($0.utf8)) }
                    #expect(Set(chunks.map { $0["id"]?.stringValue }).count == 1)
                    #expect(chunks.allSatisfy { $0["object"] == "chat.completion.chunk" })
                    let first = chunks.first?["choices"]?.arrayValue?.first
                    #expect(first?["delta"]?["role"] == "assistant")
                    #expect(first?["finish_reason"]?.isNull == true)
                    let usage = try #require(chunks.last)
                    #expect(usage["choices"]?.arrayValue?.isEmpty == true)
                    #expect(usage["usage"]?["completion_tokens"] == 9)
                    #expect(usage["usage"]?["prompt_tokens"] == 12)
                    #expect(chunks.dropLast().allSatisfy { $0["usage"]?.isNull == true })
                    let ends = chunks.dropLast().compactMap { chunk in
                        chunk["choices"]?.arrayValue?.first?["finish_reason"]?.stringValue
                    }
                    #expect(ends == ["length"])
                    let rendered = try await cluster.door.post(
                        "/tokenize", ["messages": [["role": "user", "content": "Tell me a story."]]])
                    #expect(rendered.json?["count"] == 12)
                }
            }
        }

        // MARK: Numbers and tokens

        @Test func metricsCountWhatRan() async throws {
            try await TestCluster.with(seed: 53) { cluster in
                for seed in 0..<3 { _ = try await cluster.client.stream("The old king", maxTokens: 7, seed: seed) }
                let page = try await cluster.door.get("/metrics")
                #expect(page.headers["content-type"]?.hasPrefix("text/plain; version=0.0.4") == true)
                var values: [Substring: Double] = [:]
                for line in page.text.split(separator: "\n") where !line.hasPrefix("#") {
                    guard let space = line.lastIndex(of: " ") else { continue }
                    let name = line[..<space].prefix { $0 != "{" }
                    values[name, default: 0] += Double(line[line.index(after: space)...]) ?? .nan
                }
                let prompt = try await cluster.door.post("/tokenize", ["prompt": "The old king"])
                let promptTokens = try #require(prompt.json?["count"]?.intValue)
                #expect(values["vllm:request_success_total"] == 3)
                #expect(values["vllm:generation_tokens_total"] == 21)
                #expect(values["vllm:prompt_tokens_total"] == Double(3 * promptTokens))
                #expect(values["vllm:time_to_first_token_seconds_count"] == 3)
                #expect(values["vllm:e2e_request_latency_seconds_count"] == 3)
                #expect(values["vllm:inter_token_latency_seconds_count"] == 18)
                #expect(values["vllm:num_requests_running"] == 0 && values["vllm:num_requests_waiting"] == 0)
                #expect(values["vllm:num_preemptions_total"] != nil && values["vllm:prefix_cache_hits_total"] != nil)
                let usage = try #require(values["vllm:kv_cache_usage_perc"])
                #expect((0...1).contains(usage))
                #expect(page.text.contains("tandem_http_requests_total{route=\"completions\",status=\"200\"} 3"))
                #expect(values["tandem_http_requests_open"] == 1, "only this request is in memory")
            }
        }

        @Test func tokensRoundTripThroughTheDoor() async throws {
            try await SmallCluster.with([], worker: false) { cluster in
                let door = Door(url: cluster.url)
                for text in ["Once upon a time", "Å🚀 naïve\r\n\tend", "<|end|>", "  ", ""] {
                    let tokens = try #require(try await door.post("/tokenize", ["prompt": .string(text)]).json)
                    #expect(tokens["tokens"]?.arrayValue?.count == tokens["count"]?.intValue)
                    let back = try await door.post("/detokenize", ["tokens": tokens["tokens"] ?? nil])
                    #expect(back.json?["prompt"] == .string(text))
                }
            }
        }

        // MARK: Jobs

        @Test func aJobIsListedShownAndFollowedFromAnyOffset() async throws {
            try await TestCluster.with(seed: 54) { cluster in
                let done = try await cluster.client.stream("The old king", maxTokens: 20, seed: 3)
                let shown = try #require(try await cluster.door.get("/v1/jobs/\(done.job)").json)
                #expect(shown["phase"] == "finished" && shown["status"] == "length")
                #expect(shown["usage"]?["completion_tokens"] == 20)
                #expect(shown["route"]?["prefill"] == "prefill-0" && shown["route"]?["decode"] == "decode-0")
                let stamps = ["queued", "placed", "reserved", "prefilling", "first_token", "decoding", "finished"]
                    .compactMap { shown["stamps_ms"]?[$0]?.doubleValue }
                #expect(stamps.count == 7 && stamps == stamps.sorted(), "\(stamps)")
                let list = try await cluster.door.get("/v1/jobs?limit=5").json?["data"]?.arrayValue
                #expect(list?.first?["id"] == .string(done.job))
                let raw = try #require(
                    try await cluster.door.get("/v1/jobs/\(done.job)/events?format=raw").events?.dropLast().map {
                        try JSON.parse(Array($0.utf8))
                    })
                #expect(raw.reduce(0) { $0 + ($1["tokens"]?.arrayValue?.count ?? 0) } == 20)
                #expect(raw.compactMap { $0["text"]?.stringValue }.joined() == done.text)
                var shortest = done.text.utf8.count + 1
                for offset in [0, 1, 7, 19, 20, 99] {
                    let tail = try await cluster.door.get("/v1/jobs/\(done.job)/events?offset=\(offset)")
                    #expect(tail.events?.last == "[DONE]")
                    let text = tail.streamedText
                    #expect(done.text.hasSuffix(text) && text.utf8.count < shortest, "offset \(offset): \(text)")
                    if offset < 20 { shortest = text.utf8.count }
                }
            }
        }

        @Test func aJobThatRunsIsFollowedByTwoAndCancelledByDelete() async throws {
            try await TestCluster.with(seed: 55) { cluster in
                let first = Task {
                    try await cluster.door.post(
                        "/v1/completions",
                        [
                            "prompt": .string(Prompts.text(words: 60, seed: 1)), "max_tokens": 350, "seed": 1,
                            "ignore_eos": true, "stream": true,
                        ])
                }
                var job = ""
                try await cluster.wait("the job to run") {
                    let list = try? await cluster.door.get("/v1/jobs?limit=1").json?["data"]?.arrayValue
                    job = list?.first?["id"]?.stringValue ?? ""
                    return !job.isEmpty
                }
                let name = job
                let second = Task { try await cluster.door.get("/v1/jobs/\(name)/events") }
                let gone = try await cluster.door.get("/v1/jobs/\(name)", ["-X", "DELETE"])
                let shown = try await cluster.door.get("/v1/jobs/\(name)").json
                #expect(gone.status == 200)
                guard gone.json?["cancelled"] == true else {
                    Issue.record("the job was over before it could be cancelled: \(gone.text)")
                    return
                }
                #expect(shown?["status"] == "cancelled")
                for reply in [try await first.value, try await second.value] {
                    #expect(reply.events?.last == "[DONE]", "\(reply.text)")
                    #expect(reply.text.contains("\"code\":\"cancelled\""), "\(reply.text)")
                }
                try await cluster.waitUntilPagesAreBack()
                let again = try await cluster.door.get("/v1/jobs/\(name)", ["-X", "DELETE"])
                #expect(again.json?["cancelled"] == false)
            }
        }

        @Test func aRepeatedKeyJoinsReplaysAndConflicts() async throws {
            try await TestCluster.with(.init(journal: true), seed: 56) { cluster in
                let door = Door(url: cluster.door.url, flags: ["-H", "idempotency-key: one"])
                let body: JSONValue = [
                    "prompt": "Once upon a time", "max_tokens": 60, "temperature": 1, "stream": true,
                ]
                async let leading = door.post("/v1/completions", body)
                async let following = door.post("/v1/completions", body)
                let (a, b) = (try await leading, try await following)
                let c = try await door.post("/v1/completions", body)
                #expect(a.streamedText == b.streamedText && a.streamedText == c.streamedText)
                #expect(!a.streamedText.isEmpty)
                let jobs = Set([a, b, c].map { $0.headers["x-tandem-job-id"] })
                #expect(jobs.count == 1)
                let other = try await door.post("/v1/completions", ["prompt": "Another"])
                #expect(other.status == 409 && other.json?["error"]?["code"] == "idempotency_conflict", "\(other.text)")
                #expect(other.headers["x-should-retry"] == "false")
                let tenant = try await door.post("/v1/completions", body, ["-H", "x-tandem-tenant: other"])
                #expect(tenant.headers["x-tandem-job-id"] != a.headers["x-tandem-job-id"])

                cluster.kill("coordinator")
                try cluster.startCoordinator()
                try await cluster.waitUntilReady()
                let job = try #require(a.headers["x-tandem-job-id"])
                let replayed = try await door.post("/v1/completions", body)
                #expect(replayed.streamedText == a.streamedText && replayed.headers["x-tandem-job-id"] == job)
                let shown = try await cluster.door.get("/v1/jobs/\(job)")
                #expect(shown.json?["phase"] == "finished", "\(shown.text)")
                let attached = try await cluster.door.get("/v1/jobs/\(job)/events")
                #expect(attached.streamedText == a.streamedText)
            }
        }

        @Test func aRequestsOwnStopTokensHoldForThoseWhoAttach() async throws {
            try await TestCluster.with(seed: 57) { cluster in
                let free = try await cluster.door.post("/v1/completions", Self.asked)
                let text = try #require(free.answeredText)
                let tokens = try await cluster.door.post("/tokenize", ["prompt": .string(text)]).json?["tokens"]
                let stop = try #require(tokens?.arrayValue?.dropFirst(4).first)
                let stopped = try await cluster.door.post("/v1/completions", Self.with("stop_token_ids", [stop]))
                let job = try #require(stopped.headers["x-tandem-job-id"])
                let short = try #require(stopped.answeredText)
                #expect(stopped.json?["choices"]?.arrayValue?.first?["finish_reason"] == "stop")
                #expect(text.hasPrefix(short) && short.utf8.count < text.utf8.count)
                let attached = try await cluster.door.get("/v1/jobs/\(job)/events")
                #expect(attached.streamedText == short)
            }
        }

        // MARK: Sharing

        @Test func aCacheSaltKeepsPagesApartAndTheTextTheSame() async throws {
            try await TestCluster.with(seed: 58) { cluster in
                func ask(_ salt: JSONValue, tenant: String = "one") async throws -> (cached: Int, text: String?) {
                    let reply = try await cluster.door.post(
                        "/v1/completions",
                        [
                            "prompt": .string(Prompts.text(words: 120, seed: 58)), "max_tokens": 20, "seed": 1,
                            "cache_salt": salt,
                        ], ["-H", "x-tandem-tenant: \(tenant)"])
                    let usage = reply.json?["usage"]?["prompt_tokens_details"]?["cached_tokens"]?.intValue
                    return (try #require(usage, "\(reply.text)"), reply.answeredText)
                }
                let first = try await ask(nil)
                #expect(first.cached == 0)
                #expect(try await ask(nil).cached > 0)
                #expect(try await ask("a").cached == 0)
                #expect(try await ask("a").cached > 0)
                #expect(try await ask("b").cached == 0)
                #expect(try await ask("a", tenant: "two").cached == 0)
                #expect(try await ask("a").text == first.text)
                try await cluster.waitUntilPagesAreBack()
            }
        }

        // MARK: Errors

        @Test func everyRefusalHasItsStatusAndNamesItsField() async throws {
            try await SmallCluster.with([], worker: false) { cluster in
                let door = Door(url: cluster.url)
                let cases: [(body: String, status: Int, field: JSONValue, saying: String)] = [
                    (#"{"prompt": "a", "model": "gpt-17"}"#, 404, "model", "gpt-17"),
                    (
                        #"{"prompt": "a", "max_tokens": 600}"#, 400, "max_tokens",
                        "context is 512 tokens; 'prompt' has 1"
                    ),
                    (#"{"prompt": "a", "max_tokens": "ten"}"#, 400, "max_tokens", "an integer"),
                    (#"{"prompt": "a", "max_tokens": 1.5}"#, 400, "max_tokens", "1.5"),
                    (#"{"prompt": "a", "temperature": "hot"}"#, 400, "temperature", "a number"),
                    (#"{"prompt": "a", "stream": 1}"#, 400, "stream", "a boolean"),
                    (#"{"prompt": "a", "n": 0}"#, 400, "n", "from 1 to"),
                    (#"{"prompt": "a", "stop": [1]}"#, 400, "stop", "a string"),
                    (#"{"prompt": "a", "logit_bias": {"x": 1}}"#, 400, "logit_bias", "token ids"),
                    (#"{"prompt": [5, -1]}"#, 400, "prompt", "-1"),
                    (#"{"prompt": {}}"#, 400, "prompt", "an array"),
                    (#"{}"#, 400, "prompt", "required"),
                    (#"{"prompt": "a",}"#, 400, "body", "line 1"),
                    (#"{"prompt": "a", "prompt": "b"}"#, 400, "body", "prompt"),
                    (#"["prompt"]"#, 400, "body", "an array"),
                    (#""#, 400, "body", "JSON"),
                ]
                for one in cases {
                    for flag in ["--http1.1", "--http2-prior-knowledge"] {
                        let reply = try await door.post("/v1/completions", text: one.body, [flag])
                        let error = reply.json?["error"]
                        #expect(reply.status == one.status, "\(one.body): \(reply.text)")
                        #expect(error?["param"] == one.field, "\(one.body): \(reply.text)")
                        #expect(error?["message"]?.stringValue?.contains(one.saying) == true, "\(reply.text)")
                        #expect(error?["type"] == "invalid_request_error" && error?["code"]?.stringValue != nil)
                    }
                }
                let long = try await door.post(
                    "/v1/completions", ["prompt": .string(Prompts.text(words: 900, seed: 1))])
                #expect(long.status == 400 && long.json?["error"]?["code"] == "context_length_exceeded", "\(long.text)")
            }
        }

        @Test func hugeAndStrangeRequestsAreRefusedAndTheDoorStands() async throws {
            try await SmallCluster.with([], worker: false) { cluster in
                let door = Door(url: cluster.url)
                let large = "{\"prompt\": \"" + String(repeating: "a", count: 9 << 20) + "\"}"
                for flags in [["--http1.1"], ["--http1.1", "-H", "expect:"], ["--http2-prior-knowledge"]] {
                    let reply = try await door.post("/v1/completions", text: large, flags)
                    #expect(reply.status == 413, "\(flags): \(reply.text)")
                    #expect(reply.text.contains("8388608"))
                }
                // Long, but lawful: parsed off the loop, and refused for what it says.
                let full = "{\"prompt\": \"" + String(repeating: "a ", count: 1 << 20) + "\"}"
                let refused = try await door.post("/v1/completions", text: full)
                #expect(refused.json?["error"]?["code"] == "context_length_exceeded", "\(refused.text.prefix(300))")
                let members = "{\"prompt\": [" + String(repeating: "1,", count: 1 << 20) + "1]}"
                let many = try await door.post("/v1/completions", text: members)
                #expect(many.status == 400, "\(many.text)")

                let head = "x-long: " + String(repeating: "a", count: 20_000)
                for flag in ["--http1.1", "--http2-prior-knowledge"] {
                    let reply = try await door.get("/v1/models", [flag, "-H", head])
                    #expect(reply.status == 431, "\(flag): \(reply)")
                    let path = try await door.get("/" + String(repeating: "a", count: 9000), [flag])
                    #expect([414, 431].contains(path.status), "\(flag): \(path)")
                }
                let method = try await door.get("/v1/completions")
                #expect(method.status == 405 && method.headers["allow"] == "POST")
                #expect(try await door.post("/v1/embeddings", ["input": "a"]).status == 501)
                #expect(try await door.get("/v2/completions").status == 404)
                #expect(try await door.get("/v1/jobs/none").status == 404)
                let form = try await door.get("/v1/completions", ["-d", "prompt=a"])
                #expect(form.status == 415)
                #expect(try await door.get("/readyz").status == 503)
                #expect(try await door.get("/livez").status == 200)
            }
        }

        // MARK: Keys and tenants

        @Test func aKeyFileDecidesWhoMayDoWhat() async throws {
            let folder = try Scratch.folder()
            defer { try? FileManager.default.removeItem(at: folder) }
            let file = folder.appendingPathComponent("keys").path
            let keys = "# people\nsk-a alpha\nsk-b beta infer,metrics  # and machines\nsk-root ops infer,admin\n"
            try keys.write(toFile: file, atomically: true, encoding: .utf8)
            try await SmallCluster.with(["--api-keys", file]) { cluster in
                func status(_ path: String, _ key: String?) async throws -> Int {
                    let header = key.map { ["-H", "authorization: Bearer \($0)"] } ?? []
                    return try await Door(url: cluster.url).get(path, header).status
                }
                #expect(try await status("/health", nil) == 200)
                let none = try await Door(url: cluster.url).get("/v1/models")
                #expect(none.status == 401 && none.headers["www-authenticate"] == "Bearer", "\(none)")
                #expect(none.json?["error"]?["type"] == "authentication_error")
                #expect(try await status("/v1/models", "sk-c") == 401)
                #expect(try await status("/v1/models", "sk-a") == 200)
                #expect(try await status("/metrics", "sk-a") == 403)
                #expect(try await status("/admin/tenants", "sk-a") == 403, "a key without scopes only infers")
                #expect(try await status("/metrics", "sk-b") == 200)
                #expect(try await status("/admin/cluster", "sk-b") == 403)
                #expect(try await status("/admin/cluster", "sk-root") == 200)

                let door = Door(url: cluster.url, flags: ["-H", "authorization: Bearer sk-a"])
                let done = try await door.post("/v1/completions", Self.asked, ["-H", "x-tandem-tenant: beta"])
                let job = try #require(done.headers["x-tandem-job-id"], "\(done.text)")
                #expect(try await status("/v1/jobs/\(job)", "sk-a") == 200)
                #expect(try await status("/v1/jobs/\(job)", "sk-b") == 404)
                let seen = try await Door(url: cluster.url, flags: ["-H", "authorization: Bearer sk-root"])
                    .get("/v1/jobs/\(job)")
                #expect(seen.json?["tenant"] == "alpha")
            }
        }

        @Test func withoutKeysAHeaderNamesTheTenantAndTenantsSeeAllJobs() async throws {
            try await TestCluster.with(seed: 59) { cluster in
                let done = try await cluster.door.post("/v1/completions", Self.asked, ["-H", "x-tandem-tenant: alpha"])
                let job = try #require(done.headers["x-tandem-job-id"], "\(done.text)")
                #expect(try await cluster.door.get("/v1/jobs/\(job)").json?["tenant"] == "alpha")
                let tenants = try await cluster.client.get("/admin/cluster")["tenants"]?.arrayValue
                #expect(tenants?.contains { $0["name"] == "alpha" } == true)
                let bad = try await cluster.door.post("/v1/completions", Self.asked, ["-H", "x-tandem-tenant: a b"])
                #expect(bad.status == 400 && bad.json?["error"]?["param"] == "x-tandem-tenant", "\(bad.text)")
            }
        }

        // MARK: Many at once

        @Test func manyStreamsOnFewConnectionsLeaveNothingBehind() async throws {
            try await TestCluster.with(seed: 60) { cluster in
                let folder = try Scratch.folder()
                defer { try? FileManager.default.removeItem(at: folder) }
                let file = folder.appendingPathComponent("body")
                try Data(JSON.text(["prompt": "The old king", "max_tokens": 6, "stream": true]).utf8).write(to: file)
                let load = try await Tool.run(
                    "h2load",
                    [
                        "-n", "200", "-c", "3", "-m", "16", "-d", file.path, "-H", "content-type: application/json",
                        cluster.door.url + "/v1/completions",
                    ])
                #expect(load.text.contains("200 succeeded, 0 failed, 0 errored, 0 timeout"), "\(load.text)")
                #expect(load.text.contains("status codes: 200 2xx"), "\(load.text)")
                let page = try await cluster.door.get("/metrics").text
                #expect(page.contains("\ntandem_http_requests_open 1\n"), "requests were kept in memory")
                try await cluster.waitUntilPagesAreBack()
            }
        }
    }
}
