import NIOCore
import ServingTypes

/// Unknown API keys by the address that sent them: guessing is slowed down, and people behind one
/// proxy with a guesser are not locked out with it, since an address that showed a good key is trusted.
struct KeyFailures {
    private struct Record {
        var failures = 0
        var windowEnds: NIODeadline
        var trustedUntil: NIODeadline?
    }

    private var records: [String: Record] = [:]
    /// When expired records may be searched for again: a search looks at all of them.
    private var nextSearch = NIODeadline.uptimeNanoseconds(0)

    enum Limits {
        /// Unknown keys from one address in a window before it has to wait.
        static let failuresMax = 30
        static let window = TimeAmount.seconds(60)
        static let trust = TimeAmount.hours(1)
        /// Past it, addresses that are new are not watched until others expire.
        static let addressesMax = 16_384
        static let searchEvery = TimeAmount.seconds(1)
    }

    /// Whole seconds that the address has to wait; nil where it may present a key.
    func wait(_ address: String, at now: NIODeadline) -> Int? {
        guard let record = records[address], record.failures >= Limits.failuresMax, now < record.windowEnds,
            record.trustedUntil.map({ $0 <= now }) ?? true
        else { return nil }
        return Int(((record.windowEnds - now).nanoseconds + 999_999_999) / 1_000_000_000)
    }

    mutating func failed(_ address: String, at now: NIODeadline) {
        guard var record = record(address, at: now) else { return }
        if record.windowEnds <= now { (record.failures, record.windowEnds) = (0, now + Limits.window) }
        record.failures += 1
        records[address] = record
    }

    mutating func succeeded(_ address: String, at now: NIODeadline) {
        guard var record = record(address, at: now) else { return }
        record.trustedUntil = now + Limits.trust
        records[address] = record
    }

    private mutating func record(_ address: String, at now: NIODeadline) -> Record? {
        if let record = records[address] { return record }
        if records.count >= Limits.addressesMax, now >= nextSearch {
            nextSearch = now + Limits.searchEvery
            records = records.filter { $0.value.windowEnds > now || $0.value.trustedUntil.map { $0 > now } ?? false }
        }
        return records.count < Limits.addressesMax ? Record(windowEnds: now + Limits.window) : nil
    }
}

extension FrontDoor {
    /// Whose request it is, by its key; too many unknown keys from one address are refused unread.
    func caller(_ head: RequestHead) throws(ServingError) -> Caller {
        guard !configuration.keys.isEmpty else { return try doorkeeper.caller(head) }
        if let seconds = keyFailures.wait(head.address, at: loop.now) {
            throw ServingError(
                .rateLimited,
                "\(KeyFailures.Limits.failuresMax) unknown API keys came from this address; wait \(seconds) seconds.",
                field: "authorization", retryAfterSeconds: seconds)
        }
        do throws(ServingError) {
            let caller = try doorkeeper.caller(head)
            keyFailures.succeeded(head.address, at: loop.now)
            return caller
        } catch {
            // Without a key nothing was guessed.
            if error.code == .unauthorized, head.headers["authorization"] != nil {
                keyFailures.failed(head.address, at: loop.now)
            }
            throw error
        }
    }
}
