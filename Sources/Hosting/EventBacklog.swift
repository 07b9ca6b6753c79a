import KVPaging

/// Events that came up while a core's actions were being performed: each waits until all actions of
/// the one before it are done, since a core is never re-entered.
struct EventBacklog<Event: Sendable> {
    /// Far more than the actions of one event can bring about; beyond it two parts of this process
    /// answer each other for ever, which is a bug of ours and traps.
    static var eventsMax: Int { 1 << 16 }

    private var events = FrontQueue<Event>()

    var isEmpty: Bool { events.isEmpty }

    mutating func append(_ event: Event) {
        precondition(events.count < Self.eventsMax, "\(Self.eventsMax) events wait for one to be handled")
        events.append(event)
    }

    /// The oldest one.
    mutating func next() -> Event? {
        defer { events.removeFirst() }
        return events.first
    }
}
