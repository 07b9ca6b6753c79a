/// What is known of the output lengths of one pool, and the Gittins rank of a job by the tokens that
/// it has had. A bounded histogram of completed lengths whose weights decay; the ranks are computed
/// anew after every so many completions, in O(steps²), so a lookup is O(1) and a completion is
/// amortised O(1). Integers throughout: the same completions give the same ranks everywhere.
struct LengthTable: Sendable {
    /// Classes of length: exact up to 8 tokens, a quarter octave from there on.
    static let steps = 64
    /// Weight of one completion, and ranks' share of one token.
    private static let one: Int64 = 1 << 10
    static let unitsPerToken: Int64 = 256
    /// Longest length that is told from longer ones: the least of the last class.
    static let lengthMax = lowest(steps - 1)

    private var weights = [Int64](repeating: 0, count: steps)
    /// Weight times length.
    private var sums = [Int64](repeating: 0, count: steps)
    /// Rank by class of the next token, in units; empty before the first build.
    private var ranks: [Int64] = []
    private(set) var samples = 0
    private var sinceBuild = 0

    var isBuilt: Bool { !ranks.isEmpty }

    /// Class of a length.
    static func step(of length: Int) -> Int {
        guard length >= 4 else { return max(length, 0) }
        let octave = Int.bitWidth - 1 - length.leadingZeroBitCount
        let quarter = (length >> (octave - 2)) & 3
        return min(4 + (octave - 2) * 4 + quarter, steps - 1)
    }

    /// The least length of a class.
    static func lowest(_ step: Int) -> Int {
        guard step >= 4 else { return max(step, 0) }
        return (4 + (step - 4) % 4) << ((step - 4) / 4)
    }

    /// Class of a job that has had `tokens`: that of its next one, so that every sample of the class
    /// and beyond is a length that it may still have.
    static func step(after tokens: Int) -> Int { step(of: max(tokens, 0) + 1) }

    /// Remaining tokens in the sense of Gittins, in units; nil before the first build.
    func rank(ofStep step: Int) -> Int64? {
        ranks.isEmpty ? nil : ranks[min(max(step, 0), Self.steps - 1)]
    }

    /// A job of the pool was completed with this many tokens.
    mutating func add(_ length: Int, _ configuration: PolicyConfiguration) {
        guard length > 0 else { return }
        let step = Self.step(of: length)
        weights[step] += Self.one
        sums[step] += Self.one * Int64(min(length, Self.lengthMax))
        samples += 1
        sinceBuild += 1
        let due = isBuilt ? configuration.rebuildCompletions : configuration.samplesMin
        if sinceBuild >= max(due, 1) { build(decayShift: configuration.decayShift) }
    }

    private mutating func build(decayShift: Int) {
        sinceBuild = 0
        let ranks = (0..<Self.steps).map(rank(from:))
        self.ranks = ranks
        let shift = Int64(min(max(decayShift, 0), 32))
        for step in 0..<Self.steps where shift > 0 {
            weights[step] -= weights[step] >> shift
            sums[step] -= sums[step] >> shift
            if weights[step] < Self.one >> 4 { (weights[step], sums[step]) = (0, 0) }
        }
    }

    /// min over d of E[min(S - a, d) | S > a] / P(S <= a + d | S > a), with a + d at the mean of each
    /// class. A job that has outlived every sample is taken to be half done.
    private func rank(from first: Int) -> Int64 {
        let attained = Int64(Self.lowest(first)) - 1
        var left = weights[first...].reduce(0, +)
        guard left > 0 else { return max(attained, 1) * Self.unitsPerToken }
        var (ended, spent) = (Int64(0), Int64(0))
        var best = Int64.max
        for step in first..<Self.steps where weights[step] > 0 {
            let reach = max(sums[step] / weights[step], Int64(Self.lowest(step))) - attained
            ended += weights[step]
            left -= weights[step]
            spent += reach * weights[step]
            let cost = spent + left * reach
            best = min(best, cost.multipliedClamped(by: Self.unitsPerToken) / ended)
        }
        return max(best, 1)
    }
}

/// Completed lengths of one pool: of all its jobs, and by class of prompt, since short prompts tend to be answered
/// shortly.
struct LengthTables: Sendable {
    /// Classes of prompts, the last for those of unknown length.
    static let promptClasses = 9
    private static let promptBounds = [4, 8, 16, 32, 128, 512, 2048]
    /// Completions before a class is told from the rest.
    static let classSamplesMin = 8

    private(set) var all = LengthTable()
    /// As far as there have been completions.
    private var byPrompt: [LengthTable] = []

    static func promptClass(ofTokens tokens: Int?) -> Int {
        guard let tokens else { return promptClasses - 1 }
        return promptBounds.firstIndex { tokens < $0 } ?? promptBounds.count
    }

    func rank(ofStep step: Int, promptClass: Int) -> Int64? {
        byPrompt.indices.contains(promptClass) ? byPrompt[promptClass].rank(ofStep: step) : nil
    }

    mutating func add(_ length: Int, promptClass: Int, _ configuration: PolicyConfiguration) {
        all.add(length, configuration)
        guard (0..<Self.promptClasses - 1).contains(promptClass) else { return }
        while byPrompt.count <= promptClass { byPrompt.append(LengthTable()) }
        var eager = configuration
        eager.samplesMin = min(configuration.samplesMin, Self.classSamplesMin)
        eager.rebuildCompletions = min(configuration.rebuildCompletions, 2 * Self.classSamplesMin)
        byPrompt[promptClass].add(length, eager)
    }
}

extension Int64 {
    func multipliedClamped(by other: Int64) -> Int64 {
        let (product, overflow) = multipliedReportingOverflow(by: other)
        return overflow ? ((self > 0) == (other > 0) ? .max : -.max) : product
    }

    /// Saturates symmetrically, so that the result can be negated.
    func addingClamped(_ other: Int64) -> Int64 {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? (other > 0 ? .max : -.max) : Swift.max(sum, -.max)
    }
}
