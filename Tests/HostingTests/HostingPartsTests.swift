import BoundedJSON
import CoordinatorCore
import Foundation
import FrontDoor
import KVPaging
import Messages
import ServingTypes
import Testing

@testable import Hosting

@Suite struct SHA256PageNamingTests {
    private func naming(_ block: Int = 4) -> SHA256PageNaming {
        SHA256PageNaming(
            compatibility: ClusterDigest.base(model: PageID(1, 2, 3, 4), kvType: "bf16", blockTokens: block))
    }

    private let tokens = (0..<12).map { TokenID($0) }

    @Test func aNameDependsOnEveryTokenBeforeItAndOnNoneAfter() {
        let names = naming().names(of: tokens, blockTokens: 4, tenant: .anonymous)
        #expect(names.count == 3)
        for position in tokens.indices {
            var changed = tokens
            changed[position] = TokenID(99)
            let other = naming().names(of: changed, blockTokens: 4, tenant: .anonymous)
            for block in names.indices {
                #expect((other[block] == names[block]) == (position / 4 > block), "token \(position), block \(block)")
            }
        }
    }

    @Test func tenantsModelsAndBlockSizesNeverShareAName() {
        let one = naming().names(of: tokens, blockTokens: 4, tenant: TenantID("one"))
        let two = naming().names(of: tokens, blockTokens: 4, tenant: TenantID("two"))
        let wide = naming(8).names(of: tokens, blockTokens: 4, tenant: TenantID("one"))
        #expect(Set(one).isDisjoint(with: two))
        #expect(Set(one).isDisjoint(with: wide))
    }

    @Test func theHashIsSHA256() {
        // FIPS 180-2, "abc": the first 64 bits as a little-endian word.
        #expect(PageID(hashing: "abc".utf8).words.0 == UInt64(bigEndian: 0xba78_16bf_8f01_cfea))
    }
}

@Suite struct JournalCodecTests {
    private func submission() -> JobSubmission {
        var sampling = SamplingParameters()
        sampling.seed = .max
        sampling.temperature = 0.7
        sampling.logitBias = [TokenBias(token: TokenID(5), bias: -2.5)]
        sampling.stopTokens = [TokenID(1), TokenID(2)]
        return JobSubmission(
            job: JobID(high: 3, low: 4), tenant: TenantID("acme"), promptTokens: (0..<20).map { TokenID($0 * 3) },
            pageIDs: [PageID(1, 2, 3, 4)], sampling: sampling, priority: -3, idempotencyKey: "key")
    }

    private let request = JobRequestRecord(
        kind: .chat, model: "m", created: 17, digest: PageID(.max, 1, 2, 3), stopStrings: ["\n\n", "é"], detached: true,
        stopTokens: [TokenID(1), TokenID(2)], skipsSpecialTokens: false)

    @Test func aSubmissionComesBackAsItWas() throws {
        let record = try JournalCodec.record(submission(), request, attempt: Attempt(4))
        let (back, request, attempt) = try JournalCodec.submission(record)
        #expect(back == submission())
        #expect(request == self.request)
        #expect(attempt == Attempt(4))
    }

    @Test func anAnswerComesBackWithItsTokensAndItsEnding() throws {
        let tokens = [
            SampledToken(token: TokenID(1), logprob: -0.5, top: [TokenLogprob(token: TokenID(2), logprob: -1)]),
            SampledToken(token: TokenID(9)),
        ]
        let failure = ServingError(.poisoned, "two workers died of it")
        for ending in [JobEnding.finished(.stop), .failed(failure)] {
            let outcome = JobOutcome(
                job: JobID(high: 3, low: 4), tenant: TenantID("acme"), ending: ending, usage: JobUsage(),
                stamps: JobStamps(received: .zero), route: JobRoute())
            let answer = try JournalCodec.answer(outcome, tokens: tokens)
            let record = try JournalCodec.record(submission(), request, attempt: .first)
            let (back, backTokens) = try JournalCodec.outcome(record, answer, promptTokens: 20)
            #expect(back.ending == ending)
            #expect(back.usage.outputTokens == 2)
            #expect(backTokens == tokens)
        }
    }

