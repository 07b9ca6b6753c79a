import ServingTypes
import Testing

@testable import Simulation

/// The live-lock clause of property 10: however jobs take memory and slots from each other, any 1,000
/// iterations in a row bring forth tokens, at least one each on the average.
@Suite struct LiveLockTests {
    @Test(arguments: ["mlfq", "gittins", "fair", "fair-mlfq", "fair-gittins"], [0, 600])
    func aThousandIterationsBringAThousandTokens(name: String, swapTokens: Int) throws {
        var shape = ClusterPropertyTests.mixed(try ClusterPropertyTests.policy(name, theta: 50), batch: 8)
        shape.policy.promotionAge = .milliseconds(20)
        shape.policy.promotionPeriod = 1
        shape.poolTokens = 480
        shape.swapTokens = swapTokens
        var (marks, worst) = ([(steps: UInt64(0), tokens: UInt64(0))], UInt64.max)
        let report = WorkloadRun.run(
            shape, ClusterPropertyTests.burst(250), seed: 11,
            watch: { simulation in
                let tokens = simulation.coordinator.snapshot().counters.outputTokens
                marks.append((simulation.nodes[0].steps, tokens))
                let now = marks[marks.count - 1]
                if let before = marks.last(where: { now.steps >= $0.steps + 1000 }) {
                    worst = min(worst, now.tokens - before.tokens)
                }
            })
        #expect(report.failure == nil && report.finished == 250, "\(name) \(report.finished)")
        #expect(marks.last?.steps ?? 0 >= 1000, "\(name): \(marks.last?.steps ?? 0) iterations")
        #expect(worst >= 1000, "\(name), host tier of \(swapTokens) tokens: \(worst) tokens in 1000 iterations")
        #expect(report.preemptions + report.requeues > 50, "\(name): nothing was taken from anybody")
    }
}
