import Foundation

/// What ends a process of the cluster besides its own work: signals, and the end of its supervisor.
public enum ProcessLife {
    /// Ends this process when standard input closes: the supervisor holds the other end, so its
    /// workers cannot outlive it, whatever ended it (swift-spike.md §7).
    public static func endWithSupervisor(_ onEnd: @escaping @Sendable () -> Void) {
        let watcher = Thread {
            var byte: UInt8 = 0
            while true {
                let count = read(STDIN_FILENO, &byte, 1)
                if count == 0 || (count < 0 && errno != EINTR) { break }
            }
            onEnd()
        }
        watcher.name = "supervisor-watch"
        watcher.start()
    }

    /// Calls back on `queue` for SIGTERM and SIGINT; the first asks for a drain, the second for the end.
    public static func onTermination(queue: DispatchQueue = .main, _ handler: @escaping @Sendable (Int32) -> Void)
        -> [any DispatchSourceSignal]
    {
        signal(SIGPIPE, SIG_IGN)
        return [SIGTERM, SIGINT].map { number in
            signal(number, SIG_IGN)
            let source = DispatchSource.makeSignalSource(signal: number, queue: queue)
            source.setEventHandler { handler(number) }
            source.resume()
            return source
        }
    }
}
