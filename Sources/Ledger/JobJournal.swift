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
                try db.execute(
                    sql: "DELETE FROM job WHERE id = ? AND key IS NULL", arguments: [job.description])
                try Self.trim(db, at: endedAtSeconds)
            }, done: nil)
    }

    private static func trim(_ db: Database, at seconds: Int64) throws {
        try db.execute(sql: "DELETE FROM job WHERE ended < ?", arguments: [seconds - Limits.keptSeconds])
    }

    /// Drops the answers whose time is over, as every settlement does: a coordinator that was away for
    /// long has none to give.
    public func trim(at seconds: Int64) {
        store.enqueue(
            [LedgerStore.Write(apply: { try Self.trim($0, at: seconds) }, done: nil)], isUrgent: true,
            isBounded: false)
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

    /// One job, if it is still kept. `done` runs on the writer's queue, after what was handed over
    /// before is on disk.
    public func find(_ job: JobID, done: @escaping @Sendable (JournalRecord?) -> Void) {
        store.readLater({ db in
            try Row.fetchOne(db, sql: "SELECT * FROM job WHERE id = ?", arguments: [job.description])
                .flatMap(JournalRecord.init(row:))
        }) { record in done(record ?? nil) }
    }

    /// Waits until everything handed over so far is on disk.
    public func flush() { store.flush() }
}
