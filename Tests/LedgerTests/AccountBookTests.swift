import Foundation
import ServingTypes
import Testing

@testable import Ledger

/// The files of one ledger, opened and opened again as a restarted coordinator does it.
private final class Bookshelf {
    let path: String
    private let folder: URL
    private(set) var marks: MarkFile?
    private(set) var store: LedgerStore?
    private(set) var ledger: TenantLedger?
    var book = AccountBook()

    init() throws {
        folder = FileManager.default.temporaryDirectory.appendingPathComponent("ledger-\(UUID().uuidString)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
        path = folder.appendingPathComponent("journal.sqlite").path
        try open()
    }

    deinit { try? FileManager.default.removeItem(at: folder) }

    private func open() throws {
        let marks = try openMarks()
        let store = try LedgerStore(path: path)
        let ledger = try TenantLedger(store: store)
        (self.marks, self.store, self.ledger) = (marks, store, ledger)
        book = AccountBook(marks: marks, ledger: ledger)
    }

    /// The writer's queue may hold the old file for a moment still.
    private func openMarks() throws -> MarkFile {
        for _ in 0..<200 {
            if let marks = try? MarkFile(path: path + ".marks") { return marks }
            Thread.sleep(forTimeInterval: 0.005)
        }
        return try MarkFile(path: path + ".marks")
    }

    /// The process dies and another one takes its place. SQLite has what it had; the marks are as they
    /// were at that instant.
    func restart(runningAgain: Set<JobID> = [], losingMarks: Bool = false) throws -> AccountBook.Recovery {
        flush()
        book = AccountBook()
        (marks, store, ledger) = (nil, nil, nil)
        if losingMarks { try FileManager.default.removeItem(atPath: path + ".marks") }
        try open()
        let content = try #require(ledger).load()
        return try book.recover(content, at: 2000) { runningAgain.contains($0) }
    }

    func flush() { ledger?.flush() }

    /// From now on the file may not grow.
    func fillDisk() throws { try store?.execute("PRAGMA max_page_count = 1") }
    func makeRoomOnDisk() throws { try store?.execute("PRAGMA max_page_count = 1000000") }

    func openInSQLite() throws -> Int { try ledger?.load().open.count ?? 0 }

    func total(_ tenant: String) throws -> TokenCounts {
        flush()
        return try ledger?.load().totals[TenantID(tenant)]?.counts ?? TokenCounts()
    }

    func settlements() throws -> [Settlement] {
        flush()
        return try ledger?.settlements(limit: 10_000) ?? []
    }
}

private func job(_ number: UInt64) -> JobID { JobID(high: 3, low: number) }

private func reservation(_ number: UInt64, _ tenant: String = "acme") -> Reservation {
    Reservation(job: job(number), tenant: TenantID(tenant), promptTokens: 10, outputMax: 100, startedAt: 1000)
}

private func given(_ tokens: Int64, computed: Int64 = 10) -> TokenCounts {
    TokenCounts(computed: computed, decoded: tokens, streamed: tokens)
}

@Suite struct AccountBookTests {
    @Test func anEndedJobIsSettledOnceAndAddedUp() throws {
        let shelf = try Bookshelf()
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(3))
        shelf.book.note(job(1), given(7))
        shelf.book.settle(job(1), given(7), ending: "length", endedAt: 1001)
        shelf.book.settle(job(1), given(9), ending: "length", endedAt: 1002)
        #expect(try shelf.total("acme") == given(7))
        #expect(try shelf.settlements().map(\.ending) == ["length"])
        #expect(shelf.marks?.marks.isEmpty == true, "a settled job's slot is given back")
        #expect(shelf.book.openJobs == 0)
    }

    @Test func whatWasHandedOnBeforeACrashIsSettledByTheNextProcess() throws {
        let shelf = try Bookshelf()
        for number in UInt64(1)...3 { shelf.book.open(reservation(number)) }
        shelf.book.note(job(1), given(5))
        shelf.book.note(job(2), given(8))
        let recovery = try shelf.restart()
        #expect(recovery.lost.map(\.counts.streamed) == [5, 8, 0])
        #expect(try shelf.total("acme").streamed == 13)
        #expect(try shelf.settlements().allSatisfy { $0.ending == Settlement.lost })
        #expect(try shelf.restart().lost.isEmpty, "nothing is settled twice")
        #expect(try shelf.total("acme").streamed == 13)
    }

