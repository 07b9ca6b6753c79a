import DecodeCore
import KVPaging
import Messages
import PrefillCore
import ServingTypes

/// One prefill core and one decode core, each with a fake engine, joined by a seeded network that
/// delays, repeats, loses, corrupts and breaks, and driven by a small coordinator. Time is virtual
/// and counts microseconds.
final class PairSimulation {
    enum Side: CaseIterable { case prefill, decode }

    struct ControlLink {
        var generation = 0
        var isUp = false
        var lastDown: Int64 = 0
        var lastUp: Int64 = 0
    }

    struct PageLink {
        var generation = 0
        var isUp = false
        var lastToTarget: Int64 = 0
        var lastToSource: Int64 = 0
        var queue: [Outbound] = []
        var busyWith: TransferID?
        var stopWhenDone = false
    }

    enum Outbound {
        /// With the bytes that the page had when it was pushed.
        case page(TransferID, OutgoingPage, bytes: [UInt64])
        case message(TransferID, Message)

        var transfer: TransferID {
            switch self {
            case .page(let transfer, _, _), .message(let transfer, _): transfer
            }
        }
    }

    struct LandingBoard {
        var source: WorkerRef
        var slots: [UInt32: BlockSlot]
        var landed: Set<UInt32> = []
        var writing: UInt32?
        var isClosing = false
    }

    struct Faults {
        var duplicatePercent = 0
        var linkDropPercent = 0
        var pageLossPercent = 0
        var corruptPercent = 0
        var decodeRestarts = false
    }

    let seed: UInt64
    var random: SeededGenerator
    var now: Int64 = 0
    var queue = EventQueue()
    var failure: String?
    var faults: Faults
    var isQuiet = false

    static let blockTokens = 4
    let prefillRef = WorkerRef(id: WorkerID("prefill-0"), epoch: Epoch(1))
    var decodeRef = WorkerRef(id: WorkerID("decode-0"), epoch: Epoch(100))
    var prefill: PrefillWorkerCore
    var decode: DecodeWorkerCore
    var prefillEngine: FakeEngine
    var decodeEngine: FakeEngine
    let decodeBlocks: Int
    /// Microseconds that a page takes at most to leave, and to be written.
    let slowness: Int

    var controls: [Side: ControlLink] = [.prefill: ControlLink(), .decode: ControlLink()]
    var pageLink = PageLink()
    /// The incarnation that the page link leads to.
    var pageTarget: WorkerRef?
    var boards: [TransferID: LandingBoard] = [:]
    /// Slots of the decode step under way.
    var computing: Set<BlockSlot> = []
    lazy var coordinator = MiniCoordinator(simulation: self)
    var events = 0

    init(seed: UInt64, faults: Faults) {
        self.seed = seed
        self.faults = faults
        random = SeededGenerator(seed: seed)
        slowness = random.chance(50) ? 400 : 3000
        let prefillBlocks = random.within(12...24)
        decodeBlocks = random.within(12...28)
        var configuration = PrefillConfiguration(
            own: prefillRef, blockTokens: Self.blockTokens, blockCount: prefillBlocks, pageBytes: 32)
        configuration.stepTokensMax = random.within(4...24)
        configuration.prefillChunkTokens = random.within(1...12)
        configuration.leaseDefault = .milliseconds(400)
        configuration.orphanGrace = .milliseconds(1500)
        configuration.peerLinger = .milliseconds(500)
        configuration.connectBackoff = .milliseconds(10)
        prefill = PrefillWorkerCore(configuration: configuration, naming: HashNaming())
        prefillEngine = FakeEngine(blockCount: prefillBlocks, blockTokens: Self.blockTokens)
        decodeEngine = FakeEngine(blockCount: decodeBlocks, blockTokens: Self.blockTokens)
        decode = Self.makeDecode(decodeRef, decodeBlocks, &random)
    }

