import ArgumentParser
import Foundation

/// Measures parts of a worker on this machine: page links and the engine. `make bench` runs both;
/// whole clusters are measured by `tandem bench` and `ops/measure-serving.sh`.
@main
struct MeasureProgram: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "tandem-measure", abstract: "Measure page links and the engine on this machine.",
        subcommands: [
            LinksCommand.self, EngineCommand.self, LimitsCommand.self, PerplexityCommand.self, DecisionsCommand.self,
        ])
}

/// Median, least and most of repeated runs: single figures of a shared machine say little.
struct Spread {
    private let sorted: [Double]

    init(_ values: [Double]) { sorted = values.sorted() }

    var median: Double { sorted.isEmpty ? 0 : sorted[sorted.count / 2] }

    func text(_ digits: Int) -> String {
        func number(_ value: Double?) -> String { String(format: "%.\(digits)f", value ?? 0) }
        return "\(number(median)) (\(number(sorted.first))-\(number(sorted.last)))"
    }
}

enum Machine {
    /// One line to put above any table of figures.
    static var line: String {
        let info = (try? String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8)) ?? ""
        let name = info.split(separator: "\n").first { $0.hasPrefix("model name") }?.split(separator: ":").last ?? "?"
        let load = (try? String(contentsOfFile: "/proc/loadavg", encoding: .utf8))?.split(separator: " ").first ?? "?"
        return "machine:\(name), \(ProcessInfo.processInfo.activeProcessorCount) cores, load \(load)"
    }

    /// User and system seconds of this process.
    static var processorSeconds: Double {
        var usage = rusage()
        getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage)
        func seconds(_ time: timeval) -> Double { Double(time.tv_sec) + Double(time.tv_usec) / 1e6 }
        return seconds(usage.ru_utime) + seconds(usage.ru_stime)
    }

    /// Resident memory of this process now.
    static var residentBytes: Int { status("VmRSS:") }

    /// Its most so far.
    static var peakBytes: Int { status("VmHWM:") }

    private static func status(_ name: String) -> Int {
        let status = (try? String(contentsOfFile: "/proc/self/status", encoding: .utf8)) ?? ""
        let line = status.split(separator: "\n").first { $0.hasPrefix(name) } ?? ""
        return (line.split(whereSeparator: { !$0.isNumber }).first.flatMap { Int($0) } ?? 0) << 10
    }

    static func seconds(_ body: () throws -> Void) rethrows -> Double {
        let start = DispatchTime.now().uptimeNanoseconds
        try body()
        return Double(DispatchTime.now().uptimeNanoseconds - start) / 1e9
    }
}
