import BoundedJSON
import CoordinatorCore
import ServingTypes
import Testing

@testable import FrontDoor

/// Quotas, latency objectives and the tenants' table.
@Suite struct TenantTests {
    private static func desk(_ settings: String) throws -> Desk {
        let desk = try Desk()
        desk.jobs.tenantSettings = try TenantSettings.table(settings)
        desk.jobs.answerEverything(with: "abc")
        return desk
    }

    private static let body = #"{"prompt":"hello","max_tokens":4}"#

    // MARK: Quotas

    @Test func anAnswerTellsWhatIsLeftOfTheQuota() throws {
        let desk = try Self.desk("default:requests-per-minute=60,tokens-per-minute=600")
        try desk.post("/v1/completions", Self.body)
        let answer = try desk.answer()
        #expect(answer.status == 200)
        #expect(answer["x-ratelimit-limit-requests"] == "60")
        #expect(answer["x-ratelimit-remaining-requests"] == "59")
        #expect(answer["x-ratelimit-reset-requests"] == "1s")
        #expect(answer["x-ratelimit-limit-tokens"] == "600")
        #expect(answer["x-ratelimit-remaining-tokens"] == "591", "5 for the prompt, 4 asked for")
        #expect(answer["x-ratelimit-reset-tokens"] == "900ms")
    }

    @Test func withoutQuotasThereAreNoSuchHeaders() throws {
        let desk = try Self.desk("default:weight=3")
        try desk.post("/v1/completions", Self.body)
        let answer = try desk.answer()
        #expect(answer.status == 200)
        #expect(answer["x-ratelimit-limit-requests"] == nil)
    }

    @Test func beyondItsRequestsATenantIsToldWhenTheNextOneIsFree() throws {
        let desk = try Self.desk("default:requests-per-minute=2")
        for _ in 0..<2 {
            try desk.post("/v1/completions", Self.body)
            #expect(try desk.answer().status == 200)
        }
        try desk.post("/v1/completions", Self.body)
        let refused = try desk.answer()
        #expect(refused.status == 429)
        #expect(refused["retry-after"] == "30")
        #expect(refused["x-ratelimit-remaining-requests"] == "0")
        #expect(refused.error?["code"]?.stringValue == "rate_limit_exceeded")
        #expect(refused.error?["param"]?.stringValue == "requests_per_minute")
        #expect(refused.error?["message"]?.stringValue?.contains("2 requests per minute") == true)
        desk.jobs.now = Instant.zero + .seconds(30)
        try desk.post("/v1/completions", Self.body)
        #expect(try desk.answer().status == 200)
    }

    @Test func aRepeatedKeyTakesNothingFromTheQuota() throws {
        let desk = try Self.desk("default:requests-per-minute=2,tokens-per-minute=40")
        let two = #"{"prompt":"hello","max_tokens":4,"n":2}"#
        for turn in 0..<4 {
            try desk.post("/v1/completions", two, headers: ["idempotency-key: k"])
            let answer = try desk.answer()
            #expect(answer.status == 200, "turn \(turn)")
            #expect(answer["x-ratelimit-remaining-requests"] == "1", "turn \(turn)")
            #expect(answer["x-ratelimit-remaining-tokens"] == "22", "turn \(turn): 2 times 9, once")
        }
        #expect(desk.jobs.all.count == 2)
        try desk.post("/v1/completions", Self.body, headers: ["idempotency-key: other"])
        #expect(try desk.answer().status == 200)
        try desk.post("/v1/completions", two, headers: ["idempotency-key: k"])
        #expect(try desk.answer().status == 200, "though nothing is left")
        try desk.post("/v1/completions", Self.body, headers: ["idempotency-key: third"])
        #expect(try desk.answer().status == 429)
    }

    @Test func oneTenantsQuotaIsNobodyElses() throws {
        let desk = try Self.desk("acme:requests-per-minute=1")
        for (tenant, status) in [("acme", 200), ("acme", 429), ("other", 200)] {
            try desk.post("/v1/completions", Self.body, headers: ["x-tandem-tenant: \(tenant)"])
            #expect(try desk.answer().status == status)
        }
    }

    @Test func aRequestThatCanNeverFitIsNotToldToRetry() throws {
        let desk = try Self.desk("default:tokens-per-minute=8")
        try desk.post("/v1/completions", Self.body)
        let refused = try desk.answer()
        #expect(refused.status == 400)
        #expect(refused["retry-after"] == nil)
        #expect(refused.error?["message"]?.stringValue?.contains("9 tokens") == true)
    }