    static func makeDecode(_ own: WorkerRef, _ blocks: Int, _ random: inout SeededGenerator) -> DecodeWorkerCore {
        var configuration = DecodeConfiguration(
            own: own, blockTokens: blockTokens, blockCount: blocks, pageBytes: 32)
        configuration.batchJobsMax = random.within(1...4)
        configuration.stepTokensMax = random.within(4...16)
        configuration.prefillChunkTokens = random.within(1...8)
        configuration.creditWindowBytes = 32 * random.within(1...4)
        configuration.orphanGrace = .milliseconds(1500)
        configuration.bufferedTokensMax = 16
        return DecodeWorkerCore(configuration: configuration, naming: HashNaming())
    }

    // MARK: Running

    func after(_ microseconds: Int, _ work: @escaping () -> Void) {
        queue.add(at: now + Int64(microseconds), work)
    }

    func fail(_ message: String) {
        if failure == nil { failure = "seed \(seed) at \(now) us: \(message)" }
    }

    /// Until all jobs have ended, then until everything that leases hold has been given back.
    func run(jobs: Int) -> String? {
        for side in Side.allCases { connectControl(side, after: random.within(0...2000)) }
        coordinator.submit(jobs: jobs)
        tick()
        if faults.linkDropPercent > 0 { breakSomething() }
        if faults.decodeRestarts { after(random.within(5_000...40_000)) { self.restartDecode() } }
        var quietUntil: Int64 = .max
        while failure == nil, let (time, work) = queue.next() {
            now = time
            if quietUntil == .max, coordinator.isDone {
                isQuiet = true
                quietUntil = now + 4_000_000
            }
            if now > quietUntil { break }
            if now > 60_000_000 {
                fail("stuck: \(coordinator.unfinished)")
                break
            }
            work()
            events += 1
        }
        if failure == nil { checkQuiet() }
        return failure
    }

    private func tick() {
        perform(prefill: .tick)
        perform(decode: .tick)
        coordinator.tick()
        after(isQuiet ? 200_000 : 20_000) { self.tick() }
    }

    private func checkQuiet() {
        for (name, counts, held) in [
            ("prefill", prefill.blockCounts, prefill.heldTransfers),
            ("decode", decode.blockCounts, decode.heldTransfers),
        ] {
            if !held.isEmpty { fail("\(name) still holds \(held)") }
            if counts.available != counts.total { fail("\(name) leaks: \(counts)") }
        }
        if !boards.isEmpty { fail("landings left open: \(boards.keys.sorted())") }
        coordinator.checkPages(.prefill, perform(prefill: .coordinatorUp))
        coordinator.checkPages(.decode, perform(decode: .coordinatorUp))
    }

    var instant: Instant { Instant(nanoseconds: now * 1000) }

    // MARK: The cores

    @discardableResult
    func perform(prefill event: PrefillEvent) -> [Message] {
        let actions = prefill.handle(event, at: instant)
        if let broken = prefill.audit() { fail("prefill after \(event): \(broken)") }
        var said: [Message] = []
        for action in actions {
            switch action {
            case .sendToCoordinator(let message):
                said.append(message)
                toCoordinator(.prefill, message)
            case .connectPeer(let worker, _, _, _): connectPages(worker)
            case .releasePeer(let worker): if worker == pageTarget { dropPages(tellPrefill: false) }
            case .sendToPeer(let worker, let transfer, let message):
                enqueue(.message(transfer, message), to: worker)
            case .pushPages(let worker, let transfer, let pages):
                for page in pages {
                    let bytes = prefillEngine.pages[Int(page.slot.index)]
                    enqueue(.page(transfer, page, bytes: bytes), to: worker)
                }
            case .stopPushing(let worker, let transfer): stopPushing(worker, transfer)
            case .runStep(let batch):
                after(random.within(300...2000)) {
                    self.perform(prefill: .stepFinished(self.prefillEngine.run(batch)))
                }
            case .exitAfterDrain: fail("prefill left")
            }
        }
        return said
    }

