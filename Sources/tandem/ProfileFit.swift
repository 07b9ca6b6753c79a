import BoundedJSON
import Foundation
import ServingTypes
import Simulation

// MARK: - Measuring for a fit

extension ProfileCommand {
    func runFit(_ load: LiveLoad, _ shape: LiveCluster, to path: String) async throws {
        Terminal.complain("warming up")
        for index in 0..<4 { _ = try await load.together(4, input: 32, output: 16, index: -100 * (index + 1)) }
        var measuring = Measuring(command: self, load: load, session: LiveSession(cluster: shape))
        try await measuring.probe()
        var workloads: [HeldOut] = []
        for round in 0..<rounds {
            Terminal.complain("round \(round + 1) of \(rounds)")
            try await measuring.round(round)
            if round == 0 { workloads = try heldOut(after: measuring.session) }
            // Between the rounds, so that a machine whose pace drifts is the same one in the fit and after it.
            for workload in workloads where workload.round == round {
                measuring.session.experiments.append(try await play(workload, load))
            }
        }
        if let samples { try write(SamplesFile.json(measuring.session), to: samples, pretty: false) }
        try judge(try write(ProfileFit(measuring.session), to: path), by: measuring.session)
    }

    /// A workload that the fit will not see, and after which round it is played.
    struct HeldOut {
        var round = 0
        var number: Int
        var load: String
        var rate: Double
        var seed: UInt64
        var turn: Int
    }

    /// All of them, those of one turn before those of the next; none without `--loads`. Their rates come from
    /// a fit of what is known after the first round.
    private func heldOut(after session: LiveSession) throws -> [HeldOut] {
        guard loads != nil else { return [] }
        guard let profile = ProfileFit(session).profile(name: "first", processors: processors, rounds: 4) else {
            throw CLIError("the measurements do not determine a model")
        }
        let rates = try rates(session.cluster, profile)
        var result: [HeldOut] = []
        for turn in 0..<turns {
            for seed in 0..<UInt64(seeds) {
                for (label, rate) in rates {
                    result.append(
                        HeldOut(
                            number: result.count, load: label, rate: rate, seed: self.seed &+ seed, turn: turn))
                }
            }
        }
        // In the order in which they are played, a share of them after each round.
        let share = max((result.count + rounds - 1) / max(rounds, 1), 1)
        for index in result.indices { result[index].round = min(index / share, rounds - 1) }
        return result
    }

    private func play(_ workload: HeldOut, _ load: LiveLoad) async throws -> LiveExperiment {
        var command = self
        (command.seed, command.rate) = (workload.seed, workload.rate)
        let trace = command.drawTrace()
        Terminal.complain("\(workload.load), seed \(workload.seed): \(trace.count) requests")
        // No prompt of an earlier one comes again: no prefix cache holds it.
        var result = LiveExperiment(
            kind: .heldOut, jobs: try await command.play(load, trace, from: 20_000_000 + 100_000 * workload.number))
        (result.load, result.seed, result.turn) = (workload.load, workload.seed, workload.turn)
        return result
    }

    private var processors: Int { ProcessInfo.processInfo.activeProcessorCount }

    @discardableResult
    func write(_ fit: ProfileFit, to path: String) throws -> CostProfile {
        let name = "fitted-" + fit.session.cluster.name.replacingOccurrences(of: ", ", with: "-")
        guard
            let profile = fit.profile(
                name: name, processors: processors,
                progress: { Terminal.complain($0) })
        else {
            throw CLIError("the measurements do not determine a model")
        }
        Terminal.say(Self.text(profile, fit.session))
        try write(ProfileFile.json(profile, method: ProfileFit.method), to: path)
        return profile
    }

    func write(_ value: JSONValue, to path: String, pretty: Bool = true) throws {
        try (JSON.text(value, pretty: pretty) + "\n").write(toFile: path, atomically: true, encoding: .utf8)
    }

    private static func text(_ profile: CostProfile, _ session: LiveSession) -> String {
        func row(_ name: String, _ line: CostProfile.Line) -> [String] {
            [
                name, Decimals.fixed(line.base, 4), Decimals.fixed(line.linear, 6), Decimals.fixed(line.other, 8),
            ]
        }
        func spread(_ quantiles: [Double]) -> String {
            guard let least = quantiles.first, let most = quantiles.last else { return "none" }
            let middle = quantiles[quantiles.count / 2]
            return [least, middle, most].map { Decimals.fixed($0, 2) }.joined(separator: " / ")
        }
        let table = Terminal.table(
            ["MS", "BASE", "PER TOKEN", "OTHER"],
            [
                row("prefill (other: tokens squared)", profile.prefill),
                row("decode (per token: context; other: jobs)", profile.decode),
            ])
        let jobs = session.experiments.reduce(0) { $0 + $1.jobs.count }
        return session.cluster.name + ", \(jobs) jobs\n" + table
            + "\nmessage one way \(Decimals.fixed(profile.linkLatency.seconds * 1000, 3)) ms, pages "
            + "\(Terminal.bytes(profile.linkBytesPerSecond))/s and "
            + "\(Decimals.fixed((profile.pageLatency?.seconds ?? 0) * 1000, 3)) ms, interference "
            + "\(Decimals.fixed(profile.prefillInterference, 3)) and \(Decimals.fixed(profile.decodeInterference, 3)), "
            + "front door \(Decimals.fixed(profile.frontDoorSeconds * 1000, 3)) ms\n"
            + "host \(Decimals.fixed(profile.hostSecondsPerToken * 1e6, 1)) us per token on \(profile.processors) processors, "
            + "steps with prompt and decoding \(Decimals.fixed(profile.mixedFactor, 3)) of their parts\n"
            + "an iteration over its fit, least / median / greatest: prefill \(spread(profile.prefillVariation)), "
            + "decode \(spread(profile.decodeVariation)), "
            + "pace \(spread(profile.paceVariation))"
    }
}

