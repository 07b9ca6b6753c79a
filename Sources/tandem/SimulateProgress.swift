import Foundation

/// Signs of life of a long run on standard error: as they come at a terminal, at most two a minute elsewhere.
final class SimulateProgress {
    private let every: Duration
    private var last = ContinuousClock.now

    init() { every = isatty(STDERR_FILENO) == 1 ? .zero : .seconds(30) }

    func tell(_ text: @autoclosure () -> String) {
        let now = ContinuousClock.now
        guard now - last >= every else { return }
        last = now
        Terminal.complain(text())
    }
}
