import ServingTypes
import Testing

@testable import Simulation

/// The fit of a cost profile, on clusters whose profile is known: simulated ones.
@Suite struct ProfileFitTests {
    static var cluster: LiveCluster {
        var cluster = LiveCluster()
        (cluster.prefill, cluster.decode, cluster.blocks) = (1, 1, 4000)
        cluster.pageBytes = 16 * 4096
        (cluster.batchJobs, cluster.stepTokens, cluster.chunkTokens) = (8, 512, 256)
        return cluster
    }

    static var truth: CostProfile {
        var profile = CostProfile(
            name: "truth", prefill: .init(4, 0.6, 2e-4), decode: .init(12, 1e-3, 0.9), bytesPerToken: 4096,
            poolTokens: 64_000, batchJobsMax: 8, stepTokensMax: 512, linkBytesPerSecond: 5e8,
            linkLatency: .microseconds(300))
        profile.chunkTokensMax = 256
        (profile.prefillInterference, profile.decodeInterference) = (0.3, 0.2)
        return profile
    }

    static func job(_ sent: Double, _ input: Int, _ output: Int) -> LiveJob {
        var job = LiveJob()
        (job.sent, job.inputTokens, job.outputTokens) = (sent, input, output)
        return job
    }

    /// As `tandem up` starts it: short prompts, and long ones while prefill is behind, where they decode.
    static var relieved: LiveCluster {
        var cluster = cluster
        (cluster.localPrefill, cluster.reliefWait, cluster.stepStretch) = (48, 100, 300)
        return cluster
    }

    static var mixed: LiveCluster {
        var cluster = cluster
        (cluster.prefill, cluster.decode, cluster.mixed) = (0, 0, 1)
        return cluster
    }

    /// What `tandem profile` measures, of a simulated cluster.
    static func session(_ cluster: LiveCluster = cluster, _ truth: CostProfile = truth) throws -> LiveSession {
        var session = LiveSession(cluster: cluster)
        let lengths = [8, 32, 64, 128, 192, 256, 400]
        session.experiments = [
            LiveExperiment(kind: .single, jobs: lengths.enumerated().map { job(Double($0) * 2000, $1, 8) })
        ]
        for count in [1, 2, 4, 8] {
            for input in [16, 120] {
                session.experiments.append(
                    LiveExperiment(kind: .together, jobs: (0..<count).map { job(Double($0) * 0.1, input, 90) }))
            }
        }
        if cluster.mixed == 0 {
            session.experiments.append(LiveExperiment(kind: .disturbed, jobs: (0..<4).map { job(Double($0), 16, 90) }))
            session.experiments.append(
                LiveExperiment(kind: .disturbing, jobs: (0..<6).map { job(100 + 200 * Double($0), 200, 1) }))
        }
        if cluster.mixesSteps {
            let prompt = cluster.mixed > 0 ? 200 : cluster.localPrefill - 1
            session.experiments.append(LiveExperiment(kind: .crowded, jobs: (0..<4).map { job(Double($0), 16, 90) }))
            session.experiments.append(
                LiveExperiment(kind: .crowding, jobs: (0..<6).map { job(100 + 200 * Double($0), prompt, 1) }))
        }
        return try #require(LiveReplay(cluster: cluster, profile: truth).session(session))
    }

    static func traffic(_ seed: UInt64) -> [LiveJob] {
        var random = SimulationRandom(seed: seed)
        var time = 0.0
        return (0..<60).map { _ in
            time += Draws.exponentialGap(&random) * 160
            return job(time, random.within(20...220), random.within(5...60))
        }
    }

    /// The fit sees only stamps, and predicts traffic that it has not seen.
    @Test func aFitToAKnownClusterPredictsItsTraffic() throws {
        let fitted = try #require(ProfileFit(try Self.session()).profile(name: "fit", processors: 0))
        #expect(abs(fitted.linkLatency.seconds / Self.truth.linkLatency.seconds - 1) < 0.05)
        for seed in UInt64(1)...2 {
            let jobs = Self.traffic(seed)
            let live = try #require(LiveReplay(cluster: Self.cluster, profile: Self.truth).jobs(jobs))
            let simulated = try #require(LiveReplay(cluster: Self.cluster, profile: fitted).jobs(jobs))
            var comparison = LiveComparison()
            comparison.add("traffic", seed: seed, live: live, simulated: simulated)
            for row in comparison.rows {
                #expect(abs(row.error) < 0.05, "seed \(seed), \(row.measure): \(row.live) \(row.simulated)")
            }
        }
    }

