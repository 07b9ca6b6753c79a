import Messages
import ServingTypes

/// A worker's side of belonging to a cluster, the same for every role: registration, heartbeats,
/// events about cached pages, draining, and how long to go on without a coordinator.
public struct WorkerMembership: Sendable {
    /// Without `held`, which is filled in at each registration.
    private let register: Register
    private let orphanGrace: TimeSpan
    private var heartbeatEvery: TimeSpan
    private var lastBeat: Instant?
    private var downSince: Instant?
    private var eventSequence: UInt64 = 0
    private var drain = DrainState.none

    private enum DrainState: Sendable {
        case none
        case until(Instant)
        case done
    }

    /// Whether the control link is up.
    public private(set) var isUp = false

    public init(register: Register, heartbeatEvery: TimeSpan, orphanGrace: TimeSpan) {
        self.register = register
        self.heartbeatEvery = heartbeatEvery
        self.orphanGrace = orphanGrace
    }

    // MARK: The link

    /// What to say first on a new control link: capacities and held transfers, then all pages.
    public mutating func linkUp(held: [TransferID], pages: [PageID], at now: Instant) -> [Message] {
        isUp = true
        downSince = nil
        lastBeat = now
        var register = register
        register.held = held
        var start = min(pages.count, KVEventLimits.pagesMax)
        var messages: [Message] = [.register(register), event(.snapshot(Array(pages[..<start])))]
        while start < pages.count {
            let end = min(start + KVEventLimits.pagesMax, pages.count)
            messages.append(event(.stored(Array(pages[start..<end]))))
            start = end
        }
        return messages
    }

    public mutating func linkDown(at now: Instant) {
        if isUp { downSince = now }
        isUp = false
    }

    public mutating func registered(_ ack: RegisterAck) {
        if ack.heartbeatEvery > .zero { heartbeatEvery = ack.heartbeatEvery }
    }

    /// Whether `heartbeat` would say something: worth asking before a load is summed up.
    public func owesHeartbeat(at now: Instant) -> Bool {
        isUp && lastBeat.map { now - $0 >= heartbeatEvery } ?? true
    }

    /// The heartbeat that is due, if one is.
    public mutating func heartbeat(at now: Instant, load: LoadReport) -> Message? {
        guard owesHeartbeat(at: now) else { return nil }
        lastBeat = now
        return .heartbeat(Heartbeat(load: load))
    }

    /// Without a link nothing is said: the snapshot at the next registration says it all.
    public mutating func events(_ changes: [KVEvent.Change]) -> [Message] {
        guard isUp else { return [] }
        return changes.map { event($0) }
    }

    private mutating func event(_ change: KVEvent.Change) -> Message {
        eventSequence += 1
        return .kvEvent(KVEvent(sequence: eventSequence, change: change))
    }

    /// True once per loss of the coordinator, after the grace.
    public mutating func becameOrphan(at now: Instant) -> Bool {
        guard let since = downSince, now - since >= orphanGrace else { return false }
        downSince = nil
        return true
    }

    // MARK: Draining

    public var isDraining: Bool {
        switch drain {
        case .none: false
        case .until, .done: true
        }
    }

    /// The first order counts; a later one can only bring the deadline forward.
    public mutating func beginDrain(within span: TimeSpan, at now: Instant) {
        switch drain {
        case .none: drain = .until(now + span)
        case .until(let deadline): drain = .until(min(deadline, now + span))
        case .done: break
        }
    }

    public func drainIsDue(at now: Instant) -> Bool {
        switch drain {
        case .until(let deadline): now >= deadline
        case .none, .done: false
        }
    }

    /// True once, when a draining worker holds nothing any more.
    public mutating func finishDrain() -> Bool {
        guard case .until = drain else { return false }
        drain = .done
        return true
    }
}

/// Exponentially weighted mean; each sample weighs an eighth.
public struct MovingMean: Sendable {
    public private(set) var value: Double = 0
    private var hasSample = false

    public init() {}

    public mutating func add(_ sample: Double) {
        guard sample.isFinite else { return }
        value = hasSample ? value + (sample - value) / 8 : sample
        hasSample = true
    }
}
