import ServingTypes

/// A cost profile from what was measured of a live cluster. First a direct fit of each coefficient to
/// the stamps of jobs; then the whole session is played through the simulator again and again, and
/// each coefficient moved by what the same statistic of live and simulated jobs differ, so that what the
/// stamps contain beside the engine's step (messages, gaps between steps, the drivers) is counted once.
public struct ProfileFit {
    public let session: LiveSession
    /// How the coefficients came about, for people.
    public static let method = [
        "prefill: single jobs of several lengths, from the stamp prefilling to first_token; least relative squares of base per chunk, tokens, tokens squared",
        "decode: 1 to the batch limit jobs at once, mean gap after the second token; least relative squares of base, context and jobs that shared the iterations",
        "links: stamps received to prefilling are four messages one way; first to second token the pages",
        "interference: jobs decode while prompts come one after the other, and a stretch of Poisson traffic",
        "variation: quantiles of measured over fitted, of prompts and of single iterations",
        "then every coefficient moved until the session, played through the simulator, gives the same statistics",
    ]

    public init(_ session: LiveSession) { self.session = session }

    private var cluster: LiveCluster { session.cluster }
    private var chunk: Int { max(min(cluster.chunkTokens, cluster.stepTokens), 1) }

    // MARK: Statistics of a session, live or simulated

    /// One number per coefficient, each moved by its coefficient more than by the others.
    struct Statistics: Hashable {
        var beforePrefill = 0.0
        var prefill = [0.0, 0.0, 0.0]
        var handOver = [0.0, 0.0]
        var decode = [0.0, 0.0, 0.0]
        /// Mean duration of prompts that were computed beside decoding jobs, and gap of those.
        var disturbedPrompt = 0.0
        var disturbedGap = 0.0
        /// Of traffic: prompts from their stamp to the first token, and gaps.
        var trafficPrompt = 0.0
        var trafficGap = 0.0
    }

    func statistics(_ session: LiveSession) -> Statistics? {
        var result = Statistics()
        let singles = session.jobs(.single).filter { $0.prefilling != nil }
        guard !singles.isEmpty else { return nil }
        result.beforePrefill = Self.mean(singles.compactMap(\.prefilling))
        let (prefillX, prefillY) = prefillRows(singles)
        guard let prefill = LeastSquares.relative(prefillX, prefillY) else { return nil }
        result.prefill = prefill
        result.handOver = handOver(singles)
        let (decodeX, decodeY) = decodeRows(session)
        guard let decode = LeastSquares.relative(decodeX, decodeY) else { return nil }
        result.decode = decode
        result.disturbedGap = Self.mean(session.jobs(.disturbed).compactMap(\.gap))
        result.disturbedPrompt = Self.mean(promptTimes(session.jobs(.disturbing)))
        result.trafficGap = Self.mean(session.jobs(.traffic).filter { $0.outputTokens > 8 }.compactMap(\.gap))
        result.trafficPrompt = Self.mean(promptTimes(session.jobs(.traffic)))
        return result
    }

    private func promptTimes(_ jobs: [LiveJob]) -> [Double] {
        jobs.compactMap { job in job.promptTime.map { $0.upperBound - $0.lowerBound } }
    }

    /// One row per length, over its rounds.
    private func prefillRows(_ singles: [LiveJob]) -> ([[Double]], [Double]) {
        let byLength = Dictionary(grouping: singles, by: \.inputTokens).sorted { $0.key < $1.key }
        let rows = byLength.map { length, _ -> [Double] in
            let n = Double(length)
            return [(n / Double(chunk)).rounded(.up), n, n * n]
        }
        return (rows, byLength.map { Self.mean($0.value.map { max($0.firstToken - ($0.prefilling ?? 0), 0.001) }) })
    }

    /// From the first token to the second, against the bytes that moved between: milliseconds, and per byte.
    private func handOver(_ singles: [LiveJob]) -> [Double] {
        let moved = singles.compactMap { job -> (Int, Double)? in
            guard job.kvBytes > 0, let second = job.secondToken, second > job.firstToken else { return nil }
            return (job.kvBytes, second - job.firstToken)
        }
        let byBytes = Dictionary(grouping: moved, by: \.0).sorted { $0.key < $1.key }
        let rows = byBytes.map { [1, Double($0.key)] }
        return LeastSquares.relative(rows, byBytes.map { Self.mean($0.value.map(\.1)) }) ?? [0, 0]
    }

