import BoundedJSON
import Foundation
import ServingTypes
import Simulation

// MARK: - The fit

extension ProfileCommand {
    func runFit(_ load: LiveLoad, _ shape: LiveShape, to path: String) async throws {
        Terminal.complain("warming up")
        for index in 0..<4 { _ = try await load.together(4, input: 32, output: 32, index: -100 * (index + 1)) }
        var fit = ProfileFit(
            shape: shape, batchJobs: batchJobs, stepTokens: stepTokens, chunkTokens: chunkTokens)
        var index = 1000
        for round in 0..<rounds {
            Terminal.complain("round \(round + 1) of \(rounds)")
            for input in promptLengths + promptLengths.reversed() {
                fit.add(single: try await load.run(input: input, output: 8, index: index))
                index += 1
            }
            for (count, input, output) in decodeLoads {
                fit.add(together: try await load.together(count, input: input, output: output, index: index))
                index += count
            }
            fit.add(disturbed: try await disturbed(load, &index))
        }
        let profile = try fit.profile(name: "fitted-\(shape.name.replacingOccurrences(of: ", ", with: "-"))")
        Terminal.say(fit.text(profile))
        try (JSON.text(ProfileFile.json(profile, method: fit.method), pretty: true) + "\n").write(
            toFile: path, atomically: true, encoding: .utf8)
    }

    private var promptLengths: [Int] { [8, 32, 64, 128, 192, 256, 384, 480, 960, 1920].filter { $0 + 16 <= context } }

    /// Jobs at once, prompt and output tokens.
    private var decodeLoads: [(Int, Int, Int)] {
        let long = min(context / 2, 1024)
        return [1, 2, 4, 8, 16, batchJobs].filter { $0 <= batchJobs }.flatMap {
            [($0, 16, min(256, context / 2)), ($0, long, min(256, context * 3 / 8))]
        }
    }

    /// Jobs decode while prompts come one after the other: what each role costs the other.
    private func disturbed(_ load: LiveLoad, _ index: inout Int) async throws -> ProfileFit.Disturbed {
        let start = index
        index += 200
        let (prompt, output) = (context * 5 / 8, context * 3 / 4)
        return try await withThrowingTaskGroup(of: ProfileFit.Disturbed.self) { group in
            group.addTask {
                var jobs: [LiveJob] = []
                for repeated in 0..<3 {
                    jobs += try await load.together(4, input: 16, output: output, index: start + 10 * repeated)
                }
                return .init(decoding: jobs, prompts: [])
            }
            group.addTask {
                var jobs: [LiveJob] = []
                for number in 0..<24 {
                    jobs.append(try await load.run(input: prompt, output: 1, index: start + 100 + number))
                }
                return .init(decoding: [], prompts: jobs)
            }
            var both = ProfileFit.Disturbed(decoding: [], prompts: [])
            for try await some in group {
                both.decoding += some.decoding
                both.prompts += some.prompts
            }
            return both
        }
    }
}

/// Samples, and the model that fits them best by relative error.
struct ProfileFit {
    let shape: LiveShape
    let batchJobs: Int
    let stepTokens: Int
    let chunkTokens: Int
    private var singles: [LiveJob] = []
    /// One job's mean gap, and what shared its iterations meanwhile: jobs and their context, itself
    /// included, and the share of the time in which prompts were computed.
    private var gaps: [(gap: Double, jobs: Double, context: Double, prompts: Double)] = []
    private var disturbed = Disturbed(decoding: [], prompts: [])

    /// Jobs that decoded, and prompts that were computed, at the same time.
    struct Disturbed: Sendable {
        var decoding: [LiveJob]
        var prompts: [LiveJob]
    }

    init(shape: LiveShape, batchJobs: Int, stepTokens: Int, chunkTokens: Int) {
        self.shape = shape
        self.batchJobs = batchJobs
        self.stepTokens = stepTokens
        self.chunkTokens = chunkTokens
    }

    mutating func add(single job: LiveJob) {
        if job.prefilling != nil { singles.append(job) }
    }

    mutating func add(together jobs: [LiveJob]) { addGaps(of: jobs, beside: jobs) }

