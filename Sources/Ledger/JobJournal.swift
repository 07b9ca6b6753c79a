import Dispatch
import Foundation
import GRDB
import ServingTypes
import Synchronization

/// The journal of admitted jobs: one SQLite file in WAL mode, written off the event loop with
/// group commit (design §9). A job with an idempotency key is on disk before its client hears of
/// it, so a restarted coordinator finishes it exactly once (reliability.md §2.4).
///
/// `@unchecked Sendable`: `database` is a GRDB queue, which is thread-safe; all else is in `Mutex`.
public final class JobJournal: @unchecked Sendable {
    public enum Limits {
        /// Writes that may wait for a commit; past it, admission is refused rather than delayed.
        public static let pendingMax = 8192
        /// How long an ended job's answer stays for a repeated request.
        public static let keptSeconds: Int64 = 600
    }

    private struct Write: Sendable {
        var apply: @Sendable (Database) throws -> Void
        var done: (@Sendable (ServingError?) -> Void)?
    }

    private struct Pending {
        var writes: [Write] = []
        var draining = false
    }

    private let database: DatabaseQueue
    private let writer = DispatchQueue(label: "tandem.journal")
    private let pending = Mutex(Pending())

    /// Opens or creates the file and brings its schema up to date.
    public init(path: String) throws(ServingError) {
        do {
            var configuration = Configuration()
            configuration.prepareDatabase { db in
                try db.execute(sql: "PRAGMA journal_mode = WAL")
                try db.execute(sql: "PRAGMA synchronous = FULL")
            }
            database = try DatabaseQueue(path: path, configuration: configuration)
            try JournalSchema.migrator.migrate(database)
        } catch {
            throw ServingError(.internalError, "\(path): the journal cannot be opened: \(error)", blast: .process)
        }
    }

    /// Appends an admitted job. `done` runs on the writer's queue once the record is on disk, or
    /// with what kept it from getting there; the same (tenant, key) twice is a conflict.
    public func admit(_ record: JournalRecord, done: (@Sendable (ServingError?) -> Void)?) {
        enqueue(Write(apply: { try record.insert($0) }, done: done))
    }

    /// Records the answer of a job. Keyless jobs are forgotten, keyed ones kept for replays.
    public func settle(_ job: JobID, answer: JournalAnswer, endedAtSeconds: Int64) {
        enqueue(
            Write(
                apply: { db in
                    try db.execute(
                        sql: """
                            UPDATE job SET answer = ?, ending = ?, ended = ? WHERE id = ?
                            """,
                        arguments: [Data(answer.output), answer.ending, endedAtSeconds, job.description])
                    try db.execute(sql: "DELETE FROM job WHERE ended IS NOT NULL AND key IS NULL")
                    try db.execute(
                        sql: "DELETE FROM job WHERE ended < ?", arguments: [endedAtSeconds - Limits.keptSeconds])
                }, done: nil))
    }

    /// Drops a job that was refused after its admission was written.
    public func withdraw(_ job: JobID) {
        enqueue(
            Write(
                apply: { try $0.execute(sql: "DELETE FROM job WHERE id = ?", arguments: [job.description]) },
                done: nil))
    }

    /// Jobs in the order of their admission: open ones to run again, ended ones to replay.
    public func load() throws(ServingError) -> [JournalRecord] {
        do {
            return try database.read { db in
                try Row.fetchAll(db, sql: "SELECT * FROM job ORDER BY number").compactMap(JournalRecord.init(row:))
            }
        } catch {
            throw ServingError(.internalError, "the journal cannot be read: \(error)", blast: .process)
        }
    }

    /// One job, if it is still kept. Waits for the disk, so it is for the rare question.
    public func record(of job: JobID) -> JournalRecord? {
        let row = try? database.read { db in
            try Row.fetchOne(db, sql: "SELECT * FROM job WHERE id = ?", arguments: [job.description])
        }
        return row.flatMap { $0 }.flatMap(JournalRecord.init(row:))
    }

    /// Waits until everything handed over so far is on disk.
    public func flush() {
        let settled = DispatchSemaphore(value: 0)
        enqueue(Write(apply: { _ in }, done: { _ in settled.signal() }), beyondLimit: true)
        settled.wait()
    }

    private func enqueue(_ write: Write, beyondLimit: Bool = false) {
        enum Verdict { case full, queued, start }
        let verdict: Verdict = pending.withLock { state in
            guard beyondLimit || write.done == nil || state.writes.count < Limits.pendingMax else { return .full }
            state.writes.append(write)
            guard !state.draining else { return .queued }
            state.draining = true
            return .start
        }
        switch verdict {
        case .queued: break
        case .start: writer.async { self.drain() }
        case .full:
            write.done?(
                ServingError(
                    .queueFull, "the journal has \(Limits.pendingMax) writes waiting, its limit",
                    retryAfterSeconds: 1))
        }
    }

    /// Group commit: everything that gathered while the last transaction ran goes into the next.
    private func drain() {
        while true {
            let batch = pending.withLock { state -> [Write] in
                let batch = state.writes
                state.writes = []
                if batch.isEmpty { state.draining = false }
                return batch
            }
            guard !batch.isEmpty else { return }
            commit(batch)
        }
    }

    private func commit(_ batch: [Write]) {
        var failures = [ServingError?](repeating: nil, count: batch.count)
        do {
            try database.write { db in
                for (index, write) in batch.enumerated() {
                    do {
                        try db.inSavepoint {
                            try write.apply(db)
                            return .commit
                        }
                    } catch {
                        failures[index] = Self.error(from: error)
                    }
                }
            }
        } catch {
            failures = failures.map { $0 ?? Self.error(from: error) }
        }
        for (write, failure) in zip(batch, failures) { write.done?(failure) }
    }

    private static func error(from error: any Error) -> ServingError {
        if let database = error as? DatabaseError, database.resultCode == .SQLITE_CONSTRAINT {
            return ServingError(.conflict, "this idempotency key is taken", field: "Idempotency-Key")
        }
        return ServingError(.internalError, "the journal could not be written: \(error)", retryAfterSeconds: 1)
    }
}