/// Runs the experiments of a fit; how long they are goes by how fast the model is.
struct Measuring {
    let command: ProfileCommand
    let load: LiveLoad
    var session: LiveSession
    private var index = 1000
    /// Milliseconds of one token of one job, and per prompt token.
    private var gap = 1.0
    private var perPromptToken = 0.05

    init(command: ProfileCommand, load: LiveLoad, session: LiveSession) {
        self.command = command
        self.load = load
        self.session = session
    }

    private var context: Int { command.context }

    mutating func probe() async throws {
        let input = min(64, context / 2)
        let probe = try await load.run(input: input, output: 24, index: 999)
        gap = max(probe.gap ?? 1, 0.05)
        perPromptToken = max(probe.firstToken / Double(input), 0.005)
    }

    mutating func round(_ round: Int) async throws {
        var singles: [LiveJob] = []
        for input in promptLengths + promptLengths.reversed() {
            singles.append(try await load.run(input: input, output: 8, index: index))
            index += 1
        }
        session.experiments.append(.init(kind: .single, jobs: singles))
        for (count, input, output) in decodeLoads {
            let jobs = try await load.together(count, input: input, output: output, index: index)
            session.experiments.append(.init(kind: .together, jobs: jobs))
            index += count
        }
        let cluster = session.cluster
        if cluster.mixed == 0 {
            let prompt = min(context * 5 / 8, max(Int(300 / perPromptToken), 32))
            try await beside(prompt: prompt, .disturbed, .disturbing)
        }
        if cluster.mixed > 0 {
            try await beside(prompt: min(context * 5 / 8, max(Int(150 / perPromptToken), 32)), .crowded, .crowding)
        } else if cluster.localPrefill > 8 {
            try await beside(prompt: min(cluster.localPrefill - 1, context / 2), .crowded, .crowding)
        }
        try await traffic(2 * round)
        try await traffic(2 * round + 1)
    }

    /// Up to what takes two seconds.
    private var promptLengths: [Int] {
        [8, 32, 64, 128, 192, 256, 384, 480, 960, 1920].filter {
            $0 + 16 <= context && ($0 <= 256 || Double($0) * perPromptToken < 2000)
        }
    }

    /// Output tokens that take so many milliseconds of so many jobs at once.
    private func output(_ milliseconds: Double, jobs: Int, max limit: Int) -> Int {
        min(max(Int(milliseconds / (gap * (1 + 0.2 * Double(jobs - 1)))), 12), max(limit, 12))
    }

    /// Long enough that all of them decode at once for most of the time, though their prompts of so
    /// many tokens are computed one after the other.
    private func output(_ count: Int, beside prompt: Int, max limit: Int) -> Int {
        let prompts = Double(count * prompt) * perPromptToken
        return min(max(output(800, jobs: count, max: limit), Int(1.5 * prompts / gap)), limit)
    }

    /// Jobs at once, prompt and output tokens.
    private var decodeLoads: [(Int, Int, Int)] {
        let most = command.batchJobs
        let long = min(context / 2, 1024, max(Int(1500 / perPromptToken / 4), 32))
        return [1, 2, 4, 8, 16, most].filter { $0 <= most }.flatMap { count in
            [
                (count, 16, output(count, beside: 16, max: min(256, context / 2))),
                (
                    count, count > 4 ? max(long / 4, 16) : long,
                    output(count, beside: count > 4 ? max(long / 4, 16) : long, max: min(256, context * 3 / 8))
                ),
            ]
        }
    }

    /// Jobs decode while prompts come one after the other: what the one costs the other, where another
    /// worker computes them, and where the same does.
    private mutating func beside(
        prompt: Int, _ decodingKind: LiveExperiment.Kind, _ promptKind: LiveExperiment.Kind
    ) async throws {
        let (load, start) = (load, index)
        index += 200
        let prompts = min(max(Int(2500 / (Double(prompt) * perPromptToken)), 4), 24)
        let output = output(1000, jobs: 4, max: context * 3 / 4)
        async let decoding: [LiveJob] = {
            var jobs: [LiveJob] = []
            for repeated in 0..<3 {
                jobs += try await load.together(4, input: 16, output: output, index: start + 10 * repeated)
            }
            return jobs
        }()
        async let disturbing: [LiveJob] = {
            var jobs: [LiveJob] = []
            for number in 0..<prompts {
                jobs.append(try await load.run(input: prompt, output: 1, index: start + 100 + number))
            }
            return jobs
        }()
        let (one, other) = try await (decoding, disturbing)
        session.experiments.append(.init(kind: decodingKind, jobs: one))
        session.experiments.append(.init(kind: promptKind, jobs: other))
    }

    /// Poisson traffic of the lengths of `--input` and `--output`, on a seed that no comparison uses.
    private mutating func traffic(_ round: Int) async throws {
        let seconds = 7.0
        var command = command
        command.seed = command.seed &+ 0x7472_6166 &+ UInt64(round)
        let (input, output) = (command.meanTokens(command.input), command.meanTokens(command.output))
        let prompt = input * perPromptToken
        let decode = output * gap * 0.25
        let most = session.cluster.mixed > 0 ? 1000 / (prompt + decode) : 1000 / max(prompt, decode)
        command.rate = (round.isMultiple(of: 2) ? 0.5 : 0.75) * most
        command.jobs = min(max(Int(command.rate * seconds), 4), 400)
        let jobs = try await command.play(load, command.drawTrace(), from: 10_000_000 + 1000 * round)
        session.experiments.append(.init(kind: .traffic, jobs: jobs))
    }
}
