import Foundation
import ModelRuntime
import ServingTypes

/// The one compute thread of a worker: takes a batch, runs it, answers. At most one batch is under
/// way, because the core plans at most one (design §6); a second one is a bug of ours.
///
/// `@unchecked Sendable`: `slot` and `stopping` are only touched under `condition`.
public final class EngineThread: @unchecked Sendable {
    private struct Work {
        var batch: StepBatch
        var done: @Sendable (StepResult) -> Void
    }

    private let engine: any InferenceEngine
    private let condition = NSCondition()
    private var slot: Work?
    private var stopping = false

    public init(engine: any InferenceEngine, name: String) {
        self.engine = engine
        let thread = Thread { [self] in loop() }
        thread.name = name
        thread.stackSize = 8 << 20
        thread.start()
    }

    /// `done` runs on the compute thread; hop to your own loop in it.
    public func run(_ batch: StepBatch, done: @escaping @Sendable (StepResult) -> Void) {
        condition.lock()
        precondition(slot == nil, "a step was started while another one was waiting")
        slot = Work(batch: batch, done: done)
        condition.signal()
        condition.unlock()
    }

    /// The thread ends after the step under way.
    public func stop() {
        condition.lock()
        stopping = true
        condition.signal()
        condition.unlock()
    }

    private func loop() {
        while let work = next() {
            work.done(engine.step(work.batch))
        }
    }

    private func next() -> Work? {
        condition.lock()
        defer { condition.unlock() }
        while slot == nil && !stopping { condition.wait() }
        defer { slot = nil }
        return stopping ? nil : slot
    }
}
