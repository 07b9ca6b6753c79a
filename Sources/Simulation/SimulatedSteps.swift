import DecodeCore
import PrefillCore
import ServingTypes

/// A step that an engine computes. On a machine that workers share, its pace changes while it runs: it
/// goes by what is left of it, not by when it was thought to end.
struct RunningStep {
    var batch: StepBatch
    /// Names the event that ends it; a change of pace gives another one.
    var number: UInt64
    var kind: Kind
    var beganAt: Int64
    /// Seconds of work that are left at full pace, and how many a second takes away, as of an instant.
    var left: Double
    var pace: Double
    var asOf: Int64

    enum Kind: Hashable, Sendable {
        /// Prompts only, tokens only, or prompts beside jobs that decode.
        case prompt
        case decode
        case both
    }
}

extension CostProfile {
    /// Whether what else the machine does changes how long a step takes.
    var sharesMachine: Bool { prefillInterference > 0 || decodeInterference > 0 || processors > 0 }
}

extension ClusterSimulation {
    func runStep(_ node: SimulatedNode, _ batch: StepBatch) {
        if configuration.audits {
            checkNobodyWrites(node, batch)
            checkBudgets(node, batch)
        }
        let profile = configuration.profile
        let kind = batch.kind
        var seconds = profile.time(of: batch).seconds
        if configuration.variesSteps { seconds *= 0.5 + 1.5 * random.unit() }
        let variation = kind == .decode ? profile.decodeVariation : profile.prefillVariation
        if !variation.isEmpty { seconds *= CostProfile.draw(variation, &random) }
        if kind != .prompt { seconds *= host.pace(at: now, profile, &random) }
        let start = configuration.stepsWaitForSwaps ? max(now, node.swapBusyUntil) : now
        node.swapWaitSeconds += Double(start - now) / 1e9
        node.steps += 1
        node.step = RunningStep(
            batch: batch, number: node.steps << 16, kind: kind, beganAt: start, left: seconds,
            pace: pace(of: node, kind), asOf: start)
        expectEnd(of: node)
        if profile.sharesMachine { paceOthers(than: node) }
    }

    /// Seconds of work that one second does, beside what else the machine does.
    private func pace(of node: SimulatedNode, _ kind: RunningStep.Kind) -> Double {
        let profile = configuration.profile
        guard profile.sharesMachine else { return 1 }
        let interference = kind == .decode ? profile.decodeInterference : profile.prefillInterference
        let others = Double(nodes.reduce(0) { $0 + ($1.step != nil && $1.index != node.index ? 1 : 0) })
        var slowdown = 1 + interference * others
        if profile.processors > 0 {
            let wanted = Double(max(profile.threads, 1)) * (1 + others) + host.load(at: now)
            slowdown *= max(1, wanted / Double(profile.processors))
        }
        return 1 / slowdown
    }

    private func expectEnd(of node: SimulatedNode) {
        guard let step = node.step else { return }
        let end = step.asOf + TimeSpan(seconds: max(step.left, 0) / step.pace).nanoseconds
        queue.add(.stepFinished(node: node.index, life: node.life, step: step.number), at: max(end, now))
    }

    /// A step began or ended somewhere: the others go on at another pace.
    private func paceOthers(than node: SimulatedNode) {
        for other in nodes where other.index != node.index {
            guard var step = other.step, step.asOf <= now else { continue }
            let pace = pace(of: other, step.kind)
            guard pace != step.pace else { continue }
            step.left = max(step.left - Double(now - step.asOf) / 1e9 * step.pace, 0)
            (step.pace, step.asOf, step.number) = (pace, now, step.number + 1)
            other.step = step
            expectEnd(of: other)
        }
    }

    func finishStep(_ node: SimulatedNode, _ number: UInt64) {
        guard let step = node.step, step.number == number else { return }
        node.step = nil
        let time = TimeSpan(nanoseconds: max(now - step.beganAt, 0))
        node.busySeconds += time.seconds
        if configuration.profile.sharesMachine { paceOthers(than: node) }
        let outcomes = node.engine.run(
            step.batch, length: { jobs[$0]?.request.length }, owner: { owner(of: $0) },
            complain: { fail("\(node.id): \($0)") })
        mark(node.index, UInt64(step.batch.entries.count))
        note(node.id.name, "step of \(step.batch.entries.count) jobs, \(step.batch.tokenCount) tokens")
        perform(node, .stepFinished(StepResult(outcomes: outcomes, computeTime: time)))
    }
}
