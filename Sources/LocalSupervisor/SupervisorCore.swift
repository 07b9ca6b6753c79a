import ServingTypes

/// What runs in one process of a local cluster.
public enum ProcessKind: String, Hashable, Sendable, CaseIterable, Comparable {
    case coordinator
    case prefill
    case decode
    case mixed

    public static func < (a: ProcessKind, b: ProcessKind) -> Bool { a.rank < b.rank }

    private var rank: Int {
        switch self {
        case .coordinator: 0
        case .prefill: 1
        case .decode: 2
        case .mixed: 3
        }
    }
}

/// `coordinator`, `prefill-0`, `decode-3`.
public struct ProcessName: Hashable, Comparable, Sendable, CustomStringConvertible {
    public var kind: ProcessKind
    public var index: Int

    public init(_ kind: ProcessKind, _ index: Int) {
        self.kind = kind
        self.index = index
    }

    public static let coordinator = ProcessName(.coordinator, 0)
    public static func < (a: ProcessName, b: ProcessName) -> Bool { (a.kind, a.index) < (b.kind, b.index) }
    public var description: String { kind == .coordinator ? "coordinator" : "\(kind.rawValue)-\(index)" }
}

/// How many workers of each kind there should be.
public struct WorkerCounts: Hashable, Sendable {
    public var prefill: Int
    public var decode: Int
    public var mixed: Int

    public init(prefill: Int, decode: Int, mixed: Int = 0) {
        self.prefill = prefill
        self.decode = decode
        self.mixed = mixed
    }

    /// Workers of one kind on one machine.
    public static let perKindMax = 64

    public subscript(kind: ProcessKind) -> Int {
        switch kind {
        case .coordinator: 1
        case .prefill: prefill
        case .decode: decode
        case .mixed: mixed
        }
    }
}

/// How a process ended.
public enum ProcessEnd: Hashable, Sendable, CustomStringConvertible {
    case exited(Int32)
    case signaled(Int32)
    case notStarted(String)

    public var description: String {
        switch self {
        case .exited(let code): "exited with status \(code)"
        case .signaled(let number): "was ended by signal \(number)"
        case .notStarted(let reason): "did not start: \(reason)"
        }
    }
}

public enum SupervisorEvent: Sendable {
    case start(WorkerCounts)
    case scale(WorkerCounts)
    case exited(ProcessName, ProcessEnd)
    /// The coordinator does not know this worker, or does not answer: it cannot be drained.
    case drainRefused(ProcessName)
    case shutDown
    /// A second request to stop: nothing is finished first.
    case endNow
    case tick
}

public enum SupervisorAction: Hashable, Sendable {
    case spawn(ProcessName)
    /// Ask the coordinator to drain a worker; the worker exits by itself when it holds nothing.
    case drain(ProcessName, deadline: TimeSpan)
    case terminate(ProcessName)
    case kill(ProcessName)
    case say(String)
    /// The last process of a cluster that was told to stop is gone.
    case finished
}

/// Keeps the wanted processes running: restarts with back-off, scales by drain, stops in order
/// (coordinator first, since it finishes its jobs with the workers' help).
public struct SupervisorCore: Sendable {
    public struct Timing: Sendable {
        public var backOffFirst = TimeSpan.milliseconds(100)
        public var backOffMax = TimeSpan.seconds(10)
        /// A process that ran this long has recovered: its next failure starts from the first back-off.
        public var steadyAfter = TimeSpan.seconds(30)
        public var drain = TimeSpan.seconds(30)
        /// Between asking a process to end and ending it.
        public var patience = TimeSpan.seconds(10)

        public init() {}
    }

    public enum Phase: Hashable, Sendable {
        case running(since: Instant)
        case backingOff(until: Instant)
        /// Leaves when it holds nothing; ended at the deadline.
        case draining(until: Instant)
        /// Was asked to end; killed at the deadline.
        case ending(until: Instant)
    }

    struct Child: Sendable {
        var phase: Phase
        /// Ends in a row without a steady run between them.
        var failures = 0
        var restarts = 0
        var lastEnd: ProcessEnd?
    }

    /// One process as the core sees it.
    public struct ProcessState: Hashable, Sendable {
        public var name: ProcessName
        public var phase: Phase
        /// Ends in a row without a steady run between them.
        public var failures: Int
        /// How often it was started again.
        public var restarts: Int
        public var lastEnd: ProcessEnd?
    }

    private let timing: Timing
    private var children: [ProcessName: Child] = [:]
    private var wanted = WorkerCounts(prefill: 0, decode: 0)
    private var stopping = false

    public init(timing: Timing = Timing()) { self.timing = timing }

    /// Processes in order of their names.
    public var processes: [ProcessState] {
        children.sorted { $0.key < $1.key }.map { name, child in
            ProcessState(
                name: name, phase: child.phase, failures: child.failures, restarts: child.restarts,
                lastEnd: child.lastEnd)
        }
    }

    public mutating func handle(_ event: SupervisorEvent, at now: Instant) -> [SupervisorAction] {
        switch event {
        case .start(let counts):
            wanted = counts
            return spawn(.coordinator, at: now) + reconcile(at: now)
        case .scale(let counts):
            guard !stopping else { return [.say("the cluster is stopping: nothing is scaled")] }
            wanted = counts
            return reconcile(at: now)
        case .exited(let name, let end): return exited(name, end, at: now)
        case .drainRefused(let name): return endIfDraining(name, at: now)
        case .shutDown: return shutDown(at: now)
        case .endNow: return endNow(at: now)
        case .tick: return tick(at: now)
        }
    }

