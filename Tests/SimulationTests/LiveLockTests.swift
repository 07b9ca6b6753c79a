import ServingTypes
import Testing

@testable import Simulation

/// The live-lock clause of property 10: however jobs take memory and slots from each other, any 1,000
/// iterations in a row bring forth tokens, at least one each on the average.
@Suite struct LiveLockTests {
    @Test(arguments: ["mlfq", "gittins", "fair-mlfq"], [0, 600])
    func aThousandIterationsBringAThousandTokens(name: String, swapTokens: Int) throws {
        var shape = ClusterPropertyTests.mixed(try ClusterPropertyTests.policy(name, theta: 50), batch: 8)
        shape.policy.promotionAge = .milliseconds(20)
        shape.policy.promotionPeriod = 1
        shape.poolTokens = 480
        shape.swapTokens = swapTokens
        var (marks, worst) = ([(steps: UInt64(0), tokens: UInt64(0))], UInt64.max)
        var oldest = 0
        let report = WorkloadRun.run(
            shape, ClusterPropertyTests.burst(320), seed: 11,
            watch: { simulation in
                let tokens = simulation.coordinator.snapshot().counters.outputTokens
                marks.append((simulation.nodes[0].steps, tokens))
                let now = marks[marks.count - 1]
                guard now.steps >= 1000 else { return }
                while marks[oldest + 1].steps + 1000 <= now.steps { oldest += 1 }
                worst = min(worst, now.tokens - marks[oldest].tokens)
            })
        #expect(report.failure == nil && report.finished == 320, "\(name) \(report.finished)")
        #expect(marks.last?.steps ?? 0 >= 1000, "\(name): \(marks.last?.steps ?? 0) iterations")
        #expect(worst >= 1000, "\(name), host tier of \(swapTokens) tokens: \(worst) tokens in 1000 iterations")
        #expect(report.preemptions + report.requeues > 0, "\(name): nothing was taken from anybody")
    }
}
