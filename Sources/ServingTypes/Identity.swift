/// Names of the things that outlive one message. Every message about pages names a worker, its
/// epoch and a transfer, so that a stale one can be told from a current one (design §4).

/// One request's work, 128 random bits chosen by the coordinator's driver.
public struct JobID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var high: UInt64
    public var low: UInt64

    public init(high: UInt64, low: UInt64) {
        self.high = high
        self.low = low
    }

    public init(using generator: inout some RandomNumberGenerator) {
        self.init(high: generator.next(), low: generator.next())
    }

    /// Reads the 32 hexadecimal digits that `description` writes; nil for anything else.
    public init?(_ text: some StringProtocol) {
        guard text.utf8.count == 32, text.utf8.allSatisfy({ $0 != UInt8(ascii: "+") && $0 != UInt8(ascii: "-") }) else {
            return nil
        }
        guard let high = UInt64(text.prefix(16), radix: 16), let low = UInt64(text.dropFirst(16), radix: 16) else {
            return nil
        }
        self.init(high: high, low: low)
    }

    public static func < (a: JobID, b: JobID) -> Bool {
        (a.high, a.low) < (b.high, b.low)
    }

    public var description: String {
        hexadecimal(high) + hexadecimal(low)
    }
}

/// Sixteen lower-case hexadecimal digits.
func hexadecimal(_ value: UInt64) -> String {
    let digits = String(value, radix: 16)
    return String(repeating: "0", count: 16 - digits.utf8.count) + digits
}

/// Counts dispatches of one job. It only grows; a message that carries a lower one is dropped.
public struct Attempt: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var number: UInt32

    public init(_ number: UInt32) { self.number = number }

    public static let first = Attempt(1)
    public var next: Attempt { Attempt(number &+ 1) }
    public static func < (a: Attempt, b: Attempt) -> Bool { a.number < b.number }
    public var description: String { String(number) }
}

/// One dispatch of one job: the unit that reserves pages, is pushed, committed and cancelled.
public struct TransferID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var job: JobID
    public var attempt: Attempt

    public init(job: JobID, attempt: Attempt) {
        self.job = job
        self.attempt = attempt
    }

    public static func < (a: TransferID, b: TransferID) -> Bool {
        a.job == b.job ? a.attempt < b.attempt : a.job < b.job
    }

    public var description: String { "\(job)/\(attempt)" }
}

/// A worker's name, stable by configuration: `prefill-0`, `decode-3`.
public struct WorkerID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var name: String

    public init(_ name: String) { self.name = name }

    public static func < (a: WorkerID, b: WorkerID) -> Bool { a.name < b.name }
    public var description: String { name }
}

/// Random per process start: a restarted worker is a new incarnation under the same name.
public struct Epoch: Hashable, Sendable, CustomStringConvertible {
    public var value: UInt64

    public init(_ value: UInt64) { self.value = value }

    public var description: String { hexadecimal(value) }
}

/// One incarnation of one worker.
public struct WorkerRef: Hashable, Sendable, CustomStringConvertible {
    public var id: WorkerID
    public var epoch: Epoch

    public init(id: WorkerID, epoch: Epoch) {
        self.id = id
        self.epoch = epoch
    }

    public var description: String { "\(id)@\(epoch)" }
}

/// Whose work it is: fairness and prefix sharing stop at this border.
public struct TenantID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var name: String

    public init(_ name: String) { self.name = name }

    public static let anonymous = TenantID("default")
    public static func < (a: TenantID, b: TenantID) -> Bool { a.name < b.name }
    public var description: String { name }
}

/// What a worker process does. `mixed` runs both phases in one process, the baseline that
/// disaggregation is compared with.
public enum WorkerRole: String, Hashable, Sendable, CaseIterable {
    case prefill
    case decode
    case mixed
}

/// Content address of one full block: a 256-bit chained hash over (compatibility digest, tenant
/// salt, parent, tokens). It names the token prefix, not the bytes (disaggregation.md §6.2).
public struct PageID: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var words: (UInt64, UInt64, UInt64, UInt64)

    public init(_ a: UInt64, _ b: UInt64, _ c: UInt64, _ d: UInt64) { words = (a, b, c, d) }

    public static func == (a: PageID, b: PageID) -> Bool { a.words == b.words }
    public static func < (a: PageID, b: PageID) -> Bool { a.words < b.words }

    public func hash(into hasher: inout Hasher) {
        hasher.combine(words.0)
        hasher.combine(words.1)
    }

    public var description: String { hexadecimal(words.0) }
}
