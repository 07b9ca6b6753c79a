import Foundation
import Logging
import ServingTypes

/// Drives `SupervisorCore` with real processes.
public actor Supervisor {
    private let plan: ClusterPlan
    private let state: StateDirectory
    private let say: @Sendable (String) -> Void
    private let drainWorker: @Sendable (String, TimeSpan) async -> Bool
    private var core: SupervisorCore
    private var processIDs: [ProcessName: pid_t] = [:]
    private var finished = false
    private var waiters: [CheckedContinuation<Void, Never>] = []
    private var ticker: Task<Void, Never>?

    /// - Parameter drainWorker: asks the coordinator to drain a worker; false where it cannot.
    public init(
        plan: ClusterPlan, state: StateDirectory, timing: SupervisorCore.Timing = .init(),
        drainWorker: @escaping @Sendable (String, TimeSpan) async -> Bool,
        say: @escaping @Sendable (String) -> Void
    ) {
        self.plan = plan
        self.state = state
        self.drainWorker = drainWorker
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

    /// Returns when a shut-down cluster's last process is gone.
    public func waitUntilFinished() async {
        guard !finished else { return }
        await withCheckedContinuation { waiters.append($0) }
    }

    public var processes: [ProcessReport] {
        core.processes.map { ProcessReport(name: $0.name, phase: $0.phase, processID: processIDs[$0.name]) }
    }

    private func apply(_ event: SupervisorEvent) {
        let now = Instant(nanoseconds: Int64(clamping: DispatchTime.now().uptimeNanoseconds))
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
        let child = ChildProcess(program: program, arguments: arguments, logFile: state.logFile(of: "\(name)"))
        Task {
            let end = await child.run { [weak self] processID in await self?.started(name, processID) }
            processIDs[name] = nil
            apply(.exited(name, end))
        }
    }

    private func started(_ name: ProcessName, _ processID: pid_t) { processIDs[name] = processID }

    private func signal(_ name: ProcessName, _ number: Int32) {
        if let processID = processIDs[name] { kill(processID, number) }
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
}
