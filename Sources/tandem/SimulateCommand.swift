import ArgumentParser
import Foundation
import Scheduling
import ServingTypes
import Simulation

/// The production cores on a virtual clock: workloads for latencies, seeds for safety.
struct SimulateCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "simulate", abstract: "Run the cluster's own cores on virtual time: workloads, or faults.",
        discussion: """
            The same seed gives the same output, byte for byte.

              tandem simulate --prefill 1 --decode 1 --profile a100-opt13b --rate 2 --jobs 1000
              tandem simulate --trace-file trace.jsonl --policy fair
              tandem simulate --safety --seeds 10000          the fault model, one cluster per seed
              tandem simulate --safety --seed 7 --trace       one seed, every event
              tandem simulate --reproduce all --traces DIR    published results beside ours, one table
              tandem simulate --surpass --traces DIR          the goals beyond them
              tandem simulate --plan --budget 8               how many workers of each role
              tandem simulate --scale                         events per second and memory, 10 workers up
            """)

    @Option(help: "Prefill workers.") var prefill: Int = 1
    @Option(help: "Decode workers.") var decode: Int = 1
    @Option(help: "Mixed workers, which do both.") var mixed: Int = 0
    @Option(help: ArgumentHelp("Scheduling policy.", valueName: "name"))
    var policy: String = PolicyConfiguration.standardName
    @Option(help: "Constants of the policy, as `tandem up` takes them: \(PolicySetting.names).")
    var policySettings: String = ""
    @Option(help: ArgumentHelp("Cost model: a name, or a file of `tandem profile`.", valueName: "name|file"))
    var profile: String = "a100-opt13b"
    @Option(help: "Requests per second; 0: all at once.") var rate: Double = 1
    @Option(help: "Requests in all; of a trace, at most.") var jobs: Int?
    @Option(help: "Arrivals: \(ArrivalProcess.forms).") var arrivals: String = "poisson"
    @Option(help: "Prompt tokens: \(LengthDistribution.forms).") var input: String = "lognormal:136:1.5"
    @Option(help: "Output tokens: \(LengthDistribution.forms).") var output: String = "lognormal:256:0.8"
    @Option(help: "Tenants that the requests are spread over.") var tenants: Int = 1
    @Option(help: "Recorded requests, one JSON object per line (arrival_s or timestamp).") var traceFile: String?
    @Option(help: "Play a recorded workload this many times as fast.") var speed: Double = 1
    @Option(help: "Jobs in one iteration (default: the profile's).") var batch: Int?
    @Option(help: "Tokens in one iteration (default: the profile's).") var stepTokens: Int?
    @Option(help: "Tokens that one worker's pool holds (default: the profile's).") var kvTokens: Int?
    @Option(help: "Tokens that a decoding worker's host tier holds; 0: none.") var swapTokens: Int = 0
    @Option(help: "Tokens of one block.") var blockTokens: Int = 16
    @Option(help: "Prefill on the decode worker below this many uncached tokens; 0: never.") var localPrefill: Int = 0
    @Option(help: "As `tandem up` takes it, which has 200; 0: decode workers take no long prompts.")
    var reliefWaitMs: Int = 0
    @Option(help: "As `tandem up` takes it, which has 300; 0: no limit.") var stepStretchPercent: Int = 0
    @Option(help: "Jobs that a prefill worker is given at once; `tandem up` has 2 (default: 4).")
    var prefillWindow: Int?
    @Option(help: "TTFT that a request must meet to count for goodput, in seconds.") var sloTtft: Double = 2
    @Option(help: "TPOT that a request must meet to count for goodput, in seconds.") var sloTpot: Double = 0.2
    @Option(help: "First seed.") var seed: UInt64 = 1
    @Option(help: "Also write the result as JSON to this file; - is standard output, without the table.")
    var json: String?
    @Flag(help: "Run the fault model in place of a workload.") var safety = false
    @Option(help: "How many seeds: of the fault model, of --surpass and of --reproduce.") var seeds: UInt64 =
        1
    @Flag(help: "With --safety: print every event.") var trace = false
    @Flag(help: "With --safety: one fault of each kind at every event of a small run.") var sweep = false
    @Option(help: "With --sweep: only this kind of fault.") var strike: String?
    @Option(help: "With --sweep: only this event.") var event: UInt64?
    @Option(help: ArgumentHelp("Redo published experiments.", valueName: "vtc|fastserve|all")) var reproduce: String?
    @Flag(help: "Run the experiments that go beyond the published ones.") var surpass = false
    @Flag(help: "Search the number of workers of each role, and their budgets, for the highest goodput.")
    var plan = false
    @Option(help: "With --plan: workers in all.") var budget: Int = 4
    @Option(help: "With --plan: share of the requests that must meet both limits.") var attainment: Double = 0.9
    @Flag(help: "Run clusters from 10 workers up; events per second and memory of each.") var scale = false
    @Option(help: "With --scale: workers of the largest cluster.") var workers: Int = 1000
    @Option(help: "Goodput at each of these rates, separated by commas.") var rates: String?
    @Option(help: "Folder of the recorded traces (vtc_real_trace.jsonl), for --reproduce and --surpass.")
    var traces: String?
    @Option(help: "With --surpass: one goal only, s3 to s6.") var goal: String?
    @Option(help: "Folder for tables and plots.") var out: String?
    @Option(help: "A line that kept tables carry, say of the commit.") var note: String?

    func validate() throws {
        _ = try policyConfiguration()
        _ = try ProfileFile.named(profile)
        guard ArrivalProcess(arrivals) != nil else {
            throw ValidationError("--arrivals: \(arrivals) is not of the form \(ArrivalProcess.forms)")
        }
        for (name, text) in [("input", input), ("output", output)] where LengthDistribution(text) == nil {
            throw ValidationError("--\(name): \(text) is not of the form \(LengthDistribution.forms)")
        }
        try validateCounts()
    }

    private func validateCounts() throws {
        let counts = [
            ("prefill", prefill, 0), ("decode", decode, 0), ("mixed", mixed, 0), ("tenants", tenants, 1),
            ("jobs", jobs ?? 1, 1), ("batch", batch ?? 1, 1), ("step-tokens", stepTokens ?? 1, 1),
            ("kv-tokens", kvTokens ?? 1, 1), ("block-tokens", blockTokens, 1), ("local-prefill", localPrefill, 0),
            ("swap-tokens", swapTokens, 0), ("relief-wait-ms", reliefWaitMs, 0),
            ("step-stretch-percent", stepStretchPercent, 0), ("prefill-window", prefillWindow ?? 1, 1),
        ]
        for (name, value, least) in counts where !(least...100_000_000).contains(value) {
            throw ValidationError("--\(name): \(value) is outside \(least) to 100000000")
        }
        for (name, value) in [("rate", rate), ("slo-ttft", sloTtft), ("slo-tpot", sloTpot)]
        where !value.isFinite || value < 0 {
            throw ValidationError("--\(name): \(value) is not 0 or more")
        }
        guard speed.isFinite, speed > 0 else { throw ValidationError("--speed: \(speed) is not more than 0") }
        guard decode + mixed > 0 else { throw ValidationError("--decode: at least 1 decode or mixed worker is needed") }
        guard prefill + decode + mixed <= 10_000 else {
            throw ValidationError("--prefill: \(prefill + decode + mixed) workers, the limit is 10000")
        }
        if let strike, SafetyRun.Strike(rawValue: strike) == nil {
            let names = SafetyRun.Strike.allCases.map(\.rawValue).joined(separator: ", ")
            throw ValidationError("--strike: \(strike) is none of \(names)")
        }
        if let reproduce, !["vtc", "fastserve", "all"].contains(reproduce) {
            throw ValidationError("--reproduce: \(reproduce) is none of vtc, fastserve, all")
        }
        guard (1...256).contains(budget) else { throw ValidationError("--budget: \(budget) is outside 1 to 256") }
        guard attainment > 0, attainment <= 1 else {
            throw ValidationError("--attainment: \(attainment) is not above 0 and at most 1")
        }
        guard (10...10_000).contains(workers) else {
            throw ValidationError("--workers: \(workers) is outside 10 to 10000")
        }
        if let rates { _ = try Self.numbers(rates) }
        guard seeds >= 1 else { throw ValidationError("--seeds: \(seeds) is not 1 or more") }
    }

    private static func numbers(_ text: String) throws -> [Double] {
        let parts = text.split(separator: ",", omittingEmptySubsequences: false)
        let values = parts.compactMap { Double($0) }.filter { $0.isFinite && $0 > 0 }
        guard values.count == parts.count, values.count <= 100 else {
            throw ValidationError("--rates: \(text) is no list of at most 100 numbers above 0")
        }
        return values
    }

    func run() throws {
        if let reproduce {
            try runReproduction(reproduce)
        } else if plan {
            try runPlan()
        } else if scale {
            try runScale()
        } else if let rates {
            try runRates(try Self.numbers(rates))
        } else if surpass {
            try runSurpass()
        } else if safety, sweep {
            try runSweep()
        } else if safety {
            try runSafety()
        } else {
            try runWorkload()
        }
    }
}
