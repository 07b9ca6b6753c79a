import ClusterTransport
import Glibc
import Logging
import Messages
import NIOCore
import NIOPosix
import ServingTypes

/// The control links of a coordinator: which link speaks for which worker incarnation, and who is
/// let in. Confined to the coordinator's loop.
///
/// A broken link is not yet a dead worker. One that decodes keeps its jobs for `reconnectWithin`: it
/// comes back with them and with the tokens that the old link lost. So that a process which did die
/// costs no such wait, its page listener is asked meanwhile: where nobody listens nobody lives. A
/// prefill worker is given up at once, since what is on its way from P to D starts anew in any case.
public final class CoordinatorLinks {
    private let loop: any EventLoop
    private let own: WorkerRef
    private let log: Logger
    private unowned let host: CoordinatorHost
    private let admission: LinkAdmission
    private var server: ControlServer?
    private var workers: [ControlLinkID: WorkerRef] = [:]
    private var links: [WorkerRef: ControlLinkID] = [:]
    /// Workers whose link broke, until they come back or are given up.
    private var broken: [WorkerRef: Scheduled<Void>] = [:]

    private let reconnectWithin: TimeAmount

    /// - Parameter reconnectWithin: by default twice what a worker takes to notice and to connect again
    ///   on a quiet machine.
    public init(
        loop: any EventLoop, own: WorkerRef, host: CoordinatorHost, log: Logger,
        reconnectWithin: TimeAmount = .milliseconds(300)
    ) {
        self.reconnectWithin = reconnectWithin
        self.loop = loop
        self.own = own
        self.host = host
        self.log = log
        admission = LinkAdmission()
    }

    /// Listens for workers; the port is known when the future succeeds.
    public func start(host address: String, port: Int) -> EventLoopFuture<Int> {
        let bound = NIOLoopBound(self, eventLoop: loop)
        let server = ControlServer(
            configuration: .init(host: address, port: port, responder: own), loop: loop,
            judge: { [admission] in admission.judge($0) },
            onEvent: { link, event in bound.value.handle(link, event) })
        self.server = server
        host.send = { bound.value.send($0, $1) }
        host.closeLink = { bound.value.close($0) }
        return server.start()
    }

    public func stop() -> EventLoopFuture<Void> {
        server?.stop() ?? loop.makeSucceededVoidFuture()
    }

    private func handle(_ link: ControlLinkID, _ event: ControlServerEvent) {
        switch event {
        case .up(let hello): up(link, hello)
        case .message(let envelope):
            guard let worker = workers[link], worker == envelope.sender else {
                server?.close(link, reason: "a message in another worker's name")
                return
            }
            host.workerMessage(worker, envelope.message)
        case .down(let reason): down(link, reason)
        }
    }

    /// A second link of the same incarnation replaces the first: the worker noticed the loss before
    /// we did. The core settles what either link may have lost when the worker registers again.
    private func up(_ link: ControlLinkID, _ hello: Hello) {
        if let older = links[hello.sender] {
            workers[older] = nil
            server?.close(older, reason: "replaced by a newer link of \(hello.sender)")
        }
        broken.removeValue(forKey: hello.sender)?.cancel()
        for earlier in broken.keys where earlier.id == hello.sender.id { giveUp(earlier) }
        links[hello.sender] = link
        workers[link] = hello.sender
        admission.joined(hello)
    }

    private func down(_ link: ControlLinkID, _ reason: String) {
        guard let worker = workers.removeValue(forKey: link) else { return }
        links[worker] = nil
        admission.left(worker)
        log.debug("control link lost", metadata: ["worker": "\(worker)", "reason": "\(reason)"])
        guard let endpoint = host.decodeEndpoint(of: worker) else { return host.workerDown(worker) }
        let bound = NIOLoopBound(self, eventLoop: loop)
        broken[worker] = loop.scheduleTask(in: reconnectWithin) { bound.value.giveUp(worker) }
        askWhetherAnybodyListens(endpoint) { bound.value.giveUp(worker) }
    }

    private func giveUp(_ worker: WorkerRef) {
        guard let timer = broken.removeValue(forKey: worker) else { return }
        timer.cancel()
        host.workerDown(worker)
    }

    /// A refusal says that the process is gone; silence and an open door say nothing.
    private func askWhetherAnybodyListens(_ endpoint: HostPort, ifRefused: @escaping @Sendable () -> Void) {
        ClientBootstrap(group: loop).connectTimeout(reconnectWithin)
            .connect(host: endpoint.host, port: Int(endpoint.port))
            .whenComplete { result in
                switch result {
                case .success(let channel): channel.close(promise: nil)
                case .failure(let error):
                    if Self.isRefusal(error) { ifRefused() }
                }
            }
    }

    private static func isRefusal(_ error: any Error) -> Bool {
        if let failed = error as? NIOConnectionError {
            return !failed.connectionErrors.isEmpty && failed.connectionErrors.allSatisfy { isRefusal($0.error) }
        }
        return (error as? IOError)?.errnoCode == ECONNREFUSED
    }

    private func send(_ worker: WorkerRef, _ message: Message) {
        if let link = links[worker] { server?.send(message, to: link) }
    }

    private func close(_ worker: WorkerRef) {
        if let link = links[worker] { server?.close(link, reason: "closed by the coordinator core") }
    }
}

/// The first worker decides what all others must be compatible with; when the last one leaves, the
/// next first one decides anew (a model may have been replaced).
final class LinkAdmission: Sendable {
    private struct State {
        var digest: CompatibilityDigest?
        var members: Set<WorkerRef> = []
    }

    private let state = Protected(State())

    func judge(_ hello: Hello) -> HelloAck.Verdict {
        state.update { state in
            guard hello.purpose == .control else {
                return .refused("purpose: \(hello.purpose.rawValue) links are not taken on the control port")
            }
            guard let digest = state.digest, digest != hello.compatibility else { return .accepted }
            return .refused(
                "compatibility: \(hello.sender.id) has digest \(hello.compatibility), the cluster has \(digest): "
                    + "model, --kv-type, --block-tokens, --quantize or kernels differ")
        }
    }

    func joined(_ hello: Hello) {
        state.update { state in
            state.members.insert(hello.sender)
            state.digest = state.digest ?? hello.compatibility
        }
    }

    func left(_ worker: WorkerRef) {
        state.update { state in
            state.members.remove(worker)
            if state.members.isEmpty { state.digest = nil }
        }
    }
}
