import KVPaging
import Messages
import ServingTypes

/// A registered worker and what the coordinator has given it.
struct Worker: Sendable {
    let ref: WorkerRef
    let register: Register
    var state: State = .ready
    var load = LoadReport()
    var lastHeard: Instant
    var lastSent: Instant
    /// Last sign of a finished step, or when work began.
    var lastProgress: Instant
    var stepGaps = GapWindow()

    /// Jobs that hold or will hold memory here, in the order in which they came.
    var jobs: [JobID] = []
    /// Tokens that are still to be prefilled here, by job.
    var prefills: [JobID: Int] = [:]
    var queuedTokens = 0
    /// Jobs that can decode here: running or paused.
    var residents: [JobID] = []
    /// Whether the last plan left a resident paused.
    var hasPaused = false
    /// Residents whose pages lie in the host tier, or are on their way.
    var away: Set<JobID> = []
    /// Blocks thought to be free, a hint, and free pages of the host tier.
    var availableBlocks: Int
    var freeHostPages: Int
    /// Blocks that it has been asked for and has not promised yet: its own count knows nothing of them.
    private(set) var unansweredBlocks = 0
    /// How often it has told its free blocks.
    private(set) var timesTold: UInt64 = 0
    private var unanswered: [JobID: Int] = [:]
    /// Of its iterations, the last that was told.
    var iteration: UInt64 = 0
    /// What it was told last: who stands by, and the blocks to make free.
    var standby: [TransferID] = []
    var wantedBlocks = 0

    enum State: Hashable, Sendable {
        case ready
        case suspect
        /// Until its end is forced.
        case draining(forceAt: Instant)
        case drained
    }

    init(ref: WorkerRef, register: Register, at now: Instant) {
        self.ref = ref
        self.register = register
        lastHeard = now
        lastSent = now
        lastProgress = now
        availableBlocks = register.blockCount
        freeHostPages = register.swapPages
    }

    /// The same process on a new link: what is with it stays with it.
    init(_ before: Worker, register: Register, at now: Instant) {
        self.init(ref: before.ref, register: register, at: now)
        jobs = before.jobs
        prefills = before.prefills
        queuedTokens = before.queuedTokens
        residents = before.residents
        hasPaused = before.hasPaused
        away = before.away
        availableBlocks = before.availableBlocks
        freeHostPages = before.freeHostPages
        unanswered = before.unanswered
        unansweredBlocks = before.unansweredBlocks
        iteration = before.iteration
        if before.isDraining { state = before.state }
    }

    /// Whether not all residents can run at once.
    var isCrowded: Bool { residents.count > register.batchJobsMax || !away.isEmpty }

    var isDraining: Bool {
        switch state {
        case .draining, .drained: true
        case .ready, .suspect: false
        }
    }

    var decodes: Bool {
        switch register.role {
        case .decode, .mixed: true
        case .prefill: false
        }
    }

    mutating func attach(_ job: JobID) {
        if !jobs.contains(job) { jobs.append(job) }
    }

    mutating func addPrefill(_ job: JobID, tokens: Int, at now: Instant) {
        if prefills.isEmpty && residents.isEmpty { lastProgress = now }
        queuedTokens += tokens - (prefills.updateValue(tokens, forKey: job) ?? 0)
    }

    mutating func removePrefill(_ job: JobID) {
        queuedTokens -= prefills.removeValue(forKey: job) ?? 0
    }

    /// Room is asked for.
    mutating func ask(_ job: JobID, blocks: Int) {
        unansweredBlocks += blocks - (unanswered.updateValue(blocks, forKey: job) ?? 0)
        availableBlocks -= blocks
    }

    mutating func answered(_ job: JobID) {
        unansweredBlocks -= unanswered.removeValue(forKey: job) ?? 0
    }

    /// Takes the worker's own count; true where it has more than was thought.
    mutating func learn(available: Int, freeHostPages pages: Int) -> Bool {
        freeHostPages = pages
        timesTold += 1
        defer { availableBlocks = available - unansweredBlocks }
        return available - unansweredBlocks > availableBlocks
    }

    mutating func detach(_ job: JobID) {
        answered(job)
        away.remove(job)
        if let place = jobs.firstIndex(of: job) { jobs.remove(at: place) }
        if let place = residents.firstIndex(of: job) { residents.remove(at: place) }
        removePrefill(job)
    }

    mutating func becomeHome(of job: JobID, local: Bool, at now: Instant) {
        if residents.isEmpty && prefills.isEmpty { lastProgress = now }
        if !local { removePrefill(job) }
        residents.append(job)
    }

    mutating func progressed(at now: Instant) {
        stepGaps.add(now - lastProgress)
        lastProgress = now
    }
}

extension WorkerID: SlotKey {
    /// FNV-1a over the name, which a registered worker has and no client chooses.
    public var slotHash: UInt64 {
        var hash: UInt64 = 0xcbf2_9ce4_8422_2325
        for byte in name.utf8 { hash = (hash ^ UInt64(byte)) &* 0x100_0000_01b3 }
        return hash ^ (hash >> 29)
    }
}

/// The last gaps between steps, for their median.
struct GapWindow: Sendable {
    static let length = 32
    private var gaps: [TimeSpan] = []
    private var next = 0

    mutating func add(_ gap: TimeSpan) {
        if gaps.count < Self.length {
            gaps.append(gap)
        } else {
            gaps[next] = gap
            next = (next + 1) % Self.length
        }
    }

    var median: TimeSpan {
        gaps.isEmpty ? .zero : gaps.sorted()[gaps.count / 2]
    }
}

/// A name that failed lately: no work until `until`, then one job at a time until one succeeds.
struct Inhibition: Sendable {
    var failures: Int
    var until: Instant
}

/// A process that was lost, and the jobs that it was computing.
struct Suspicion: Sendable {
    var worker: WorkerRef
    var jobs: [JobID]
}

/// One tenant's standing beside its virtual counter.
struct TenantRecord: Sendable {
    var queued = 0
    var running = 0
    /// On the bridge between the roles, and what of it they take up.
    var bridgeJobs = 0
    var bridgeUnits = 0
    var usage = JobUsage()
    var lastSeen: UInt64 = 0
}
