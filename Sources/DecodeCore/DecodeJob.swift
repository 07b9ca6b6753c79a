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
    var isInStep = false
    /// Set while a step that includes the job is under way: what becomes of it afterwards.
    var ending: Ending?

    enum Phase: Sendable {
        /// Blocks are reserved; pages come from P.
        case landing(Landing)
        /// The prompt is computed here.
        case prefilling
        case decoding
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