    private mutating func spawn(_ name: ProcessName, at now: Instant) -> [SupervisorAction] {
        children[name] = Child(phase: .running(since: now))
        return [.spawn(name)]
    }

    private mutating func respawn(_ name: ProcessName, at now: Instant) -> [SupervisorAction] {
        children[name]?.phase = .running(since: now)
        children[name]?.restarts += 1
        return [.spawn(name)]
    }

    /// Starts what is missing at the lowest free index, drains what is too much from the highest.
    private mutating func reconcile(at now: Instant) -> [SupervisorAction] {
        var actions: [SupervisorAction] = []
        for kind in [ProcessKind.prefill, .decode, .mixed] {
            let staying = names(of: kind).filter { isStaying($0) }
            if staying.count < wanted[kind] {
                for _ in staying.count..<wanted[kind] { actions += spawn(freeName(kind), at: now) }
            }
            for name in staying.dropFirst(wanted[kind]).reversed() { actions += leave(name, at: now) }
        }
        return actions
    }

    private func names(of kind: ProcessKind) -> [ProcessName] { children.keys.filter { $0.kind == kind }.sorted() }

    private func isStaying(_ name: ProcessName) -> Bool {
        switch children[name]?.phase {
        case .running, .backingOff: true
        case .draining, .ending, nil: false
        }
    }

    private func freeName(_ kind: ProcessKind) -> ProcessName {
        var index = 0
        while children[ProcessName(kind, index)] != nil { index += 1 }
        return ProcessName(kind, index)
    }

    private mutating func leave(_ name: ProcessName, at now: Instant) -> [SupervisorAction] {
        switch children[name]?.phase {
        case .backingOff:
            children[name] = nil
            return [.say("\(name) was waiting to be restarted and is not needed any more")]
        case .running:
            children[name]?.phase = .draining(until: now + timing.drain + timing.patience)
            return [.say("\(name) drains"), .drain(name, deadline: timing.drain)]
        case .draining, .ending, nil: return []
        }
    }

    private mutating func exited(_ name: ProcessName, _ end: ProcessEnd, at now: Instant) -> [SupervisorAction] {
        guard let child = children[name] else { return [] }
        switch child.phase {
        case .draining, .ending:
            children[name] = nil
            return [.say("\(name) is gone")] + afterDeparture(of: name, at: now)
        case .running(let since):
            if stopping {
                children[name] = nil
                return afterDeparture(of: name, at: now)
            }
            let failures = now - since >= timing.steadyAfter ? 1 : child.failures + 1
            let wait = backOff(failures)
            children[name] = Child(
                phase: .backingOff(until: now + wait), failures: failures, restarts: child.restarts, lastEnd: end)
            let count = failures > 1 ? " (\(failures) times in a row)" : ""
            return [.say("\(name) \(end)\(count); restarting in \(wait.nanoseconds / 1_000_000) ms")]
        case .backingOff: return []
        }
    }

    /// 100 ms, 200, 400 … up to the longest.
    private func backOff(_ failures: Int) -> TimeSpan {
        var wait = timing.backOffFirst
        for _ in 1..<max(failures, 1) where wait < timing.backOffMax { wait = wait * 2 }
        return min(wait, timing.backOffMax)
    }

    private mutating func afterDeparture(of name: ProcessName, at now: Instant) -> [SupervisorAction] {
        guard stopping else { return reconcile(at: now) }
        if children.isEmpty { return [.finished] }
        return name == .coordinator ? children.keys.sorted().flatMap { end($0, at: now) } : []
    }

    private mutating func end(_ name: ProcessName, at now: Instant) -> [SupervisorAction] {
        switch children[name]?.phase {
        case .backingOff:
            children[name] = nil
            return []
        case .running, .draining:
            children[name]?.phase = .ending(until: now + timing.patience)
            return [.terminate(name)]
        case .ending, nil: return []
        }
    }

    private mutating func endIfDraining(_ name: ProcessName, at now: Instant) -> [SupervisorAction] {
        guard case .draining = children[name]?.phase else { return [] }
        return end(name, at: now)
    }

    private mutating func shutDown(at now: Instant) -> [SupervisorAction] {
        guard !stopping else { return [] }
        stopping = true
        for name in children.keys.sorted() {
            if case .backingOff = children[name]?.phase { children[name] = nil }
        }
        if children.isEmpty { return [.finished] }
        guard children[.coordinator] != nil else { return children.keys.sorted().flatMap { end($0, at: now) } }
        children[.coordinator]?.phase = .ending(until: now + timing.drain + timing.patience)
        return [.terminate(.coordinator)]
    }

    private mutating func endNow(at now: Instant) -> [SupervisorAction] {
        stopping = true
        for name in children.keys.sorted() {
            if case .backingOff = children[name]?.phase { children[name] = nil }
        }
        if children.isEmpty { return [.finished] }
        return children.keys.sorted().map { name in
            children[name]?.phase = .ending(until: now + timing.patience)
            return .kill(name)
        }
    }

    private mutating func tick(at now: Instant) -> [SupervisorAction] {
        var actions: [SupervisorAction] = []
        for name in children.keys.sorted() {
            switch children[name]?.phase {
            case .backingOff(let until) where until <= now:
                actions += respawn(name, at: now)
            case .draining(let until) where until <= now: actions += end(name, at: now)
            case .ending(let until) where until <= now:
                children[name]?.phase = .ending(until: now + timing.patience)
                actions.append(.kill(name))
            case .running, .backingOff, .draining, .ending, nil: break
            }
        }
        return actions
    }
}
