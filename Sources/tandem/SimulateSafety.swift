import ArgumentParser
import BoundedJSON
import Foundation
import Scheduling
import ServingTypes
import Simulation

// MARK: - Safety

extension SimulateCommand {
    func runSafety() throws {
        var tally = SafetyTally()
        let progress = SimulateProgress()
        let started = ContinuousClock.now
        for number in seed..<(seed.addingReportingOverflow(seeds).overflow ? .max : seed + seeds) {
            let result = SafetyRun.run(seed: number, trace: trace ? { Terminal.say($0) } : nil)
            tally.add(result)
            if let failure = result.failure {
                Terminal.say("seed \(number): \(failure)")
                Terminal.say("  replay: tandem simulate --safety --seed \(number) --trace")
            }
            if tally.seeds.isMultiple(of: 100) {
                progress.tell("\(tally.seeds) of \(seeds) seeds, \(tally.failed.count) failed")
            }
        }
        let elapsed = max((ContinuousClock.now - started).seconds, 1e-9)
        Terminal.say(tally.text)
        Terminal.say(
            String(
                format: "%d seeds, %d failed, %d events, %.1f s of virtual time per seed", tally.seeds,
                tally.failed.count, tally.events, tally.virtualSeconds / Double(max(tally.seeds, 1))))
        Terminal.complain(
            String(
                format: "%.1f s: %.0f seeds/s, %.2f million events/s", elapsed, Double(tally.seeds) / elapsed,
                Double(tally.events) / elapsed / 1e6))
        if let json { try write(tally.json, to: json) }
        // Fewer seeds are not expected to bring every kind.
        let never = seeds >= SafetyTally.seedsForAllKinds ? tally.neverHappened : []
        if !never.isEmpty { Terminal.say("never happened: \(never.joined(separator: ", "))") }
        if !tally.failed.isEmpty || !never.isEmpty { throw ExitCode(1) }
    }

    func runSweep() throws {
        var tally = SafetyTally()
        let progress = SimulateProgress()
        let started = ContinuousClock.now
        let strikes = SafetyRun.Strike.allCases.filter { strike == nil || $0.rawValue == strike }
        let events = SafetyRun.eventsOfSweep()
        for strike in strikes {
            for index in event.map({ $0...$0 }) ?? 1...events {
                let result = SafetyRun.strike(strike, at: index, trace: trace ? { Terminal.say($0) } : nil)
                tally.add(result)
                progress.tell("\(strike.rawValue), event \(index) of \(events), \(tally.failed.count) failed")
                guard let failure = result.failure else { continue }
                Terminal.say("\(strike.rawValue) at event \(index): \(failure)")
                Terminal.say(
                    "  replay: tandem simulate --safety --sweep --strike \(strike.rawValue) --event \(index) --trace")
            }
        }
        let elapsed = (ContinuousClock.now - started).seconds
        Terminal.say(tally.text)
        Terminal.say(
            "\(strikes.count) kinds of fault at each of \(events) events: \(tally.seeds) runs, \(tally.failed.count) failed"
        )
        Terminal.complain(String(format: "%.1f s", elapsed))
        if let json { try write(tally.json, to: json) }
        if !tally.failed.isEmpty { throw ExitCode(1) }
    }

    func write(_ value: JSONValue, to path: String) throws {
        let text = JSON.text(value, pretty: true)
        if path == "-" { return Terminal.say(text) }
        try (text + "\n").write(toFile: path, atomically: true, encoding: .utf8)
    }
}

extension SafetyTally {
    var text: String {
        Terminal.table(["HAPPENED", "TIMES"], counts.map { [$0.name, "\($0.count)"] }) + "\n"
            + phases.joined(separator: "\n")
    }

    var json: JSONValue {
        .object(
            JSONObject([
                ("seeds", .integer(Int64(seeds))), ("failed", .array(failed.map { .string("\($0)") })),
                ("events", .integer(Int64(clamping: events))), ("jobs", .integer(Int64(jobs))),
                ("virtual_seconds", .number(virtualSeconds)), ("digest", .string(String(digest, radix: 16))),
                (
                    "happened",
                    .object(
                        JSONObject(
                            counts.map { ($0.name, .integer(Int64($0.count))) }))
                ),
            ]))
    }
}
