import Foundation
import GRDB
import ServingTypes

/// One admitted job as it lies in the journal. What the layers above encode (the submission, the
/// request, the answer) is bytes here: the journal keeps and returns it, and looks inside nothing.
public struct JournalRecord: Hashable, Sendable {
    public var job: JobID
    public var tenant: TenantID
    public var key: String?
    /// The submission, as a StartDecode frame.
    public var submission: [UInt8]
    /// The request record, as JSON text.
    public var request: String
    public var answer: JournalAnswer?

    public init(
        job: JobID, tenant: TenantID, key: String?, submission: [UInt8], request: String,
        answer: JournalAnswer? = nil
    ) {
        self.job = job
        self.tenant = tenant
        self.key = key
        self.submission = submission
        self.request = request
        self.answer = answer
    }
}

/// What a job came to: its tokens as a TokenSteps frame, and how it ended, as JSON text.
public struct JournalAnswer: Hashable, Sendable {
    public var output: [UInt8]
    public var ending: String

    public init(output: [UInt8], ending: String) {
        self.output = output
        self.ending = ending
    }
}

extension JournalRecord {
    func insert(_ db: Database) throws {
        try db.execute(
            sql: "INSERT INTO job (id, tenant, key, submission, request) VALUES (?, ?, ?, ?, ?)",
            arguments: [job.description, tenant.name, key, Data(submission), request])
    }

    /// Nil for a row that no version of this program wrote.
    init?(row: Row) {
        guard let job = row.text("id").flatMap({ JobID($0) }), let tenant = row.text("tenant"),
            let submission = row.data("submission"), let request = row.text("request")
        else { return nil }
        self.init(
            job: job, tenant: TenantID(tenant), key: row.text("key"), submission: [UInt8](submission), request: request)
        if let ending = row.text("ending"), let output = row.data("answer") {
            answer = JournalAnswer(output: [UInt8](output), ending: ending)
        }
    }
}
