import KVPaging
import ServingTypes

/// SplitMix64: the whole run follows from its seed.
struct SeededGenerator: RandomNumberGenerator {
    private var state: UInt64

    init(seed: UInt64) { state = seed &* 0x9E37_79B9_7F4A_7C15 &+ 0x1234_5678_9ABC_DEF1 }

    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }

    mutating func below(_ bound: Int) -> Int { bound <= 0 ? 0 : Int(next() % UInt64(bound)) }
    mutating func within(_ range: ClosedRange<Int>) -> Int { range.lowerBound + below(range.count) }
    mutating func chance(_ percent: Int) -> Bool { below(100) < percent }
}

func mix(_ a: UInt64, _ b: UInt64) -> UInt64 {
    var z = (a ^ (b &* 0x9E37_79B9_7F4A_7C15)) &+ 0x2545_F491_4F6C_DD1D
    z = (z ^ (z >> 29)) &* 0xBF58_476D_1CE4_E5B9
    return z ^ (z >> 32)
}

/// Names pages by a hash chain; as good as SHA-256 for tests.
struct HashNaming: PageNaming {
    func root(tenant: TenantID) -> PageID {
        let hash = tenant.name.utf8.reduce(7) { mix($0, UInt64($1)) }
        return PageID(hash, 1, 2, 3)
    }

    func child(of parent: PageID, tokens: ArraySlice<TokenID>) -> PageID {
        let hash = tokens.reduce(mix(parent.words.0, parent.words.1)) { mix($0, UInt64($1.value)) }
        return PageID(hash, parent.words.0, UInt64(tokens.count), 3)
    }
}

/// A "model" whose keys and values at a position depend on all tokens up to it, and whose next
/// token depends on the keys and values of every position: one wrong page spoils the stream.
struct FakeEngine {
    let blockTokens: Int
    private(set) var pages: [[UInt64]]

    init(blockCount: Int, blockTokens: Int) {
        self.blockTokens = blockTokens
        pages = Array(repeating: Array(repeating: 0xDEAD, count: blockTokens), count: blockCount)
    }

    static let vocabulary: UInt64 = 61

    static func value(_ token: TokenID, _ position: Int, after previous: UInt64) -> UInt64 {
        mix(mix(previous, UInt64(token.value)), UInt64(position))
    }

    /// What a job alone brings forth, without any paging.
    static func output(of prompt: [TokenID], _ sampling: SamplingParameters) -> [TokenID] {
        var values: UInt64 = 0
        var fold: UInt64 = 1
        for (position, token) in prompt.enumerated() {
            values = value(token, position, after: values)
            fold = mix(fold, values)
        }
        var output: [TokenID] = []
        while output.count < sampling.maxTokens {
            let token = TokenID(UInt32(fold % vocabulary))
            output.append(token)
            if sampling.stopTokens.contains(token) { break }
            values = value(token, prompt.count + output.count - 1, after: values)
            fold = mix(fold, values)
        }
        return output
    }

    private func read(_ position: Int, _ table: [BlockSlot]) -> UInt64 {
        pages[Int(table[position / blockTokens].index)][position % blockTokens]
    }

    mutating func run(_ batch: StepBatch) -> StepResult {
        var outcomes: [StepOutcome] = []
        for entry in batch.entries {
            guard !entry.tokens.isEmpty else {
                outcomes.append(.failed(ServingError(.internalError, "\(entry.transfer) has no token to compute")))
                continue
            }
            for (index, token) in entry.tokens.enumerated() {
                let position = entry.startPosition + index
                let previous = position == 0 ? 0 : read(position - 1, entry.blockTable)
                pages[Int(entry.blockTable[position / blockTokens].index)][position % blockTokens] =
                    Self.value(token, position, after: previous)
            }
            if entry.sample == nil {
                outcomes.append(.extended)
            } else {
                var fold: UInt64 = 1
                for position in 0..<entry.startPosition + entry.tokens.count {
                    fold = mix(fold, read(position, entry.blockTable))
                }
                outcomes.append(.sampled(SampledToken(token: TokenID(UInt32(fold % Self.vocabulary)))))
            }
        }
        return StepResult(outcomes: outcomes, computeTime: .milliseconds(1))
    }

    mutating func write(_ page: [UInt64], to slot: BlockSlot) { pages[Int(slot.index)] = page }

    static func crc(of page: [UInt64]) -> UInt32 { UInt32(truncatingIfNeeded: page.reduce(5, mix)) }
}
