import CoordinatorCore
import Messages
import ServingTypes

/// The memory rule of LightLLM, under which VTC was published (scheduling.md §3.4): a request enters
/// when the batch, were every job in it to run to its true end, would at its fullest moment still
/// fit. The true output length is known, since its clients forced it. For one engine.
///
/// Unchecked because a rule belongs to one run, and a run is one thread's from its first event to its last.
public final class PeakReservation: RoomRule, @unchecked Sendable {
    private struct Share {
        /// Tokens held now, and output tokens still to come.
        var held: Int
        var left: Int
        var hasBegun = false

        /// As LightLLM counts: the first output token has its place from the start, and the last one, which
        /// is read by nobody, none.
        var counted: Share { Share(held: hasBegun ? held : held + 1, left: max(left - 1, 0)) }
    }

    private struct State {
        /// Drawn lengths of the jobs that have come.
        var known: [JobID: Share] = [:]
        var running: [JobID: Share] = [:]
    }

    public let tokensMax: Int
    public let jobsMax: Int
    private var state = State()

    public init(tokensMax: Int, jobsMax: Int = 1000) {
        self.tokensMax = tokensMax
        self.jobsMax = jobsMax
    }

    public func admits(_ job: JobID, on worker: WorkerRef) -> Bool {
        if state.running[job] != nil { return true }
        guard let share = state.known[job] else { return false }
        let shares = state.running.values.map(\.counted) + [share.counted]
        guard shares.count <= jobsMax, Self.peak(shares) < tokensMax else { return false }
        state.running[job] = share
        return true
    }

    /// Tokens held at the fullest moment: when the i-th longest of the jobs ends, the longer ones
    /// have all grown as much as it has.
    private static func peak(_ shares: [Share]) -> Int {
        var (held, peak) = (0, 0)
        for (index, share) in shares.sorted(by: { ($0.left, $0.held) > ($1.left, $1.held) }).enumerated() {
            held += share.held
            peak = max(peak, held + share.left * (index + 1))
        }
        return peak
    }

    // MARK: What happens to jobs

    func arrived(_ job: JobID, input: Int, output: Int) {
        state.known[job] = Share(held: input, left: output)
    }

    /// An iteration's tokens and endings, before the coordinator places anybody because of them.
    func heard(_ message: TokenSteps) {
        for step in message.steps {
            gave(step.transfer.job, tokens: step.tokens.count)
            if step.end != nil { left(step.transfer.job) }
        }
    }

    func gave(_ job: JobID, tokens: Int) {
        state.running[job]?.held += tokens
        state.running[job]?.left -= tokens
        state.running[job]?.hasBegun = true
    }

    func left(_ job: JobID) {
        state.running[job] = nil
        state.known[job] = nil
    }
}
