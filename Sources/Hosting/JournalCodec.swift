import BoundedJSON
import CoordinatorCore
import FrontDoor
import Ledger
import Messages
import ServingTypes
import WireCodec

/// What a coordinator writes of a job: the submission and the answer as frames of the wire schema,
/// so that one codec with one set of checks reads both; the request record as JSON.
enum JournalCodec {
    /// Frames name a sender; a journal's is nobody.
    private static let nobody = WorkerRef(id: WorkerID("journal"), epoch: Epoch(0))

    static func record(_ submission: JobSubmission, _ request: JobRequestRecord, attempt: Attempt) throws(ServingError)
        -> JournalRecord
    {
        let message = StartDecode(
            transfer: TransferID(job: submission.job, attempt: attempt), tenant: submission.pageSpace,
            tokens: submission.promptTokens, promptTokens: submission.promptTokens.count,
            pageIDs: submission.pageIDs, sampling: submission.sampling)
        return JournalRecord(
            job: submission.job, tenant: submission.tenant, key: submission.idempotencyKey,
            submission: try frame(.startDecode(message)), request: text(of: request, submission))
    }

    static func submission(_ record: JournalRecord) throws(ServingError) -> (JobSubmission, JobRequestRecord, Attempt) {
        guard case .startDecode(let start) = try message(record.submission) else {
            throw ServingError(.malformed, "journal: job \(record.job) holds another message than its submission")
        }
        var (request, priority, deadline) = try request(record)
        request.stopTokens = start.sampling.stopTokens
        let submission = JobSubmission(
            job: record.job, tenant: record.tenant, promptTokens: start.tokens, pageIDs: start.pageIDs,
            sampling: start.sampling, priority: priority, deadline: deadline, idempotencyKey: record.key,
            pageSpace: start.tenant)
        return (submission, request, start.transfer.attempt)
    }

    static func answer(_ outcome: JobOutcome, tokens: [SampledToken]) throws(ServingError) -> JournalAnswer {
        let step = TokenStep(
            transfer: TransferID(job: outcome.job, attempt: Attempt(UInt32(clamping: outcome.route.attempts))),
            offset: 0,
            tokens: tokens, cachedTokens: outcome.usage.cachedTokens)
        let frame = try frame(.tokenSteps(TokenSteps(iteration: 0, computeTime: .zero, steps: [step])))
        return JournalAnswer(output: frame, ending: JSON.text(ending(outcome)))
    }

    /// Tokens and ending of a job that was answered before this process began.
    static func outcome(_ record: JournalRecord, _ answer: JournalAnswer, promptTokens: Int) throws(ServingError) -> (
        JobOutcome, [SampledToken]
    ) {
        guard case .tokenSteps(let steps) = try message(answer.output), let step = steps.steps.first else {
            throw ServingError(.malformed, "journal: job \(record.job) holds another message than its answer")
        }
        var usage = JobUsage()
        usage.promptTokens = promptTokens
        usage.outputTokens = step.tokens.count
        usage.cachedTokens = step.cachedTokens
        var route = JobRoute()
        route.attempts = Int(step.transfer.attempt.number)
        let outcome = JobOutcome(
            job: record.job, tenant: record.tenant, ending: try ending(answer.ending), usage: usage,
            stamps: JobStamps(received: .zero), route: route)
        return (outcome, step.tokens)
    }

    private static func frame(_ message: Message) throws(ServingError) -> [UInt8] {
        do {
            return try FrameCodec().encode(Envelope(sequence: 0, sender: nobody, message: message))
        } catch {
            throw ServingError(.internalError, "journal: \(error)")
        }
    }

    private static func message(_ bytes: [UInt8]) throws(ServingError) -> Message {
        do {
            var decoder = FrameDecoder()
            bytes.withUnsafeBytes { decoder.push($0) }
            if let frame = try decoder.next() { return frame.envelope.message }
        } catch {
            throw ServingError(.malformed, "journal: \(error)")
        }
        throw ServingError(.malformed, "journal: an entry is cut off after \(bytes.count) bytes")
    }

    private static func text(of request: JobRequestRecord, _ submission: JobSubmission) -> String {
        let words = request.digest.words
        return JSON.text(
            .object(
                JSONObject([
                    ("kind", .string(request.kind.rawValue)), ("model", .string(request.model)),
                    ("created", .integer(request.created)), ("detached", .bool(request.detached)),
                    ("priority", .integer(Int64(submission.priority))),
                    ("deadline_ms", submission.deadline.map { .integer($0.nanoseconds / 1_000_000) } ?? .null),
                    ("digest", .array([words.0, words.1, words.2, words.3].map { .string(String($0)) })),
                    ("stop", .array(request.stopStrings.map { .string($0) })),
                    ("skip_special", .bool(request.skipsSpecialTokens)),
                ])))
    }

    private static func request(_ record: JournalRecord) throws(ServingError) -> (
        JobRequestRecord, priority: Int, deadline: TimeSpan?
    ) {
        guard let json = try? JSON.parse(Array(record.request.utf8)),
            let kind = json["kind"]?.stringValue.flatMap(JobRequestRecord.Kind.init),
            let model = json["model"]?.stringValue, let created = json["created"]?.intValue,
            let digest = json["digest"]?.arrayValue?.compactMap({ $0.stringValue.flatMap(UInt64.init) }),
            digest.count == 4
        else { throw ServingError(.malformed, "journal: the request of job \(record.job) is unreadable") }
        let request = JobRequestRecord(
            kind: kind, model: model, created: Int64(created),
            digest: PageID(digest[0], digest[1], digest[2], digest[3]),
            stopStrings: (json["stop"]?.arrayValue ?? []).compactMap(\.stringValue),
            detached: json["detached"]?.boolValue ?? false,
            skipsSpecialTokens: json["skip_special"]?.boolValue ?? true)
        // No later than the range of a deadline's header, whatever the file says.
        let deadline = json["deadline_ms"]?.intValue.map { TimeSpan.milliseconds(Int64(min(max($0, 1), 3_600_000))) }
        return (request, json["priority"]?.intValue ?? 0, deadline)
    }

    private static func ending(_ outcome: JobOutcome) -> JSONValue {
        switch outcome.ending {
        case .finished(let reason): .object(JSONObject([("finished", .string(reason.rawValue))]))
        case .failed(let error):
            .object(JSONObject([("failed", .string(error.code.name)), ("message", .string(error.message))]))
        }
    }

    private static func ending(_ text: String) throws(ServingError) -> JobEnding {
        let json = try? JSON.parse(Array(text.utf8))
        if let reason = json?["finished"]?.stringValue.flatMap(FinishReason.init) { return .finished(reason) }
        if let code = json?["failed"]?.stringValue {
            return .failed(ServingError(.init(code), json?["message"]?.stringValue ?? code))
        }
        throw ServingError(.malformed, "journal: unreadable ending")
    }
}