    /// Jobs that decode at the same time share their iterations for as long as they overlap.
    private mutating func addGaps(of decoding: [LiveJob], beside prompts: [LiveJob]) {
        func overlap(_ a: ClosedRange<Double>, _ b: ClosedRange<Double>?) -> Double {
            guard let b else { return 0 }
            return max(min(a.upperBound, b.upperBound) - max(a.lowerBound, b.lowerBound), 0)
        }
        var rows: [(gap: Double, jobs: Double, context: Double, prompts: Double)] = []
        for job in decoding {
            guard let gap = job.gap, let time = job.decodingTime else { continue }
            let span = time.upperBound - time.lowerBound
            let shares = decoding.map { (overlap(time, $0.decodingTime) / span, $0) }
            let context = shares.reduce(0) {
                $0 + $1.0 * (Double($1.1.inputTokens) + Double($1.1.outputTokens) / 2)
            }
            let busy = prompts.reduce(0) { $0 + overlap(time, $1.promptTime) } / span
            rows.append((gap, shares.reduce(0) { $0 + $1.0 }, context, min(busy, 1)))
        }
        guard !rows.isEmpty else { return }
        // One row per experiment, so that a large batch does not weigh more than a small one.
        func mean(_ value: ((gap: Double, jobs: Double, context: Double, prompts: Double)) -> Double) -> Double {
            rows.reduce(0) { $0 + value($1) } / Double(rows.count)
        }
        gaps.append((mean { $0.gap }, mean { $0.jobs }, mean { $0.context }, mean { $0.prompts }))
    }

    mutating func add(disturbed both: Disturbed) {
        disturbed.decoding += both.decoding
        disturbed.prompts += both.prompts
        addGaps(of: both.decoding, beside: both.prompts)
    }

    let method = [
        "prefill: single jobs of several lengths, from the stamp prefilling to first_token; least relative squares of base per chunk, tokens, tokens squared",
        "decode: 1 to the batch limit jobs at once, mean gap after the second token; least relative squares of base, context and jobs that shared the iterations, and the share of the time that prompts took",
        "links: stamps received to prefilling are four messages one way; transferring to decoding the pages",
        "interference: four jobs decode while prompts come one after the other, against the fit",
    ]

    // MARK: Fitting

    private var chunk: Int { min(chunkTokens, stepTokens) }

    /// One row per length, over its rounds.
    private var prefillRows: ([[Double]], [Double]) {
        let byLength = Dictionary(grouping: singles, by: \.inputTokens).sorted { $0.key < $1.key }
        let rows = byLength.map { length, _ -> [Double] in
            let n = Double(length)
            return [(n / Double(chunk)).rounded(.up), n, n * n]
        }
        return (rows, byLength.map { Self.mean($0.value.map { max($0.firstToken - ($0.prefilling ?? 0), 0.001) }) })
    }

    private var decodeRows: ([[Double]], [Double]) {
        (gaps.map { [1, $0.context, $0.jobs, $0.prompts] }, gaps.map(\.gap))
    }

    func profile(name: String) throws -> CostProfile {
        let (prefillX, prefillY) = prefillRows
        let (decodeX, decodeY) = decodeRows
        guard let prefill = LeastSquares.relative(prefillX, prefillY),
            let decode = LeastSquares.relative(decodeX, decodeY)
        else {
            throw CLIError("the measurements do not determine a model: \(singles.count) and \(gaps.count) samples")
        }
        let pageBytes = max(shape.pageBytes, shape.blockTokens)
        var profile = CostProfile(
            name: name, prefill: .init(prefill[0], prefill[1], prefill[2]),
            decode: .init(decode[0], decode[1], decode[2]),
            bytesPerToken: max(pageBytes / max(shape.blockTokens, 1), 1),
            poolTokens: max(shape.blocks * shape.blockTokens, 1), batchJobsMax: batchJobs, stepTokensMax: stepTokens,
            linkBytesPerSecond: handOver.bytesPerSecond, linkLatency: TimeSpan(seconds: messageMilliseconds / 1000))
        profile.chunkTokensMax = chunk
        profile.pageLatency = TimeSpan(seconds: handOver.base / 1000)
        profile.prefillInterference = prefillInterference(profile)
        let gap = gaps.reduce(0) { $0 + $1.gap - decode[3] * $1.prompts } / Double(max(gaps.count, 1))
        profile.decodeInterference = shape.mixed > 0 || gap <= 0 ? 0 : min(decode[3] / gap, 4)
        profile.frontDoorSeconds = frontDoorMilliseconds / 1000
        return profile
    }

    /// One way, from the four that lie between arrival and prefill (mixed: two).
    private var messageMilliseconds: Double {
        max(Self.mean(singles.compactMap(\.prefilling)) / (shape.mixed > 0 ? 2 : 4), 0.001)
    }

