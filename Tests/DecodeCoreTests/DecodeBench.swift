import DecodeCore
import KVPaging
import Messages
import ServingTypes
import Testing

/// One decode core with its engine at hand: events in, what it said and did out.
struct DecodeBench {
    var core: DecodeWorkerCore
    var engine: FakeEngine
    var now = Instant.zero
    /// Of the last event.
    var actions: [DecodeAction] = []
    var step: StepBatch?
    /// Moves between pool and host tier that nobody has finished, and what lies there.
    var moves: [(order: SwapOrder, isOut: Bool)] = []
    var host: [HostSlot: [UInt64]] = [:]

    static let source = WorkerRef(id: WorkerID("prefill-0"), epoch: Epoch(5))
    static let link = PageLinkID(3)

    init(blocks: Int = 16, configure: (inout DecodeConfiguration) -> Void = { _ in }) {
        var configuration = DecodeConfiguration(
            own: WorkerRef(id: WorkerID("decode-0"), epoch: Epoch(1)), blockTokens: 4, blockCount: blocks,
            pageBytes: 64)
        configure(&configuration)
        core = DecodeWorkerCore(configuration: configuration, naming: HashNaming())
        engine = FakeEngine(blockCount: blocks, blockTokens: 4)
        send(.coordinatorUp)
    }

    mutating func send(_ event: DecodeEvent) {
        actions = core.handle(event, at: now)
        for case .runStep(let batch) in actions {
            if step != nil { Issue.record("two steps are under way") }
            step = batch
        }
        for action in actions {
            switch action {
            case .swapOut(let order): moves.append((order, true))
            case .swapIn(let order): moves.append((order, false))
            default: break
            }
        }
        if let broken = core.audit() { Issue.record("after \(event): \(broken)") }
    }

    mutating func order(_ message: Message) { send(.coordinatorMessage(message)) }
    mutating func peer(_ message: Message) { send(.peerMessage(Self.link, from: Self.source, message)) }

    /// Finishes the step under way; false where there is none.
    @discardableResult
    mutating func finishStep() -> Bool {
        guard let batch = step else { return false }
        step = nil
        send(.stepFinished(engine.run(batch)))
        return true
    }

    /// Finishes the oldest move; false where there is none.
    @discardableResult
    mutating func finishMove(error: ServingError? = nil) -> Bool {
        guard !moves.isEmpty else { return false }
        let (order, isOut) = moves.removeFirst()
        for page in order.pages where error == nil {
            if isOut {
                host[page.host] = engine.pages[Int(page.slot.index)]
            } else {
                engine.write(host[page.host] ?? [], to: page.slot)
            }
        }
        let outcome = SwapOutcome(error: error, time: .milliseconds(1))
        send(isOut ? .swappedOut(ticket: order.ticket, outcome) : .swappedIn(ticket: order.ticket, outcome))
        return true
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
            if case .sendToPeer(_, let message) = action { message } else { nil }
        }
    }

    var steps: [TokenStep] {
        said.flatMap { message in
            if case .tokenSteps(let steps) = message { steps.steps } else { [TokenStep]() }
        }
    }

    var openedLanding: [LandingSlot]? {
        for case .openLanding(_, _, let slots) in actions { return slots }
        return nil
    }

    var closedLanding: Bool {
        actions.contains { action in
            if case .closeLanding = action { true } else { false }
        }
    }

    /// Starts a job with a local prefill.
    mutating func start(_ transfer: TransferID, _ tokens: [TokenID], max: Int = 8, stop: [TokenID] = []) {
        order(
            .startDecode(
                StartDecode(
                    transfer: transfer, tenant: .anonymous, tokens: tokens, promptTokens: tokens.count, pageIDs: [],
                    sampling: sampling(max, stop))))
    }

    mutating func reserve(
        _ transfer: TransferID, _ tokens: [TokenID], max: Int = 8, stop: [TokenID] = [], lease: TimeSpan = .seconds(1)
    ) {
        order(
            .reservePages(
                ReservePages(
                    transfer: transfer, tenant: .anonymous, tokens: tokens, promptTokens: tokens.count, pageIDs: [],
                    sampling: sampling(max, stop), source: Self.source, lease: lease)))
    }

    func sampling(_ max: Int, _ stop: [TokenID] = []) -> SamplingParameters {
        var sampling = SamplingParameters()
        sampling.maxTokens = max
        sampling.stopTokens = stop
        return sampling
    }

    /// Runs steps until a job ends; all its tokens by offset.
    mutating func runToEnd(_ transfer: TransferID) -> (tokens: [TokenID], end: StepEnd?) {
        var tokens: [TokenID] = []
        for _ in 0..<200 {
            for step in steps where step.transfer == transfer {
                tokens = Array(tokens.prefix(step.offset)) + step.tokens.map(\.token)
                if let end = step.end { return (tokens, end) }
            }
            guard finishStep() else { break }
        }
        return (tokens, nil)
    }

    /// Computes elsewhere what P would send, and lands it.
    mutating func land(_ transfer: TransferID, _ tokens: [TokenID], blocks: [UInt32], slots: [LandingSlot]) {
        let pages = Self.pages(of: tokens)
        for block in blocks {
            guard let slot = slots.first(where: { $0.block == block })?.slot else { continue }
            engine.write(pages[Int(block)], to: slot)
            send(
                .pageLanded(
                    transfer, block: block, filledTokens: 4, receivedBytes: 64,
                    pageCRC: FakeEngine.crc(of: pages[Int(block)])))
        }
    }

    static func pages(of tokens: [TokenID]) -> [[UInt64]] {
        var other = FakeEngine(blockCount: 32, blockTokens: 4)
        _ = other.run(
            StepBatch(entries: [
                StepEntry(
                    transfer: id(99), tokens: tokens, startPosition: 0,
                    blockTable: (0..<32).map { BlockSlot($0) }, sample: nil)
            ]))
        return other.pages
    }

    func end(_ transfer: TransferID, _ tokens: [TokenID], blocks: [UInt32]) -> Message {
        let pages = Self.pages(of: tokens)
        return .transferEnd(
            TransferEnd(
                transfer: transfer,
                pages: blocks.map { PageSum(block: $0, crc: FakeEngine.crc(of: pages[Int($0)])) },
                firstToken: SampledToken(token: FakeEngine.output(of: tokens, sampling(1))[0]), cachedTokens: 0))
    }
}

func id(_ job: Int, _ attempt: UInt32 = 1) -> TransferID {
    TransferID(job: JobID(high: 0, low: UInt64(job)), attempt: Attempt(attempt))
}

func prompt(_ count: Int, from first: Int = 1) -> [TokenID] {
    (0..<count).map { TokenID(UInt32((first + $0 * 7) % Int(FakeEngine.vocabulary))) }
}
