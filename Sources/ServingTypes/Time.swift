/// Monotonic time as data. Cores receive `now`; only drivers read a clock.

/// Nanoseconds on one process's monotonic clock (or a simulator's virtual one).
public struct Instant: Hashable, Comparable, Sendable {
    public var nanoseconds: Int64

    public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    public static let zero = Instant(nanoseconds: 0)
    public static func < (a: Instant, b: Instant) -> Bool { a.nanoseconds < b.nanoseconds }
    public static func + (a: Instant, b: TimeSpan) -> Instant {
        Instant(nanoseconds: a.nanoseconds.addingClamped(b.nanoseconds))
    }
    public static func - (a: Instant, b: Instant) -> TimeSpan {
        TimeSpan(nanoseconds: a.nanoseconds.subtractingClamped(b.nanoseconds))
    }
}

/// A length of time in nanoseconds; may be negative.
public struct TimeSpan: Hashable, Comparable, Sendable {
    public var nanoseconds: Int64

    public init(nanoseconds: Int64) { self.nanoseconds = nanoseconds }

    public static let zero = TimeSpan(nanoseconds: 0)
    public static func seconds(_ n: Int64) -> TimeSpan { milliseconds(n.multipliedClamped(by: 1000)) }
    public static func milliseconds(_ n: Int64) -> TimeSpan { microseconds(n.multipliedClamped(by: 1000)) }
    public static func microseconds(_ n: Int64) -> TimeSpan { TimeSpan(nanoseconds: n.multipliedClamped(by: 1000)) }
    /// Rounds to the nearest nanosecond; values out of range clamp, NaN is zero.
    public init(seconds: Double) {
        let scaled = (seconds * 1e9).rounded()
        if scaled.isNaN {
            self = .zero
        } else {
            self.init(nanoseconds: scaled >= 9.2e18 ? .max : scaled <= -9.2e18 ? .min : Int64(scaled))
        }
    }

    public var seconds: Double { Double(nanoseconds) / 1e9 }
    public var milliseconds: Double { Double(nanoseconds) / 1e6 }

    public static func < (a: TimeSpan, b: TimeSpan) -> Bool { a.nanoseconds < b.nanoseconds }
    public static func + (a: TimeSpan, b: TimeSpan) -> TimeSpan {
        TimeSpan(nanoseconds: a.nanoseconds.addingClamped(b.nanoseconds))
    }
    public static func - (a: TimeSpan, b: TimeSpan) -> TimeSpan {
        TimeSpan(nanoseconds: a.nanoseconds.subtractingClamped(b.nanoseconds))
    }
    public static func * (a: TimeSpan, n: Int64) -> TimeSpan {
        TimeSpan(nanoseconds: a.nanoseconds.multipliedClamped(by: n))
    }
    public static func / (a: TimeSpan, n: Int64) -> TimeSpan {
        n == 0 ? a : TimeSpan(nanoseconds: a.nanoseconds / n)
    }
}

extension Int64 {
    /// Saturating arithmetic: a clock or a limit taken from outside never traps.
    func addingClamped(_ other: Int64) -> Int64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? (other > 0 ? .max : .min) : sum
    }

    func subtractingClamped(_ other: Int64) -> Int64 {
        let (difference, overflow) = subtractingReportingOverflow(other)
        return overflow ? (other > 0 ? .min : .max) : difference
    }

    func multipliedClamped(by other: Int64) -> Int64 {
        let (product, overflow) = multipliedReportingOverflow(by: other)
        return overflow ? ((self > 0) == (other > 0) ? .max : .min) : product
    }
}
