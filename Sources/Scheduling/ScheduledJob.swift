import ServingTypes

/// A job as the policy sees it.
public struct ScheduledJob: Hashable, Sendable {
    public var job: JobID
    public var tenant: TenantID
    /// Inside a tenant, lower first, strictly; policies that do not separate tenants ignore it, and
    /// so they do `due`.
    public var priority: Int
    /// Of the first iteration, from the cost model; decides the entry level and stands for the prompt.
    public var predictedPrefill: TimeSpan
    /// By when the client would like its first token. Inside a tenant and a priority, jobs without a
    /// token whose due instant lies ahead go first, the earliest due first; one that has passed is
    /// forgotten, so that a late job does not make the others late.
    public var due: Instant?
    /// Of one token, from the cost model; nil takes `defaultTokenTime`.
    public var predictedToken: TimeSpan?
    /// A guess of the output tokens; nil takes what the tenant's last jobs had.
    public var predictedOutput: Int?
    /// The most output tokens that it may have.
    public var outputMax: Int?
    /// The true number of output tokens, for clairvoyant policies in simulations.
    public var knownOutput: Int?
    /// Output tokens that it has had already, before this coordinator knew it.
    public var produced: Int
    /// Tokens of its prompt: outputs are learned by classes of them. Nil where nobody says.
    public var promptTokens: Int?

    public static let defaultTokenTime = TimeSpan.milliseconds(25)

    public init(
        job: JobID, tenant: TenantID, priority: Int, predictedPrefill: TimeSpan, due: Instant? = nil,
        predictedToken: TimeSpan? = nil, predictedOutput: Int? = nil, outputMax: Int? = nil, knownOutput: Int? = nil,
        produced: Int = 0, promptTokens: Int? = nil
    ) {
        self.job = job
        self.tenant = tenant
        self.priority = priority
        self.predictedPrefill = predictedPrefill
        self.due = due
        self.predictedToken = predictedToken
        self.predictedOutput = predictedOutput
        self.outputMax = outputMax
        self.knownOutput = knownOutput
        self.produced = produced
        self.promptTokens = promptTokens
    }
}

/// Order inside a pool: the client's priority, the due instant of a job without a token, what the
/// inner discipline says, then place.
struct Rank: Comparable, Sendable {
    var priority: Int
    var due: Int64
    var value: Int64
    var place: Int64

    static func < (a: Rank, b: Rank) -> Bool {
        if a.priority != b.priority { return a.priority < b.priority }
        if a.due != b.due { return a.due < b.due }
        if a.value != b.value { return a.value < b.value }
        return a.place < b.place
    }

    static let last = Rank(priority: .max, due: .max, value: .max, place: .max)
}

/// What the policy remembers of a job. It lies in a table by number, which heaps refer to.
struct Entry: Sendable {
    var job: JobID
    var tenant: Int32
    var state: State
    /// Has waited for `promotionAge` in one stretch.
    var hasAged = false
    /// Its charge was made ahead (`LengthCharge`).
    var isPrepaid = false
    var level: Int32 = 0
    var produced: Int32
    /// `produced` on arrival, and tokens charged ahead from there on.
    var base: Int32
    var prepaid: Int32 = 0
    var predictedOutput: Int32
    var knownOutput: Int32
    /// The most output tokens that it may have; -1 where nobody says.
    var outputMax: Int32 = -1
    /// Tokens of its prompt; -1 where nobody says.
    var promptTokens: Int32 = -1
    /// Class of its prompt among the lengths that are learned.
    var promptClass: Int8 = 0
    var priority: Int
    /// Place by arrival; never changes.
    var arrival: Int64
    /// Place inside the level.
    var place: Int64
    /// Nanoseconds of service on this level.
    var attained: Int64 = 0
    /// Nanoseconds that the prompt and one token are expected to take.
    var prefillTime: Int64
    var tokenTime: Int64
    var due: Int64
    /// Since when it has not run.
    var waitingSince: Instant

    enum State: UInt8, Sendable {
        /// In the queue.
        case waiting
        /// Out of the queue for a while.
        case withdrawn
        /// Out of it until the tenant's limit of requests lets it in.
        case throttled
        /// On its way to where it runs.
        case placed
        case running
        case paused
    }
}

/// Waiting jobs that are ordered by the inner discipline: one tenant's, or all.
struct Pool: Sendable {
    /// By class of attained tokens and of prompt under the Gittins index, whose rank then is the class's and moves
    /// with the table without a job being touched; one bin under every other discipline.
    private var bins: [SlotHeap<Rank>] = []
    private var occupied: [UInt64] = []
    private(set) var byArrival = SlotHeap<Int64>()
    private(set) var count = 0
    /// Dispatches so far, the clock of the promotion budget.
    var picks = 0
    var lengths: LengthTables?

    var isEmpty: Bool { count == 0 }

    mutating func set(_ slot: Int32, bin: Int, _ rank: Rank, _ positions: inout ContiguousArray<Int32>) {
        while bins.count <= bin { bins.append(SlotHeap()) }
        while occupied.count <= bin / 64 { occupied.append(0) }
        if positions[Int(slot)] == SlotHeap<Rank>.absent { count += 1 }
        bins[bin].set(slot, to: rank, &positions)
        occupied[bin / 64] |= 1 << UInt64(bin % 64)
    }

    mutating func remove(_ slot: Int32, bin: Int, _ positions: inout ContiguousArray<Int32>) {
        guard bin < bins.count, positions[Int(slot)] != SlotHeap<Rank>.absent else { return }
        bins[bin].remove(slot, &positions)
        count -= 1
        if bins[bin].isEmpty { occupied[bin / 64] &= ~(1 << UInt64(bin % 64)) }
    }

    mutating func setArrival(_ slot: Int32, _ arrival: Int64, _ positions: inout ContiguousArray<Int32>) {
        byArrival.set(slot, to: arrival, &positions)
    }

    mutating func removeArrival(_ slot: Int32, _ positions: inout ContiguousArray<Int32>) {
        byArrival.remove(slot, &positions)
    }

    /// The first of all bins; `lift` says what a bin adds to its jobs' values.
    func best(_ lift: (Int) -> Int64) -> Int32? {
        var (best, least) = (Int32?.none, Rank.last)
        for word in occupied.indices {
            var left = occupied[word]
            while left != 0 {
                let bin = 64 * word + left.trailingZeroBitCount
                left &= left - 1
                guard var rank = bins[bin].firstKey else { continue }
                rank.value = rank.value.addingClamped(lift(bin))
                if best == nil || rank < least { (best, least) = (bins[bin].first, rank) }
            }
        }
        return best
    }

    /// Numbers of all jobs, in no order that means anything.
    var unordered: [Int32] { bins.flatMap(\.unordered) }
}
