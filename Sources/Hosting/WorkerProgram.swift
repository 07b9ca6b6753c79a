import Foundation
import Logging
import NIOCore
import NIOPosix
import ServingTypes

/// The life of a worker process: load, serve, and leave in order when it is told to.
public enum WorkerProgram {
    /// How long a worker that is told to stop may take to hand over what it holds.
    static let leaveWithin = TimeSpan.seconds(30)

    /// - Parameter start: builds the host on its loop; returns how to ask it to leave.
    public static func run(
        _ flags: WorkerFlags, program: String,
        start: @escaping @Sendable (any EventLoop, WorkerModel, Logger) throws -> (TimeSpan) -> Void
    ) async throws {
        LogSetup.bootstrap(program: flags.name, level: flags.level)
        let log = Logger(label: program)
        if flags.supervised { ProcessLife.endWithSupervisor { exit(0) } }
        let model: WorkerModel
        do throws(ServingError) {
            model = try WorkerModel.load(flags, log: log)
        } catch {
            log.error("\(error.message)")
            exit(2)
        }
        log.info(
            "model loaded",
            metadata: [
                "blocks": "\(model.store.slotCount)", "block_tokens": "\(flags.blockTokens)",
                "kernels": "\(model.engine.variantName)", "threads": "\(flags.threads)",
                "compatibility": "\(model.compatibility)",
            ])
        let loop = MultiThreadedEventLoopGroup(numberOfThreads: 1).any()
        let leave = try await loop.submit { NIOLoopBound(try start(loop, model, log), eventLoop: loop) }.get()
        await leaveWhenTold(loop, log, leave)
    }

    /// The first signal asks the coordinator for a drain; the second one, or its silence, ends the process.
    private static func leaveWhenTold(
        _ loop: any EventLoop, _ log: Logger, _ leave: NIOLoopBound<(TimeSpan) -> Void>
    ) async {
        let asked = Protected(false)
        let sources = ProcessLife.onTermination(queue: .global()) { _ in
            if asked.update({ asked in
                defer { asked = true }
                return asked
            }) {
                exit(1)
            }
            log.info("asked to leave: draining")
            loop.execute { leave.value(leaveWithin) }
            loop.scheduleTask(in: .seconds(leaveWithin.nanoseconds / 1_000_000_000 + 5)) { exit(1) }
        }
        await withTaskCancellationHandler {
            try? await Task.sleep(for: .seconds(Int32.max))
        } onCancel: {
        }
        sources.forEach { $0.cancel() }
    }
}
