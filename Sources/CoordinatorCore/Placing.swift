import Messages
import Scheduling
import ServingTypes

/// What becomes of a job whose turn it is.
enum Verdict {
    case pair(WorkerRef, WorkerRef)
    case local(WorkerRef)
    /// Until some worker has room.
    case wait
    /// Only this job cannot go: the workers with room have refused it.
    case hold
    case never(ServingError)
}

/// A search for where a job goes, and what it has found.
struct Placing {
    let job: Job
    /// For its sequence and the next token.
    let blocks: Int
    let prefixes: PrefixLengths
    var request: PlacementRequest
    /// Positions of workers that their load does not tell all of, ascending: those that hold pages of the job,
    /// failed or refused it, or were inhibited. Each is looked at by itself.
    var peculiar: [Int] = []
    /// Workers with room, those left out that another one stands for.
    var sources: [Place] = []
    var sinks: [Place] = []
    /// Full workers among the peculiar that may still be looked at.
    var looks = PlacingLimits.fullLooks

    /// By bisection.
    func isPeculiar(_ position: Int) -> Bool {
        var (low, high) = (0, peculiar.count)
        while low < high {
            let middle = (low + high) / 2
            if peculiar[middle] < position { low = middle + 1 } else { high = middle }
        }
        return low < peculiar.count && peculiar[low] == position
    }

    typealias Place = (position: Int, candidate: PlacementCandidate)
}

enum PlacingLimits {
    /// Full decoding workers that one search looks at for residents that the job would displace, the
    /// cheapest first.
    static let fullLooks = 8
    /// Full prefill workers that one search looks at for prompts that the job would go before, likewise.
    static let precedenceLooks = 32
}

/// Where a job goes: the cheapest pair of workers with room, or one worker for both.
///
/// The loads of all workers lie in trees by role and by how open they are (`WorkerTable`), so a search takes
/// O(log n) in the number of workers. What a load does not tell of is looked at one by one: workers that hold
/// pages of the job, that failed or refused it, or that were inhibited lately. The decision is that of
/// looking at everyone, in order of names, as long as no more workers are full than the limits above allow for.
extension Coordinator {
    func place(_ job: Job) -> Verdict {
        var search = Placing(
            job: job, blocks: blocksNeeded(job.sequenceTokens + 1), prefixes: index.prefixLengths(of: job.names),
            request: PlacementRequest(
                sequenceTokens: job.sequenceTokens, bytesPerToken: bytesPerToken, localOnly: false))
        search.peculiar = peculiar(search)
        for position in search.peculiar { considerAlone(position, &search) }
        search.request.localOnly =
            job.transferFailures >= configuration.transferFailuresBeforeLocal || !anySourceLives(search)
        findSinks(&search)
        guard !search.sinks.isEmpty else { return verdictWithoutSink(search) }
        findSources(&search)
        search.sinks.sort { $0.position < $1.position }
        search.sources.sort { $0.position < $1.position }
        let decision = placement.place(
            search.request, prefill: search.sources.map(\.candidate), decode: search.sinks.map(\.candidate),
            costs: costs)
        switch decision {
        case .pair(let prefill, let decode): return .pair(prefill, decode)
        case .local(let worker): return .local(worker)
        case .none:
            let isBusy = isAnyBusy(search) { $0 == .prefill }
            if isBusy, let worker = relief(for: search) { return .local(worker) }
            return !isBusy && hasRefused(search) { $0 == .prefill } ? .hold : .wait
        }
    }

    // MARK: One by one

    private func peculiar(_ search: Placing) -> [Int] {
        let job = search.job
        if search.prefixes.longest == 0, inhibitions.isEmpty, job.unfit.isEmpty, job.refusedBy.isEmpty,
            job.avoided.isEmpty
        {
            return []
        }
        var positions = Set(search.prefixes.workers.compactMap { workers.position(of: $0) })
        positions.formUnion(inhibitions.keys.compactMap { workers.position(of: $0) })
        for names in [job.unfit, job.refusedBy, job.avoided] {
            positions.formUnion(names.compactMap { workers.position(of: $0) })
        }
        return positions.sorted()
    }

