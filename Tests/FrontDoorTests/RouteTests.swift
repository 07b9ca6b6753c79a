import BoundedJSON
import ServingTypes
import Testing

@testable import FrontDoor

@Suite struct RouteTests {
    @Test func modelsListTheModelAndItsAliases() throws {
        let desk = try Desk()
        try desk.get("/v1/models")
        let answer = try desk.answer()
        #expect(answer.status == 200)
        #expect(answer["content-type"] == "application/json")
        let ids = answer.json["data"]?.arrayValue?.compactMap { $0["id"]?.stringValue }
        #expect(ids == ["tiny", "org/tiny"])
        #expect(answer.json["data"]?.arrayValue?.first?["max_model_len"]?.intValue == 200)
    }

    @Test func oneModelIsFoundByAnAliasWithASlash() throws {
        let desk = try Desk()
        try desk.get("/v1/models/org/tiny")
        #expect(try desk.answer().json["id"]?.stringValue == "org/tiny")
        try desk.get("/v1/models/org%2Ftiny")
        #expect(try desk.answer().json["id"]?.stringValue == "org/tiny")
        try desk.get("/v1/models/gpt-4")
        let missing = try desk.answer()
        #expect(missing.status == 404)
        #expect(missing.error?["code"]?.stringValue == "model_not_found")
    }

    @Test func livenessAnswersWhateverTheClusterDoes() throws {
        let desk = try Desk()
        desk.jobs.readiness = .notReady("no decode worker serves")
        for path in ["/livez", "/live", "/ping"] {
            try desk.get(path)
            #expect(try desk.answer().status == 200, "\(path)")
        }
        for path in ["/health", "/readyz", "/ready"] {
            try desk.get(path)
            let answer = try desk.answer()
            #expect(answer.status == 503, "\(path)")
            #expect(answer.json["reason"]?.stringValue == "no decode worker serves")
            #expect(answer["retry-after"] == "1")
        }
    }

    @Test func readinessFollowsTheCluster() throws {
        let desk = try Desk()
        try desk.get("/readyz")
        #expect(try desk.answer().status == 200)
        desk.jobs.readiness = .draining
        try desk.get("/readyz")
        #expect(try desk.answer().json["status"]?.stringValue == "draining")
    }

    @Test func versionAndMetricsAreServed() throws {
        let desk = try Desk(metricsPage: "vllm:num_requests_running 3\n")
        try desk.get("/version")
        #expect(try desk.answer().json["version"]?.stringValue == "0.0")
        try desk.get("/metrics")
        let answer = try desk.answer()
        #expect(answer["content-type"] == "text/plain; version=0.0.4; charset=utf-8")
        #expect(answer.body.hasPrefix("vllm:num_requests_running 3\n# HELP tandem_http_requests_total"))
        #expect(answer.body.contains("tandem_http_requests_total{route=\"version\",status=\"200\"} 1\n"))
    }

    @Test func headAnswersWithoutABody() throws {
        let desk = try Desk()
        try desk.get("/v1/models", method: "HEAD")
        let text = try desk.output()
        #expect(text.hasPrefix("HTTP/1.1 200 OK\r\n"))
        #expect(text.hasSuffix("\r\n\r\n"))
        #expect(text.contains("content-length: "))
    }

