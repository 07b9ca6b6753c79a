import ServingTypes

/// A cost profile from what was measured of a live cluster. First a direct fit of each coefficient to
/// the stamps of jobs; then the whole session is played through the simulator again and again, and
/// each coefficient moved by what the same statistic of live and simulated jobs differ, so that what the
/// stamps contain beside the engine's step (messages, gaps between steps, the drivers) is counted once.
public struct ProfileFit {
    public let session: LiveSession
    /// How the coefficients came about, for people.
    public static let method = [
        "messages: half of the stamps placed to reserved; pages: transferring to decoding against bytes",
        "prefill: single jobs of several lengths, time to the first token; least relative squares, then a factor per length",
        "decode: 1 to the batch limit jobs at once, mean gap after the second token; least relative squares, then a factor per batch",
        "interference: jobs decode while prompts come one after the other, and Poisson traffic; host time per token: from traffic",
        "prompt and decoding in one step: jobs decode while prompts come to the same worker",
        "then each moved until the session, played through the simulator, gives the same statistics",
        "variation: quantiles of live over simulated, of single prompts, of iterations and of batches",
    ]

    public init(_ session: LiveSession) { self.session = session }

    private var cluster: LiveCluster { session.cluster }
    private var chunk: Int { max(min(cluster.chunkTokens, cluster.stepTokens), 1) }

    // MARK: Statistics of a session, live or simulated

    /// One number per coefficient, each moved by its coefficient more than by the others.
    struct Statistics: Hashable {
        /// One message, one way.
        var message = 0.0
        /// Time to the first token by prompt tokens, and to the second from there.
        var firstToken: [Int: Double] = [:]
        var handOver = 0.0
        /// Mean gap and jobs in an iteration, by jobs sent at once.
        var gaps: [Int: Double] = [:]
        var overlap: [Int: Double] = [:]
        /// Of prompts that were computed beside decoding jobs, and of those.
        var disturbedPrompt = 0.0
        var disturbedGap = 0.0
        var trafficPrompt = 0.0
        var trafficFirst = 0.0
        var trafficGap = 0.0
        /// Of prompts that were computed in the steps of decoding jobs, and of those.
        var crowdingPrompt = 0.0
        var crowdedGap = 0.0
    }

    func statistics(_ session: LiveSession) -> Statistics? {
        var result = Statistics()
        let singles = session.jobs(.single)
        guard !singles.isEmpty else { return nil }
        result.message = messageTime(singles)
        result.firstToken = Dictionary(grouping: singles, by: \.inputTokens).mapValues {
            Self.middle($0.map(\.firstToken))
        }
        result.handOver = Self.middle(singles.compactMap { job in job.secondToken.map { $0 - job.firstToken } })
        for (count, rows) in Dictionary(grouping: together(session), by: \.count) {
            result.gaps[count] = Self.middle(rows.map(\.gap))
            result.overlap[count] = Self.middle(rows.map(\.jobs))
        }
        guard result.gaps.count > 1 else { return nil }
        result.disturbedGap = Self.mean(session.jobs(.disturbed).compactMap(\.gap))
        result.disturbedPrompt = Self.mean(session.jobs(.disturbing).map(\.firstToken))
        let traffic = session.jobs(.traffic)
        result.trafficGap = Self.mean(traffic.filter { $0.outputTokens > 8 }.compactMap(\.gap))
        result.trafficFirst = Self.mean(traffic.map(\.firstToken))
        result.trafficPrompt = Self.mean(
            traffic.compactMap { job in job.promptTime.map { $0.upperBound - $0.lowerBound } })
        result.crowdedGap = Self.mean(session.jobs(.crowded).compactMap(\.gap))
        result.crowdingPrompt = Self.mean(session.jobs(.crowding).map(\.firstToken))
        return result
    }

    /// Two messages lie between the stamps placed and reserved; a mixed worker has only the way to it.
    private func messageTime(_ singles: [LiveJob]) -> Double {
        let pairs = singles.compactMap { job in job.placed.flatMap { from in job.reserved.map { ($0 - from) / 2 } } }
        let ways = pairs.isEmpty ? singles.compactMap { $0.prefilling.map { $0 / messagesBeforePrefill } } : pairs
        let sorted = ways.sorted()
        return sorted.isEmpty ? 0.05 : max(sorted[sorted.count / 2], 0.001)
    }

