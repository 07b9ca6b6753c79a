import Foundation
import ServingTypes

/// The one place where a live process reads a clock.
public struct MonotonicClock: Sendable {
    public init() {}

    /// Since boot, suspension excluded; never goes back.
    public var now: Instant {
        Instant(nanoseconds: Int64(clamping: DispatchTime.now().uptimeNanoseconds))
    }

    /// Seconds since 1970, only ever shown.
    public var wallClockSeconds: Int64 { Int64(Date().timeIntervalSince1970) }
}
