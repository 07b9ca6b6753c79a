import Foundation
import Simulation

/// The fault model over many seeds, built from the cores and the simulator alone, so that a build server
/// can afford it: `tandem-safety [--seeds N] [--seed FIRST] [--trace]`. Fails where a promise was broken,
/// or where a kind of fault never happened in 1,000 seeds or more.
@main
enum SafetyProgram {
    private struct Options {
        var first: UInt64 = 1
        var seeds: UInt64 = 10_000
        var traces = false

        init?(_ arguments: [String]) {
            var rest = arguments[...]
            while let flag = rest.popFirst() {
                switch flag {
                case "--trace": traces = true
                case "--seeds", "--seed":
                    guard let value = rest.popFirst().flatMap(UInt64.init), (1...1 << 40).contains(value) else {
                        return nil
                    }
                    if flag == "--seeds" { seeds = value } else { (first, seeds) = (value, 1) }
                case "--from":
                    guard let value = rest.popFirst().flatMap(UInt64.init), value <= 1 << 40 else { return nil }
                    first = value
                default: return nil
                }
            }
        }
    }

    static func main() {
        guard let options = Options(Array(CommandLine.arguments.dropFirst())) else {
            print("usage: tandem-safety [--seeds N] [--from FIRST]   many seeds, 10000 unless told")
            print("       tandem-safety --seed N [--trace]           one seed, every event")
            exit(64)
        }
        let tally = run(options)
        for (name, count) in tally.counts {
            print(name + String(repeating: " ", count: max(36 - name.utf8.count, 1)) + "\(count)")
        }
        for line in tally.phases { print(line) }
        let never = options.seeds >= SafetyTally.seedsForAllKinds ? tally.neverHappened : []
        if !never.isEmpty { print("never happened: \(never.joined(separator: ", "))") }
        exit(tally.failed.isEmpty && never.isEmpty ? 0 : 1)
    }

    private static func run(_ options: Options) -> SafetyTally {
        var tally = SafetyTally()
        let (wall, processor) = (seconds(CLOCK_MONOTONIC), seconds(CLOCK_PROCESS_CPUTIME_ID))
        for seed in options.first..<options.first + options.seeds {
            let result = SafetyRun.run(seed: seed, trace: options.traces ? { print($0) } : nil)
            tally.add(result)
            guard let failure = result.failure else { continue }
            print("seed \(seed): \(failure)")
            print("  replay: .build/release/tandem-safety --seed \(seed) --trace")
            print("          tandem simulate --safety --seed \(seed) --trace")
        }
        let (elapsed, spent) = (seconds(CLOCK_MONOTONIC) - wall, seconds(CLOCK_PROCESS_CPUTIME_ID) - processor)
        let digest = String(tally.digest, radix: 16)
        print(
            "\(tally.seeds) seeds, \(tally.failed.count) failed: \(tally.jobs) jobs, \(tally.events) events, "
                + String(format: "%.1f s, %.1f s of one core", elapsed, spent) + ", digest \(digest)")
        return tally
    }

    private static func seconds(_ clock: clockid_t) -> Double {
        var time = timespec()
        clock_gettime(clock, &time)
        return Double(time.tv_sec) + Double(time.tv_nsec) / 1e9
    }
}
