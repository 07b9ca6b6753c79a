import Dispatch
import Foundation
import GRDB
import ServingTypes
import Synchronization

/// One SQLite file in WAL mode, written off the event loop with group commit (design §9): the journal
/// of jobs and the ledger of tenants share it, and so share their transactions.
///
/// `@unchecked Sendable`: `database` is a GRDB queue, which is thread-safe; all else is in `Mutex`.
public final class LedgerStore: @unchecked Sendable {
    public enum Limits {
        /// Writes that may wait for a commit; past it, admission is refused rather than delayed.
        public static let pendingMax = 8192
        /// How long writes that nobody waits for may gather.
        static let gatherMilliseconds = 20
    }

    /// One change of the file. Changes that are handed over together are committed together or not at all.
    public struct Write: Sendable {
        var apply: @Sendable (Database) throws -> Void
        var done: (@Sendable (ServingError?) -> Void)?
    }

    private struct Pending {
        var writes: [[Write]] = []
        var count = 0
        var state = Drain.idle
    }

    private enum Drain {
        case idle
        /// Soon, unless somebody is in a hurry.
        case gathering
        case draining
    }

    private let database: DatabaseQueue
    private let writer = DispatchQueue(label: "tandem.ledger")
    private let pending = Mutex(Pending())
    private let health = Mutex(Health())

    private struct Health {
        /// The last commit failed: nothing that must be on disk can be promised.
        var failure: ServingError?
        var failedCommits = 0
    }

    /// Opens or creates the file and brings its schema up to date.
    public init(path: String) throws(ServingError) {
        do {
            var configuration = Configuration()
            // Another process may be closing the file at this moment, or reading it.
            configuration.busyMode = .timeout(5)
            configuration.prepareDatabase { db in
                try db.execute(sql: "PRAGMA journal_mode = WAL")
                try db.execute(sql: "PRAGMA synchronous = FULL")
            }
            database = try DatabaseQueue(path: path, configuration: configuration)
            try LedgerSchema.migrator.migrate(database)
        } catch {
            throw ServingError(.internalError, "\(path): the journal cannot be opened: \(error)", blast: .process)
        }
    }

    /// Why nothing new can be admitted now; nil where it can.
    public var refusal: ServingError? {
        if let failure = health.withLock({ $0.failure }) { return failure }
        return pending.withLock { $0.count < Limits.pendingMax } ? nil : Self.full
    }

    /// Commits that failed so far: what nobody waited for in one of them is not in the file.
    public var failedCommits: Int { health.withLock { $0.failedCommits } }

    /// Writes something where the last commit failed, so that admission begins again once the disk
    /// takes what it is given, even if no job is left whose end would show it.
    public func probe() {
        guard health.withLock({ $0.failure }) != nil else { return }
        let apply = { @Sendable (db: Database) in
            try db.execute(sql: "INSERT OR REPLACE INTO note (name, value) VALUES ('probe', 1)")
            try db.execute(sql: "DELETE FROM note WHERE name = 'probe'")
        }
        enqueue([Write(apply: apply, done: nil)], isUrgent: false, isBounded: true)
    }

    /// Reads without making the caller wait: `done` runs on the writer's queue.
    func readLater<Value: Sendable>(
        _ body: @escaping @Sendable (Database) throws -> Value, done: @escaping @Sendable (Value?) -> Void
    ) {
        writer.async { done(try? self.database.read(body)) }
    }

    /// For tests of a full disk and of foreign content.
    func execute(_ sql: String) throws { try database.writeWithoutTransaction { try $0.execute(sql: sql) } }

    private static var full: ServingError {
        ServingError(
            .queueFull, "the ledger has \(Limits.pendingMax) writes waiting, its limit", retryAfterSeconds: 1)
    }

    /// Waits until everything handed over so far is on disk, or was refused by it.
    public func flush() {
        let settled = DispatchSemaphore(value: 0)
        enqueue([Write(apply: { _ in }, done: { _ in settled.signal() })], isUrgent: true, isBounded: false)
        settled.wait()
    }

    func read<Value>(_ body: (Database) throws -> Value) throws(ServingError) -> Value {
        do { return try database.read(body) } catch {
            throw ServingError(.internalError, "the journal cannot be read: \(error)", blast: .process)
        }
    }

    /// Hands writes over. `isBounded` ones are refused where too many wait; the others are as many as
    /// there are admitted jobs, which are bounded themselves.
    func enqueue(_ writes: [Write], isUrgent: Bool, isBounded: Bool) {
        enum Verdict { case full, queued, start, gather }
        let verdict: Verdict = pending.withLock { pending in
            guard !isBounded || pending.count < Limits.pendingMax else { return .full }
            pending.writes.append(writes)
            pending.count += writes.count
            switch (pending.state, isUrgent) {
            case (.draining, _), (.gathering, false): return .queued
            case (.idle, false):
                pending.state = .gathering
                return .gather
            case (.idle, true), (.gathering, true):
                pending.state = .draining
                return .start
            }
        }
        switch verdict {
        case .queued: break
        case .start: writer.async { self.drain() }
        case .gather:
            writer.asyncAfter(deadline: .now() + .milliseconds(Limits.gatherMilliseconds)) { self.drain() }
        case .full: for write in writes { write.done?(Self.full) }
        }
    }

    /// Group commit: everything that gathered while the last transaction ran goes into the next.
    private func drain() {
        while true {
            let batch = pending.withLock { pending -> [[Write]] in
                let batch = pending.writes
                (pending.writes, pending.count) = ([], 0)
                pending.state = batch.isEmpty ? .idle : .draining
                return batch
            }
            guard !batch.isEmpty else { return }
            commit(batch)
        }
    }

    private func commit(_ batch: [[Write]]) {
        var failures = [ServingError?](repeating: nil, count: batch.count)
        do {
            try database.write { db in
                for (index, writes) in batch.enumerated() {
                    do {
                        try db.inSavepoint {
                            for write in writes { try write.apply(db) }
                            return .commit
                        }
                    } catch let error as DatabaseError where error.resultCode == .SQLITE_CONSTRAINT {
                        failures[index] = Self.conflict
                    }
                }
            }
            health.withLock { $0.failure = nil }
        } catch {
            let failed = ServingError(
                .noWorker, "the ledger cannot be written, so that nothing is admitted: \(error)", retryAfterSeconds: 1)
            failures = failures.map { $0 ?? failed }
            health.withLock { health in
                health.failure = failed
                health.failedCommits += 1
            }
        }
        for (writes, failure) in zip(batch, failures) {
            for write in writes { write.done?(failure) }
        }
    }

    private static let conflict = ServingError(
        .conflict, "this idempotency key is taken", field: "Idempotency-Key")
}