    /// One row per experiment: jobs that were sent at once, mean gap, and how many shared an iteration.
    private func together(_ session: LiveSession) -> [(count: Int, gap: Double, jobs: Double, context: Double)] {
        func overlap(_ a: ClosedRange<Double>, _ b: ClosedRange<Double>?) -> Double {
            guard let b else { return 0 }
            return max(min(a.upperBound, b.upperBound) - max(a.lowerBound, b.lowerBound), 0)
        }
        return session.experiments.filter { $0.kind == .together }.compactMap { experiment in
            var found: [(gap: Double, jobs: Double, context: Double)] = []
            for job in experiment.jobs {
                guard let gap = job.gap, let time = job.decodingTime else { continue }
                let span = time.upperBound - time.lowerBound
                let shares = experiment.jobs.map { (overlap(time, $0.decodingTime) / span, $0) }
                let context = shares.reduce(0) {
                    $0 + $1.0 * (Double($1.1.inputTokens) + Double($1.1.outputTokens) / 2)
                }
                found.append((gap, shares.reduce(0) { $0 + $1.0 }, context))
            }
            guard !found.isEmpty else { return nil }
            return (
                experiment.jobs.count, Self.mean(found.map(\.gap)), Self.mean(found.map(\.jobs)),
                Self.mean(found.map(\.context))
            )
        }
    }

    // MARK: The fit

    /// Nil where the measurements do not determine a model.
    public func profile(
        name: String, processors: Int, rounds: Int = 10, progress: (String) -> Void = { _ in }
    ) -> CostProfile? {
        guard let live = statistics(session), var profile = direct(name, live) else { return nil }
        profile.processors = processors
        for round in 0..<rounds {
            guard let played = LiveReplay(cluster: cluster, profile: profile).session(session),
                let simulated = statistics(played)
            else { return nil }
            progress("round \(round + 1): \(Self.difference(simulated, live))")
            guard round + 1 < rounds else { return varied(profile, played) }
            move(&profile, from: simulated, to: live)
        }
        return profile
    }

    private static func difference(_ simulated: Statistics, _ live: Statistics) -> String {
        func percent(_ name: String, _ a: Double, _ b: Double) -> String {
            b > 0 ? "\(name) \(Decimals.fixed((a / b - 1) * 100, 1)) %" : "\(name) -"
        }
        func worst(_ name: String, _ a: [Int: Double], _ b: [Int: Double]) -> String {
            let errors = b.compactMap { key, value in a[key].map { abs($0 / max(value, 1e-9) - 1) } }
            return "\(name) within \(Decimals.fixed((errors.max() ?? 0) * 100, 1)) %"
        }
        return [
            percent("message", simulated.message, live.message),
            worst("prompts alone", simulated.firstToken, live.firstToken),
            percent("hand-over", simulated.handOver, live.handOver),
            worst("gaps of batches", simulated.gaps, live.gaps),
            percent("disturbed prompt", simulated.disturbedPrompt, live.disturbedPrompt),
            percent("disturbed gap", simulated.disturbedGap, live.disturbedGap),
            percent("crowding prompt", simulated.crowdingPrompt, live.crowdingPrompt),
            percent("crowded gap", simulated.crowdedGap, live.crowdedGap),
            percent("traffic: prompt", simulated.trafficPrompt, live.trafficPrompt),
            percent("first token", simulated.trafficFirst, live.trafficFirst),
            percent("gap", simulated.trafficGap, live.trafficGap),
        ].joined(separator: ", ")
    }

