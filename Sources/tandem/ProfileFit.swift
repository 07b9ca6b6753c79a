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
        try await measuring.run()
        if let samples { try write(SamplesFile.json(measuring.session), to: samples, pretty: false) }
        try write(ProfileFit(measuring.session), to: path)
    }

    func write(_ fit: ProfileFit, to path: String) throws {
        let name = "fitted-" + fit.session.cluster.name.replacingOccurrences(of: ", ", with: "-")
        guard
            let profile = fit.profile(
                name: name, processors: ProcessInfo.processInfo.activeProcessorCount,
                progress: { Terminal.complain($0) })
        else {
            throw CLIError("the measurements do not determine a model")
        }
        Terminal.say(Self.text(profile, fit.session))
        try write(ProfileFile.json(profile, method: ProfileFit.method), to: path)
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
            + "host \(Decimals.fixed(profile.hostSecondsPerToken * 1e6, 1)) us per token on \(profile.processors) processors\n"
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

    mutating func run() async throws {
        let probe = try await load.run(input: min(64, context / 2), output: 24, index: 999)
        gap = max(probe.gap ?? 1, 0.05)
        perPromptToken = max(probe.firstToken / 64, 0.005)
        for round in 0..<command.rounds {
            Terminal.complain("round \(round + 1) of \(command.rounds)")
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
            try await disturbed()
            try await traffic(round)
        }
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

    /// Jobs decode while prompts come one after the other: what each role costs the other.
    private mutating func disturbed() async throws {
        let (load, start) = (load, index)
        index += 200
        let prompt = min(context * 5 / 8, max(Int(300 / perPromptToken), 32))
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
        session.experiments.append(.init(kind: .disturbed, jobs: one))
        session.experiments.append(.init(kind: .disturbing, jobs: other))
    }

    /// Poisson traffic of the lengths of `--input` and `--output`, on a seed that no comparison uses.
    private mutating func traffic(_ round: Int) async throws {
        let seconds = 6.0
        var command = command
        command.seed = command.seed &+ 0x7472_6166 &+ UInt64(round)
        let (input, output) = (command.meanTokens(command.input), command.meanTokens(command.output))
        let prompt = input * perPromptToken
        let decode = output * gap * 0.25
        let most = session.cluster.mixed > 0 ? 1000 / (prompt + decode) : 1000 / max(prompt, decode)
        command.rate = (round.isMultiple(of: 2) ? 0.5 : 0.7) * most
        command.jobs = min(max(Int(command.rate * seconds), 4), 400)
        let jobs = try await command.play(load, command.drawTrace(), from: 10_000_000 + 1000 * round)
        session.experiments.append(.init(kind: .traffic, jobs: jobs))
    }
}
