import DecodeCore
import KVPaging
import Messages
import ServingTypes

/// A worker's host tier: pages move one job after the other at the tier's bandwidth, beside the steps.
extension ClusterSimulation {
    func swapOut(_ node: SimulatedNode, _ order: SwapOrder) {
        move(node, order, isOut: true, order.pages.map { node.engine.slots[Int($0.slot.index)] })
    }

    /// Nobody reads the slots before everything has come.
    func swapIn(_ node: SimulatedNode, _ order: SwapOrder) {
        for page in order.pages { node.writable[Int(page.slot.index)] += 1 }
        move(node, order, isOut: false, order.pages.map { node.host[Int($0.host.index)] })
    }

    private func move(_ node: SimulatedNode, _ order: SwapOrder, isOut: Bool, _ contents: [SlotContent]) {
        let bytes = Double(order.pages.count * configuration.pageBytes)
        let time = TimeSpan(seconds: bytes / max(configuration.swapBytesPerSecond, 1))
        node.swapBusyUntil = max(node.swapBusyUntil, now) + time.nanoseconds
        note(
            node.id.name, "writes \(Summary.short(order.transfer)) \(isOut ? "out" : "in"): \(order.pages.count) pages")
        mark(node.index, UInt64(order.pages.count) << 1 | (isOut ? 1 : 0))
        let done = SimulatedMove(order: order, isOut: isOut, contents: contents, time: time)
        queue.add(.swapDone(node: node.index, life: node.life, done), at: node.swapBusyUntil)
    }

    func swapDone(_ node: SimulatedNode, _ move: SimulatedMove) {
        let fails = configuration.swapFailPercent > 0 && random.chance(configuration.swapFailPercent)
        let error = fails ? ServingError(.internalError, "the simulated host tier failed") : nil
        witness(move.isOut ? (fails ? "swap.out.failed" : "swap.out") : (fails ? "swap.in.failed" : "swap.in"))
        for (page, content) in zip(move.order.pages, move.contents) {
            let slot = Int(page.slot.index)
            if move.isOut {
                if node.engine.slots[slot] != content {
                    fail("\(node.id): slot \(slot) changed while it was written out")
                }
                if !fails { node.host[Int(page.host.index)] = content }
            } else {
                node.writable[slot] -= 1
                if !fails { node.engine.slots[slot] = content }
            }
        }
        let outcome = SwapOutcome(error: error, time: move.time)
        let ticket = move.order.ticket
        perform(
            decode: node,
            move.isOut ? .swappedOut(ticket: ticket, outcome) : .swappedIn(ticket: ticket, outcome))
    }
}

/// One job's pages on their way between pool and host tier, with what they held when they left.
struct SimulatedMove {
    var order: SwapOrder
    var isOut: Bool
    var contents: [SlotContent]
    var time: TimeSpan
}