    @Test func jobsAtOnceAreCountedWithThoseOfTheRequest() throws {
        let desk = try Desk()
        desk.jobs.tenantSettings = try TenantSettings.table("default:concurrent-jobs=2")
        desk.jobs.onSubmit = { jobs, job in jobs.admit(job) }
        var quotas = TenantQuotas()
        let settings = desk.jobs.settings(of: .anonymous)
        let refused = quotas.take(.anonymous, settings, jobs: 2, tokens: 1, live: 1, at: .zero)
        #expect(refused?.code == .rateLimited)
        #expect(refused?.field == "concurrent_jobs")
        let taken = quotas.take(.anonymous, settings, jobs: 1, tokens: 1, live: 1, at: .zero)
        #expect(taken == nil)
        try desk.post("/v1/completions", #"{"prompt":"hello","max_tokens":4,"n":3}"#)
        let answer = try desk.answer()
        #expect(answer.status == 400, "three will never fit, so that nobody is told to retry")
        #expect(answer.error?["param"]?.stringValue == "n")
        #expect(answer["retry-after"] == nil)
        #expect(desk.jobs.all.isEmpty, "none of the three was submitted")
    }

    @Test func whatARefusedRequestDidNotSubmitIsGivenBack() throws {
        let desk = try Self.desk("default:tokens-per-minute=100")
        var count = 0
        desk.jobs.onSubmit = { jobs, job in
            count += 1
            if count == 2 { jobs.refuse(job, ServingError(.queueFull, "full", retryAfterSeconds: 1)) }
        }
        try desk.post("/v1/completions", #"{"prompt":"hello","max_tokens":4,"n":4}"#)
        #expect(try desk.answer().status == 429)
        #expect(desk.jobs.all.count == 2)
        let left = desk.jobs.quota(of: .anonymous).tokens?.remaining
        #expect(
            left == 100 - 2 * 9, "two were submitted, 9 tokens each; what these did not use is the coordinator's to say"
        )
    }

    @Test func aQuotaThatIsSetLaterFindsAFullBucket() {
        var quotas = TenantQuotas()
        var settings = TenantSettings()
        settings.tokensPerMinute = 1_000_000
        for _ in 0..<500 {
            let refused = quotas.take(TenantID("a"), settings, jobs: 1, tokens: 10, live: 0, at: .zero)
            #expect(refused == nil)
        }
        settings.requestsPerMinute = 2
        #expect(quotas.state(TenantID("a"), settings, at: .zero).requests?.remaining == 2)
        #expect(quotas.take(TenantID("a"), settings, jobs: 1, tokens: 10, live: 0, at: .zero) == nil)
    }

    @Test func aQuotaThatGrowsKeepsWhatWasUsed() {
        var quotas = TenantQuotas()
        var settings = TenantSettings()
        settings.requestsPerMinute = 10
        for _ in 0..<10 { _ = quotas.take(TenantID("a"), settings, jobs: 1, tokens: 1, live: 0, at: .zero) }
        #expect(quotas.take(TenantID("a"), settings, jobs: 1, tokens: 1, live: 0, at: .zero) != nil)
        settings.requestsPerMinute = 15
        #expect(quotas.state(TenantID("a"), settings, at: .zero).requests?.remaining == 5)
    }

    @Test func aBucketRefillsEvenlyAndHoldsAMinutesWorth() {
        var quotas = TenantQuotas()
        var settings = TenantSettings()
        settings.tokensPerMinute = 600
        let tenant = TenantID("a")
        #expect(quotas.take(tenant, settings, jobs: 1, tokens: 600, live: 0, at: .zero) == nil)
        #expect(quotas.take(tenant, settings, jobs: 1, tokens: 10, live: 0, at: .zero)?.retryAfterSeconds == 1)
        let later = Instant.zero + .seconds(1)
        #expect(quotas.take(tenant, settings, jobs: 1, tokens: 10, live: 0, at: later) == nil)
        quotas.giveBack(tenant, tokens: 10_000)
        #expect(quotas.state(tenant, settings, at: later).tokens?.remaining == 600, "no more than the bucket holds")
        #expect(quotas.state(tenant, settings, at: Instant.zero + .seconds(600)).tokens?.remaining == 600)
    }

    // MARK: Settings

    @Test func settingsReadBackAsTheyWereWritten() throws {
        let table = try TenantSettings.table("acme:weight=2.5,requests-per-minute=60; *:concurrent-jobs=8")
        #expect(table.count == 2)
        let acme = try #require(table[TenantID("acme")])
        #expect(acme.weight == 2.5)
        #expect(try TenantSettings(acme.text) == acme)
        #expect(table[TenantSettings.everybody]?.concurrentJobs == 8)
    }

    @Test(arguments: [
        "acme", "acme:weight", "acme:weight=0", "acme:weight=x", "acme:colour=red", "a:weight=1;a:weight=2",
        ":weight=1", "*:weight=2", "acme:tokens-per-minute=0", "acme:requests-per-minute=1e99", "acme:weight=nan",
    ])
    func unlawfulSettingsAreRefusedBySentence(_ text: String) {
        #expect(throws: ServingError.self) { try TenantSettings.table(text) }
    }

    // MARK: Objectives

    @Test func objectivesReachTheSubmission() throws {
        let desk = try Self.desk("")
        try desk.post(
            "/v1/completions", #"{"prompt":"hello","max_tokens":4,"priority":-3}"#,
            headers: ["x-slo-ttft-ms: 250", "x-slo-deadline-ms: 4000"])
        #expect(try desk.answer().status == 200)
        let submission = try #require(desk.jobs.all.first?.submission)
        #expect(submission.priority == -3)
        #expect(submission.due == .milliseconds(250))
        #expect(submission.deadline == .seconds(4))
    }

    @Test(arguments: ["0", "-1", "soon", "3600001", "1.5"])
    func unlawfulObjectivesAreRefusedByName(_ value: String) throws {
        let desk = try Self.desk("")
        try desk.post("/v1/completions", Self.body, headers: ["x-slo-ttft-ms: \(value)"])
        let refused = try desk.answer()
        #expect(refused.status == 400)
        #expect(refused.error?["param"]?.stringValue == "x-slo-ttft-ms")
    }

    @Test func aFirstTokenDueAfterTheDeadlineIsAContradiction() throws {
        let desk = try Self.desk("")
        try desk.post(
            "/v1/completions", Self.body, headers: ["x-slo-ttft-ms: 500", "x-slo-deadline-ms: 400"])
        #expect(try desk.answer().status == 400)
    }

    // MARK: The table

    @Test func theTableIsForAdministrators() throws {
        let desk = try Desk {
            $0.keys = [
                APIKey(name: "user", plain: "u", tenant: TenantID("acme")),
                APIKey(name: "root", plain: "r", tenant: TenantID("ops"), scopes: [.admin]),
            ]
        }
        try desk.get("/admin/tenants", headers: ["authorization: Bearer u"])
        #expect(try desk.answer().status == 403)
        try desk.get("/admin/tenants", headers: ["authorization: Bearer r"])
        #expect(try desk.answer().status == 200)
    }

    @Test func theTableShowsSharesAndTokens() throws {
        let desk = try Desk()
        var report = TenantReport(tenant: TenantID("acme"), settings: TenantSettings(), weight: 2)
        report.entitledShare = 0.5
        report.servedShare = 0.25
        report.tokens.outputTokens = 7
        report.firstTokenMedian = .milliseconds(12)
        desk.jobs.reports = [report]
        try desk.get("/admin/tenants?window=30")
        let table = try desk.answer().json
        #expect(table["window_seconds"]?.doubleValue == 30)
        let first = table["data"]?.arrayValue?.first
        #expect(first?["name"]?.stringValue == "acme")
        #expect(first?["entitled_share"]?.doubleValue == 0.5)
        #expect(first?["tokens"]?["decoded"]?.intValue == 7)
        #expect(first?["ttft_ms"]?["p50"]?.doubleValue == 12)
        #expect(first?["ttft_ms"]?["p99"] == .some(.null))
    }

    @Test func aSettingIsChangedAloneAndTakenAwayByNull() throws {
        let desk = try Desk()
        try desk.post("/admin/tenants", #"{"tenant":"acme","weight":4,"tokens_per_minute":100}"#)
        #expect(try desk.answer().status == 200)
        try desk.post("/admin/tenants", #"{"tenant":"acme","tokens_per_minute":null,"concurrent_jobs":2}"#)
        #expect(try desk.answer().status == 200)
        let settings = desk.jobs.settings(of: TenantID("acme"))
        #expect(settings.weight == 4)
        #expect(settings.tokensPerMinute == nil)
        #expect(settings.concurrentJobs == 2)
    }

    @Test(arguments: [
        #"{"weight":4}"#, #"{"tenant":"","weight":4}"#, #"{"tenant":"a","weight":"x"}"#,
        #"{"tenant":"a","weight":-1}"#, #"{"tenant":"*","weight":2}"#, #"{"tenant":"a","colour":1}"#,
        #"{"tenant":"a","concurrent_jobs":0}"#,
    ])
    func anUnlawfulChangeChangesNothing(_ body: String) throws {
        let desk = try Desk()
        try desk.post("/admin/tenants", body)
        #expect(try desk.answer().status == 400)
        #expect(desk.jobs.tenantSettings.isEmpty)
    }
}
