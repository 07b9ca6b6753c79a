import ArgumentParser
import Foundation
import Scheduling
import ServingTypes

/// What a decision of each scheduling policy costs, by jobs in the queue and by tenants. One thread,
/// the production `SchedulingPolicy`, no engine: jobs come, are chosen, produce tokens and go, while
/// the queue keeps its length.
struct DecisionsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "decisions", abstract: "Cost of a scheduling decision, by queue length, tenants and policy.")

    @Option(help: ArgumentHelp("Policies to measure; all by default.", valueName: "name,name")) var policies: String?
    @Option(help: "Longest queue.") var jobsMax: Int = 1_000_000
    @Option(help: "Most tenants.") var tenantsMax: Int = 10_000
    @Option(help: "Rounds of each row.") var rounds: Int = 9
    @Option(help: "Job lives of one round.") var lives: Int = 2000

    func validate() throws {
        guard (1000...10_000_000).contains(jobsMax), (1...1_000_000).contains(tenantsMax), (1...1000).contains(rounds),
            (1...1_000_000).contains(lives)
        else {
            throw ValidationError(
                "--jobs-max takes 1000 to 10000000, --tenants-max 1 to 1000000, --rounds 1 to 1000, --lives 1 to 1000000"
            )
        }
        _ = try names()
    }

    private func names() throws -> [String] {
        let known = PolicyConfiguration.names + PolicyConfiguration.clairvoyantNames
        guard let policies else { return known }
        let wanted = policies.split(separator: ",").map(String.init)
        for name in wanted where !known.contains(name) {
            throw ValidationError("--policies: \(name) is none of \(known.joined(separator: ", "))")
        }
        return wanted
    }

    func run() throws {
        print(Machine.line)
        print(
            "method: each life is arrive, next, dispatch, 8 x (produced, served), leave: 20 events; \(lives) lives a"
                + " round, \(rounds) rounds, 256 jobs out of the queue; microseconds, median (min-max)")
        let sizes = [1000, 10_000, 100_000, 1_000_000].filter { $0 <= jobsMax }
        let crowds = [1, 10, 100, 1000, 10_000].filter { $0 <= tenantsMax }
        print(
            "\npolicy          jobs      tenants  per event            next + dispatch      64 of 96 to run      bytes/job"
        )
        for name in try names() {
            for size in sizes { row(name, jobs: size, tenants: min(100, tenantsMax)) }
            for crowd in crowds where crowd != 100 { row(name, jobs: min(100_000, jobsMax), tenants: crowd) }
        }
    }

    private func row(_ name: String, jobs: Int, tenants: Int) {
        let before = Machine.residentBytes
        var bench = DecisionBench(name, jobs: jobs, tenants: tenants)
        let bytes = Double(Machine.residentBytes - before) / Double(jobs)
        bench.round(lives: min(lives, 200))
        let runs = (0..<rounds).map { _ in bench.round(lives: lives) }
        let event = Spread(runs.map(\.event)).text(3)
        let choice = Spread(runs.map(\.choice)).text(3)
        let plan = Spread((0..<rounds).map { _ in bench.plan(times: 50) }).text(2)
        func column(_ text: String, _ width: Int) -> String {
            text + String(repeating: " ", count: max(width - text.count, 1))
        }
        let memory = bytes > 0 && jobs >= 1_000_000 ? String(format: "%.0f", bytes) : "-"
        print(
            column(name, 16) + column("\(jobs)", 10) + column("\(tenants)", 9) + column(event, 21) + column(choice, 21)
                + column(plan, 21) + memory)
    }
}

/// A policy with a long queue and some jobs out of it.
private struct DecisionBench {
    private var policy: SchedulingPolicy
    private let tenants: [TenantID]
    private var random = SplitMix(state: 7)
    private var out: [JobID] = []
    private var oldest = 0
    private var now = Instant.zero
    private var residents: [JobID] = []

    private static let outside = 256

    init(_ name: String, jobs: Int, tenants count: Int) {
        var configuration = PolicyConfiguration(named: name) ?? PolicyConfiguration()
        configuration.tenantsMax = max(count, 4096)
        configuration.requestsPerMinute = 1 << 20
        policy = SchedulingPolicy(configuration)
        tenants = (0..<count).map { TenantID("tenant-\($0)") }
        for _ in 0..<jobs { arrive() }
        for _ in 0..<Self.outside { out.append(send()) }
        residents = Array(out.prefix(96))
    }

    private mutating func arrive() {
        let job = JobID(high: random.next(), low: random.next())
        let length = Int(random.next() % 500)
        let prefill = TimeSpan.microseconds(Int64(random.next() % 400_000))
        policy.arrive(
            ScheduledJob(
                job: job, tenant: tenants[Int(random.next() % UInt64(tenants.count))],
                priority: Int(random.next() % 3), predictedPrefill: prefill, outputMax: 500, knownOutput: length),
            at: now)
    }

    private mutating func send() -> JobID {
        guard let job = policy.next(at: now) else { return JobID(high: 0, low: 0) }
        policy.dispatch(job, at: now)
        policy.started(job)
        return job
    }

    /// Microseconds per event, and per choice of the next job.
    @discardableResult
    mutating func round(lives: Int) -> (event: Double, choice: Double) {
        var choosing = UInt64(0)
        let start = DispatchTime.now().uptimeNanoseconds
        for _ in 0..<lives {
            now = now + .milliseconds(1)
            arrive()
            let before = DispatchTime.now().uptimeNanoseconds
            let job = send()
            choosing += DispatchTime.now().uptimeNanoseconds - before
            for _ in 0..<8 {
                let one = out[Int(random.next() % UInt64(out.count))]
                policy.produced(one, tokens: 1)
                policy.served(one, for: .milliseconds(20), nextIteration: .milliseconds(20))
            }
            policy.leave(out[oldest])
            out[oldest] = job
            oldest = (oldest + 1) % out.count
        }
        let all = DispatchTime.now().uptimeNanoseconds - start
        return (Double(all) / Double(lives) / 20 / 1000, Double(choosing) / Double(lives) / 1000)
    }

    /// Microseconds of one running set: 96 residents, 64 slots.
    mutating func plan(times: Int) -> Double {
        residents = Array(out.prefix(96))
        let start = DispatchTime.now().uptimeNanoseconds
        for _ in 0..<times {
            now = now + .milliseconds(20)
            for job in policy.runningSet(of: residents, slots: 64, at: now).prefix(8) {
                policy.produced(job, tokens: 1)
            }
        }
        return Double(DispatchTime.now().uptimeNanoseconds - start) / Double(times) / 1000
    }
}

private struct SplitMix {
    var state: UInt64

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}
