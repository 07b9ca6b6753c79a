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
    /// Blocks thought to be free, a hint.
    var availableBlocks: Int

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
    }

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

    mutating func detach(_ job: JobID) {
        jobs.removeAll { $0 == job }
        residents.removeAll { $0 == job }
        removePrefill(job)
    }

    mutating func progressed(at now: Instant) {
        stepGaps.add(now - lastProgress)
        lastProgress = now
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
    var usage = JobUsage()
    var lastSeen: UInt64 = 0
}
