import Synchronization

/// Settlements that the disk refused. There are no more of them than jobs have ended while it did.
final class RetryList: Sendable {
    typealias Entry = (settlement: Settlement, slot: Int?, others: [LedgerStore.Write])

    private let entries = Mutex<[Entry]>([])

    func add(_ entry: Entry) { entries.withLock { $0.append(entry) } }

    func take() -> [Entry] {
        entries.withLock { entries in
            defer { entries = [] }
            return entries
        }
    }
}
