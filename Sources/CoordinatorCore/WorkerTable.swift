import KVPaging
import Scheduling
import ServingTypes

/// What of the configuration says how much work a worker is given at once.
struct LaneRules: Sendable {
    var prefillWindowJobs: Int
    var residencyPercent: Int
    var growthBlocks: Int
    var preemptsRunning: Bool

    init(_ configuration: CoordinatorConfiguration) {
        prefillWindowJobs = configuration.prefillWindowJobs
        residencyPercent = configuration.decodeResidencyPercent
        growthBlocks = configuration.growthBlocks
        preemptsRunning = configuration.policy.preemptsRunning
    }

    /// Jobs that may be resident at once without displacing each other.
    func residentsMax(_ worker: borrowing Worker) -> Int {
        max(worker.register.batchJobsMax * max(residencyPercent, 1) / 100, 1)
    }

    /// Blocks left for those who run to grow into, `growthBlocks` for each, where there is no host tier and a job
    /// that comes would otherwise soon be the reason to compute one of them again.
    func growthReserve(of worker: borrowing Worker) -> Int {
        guard preemptsRunning, !worker.register.reservesWholeJobs, worker.freeHostPages == 0 else { return 0 }
        let growing = min(worker.residents.count, worker.register.batchJobsMax)
        return min(growing * max(growthBlocks, 0), worker.register.blockCount / 8)
    }
}

/// What placing looks at of a worker before it looks at the worker.
struct WorkerLane: Hashable, Sendable {
    var role: WorkerRole
    var isReady: Bool
    var opening: Opening
    var blockCount: Int
    var queuedTokens: Int
    var jobs: Int
    /// Blocks thought to be free, and those of them that a job may have.
    var availableBlocks: Int
    var spareBlocks: Int
    var reservesWholeJobs: Bool

    /// Whom a worker takes, as far as its own books say.
    enum Opening: Int, Hashable, Sendable, CaseIterable {
        /// Anybody whose sequence fits.
        case open
        /// Those who go before jobs that it has.
        case full
        /// Nobody, though it is well.
        case shut
    }

    init(_ worker: borrowing Worker, _ rules: LaneRules) {
        role = worker.register.role
        isReady = worker.state == .ready
        opening = Self.opening(worker, rules)
        blockCount = worker.register.blockCount
        queuedTokens = worker.queuedTokens
        jobs = worker.jobs.count
        availableBlocks = worker.availableBlocks
        reservesWholeJobs = worker.register.reservesWholeJobs
        spareBlocks = role == .prefill ? blockCount : worker.availableBlocks - rules.growthReserve(of: worker)
    }

    var decodes: Bool { role != .prefill }
    var load: WorkerLoad { WorkerLoad(queuedTokens: queuedTokens, jobs: jobs, blocks: spareBlocks) }

    private static func opening(_ worker: borrowing Worker, _ rules: LaneRules) -> Opening {
        switch worker.register.role {
        case .prefill:
            let jobs = worker.prefills.count
            return jobs == 0 || jobs < rules.prefillWindowJobs ? .open : jobs == rules.prefillWindowJobs ? .full : .shut
        case .decode, .mixed:
            let jobsMax = worker.register.jobsMax
            if jobsMax > 0, worker.jobs.count >= jobsMax { return .shut }
            let isBelow = worker.jobs.count - worker.away.count < rules.residentsMax(worker)
            return isBelow && worker.away.isEmpty ? .open : .full
        }
    }
}

/// The registered workers in order of their names: found by name or by position, changed in place, and
/// searched by load.
struct WorkerTable: Sendable {
    let rules: LaneRules
    /// Names in order.
    private(set) var names: [WorkerID] = []
    private(set) var all: ContiguousArray<Worker> = []
    /// Of each, by position.
    private(set) var lanes: ContiguousArray<WorkerLane> = []
    private var positions = SlotTable<WorkerID, Int>(vacant: 0)
    /// Those in health, by role and opening.
    private var trees: ContiguousArray<LoadTree>
    /// Whether workers came or went, so that the trees' positions are others'.
    private var isUnsettled = false
    private(set) var prefillCount = 0