    /// From the first token, told by P, to the commit, told by D: milliseconds beside the pages, and
    /// the pages' rate. Both words travel to the coordinator alike.
    private var handOver: (base: Double, bytesPerSecond: Double) {
        let moved = singles.filter { $0.kvBytes > 0 }.compactMap { job -> (Double, Double)? in
            guard let from = job.transferring, let to = job.decoding, to > from else { return nil }
            return (Double(job.kvBytes), to - from)
        }
        let byBytes = Dictionary(grouping: moved, by: \.0).sorted { $0.key < $1.key }
        let (rows, times) = (byBytes.map { [1, $0.key] }, byBytes.map { Self.mean($0.value.map(\.1)) })
        guard let line = LeastSquares.relative(rows, times) else { return (messageMilliseconds, 25e9) }
        return (max(line[0], 0.001), line[1] > 0 ? 1000 / line[1] : 25e9)
    }

    private var frontDoorMilliseconds: Double {
        max(Self.mean(singles.map { $0.clientFirstToken - $0.firstToken }), 0)
    }

    /// How much longer prompts take while jobs decode.
    private func prefillInterference(_ profile: CostProfile) -> Double {
        guard shape.mixed == 0, let prompt = disturbed.prompts.first else { return 0 }
        var work = CostProfile.Work()
        work.prefillTokens = prompt.inputTokens
        work.prefillSquares = Double(prompt.inputTokens * prompt.inputTokens)
        let chunks = (Double(prompt.inputTokens) / Double(chunk)).rounded(.up)
        let alone = profile.time(of: work).seconds * 1000 + (chunks - 1) * profile.prefill.base
        let decoding = disturbed.decoding.compactMap(\.decodingTime)
        guard let from = decoding.map(\.lowerBound).min(), let to = decoding.map(\.upperBound).max() else { return 0 }
        let times = disturbed.prompts.compactMap { job -> Double? in
            guard let time = job.promptTime, time.lowerBound >= from, time.upperBound <= to else { return nil }
            return time.upperBound - time.lowerBound
        }
        guard times.count > 2, alone > 0 else { return 0 }
        return min(max(Self.mean(times) / alone - 1, 0), 4)
    }

    /// Without the greatest twentieth: a machine that did something else for a while says nothing.
    static func mean(_ values: [Double]) -> Double {
        let kept = values.sorted().dropLast(values.count / 20)
        return kept.isEmpty ? 0 : kept.reduce(0, +) / Double(kept.count)
    }

    // MARK: Telling

    func text(_ profile: CostProfile) -> String {
        let (prefillX, prefillY) = prefillRows
        let (decodeX, decodeY) = decodeRows
        let prefillError = LeastSquares.meanError(
            prefillX, prefillY, [profile.prefill.base, profile.prefill.linear, profile.prefill.other])
        let decodeFit = LeastSquares.relative(decodeX, decodeY) ?? [0, 0, 0, 0]
        let decodeError = LeastSquares.meanError(decodeX, decodeY, decodeFit)
        func row(_ name: String, _ line: CostProfile.Line, _ error: Double, _ samples: Int) -> [String] {
            [
                name, Decimals.fixed(line.base, 4), Decimals.fixed(line.linear, 6), Decimals.fixed(line.other, 8),
                "\(Decimals.fixed(error * 100, 1)) %", "\(samples)",
            ]
        }
        let table = Terminal.table(
            ["MS", "BASE", "PER TOKEN", "OTHER", "MEAN ERROR", "SAMPLES"],
            [
                row("prefill (other: tokens squared)", profile.prefill, prefillError, prefillY.count),
                row("decode (per token: context; other: jobs)", profile.decode, decodeError, decodeY.count),
            ])
        let prompts = zip(prefillX, prefillY).map { row, time in
            [
                "\(Int(row[1]))", Decimals.fixed(time, 3),
                Decimals.fixed(
                    profile.prefill.base * row[0] + profile.prefill.linear * row[1] + profile.prefill.other * row[2], 3),
            ]
        }
        let samples =
            Terminal.table(["PROMPT TOKENS", "MS", "FITTED"], prompts) + "\n"
        return ([shape.name] + method).joined(separator: "\n") + "\n" + samples + table
            + "\nmessage one way \(Decimals.fixed(profile.linkLatency.seconds * 1000, 3)) ms, pages "
            + "\(Terminal.bytes(profile.linkBytesPerSecond))/s, hand-over "
            + "\(Decimals.fixed((profile.pageLatency?.seconds ?? 0) * 1000, 3)) ms, interference "
            + "\(Decimals.fixed(profile.prefillInterference, 3)) and \(Decimals.fixed(profile.decodeInterference, 3)), "
            + "front door \(Decimals.fixed(profile.frontDoorSeconds * 1000, 3)) ms"
    }
}