    @discardableResult
    func perform(decode event: DecodeEvent) -> [Message] {
        let actions = decode.handle(event, at: instant)
        if let broken = decode.audit() { fail("decode after \(event): \(broken)") }
        var said: [Message] = []
        for action in actions {
            switch action {
            case .sendToCoordinator(let message):
                said.append(message)
                toCoordinator(.decode, message)
            case .sendToPeer(let link, let message):
                if link.value == UInt64(pageLink.generation) { toSource(message) }
            case .openLanding(let transfer, let source, let slots):
                checkWriters(of: slots.map(\.slot), "\(transfer)")
                if slots.contains(where: { computing.contains($0.slot) }) {
                    fail("\(transfer) lands in slots that the engine is writing")
                }
                boards[transfer] = LandingBoard(
                    source: source, slots: Dictionary(uniqueKeysWithValues: slots.map { ($0.block, $0.slot) }))
            case .closeLanding(let transfer): closeLanding(transfer)
            case .runStep(let batch):
                for entry in batch.entries { checkWriters(of: entry.blockTable, "the step of \(entry.transfer)") }
                computing = Set(batch.entries.flatMap(\.blockTable))
                let epoch = decodeRef.epoch
                after(random.within(300...2000)) {
                    guard epoch == self.decodeRef.epoch else { return }
                    self.computing = []
                    self.perform(decode: .stepFinished(self.decodeEngine.run(batch)))
                }
            case .swapOut, .swapIn: fail("pages move without a host tier")
            case .exitAfterDrain: fail("decode left")
            }
        }
        return said
    }

    /// No slot has a second user while a receiver may write it (I1).
    private func checkWriters(of slots: [BlockSlot], _ user: String) {
        for (transfer, board) in boards {
            for (block, slot) in board.slots where !board.landed.contains(block) && slots.contains(slot) {
                fail("\(user) uses slot \(slot), which block \(block) of \(transfer) may still be written to")
            }
        }
    }

    // MARK: Control links

    func connectControl(_ side: Side, after delay: Int) {
        let generation = controls[side]?.generation
        after(delay) {
            guard self.controls[side]?.generation == generation, self.controls[side]?.isUp == false else { return }
            self.controls[side]?.isUp = true
            switch side {
            case .prefill: self.perform(prefill: .coordinatorUp)
            case .decode: self.perform(decode: .coordinatorUp)
            }
        }
    }

    func dropControl(_ side: Side, reconnectAfter delay: Int) {
        guard controls[side]?.isUp == true else { return }
        controls[side]?.generation += 1
        controls[side]?.isUp = false
        coordinator.lost(side)
        switch side {
        case .prefill: perform(prefill: .coordinatorDown)
        case .decode: perform(decode: .coordinatorDown)
        }
        connectControl(side, after: delay)
    }

    private func toCoordinator(_ side: Side, _ message: Message) {
        deliver(side, \.lastUp) { self.coordinator.receive(message, from: side) }
    }

    func toWorker(_ side: Side, _ message: Message) {
        deliver(side, \.lastDown) {
            switch side {
            case .prefill: self.perform(prefill: .coordinatorMessage(message))
            case .decode: self.perform(decode: .coordinatorMessage(message))
            }
        }
    }

    private func deliver(_ side: Side, _ last: WritableKeyPath<ControlLink, Int64>, _ work: @escaping () -> Void) {
        guard let link = controls[side], link.isUp else { return }
        for _ in 0...(random.chance(faults.duplicatePercent) ? 1 : 0) {
            let time = max(now + Int64(random.within(50...1500)), controls[side]?[keyPath: last] ?? 0)
            controls[side]?[keyPath: last] = time
            queue.add(at: time) {
                if self.controls[side]?.generation == link.generation { work() }
            }
        }
    }

    // MARK: The page link

