import ClusterTransport
import Logging
import Messages
import NIOCore
import PrefillCore
import ServingTypes

/// Drives a prefill core: control link, page senders, engine. Confined to its loop.
public final class PrefillWorkerHost {
    private let driver: WorkerDriver
    private let relay: HostPort?
    private var core: PrefillWorkerCore
    private var waiting = EventBacklog<PrefillEvent>()
    private var isHandling = false
    /// Whether the coordinator can be told anything.
    private var isLinked = false
    /// One sender per incarnation of a decode worker; a new one is made to reconnect.
    private var peers: [WorkerRef: Peer] = [:]
    private var generation: UInt64 = 0

    private struct Peer {
        var sender: PageSender
        var generation: UInt64
    }

    private init(driver: WorkerDriver, relay: HostPort?, core: PrefillWorkerCore) {
        self.driver = driver
        self.relay = relay
        self.core = core
    }

    public static func start(loop: any EventLoop, flags: WorkerFlags, model: WorkerModel, log: Logger) throws
        -> NIOLoopBound<PrefillWorkerHost>
    {
        loop.assertInEventLoop()
        let driver = WorkerDriver(loop: loop, flags: flags, role: .prefill, model: model, log: log)
        let relay = try flags.relay.map { text throws(ServingError) in try HostPort(text, field: "relay") }
        let core = PrefillWorkerCore(
            configuration: .live(flags, own: driver.own, model: model), naming: model.naming)
        let host = PrefillWorkerHost(driver: driver, relay: relay, core: core)
        let bound = NIOLoopBound(host, eventLoop: loop)
        driver.start(
            coordinator: try HostPort(flags.coordinator, field: "coordinator"),
            onEvent: { bound.value.control($0) }, onTick: { bound.value.handle(.tick) })
        log.info("ready to prefill", metadata: ["worker": "\(driver.own)"])
        return bound
    }

    /// Asks the coordinator to drain this worker, or drains by itself where there is none; it leaves
    /// when it holds nothing.
    public func leave(within deadline: TimeSpan) {
        let drain = Message.drain(Drain(deadline: deadline))
        if isLinked { driver.sendToCoordinator(drain) } else { handle(.coordinatorMessage(drain)) }
    }

    private func control(_ event: ControlClientEvent) {
        driver.logLink(event)
        switch event {
        case .up:
            isLinked = true
            handle(.coordinatorUp)
        case .message(let envelope): handle(.coordinatorMessage(envelope.message))
        case .down:
            isLinked = false
            handle(.coordinatorDown)
        case .attemptFailed: break
        }
    }

    /// Performing an action may bring the next event, as a link that breaks when it is written to:
    /// that one waits until all actions of this one are done.
    private func handle(_ event: PrefillEvent) {
        waiting.append(event)
        guard !isHandling else { return }
        isHandling = true
        defer { isHandling = false }
        while let next = waiting.next() {
            for action in core.handle(next, at: driver.clock.now) { perform(action) }
        }
    }

    private func perform(_ action: PrefillAction) {
        switch action {
        case .sendToCoordinator(let message): driver.sendToCoordinator(message)
        case .connectPeer(let worker, let host, let port, let path): connect(worker, host, port, path)
        case .releasePeer(let worker): release(worker)
        case .sendToPeer(let worker, let transfer, let message):
            peers[worker]?.sender.send(message, after: transfer)
        case .pushPages(let worker, let transfer, let pages):
            peers[worker]?.sender.push(
                transfer, pages.map { PageToSend(block: $0.block, slot: $0.slot, filledTokens: $0.filledTokens) })
        case .stopPushing(let worker, let transfer): stop(worker, transfer)
        case .runStep(let batch): run(batch)
        case .exitAfterDrain: driver.exitSoon()
        }
    }

    private func connect(_ worker: WorkerRef, _ host: String, _ port: UInt16, _ path: KVPath) {
        guard peers[worker] == nil else { return }
        generation += 1
        let number = generation
        let bound = NIOLoopBound(self, eventLoop: driver.loop)
        let loop = driver.loop
        let sender = PageSender(
            target: worker, host: host, port: Int(port), path: path,
            relay: relay.map { (host: $0.host, port: Int($0.port)) }, hello: driver.hello, memory: driver.model.store,
            onEvent: { event in loop.execute { bound.value.received(event, from: worker, number) } })
        peers[worker] = Peer(sender: sender, generation: number)
        sender.start()
    }

    /// Events of a sender that was replaced are stale, but its fences still count.
    private func received(_ event: PageSenderEvent, from worker: WorkerRef, _ number: UInt64) {
        let isCurrent = peers[worker]?.generation == number
        switch event {
        case .up(_, let path) where isCurrent:
            driver.log.info("page link up", metadata: ["to": "\(worker)", "path": "\(path.rawValue)"])
            handle(.peerUp(worker))
        case .message(let message) where isCurrent: handle(.peerMessage(worker, message))
        case .pageSent(let transfer, let block, let bytes, let crc) where isCurrent:
            handle(.pageSent(worker, transfer, block: block, sentBytes: bytes, crc: crc))
        case .pushesStopped(let transfer): handle(.pushingStopped(transfer))
        case .down(let reason) where isCurrent:
            driver.log.info("page link down", metadata: ["to": "\(worker)", "reason": "\(reason)"])
            peers[worker] = nil
            handle(.peerDown(worker))
        case .up, .message, .pageSent, .down: break
        }
    }

    private func release(_ worker: WorkerRef) {
        peers.removeValue(forKey: worker)?.sender.close()
    }

    private func stop(_ worker: WorkerRef, _ transfer: TransferID) {
        if let peer = peers[worker] { return peer.sender.stop(transfer) }
        let bound = NIOLoopBound(self, eventLoop: driver.loop)
        driver.loop.execute { bound.value.handle(.pushingStopped(transfer)) }
    }

    private func run(_ batch: StepBatch) {
        let bound = NIOLoopBound(self, eventLoop: driver.loop)
        driver.runStep(batch) { result in bound.value.handle(.stepFinished(result)) }
    }
}