    @Test func aJobThatIsRunAgainKeepsItsAccountAndIsNotChargedTwice() throws {
        let shelf = try Bookshelf()
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(6))
        let recovery = try shelf.restart(runningAgain: [job(1)])
        #expect(recovery.carried == [job(1): given(6)])
        shelf.book.open(reservation(1))
        // Its first tokens come again, then new ones.
        shelf.book.note(job(1), given(2))
        #expect(shelf.book.total(of: TenantID("acme")) == given(6))
        shelf.book.note(job(1), given(9))
        shelf.book.settle(job(1), given(9), ending: "stop", endedAt: 2001)
        #expect(try shelf.total("acme") == given(9))
        #expect(shelf.book.total(of: TenantID("acme")) == given(9))
    }

    @Test func aJobThatWasCancelledOnItsSecondRunStaysSettledForWhatTheFirstOneGave() throws {
        let shelf = try Bookshelf()
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(6))
        _ = try shelf.restart(runningAgain: [job(1)])
        shelf.book.settle(job(1), given(2), ending: "cancelled", endedAt: 2001)
        #expect(try shelf.total("acme").streamed == 6)
    }

    @Test func tokensBehindAStopStringAreDecodedAndNotStreamed() throws {
        let shelf = try Bookshelf()
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(9))
        shelf.book.settle(job(1), given(7), cutAt: 7, ending: "stop", endedAt: 1001)
        let total = try shelf.total("acme")
        #expect((total.decoded, total.streamed) == (9, 7))
    }

    @Test func withoutItsMarksALedgerSettlesByWhatItWroteLast() throws {
        let shelf = try Bookshelf()
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(4))
        shelf.book.checkpoint()
        shelf.book.note(job(1), given(6))
        let recovery = try shelf.restart(losingMarks: true)
        #expect(recovery.lost.map(\.counts.streamed) == [4])
    }

    @Test func anEndedJobWhoseSettlementWasNotWrittenIsSettledWithItsEnding() throws {
        let shelf = try Bookshelf()
        let slot = try #require(shelf.marks?.open(reservation(1)))
        shelf.marks?.end(slot, given(5), ending: "length")
        let recovery = try shelf.restart()
        #expect(recovery.lost.isEmpty)
        #expect(try shelf.settlements().map(\.ending) == ["length"])
        #expect(try shelf.total("acme") == given(5))
    }

    @Test func aFileOfMarksBelongsToOneProcessAtATime() throws {
        let shelf = try Bookshelf()
        #expect { try MarkFile(path: shelf.path + ".marks") } throws: { error in
            (error as? ServingError)?.message.contains("another coordinator") == true
        }
    }

    @Test func aForeignFileOfMarksIsSetAside() throws {
        let shelf = try Bookshelf()
        let path = shelf.path + ".other"
        try Data(repeating: 0x41, count: 5000).write(to: URL(fileURLWithPath: path))
        let marks = try MarkFile(path: path)
        #expect(marks.marks.isEmpty)
        #expect(FileManager.default.fileExists(atPath: path + ".unreadable"))
    }

    @Test func everySlotFullRefusesTheNextJobWithATimeToRetry() throws {
        let shelf = try Bookshelf()
        let marks = try #require(shelf.marks)
        var slots: [Int] = []
        while let slot = marks.open(reservation(UInt64(slots.count))) { slots.append(slot) }
        #expect(slots.count == MarkFile.Limits.slots)
        #expect(shelf.book.refusal()?.retryAfterSeconds != nil)
        slots.dropLast().forEach { marks.free($0) }
        #expect(shelf.book.refusal() == nil)
        #expect(shelf.book.refusal(besides: slots.count - 1) != nil, "those on their way count")
        marks.free(slots[0])
    }

    // MARK: A disk that refuses

    /// A full disk refuses admission, loses no settlement, and admission begins again by itself once
    /// there is room, though no job is left whose end would be written.
    @Test func aFullDiskStopsAdmissionUntilThereIsRoomAndLosesNothing() throws {
        let shelf = try Bookshelf()
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(5))
        shelf.flush()
        try shelf.fillDisk()
        for number in UInt64(2)...200 { shelf.book.open(reservation(number)) }
        shelf.book.settle(job(1), given(6), ending: "stop", endedAt: 1001)
        shelf.book.caused(TenantID("acme"), tokens: 9)
        shelf.flush()
        #expect(shelf.book.refusal()?.retryAfterSeconds != nil)
        #expect(try shelf.settlements().isEmpty)
        let hasLost = shelf.book.checkpoint()
        #expect(hasLost, "a commit has failed")
        shelf.flush()
        #expect(shelf.book.refusal() != nil, "and the next one as well")
        try shelf.makeRoomOnDisk()
        for _ in 0..<2 {
            shelf.book.checkpoint()
            shelf.flush()
        }
        #expect(shelf.book.refusal() == nil)
        #expect(try shelf.settlements().map(\.counts) == [given(6)])
        #expect(try shelf.total("acme").caused == 9)
        #expect(try shelf.total("acme").streamed == 6)
        #expect(try shelf.openInSQLite() == 199, "reservations of the commits that failed are there")
    }

    @Test func withNothingLeftToWriteAHealthyDiskIsNoticedAllTheSame() throws {
        let shelf = try Bookshelf()
        try shelf.fillDisk()
        shelf.book.caused(TenantID(String(repeating: "a", count: 120)), tokens: 1)
        for number in UInt64(1)...200 { shelf.book.open(reservation(number)) }
        shelf.flush()
        #expect(shelf.book.refusal() != nil)
        shelf.book = AccountBook(marks: shelf.marks, ledger: shelf.ledger)
        try shelf.makeRoomOnDisk()
        #expect(shelf.book.refusal() != nil, "nobody has tried yet")
        shelf.book.checkpoint()
        shelf.flush()
        #expect(shelf.book.refusal() == nil)
    }

    /// SQLite keeps any type in any column; what nobody of us wrote is passed over and stops nothing.
    @Test func rowsOfOtherTypesArePassedOver() throws {
        let shelf = try Bookshelf()
        for number in UInt64(1)...4 { shelf.book.open(reservation(number)) }
        shelf.book.settle(job(4), given(4), ending: "stop", endedAt: 1)
        shelf.flush()
        let store = try #require(shelf.store)
        try store.execute("UPDATE reservation SET prompt = 'many' WHERE job = '\(job(1))'")
        try store.execute("UPDATE reservation SET prompt = 9223372036854775807 WHERE job = '\(job(2))'")
        try store.execute("INSERT INTO total VALUES ('odd', 'x', 1, 1, 1, 1, 1, x'00ff')")
        try store.execute(
            "INSERT INTO counter (tenant, value, lifted, computed, decoded) VALUES ('odd', x'00', 'a', 1, 1)")
        try store.execute("INSERT INTO tenant VALUES ('odd', x'ffff')")
        try store.execute("INSERT INTO note VALUES ('last waiting', 'x')")
        try store.execute("UPDATE settlement SET ended = 'late'")
        let content = try #require(try shelf.ledger?.load())
        #expect(Set(content.open.map(\.reservation.job)) == [job(3)])
        #expect(content.totals[TenantID("acme")]?.counts == given(4))
        #expect(content.totals[TenantID("odd")] == nil)
        #expect(content.counters.isEmpty && content.settings.isEmpty && content.lastWaiting == nil)
        #expect(try shelf.settlements().isEmpty)
        _ = try shelf.restart()
    }

    @Test func theSumOfEverythingIsTheSumOfAllTenants() throws {
        let shelf = try Bookshelf()
        for number in UInt64(1)...6 {
            shelf.book.open(reservation(number, "t\(number % 3)"))
            shelf.book.note(job(number), given(Int64(number)))
        }
        shelf.book.settle(job(3), given(9), cutAt: 2, ending: "stop", endedAt: 1)
        shelf.book.caused(TenantID("t1"), tokens: 4)
        func sum() -> TokenCounts { shelf.book.totals.values.reduce(TokenCounts(), +) }
        #expect(shelf.book.everything == sum())
        _ = try shelf.restart()
        #expect(shelf.book.everything == sum())
        #expect(shelf.book.everything.caused == 4)
    }

    /// Random lives of jobs with crashes between any two steps: whatever happens, the settlements of
    /// each tenant add up to what its clients were handed.
    @Test func settlementsAddUpToWhatWasStreamedOverAnySequenceOfCrashes() throws {
        for seed in UInt64(1)...12 {
            var random = Dice(state: seed)
            let shelf = try Bookshelf()
            var streamed: [String: Int64] = [:]
            var live: [UInt64: (tenant: String, given: Int64, most: Int64, keyed: Bool)] = [:]
            var next: UInt64 = 1
            for _ in 0..<120 {
                switch random.below(10) {
                case 0...2:
                    let tenant = "t\(random.below(3))"
                    shelf.book.open(reservation(next, tenant))
                    live[next] = (tenant, 0, 0, random.below(2) == 0)
                    next += 1
                case 3...7:
                    guard let number = live.keys.sorted().dropFirst(random.below(max(live.count, 1))).first,
                        var life = live[number]
                    else { continue }
                    life.given += Int64(random.below(4))
                    shelf.book.note(job(number), given(life.given))
                    // Handed on only now, and only what is new: a second run repeats.
                    streamed[life.tenant, default: 0] += max(life.given - life.most, 0)
                    life.most = max(life.most, life.given)
                    live[number] = life
                case 8:
                    guard let (number, life) = live.sorted(by: { $0.key < $1.key }).first else { continue }
                    shelf.book.settle(job(number), given(life.given), ending: "stop", endedAt: 1)
                    live[number] = nil
                    if random.below(2) == 0 { shelf.book.checkpoint() }
                default:
                    let again = Set(live.filter { $0.value.keyed }.keys.map(job))
                    _ = try shelf.restart(runningAgain: again)
                    live = live.filter { $0.value.keyed }
                    for number in live.keys { live[number]?.given = 0 }
                }
            }
            _ = try shelf.restart()
            for tenant in ["t0", "t1", "t2"] {
                #expect(try shelf.total(tenant).streamed == streamed[tenant] ?? 0, "seed \(seed) \(tenant)")
            }
            #expect(try shelf.settlements().count == Int(next - 1), "seed \(seed): one settlement per job")
        }
    }

    /// A keyed job that had ended, and whose settlement and answer had not reached the disk: it is run again for its
    /// answer, and counts once.
    @Test func aJobThatEndedWithoutItsAnswerIsRunAgainAndCountsOnce() throws {
        let shelf = try Bookshelf()
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(5))
        // Killed between the end of the job and the commit of its settlement.
        let slot = try #require(shelf.marks?.marks.first).slot
        shelf.marks?.end(slot, given(7), ending: "stop")
        let recovery = try shelf.restart(runningAgain: [job(1)])
        #expect(recovery.carried[job(1)] == given(7))
        #expect(recovery.lost.isEmpty)
        let tenant = reservation(1).tenant
        #expect(shelf.book.total(of: tenant) == given(7))
        shelf.book.open(reservation(1))
        shelf.book.note(job(1), given(6))
        #expect(shelf.book.total(of: tenant) == given(7), "not a second time")
        let journal = JobJournal(store: try #require(shelf.store))
        let record = JournalRecord(job: job(1), tenant: tenant, key: "k", submission: [1], request: "{}")
        journal.admit(record, done: nil)
        let answer = JournalAnswer(output: [2], ending: "stop")
        shelf.book.settle(
            job(1), given(7), ending: "stop", endedAt: 2,
            with: [journal.settling(job(1), answer: answer, endedAtSeconds: 2)])
        _ = try shelf.restart()
        #expect(shelf.book.total(of: tenant) == given(7))
        #expect(try shelf.settlements().count == 1)
        #expect(try JobJournal(store: #require(shelf.store)).load().first?.answer == answer, "its answer is kept")
    }

    @Test func countersAndSettingsComeBack() throws {
        let shelf = try Bookshelf()
        var row = CounterRow(tenant: TenantID("acme"), value: 77, lifted: 5, computed: 3, decoded: 4)
        (row.prefillWork, row.decodeWork, row.promptAhead, row.outputAhead) = (6, 7, 8, 9)
        (row.ceasedWaiting, row.stamp) = (10, 11)
        shelf.ledger?.write(counters: [row], counting: 12, lastWaiting: 70)
        shelf.ledger?.write(settings: "weight=4", of: TenantID("acme"))
        _ = try shelf.restart()
        let content = try #require(try shelf.ledger?.load())
        #expect(content.counters == [row])
        #expect(content.lastWaiting == 70)
        #expect(content.counting == 12)
        #expect(content.settings == [TenantID("acme"): "weight=4"])
        shelf.ledger?.clearCounters()
        _ = try shelf.restart()
        let cleared = try #require(try shelf.ledger?.load())
        #expect(cleared.counters.isEmpty && cleared.counting == nil && cleared.lastWaiting == nil)
    }
}

/// SplitMix64.
private struct Dice {
    var state: UInt64

    mutating func below(_ bound: Int) -> Int {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return Int((z ^ (z >> 31)) % UInt64(bound))
    }
}
