import KVPaging
import Messages
import PrefillCore
import ServingTypes
import Testing

/// Names pages by a polynomial of their tokens; as good as SHA-256 for tests.
struct SumNaming: PageNaming {
    func root(tenant: TenantID) -> PageID { PageID(tenant.name.utf8.reduce(7) { $0 &* 31 &+ UInt64($1) }, 0, 0, 0) }

    func child(of parent: PageID, tokens: ArraySlice<TokenID>) -> PageID {
        PageID(tokens.reduce(parent.words.0 &* 131) { $0 &* 1_000_003 &+ UInt64($1.value) &+ 1 }, parent.words.0, 1, 1)
    }
}

/// One prefill core at hand. Steps answer with token 42; pages leave when the test says so.
struct PrefillBench {
    var core: PrefillWorkerCore
    var now = Instant.zero
    var actions: [PrefillAction] = []
    var step: StepBatch?

    static let target = WorkerRef(id: WorkerID("decode-0"), epoch: Epoch(8))
    static let first = SampledToken(token: TokenID(42))

    init(blocks: Int = 16, configure: (inout PrefillConfiguration) -> Void = { _ in }) {
        var configuration = PrefillConfiguration(
            own: WorkerRef(id: WorkerID("prefill-0"), epoch: Epoch(1)), blockTokens: 4, blockCount: blocks,
            pageBytes: 64)
        configure(&configuration)
        core = PrefillWorkerCore(configuration: configuration, naming: SumNaming())
        send(.coordinatorUp)
    }

    mutating func send(_ event: PrefillEvent) {
        actions = core.handle(event, at: now)
        for case .runStep(let batch) in actions {
            if step != nil { Issue.record("two steps are under way") }
            step = batch
        }
        if let broken = core.audit() { Issue.record("after \(event): \(broken)") }
    }

    mutating func peer(_ message: Message) { send(.peerMessage(Self.target, message)) }

    mutating func assign(
        _ transfer: TransferID, _ tokens: [TokenID], wanted: [UInt32], credit: UInt64 = 1 << 20,
        lease: TimeSpan = .seconds(1), precedes: Bool = false
    ) {
        send(
            .coordinatorMessage(
                .assignPrefill(
                    AssignPrefill(
                        transfer: transfer, tenant: .anonymous, tokens: tokens, promptTokens: tokens.count, pageIDs: [],
                        sampling: SamplingParameters(), wanted: wanted, target: Self.target, targetHost: "h",
                        targetPort: 1, path: .direct, creditBytes: credit, lease: lease, precedes: precedes))))
    }

    mutating func cancel(_ transfer: TransferID) {
        send(.coordinatorMessage(.cancel(Cancel(transfer: transfer, reason: .client))))
    }

    @discardableResult
    mutating func finishStep() -> Bool {
        guard let batch = step else { return false }
        step = nil
        let outcomes = batch.entries.map { $0.sample == nil ? StepOutcome.extended : .sampled(Self.first) }
        send(.stepFinished(StepResult(outcomes: outcomes, computeTime: .milliseconds(10))))
        return true
    }

    mutating func pageSent(_ transfer: TransferID, _ block: UInt32) {
        send(.pageSent(Self.target, transfer, block: block, sentBytes: 64, crc: block + 100))
    }

    mutating func wait(_ milliseconds: Int64) {
        now = now + .milliseconds(milliseconds)
        send(.tick)
    }

    var said: [Message] {
        actions.compactMap { action in
            if case .sendToCoordinator(let message) = action { message } else { nil }
        }
    }

    var toldPeer: [Message] {
        actions.compactMap { action in
            if case .sendToPeer(_, _, let message) = action { message } else { nil }
        }
    }

    var pushed: [UInt32] {
        actions.flatMap { action in
            if case .pushPages(_, _, let pages) = action { pages.map(\.block) } else { [UInt32]() }
        }
    }

    var connects: Int {
        actions.count { action in
            if case .connectPeer = action { true } else { false }
        }
    }

    var stopsPushing: Bool {
        actions.contains { action in
            if case .stopPushing = action { true } else { false }
        }
    }

    var failure: TransferFailed.Reason? {
        for case .transferFailed(let failure) in said { return failure.reason }
        return nil
    }

    var refusal: Refusal? {
        for case .assignNack(let nack) in said { return nack.reason }
        return nil
    }
}

func id(_ job: Int, _ attempt: UInt32 = 1) -> TransferID {
    TransferID(job: JobID(high: 0, low: UInt64(job)), attempt: Attempt(attempt))
}

func prompt(_ count: Int, from first: Int = 1) -> [TokenID] {
    (0..<count).map { TokenID(UInt32((first + $0 * 7) % 97)) }
}