    private func connectPages(_ worker: WorkerRef) {
        if pageTarget == worker { return }
        if pageTarget != nil { dropPages(tellPrefill: true) }
        pageLink.generation += 1
        pageTarget = worker
        let generation = pageLink.generation
        after(random.within(100...2000)) {
            guard self.pageLink.generation == generation else { return }
            let comesUp =
                worker == self.decodeRef && !(self.random.chance(self.faults.linkDropPercent) && !self.isQuiet)
            if comesUp {
                self.pageLink.isUp = true
                self.perform(prefill: .peerUp(worker))
                self.pumpSender()
            } else {
                self.dropPages(tellPrefill: true)
            }
        }
    }

    func dropPages(tellPrefill: Bool) {
        guard let target = pageTarget else { return }
        let old = pageLink
        pageTarget = nil
        pageLink.generation += 1
        pageLink.isUp = false
        pageLink.queue = []
        pageLink.busyWith = nil
        pageLink.stopWhenDone = false
        if old.stopWhenDone, let transfer = old.busyWith {
            after(0) { self.perform(prefill: .pushingStopped(transfer)) }
        }
        // What the receiver was writing stays half written, and its writer is gone.
        for transfer in boards.keys.sorted() where boards[transfer]?.writing != nil {
            boards[transfer]?.writing = nil
            releaseIfClosing(transfer)
        }
        if target == decodeRef {
            perform(decode: .peerDown(PageLinkID(UInt64(old.generation)), from: prefillRef))
        }
        if tellPrefill { perform(prefill: .peerDown(target)) }
    }

    private func enqueue(_ item: Outbound, to worker: WorkerRef) {
        guard worker == pageTarget else { return }
        pageLink.queue.append(item)
        pumpSender()
    }

    /// The sender reads the slot when the page leaves, not when it is told to push.
    private func pumpSender() {
        guard pageLink.isUp, pageLink.busyWith == nil, !pageLink.queue.isEmpty else { return }
        let item = pageLink.queue.removeFirst()
        pageLink.busyWith = item.transfer
        let generation = pageLink.generation
        after(random.within(10...slowness)) {
            guard self.pageLink.generation == generation, let target = self.pageTarget else { return }
            self.pageLink.busyWith = nil
            switch item {
            case .message(_, let message): self.toTarget(message)
            case .page(let transfer, let page, let pushed):
                let bytes = self.prefillEngine.pages[Int(page.slot.index)]
                if bytes != pushed { self.fail("\(transfer): block \(page.block) changed while it was being sent") }
                self.pageLeaves(transfer, page, bytes)
                self.perform(
                    prefill: .pageSent(
                        target, transfer, block: page.block, sentBytes: 32, crc: FakeEngine.crc(of: bytes)))
            }
            if self.pageLink.stopWhenDone {
                self.pageLink.stopWhenDone = false
                self.perform(prefill: .pushingStopped(item.transfer))
            }
            self.pumpSender()
        }
    }

    private func stopPushing(_ worker: WorkerRef, _ transfer: TransferID) {
        guard worker == pageTarget else {
            return after(0) { self.perform(prefill: .pushingStopped(transfer)) }
        }
        pageLink.queue.removeAll { $0.transfer == transfer }
        if pageLink.busyWith == transfer {
            pageLink.stopWhenDone = true
        } else {
            after(random.within(0...50)) { self.perform(prefill: .pushingStopped(transfer)) }
        }
    }

    private func towards(_ last: WritableKeyPath<PageLink, Int64>, takes: Int = 0, _ work: @escaping () -> Void) {
        let generation = pageLink.generation
        let time = max(now + Int64(random.within(20...800)), pageLink[keyPath: last])
        pageLink[keyPath: last] = time + Int64(takes)
        queue.add(at: time) { if self.pageLink.generation == generation { work() } }
    }

    private func toTarget(_ message: Message) {
        for _ in 0...(random.chance(faults.duplicatePercent) ? 1 : 0) {
            let link = PageLinkID(UInt64(pageLink.generation))
            towards(\.lastToTarget) {
                self.perform(decode: .peerMessage(link, from: self.prefillRef, message))
            }
        }
    }

