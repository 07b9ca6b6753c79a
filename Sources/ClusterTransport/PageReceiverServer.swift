import Messages
import ServingTypes

public enum PageReceiverEvent: Sendable {
    case linkUp(link: UInt64, source: WorkerRef)
    case linkDown(link: UInt64, source: WorkerRef, reason: String)
    /// Any lawful message other than a page.
    case message(link: UInt64, source: WorkerRef, Message)
    /// All bytes of a block are in its slot and every slice's checksum held.
    case pageLanded(TransferID, block: UInt32, filledTokens: Int, receivedBytes: Int, pageCRC: UInt32)
    /// The fence: once per `closeLanding`; no thread of the transport touches the transfer's slots any more.
    case landingReleased(TransferID)
    /// A `PageNack` has been sent; for counters.
    case pageRefused(TransferID, block: UInt32, PageNack.Reason)
}

/// The receiving end of page links: one thread reads each link, straight into the slots.
public final class PageReceiverServer: Sendable {
    struct Links {
        var next: UInt64 = 1
        var open: [UInt64: PageReceiverLink] = [:]
        var listener: LinkSocket?
        var stopped = false
    }

    let host: String
    let port: Int
    let own: WorkerRef
    let memory: any PageMemory
    let configuration: PageLinkConfiguration
    let judge: @Sendable (Hello) -> HelloAck.Verdict
    let onEvent: @Sendable (PageReceiverEvent) -> Void
    let landings = LandingTable()
    let threads = ThreadGroup()
    let links = Monitor(Links())

    /// - Parameters:
    ///   - port: 0 lets the kernel choose.
    ///   - own: this worker; pages for another epoch are refused.
    ///   - judge: decides on digest and role, once version and purpose are checked.
    ///   - onEvent: called on the transport's threads; hop to your own loop in it.
    public init(
        host: String, port: Int, own: WorkerRef, memory: any PageMemory,
        configuration: PageLinkConfiguration = PageLinkConfiguration(),
        judge: @escaping @Sendable (Hello) -> HelloAck.Verdict,
        onEvent: @escaping @Sendable (PageReceiverEvent) -> Void
    ) {
        self.host = host
        self.port = port
        self.own = own
        self.memory = memory
        self.configuration = configuration
        self.judge = judge
        self.onEvent = onEvent
    }

    /// Listens and accepts on a thread of its own; returns the port.
    public func start() throws(ServingError) -> Int {
        let listening: (socket: LinkSocket, port: Int)
        do throws(LinkEnd) {
            listening = try SocketFactory.listen(host: host, port: port)
        } catch { throw ServingError(.internalError, error.reason, blast: .process) }
        links.change { $0.listener = listening.socket }
        threads.start("pages-accept") { [self] in acceptAll(listening.socket) }
        return listening.port
    }

    /// Receivers may write these blocks into these slots if they come from `source`. A repeat adds
    /// blocks; while a closed landing of the same transfer is not yet released it does nothing.
    public func openLanding(_ transfer: TransferID, source: WorkerRef, pages: [LandingPage]) {
        landings.open(transfer, source: source, pages: pages)
    }

    /// Receivers must stop; `landingReleased` follows, maybe before this returns.
    public func closeLanding(_ transfer: TransferID) {
        if landings.close(transfer) { onEvent(.landingReleased(transfer)) }
    }

    /// Queues a message to the sender of a link; dropped if the link is gone.
    public func send(_ message: Message, on link: UInt64) {
        links.read { $0.open[link] }?.send(message)
    }

    public func closeLink(_ link: UInt64, reason: String) {
        links.read { $0.open[link] }?.close(reason)
    }

    /// Ends all links and waits for their threads; events may come until it returns. Not to be called
    /// from `onEvent`.
    public func stop() {
        let (listener, open) = links.change { links in
            links.stopped = true
            return (links.listener, Array(links.open.values))
        }
        listener?.shutDown()
        for link in open { link.close("This end stops.") }
        threads.join()
    }

    private func acceptAll(_ listener: LinkSocket) {
        while let socket = SocketFactory.accept(listener) {
            guard let link = admit(socket) else { continue }
            let started = threads.start("pages-in") { [self] in
                link.run()
                links.change { $0.open[link.id] = nil }
            }
            if !started { links.change { $0.open[link.id] = nil } }
        }
    }

    /// nil where there are too many links: the socket closes.
    private func admit(_ socket: LinkSocket) -> PageReceiverLink? {
        links.change { links in
            guard !links.stopped, links.open.count < configuration.linksMax else { return nil }
            let link = PageReceiverLink(id: links.next, socket: socket, server: self)
            links.next += 1
            links.open[link.id] = link
            return link
        }
    }
}
