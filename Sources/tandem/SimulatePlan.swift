import BoundedJSON
import Foundation
import ServingTypes
import Simulation

// MARK: - Placement

extension SimulateCommand {
    func runPlan() throws {
        var search = PlacementSearch(
            shape: shape, workload: try workload(), objective: objective, workersMax: budget, seed: seed)
        search.attainment = attainment
        let started = ContinuousClock.now
        let outcomes = search.run { Terminal.complain($0) }
        let elapsed = (ContinuousClock.now - started).seconds
        Terminal.say(
            "\(budget) workers, \(profile); TTFT at most \(sloTtft) s and TPOT at most \(sloTpot) s for "
                + "\(Decimals.short(attainment * 100)) % of the requests; policy \(policy); seed \(seed)")
        Terminal.say(
            Terminal.table(
                ["WORKERS", "STEP TOKENS", "BATCH", "GOODPUT/S", "PER WORKER", "TTFT P90 S", "TPOT P90 S", "PROBES"],
                outcomes.map(Self.cells)))
        Terminal.say(Self.verdict(outcomes))
        Terminal.complain(String(format: "%.1f s, %d probes", elapsed, outcomes.reduce(0) { $0 + $1.probes }))
        if let json { try write(Self.json(outcomes), to: json) }
    }

    private static func cells(_ outcome: PlacementSearch.Outcome) -> [String] {
        let candidate = outcome.candidate
        let goodput = (outcome.isPruned ? "below " : "") + Decimals.short(outcome.goodput)
        return [
            candidate.name, "\(candidate.stepTokens)", "\(candidate.batch)", goodput,
            outcome.isPruned ? "" : Decimals.short(outcome.goodput / Double(candidate.workers)),
            outcome.isPruned ? "" : Decimals.short(outcome.timeToFirstTokenP90),
            outcome.isPruned ? "" : Decimals.short(outcome.timePerTokenP90), "\(outcome.probes)",
        ]
    }

    /// The best, and by how much it beats the best of another split of the workers.
    private static func verdict(_ outcomes: [PlacementSearch.Outcome]) -> String {
        guard let best = outcomes.first, !best.isPruned, best.goodput > 0 else {
            return "no placement serves this workload within its limits"
        }
        let text =
            "best: \(best.candidate.name), \(best.candidate.stepTokens) tokens and \(best.candidate.batch) jobs"
            + " per iteration: \(Decimals.short(best.goodput)) requests per second"
        guard let second = outcomes.first(where: { $0.candidate.name != best.candidate.name && !$0.isPruned }),
            second.goodput > 0
        else { return text + "; no other split of the workers came within the search's precision" }
        return text + "; \(Decimals.short(best.goodput / second.goodput)) times \(second.candidate.name)"
    }

    private static func json(_ outcomes: [PlacementSearch.Outcome]) -> JSONValue {
        .array(
            outcomes.map { outcome in
                .object(
                    JSONObject([
                        ("prefill", .integer(Int64(outcome.candidate.prefill))),
                        ("decode", .integer(Int64(outcome.candidate.decode))),
                        ("mixed", .integer(Int64(outcome.candidate.mixed))),
                        ("step_tokens", .integer(Int64(outcome.candidate.stepTokens))),
                        ("batch", .integer(Int64(outcome.candidate.batch))), ("goodput", .number(outcome.goodput)),
                        ("pruned", .bool(outcome.isPruned)), ("ttft_p90_s", .number(outcome.timeToFirstTokenP90)),
                        ("tpot_p90_s", .number(outcome.timePerTokenP90)), ("probes", .integer(Int64(outcome.probes))),
                    ]))
            })
    }
}
