import ClusterTransport
import Foundation
import KVPaging
import Logging
import Messages
import ModelRuntime
import NIOCore
import NIOPosix
import ServingTypes

extension KVStore: PageMemory {
    public var pageBytes: Int { layout.pageBytes }
}

/// What both worker drivers share: the loop that owns the core, the control link, the compute
/// thread, and the clock.
final class WorkerDriver {
    let loop: any EventLoop
    let own: WorkerRef
    let role: WorkerRole
    let model: WorkerModel
    let log: Logger
    let clock = MonotonicClock()
    private let engine: EngineThread
    private var control: ControlClient?
    private var ticks: RepeatedTask?

    static let tickEvery = TimeAmount.milliseconds(25)

    init(loop: any EventLoop, flags: WorkerFlags, role: WorkerRole, model: WorkerModel, log: Logger) {
        self.loop = loop
        self.role = role
        self.model = model
        self.log = log
        own = WorkerRef(id: WorkerID(flags.name), epoch: Epoch(.random(in: 1 ... .max)))
        engine = EngineThread(engine: model.engine, name: "engine")
    }

    var hello: Hello {
        Hello(sender: own, role: role, compatibility: model.compatibility, purpose: .control)
    }

    /// Connects for ever, ticks for ever. `onEvent` runs on the loop.
    func start(
        coordinator: HostPort, onEvent: @escaping @Sendable (ControlClientEvent) -> Void,
        onTick: @escaping @Sendable () -> Void
    ) {
        let control = ControlClient(
            configuration: .init(
                host: coordinator.host, port: Int(coordinator.port), hello: hello, seed: own.epoch.value),
            loop: loop, onEvent: onEvent)
        self.control = control
        control.start()
        ticks = loop.scheduleRepeatedTask(initialDelay: Self.tickEvery, delay: Self.tickEvery) { _ in onTick() }
    }

    func sendToCoordinator(_ message: Message) { control?.send(message) }

    func runStep(_ batch: StepBatch, done: @escaping @Sendable (StepResult) -> Void) {
        engine.run(batch) { [loop] result in loop.execute { done(result) } }
    }

    func logLink(_ event: ControlClientEvent) {
        switch event {
        case .up: log.info("connected to the coordinator")
        case .down(let reason): log.warning("the coordinator's link was lost", metadata: ["reason": "\(reason)"])
        case .attemptFailed(let reason): log.debug("no coordinator yet", metadata: ["reason": "\(reason)"])
        case .message: break
        }
    }

    /// Frames already handed to the link leave before the process does.
    func exitSoon() {
        ticks?.cancel()
        engine.stop()
        log.info("drained: leaving")
        loop.scheduleTask(in: .milliseconds(100)) { exit(0) }
    }
}
