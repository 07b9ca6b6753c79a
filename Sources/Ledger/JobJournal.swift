import Foundation
import GRDB
import ServingTypes

/// The journal of admitted jobs. A job with an idempotency key is on disk before its client hears of
/// it, so a restarted coordinator finishes it exactly once (reliability.md §2.4).
public final class JobJournal: Sendable {
    public enum Limits {
        /// How long an ended job's answer stays for a repeated request.
        public static let keptSeconds: Int64 = 600
    }

    private let store: LedgerStore

    public init(store: LedgerStore) { self.store = store }

    /// A journal in a file of its own.
    public convenience init(path: String) throws(ServingError) { self.init(store: try LedgerStore(path: path)) }

    /// Appends an admitted job. `done` runs on the writer's queue once the record is on disk, or
    /// with what kept it from getting there; the same (tenant, key) twice is a conflict.
    public func admit(_ record: JournalRecord, done: (@Sendable (ServingError?) -> Void)?) {
        store.enqueue(
            [LedgerStore.Write(apply: { try record.insert($0) }, done: done)], isUrgent: done != nil,
            isBounded: done != nil)
    }

    /// Records the answer of a job. Keyless jobs are forgotten, keyed ones kept for replays.
    public func settle(_ job: JobID, answer: JournalAnswer, endedAtSeconds: Int64) {
        store.enqueue(
            [settling(job, answer: answer, endedAtSeconds: endedAtSeconds)], isUrgent: true, isBounded: false)
    }

    /// The same as a write that can go together with others.
    public func settling(_ job: JobID, answer: JournalAnswer, endedAtSeconds: Int64) -> LedgerStore.Write {
        LedgerStore.Write(
            apply: { db in
                try db.execute(
                    sql: "UPDATE job SET answer = ?, ending = ?, ended = ? WHERE id = ?",
                    arguments: [Data(answer.output), answer.ending, endedAtSeconds, job.description])
                try db.execute(sql: "DELETE FROM job WHERE ended IS NOT NULL AND key IS NULL")
                try db.execute(
                    sql: "DELETE FROM job WHERE ended < ?", arguments: [endedAtSeconds - Limits.keptSeconds])
            }, done: nil)
    }

    /// Drops a job that was refused after its admission was written.
    public func withdraw(_ job: JobID) {
        let write = LedgerStore.Write(
            apply: { try $0.execute(sql: "DELETE FROM job WHERE id = ?", arguments: [job.description]) }, done: nil)
        store.enqueue([write], isUrgent: true, isBounded: false)
    }

    /// Jobs in the order of their admission: open ones to run again, ended ones to replay.
    public func load() throws(ServingError) -> [JournalRecord] {
        try store.read { db in
            try Row.fetchAll(db, sql: "SELECT * FROM job ORDER BY number").compactMap(JournalRecord.init(row:))
        }
    }

    /// One job, if it is still kept. Waits for the disk, so it is for the rare question.
    public func record(of job: JobID) -> JournalRecord? {
        let row = try? store.read { db in
            try Row.fetchOne(db, sql: "SELECT * FROM job WHERE id = ?", arguments: [job.description])
        }
        return row.flatMap { $0 }.flatMap(JournalRecord.init(row:))
    }

    /// Waits until everything handed over so far is on disk.
    public func flush() { store.flush() }
}
