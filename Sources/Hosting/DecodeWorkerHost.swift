import ClusterTransport
import DecodeCore
import Logging
import Messages
import NIOCore
import ServingTypes

/// Drives a decode (or mixed) core: control link, page receiver, engine. Confined to its loop.
public final class DecodeWorkerHost {
    private let driver: WorkerDriver
    private let receiver: PageReceiverServer
    private let swap: SwapThread?
    private var core: DecodeWorkerCore
    private var waiting = EventBacklog<DecodeEvent>()
    private var isHandling = false
    /// Whether the coordinator can be told anything.
    private var isLinked = false

    private init(driver: WorkerDriver, receiver: PageReceiverServer, swap: SwapThread?, core: DecodeWorkerCore) {
        self.driver = driver
        self.receiver = receiver
        self.swap = swap
        self.core = core
    }

    /// Listens for pages, then connects to the coordinator. The host lives as long as the process.
    public static func start(
        loop: any EventLoop, flags: WorkerFlags, role: WorkerRole, model: WorkerModel, log: Logger
    ) throws -> NIOLoopBound<DecodeWorkerHost> {
        loop.assertInEventLoop()
        let driver = WorkerDriver(loop: loop, flags: flags, role: role, model: model, log: log)
        let mailbox = Mailbox<DecodeWorkerHost>(loop: loop)
        let receiver = PageReceiverServer(
            host: flags.dataHost, port: Int(flags.dataPort), own: driver.own, memory: model.store,
            judge: { Self.judge($0, model.compatibility) },
            onEvent: { event in mailbox.post { $0.receive(event) } })
        let port = try receiver.start()
        let advertised = try flags.advertise.map { text throws(ServingError) in try HostPort(text, field: "advertise") }
        let configuration = DecodeConfiguration.live(
            flags, own: driver.own, role: role, model: model,
            dataEndpoint: advertised ?? HostPort(host: flags.dataHost, port: UInt16(clamping: port)))
        let host = DecodeWorkerHost(
            driver: driver, receiver: receiver, swap: try hostTier(flags, configuration, model),
            core: DecodeWorkerCore(configuration: configuration, naming: model.naming))
        let bound = NIOLoopBound(host, eventLoop: loop)
        mailbox.open(bound)
        driver.start(
            coordinator: try HostPort(flags.coordinator, field: "coordinator"),
            onEvent: { bound.value.control($0) }, onTick: { bound.value.handle(.tick) })
        log.info("ready for pages on \(flags.dataHost):\(port)", metadata: ["worker": "\(driver.own)"])
        return bound
    }

    private static func hostTier(_ flags: WorkerFlags, _ configuration: DecodeConfiguration, _ model: WorkerModel)
        throws -> SwapThread?
    {
        guard configuration.swapPages > 0 else { return nil }
        let file = try SwapFile(
            directory: flags.swapDir, worker: configuration.own.id, pages: configuration.swapPages,
            memory: model.store)
        return SwapThread(file: file, movesMax: configuration.movesMax)
    }

    private static func judge(_ hello: Hello, _ own: CompatibilityDigest) -> HelloAck.Verdict {
        guard hello.role == .prefill else {
            return .refused("role: \(hello.role.rawValue) workers do not push pages")
        }
        guard hello.compatibility == own else {
            return .refused("compatibility: \(hello.compatibility) is not this worker's \(own)")
        }
        return .accepted
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

    private func receive(_ event: PageReceiverEvent) {
        switch event {
        case .linkUp(_, let source):
            driver.log.info("page link up", metadata: ["from": "\(source)"])
        case .linkDown(let link, let source, let reason):
            driver.log.info("page link down", metadata: ["from": "\(source)", "reason": "\(reason)"])
            handle(.peerDown(PageLinkID(link), from: source))
        case .message(let link, let source, let message):
            handle(.peerMessage(PageLinkID(link), from: source, message))
        case .pageLanded(let transfer, let block, let filledTokens, let receivedBytes, let pageCRC):
            handle(
                .pageLanded(
                    transfer, block: block, filledTokens: filledTokens, receivedBytes: receivedBytes, pageCRC: pageCRC))
        case .landingReleased(let transfer): handle(.landingReleased(transfer))
        case .pageRefused(let transfer, let block, let reason):
            driver.log.notice(
                "page refused",
                metadata: ["transfer": "\(transfer)", "block": "\(block)", "reason": "\(reason.rawValue)"])
        }
    }

    /// Performing an action may bring the next event, as a link that breaks when it is written to:
    /// that one waits until all actions of this one are done.
    private func handle(_ event: DecodeEvent) {
        waiting.append(event)
        guard !isHandling else { return }
        isHandling = true
        defer { isHandling = false }
        while let next = waiting.next() {
            for action in core.handle(next, at: driver.clock.now) { perform(action) }
        }
    }

    private func perform(_ action: DecodeAction) {
        switch action {
        case .sendToCoordinator(let message): driver.sendToCoordinator(message)
        case .sendToPeer(let link, let message): receiver.send(message, on: link.value)
        case .openLanding(let transfer, let source, let slots):
            receiver.openLanding(
                transfer, source: source, pages: slots.map { LandingPage(block: $0.block, slot: $0.slot) })
        case .closeLanding(let transfer): receiver.closeLanding(transfer)
        case .runStep(let batch): run(batch)
        case .swapOut(let order): move(order, isOut: true)
        case .swapIn(let order): move(order, isOut: false)
        case .exitAfterDrain: driver.exitSoon()
        }
    }

    private func move(_ order: SwapOrder, isOut: Bool) {
        let bound = NIOLoopBound(self, eventLoop: driver.loop)
        let (loop, log) = (driver.loop, driver.log)
        swap?.move(order, isOut: isOut) { outcome in
            if let error = outcome.error { log.warning("\(error.message)", metadata: ["job": "\(order.transfer)"]) }
            loop.execute {
                bound.value.handle(
                    isOut ? .swappedOut(ticket: order.ticket, outcome) : .swappedIn(ticket: order.ticket, outcome))
            }
        }
    }

    private func run(_ batch: StepBatch) {
        let bound = NIOLoopBound(self, eventLoop: driver.loop)
        driver.runStep(batch) { result in bound.value.handle(.stepFinished(result)) }
    }
}

/// Brings events of transport threads to a loop-confined host, in order, also those that come
/// before the host exists.
final class Mailbox<Host>: Sendable {
    private let loop: any EventLoop
    private let host = Protected<NIOLoopBound<Host>?>(nil)

    init(loop: any EventLoop) { self.loop = loop }

    func open(_ bound: NIOLoopBound<Host>) { host.update { $0 = bound } }

    func post(_ deliver: @escaping @Sendable (Host) -> Void) {
        loop.execute { [host] in
            if let bound = host.update({ $0 }) { deliver(bound.value) }
        }
    }
}
