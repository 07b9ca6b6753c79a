import Messages
import ServingTypes
import WireCodec

/// SplitMix64, so that a failure names the seed that repeats it.
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64

    init(seed: UInt64) { state = seed }

    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var z = state
        z = (z ^ (z >> 30)) &* 0xbf58_476d_1ce4_e5b9
        z = (z ^ (z >> 27)) &* 0x94d0_49bb_1331_11eb
        return z ^ (z >> 31)
    }
}

/// Messages of every kind with values from all over their ranges.
struct RandomMessages {
    var generator: SeededGenerator

    init(seed: UInt64) { generator = SeededGenerator(seed: seed) }

    mutating func envelope(_ kind: FrameKind) -> Envelope {
        Envelope(sequence: word(), sender: worker(), message: message(kind))
    }

    mutating func message(_ kind: FrameKind) -> Message {
        switch kind {
        case .hello: .hello(hello())
        case .helloAck:
            .helloAck(HelloAck(version: u32(), responder: worker(), verdict: flip() ? .accepted : .refused(text())))
        case .register: .register(register())
        case .registerAck: .registerAck(RegisterAck(heartbeatEvery: span(), lease: span()))
        case .heartbeat: .heartbeat(heartbeat())
        case .kvEvent: .kvEvent(kvEvent())
        case .drain: .drain(Drain(deadline: span()))
        case .drainDone: .drainDone(DrainDone())
        case .reservePages: .reservePages(reservePages())
        case .reserveAck: .reserveAck(ReserveAck(transfer: transfer(), wanted: blocks(), creditBytes: word()))
        case .reserveNack: .reserveNack(ReserveNack(transfer: transfer(), reason: pick(), freeBlocks: count()))
        case .startDecode: .startDecode(startDecode())
        case .startDecodeAck: .startDecodeAck(reply())
        case .setRunning:
            .setRunning(
                SetRunning(
                    run: transfers(), pause: transfers(), order: transfers(), standby: transfers(),
                    wantedBlocks: Int(u32())))
        case .tokenSteps: .tokenSteps(tokenSteps())
        case .assignPrefill: .assignPrefill(assignPrefill())
        case .assignAck: .assignAck(reply())
        case .assignNack: .assignNack(AssignNack(transfer: transfer(), reason: pick(), freeBlocks: count()))
        case .prefillProgress:
            .prefillProgress(
                PrefillProgress(
                    transfer: transfer(), computedTokens: count(), cachedTokens: count(), computeTime: span()))
        case .prefillDone:
            .prefillDone(PrefillDone(transfer: transfer(), firstToken: sampled(), cachedTokens: count()))
        case .pageOffer: .pageOffer(PageOffer(transfer: transfer(), blocks: blocks()))
        case .pageWant: .pageWant(PageWant(transfer: transfer(), blocks: blocks()))
        case .pagePush: .pagePush(pagePush())
        case .pageAck: .pageAck(PageAck(transfer: transfer(), blocks: blocks()))
        case .pageNack: .pageNack(PageNack(transfer: transfer(), block: u32(), reason: pick()))
        case .credit: .credit(Credit(transfer: transfer(), bytes: word()))
        case .transferEnd: .transferEnd(transferEnd())
        case .transferCommitted:
            .transferCommitted(
                TransferCommitted(
                    transfer: transfer(), receivedBytes: word(), receivedBlocks: count(), reusedBlocks: count()))
        case .transferFailed: .transferFailed(TransferFailed(transfer: transfer(), reason: pick()))
        case .leaseRenew: .leaseRenew(LeaseRenew(transfer: transfer(), lease: span()))
        case .cancel: .cancel(Cancel(transfer: transfer(), reason: pick()))
        case .cancelAck: .cancelAck(CancelAck(transfer: transfer()))
        }
    }

    // Values.

    /// Small, large and the extremes alike.
    mutating func word() -> UInt64 {
        switch generator.next() % 5 {
        case 0: 0
        case 1: UInt64.max
        case 2: generator.next() % 300
        default: generator.next() >> (generator.next() % 64)
        }
    }

    mutating func u32() -> UInt32 { UInt32(truncatingIfNeeded: word()) }
    mutating func count() -> Int { Int(word() >> 1) }
    mutating func span() -> TimeSpan { TimeSpan(nanoseconds: Int64(bitPattern: word())) }
    mutating func flip() -> Bool { generator.next() % 2 == 0 }
    mutating func below(_ limit: UInt64) -> Int { Int(generator.next() % limit) }
    mutating func float() -> Float {
        let value = Float(bitPattern: u32())
        return value.isNaN ? -.infinity : value
    }

    mutating func pick<E: CaseIterable>() -> E where E.AllCases == [E] { E.allCases[below(UInt64(E.allCases.count))] }

    mutating func text() -> String {
        let pieces = ["", "prefill-0", "ü", "日本語", "a\u{0}b", "\u{10FFFF}", "x y", "\u{301}", "0123456789"]
        return (0..<below(4)).map { _ in pieces[below(UInt64(pieces.count))] }.joined()
    }

    mutating func worker() -> WorkerRef { WorkerRef(id: WorkerID(text()), epoch: Epoch(word())) }
    mutating func transfer() -> TransferID {
        TransferID(job: JobID(high: word(), low: word()), attempt: Attempt(u32()))
    }
    mutating func transfers() -> [TransferID] { (0..<below(5)).map { _ in transfer() } }
    mutating func blocks() -> [UInt32] { (0..<below(40)).map { _ in u32() } }
    mutating func tokens() -> [TokenID] { (0..<below(60)).map { _ in TokenID(u32()) } }
    mutating func page() -> PageID { PageID(word(), word(), word(), word()) }
    mutating func pages() -> [PageID] { (0..<below(9)).map { _ in page() } }

