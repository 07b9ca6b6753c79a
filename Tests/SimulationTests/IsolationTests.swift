import CoordinatorCore
import KVPaging
import Scheduling
import ServingTypes
import Testing

@testable import Simulation

/// A tenant below its share beside one that floods the cluster: so many of its jobs are under way at every instant
/// (R2 of scheduling.md §5.3; on real workers `ops/measure-policies.sh`).
@Suite struct IsolationTests {
    /// A closed loop of floods and, every third of a second, one light job, over one worker of each role.
    private struct Flood {
        var policy: PolicyConfiguration
        var seed: UInt64
        var outstanding = 24
        var seconds = 5.0
        static let stepTokens = 512
        static let lightPrompt = 32

        static var profile: CostProfile {
            var profile = CostProfile.cpu2Core
            profile.prefill = CostProfile.Line(1, 0.05, 0)
            profile.decode = CostProfile.Line(2, 0.0005, 0.1)
            profile.decodeLarge = profile.decode
            profile.linkLatency = .microseconds(100)
            return profile
        }

        static func step(_ tokens: Int) -> Double {
            var work = CostProfile.Work()
            work.prefillTokens = tokens
            return profile.time(of: work).seconds
        }

        private static func prompt(_ tokens: Int, _ random: inout SimulationRandom) -> [TokenID] {
            (0..<tokens).map { _ in TokenID(UInt32(random.within(1...900))) }
        }

        /// Seconds to the first token of each light job, and jobs of the flood that ended.
        func run() -> (waits: [Double], flood: Int, failure: String?) {
            var shape = ClusterShape()
            shape.profile = Self.profile
            shape.policy = policy
            shape.batchJobsMax = 8
            shape.stepTokensMax = Self.stepTokens
            shape.poolTokens = 16_000
            var configuration = shape.configuration(seed: seed)
            configuration.coordinator.prefillWindowJobs = 4
            var random = SimulationRandom(seed: seed)
            var lightAt = 1.0
            let simulation = ClusterSimulation(configuration) {
                guard lightAt < seconds else { return nil }
                defer { lightAt += 0.3 + 0.1 * random.unit() }
                return SimulatedRequest(
                    arrival: .zero + TimeSpan(seconds: lightAt), tenant: TenantID("light"),
                    prompt: Self.prompt(Self.lightPrompt, &random), length: 6, maxTokens: 100)
            }
            func submit(after seconds: Double) {
                let request = SimulatedRequest(
                    arrival: .zero, tenant: TenantID("flood"), prompt: Self.prompt(random.within(150...300), &random),
                    length: random.within(5...30), maxTokens: 100)
                let number = simulation.jobCount
                simulation.jobCount += 1
                var sampling = SamplingParameters()
                sampling.maxTokens = request.maxTokens
                sampling.stopTokens = [TokenOracle.endToken]
                let id = JobID(high: 1, low: UInt64(number))
                simulation.jobs[id] = SimulatedJob(
                    number: number, request: request,
                    submission: JobSubmission(
                        job: id, tenant: request.tenant, promptTokens: request.prompt,
                        pageIDs: SimulatedNaming().names(
                            of: request.prompt, blockTokens: configuration.blockTokens, tenant: request.tenant),
                        sampling: sampling),
                    oracle: TokenOracle(prompt: request.prompt, length: request.length), arrived: simulation.now)
                simulation.after(TimeSpan(seconds: seconds), .submission(number))
            }
            var (waits, flood) = ([Double](), 0)
            simulation.onEnd = { job, outcome in
                guard job.request.tenant == TenantID("light") else {
                    flood += 1
                    return submit(after: 0.002 * random.unit())
                }
                guard let first = outcome.stamps.firstToken else { return }
                waits.append((first - outcome.stamps.received).seconds)
            }
            simulation.begin()
            for _ in 0..<outstanding { submit(after: 0.3 * random.unit()) }
            while simulation.step(), simulation.virtualSeconds < seconds {}
            simulation.onEnd = { _, _ in }
            return (waits, flood, simulation.failure)
        }
    }

    /// However many prompts of the flood are with the prefill worker: they come later.
    @Test(arguments: ["fair", "fair-mlfq", "fair-gittins"])
    func aLightTenantsPromptWaitsForTheStepUnderWayAndNoLonger(name: String) throws {
        // Five messages, the step under way, its own, and the coordinator's look at the next iteration.
        let longest = 5 * 0.0001 + Flood.step(Flood.stepTokens) + Flood.step(Flood.lightPrompt) + 0.004
        for seed in UInt64(1)...2 {
            let policy = try #require(PolicyConfiguration(named: name))
            let (waits, flood, failure) = Flood(policy: policy, seed: seed).run()
            #expect(failure == nil && waits.count >= 9 && flood > 100, "\(name) seed \(seed): \(flood)")
            #expect((waits.max() ?? .infinity) <= longest, "\(name) seed \(seed): \(waits)")
        }
    }
}