    /// Where prompts are computed in the steps of decoding jobs, what such a step costs is in the fit.
    @Test(arguments: [relieved, mixed])
    func aFitToAClusterThatMixesItsStepsPredictsItsTraffic(cluster: LiveCluster) throws {
        var truth = Self.truth
        truth.mixedFactor = 1.3
        let fitted = try #require(
            ProfileFit(try Self.session(cluster, truth)).profile(name: "fit", processors: 0, rounds: 6))
        #expect(abs(fitted.mixedFactor / truth.mixedFactor - 1) < 0.1, "\(cluster.name): \(fitted.mixedFactor)")
        let jobs = Self.traffic(5)
        let live = try #require(LiveReplay(cluster: cluster, profile: truth).jobs(jobs))
        let simulated = try #require(LiveReplay(cluster: cluster, profile: fitted).jobs(jobs))
        var comparison = LiveComparison()
        comparison.add("traffic", seed: 5, live: live, simulated: simulated)
        for row in comparison.rows {
            let bound = row.measure.hasPrefix("mean") ? 0.06 : 0.1
            #expect(abs(row.error) < bound, "\(cluster.name), \(row.measure): \(row.live) \(row.simulated)")
        }
    }

    /// The same requests with and without: the first tokens of a burst come sooner, the others' later.
    @Test func aReplayWithReliefComputesPromptsWhereTheyDecode() throws {
        let burst = (0..<24).map { Self.job(Double($0), 200, 40) }
        var profile = Self.truth
        profile.mixedFactor = 1.2
        let strict = try #require(LiveReplay(cluster: Self.cluster, profile: profile).jobs(burst))
        let relieved = try #require(LiveReplay(cluster: Self.relieved, profile: profile).jobs(burst))
        #expect(relieved.count { $0.kvBytes == 0 } > 2 && strict.allSatisfy { $0.kvBytes > 0 })
        #expect(ProfileFit.mean(relieved.map(\.firstToken)) < 0.9 * ProfileFit.mean(strict.map(\.firstToken)))
        #expect(ProfileFit.mean(relieved.map(\.timePerToken)) > ProfileFit.mean(strict.map(\.timePerToken)))
    }

    /// A step that begins beside another one goes faster from when that one has ended.
    @Test func aStepChangesItsPaceWhenItsNeighbourEnds() throws {
        var profile = Self.truth
        (profile.prefillInterference, profile.decodeInterference) = (1, 0)
        let prompt = Self.job(400, 240, 1)
        let alone = try #require(LiveReplay(cluster: Self.cluster, profile: profile).jobs([prompt]))[0].firstToken
        func beside(_ output: Int) throws -> Double {
            let jobs = [Self.job(0, 16, output), prompt]
            return try #require(LiveReplay(cluster: Self.cluster, profile: profile).jobs(jobs))[1].firstToken
        }
        // 13 ms a token from 30 ms on: the first decodes until 30 ms before the prompt, then until halfway
        // through it, then beyond it.
        let (before, half, beyond) = (try beside(20), try beside(38), try beside(200))
        #expect(abs(before / alone - 1) < 0.01)
        #expect(half / alone > 1.2 && half / alone < 1.8, "\(half) \(alone)")
        #expect(beyond / alone > 1.9 && beyond / alone < 2.02, "\(beyond) \(alone)")
    }

    @Test func percentilesAreOfAllRequestsAndTurnsShowTheirNoise() {
        func jobs(_ times: [Double]) -> [LiveJob] {
            times.map {
                var job = Self.job(0, 1, 2)
                (job.firstToken, job.finished) = ($0, $0)
                return job
            }
        }
        var comparison = LiveComparison()
        comparison.add("half", seed: 1, turn: 0, live: jobs(Array(repeating: 10, count: 10)), simulated: jobs([11]))
        comparison.add("half", seed: 2, turn: 0, live: jobs(Array(repeating: 20, count: 10)), simulated: jobs([22]))
        comparison.add("half", seed: 1, turn: 1, live: jobs(Array(repeating: 12, count: 10)), simulated: jobs([11]))
        comparison.add("half", seed: 2, turn: 1, live: jobs(Array(repeating: 24, count: 10)), simulated: jobs([22]))
        let mean = comparison.rows.first { $0.measure == "mean TTFT" }
        #expect(mean?.live == 16.5 && mean?.simulated == 16.5 && mean?.error == 0)
        #expect(mean?.errors.count == 2 && abs((mean?.noise ?? 0) - 0.2) < 1e-9)
        #expect(comparison.rows.first { $0.measure == "P95 TTFT" }?.live == 24)
        #expect(comparison.verdict.contains("of 6 rows"))
    }

    @Test func aSessionThatSaysTooLittleGivesNoProfile() throws {
        var session = LiveSession(cluster: Self.cluster)
        #expect(ProfileFit(session).profile(name: "none", processors: 0) == nil)
        session.experiments = Array(try Self.session().experiments.prefix(1))
        #expect(ProfileFit(session).profile(name: "none", processors: 0) == nil)
    }

    @Test func aReplayIsTheSameEveryTimeAndKeepsTheOrderOfItsJobs() throws {
        let jobs = Array(Self.traffic(3).reversed())
        let replay = LiveReplay(cluster: Self.cluster, profile: Self.truth)
        let (one, other) = (try #require(replay.jobs(jobs)), try #require(replay.jobs(jobs)))
        #expect(one == other)
        #expect(one.map(\.inputTokens) == jobs.map(\.inputTokens))
        #expect(one.allSatisfy { $0.firstToken > 0 && $0.finished >= $0.firstToken })
    }

    @Test func quantilesAreDrawnBetweenTheirEndsAndKeepTheirMean() {
        var random = SimulationRandom(seed: 5)
        let quantiles = [0.5, 0.8, 1, 1.2, 1.5]
        let draws = (0..<4000).map { _ in CostProfile.draw(quantiles, &random) }
        #expect(draws.allSatisfy { (0.5...1.5).contains($0) })
        #expect(abs(ProfileFit.mean(draws) - 1) < 0.02)
        #expect(CostProfile.draw([], &random) == 1 && CostProfile.draw([3], &random) == 3)
        let fit = ProfileFit(LiveSession(cluster: Self.cluster))
        #expect(fit.variation([1, 2]).isEmpty)
        let sample = fit.variation((0..<100).map { 1 + Double($0) / 100 })
        #expect(sample.count == ProfileFit.quantiles && sample == sample.sorted())
    }

    @Test func knotsAreJoinedByLinesAndHeldOutside() {
        let knots = [CostProfile.Knot(at: 10, factor: 1), .init(at: 20, factor: 2)]
        for (place, factor) in [(0.0, 1.0), (10, 1), (15, 1.5), (20, 2), (99, 2)] {
            #expect(CostProfile.factor(knots, at: place) == factor)
        }
        #expect(CostProfile.factor([], at: 7) == 1)
        var profile = Self.truth
        profile.decodeShape = [.init(at: 1, factor: 2)]
        var work = CostProfile.Work()
        (work.decodeJobs, work.contextTokens) = (2, 100)
        #expect(abs(profile.time(of: work).seconds / Self.truth.time(of: work).seconds - 2) < 1e-6)
    }

    @Test func hostWorkFadesAndSlowsStepsOnlyWhereProcessorsAreShort() throws {
        var host = HostLoad()
        host.add(0.01, at: 0)
        #expect(abs(host.load(at: 0) - 0.2) < 1e-9)
        #expect(host.load(at: 50_000_000) < 0.08 && host.load(at: 1_000_000_000) < 1e-6)
        let jobs = Self.traffic(4)
        var profile = Self.truth
        (profile.processors, profile.hostSecondsPerToken) = (64, 1e-3)
        let ample = try #require(LiveReplay(cluster: Self.cluster, profile: profile).jobs(jobs))
        profile.processors = 1
        let short = try #require(LiveReplay(cluster: Self.cluster, profile: profile).jobs(jobs))
        #expect(ProfileFit.mean(short.map(\.finished)) > 1.3 * ProfileFit.mean(ample.map(\.finished)))
    }

    @Test func rowsOfSeveralSeedsAreOneAndHoldOnlyWhereAllDo() {
        func row(_ ours: Double?) -> [ComparisonRow] {
            [ComparisonRow("e", "m", reference: 10, ours: ours, .atMost)]
        }
        let merged = ComparisonRow.merged([row(8), row(9), row(10)])
        #expect(merged.count == 1 && merged[0].ours == 9 && merged[0].holds == true)
        #expect(merged[0].spread == "8.000 to 10.00")
        #expect(ComparisonRow.merged([row(8), row(9), row(12)])[0].holds == false)
        #expect(ComparisonRow.merged([row(8), row(nil)])[0].holds == false)
        #expect(ComparisonRow.merged([row(8)])[0].samples.isEmpty)
        let trace = (0..<20).map {
            TraceEntry(arrivalSeconds: Double($0), tenant: "t", inputTokens: 1, outputTokens: 1)
        }
        #expect(SurpassGoals.moved(trace, seed: 1) != SurpassGoals.moved(trace, seed: 2))
        #expect(
            zip(trace, SurpassGoals.moved(trace, seed: 1)).allSatisfy {
                (0..<0.5).contains($1.arrivalSeconds - $0.arrivalSeconds)
            })
    }
}
