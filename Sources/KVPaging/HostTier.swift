import Messages
import ServingTypes

/// A page's place in the host tier.
public struct HostSlot: Hashable, Sendable, CustomStringConvertible {
    public var index: UInt32

    public init(_ index: UInt32) { self.index = index }

    public var description: String { "host \(index)" }
}

/// The books of one worker's host tier, where pages of jobs that wait lie outside the pool: which
/// place is being written, which one is held. No bytes; those are the driver's. Every page has one
/// owner, so there are no references to count; breaking the order of states is a bug of ours and
/// traps.
public struct HostTier: Sendable {
    /// free -> reserved (being written) -> held -> free; a write that failed goes back to free.
    public enum State: String, Hashable, Sendable, CaseIterable {
        case free, reserved, held
    }

    private var states: [State]
    /// Taken from the end.
    private var freeSlots: [HostSlot]
    private var tally = SwapCounts()

    /// `pages` is the budget; 0: there is no tier.
    public init(pages: Int) {
        precondition(pages >= 0 && pages < Int(UInt32.max))
        states = Array(repeating: .free, count: pages)
        freeSlots = (0..<UInt32(pages)).reversed().map { HostSlot($0) }
        tally.free = pages
    }

    public var pages: Int { states.count }

    /// Pages by state; the sum is `pages`.
    public func counts() -> SwapCounts { tally }

    public func state(of slot: HostSlot) -> State { states[Int(slot.index)] }

    /// Places to write to; all or none. nil where fewer are free.
    public mutating func reserve(_ count: Int) -> [HostSlot]? {
        guard count >= 0, count <= freeSlots.count else { return nil }
        let taken = Array(freeSlots.suffix(count).reversed())
        freeSlots.removeLast(count)
        for slot in taken { states[Int(slot.index)] = .reserved }
        tally.free -= count
        tally.reserved += count
        return taken
    }

    /// The bytes are there.
    public mutating func hold(_ slot: HostSlot) {
        precondition(state(of: slot) == .reserved, "\(slot) is \(state(of: slot))")
        states[Int(slot.index)] = .held
        tally.reserved -= 1
        tally.held += 1
    }

    /// Given back; nobody reads or writes it any more.
    public mutating func release(_ slot: HostSlot) {
        switch state(of: slot) {
        case .reserved: tally.reserved -= 1
        case .held: tally.held -= 1
        case .free: preconditionFailure("\(slot) is free already")
        }
        states[Int(slot.index)] = .free
        tally.free += 1
        freeSlots.append(slot)
    }

    /// Recounts everything; the first broken invariant, or nil. `reserved` and `held` are what all
    /// owners name.
    public func audit(reserved: [HostSlot], held: [HostSlot]) -> String? {
        var recount = SwapCounts()
        for state in states {
            switch state {
            case .free: recount.free += 1
            case .reserved: recount.reserved += 1
            case .held: recount.held += 1
            }
        }
        if recount != tally { return "host counts \(tally) differ from the places' \(recount)" }
        if tally.total != states.count { return "host counts sum to \(tally.total), the budget is \(states.count)" }
        if freeSlots.count != tally.free || Set(freeSlots).count != freeSlots.count {
            return "\(tally.free) places of the host tier are free, the list has \(freeSlots.count)"
        }
        let owned = reserved + held
        if Set(owned).count != owned.count { return "a place of the host tier has two owners" }
        if let wrong = reserved.first(where: { state(of: $0) != .reserved }) { return "\(wrong) is not reserved" }
        if let wrong = held.first(where: { state(of: $0) != .held }) { return "\(wrong) is not held" }
        if owned.count != tally.reserved + tally.held {
            return "\(tally.reserved + tally.held) places of the host tier are taken, \(owned.count) are owned"
        }
        return nil
    }
}