    /// One row per experiment, so that a large batch does not weigh more than a small one.
    private func decodeRows(_ session: LiveSession) -> ([[Double]], [Double]) {
        func overlap(_ a: ClosedRange<Double>, _ b: ClosedRange<Double>?) -> Double {
            guard let b else { return 0 }
            return max(min(a.upperBound, b.upperBound) - max(a.lowerBound, b.lowerBound), 0)
        }
        var (rows, gaps): ([[Double]], [Double]) = ([], [])
        for experiment in session.experiments where experiment.kind == .together {
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
            guard !found.isEmpty else { continue }
            func mean(_ value: ((gap: Double, jobs: Double, context: Double)) -> Double) -> Double {
                found.reduce(0) { $0 + value($1) } / Double(found.count)
            }
            rows.append([1, mean(\.context), mean(\.jobs)])
            gaps.append(mean(\.gap))
        }
        return (rows, gaps)
    }

    // MARK: The fit

    /// Nil where the measurements do not determine a model.
    public func profile(name: String, rounds: Int = 8, progress: (String) -> Void = { _ in }) -> CostProfile? {
        guard let live = statistics(session), var profile = direct(name, live) else { return nil }
        for round in 0..<rounds {
            guard let played = LiveReplay(cluster: cluster, profile: profile).session(session),
                let simulated = statistics(played)
            else { return nil }
            progress("round \(round + 1): \(Self.difference(simulated, live))")
            move(&profile, from: simulated, to: live)
        }
        profile.prefillVariation = variation(prompts(profile))
        profile.decodeVariation = variation(iterations())
        return profile
    }

    private static func difference(_ simulated: Statistics, _ live: Statistics) -> String {
        func percent(_ name: String, _ a: Double, _ b: Double) -> String {
            b > 0 ? "\(name) \(Decimals.fixed((a / b - 1) * 100, 1)) %" : "\(name) -"
        }
        return [
            percent("before prefill", simulated.beforePrefill, live.beforePrefill),
            percent("prefill base", simulated.prefill[0], live.prefill[0]),
            percent("per token", simulated.prefill[1], live.prefill[1]),
            percent("hand-over", simulated.handOver[0], live.handOver[0]),
            percent("decode base", simulated.decode[0], live.decode[0]),
            percent("per job", simulated.decode[2], live.decode[2]),
            percent("disturbed prompt", simulated.disturbedPrompt, live.disturbedPrompt),
            percent("gap", simulated.disturbedGap, live.disturbedGap),
            percent("traffic prompt", simulated.trafficPrompt, live.trafficPrompt),
            percent("gap", simulated.trafficGap, live.trafficGap),
        ].joined(separator: ", ")
    }

    private func direct(_ name: String, _ live: Statistics) -> CostProfile? {
        let pageBytes = max(cluster.pageBytes, cluster.blockTokens)
        let messages = max(live.beforePrefill / messagesBeforePrefill, 0.001)
        var profile = CostProfile(
            name: name, prefill: .init(live.prefill[0], live.prefill[1], live.prefill[2]),
            decode: .init(live.decode[0], live.decode[1], live.decode[2]),
            bytesPerToken: max(pageBytes / max(cluster.blockTokens, 1), 1),
            poolTokens: max(cluster.blocks * cluster.blockTokens, 1), batchJobsMax: cluster.batchJobs,
            stepTokensMax: cluster.stepTokens,
            linkBytesPerSecond: live.handOver[1] > 0 ? 1000 / live.handOver[1] : 25e9,
            linkLatency: TimeSpan(seconds: messages / 1000))
        profile.chunkTokensMax = chunk
        profile.pageLatency = TimeSpan(seconds: messages / 1000)
        let singles = session.jobs(.single)
        profile.frontDoorSeconds = max(Self.mean(singles.map { $0.clientFirstToken - $0.firstToken }), 0) / 1000
        return profile
    }

    /// Messages one way between a job's arrival and the stamp prefilling.
    private var messagesBeforePrefill: Double { cluster.mixed > 0 ? 2 : 4 }

