import NIOCore
import NIOPosix
import ServingTypes

/// The coordinator's HTTP door: one port for HTTP/1.1 and HTTP/2. Everything but long tokenisation
/// runs on one event loop, the one that `service` is confined to.
public final class FrontDoor {
    let configuration: FrontDoorConfiguration
    let service: any JobService
    let loop: any EventLoop
    let pool = NIOThreadPool(numberOfThreads: 1)
    let doorkeeper: Doorkeeper
    let metricsPage: () -> String

    var counts = HTTPCounts()
    var keyFailures = KeyFailures()
    var connections: ConnectionBook
    private(set) var isDraining = false
    var generations = 0
    private var listeners: [any Channel] = []
    private var live: [ObjectIdentifier: LiveConnection] = [:]
    private var drained: EventLoopPromise<Void>?

    private struct LiveConnection {
        var channel: any Channel
        var drain: (() -> Void)?
    }

    enum Limits {
        static let backlog: Int32 = 1024
    }

    /// To be called on `loop`, as everything here. `metricsPage` gives Prometheus text that ends with
    /// a line break; the front door's own counters are added to it.
    public init(
        on loop: any EventLoop, configuration: FrontDoorConfiguration, service: any JobService,
        metricsPage: @escaping () -> String = { "" }
    ) {
        loop.preconditionInEventLoop()
        self.loop = loop
        self.configuration = configuration
        self.service = service
        self.metricsPage = metricsPage
        doorkeeper = Doorkeeper(keys: configuration.keys)
        connections = ConnectionBook(limits: configuration.limits)
    }

    /// Makes a front door and binds it; the future tells the TCP port.
    public static func start(
        on loop: any EventLoop, configuration: FrontDoorConfiguration, service: any JobService,
        metricsPage: @escaping () -> String = { "" }
    ) -> (door: FrontDoor, port: EventLoopFuture<Int>) {
        let door = FrontDoor(on: loop, configuration: configuration, service: service, metricsPage: metricsPage)
        return (door, door.bind())
    }

    /// Binds every listener; fails where an address is taken or a TLS file cannot be used.
    public func bind() -> EventLoopFuture<Int> {
        pool.start()
        let secure: (any ConnectionSecurity)?
        do {
            secure = try configuration.tls.map { try TLSFrontDoor(files: $0) }
        } catch {
            return loop.makeFailedFuture(error)
        }
        let box = NIOLoopBound(self, eventLoop: loop)
        let bootstrap = ServerBootstrap(group: loop)
            .serverChannelOption(.backlog, value: Limits.backlog)
            .serverChannelOption(.socketOption(.so_reuseaddr), value: 1)
            .childChannelOption(.socketOption(.so_keepalive), value: 1)
            .childChannelOption(.tcpOption(.tcp_nodelay), value: 1)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelOption(.autoRead, value: false)
            .childChannelOption(
                .writeBufferWaterMark,
                value: .init(
                    low: configuration.limits.streamBytesInFlightMax / 2,
                    high: configuration.limits.streamBytesInFlightMax)
            )
            .childChannelInitializer { channel in box.value.accept(channel, secure) }
        let port = bootstrap.bind(host: configuration.host, port: configuration.port).flatMapThrowing { channel in
            box.value.listeners.append(channel)
            return channel.localAddress?.port ?? 0
        }
        guard let path = configuration.unixPath else { return port }
        return port.flatMap { number in box.value.bindUnix(path).map { number } }
    }

    private func bindUnix(_ path: String) -> EventLoopFuture<Void> {
        let box = NIOLoopBound(self, eventLoop: loop)
        return ServerBootstrap(group: loop)
            .childChannelOption(.allowRemoteHalfClosure, value: true)
            .childChannelOption(.autoRead, value: false)
            .childChannelInitializer { channel in box.value.accept(channel, nil) }
            .bind(unixDomainSocketPath: path, cleanupExistingSocketFile: true)
            .map { channel in box.value.listeners.append(channel) }
    }

    private func accept(_ channel: any Channel, _ security: (any ConnectionSecurity)?) -> EventLoopFuture<Void> {
        let address = channel.remoteAddress?.ipAddress ?? "unix"
        guard connections.admit(address) else {
            counts.connectionsRefused += 1
            return channel.close()
        }
        let key = ObjectIdentifier(channel)
        live[key] = LiveConnection(channel: channel, drain: nil)
        channel.closeFuture.assumeIsolated().whenComplete { [weak self] _ in
            self?.connections.leave(address)
            self?.live[key] = nil
        }
        do {
            if let security { try security.protect(channel.pipeline.syncOperations) }
            try channel.pipeline.syncOperations.addHandler(ProtocolSniffer(door: self))
            return channel.eventLoop.makeSucceededVoidFuture()
        } catch {
            return channel.eventLoop.makeFailedFuture(error)
        }
    }

    /// How a connection is told that the door is closing.
    func register(_ channel: any Channel, drain: @escaping () -> Void) {
        live[ObjectIdentifier(channel)]?.drain = drain
        if isDraining { drain() }
    }

    // MARK: Closing time

    /// Takes no new jobs from here on: readiness answers 503, HTTP/2 clients get GOAWAY, running
    /// answers go on. The future comes true when the last of them is sent.
    @discardableResult
    public func drain() -> EventLoopFuture<Void> {
        let promise = drained ?? loop.makePromise(of: Void.self)
        drained = promise
        if !isDraining {
            isDraining = true
            for connection in Array(live.values) { connection.drain?() }
        }
        if generations == 0 { promise.succeed() }
        return promise.futureResult
    }

    func generationEnded() {
        generations -= 1
        if isDraining, generations == 0 { drained?.succeed() }
    }

    /// Closes the listeners and every connection.
    public func stop() -> EventLoopFuture<Void> {
        isDraining = true
        let closing = (listeners + live.values.map(\.channel)).map { channel in
            channel.close().recover { _ in }
        }
        listeners = []
        let bound = NIOLoopBound(self, eventLoop: loop)
        return EventLoopFuture.andAllComplete(closing, on: loop).flatMap {
            let door = bound.value
            door.drained?.succeed()
            let stopped = door.loop.makePromise(of: Void.self)
            door.pool.shutdownGracefully { _ in stopped.succeed() }
            return stopped.futureResult
        }
    }
}

/// What stands between the socket and the protocols.
protocol ConnectionSecurity: Sendable {
    func protect(_ pipeline: ChannelPipeline.SynchronousOperations) throws
}