    init(_ rules: LaneRules) {
        self.rules = rules
        trees = ContiguousArray(
            repeating: LoadTree(), count: WorkerRole.allCases.count * WorkerLane.Opening.allCases.count)
    }

    var count: Int { names.count }

    /// Workers in health that do this work and are so open, by load; to be asked for after `settle`.
    func tree(_ role: WorkerRole, _ opening: WorkerLane.Opening) -> LoadTree { trees[Self.place(role, opening)] }

    func position(of id: WorkerID) -> Int? { positions[id] }

    /// Reads a worker, or changes one that is there; anything else has no effect.
    subscript(id: WorkerID) -> Worker? {
        get { positions[id].map { all[$0] } }
        _modify {
            var worker = self[id]
            yield &worker
            if let worker, let position = positions[id] {
                all[position] = worker
                refresh(position)
            }
        }
    }

    /// Looks at a worker in its place.
    @inline(__always)
    func read<Result>(_ id: WorkerID, _ body: (borrowing Worker) -> Result) -> Result? {
        guard let position = positions[id] else { return nil }
        return body(all[position])
    }

    /// Changes a worker in its place; nil, and nothing done, where there is none.
    @inline(__always) @discardableResult
    mutating func change<Result>(_ id: WorkerID, _ body: (inout Worker) -> Result) -> Result? {
        guard let position = positions[id] else { return nil }
        defer { refresh(position) }
        return body(&all[position])
    }

    /// Changes what of a worker no placement depends on.
    @inline(__always)
    mutating func amend(_ id: WorkerID, _ body: (inout Worker) -> Void) {
        guard let position = positions[id] else { return }
        body(&all[position])
    }

    mutating func set(_ worker: Worker) {
        let id = worker.ref.id
        if let position = positions[id] {
            all[position] = worker
            return refresh(position)
        }
        let position = names.firstIndex { id < $0 } ?? names.count
        names.insert(id, at: position)
        all.insert(worker, at: position)
        lanes.insert(WorkerLane(worker, rules), at: position)
        renumber(from: position)
    }

    mutating func remove(_ id: WorkerID) {
        guard let position = positions.removeValue(forKey: id) else { return }
        names.remove(at: position)
        all.remove(at: position)
        lanes.remove(at: position)
        renumber(from: position)
    }

    private mutating func renumber(from first: Int) {
        for position in first..<names.count { positions[names[position]] = position }
        prefillCount = lanes.count { $0.role == .prefill }
        isUnsettled = true
    }

    /// Brings the trees up to date with who has come and gone: many may before the next job is placed.
    mutating func settle() {
        guard isUnsettled else { return }
        isUnsettled = false
        for role in WorkerRole.allCases {
            for opening in WorkerLane.Opening.allCases {
                trees[Self.place(role, opening)].fill(
                    lanes.map { $0.isReady && $0.role == role && $0.opening == opening ? $0.load : nil })
            }
        }
    }

    private mutating func refresh(_ position: Int) {
        let lane = WorkerLane(all[position], rules)
        let before = lanes[position]
        guard lane != before else { return }
        lanes[position] = lane
        guard !isUnsettled else { return }
        let isElsewhere = lane.role != before.role || lane.opening != before.opening || !lane.isReady
        if isElsewhere, before.isReady { trees[Self.place(before.role, before.opening)].set(position, to: nil) }
        if lane.isReady { trees[Self.place(lane.role, lane.opening)].set(position, to: lane.load) }
    }

    private static func place(_ role: WorkerRole, _ opening: WorkerLane.Opening) -> Int {
        let roles =
            switch role {
            case .prefill: 0
            case .decode: 1
            case .mixed: 2
            }
        return roles * WorkerLane.Opening.allCases.count + opening.rawValue
    }
}
