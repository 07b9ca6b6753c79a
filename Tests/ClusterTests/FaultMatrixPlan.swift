import BoundedJSON
import FaultProxy
import Foundation

/// One job of the catalogue. Its text is the same on every cluster, whatever befalls it.
struct MatrixJob: Sendable {
    var prompt: String
    var maxTokens: Int
    var temperature: Double
    var more: [(String, JSONValue)] = []

    /// Greedy and sampled, short and long, with penalties and a stop string.
    static let catalogue: [MatrixJob] = {
        let lengths = [(8, 64), (40, 24), (90, 48), (140, 96), (170, 40), (200, 16), (220, 32), (60, 120), (120, 1)]
        var jobs = lengths.enumerated().map { index, length in
            MatrixJob(
                prompt: Prompts.text(words: length.0, seed: 7000 + UInt64(index)), maxTokens: length.1,
                temperature: [0, 0.9, 1.2][index % 3])
        }
        jobs[1].more = [("top_p", 0.8), ("presence_penalty", 0.5)]
        jobs[4].more = [("repetition_penalty", 1.2), ("frequency_penalty", 0.3)]
        jobs[7].more = [("stop", .array(["xyzzy"])), ("top_k", 40)]
        return jobs
    }()
}

/// When a fault begins.
enum FaultTrigger: Hashable, Sendable {
    /// After so many pieces of text of all jobs together.
    case pieces(Int)
    case milliseconds(Int)
}

enum MatrixRole: String, Hashable, Sendable, CaseIterable {
    case prefill
    case decode
}

/// One thing that goes wrong. Which worker it meets is decided when it strikes: one that is at work.
enum MatrixFault: Hashable, Sendable {
    case kill(MatrixRole, backAfterMs: Int)
    /// Kills while pages are on the way, which a throttled link makes certain.
    case killInTransfer(MatrixRole, backAfterMs: Int)
    case pause(MatrixRole, milliseconds: Int)
    case coordinatorRestart(downMs: Int)
    case pageLink(LinkFault, FlowDirection?, milliseconds: Int)
    case controlLink(MatrixRole, LinkFault, FlowDirection?, milliseconds: Int)
    case disconnect(jobs: Int, atPiece: Int)
    case drain(MatrixRole, deadlineSeconds: Int)
    case scaleUp(MatrixRole)

    /// Its row in the matrix.
    var row: String {
        switch self {
        case .kill(let role, _): "kill -9 \(role)"
        case .killInTransfer(let role, _): "kill -9 \(role) in transfer"
        case .pause(let role, let milliseconds):
            "SIGSTOP \(role), \(milliseconds > MatrixPlan.deadAfterMs ? "2" : "0.5") x dead timer"
        case .coordinatorRestart: "coordinator kill -9 and restart"
        case .pageLink(let fault, let direction, _): "P-D \(Self.word(fault)) \(Self.word(direction))"
        case .controlLink(let role, let fault, let direction, _):
            "C-\(role == .decode ? "D" : "P") \(Self.word(fault)) \(Self.word(direction))"
        case .disconnect: "client disconnect"
        case .drain(let role, _): "drain \(role)"
        case .scaleUp(let role): "scale up \(role)"
        }
    }

    private static func word(_ fault: LinkFault) -> String {
        switch fault {
        case .none: "none"
        case .stall: "stall"
        case .slice: "slice"
        case .cutAfter: "cut"
        case .corrupt: "corrupt"
        case .delay: "delay"
        case .throttle: "throttle"
        }
    }

    private static func word(_ direction: FlowDirection?) -> String {
        switch direction {
        case .forward: "->"
        case .backward: "<-"
        case nil: "<->"
        }
    }

    /// Whether a process dies of it: two deaths under one job at one position make the job a poison.
    var isDeadly: Bool {
        switch self {
        case .kill, .killInTransfer: true
        case .pause, .coordinatorRestart, .pageLink, .controlLink, .disconnect, .drain, .scaleUp: false
        }
    }

    var restartsCoordinator: Bool {
        if case .coordinatorRestart = self { return true }
        return false
    }
}

struct MatrixRound: Sendable {
    /// Indices into the catalogue, in the order in which `clients` clients take them.
    var jobs: [Int]
    var clients: Int
    var faults: [(trigger: FaultTrigger, fault: MatrixFault)]
    /// All at once, each from its trigger on; else one after the other.
    var overlap: Bool
    /// A tenant of its own finds nothing cached; the shared one finds what earlier rounds left.
    var sharesCache: Bool
    var keyed: Bool
}

/// A cluster and what befalls it, drawn from one seed.
struct MatrixPlan: Sendable {
    var seed: UInt64
    var shape: TestCluster.Shape
    var rounds: [MatrixRound]

    static let deadAfterMs = 2000
    static let roundsPerCluster = 4

