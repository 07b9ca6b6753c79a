import KVPaging
import Messages
import ServingTypes

/// One attempt of one job on this worker.
struct DecodeJob: Sendable {
    let transfer: TransferID
    /// Order of arrival: who is younger gives way first.
    let order: UInt64
    let sampling: SamplingParameters
    let promptTokens: Int
    /// Prompt and output so far.
    var tokens: [TokenID]
    var table: BlockTable
    /// Leading positions whose keys and values exist.
    var computed = 0
    /// Prompt tokens found in the prefix cache by a local prefill; reported with the first token.
    var cachedTokens = 0
    var phase: Phase
    var isPaused = false
    var whereabouts = Whereabouts.pool
    /// Place in the coordinator's last order; last where it has not spoken of the job.
    var rank = Int.max
    /// Since when it could run and has no memory, and for how long before that and not yet reported.
    var stalledSince: Instant?
    var stall = TimeSpan.zero
    /// The coordinator was told that no token will come until the pages are back.
    var saidLeft = false
    var isInStep = false
    /// Set while a step that includes the job is under way: what becomes of it afterwards.
    var ending: Ending?

    /// Nobody's: what a free place in the table of jobs holds.
    static let vacant = DecodeJob(
        transfer: TransferID(job: JobID(high: 0, low: 0), attempt: Attempt(0)), order: 0,
        sampling: SamplingParameters(), promptTokens: 0, tokens: [], table: .vacant, phase: .prefilling)

    enum Phase: Sendable {
        /// Blocks are reserved; pages come from P.
        case landing(Landing)
        /// The prompt is computed here.
        case prefilling
        case decoding
    }

    /// Where the pages are. Places of the host tier stand in the order of the blocks.
    enum Whereabouts: Sendable {
        case pool
        /// Being written out; the slots are still held.
        case leaving([HostSlot])
        case host([HostSlot])
        /// Being read back into new slots.
        case returning([HostSlot])
    }

    /// Who is served first where memory is short; the greatest gives way first.
    struct Turn: Comparable, Sendable {
        var isPaused: Bool
        var rank: Int
        var order: UInt64

        static func < (a: Turn, b: Turn) -> Bool {
            if a.isPaused != b.isPaused { return b.isPaused }
            return (a.rank, a.order) < (b.rank, b.order)
        }
    }

    var turn: Turn { Turn(isPaused: isPaused, rank: rank, order: order) }

    var isInPool: Bool {
        switch whereabouts {
        case .pool: true
        case .leaving, .host, .returning: false
        }
    }

    var isInHost: Bool {
        switch whereabouts {
        case .host: true
        case .pool, .leaving, .returning: false
        }
    }

    /// Whether a driver is copying its pages.
    var isMoving: Bool {
        switch whereabouts {
        case .leaving, .returning: true
        case .pool, .host: false
        }
    }

    var hostSlots: [HostSlot]? {
        switch whereabouts {
        case .pool: nil
        case .leaving(let places), .host(let places), .returning(let places): places
        }
    }

    var mayBeWrittenOut: Bool {
        (isDecoding || isPrefilling && isPaused) && isInPool && !isInStep && ending == nil
    }

    enum Ending: Sendable {
        case dropped(acknowledge: Bool)
        case evicted
    }

    var outputTokens: Int { tokens.count - promptTokens }

    var isLanding: Bool {
        switch phase {
        case .landing: true
        case .prefilling, .decoding: false
        }
    }

    var isPrefilling: Bool {
        switch phase {
        case .prefilling: true
        case .landing, .decoding: false
        }
    }

    var isDecoding: Bool {
        switch phase {
        case .decoding: true
        case .landing, .prefilling: false
        }
    }

    /// Whether the next iteration may bring a token of it.
    var isRunnable: Bool { isDecoding && !isPaused && isInPool }

    /// Whether the next iteration may compute some of its prompt.
    var wantsPrefill: Bool { isPrefilling && !isPaused && isInPool }

    /// Whether it takes part in iterations, or will as soon as there is one.
    var usesSlot: Bool { !isLanding && !isPaused && isInPool && ending == nil }

    /// Whether it could take part, were it not paused.
    var mayStandIn: Bool { !isLanding && isPaused && isInPool && ending == nil }

    /// Whether its memory can be taken: nobody else is about to write it.
    var mayGiveWay: Bool { !isLanding && isInPool && ending == nil }

    /// Whether the next token needs another block.
    var lacksRoom: Bool { isInPool && tokens.count > table.capacityTokens }

    mutating func grow(in pool: inout BlockPool) -> Bool { table.grow(toCover: tokens.count, in: &pool) }

    /// More leading positions are there; what is full becomes shareable.
    mutating func advance(by count: Int, naming: any PageNaming, in pool: inout BlockPool) {
        computed += count
        table.seal(through: computed, of: tokens, naming: naming, in: &pool)
    }

    /// Appends a token; why it was the last, if it was.
    mutating func accept(_ token: TokenID, contextTokensMax: Int) -> FinishReason? {
        tokens.append(token)
        if sampling.stopTokens.contains(token) { return .stop }
        return outputTokens >= sampling.maxTokens || tokens.count >= contextTokensMax ? .length : nil
    }

    var decodeEntry: StepEntry {
        StepEntry(
            transfer: transfer, tokens: Array(tokens[computed...]), startPosition: computed, blockTable: table.slots,
            sample: sampleRequest)
    }

    var sampleRequest: SampleRequest {
        SampleRequest(
            parameters: sampling, history: sampling.needsHistory ? tokens : [], promptTokens: promptTokens,
            outputTokens: outputTokens)
    }
}

/// What a transfer still waits for.
struct Landing: Sendable {
    let source: WorkerRef
    /// Blocks asked for, ascending.
    let wanted: [UInt32]
    let lease: TimeSpan
    /// Moves on with progress only.
    var expires: Instant
    /// CRC32C of each landed page.
    var landed: [UInt32: UInt32] = [:]
    var receivedBytes: UInt64 = 0
    var end: TransferEnd?
    var wantRounds = 0

    var missing: [UInt32] { wanted.filter { landed[$0] == nil } }

    /// Whether P sent other bytes than those that landed.
    func contradicts(_ end: TransferEnd) -> Bool {
        end.pages.contains { sum in landed[sum.block].map { $0 != sum.crc } ?? false }
    }
}
