import ArgumentParser
import CKernels
import Foundation

/// What the machine can do at most, for the roofline of other figures: streaming reads and dot products.
struct LimitsCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "limits",
        abstract: "The machine's limits: streaming read bandwidth, and dot products of bytes, bf16 and f32.")

    @Option(help: "Threads.") var threads: Int = 2
    @Option(help: "Mebibytes that are read.") var mebibytes: Int = 1024
    @Option(help: "Runs of each limit.") var rounds: Int = 5
    @Flag(help: "One JSON object instead of a table.") var json = false

    func validate() throws {
        guard (1...1024).contains(threads), (1...65_536).contains(mebibytes), (1...1000).contains(rounds) else {
            throw ValidationError("--threads takes 1 to 1024, --mebibytes 1 to 65536, --rounds 1 to 1000")
        }
    }

    func run() throws {
        let limits = MachineLimits(threads: threads, bytes: mebibytes << 20)
        let rows = MachineLimits.Kind.allCases.map { kind in (kind, limits.rates(kind, rounds: rounds)) }
        if json {
            let members = rows.map { "\"\($0.rawValue)\": \(JSONText.array($1))" }
            return print("{\(members.joined(separator: ", "))}")
        }
        print(Machine.line)
        print("method: \(threads) threads, \(rounds) runs")
        for (kind, rates) in rows {
            print("\(kind.title.padding(toLength: 34, withPad: " ", startingAt: 0))\(Spread(rates).text(1))")
        }
    }
}

struct MachineLimits {
    enum Kind: String, CaseIterable {
        case readGBps = "read_GBps"
        case int8Gops = "int8_Gops"
        case bf16Gops = "bf16_Gops"
        case f32Gops = "f32_Gops"

        var title: String {
            switch self {
            case .readGBps: "streaming read, GB/s"
            case .int8Gops: "dot products of bytes, Gop/s"
            case .bf16Gops: "dot products of bf16, Gop/s"
            case .f32Gops: "multiply-add of f32, Gop/s"
            }
        }
    }

    /// About a tenth of a second of one core.
    private static let dotRounds = 6_000_000
    private static let hugePageBytes = 2 << 20

    private let threads: Int
    private let memory: UnsafeMutableRawBufferPointer

    init(threads: Int, bytes: Int) {
        self.threads = threads
        memory = .allocate(byteCount: bytes, alignment: Self.hugePageBytes)
        if let base = memory.baseAddress { madvise(base, bytes, Int32(MADV_HUGEPAGE)) }
        memory.initializeMemory(as: UInt8.self, repeating: 7)
    }

    /// Billions per second of all threads together, one figure per run; zeros where the processor has
    /// no such instruction.
    func rates(_ kind: Kind, rounds: Int) -> [Double] {
        _ = run(kind)
        return (0..<rounds).map { _ in run(kind) }
    }

    private func run(_ kind: Kind) -> Double {
        let share = memory.count / threads / 64 * 64
        // Unchecked: every thread writes its own element, and nobody reads before all have ended.
        nonisolated(unsafe) let done = UnsafeMutableBufferPointer<UInt64>.allocate(capacity: threads)
        nonisolated(unsafe) let base = UnsafeRawPointer(memory.baseAddress)
        defer { done.deallocate() }
        let seconds = Machine.seconds {
            let group = DispatchGroup()
            for thread in 0..<threads {
                let worker = Thread {
                    done[thread] = Self.work(kind, base.map { $0 + thread * share }, share)
                    group.leave()
                }
                group.enter()
                worker.start()
            }
            group.wait()
        }
        return Double(done.reduce(0, +)) / seconds / 1e9
    }

    /// Bytes read, or operations done.
    private static func work(_ kind: Kind, _ base: UnsafeRawPointer?, _ bytes: Int) -> UInt64 {
        switch kind {
        case .readGBps:
            guard let base else { return 0 }
            // The sum is wanted, or the reads would go.
            return UInt64(bytes) &+ (tk_limit_read(base, bytes) == 1 ? 1 : 0)
        case .int8Gops: return tk_limit_int8(dotRounds)
        case .bf16Gops: return tk_limit_bf16(dotRounds)
        case .f32Gops: return tk_limit_f32(dotRounds)
        }
    }
}

/// The little JSON that scripts read.
enum JSONText {
    static func array(_ values: [Double]) -> String {
        "[" + values.map { String(format: "%.6g", $0) }.joined(separator: ", ") + "]"
    }
}
