import Foundation
import Logging
import ServingTypes

/// Drives `SupervisorCore` with real processes.
public actor Supervisor {
    private let plan: ClusterPlan
    private let state: StateDirectory
    private let say: @Sendable (String) -> Void
    private let drainWorker: @Sendable (String, TimeSpan) async -> Bool
    private let lastWords: @Sendable (ProcessName) -> String?
    /// What each process complained about last, so that a crash loop says it once.
    private var complaints: [ProcessName: String] = [:]
    private var core: SupervisorCore
    private var processIDs: [ProcessName: pid_t] = [:]
    /// Signals for processes that are being started.
    private var owed: [ProcessName: Int32] = [:]
    private var finished = false
    private var waiters: [CheckedContinuation<Void, Never>] = []
    private var ticker: Task<Void, Never>?

    /// - Parameters:
    ///   - drainWorker: asks the coordinator to drain a worker; false where it cannot.
    ///   - lastWords: what the log of a process that failed says about it.
    public init(
        plan: ClusterPlan, state: StateDirectory, timing: SupervisorCore.Timing = .init(),
        drainWorker: @escaping @Sendable (String, TimeSpan) async -> Bool,
        lastWords: @escaping @Sendable (ProcessName) -> String? = { _ in nil },
        say: @escaping @Sendable (String) -> Void
    ) {
        self.plan = plan
        self.state = state
        self.drainWorker = drainWorker
        self.lastWords = lastWords
        self.say = say
        core = SupervisorCore(timing: timing)
    }

    public func start() {
        apply(.start(plan.workers))
        ticker = Task { [weak self] in
            while !Task.isCancelled {
                try? await Task.sleep(for: .milliseconds(50))
                await self?.apply(.tick)
            }
        }
    }

    public func scale(_ counts: WorkerCounts) { apply(.scale(counts)) }

    public func shutDown() { apply(.shutDown) }

    /// Kills what still runs.
    public func endNow() { apply(.endNow) }

    /// Returns when a shut-down cluster's last process is gone.
    public func waitUntilFinished() async {
        guard !finished else { return }
        await withCheckedContinuation { waiters.append($0) }
    }

    public var processes: [ProcessReport] {
        let now = Self.now()
        return core.processes.map { ProcessReport($0, processID: processIDs[$0.name], at: now) }
    }

    private static func now() -> Instant {
        Instant(nanoseconds: Int64(clamping: DispatchTime.now().uptimeNanoseconds))
    }

    private func apply(_ event: SupervisorEvent) {
        let now = Self.now()
        for action in core.handle(event, at: now) { perform(action) }
    }

    private func perform(_ action: SupervisorAction) {
        switch action {
        case .spawn(let name): spawn(name)
        case .drain(let name, let deadline):
            Task {
                if await !drainWorker("\(name)", deadline) { apply(.drainRefused(name)) }
            }
        case .terminate(let name): signal(name, SIGTERM)
        case .kill(let name): signal(name, SIGKILL)
        case .say(let text): say(text)
        case .finished: finish()
        }
    }

    private func spawn(_ name: ProcessName) {
        let (program, arguments) = plan.command(for: name, state: state)
        let log = state.logFile(of: "\(name)")
        LogFiles.rotate(log)
        let child = ChildProcess(program: program, arguments: arguments, logFile: log)
        Task {
            let end = await child.run { [weak self] processID in await self?.started(name, processID) }
            processIDs[name] = nil
            owed[name] = nil
            sayWhy(name, end)
            apply(.exited(name, end))
        }
    }

    private func sayWhy(_ name: ProcessName, _ end: ProcessEnd) {
        guard case .exited(let code) = end, code != 0, let words = lastWords(name), complaints[name] != words else {
            return
        }
        complaints[name] = words
        say("\(name): \(words)")
    }

    /// What was asked of a process before its id was known is made up for here.
    private func started(_ name: ProcessName, _ processID: pid_t) {
        processIDs[name] = processID
        if let number = owed.removeValue(forKey: name) { kill(processID, number) }
    }

    private func signal(_ name: ProcessName, _ number: Int32) {
        if let processID = processIDs[name] { kill(processID, number) } else { owed[name] = number }
    }

    private func finish() {
        finished = true
        ticker?.cancel()
        for waiter in waiters { waiter.resume() }
        waiters = []
    }
}

/// One process as `tandem status` shows it.
public struct ProcessReport: Sendable {
    public var name: ProcessName
    public var phase: SupervisorCore.Phase
    public var processID: Int32?
    /// Ends in a row without a steady run between them.
    public var failures: Int
    public var restarts: Int
    public var lastEnd: ProcessEnd?
    /// Where it waits to be started again: how long still.
    public var restartsIn: TimeSpan?

    init(_ state: SupervisorCore.ProcessState, processID: Int32?, at now: Instant) {
        name = state.name
        phase = state.phase
        self.processID = processID
        failures = state.failures
        restarts = state.restarts
        lastEnd = state.lastEnd
        if case .backingOff(let until) = state.phase { restartsIn = max(until - now, .zero) }
    }
}

/// Bounds on what the processes write.
public enum LogFiles {
    /// A larger log is set aside when its process starts; one older log is kept beside it.
    public static let bytesMax = 64 << 20

    /// Renames a log past the bound to `<name>.1`, over an older one.
    public static func rotate(_ path: String, bytesMax: Int = LogFiles.bytesMax) {
        var status = stat()
        guard stat(path, &status) == 0, status.st_size > bytesMax else { return }
        rename(path, path + ".1")
    }
}