    private func considerAlone(_ position: Int, _ search: inout Placing) {
        let id = workers.names[position]
        guard isAble(position, search), isLiving(position), !search.job.refusedBy.contains(id) else { return }
        guard hasRoomAlone(position, &search) else { return }
        let place = (position, candidate(position, search))
        if workers.lanes[position].decodes { search.sinks.append(place) } else { search.sources.append(place) }
    }

    private func hasRoomAlone(_ position: Int, _ search: inout Placing) -> Bool {
        let lane = workers.lanes[position]
        if inhibitions[workers.names[position]] != nil { return lane.jobs == 0 }
        if lane.decodes {
            if lane.opening == .full {
                guard search.looks > 0 else { return false }
                search.looks -= 1
            }
            return hasRoomToDecode(position, search)
        }
        return hasWindow(position, search.job)
            || lane.opening != .shut && precedes(search.job.id, prefillsOf: workers.all[position])
    }

    func candidate(_ position: Int, _ search: Placing) -> PlacementCandidate {
        let (id, lane) = (workers.names[position], workers.lanes[position])
        return PlacementCandidate(
            worker: workers.all[position].ref, role: lane.role, queuedTokens: lane.queuedTokens,
            residentJobs: lane.jobs, cachedTokens: search.prefixes[id] * configuration.blockTokens,
            avoided: search.job.avoided.contains(id))
    }

    // MARK: By load

    private func findSources(_ search: inout Placing) {
        let (job, request) = (search.job, search.request)
        func cost(_ load: WorkerLoad) -> Double { placement.sourceSeconds(load, request, costs) }
        func find(_ opening: WorkerLane.Opening, _ look: (Int, Double) -> LoadTree.Look) -> Int? {
            workers.tree(.prefill, opening).first(blocks: search.blocks, cost: cost) { position, cost in
                search.isPeculiar(position) ? .pass : look(position, cost)
            }
        }
        var found = find(.open) { position, _ in
            // Who has more before it has no room either.
            hasWindow(position, job) ? .take : workers.lanes[position].queuedTokens > 0 ? .stop : .pass
        }
        var looks = PlacingLimits.precedenceLooks
        func goesFirst(_ position: Int, _ seconds: Double) -> LoadTree.Look {
            if let found, isDearer(seconds, position, than: found, cost) { return .stop }
            guard looks > 0 else { return .stop }
            looks -= 1
            return precedes(job.id, prefillsOf: workers.all[position]) ? .take : .pass
        }
        if policy.isAnyAhead(of: job.id, by: configuration.policy.theta) {
            if let first = find(.full, goesFirst) { found = first }
            if let first = find(.open, goesFirst) { found = first }
        }
        if let found { search.sources.append((found, candidate(found, search))) }
    }

    private func findSinks(_ search: inout Placing) {
        let request = search.request
        var found: [Int?] = []
        func find(_ role: WorkerRole, _ cost: (WorkerLoad) -> Double) {
            let (open, full) = cheapestSink(search, role, cost)
            found += [open, full]
        }
        find(.decode) { placement.splitSeconds($0, request, costs) }
        if placement.runsLocally(.decode, request) { find(.decode) { placement.localSeconds($0, request, costs) } }
        find(.mixed) { placement.localSeconds($0, request, costs) }
        for position in found.compactMap({ $0 }) { search.sinks.append((position, candidate(position, search))) }
    }

    /// The cheapest decoding workers that have room for the job: of those below their residency, and, where one
    /// of them is cheaper still, of those that are full.
    func cheapestSink(
        _ search: Placing, _ role: WorkerRole, notDearerThan most: Double = .infinity,
        _ cost: (WorkerLoad) -> Double, suits: (Int) -> Bool = { _ in true }
    ) -> (open: Int?, full: Int?) {
        let open = workers.tree(role, .open).first(blocks: search.blocks, cost: cost) { position, seconds in
            if seconds > most { return .stop }
            let takes =
                !search.isPeculiar(position) && suits(position) && hasRoomToDecode(position, search)
            return takes ? .take : .pass
        }
        var looks = PlacingLimits.fullLooks
        let full = workers.tree(role, .full).first(blocks: search.blocks, cost: cost) { position, seconds in
            if seconds > most { return .stop }
            if let open, isDearer(seconds, position, than: open, cost) { return .stop }
            guard !search.isPeculiar(position), suits(position) else { return .pass }
            guard looks > 0 else { return .stop }
            looks -= 1
            return hasRoomToDecode(position, search) ? .take : .pass
        }
        return (open, full)
    }

