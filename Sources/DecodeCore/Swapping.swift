import KVPaging
import Messages
import ServingTypes

/// The host tier: pages of jobs that wait lie outside the pool, and come back before they are due.
///
/// Who leaves first and who comes back first follows the coordinator's last order (`SetRunning.order`,
/// the policy's estimate of when each job runs next). Pages move while steps run: a job whose pages
/// move is in no step and keeps its slots until the move is done, so nothing is overwritten that is
/// being read, and nothing is read that has not come whole. Where the tier is full, or fails, the job
/// that would have been written out is given back to the coordinator and computed again: last resort.
extension DecodeWorkerCore {
    /// Whether anything may be written out now.
    var canSwap: Bool { host.pages > 0 && swapRestsUntil.map { now >= $0 } ?? true }

    var movesOut: Int { moves.count { $0.isOut } }

    /// After every event, before the next step is planned.
    mutating func tendSwaps() {
        guard host.pages > 0 else { return }
        if !away.isEmpty { fetchBack() }
        if canSwap { writeAhead() }
    }

    // MARK: Watermarks

    /// Iterations that pass while one job's pages move.
    private var iterationsPerMove: Int {
        guard stepSeconds.value > 0 else { return 1 }
        let iterations = (moveSeconds.value / stepSeconds.value).rounded(.up)
        return Int(min(max(iterations, 0), Double(configuration.blockTokens - 1))) + 1
    }

    private var runnable: [TransferID] { turns.filter { jobs.read($0) { $0.isRunnable } ?? false } }

    /// Blocks that running jobs take while one job's pages move.
    private func lowWater(running: Int) -> Int {
        running == 0 || !configuration.swapsAhead ? 0 : running * iterationsPerMove / configuration.blockTokens + 1
    }

    /// Blocks that running jobs certainly take while one job's pages move.
    private func blocksNeededSoon(by running: [TransferID]) -> Int {
        let ahead = iterationsPerMove
        return running.count { jobs.read($0) { $0.table.capacityTokens - $0.tokens.count < ahead } ?? false }
    }

    /// Blocks kept free beyond that for the next job, so that its coming does not wait for a move: as
    /// many as jobs bring on the average, as the last one that was refused wanted, or as the coordinator
    /// wants for one that waits.
    private var burstReserve: Int {
        guard configuration.swapsAhead else { return claimedBlocks }
        return max(
            min(Int(admittedBlocks.value.rounded(.up)), configuration.blockCount / 4),
            min(wantedBlocks, configuration.blockCount / 2), claimedBlocks)
    }

    private var leavingBlocks: Int {
        moves.reduce(0) { sum, move in
            move.isOut ? sum + (jobs.read(move.transfer) { $0.table.slots.count } ?? 0) : sum
        }
    }

    // MARK: Out

    /// Paused jobs leave ahead of need, the last in order first; a running one only where the next
    /// iterations need more than there is.
    private mutating func writeAhead() {
        guard pool.available <= turns.count + max(configuration.blockCount / 2, claimedBlocks) else { return }
        let running = runnable
        let reserve = lowWater(running: running.count) + burstReserve
        while moves.count < configuration.movesMax, pool.available + leavingBlocks < reserve,
            let paused = lastInOrder(where: { $0.isPaused }), writeOut(paused)
        {}
        guard running.count > 1, moves.count < configuration.movesMax else { return }
        if blocksNeededSoon(by: running) > pool.available + leavingBlocks,
            let last = lastInOrder(where: { !$0.isPaused })
        {
            _ = writeOut(last)
        }
    }

    /// Begins to write a job's pages to the host tier. False, and nothing done, where there is no
    /// room there or too much under way.
    mutating func writeOut(_ transfer: TransferID) -> Bool {
        guard canSwap, moves.count < configuration.movesMax, jobs.read(transfer, { $0.mayBeWrittenOut }) ?? false
        else { return false }
        let pages = jobs.read(transfer) {
            BlockTable.blocks(for: $0.computed, blockTokens: configuration.blockTokens)
        }
        guard let pages, let places = host.reserve(pages) else { return false }
        let ticket = begin(transfer, isOut: true)
        let at = now
        let swaps = jobs.change(transfer) { job in
            job.whereabouts = .leaving(places)
            if !job.isPaused { job.stalledSince = job.stalledSince ?? at }
            return zip(job.table.slots, places).map { SwapPage(slot: $0, host: $1) }
        }
        away.append(transfer)
        counters.jobsWrittenOut &+= 1
        actions.append(.swapOut(SwapOrder(ticket: ticket, transfer: transfer, pages: swaps ?? [])))
        sayLeft(transfer)
        return true
    }

    /// The coordinator hears once of a job whose pages are not in the pool.
    mutating func sayLeft(_ transfer: TransferID) {
        let offset = jobs.changeOptional(transfer) { job -> Int? in
            guard !job.isInPool, !job.saidLeft, job.ending == nil else { return nil }
            job.saidLeft = true
            return job.outputTokens
        }
        if let offset { emit([TokenStep(transfer: transfer, offset: offset, tokens: [], swap: .left)]) }
    }