    /// Each coefficient by what its statistic lacks.
    private func move(_ profile: inout CostProfile, from simulated: Statistics, to live: Statistics) {
        func moved(_ value: Double, _ a: Double, _ b: Double, _ share: Double = 1) -> Double {
            max(value + share * (b - a), 0)
        }
        let latency = profile.linkLatency.seconds * 1000
        profile.linkLatency = TimeSpan(
            seconds: max(
                moved(latency, simulated.beforePrefill / messagesBeforePrefill, live.beforePrefill / messagesBeforePrefill),
                0.001) / 1000)
        profile.prefill = .init(
            moved(profile.prefill.base, simulated.prefill[0], live.prefill[0]),
            moved(profile.prefill.linear, simulated.prefill[1], live.prefill[1]),
            moved(profile.prefill.other, simulated.prefill[2], live.prefill[2]))
        let page = (profile.pageLatency?.seconds ?? 0) * 1000
        profile.pageLatency = TimeSpan(
            seconds: max(moved(page, simulated.handOver[0], live.handOver[0], 0.4), 0.001) / 1000)
        let perByte = moved(
            1000 / max(profile.linkBytesPerSecond, 1), simulated.handOver[1], live.handOver[1], 0.7)
        profile.linkBytesPerSecond = perByte > 1e-9 ? 1000 / perByte : 1e12
        profile.decode = .init(
            moved(profile.decode.base, simulated.decode[0], live.decode[0]),
            moved(profile.decode.linear, simulated.decode[1], live.decode[1]),
            moved(profile.decode.other, simulated.decode[2], live.decode[2]))
        profile.decodeLarge = profile.decode
        guard cluster.mixed == 0 else { return }
        /// Traffic says more than jobs of one kind, where there was any.
        let hasTraffic = live.trafficGap > 0 && live.trafficPrompt > 0
        let prompt = hasTraffic ? (simulated.trafficPrompt, live.trafficPrompt) : (simulated.disturbedPrompt, live.disturbedPrompt)
        let gap = hasTraffic ? (simulated.trafficGap, live.trafficGap) : (simulated.disturbedGap, live.disturbedGap)
        if prompt.0 > 0 {
            profile.prefillInterference = min(moved(profile.prefillInterference, 1, prompt.1 / prompt.0, 0.7), 4)
        }
        if gap.0 > 0 { profile.decodeInterference = min(moved(profile.decodeInterference, 1, gap.1 / gap.0, 0.7), 4) }
    }

    // MARK: Variation

    /// Measured over fitted, of single prompts.
    private func prompts(_ profile: CostProfile) -> [Double] {
        let singles = session.jobs(.single).filter { $0.prefilling != nil }
        return Dictionary(grouping: singles, by: \.inputTokens).sorted { $0.key < $1.key }.flatMap { _, jobs -> [Double] in
            let times = jobs.map { $0.firstToken - ($0.prefilling ?? 0) }
            let mean = Self.mean(times)
            return mean > 0 ? times.map { $0 / mean } : []
        }
    }

    /// Gaps between tokens at the client, over their job's mean gap, of jobs that decoded alone or few
    /// at once. What delays one token on its way and not the next is in two gaps, and no part of an
    /// iteration: half of the gaps' spread is taken to be that, which `steadied` removes.
    private func iterations() -> [Double] {
        var ratios: [Double] = []
        for experiment in session.experiments where experiment.kind == .together && experiment.jobs.count <= 4 {
            for job in experiment.jobs {
                let times = job.clientTokens.dropFirst(2)
                let gaps = zip(times.dropFirst(), times).map { $0 - $1 }
                let mean = gaps.isEmpty ? 0 : gaps.reduce(0, +) / Double(gaps.count)
                if mean > 0 { ratios += gaps.map { $0 / mean } }
            }
        }
        return ratios
    }

    static let quantiles = 33

    /// Quantiles of a sample, equally far apart from its least to its greatest, with mean 1; empty for none.
    func variation(_ sample: [Double]) -> [Double] {
        let sorted = sample.sorted()
        guard sorted.count >= Self.quantiles else { return [] }
        let values = (0..<Self.quantiles).map { index in
            sorted[index * (sorted.count - 1) / (Self.quantiles - 1)]
        }
        let mean = zip(values, values.dropFirst()).reduce(0) { $0 + ($1.0 + $1.1) / 2 } / Double(values.count - 1)
        return mean > 0 ? values.map { $0 / mean } : []
    }

    static func mean(_ values: [Double]) -> Double {
        values.isEmpty ? 0 : values.reduce(0, +) / Double(values.count)
    }
}