    private func direct(_ name: String, _ live: Statistics) -> CostProfile? {
        let before = messagesBeforePrefill * live.message
        let lengths = live.firstToken.sorted { $0.key < $1.key }
        let prefill = LeastSquares.relative(
            lengths.map { length, _ in
                let n = Double(length)
                return [(n / Double(chunk)).rounded(.up), n, n * n]
            }, lengths.map { max($0.value - before, 0.01) })
        let rows = together(session)
        let decode = LeastSquares.relative(rows.map { [1, $0.context, $0.jobs] }, rows.map(\.gap))
        guard let prefill, let decode else { return nil }
        let pageBytes = max(cluster.pageBytes, cluster.blockTokens)
        var profile = CostProfile(
            name: name, prefill: .init(prefill[0], prefill[1], prefill[2]),
            decode: .init(decode[0], decode[1], decode[2]),
            bytesPerToken: max(pageBytes / max(cluster.blockTokens, 1), 1),
            poolTokens: max(cluster.blocks * cluster.blockTokens, 1), batchJobsMax: cluster.batchJobs,
            stepTokensMax: cluster.stepTokens, linkBytesPerSecond: pageBytesPerSecond,
            linkLatency: TimeSpan(seconds: live.message / 1000))
        profile.chunkTokensMax = chunk
        profile.threads = max(cluster.threads, 1)
        profile.pageLatency = TimeSpan(seconds: live.message / 1000)
        profile.hostSecondsPerToken = 50e-6
        profile.prefillShape = lengths.filter { $0.key <= chunk }.map { .init(at: Double($0.key), factor: 1) }
        profile.decodeShape = live.overlap.sorted { $0.key < $1.key }.map { .init(at: $0.value, factor: 1) }
        let singles = session.jobs(.single)
        profile.frontDoorSeconds = max(Self.mean(singles.map { $0.clientFirstToken - $0.firstToken }), 0) / 1000
        return profile
    }

    /// From the stamps transferring to decoding, against the bytes that moved.
    private var pageBytesPerSecond: Double {
        let moved = session.jobs(.single).compactMap { job -> (Int, Double)? in
            guard job.kvBytes > 0, let from = job.transferring, let to = job.decoding, to > from else { return nil }
            return (job.kvBytes, to - from)
        }
        let byBytes = Dictionary(grouping: moved, by: \.0).sorted { $0.key < $1.key }
        let line = LeastSquares.relative(
            byBytes.map { [1, Double($0.key)] }, byBytes.map { Self.mean($0.value.map(\.1)) })
        guard let line, line[1] > 0 else { return 25e9 }
        return 1000 / line[1]
    }

    /// Messages one way between a job's arrival and the stamp prefilling.
    private var messagesBeforePrefill: Double { cluster.mixed > 0 ? 2 : 4 }

    /// Each coefficient by what its statistic lacks.
    private func move(_ profile: inout CostProfile, from simulated: Statistics, to live: Statistics) {
        let latency = profile.linkLatency.seconds * 1000 + live.message - simulated.message
        profile.linkLatency = TimeSpan(seconds: max(latency, 0.001) / 1000)
        let page = (profile.pageLatency?.seconds ?? 0) * 1000 + 0.4 * (live.handOver - simulated.handOver)
        profile.pageLatency = TimeSpan(seconds: max(page, 0.001) / 1000)
        let before = messagesBeforePrefill * live.message
        for index in profile.prefillShape.indices {
            let length = Int(profile.prefillShape[index].at)
            guard let a = simulated.firstToken[length], let b = live.firstToken[length] else { continue }
            Self.scale(&profile.prefillShape[index].factor, by: max(b - before, 0.05) / max(a - before, 0.05))
        }
        // Prompts of several chunks: what only they have is the attention to the chunks before.
        let long = live.firstToken.filter { $0.key > chunk }.compactMap { length, b in
            simulated.firstToken[length].map { max(b - before, 0.05) / max($0 - before, 0.05) }
        }
        if !long.isEmpty {
            profile.prefill.other = max(profile.prefill.other, 1e-7)
            Self.scale(&profile.prefill.other, by: 1 + 3 * (Self.mean(long) - 1), within: 1e-8...1)
        }
        for (index, count) in live.overlap.keys.sorted().enumerated() where index < profile.decodeShape.count {
            guard let a = simulated.gaps[count], let b = live.gaps[count], a > 0 else { continue }
            Self.scale(&profile.decodeShape[index].factor, by: b / a)
        }
        moveShared(&profile, from: simulated, to: live)
    }