    private mutating func begin(_ transfer: TransferID, isOut: Bool) -> UInt64 {
        nextTicket += 1
        moves.append(Move(ticket: nextTicket, transfer: transfer, isOut: isOut))
        return nextTicket
    }

    /// The job that can spare its memory best: paused before running, last in order first.
    func lastInOrder(where suits: (borrowing DecodeJob) -> Bool) -> TransferID? {
        var last: (transfer: TransferID, turn: DecodeJob.Turn)?
        for transfer in arrivals {
            guard let turn = jobs.readOptional(transfer, { $0.mayBeWrittenOut && suits($0) ? $0.turn : nil })
            else { continue }
            if let known = last, turn < known.turn { continue }
            last = (transfer, turn)
        }
        return last?.transfer
    }

    mutating func wroteOut(_ ticket: UInt64, _ outcome: SwapOutcome) {
        guard let transfer = finishMove(ticket, isOut: true, outcome) else { return countStale() }
        guard let places = jobs.readOptional(transfer, { $0.hostSlots }) else { return }
        if outcome.error == nil {
            for place in places { host.hold(place) }
            withPool { jobs, pool in
                jobs.change(transfer) { job in
                    job.table.release(in: &pool)
                    job.whereabouts = .host(places)
                }
            }
            counters.swapBytesOut &+= UInt64(places.count * configuration.pageBytes)
        } else {
            for place in places { host.release(place) }
            stay(transfer)
            restFromSwapping()
        }
        if let ending = jobs.readOptional(transfer, { $0.ending }) { return endMoved(transfer, ending) }
        tellOfRoom()
    }

    /// The pages never left: the job goes on as if nothing had been tried.
    private mutating func stay(_ transfer: TransferID) {
        away.removeAll { $0 == transfer }
        jobs.change(transfer) { $0.whereabouts = .pool }
        sayBack(transfer)
    }

    /// The tier does not take pages (a full disk, say): for a while nothing is tried, twice as long
    /// each time, and those who must give way are computed again.
    private mutating func restFromSwapping() {
        counters.swapsFailed &+= 1
        swapRest = min(swapRest * 2, Limits.swapRestMax)
        swapRestsUntil = now + swapRest
    }

    /// A job was refused for lack of memory: the coordinator hears at once that there is some.
    mutating func tellOfRoom() {
        let wanted = max(wantedBlocks, claimedBlocks)
        guard wanted > 0, admissible >= wanted else { return }
        wantedBlocks = 0
        tellCoordinator(.heartbeat(Heartbeat(load: load)))
    }

    // MARK: Back

    /// Those that should run come back as soon as they fit; those that wait, the first in order first,
    /// once there is room to spare and nobody is being written out.
    private mutating func fetchBack() {
        while moves.count < configuration.movesMax, let next = firstInOrder {
            let total = jobs.read(next.transfer) {
                BlockTable.blocks(for: $0.tokens.count, blockTokens: configuration.blockTokens)
            }
            let running = runnable
            if next.turn.isPaused, !running.isEmpty, movesOut > 0 || !configuration.swapsAhead { return }
            // Whoever comes back must not be the reason to write somebody out again.
            var reserve = running.isEmpty ? 0 : blocksNeededSoon(by: running) + 1 + claimedBlocks
            if next.turn.isPaused { reserve = max(reserve, lowWater(running: running.count)) + burstReserve }
            guard pool.available - (total ?? 0) >= reserve, fetch(next.transfer) else {
                if !next.turn.isPaused { makeWay(for: next, running: running.count) }
                return
            }
        }
    }

    private var firstInOrder: (transfer: TransferID, turn: DecodeJob.Turn)? {
        var first: (transfer: TransferID, turn: DecodeJob.Turn)?
        for transfer in away {
            guard let turn = jobs.readOptional(transfer, { $0.isInHost && $0.ending == nil ? $0.turn : nil })
            else { continue }
            if let known = first, known.turn < turn { continue }
            first = (transfer, turn)
        }
        return first
    }

    /// A job that should run lies outside and does not fit: paused ones leave for it, and, once per
    /// order, one running job that stands behind it.
    private mutating func makeWay(for next: (transfer: TransferID, turn: DecodeJob.Turn), running: Int) {
        if movesOut > 0 { return }
        if let paused = lastInOrder(where: { $0.isPaused }) {
            if writeOut(paused) || running > 0 { return }
            return evict(paused, for: next.transfer)
        }
        guard mayExchange, let last = lastInOrder(where: { !$0.isPaused }),
            let turn = jobs.read(last, { $0.turn }), next.turn < turn
        else { return }
        mayExchange = false
        _ = writeOut(last)
    }

