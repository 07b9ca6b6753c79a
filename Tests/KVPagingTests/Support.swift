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
}

/// Names pages by a polynomial of their tokens; as good as SHA-256 for tests.
struct SumNaming: PageNaming {
    func root(tenant: TenantID) -> PageID { PageID(tenant.name.utf8.reduce(7) { $0 &* 31 &+ UInt64($1) }, 0, 0, 0) }

    func child(of parent: PageID, tokens: ArraySlice<TokenID>) -> PageID {
        PageID(tokens.reduce(parent.words.0 &* 131) { $0 &* 1_000_003 &+ UInt64($1.value) &+ 1 }, parent.words.0, 1, 1)
    }
}

func tokens(_ values: some Sequence<Int>) -> [TokenID] { values.map { TokenID(UInt32($0)) } }

let tenant = TenantID("t")

func page(_ number: Int) -> PageID { PageID(UInt64(number), 0, 0, 0) }