    @Test func damagedEntriesAreErrorsAndNeverTraps() throws {
        var record = try JournalCodec.record(submission(), request, attempt: .first)
        for length in 0..<record.submission.count {
            var cut = record
            cut.submission = Array(record.submission.prefix(length))
            #expect(throws: ServingError.self, "cut at \(length)") { try JournalCodec.submission(cut) }
        }
        record.request = "{\"kind\": \"chat\"}"
        #expect(throws: ServingError.self) { try JournalCodec.submission(record) }
    }
}

@Suite struct HostingPartsTests {
    @Test func keysAreForgottenOldestFirstAtTheirBound() {
        var keys = IdempotencyKeys()
        for number in 0...IdempotencyKeys.max {
            keys.remember("key-\(number)", of: .anonymous, job: JobID(high: 0, low: UInt64(number)))
        }
        #expect(keys.job(of: "key-0", of: .anonymous) == nil)
        #expect(keys.job(of: "key-1", of: .anonymous) == JobID(high: 0, low: 1))
        #expect(keys.job(of: "key-1", of: TenantID("other")) == nil)
    }

    @Test func theFirstWorkerDecidesWhatOthersMustBeCompatibleWith() {
        let admission = LinkAdmission()
        func hello(_ name: String, _ digest: UInt64, _ purpose: LinkPurpose = .control) -> Hello {
            Hello(
                sender: WorkerRef(id: WorkerID(name), epoch: Epoch(1)), role: .decode,
                compatibility: CompatibilityDigest(PageID(digest, 0, 0, 0)), purpose: purpose)
        }
        #expect(admission.judge(hello("a", 1)) == .accepted)
        admission.joined(hello("a", 1))
        #expect(admission.judge(hello("b", 1)) == .accepted)
        guard case .refused(let sentence) = admission.judge(hello("b", 2)) else {
            Issue.record("another digest was let in")
            return
        }
        #expect(sentence.contains("b") && sentence.contains("--kv-type"))
        #expect(admission.judge(hello("c", 1, .pages)) != .accepted)
        admission.left(hello("a", 1).sender)
        #expect(admission.judge(hello("b", 2)) == .accepted)
    }

    @Test func aKeyFileNamesTheLineAtFault() throws {
        let file = FileManager.default.temporaryDirectory.appendingPathComponent("keys-\(UUID().uuidString)")
        defer { try? FileManager.default.removeItem(at: file) }
        try "# comment\n\nsecret acme\nother beta infer,metrics # note\n".write(
            to: file, atomically: true, encoding: .utf8)
        let keys = try KeyFile.read(file.path)
        #expect(keys.map(\.tenant.name) == ["acme", "beta"])
        #expect(keys.map(\.scopes) == [[.infer], [.infer, .metrics]], "without scopes a key only infers")
        try "secret acme\nlonely\n".write(to: file, atomically: true, encoding: .utf8)
        #expect { try KeyFile.read(file.path) } throws: { ($0 as? ServingError)?.message.contains("line 2") == true }
        try "secret acme root\n".write(to: file, atomically: true, encoding: .utf8)
        #expect { try KeyFile.read(file.path) } throws: { ($0 as? ServingError)?.message.contains("root") == true }
    }

    @Test func hostAndPortAreReadAndRefusedByName() throws {
        #expect(try HostPort("127.0.0.1:80", field: "x") == HostPort(host: "127.0.0.1", port: 80))
        #expect(try HostPort("[::1]:80", field: "x").port == 80)
        for text in ["", ":80", "host", "host:", "host:70000", "host:-1"] {
            #expect { try HostPort(text, field: "relay") } throws: {
                ($0 as? ServingError)?.message.contains("relay") == true
            }
        }
    }
}
