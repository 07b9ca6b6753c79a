import ServingTypes

/// Counts events in windows of a fixed length. In the worst case two windows' worth pass within one
/// length; that is the price of two integers instead of a list of instants.
struct EventBudget {
    let max: Int
    let span: TimeSpan
    private var windowStart: Instant?
    private var count = 0

    init(max: Int, span: TimeSpan) {
        self.max = max
        self.span = span
    }

    /// Counts one event; false once there are more than `max` in the current window.
    mutating func spend(at now: Instant) -> Bool {
        if let start = windowStart, now - start < span {
            count += 1
        } else {
            windowStart = now
            count = 1
        }
        return count <= max
    }
}