    /// Begins to read a job's pages back into the pool; what the cache still has is not read. False,
    /// and nothing done, where the pool has no room.
    private mutating func fetch(_ transfer: TransferID) -> Bool {
        let size = configuration.blockTokens
        let pages = withPool { jobs, pool in
            jobs.changeOptional(transfer) { job -> [SwapPage]? in
                let cached = job.table.pin(limit: job.computed / size, in: &pool)
                guard job.table.grow(toCover: job.tokens.count, in: &pool), let places = job.hostSlots else {
                    job.table.release(in: &pool)
                    return nil
                }
                job.table.beginFilling(cached * size..<max(job.computed, cached * size), in: &pool)
                job.whereabouts = .returning(places)
                return zip(job.table.slots, places).dropFirst(cached).map { SwapPage(slot: $0, host: $1) }
            }
        }
        guard let pages else { return false }
        if pages.isEmpty {
            arrive(transfer)
        } else {
            let ticket = begin(transfer, isOut: false)
            actions.append(.swapIn(SwapOrder(ticket: ticket, transfer: transfer, pages: pages)))
            counters.swapBytesIn &+= UInt64(pages.count * configuration.pageBytes)
        }
        return true
    }

    mutating func readBack(_ ticket: UInt64, _ outcome: SwapOutcome) {
        guard let transfer = finishMove(ticket, isOut: false, outcome) else { return countStale() }
        if let ending = jobs.readOptional(transfer, { $0.ending }) {
            withPool { jobs, pool in
                jobs.change(transfer) { job in
                    job.table.release(in: &pool)
                    job.whereabouts = .host(job.hostSlots ?? [])
                }
            }
            return endMoved(transfer, ending)
        }
        if outcome.error == nil { return arrive(transfer) }
        // What cannot be proven complete is computed again, never decoded.
        counters.swapsFailed &+= 1
        counters.jobsEvicted &+= 1
        end(transfer, .evicted)
    }

    /// Everything is in the pool again: commit before read.
    private mutating func arrive(_ transfer: TransferID) {
        let places = withPool { jobs, pool in
            jobs.change(transfer) { job -> [HostSlot] in
                job.table.commitReturned(through: job.computed, in: &pool)
                defer { job.whereabouts = .pool }
                return job.hostSlots ?? []
            }
        }
        for place in places ?? [] { host.release(place) }
        away.removeAll { $0 == transfer }
        counters.jobsReadBack &+= 1
        swapRest = Limits.swapRestFirst
        sayBack(transfer)
    }

    private mutating func sayBack(_ transfer: TransferID) {
        endStall(transfer)
        let said = jobs.changeOptional(transfer) { job -> (stall: TimeSpan, offset: Int)? in
            guard job.saidLeft else { return nil }
            defer { (job.stall, job.saidLeft) = (.zero, false) }
            return (job.stall, job.outputTokens)
        }
        guard let said else { return }
        emit([TokenStep(transfer: transfer, offset: said.offset, tokens: [], swap: .back(stall: said.stall))])
    }

    // MARK: Moves

    private mutating func finishMove(_ ticket: UInt64, isOut: Bool, _ outcome: SwapOutcome) -> TransferID? {
        guard let place = moves.firstIndex(where: { $0.ticket == ticket && $0.isOut == isOut }) else { return nil }
        let move = moves.remove(at: place)
        if outcome.error == nil { moveSeconds.add(outcome.time.seconds) }
        return move.transfer
    }

    /// The job ended while its pages moved; nobody touches them any more.
    private mutating func endMoved(_ transfer: TransferID, _ ending: DecodeJob.Ending) {
        jobs.change(transfer) { $0.ending = nil }
        switch ending {
        case .dropped(let acknowledge): drop(transfer, acknowledge: acknowledge)
        case .evicted:
            counters.jobsEvicted &+= 1
            end(transfer, .evicted)
        }
    }

    // MARK: Stalls

    /// The job could run and has no memory: the time until it has counts.
    mutating func stall(_ transfer: TransferID) {
        let at = now
        jobs.change(transfer) { $0.stalledSince = $0.stalledSince ?? at }
    }

    mutating func endStall(_ transfer: TransferID) {
        let at = now
        let span = jobs.changeOptional(transfer) { job -> TimeSpan? in
            guard let since = job.stalledSince else { return nil }
            job.stalledSince = nil
            job.stall = job.stall + (at - since)
            return at - since
        }
        if let span { swapStall = swapStall + span }
    }

    // MARK: Audit

    func auditSwaps() -> String? {
        var (reserved, held): ([HostSlot], [HostSlot]) = ([], [])
        for job in jobs.values {
            switch job.whereabouts {
            case .pool: continue
            case .leaving(let places): reserved += places
            case .host(let places), .returning(let places): held += places
            }
            if job.isInStep { return "\(job.transfer) is in a step and its pages are away" }
            if job.isLanding { return "\(job.transfer) is landing and its pages are away" }
            if job.isInHost, !job.table.slots.isEmpty { return "\(job.transfer) is in the host tier and holds blocks" }
        }
        let elsewhere = Set(jobs.values.filter { !$0.isInPool }.map(\.transfer))
        if Set(away) != elsewhere || away.count != elsewhere.count { return "away differs from jobs" }
        let moving = Set(jobs.values.filter(\.isMoving).map(\.transfer))
        if Set(moves.map(\.transfer)) != moving || moves.count != moving.count {
            return "moves \(moves) differ from jobs \(moving.sorted())"
        }
        if moves.count > configuration.movesMax { return "\(moves.count) moves at once" }
        return host.audit(reserved: reserved, held: held)
    }
}
