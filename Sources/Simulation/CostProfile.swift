import ServingTypes

/// How long an engine's iteration takes, and what its memory holds: prefill a + b * sum(n) +
/// c * sum(n^2), decode a + b * sum(context) + c * batch (scheduling.md §2.5), in milliseconds.
public struct CostProfile: Hashable, Sendable {
    /// Coefficients in milliseconds.
    public struct Line: Hashable, Sendable {
        public var base: Double
        public var linear: Double
        public var other: Double

        public init(_ base: Double, _ linear: Double, _ other: Double) {
            self.base = base
            self.linear = linear
            self.other = other
        }
    }

    public var name: String
    /// Whether prompts and decoding share an iteration, and its base; else each phase pays its own.
    public var sharesIterations = true
    /// base + linear * tokens + other * (tokens squared); a chunk from s to e pays e^2 - s^2.
    public var prefill: Line
    /// base + linear * (tokens of context) + other * jobs, below `largeBatch` jobs.
    public var decode: Line
    /// The same from `largeBatch` jobs on.
    public var decodeLarge: Line
    public var largeBatch: Int
    /// Host overhead as a factor on every iteration.
    public var factor: Double
    /// Bytes of keys and values of one token, and tokens that a pool of one worker holds.
    public var bytesPerToken: Int
    public var poolTokens: Int
    /// How much longer an iteration takes for each other worker of the same machine that is in one:
    /// of a prefill worker, and of one that decodes.
    public var prefillInterference = 0.0
    public var decodeInterference = 0.0
    /// How much longer than the sum of its parts an iteration takes that holds both prompt and jobs that
    /// decode.
    public var mixedFactor = 1.0
    /// Threads of one worker's engine, where workers share `processors`.
    public var threads = 1
    /// An iteration's time over what the coefficients say, as equally spaced quantiles of the measured
    /// ratios from the least to the greatest: each iteration draws one. Empty: none varies.
    public var prefillVariation: [Double] = []
    public var decodeVariation: [Double] = []
    /// Likewise of the machine's pace when it decodes: one draw holds for `paceSpan`.
    public var paceVariation: [Double] = []
    /// Where the coefficients are off, measured over fitted, linearly between: by tokens of an iteration's
    /// prompts, and by jobs that decode.
    public var prefillShape: [Knot] = []
    public var decodeShape: [Knot] = []
    /// Seconds of processor time that a token costs outside of the workers (coordinator, transport,
    /// client), and the processors that all share; 0: as many as anybody wants.
    public var hostSecondsPerToken = 0.0
    public var processors = 0
    /// From the last page to the first decode iteration, beside the pages' own time: one way on a
    /// page link. Nil: as control messages.
    public var pageLatency: TimeSpan?
    /// Prompt tokens of one job in one iteration at most; nil: as many as the iteration takes.
    public var chunkTokensMax: Int?
    /// Seconds between the client and the coordinator's core and back, beside the links.
    public var frontDoorSeconds = 0.0
    /// Jobs and tokens of one iteration at most, as a worker registers them.
    public var batchJobsMax: Int
    public var stepTokensMax: Int
    /// Bytes per second between two workers, and the delay of a message.
    public var linkBytesPerSecond: Double
    public var linkLatency: TimeSpan

    public init(
        name: String, prefill: Line, decode: Line, decodeLarge: Line? = nil, largeBatch: Int = 95, factor: Double = 1,
        bytesPerToken: Int, poolTokens: Int, batchJobsMax: Int, stepTokensMax: Int,
        linkBytesPerSecond: Double = 25e9, linkLatency: TimeSpan = .microseconds(50)
    ) {
        self.name = name
        self.prefill = prefill
        self.decode = decode
        self.decodeLarge = decodeLarge ?? decode
        self.largeBatch = largeBatch
        self.factor = factor
        self.bytesPerToken = bytesPerToken
        self.poolTokens = poolTokens
        self.batchJobsMax = batchJobsMax
        self.stepTokensMax = stepTokensMax
        self.linkBytesPerSecond = linkBytesPerSecond
        self.linkLatency = linkLatency
    }

    public struct Knot: Hashable, Sendable {
        public var at: Double
        public var factor: Double

        public init(at: Double, factor: Double) {
            self.at = at
            self.factor = factor
        }
    }

    public static let paceSpan: TimeSpan = .milliseconds(250)

    /// Between the knots linearly, beyond the outer ones as they are.
    static func factor(_ knots: [Knot], at place: Double) -> Double {
        guard let first = knots.first, let last = knots.last else { return 1 }
        if place <= first.at { return first.factor }
        for (before, after) in zip(knots, knots.dropFirst()) where place < after.at {
            let share = (place - before.at) / max(after.at - before.at, 1e-9)
            return before.factor + share * (after.factor - before.factor)
        }
        return last.factor
    }

    /// The work of one iteration.
    public struct Work: Hashable, Sendable {
        public var prefillTokens = 0
        /// Sum of e^2 - s^2 over the chunks from s to e.
        public var prefillSquares = 0.0
        public var decodeJobs = 0
        public var contextTokens = 0

        public init() {}
    }