    /// What shows only where several things go on at once.
    private func moveShared(_ profile: inout CostProfile, from simulated: Statistics, to live: Statistics) {
        /// Live over simulated, the mean of those that were measured.
        func ratio(_ pairs: [(live: Double, simulated: Double)]) -> Double? {
            let known = pairs.filter { $0.live > 0 && $0.simulated > 0 }.map { $0.live / $0.simulated }
            return known.isEmpty ? nil : Self.mean(known)
        }
        let (gap, prompt) = (
            (live.trafficGap, simulated.trafficGap), (live.trafficPrompt, simulated.trafficPrompt)
        )
        // Of a mixed worker's traffic most steps hold both.
        let crowd = [(live.crowdingPrompt, simulated.crowdingPrompt), (live.crowdedGap, simulated.crowdedGap)]
        if cluster.mixesSteps, let both = ratio(cluster.mixed > 0 ? crowd + [gap, prompt] : crowd) {
            Self.scale(&profile.mixedFactor, by: both, within: 0.3...4)
        }
        // What the machine does beside slows both roles; what is left of either is interference.
        if let slower = ratio(cluster.mixed > 0 ? [gap] : [gap, prompt]) {
            let step = max(60e-6, 0.3 * profile.hostSecondsPerToken) * (slower - 1)
            profile.hostSecondsPerToken = min(max(profile.hostSecondsPerToken + step, 0), 1e-3)
        }
        guard cluster.mixed == 0 else { return }
        func moved(_ value: Double, by ratio: Double?) -> Double { min(max(value + 0.6 * ((ratio ?? 1) - 1), 0), 4) }
        profile.prefillInterference = moved(
            profile.prefillInterference,
            by: ratio([(live.disturbedPrompt, simulated.disturbedPrompt), prompt]))
        profile.decodeInterference = moved(
            profile.decodeInterference, by: ratio([(live.disturbedGap, simulated.disturbedGap), gap]))
    }

    private static func scale(_ value: inout Double, by factor: Double, within range: ClosedRange<Double> = 0.1...10) {
        let moved = value * min(max(1 + 0.8 * (factor - 1), 0.6), 1.6)
        value = min(max(moved, range.lowerBound), range.upperBound)
    }

    // MARK: Variation

    /// What is left between live and simulated jobs is the machine's.
    private func varied(_ fitted: CostProfile, _ played: LiveSession) -> CostProfile {
        var profile = fitted
        let before = messagesBeforePrefill * (fitted.linkLatency.seconds * 1000)
        profile.prefillVariation = variation(
            zip(session.jobs(.single), played.jobs(.single)).filter { $0.0.inputTokens >= 32 }.map { live, simulated in
                max(live.firstToken - before, 0.01) / max(simulated.firstToken - before, 0.01)
            })
        profile.decodeVariation = believable(variation(iterations()))
        profile.paceVariation = variation(
            zip(together(session), together(played)).map { $0.gap / max($1.gap, 1e-9) })
        return profile
    }

    /// Where iterations are shorter than what a client is woken for, tokens reach it in handfuls: that says
    /// nothing of the iterations.
    private func believable(_ quantiles: [Double]) -> [Double] {
        quantiles.isEmpty || quantiles[quantiles.count / 4] < 0.5 ? [] : quantiles
    }

    /// Means of four gaps between tokens at the client, over their job's mean gap, of jobs that decoded
    /// alone. What delays one token on its way makes one gap longer and the next shorter, which the
    /// means take out.
    private func iterations() -> [Double] {
        var ratios: [Double] = []
        for experiment in session.experiments where experiment.kind == .together && experiment.jobs.count == 1 {
            for job in experiment.jobs {
                let times = Array(job.clientTokens.dropFirst(2))
                guard times.count > 8, let first = times.first, let last = times.last else { continue }
                let mean = (last - first) / Double(times.count - 1)
                for index in stride(from: 0, to: times.count - 4, by: 4) where mean > 0 {
                    ratios.append((times[index + 4] - times[index]) / 4 / mean)
                }
            }
        }
        return ratios
    }

    static let quantiles = 17
    /// Fewer measurements say nothing of how they vary.
    static let sampleMin = 8

    /// Quantiles of a sample, equally far apart from its least to its greatest, with mean 1; empty for none.
    func variation(_ sample: [Double]) -> [Double] {
        let sorted = sample.sorted()
        guard sorted.count >= Self.sampleMin else { return [] }
        let values = (0..<Self.quantiles).map { index in
            sorted[index * (sorted.count - 1) / (Self.quantiles - 1)]
        }
        let mean = zip(values, values.dropFirst()).reduce(0) { $0 + ($1.0 + $1.1) / 2 } / Double(values.count - 1)
        return mean > 0 ? values.map { $0 / mean } : []
    }

    /// Mean of the middle half: a machine that did something else for a while says nothing.
    static func middle(_ values: [Double]) -> Double {
        let sorted = values.sorted()
        return mean(Array(sorted.dropFirst(sorted.count / 4).dropLast(sorted.count / 4)))
    }

    static func mean(_ values: [Double]) -> Double {
        values.isEmpty ? 0 : values.reduce(0, +) / Double(values.count)
    }
}