    init(seed: UInt64, rounds count: Int = Self.roundsPerCluster) {
        var draw = SplitMix(state: seed)
        self.seed = seed
        shape = Self.shape(&draw)
        rounds = (0..<count).map { _ in Self.round(&draw) }
    }

    var description: String {
        "prefill=\(shape.prefill) decode=\(shape.decode) mixed=\(shape.mixed) blocks=\(shape.blocks) "
            + (shape.coordinatorArguments + shape.workerArguments).joined(separator: " ")
    }

    private static func shape(_ draw: inout SplitMix) -> TestCluster.Shape {
        let prefill = Int.random(in: 1...2, using: &draw)
        let mixed = Int.random(in: 0..<5, using: &draw) == 0 ? 1 : 0
        let path = pick(["direct", "relay", "auto", "auto"], &draw)
        let chunk = pick(["16", "48", "256"], &draw)
        let batch = pick(["2", "32", "32"], &draw)
        let policy = pick(["fair-mlfq", "fair-mlfq", "fcfs"], &draw)
        let blocks = pick([40, 512, 512], &draw)
        return TestCluster.Shape(
            prefill: prefill, decode: 2, mixed: mixed,
            coordinatorArguments: ["--kv-path", path, "--policy", policy],
            workerArguments: ["--chunk-tokens", chunk, "--batch-jobs", batch], journal: true, blocks: blocks)
    }

    private static func round(_ draw: inout SplitMix) -> MatrixRound {
        let count = Int.random(in: 8...14, using: &draw)
        let jobs = (0..<count).map { _ in Int.random(in: 0..<MatrixJob.catalogue.count, using: &draw) }
        var faults = [(trigger(&draw), fault(&draw))]
        while faults.count < 3, Int.random(in: 0..<5, using: &draw) < 2 {
            let next = (trigger(&draw), fault(&draw))
            if !(next.1.isDeadly && faults.contains { $0.1.isDeadly }) { faults.append(next) }
        }
        let overlap = Int.random(in: 0..<3, using: &draw) > 0
        let sharesCache = Int.random(in: 0..<4, using: &draw) == 0
        let keyed = faults.contains { $0.1.restartsCoordinator } || Int.random(in: 0..<4, using: &draw) == 0
        return MatrixRound(
            jobs: jobs, clients: Int.random(in: 3...6, using: &draw),
            faults: faults.map { (trigger: $0.0, fault: $0.1) }, overlap: overlap, sharesCache: sharesCache,
            keyed: keyed)
    }

    private static func trigger(_ draw: inout SplitMix) -> FaultTrigger {
        Bool.random(using: &draw)
            ? .pieces(Int.random(in: 1...60, using: &draw)) : .milliseconds(Int.random(in: 0...300, using: &draw))
    }

    private static func fault(_ draw: inout SplitMix) -> MatrixFault {
        let role = pick(MatrixRole.allCases, &draw)
        let back = Int.random(in: 0...1500, using: &draw)
        switch Int.random(in: 0..<16, using: &draw) {
        case 0, 1: return .kill(role, backAfterMs: back)
        case 2, 3: return .killInTransfer(role, backAfterMs: back)
        case 4: return .pause(role, milliseconds: deadAfterMs / 2)
        case 5: return .pause(role, milliseconds: deadAfterMs * 2)
        case 6, 7: return .coordinatorRestart(downMs: back)
        case 8, 9, 10:
            return .pageLink(link(&draw, cutBytes: 400_000), direction(&draw), milliseconds: 500 + back * 2)
        case 11, 12, 13:
            return .controlLink(role, link(&draw, cutBytes: 3000), direction(&draw), milliseconds: 500 + back * 2)
        case 14:
            return Bool.random(using: &draw)
                ? .disconnect(
                    jobs: Int.random(in: 1...2, using: &draw), atPiece: Int.random(in: 1...12, using: &draw))
                : .scaleUp(role)
        default: return .drain(role, deadlineSeconds: Int.random(in: 0...2, using: &draw))
        }
    }

    private static func direction(_ draw: inout SplitMix) -> FlowDirection? {
        pick([.forward, .backward, nil], &draw)
    }

    private static func link(_ draw: inout SplitMix, cutBytes: Int) -> LinkFault {
        switch Int.random(in: 0..<6, using: &draw) {
        case 0: .stall
        case 1: .slice(bytesMax: Int.random(in: 1...200, using: &draw))
        case 2: .cutAfter(bytes: Int.random(in: 0...cutBytes, using: &draw))
        case 3: .corrupt(oneIn: Int.random(in: 200...40_000, using: &draw))
        case 4: .delay(milliseconds: Int.random(in: 1...60, using: &draw))
        default: .throttle(bytesPerSecond: Int.random(in: 2000...2_000_000, using: &draw))
        }
    }

    private static func pick<T>(_ choices: [T], _ draw: inout SplitMix) -> T {
        choices[Int.random(in: 0..<choices.count, using: &draw)]
    }
}