    @Test func tokenizeCountsAndSpellsTokens() throws {
        let desk = try Desk()
        try desk.post("/tokenize", #"{"prompt":"ab<|end|>","return_token_strs":true}"#)
        let json = try desk.answer().json
        #expect(json["tokens"] == [97, 98, 256])
        #expect(json["count"]?.intValue == 3)
        #expect(json["max_model_len"]?.intValue == 200)
        #expect(json["token_strs"] == ["a", "b", "<|end|>"])
    }

    @Test func tokenizeRendersMessages() throws {
        let desk = try Desk()
        try desk.post("/v1/tokenize", #"{"messages":[{"role":"user","content":"hi"}]}"#)
        #expect(try desk.answer().json["count"]?.intValue == "user: hi\nassistant:".utf8.count)
    }

    @Test func detokenizeUndoesTokenize() throws {
        let desk = try Desk()
        try desk.post("/detokenize", #"{"tokens":[226,130,172,257]}"#)
        #expect(try desk.answer().json["prompt"]?.stringValue == "€tandem")
        try desk.post("/detokenize", #"{"tokens":[258]}"#)
        let refused = try desk.answer()
        #expect(refused.status == 400)
        #expect(
            refused.error?["message"]?.stringValue
                == "'tokens' holds 258, which is no token id; ids are from 0 to 257.")
    }

    @Test func theClusterIsShownAsJSON() throws {
        let desk = try Desk()
        try desk.get("/admin/cluster")
        let json = try desk.answer().json
        #expect(json["policy"]?.stringValue == "fcfs")
        #expect(json["workers"]?.arrayValue?.first?["name"]?.stringValue == "decode-0")
        #expect(json["workers"]?.arrayValue?.first?["role"]?.stringValue == "decode")
        #expect(json["queued_jobs"]?.intValue == 2)
        #expect(json["counters"]?["admitted"]?.intValue == 0)
        #expect(json["readiness"]?.stringValue == "ready")
    }

    @Test func aWorkerIsDrainedByName() throws {
        let desk = try Desk()
        try desk.post("/admin/drain", #"{"worker":"decode-0","deadline_seconds":2.5}"#)
        #expect(try desk.answer().status == 202)
        #expect(desk.jobs.drainedWorkers.first?.1 == TimeSpan.milliseconds(2500))
        try desk.post("/admin/drain", #"{"worker":"decode-9"}"#)
        let missing = try desk.answer()
        #expect(missing.status == 404)
        #expect(missing.error?["message"]?.stringValue == #"There is no worker "decode-9"."#)
    }

    @Test func jobsAreListedShownAndCancelled() throws {
        let desk = try Desk()
        try desk.post("/v1/completions", #"{"prompt":"ab","stream":true}"#)
        let job = try #require(desk.jobs.all.first)
        desk.jobs.admit(job)
        _ = try desk.output()
        try desk.reconnect()
        try desk.get("/v1/jobs?limit=5")
        let list = try desk.answer().json
        #expect(list["data"]?.arrayValue?.count == 1)
        #expect(list["data"]?.arrayValue?.first?["status"]?.stringValue == "decoding")
        let id = job.submission.job.description
        try desk.get("/v1/jobs/\(id)", method: "DELETE")
        #expect(try desk.answer().json["cancelled"]?.boolValue == true)
        #expect(desk.jobs.cancelled == [job.submission.job])
        try desk.get("/v1/jobs/\(id)")
        let shown = try desk.answer().json
        #expect(shown["status"]?.stringValue == "cancelled")
        #expect(shown["kind"]?.stringValue == "completion")
        #expect(shown["timing"]?["ttft_ms"]?.doubleValue == 5)
        #expect(shown["timing"]?["jct_ms"]?.doubleValue == 25)
        #expect(shown["stamps_ms"]?["first_token"]?.doubleValue == 5)
        #expect(shown["route"]?["kv_bytes_moved"]?.intValue == 4096)
        try desk.get("/v1/jobs/\(id)", method: "DELETE")
        #expect(try desk.answer().json["cancelled"]?.boolValue == false)
    }

    @Test func anUnknownJobIsNotFound() throws {
        let desk = try Desk()
        for path in ["/v1/jobs/xyz", "/v1/jobs/\(String(repeating: "0", count: 32))", "/v1/jobs/xyz/events"] {
            try desk.get(path)
            let answer = try desk.answer()
            #expect(answer.status == 404, "\(path)")
            #expect(answer.error?["code"]?.stringValue == "not_found")
        }
    }
}