    mutating func sampled() -> SampledToken {
        let top = (0..<below(4)).map { _ in TokenLogprob(token: TokenID(u32()), logprob: float()) }
        return SampledToken(token: TokenID(u32()), logprob: flip() ? float() : nil, top: top)
    }

    mutating func sampling() -> SamplingParameters {
        var value = SamplingParameters()
        value.temperature = float()
        value.topK = count()
        value.topP = float()
        value.minP = float()
        value.repetitionPenalty = float()
        value.presencePenalty = float()
        value.frequencyPenalty = float()
        value.logitBias = (0..<below(5)).map { _ in TokenBias(token: TokenID(u32()), bias: float()) }
        value.seed = word()
        value.stopTokens = (0..<below(5)).map { _ in TokenID(u32()) }
        value.maxTokens = count()
        value.minTokens = count()
        value.wantsLogprobs = flip()
        value.topLogprobs = below(21)
        return value
    }

    // Messages.

    mutating func hello() -> Hello {
        Hello(
            versionMin: u32(), versionMax: u32(), sender: worker(), role: pick(),
            compatibility: CompatibilityDigest(page()), purpose: pick(), relayTarget: flip() ? WorkerID(text()) : nil)
    }

    mutating func register() -> Register {
        Register(
            role: pick(), dataHost: text(), dataPort: UInt16(truncatingIfNeeded: word()), blockTokens: count(),
            blockCount: count(), pageBytes: count(), batchJobsMax: count(), stepTokensMax: count(),
            processID: Int32(bitPattern: u32()), held: transfers(), swapPages: Int(u32()), reservesWholeJobs: flip(),
            jobsMax: Int(u32()))
    }

    mutating func heartbeat() -> Heartbeat {
        var load = LoadReport()
        load.queuedTokens = count()
        load.runningJobs = count()
        load.pausedJobs = count()
        load.blocks.free = Int(u32())
        load.blocks.reserved = Int(u32())
        load.blocks.filling = Int(u32())
        load.blocks.verified = Int(u32())
        load.blocks.committed = Int(u32())
        load.blocks.evictable = Int(u32())
        load.blocks.fencing = Int(u32())
        load.stepsFinished = word()
        load.stepTime = span()
        load.prefillTokensPerSecond = Double(float())
        load.pageBytesSent = word()
        load.pageBytesReceived = word()
        load.staleMessagesDropped = word()
        if flip() {
            load.swap.free = Int(u32())
            load.swap.reserved = Int(u32())
            load.swap.held = Int(u32())
            load.swapBytesOut = word()
            load.swapBytesIn = word()
            load.swapStall = span()
        }
        return Heartbeat(load: load)
    }

    mutating func kvEvent() -> KVEvent {
        let changes: [KVEvent.Change] = [.stored(pages()), .removed(pages()), .snapshot(pages())]
        return KVEvent(sequence: word(), change: changes[below(3)])
    }

    mutating func reservePages() -> ReservePages {
        ReservePages(
            transfer: transfer(), tenant: TenantID(text()), tokens: tokens(), promptTokens: count(), pageIDs: pages(),
            sampling: sampling(), source: worker(), lease: span())
    }

    mutating func startDecode() -> StartDecode {
        StartDecode(
            transfer: transfer(), tenant: TenantID(text()), tokens: tokens(), promptTokens: count(), pageIDs: pages(),
            sampling: sampling())
    }

    mutating func assignPrefill() -> AssignPrefill {
        AssignPrefill(
            transfer: transfer(), tenant: TenantID(text()), tokens: tokens(), promptTokens: count(), pageIDs: pages(),
            sampling: sampling(), wanted: blocks(), target: worker(), targetHost: text(),
            targetPort: UInt16(truncatingIfNeeded: word()), path: pick(), creditBytes: word(), lease: span(),
            precedes: flip())
    }

    mutating func reply() -> TransferReply {
        TransferReply(transfer: transfer(), refusal: flip() ? pick() : nil, freeBlocks: count())
    }

    mutating func tokenSteps() -> TokenSteps {
        let steps = (0..<below(4)).map { _ in
            TokenStep(
                transfer: transfer(), offset: count(), tokens: (0..<below(3)).map { _ in sampled() }, end: stepEnd(),
                prefilledTokens: count(), cachedTokens: count(),
                swap: flip() ? nil : flip() ? .left : .back(stall: span()),
                evictedFor: flip() ? transfer() : nil)
        }
        return TokenSteps(
            iteration: word(), computeTime: span(), steps: steps,
            room: flip() ? Room(freeBlocks: Int(u32()), freeHostPages: Int(u32())) : nil, started: transfers())
    }

    mutating func stepEnd() -> StepEnd? {
        let blasts: [ServingError.Blast] = [.request, .link, .process]
        return switch below(4) {
        case 0: nil
        case 1: .finished(pick())
        case 2: .evicted
        default:
            .failed(
                ServingError(
                    ServingError.Code(text()), text(), field: flip() ? text() : nil, blast: blasts[below(3)],
                    retryAfterSeconds: flip() ? count() : nil))
        }
    }

    mutating func pagePush() -> PagePush {
        PagePush(
            transfer: transfer(), targetEpoch: Epoch(word()), block: u32(), filledTokens: u32(), offsetBytes: u32(),
            pageBytes: u32(), payloadBytes: UInt32(below(1 << 12)), payloadCRC: u32())
    }

    mutating func transferEnd() -> TransferEnd {
        let sums = (0..<below(20)).map { _ in PageSum(block: u32(), crc: u32()) }
        return TransferEnd(transfer: transfer(), pages: sums, firstToken: sampled(), cachedTokens: count())
    }
}
