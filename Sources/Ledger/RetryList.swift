import ServingTypes
import Synchronization

/// What the disk refused and must have. There are no more settlements than slots in the mark file,
/// since nothing is admitted while the disk refuses, and one sum per tenant.
final class RetryList: Sendable {
    typealias Entry = (settlement: Settlement, slot: Int?, others: [LedgerStore.Write])

    private struct Entries {
        var settlements: [Entry] = []
        var caused: [TenantID: Int64] = [:]
    }

    private let entries = Mutex(Entries())

    func add(_ entry: Entry) { entries.withLock { $0.settlements.append(entry) } }

    func add(caused tokens: Int64, to tenant: TenantID) {
        entries.withLock { $0.caused[tenant, default: 0] += tokens }
    }

    func take() -> (settlements: [Entry], caused: [TenantID: Int64]) {
        entries.withLock { entries in
            defer { entries = Entries() }
            return (entries.settlements, entries.caused)
        }
    }
}
