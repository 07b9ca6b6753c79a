import Foundation
import Ledger
import ServingTypes
import Synchronization
import Testing

/// A folder that goes when the test does.
private func withScratchFile(_ body: (String) throws -> Void) throws {
    let folder = FileManager.default.temporaryDirectory.appendingPathComponent("journal-\(UUID().uuidString)")
    try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    defer { try? FileManager.default.removeItem(at: folder) }
    try body(folder.appendingPathComponent("journal.sqlite").path)
}

private func record(_ number: UInt64, key: String?) -> JournalRecord {
    JournalRecord(
        job: JobID(high: 7, low: number), tenant: TenantID("acme"), key: key,
        submission: [UInt8(truncatingIfNeeded: number), 0, 255], request: "{\"n\":\(number)}")
}

private final class Verdicts: Sendable {
    let all = Mutex<[Int: ServingError?]>([:])
    func note(_ index: Int, _ error: ServingError?) { all.withLock { $0[index] = .some(error) } }
}

private func found(_ number: UInt64, in journal: JobJournal) -> JournalRecord? {
    let answer = Mutex<JournalRecord?>(nil)
    let answered = DispatchSemaphore(value: 0)
    journal.find(JobID(high: 7, low: number)) { record in
        answer.withLock { $0 = record }
        answered.signal()
    }
    answered.wait()
    return answer.withLock { $0 }
}

@Suite struct JobJournalTests {
    @Test func admittedJobsComeBackInOrderAfterAReopen() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            let records = (0..<50).map { record($0, key: $0 % 2 == 0 ? "key-\($0)" : nil) }
            for record in records { journal.admit(record, done: nil) }
            journal.flush()
            #expect(try JobJournal(path: path).load() == records)
        }
    }

    @Test func aDurableAdmissionIsOnDiskWhenItsAnswerComes() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            let answered = DispatchSemaphore(value: 0)
            journal.admit(record(1, key: "k")) { error in
                #expect(error == nil)
                answered.signal()
            }
            answered.wait()
            #expect(try JobJournal(path: path).load().count == 1)
        }
    }

    @Test func theSameKeyTwiceIsAConflictAndHarmsNoNeighbourInTheBatch() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            let verdicts = Verdicts()
            journal.admit(record(1, key: "k")) { verdicts.note(1, $0) }
            journal.admit(record(2, key: "k")) { verdicts.note(2, $0) }
            journal.admit(record(3, key: "other")) { verdicts.note(3, $0) }
            journal.flush()
            let all = verdicts.all.withLock { $0 }
            #expect(all[1] == .some(nil))
            #expect(all[2]??.code == .conflict)
            #expect(all[3] == .some(nil))
            #expect(try journal.load().map(\.job.low) == [1, 3])
        }
    }

    @Test func settledJobsKeepTheirAnswerIfKeyedAndAreForgottenIfNot() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            let answer = JournalAnswer(output: [1, 2, 3], ending: "{\"reason\":\"stop\"}")
            journal.admit(record(1, key: "k"), done: nil)
            journal.admit(record(2, key: nil), done: nil)
            journal.settle(JobID(high: 7, low: 1), answer: answer, endedAtSeconds: 1000)
            journal.settle(JobID(high: 7, low: 2), answer: answer, endedAtSeconds: 1000)
            journal.flush()
            let kept = try journal.load()
            #expect(kept.map(\.job.low) == [1])
            #expect(kept.first?.answer == answer)
        }
    }

    @Test func answersAreDroppedOnceTheirTimeIsOver() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            let answer = JournalAnswer(output: [], ending: "{}")
            journal.admit(record(1, key: "a"), done: nil)
            journal.admit(record(2, key: "b"), done: nil)
            journal.settle(JobID(high: 7, low: 1), answer: answer, endedAtSeconds: 1000)
            journal.settle(
                JobID(high: 7, low: 2), answer: answer, endedAtSeconds: 1001 + JobJournal.Limits.keptSeconds)
            journal.flush()
            #expect(try journal.load().map(\.job.low) == [2])
        }
    }

    @Test func oneJobIsFoundByItsId() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            journal.admit(record(1, key: "a"), done: nil)
            journal.flush()
            #expect(found(1, in: journal) == record(1, key: "a"))
            #expect(found(2, in: journal) == nil)
        }
    }

    /// A record that is admitted at this moment is seen: the search comes after what was handed over.
    @Test func aSearchSeesWhatWasHandedOverBeforeIt() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            for number in UInt64(1)...50 {
                journal.admit(record(number, key: "a\(number)"), done: nil)
                journal.flush()
                #expect(found(number, in: journal) != nil, "\(number)")
            }
        }
    }

    @Test func answersWhoseTimeWasOverWhileNobodyRanAreGoneAtTheNextStart() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            let answer = JournalAnswer(output: [], ending: "{}")
            for (number, ended) in [(UInt64(1), Int64(1000)), (2, 5000)] {
                journal.admit(record(number, key: "k\(number)"), done: nil)
                journal.settle(JobID(high: 7, low: number), answer: answer, endedAtSeconds: ended)
            }
            journal.admit(record(3, key: "open"), done: nil)
            journal.trim(at: 5000 + JobJournal.Limits.keptSeconds)
            journal.flush()
            #expect(try journal.load().map(\.job.low) == [2, 3], "open jobs are kept however old")
        }
    }

    @Test func aWithdrawnJobIsGone() throws {
        try withScratchFile { path in
            let journal = try JobJournal(path: path)
            journal.admit(record(1, key: "a"), done: nil)
            journal.withdraw(JobID(high: 7, low: 1))
            journal.flush()
            #expect(try journal.load().isEmpty)
        }
    }

    @Test func aFileThatIsNoDatabaseIsRefusedWithItsName() throws {
        try withScratchFile { path in
            try Data(repeating: 0x41, count: 8192).write(to: URL(fileURLWithPath: path))
            #expect { try JobJournal(path: path) } throws: { error in
                (error as? ServingError)?.message.contains(path) == true
            }
        }
    }
}