    private func isDearer(
        _ seconds: Double, _ position: Int, than other: Int, _ cost: (WorkerLoad) -> Double
    ) -> Bool {
        let least = cost(workers.lanes[other].load)
        return seconds == least ? position > other : seconds > least
    }

    // MARK: Room

    /// Of the pool's blocks enough for the job, if nobody else held any.
    private func isAble(_ position: Int, _ search: Placing) -> Bool {
        workers.lanes[position].blockCount >= search.blocks
            && (search.job.unfit.isEmpty || !search.job.unfit.contains(workers.names[position]))
    }

    private func isLiving(_ position: Int) -> Bool {
        workers.lanes[position].isReady && (inhibitions.isEmpty || !isInhibited(workers.names[position]))
    }

    /// Whether a prefill worker's window takes the prompt.
    private func hasWindow(_ position: Int, _ job: Job) -> Bool {
        let prefills = workers.all[position].prefills.count
        return prefills == 0
            || prefills < configuration.prefillWindowJobs
                && workers.lanes[position].queuedTokens + job.sequenceTokens <= configuration.prefillWindowTokens
    }

    /// Whether a decoding worker has the memory, and a place among its residents.
    private func hasRoomToDecode(_ position: Int, _ search: Placing) -> Bool {
        let lane = workers.lanes[position]
        guard lane.blockCount >= search.blocks, lane.opening != .shut else { return false }
        let taken =
            lane.reservesWholeJobs ? blocksTaken(search.job, by: workers.all[position].register) : search.blocks
        let blocks = taken - search.prefixes[workers.names[position]]
        guard blocks <= lane.spareBlocks else { return false }
        guard lane.opening == .open || hasPlace(workers.all[position], for: search.job, blocks: blocks) else {
            return false
        }
        return configuration.roomRule?.admits(search.job.id, on: workers.all[position].ref) ?? true
    }

    // MARK: Where nobody has room

    private func anySourceLives(_ search: Placing) -> Bool {
        if !search.sources.isEmpty { return true }
        if inhibitions.isEmpty, search.job.unfit.isEmpty {
            return WorkerLane.Opening.allCases.contains {
                workers.tree(.prefill, $0).least.map { $0.blocks >= search.blocks } ?? false
            }
        }
        return workers.lanes.indices.contains {
            !workers.lanes[$0].decodes && isAble($0, search) && isLiving($0)
        }
    }

    private func verdictWithoutSink(_ search: Placing) -> Verdict {
        let sinks = workers.lanes.indices.lazy.filter { workers.lanes[$0].decodes }
        if !sinks.isEmpty, !sinks.contains(where: { isAble($0, search) }) {
            return .never(tooLong(search.job, blocks: search.blocks))
        }
        return hasRefused(search) { $0 != .prefill } && !isAnyBusy(search) { $0 != .prefill } ? .hold : .wait
    }

    /// Whether a worker in health has refused the job.
    private func hasRefused(_ search: Placing, _ suits: (WorkerRole) -> Bool) -> Bool {
        search.job.refusedBy.contains { id in
            guard let position = workers.position(of: id) else { return false }
            return suits(workers.lanes[position].role) && isAble(position, search) && isLiving(position)
        }
    }

    /// Whether one in health has not: where none has room for the job, it is busy.
    private func isAnyBusy(_ search: Placing, _ suits: (WorkerRole) -> Bool) -> Bool {
        workers.lanes.indices.contains { position in
            suits(workers.lanes[position].role) && isAble(position, search) && isLiving(position)
                && (search.job.refusedBy.isEmpty || !search.job.refusedBy.contains(workers.names[position]))
        }
    }

    private func tooLong(_ job: Job, blocks: Int) -> ServingError {
        ServingError(
            .contextTooLong,
            "The sequence has \(job.sequenceTokens) tokens and needs \(blocks) blocks; no worker that decodes can hold"
                + " so many for one job.", field: "prompt")
    }

    private var bytesPerToken: Double {
        for position in 0..<workers.count where workers.all[position].register.pageBytes > 0 {
            let register = workers.all[position].register
            return Double(register.pageBytes) / Double(max(register.blockTokens, 1))
        }
        return 0
    }
}