    /// Both phases in one iteration pay one base, the greater, unless they do not share it.
    public func time(of work: Work) -> TimeSpan {
        var (base, milliseconds) = (0.0, 0.0)
        if work.prefillTokens > 0 {
            let shape = Self.factor(prefillShape, at: Double(work.prefillTokens))
            base = prefill.base * shape
            milliseconds +=
                (prefill.linear * Double(work.prefillTokens) + prefill.other * work.prefillSquares) * shape
        }
        if work.decodeJobs > 0 {
            let line = work.decodeJobs < largeBatch ? decode : decodeLarge
            let shape = Self.factor(decodeShape, at: Double(work.decodeJobs))
            base = sharesIterations ? max(base, line.base * shape) : base + line.base * shape
            milliseconds +=
                (line.linear * Double(work.contextTokens) + line.other * Double(work.decodeJobs)) * shape
        }
        let mixed = work.prefillTokens > 0 && work.decodeJobs > 0 ? mixedFactor : 1
        return TimeSpan(seconds: (base + milliseconds) * factor * mixed / 1000)
    }

    /// A draw from quantiles, linearly between neighbours.
    static func draw(_ quantiles: [Double], _ random: inout SimulationRandom) -> Double {
        guard quantiles.count > 1 else { return quantiles.first ?? 1 }
        let place = random.unit() * Double(quantiles.count - 1)
        let index = min(Int(place), quantiles.count - 2)
        let share = place - Double(index)
        return quantiles[index] * (1 - share) + quantiles[index + 1] * share
    }

    /// Decoding workers' entries have one new token each; everything else is prefill.
    public func time(of batch: StepBatch) -> TimeSpan {
        var work = Work()
        for entry in batch.entries {
            let end = entry.startPosition + entry.tokens.count
            if entry.decodes {
                work.decodeJobs += 1
                work.contextTokens += end
            } else {
                work.prefillTokens += entry.tokens.count
                let (s, e) = (Double(entry.startPosition), Double(end))
                work.prefillSquares += e * e - s * s
            }
        }
        return time(of: work)
    }
}

extension CostProfile {
    /// Fits of DistServe's artifact on A100-80GB (scheduling.md §2.5). Pools: 66,144 tokens for 13B
    /// on one GPU, 78,496 for 66B on four; wider 13B splits are given the pool of one GPU.
    public static let a100OPT13B = CostProfile(
        name: "a100-opt13b", prefill: Line(18.103, 0.10191, 7.122e-6), decode: Line(19.935, 6.269e-4, 0.03851),
        decodeLarge: Line(7.166, 5.798e-4, 0.15831), bytesPerToken: 819_200, poolTokens: 66_144, batchJobsMax: 128,
        stepTokensMax: 2048)
    public static let a100OPT13BTP2 = CostProfile(
        name: "a100-opt13b-tp2", prefill: Line(14.743, 0.06858, 2.450e-6), decode: Line(13.295, 3.411e-4, 0.06296),
        decodeLarge: Line(10.639, 3.118e-4, 0.08563), bytesPerToken: 819_200, poolTokens: 66_144, batchJobsMax: 128,
        stepTokensMax: 2048)
    public static let a100OPT13BTP4 = CostProfile(
        name: "a100-opt13b-tp4", prefill: Line(12.062, 0.03808, 5.226e-7), decode: Line(10.256, 1.879e-4, 0.03269),
        decodeLarge: Line(10.484, 1.712e-4, 0.04567), bytesPerToken: 819_200, poolTokens: 66_144, batchJobsMax: 128,
        stepTokensMax: 2048)
    public static let a100OPT13BVLLM = CostProfile(
        name: "a100-opt13b-vllm", prefill: Line(22.052, 0.14051, 8.077e-6), decode: Line(23.475, 5.929e-4, 0.06073),
        decodeLarge: Line(20.206, 4.908e-4, 0.12000), bytesPerToken: 819_200, poolTokens: 66_144, batchJobsMax: 128,
        stepTokensMax: 2048)
    public static let a100OPT66BTP4 = CostProfile(
        name: "a100-opt66b-tp4", prefill: Line(29.442, 0.15135, 8.317e-6), decode: Line(30.760, 4.519e-4, 0.06328),
        decodeLarge: Line(27.471, 4.047e-4, 0.12481), bytesPerToken: 2_359_296, poolTokens: 78_496, batchJobsMax: 128,
        stepTokensMax: 2048)
    /// Llama-2-7B on A10G, fitted from VTC's artifact, with its host factor of 1.09 (scheduling.md §3.7).
    public static let a10GLlama7B = CostProfile(
        name: "a10g-llama7b", prefill: Line(10, 0.214, 0), decode: Line(18.16, 0.0018906, 0.2161), factor: 1.09,
        bytesPerToken: 524_288, poolTokens: 10_000, batchJobsMax: 128, stepTokensMax: 2048,
        linkBytesPerSecond: 3e9)
    /// Of the order of the bundled model on two cores; fit one's own for anything that matters.
    public static let cpu2Core = CostProfile(
        name: "cpu-2core", prefill: Line(1.5, 0.10, 2e-5), decode: Line(1.2, 2e-4, 0.35), bytesPerToken: 6144,
        poolTokens: 16_384, batchJobsMax: 32, stepTokensMax: 512, linkBytesPerSecond: 1e9,
        linkLatency: .microseconds(100))

    public static let all = [
        a100OPT13B, a100OPT13BTP2, a100OPT13BTP4, a100OPT13BVLLM, a100OPT66BTP4, a10GLlama7B, cpu2Core,
    ]

    public init?(named name: String) {
        guard let profile = Self.all.first(where: { $0.name == name }) else { return nil }
        self = profile
    }
}

extension StepEntry {
    /// One new token of a job that has brought some: everything else is prompt.
    var decodes: Bool { tokens.count == 1 && startPosition > 0 && (sample?.outputTokens ?? 0) > 0 }
}

extension StepBatch {
    var kind: RunningStep.Kind {
        let decoders = entries.count { $0.decodes }
        return decoders == 0 ? .prompt : decoders == entries.count ? .decode : .both
    }
}