    private func toSource(_ message: Message) {
        guard let target = pageTarget else { return }
        for _ in 0...(random.chance(faults.duplicatePercent) ? 1 : 0) {
            towards(\.lastToSource) { self.perform(prefill: .peerMessage(target, message)) }
        }
    }

    // MARK: The receiver

    private func pageLeaves(_ transfer: TransferID, _ page: OutgoingPage, _ bytes: [UInt64]) {
        if random.chance(faults.pageLossPercent) { return }
        let isCorrupt = random.chance(faults.corruptPercent)
        let takes = random.within(10...slowness)
        towards(\.lastToTarget, takes: takes) {
            guard let board = self.boards[transfer], !board.isClosing, let slot = board.slots[page.block],
                board.source == self.prefillRef
            else {
                return self.toSource(.pageNack(PageNack(transfer: transfer, block: page.block, reason: .noSlot)))
            }
            if board.landed.contains(page.block) {
                return self.toSource(.pageAck(PageAck(transfer: transfer, blocks: [page.block])))
            }
            self.boards[transfer]?.writing = page.block
            self.decodeEngine.write(bytes.map { ~$0 }, to: slot)
            let generation = self.pageLink.generation
            self.queue.add(at: self.now + Int64(takes)) {
                guard self.pageLink.generation == generation, self.boards[transfer]?.writing == page.block else {
                    return
                }
                self.boards[transfer]?.writing = nil
                self.decodeEngine.write(isCorrupt ? bytes.map { $0 ^ 1 } : bytes, to: slot)
                if self.boards[transfer]?.isClosing ?? true { return self.releaseIfClosing(transfer) }
                if isCorrupt {
                    return self.toSource(.pageNack(PageNack(transfer: transfer, block: page.block, reason: .checksum)))
                }
                self.boards[transfer]?.landed.insert(page.block)
                self.perform(
                    decode: .pageLanded(
                        transfer, block: page.block, filledTokens: page.filledTokens, receivedBytes: 32,
                        pageCRC: FakeEngine.crc(of: bytes)))
            }
        }
    }

    private func closeLanding(_ transfer: TransferID) {
        guard boards[transfer] != nil else { return fail("closed a landing that is not open: \(transfer)") }
        boards[transfer]?.isClosing = true
        let epoch = decodeRef.epoch
        after(random.within(0...300)) {
            if epoch == self.decodeRef.epoch { self.releaseIfClosing(transfer) }
        }
    }

    private func releaseIfClosing(_ transfer: TransferID) {
        guard let board = boards[transfer], board.isClosing, board.writing == nil else { return }
        boards[transfer] = nil
        after(random.within(0...300)) { self.perform(decode: .landingReleased(transfer)) }
    }

    // MARK: Faults

    private func breakSomething() {
        after(random.within(3_000...30_000)) {
            if self.isQuiet { return }
            switch self.random.below(4) {
            case 0: self.dropControl(.prefill, reconnectAfter: self.random.within(500...60_000))
            case 1: self.dropControl(.decode, reconnectAfter: self.random.within(500...60_000))
            default: self.dropPages(tellPrefill: true)
            }
            self.breakSomething()
        }
    }

    /// The process dies and comes back with another epoch and an empty pool.
    private func restartDecode() {
        if isQuiet { return }
        dropPages(tellPrefill: true)
        controls[.decode]?.generation += 1
        controls[.decode]?.isUp = false
        coordinator.lost(.decode)
        boards = [:]
        computing = []
        decodeRef.epoch = Epoch(decodeRef.epoch.value + 1)
        decode = Self.makeDecode(decodeRef, decodeBlocks, &random)
        decodeEngine = FakeEngine(blockCount: decodeBlocks, blockTokens: Self.blockTokens)
        coordinator.restarted(.decode)
        connectControl(.decode, after: random.within(1000...20_000))
    }
}
