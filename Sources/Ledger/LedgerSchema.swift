import GRDB

/// The tables of one file. Migrations are never changed once released; new ones are added at the end.
enum LedgerSchema {
    static var migrator: DatabaseMigrator {
        var migrator = DatabaseMigrator()
        migrator.registerMigration("1: jobs") { try $0.execute(sql: jobs) }
        migrator.registerMigration("2: accounts") { try $0.execute(sql: accounts) }
        migrator.registerMigration("3: whole counters") { try $0.execute(sql: wholeCounters) }
        return migrator
    }

    private static let jobs = """
        CREATE TABLE job (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            id TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            key TEXT,
            submission BLOB NOT NULL,
            request TEXT NOT NULL,
            answer BLOB,
            ending TEXT,
            ended INTEGER,
            UNIQUE (tenant, key)
        );
        CREATE INDEX job_ended ON job (ended);
        """

    /// `reservation`: admitted jobs that are not settled, with the last counts that were written.
    /// `settlement`: ended jobs, each once. `total`: their sums, which outlive them.
    /// `counter`: virtual counters, and the tokens that they had counted when they were written.
    private static let accounts = """
        CREATE TABLE reservation (
            job TEXT PRIMARY KEY,
            tenant TEXT NOT NULL,
            prompt INTEGER NOT NULL,
            output_max INTEGER NOT NULL,
            started INTEGER NOT NULL,
            computed INTEGER NOT NULL DEFAULT 0,
            cached INTEGER NOT NULL DEFAULT 0,
            decoded INTEGER NOT NULL DEFAULT 0,
            recomputed INTEGER NOT NULL DEFAULT 0,
            caused INTEGER NOT NULL DEFAULT 0,
            streamed INTEGER NOT NULL DEFAULT 0
        ) WITHOUT ROWID;
        CREATE TABLE settlement (
            number INTEGER PRIMARY KEY AUTOINCREMENT,
            job TEXT NOT NULL UNIQUE,
            tenant TEXT NOT NULL,
            prompt INTEGER NOT NULL,
            output_max INTEGER NOT NULL,
            computed INTEGER NOT NULL,
            cached INTEGER NOT NULL,
            decoded INTEGER NOT NULL,
            recomputed INTEGER NOT NULL,
            caused INTEGER NOT NULL,
            streamed INTEGER NOT NULL,
            ending TEXT NOT NULL,
            started INTEGER NOT NULL,
            ended INTEGER NOT NULL
        );
        CREATE TABLE total (
            tenant TEXT PRIMARY KEY,
            jobs INTEGER NOT NULL,
            computed INTEGER NOT NULL,
            cached INTEGER NOT NULL,
            decoded INTEGER NOT NULL,
            recomputed INTEGER NOT NULL,
            caused INTEGER NOT NULL,
            streamed INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE counter (
            tenant TEXT PRIMARY KEY,
            value INTEGER NOT NULL,
            lifted INTEGER NOT NULL,
            computed INTEGER NOT NULL,
            decoded INTEGER NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE tenant (
            name TEXT PRIMARY KEY,
            settings TEXT NOT NULL
        ) WITHOUT ROWID;
        CREATE TABLE note (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
        """

    /// What a counter needs beside its value to be taken up exactly (`CounterRow`).
    private static let wholeCounters = [
        "prefill_work", "decode_work", "prompt_ahead", "output_ahead", "ceased_waiting", "stamp",
    ]
    .map { "ALTER TABLE counter ADD COLUMN \($0) INTEGER NOT NULL DEFAULT 0;" }.joined(separator: "\n")
}
