/// What the machine of a local cluster does beside the workers' iterations.
struct HostLoad {
    /// Seconds of processor time not long ago, forgotten at this rate.
    private var work = 0.0
    private var at: Int64 = 0
    private static let memorySeconds = 0.05
    private var paceUntil: Int64 = 0
    private var drawn = 1.0

    /// Work that came up now.
    mutating func add(_ seconds: Double, at now: Int64) {
        guard seconds > 0 else { return }
        work = decayed(at: now) + seconds
        at = now
    }

    private func decayed(at now: Int64) -> Double {
        work * Draws.exponential(-Double(now - at) / 1e9 / Self.memorySeconds)
    }

    /// Processors that it keeps busy.
    func load(at now: Int64) -> Double { work > 0 ? decayed(at: now) / Self.memorySeconds : 0 }

    /// The machine's own pace, which holds for a while.
    mutating func pace(at now: Int64, _ profile: CostProfile, _ random: inout SimulationRandom) -> Double {
        guard !profile.paceVariation.isEmpty else { return 1 }
        if now >= paceUntil {
            paceUntil = now + CostProfile.paceSpan.nanoseconds
            drawn = CostProfile.draw(profile.paceVariation, &random)
        }
        return drawn
    }
}

extension HostLoad {
    /// Tokens' worth of work that a request's arrival and its end are.
    static let tokensPerEdge = 5.0
}
