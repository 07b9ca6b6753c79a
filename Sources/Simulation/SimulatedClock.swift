/// What one machine's monotonic clock reads, against true time: `MonotonicClock` of a live process.
/// Machines were booted at different times, run a little fast or slow, and their readings may step:
/// forward where a machine slept and its clock counts the sleep, and, against every kernel's promise,
/// a little back.
struct SimulatedClock: Hashable, Sendable {
    /// Nanoseconds that it is ahead of true time.
    private(set) var ahead: Int64 = 0
    /// How much too fast, in millionths.
    private(set) var driftPPM: Int64 = 0
    /// The machine sleeps since then, and its clock with it.
    private var sleepsSince: Int64?

    init() {}

    init(ahead: Int64, driftPPM: Int64) {
        self.ahead = ahead
        self.driftPPM = driftPPM
    }

    func reading(at now: Int64) -> Int64 {
        let (fast, overflow) = now.multipliedReportingOverflow(by: driftPPM)
        return now &+ ahead &+ (overflow ? 0 : fast / 1_000_000)
    }

    mutating func step(by nanoseconds: Int64) { ahead &+= nanoseconds }

    mutating func sleep(at now: Int64) { if sleepsSince == nil { sleepsSince = now } }

    /// The clock goes on from where it stood.
    mutating func wake(at now: Int64) {
        guard let since = sleepsSince else { return }
        sleepsSince = nil
        ahead &-= reading(at: now) &- reading(at: since)
    }
}

/// How the machines' clocks differ, of a whole cluster.
public struct ClockPlan: Hashable, Sendable {
    /// Each worker's and, last, the coordinator's: nanoseconds ahead of true time, and millionths too fast.
    var ahead: [Int64] = []
    var driftPPM: [Int64] = []

    public init() {}

    func clock(_ index: Int) -> SimulatedClock {
        guard ahead.indices.contains(index), driftPPM.indices.contains(index) else { return SimulatedClock() }
        return SimulatedClock(ahead: ahead[index], driftPPM: driftPPM[index])
    }
}
