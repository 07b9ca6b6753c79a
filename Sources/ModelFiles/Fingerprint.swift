import ServingTypes

/// A 256-bit fingerprint of data that nobody forges: it tells two models apart by accident, not by
/// malice. Four lanes of a 64-bit multiply-and-rotate mix (the constants are xxHash's primes), mixed
/// across once per 32 bytes and at the end. No security hash: whoever can choose both inputs can
/// make them collide.
struct Fingerprint {
    private var lanes: (UInt64, UInt64, UInt64, UInt64)
    private var absorbedBytes: UInt64 = 0

    private static let primes: (UInt64, UInt64, UInt64, UInt64) = (
        0x9E37_79B1_85EB_CA87, 0xC2B2_AE3D_27D4_EB4F, 0x1656_67B1_9E37_79F9, 0x85EB_CA77_C2B2_AE63
    )

    init() {
        lanes = (Self.primes.0, Self.primes.1, Self.primes.2, Self.primes.3)
    }

    /// Absorbs a length and the bytes, so that neighbouring fields cannot trade bytes unnoticed.
    mutating func add(_ bytes: UnsafeRawBufferPointer) {
        add(UInt64(bytes.count))
        var place = 0
        while place + 32 <= bytes.count {
            absorb(
                Self.word(bytes, place), Self.word(bytes, place + 8), Self.word(bytes, place + 16),
                Self.word(bytes, place + 24))
            place += 32
        }
        if place < bytes.count {
            var rest: [UInt64] = [0, 0, 0, 0]
            for (index, byte) in bytes[place...].enumerated() {
                rest[index / 8] |= UInt64(byte) << UInt64(index % 8 * 8)
            }
            absorb(rest[0], rest[1], rest[2], rest[3])
        }
        absorbedBytes &+= UInt64(bytes.count)
    }

    mutating func add(_ bytes: [UInt8]) { bytes.withUnsafeBytes { add($0) } }

    mutating func add(_ text: String) { add([UInt8](text.utf8)) }

    mutating func add(_ value: UInt64) { absorb(value, 1, 2, 3) }

    /// Bytes at the start of a tensor, and of each window inside it, that `addSamples` reads.
    private static let headSampleBytes = 4096
    private static let windowSampleBytes = 256
    private static let windowCount = 16

    /// Absorbs the start of a tensor's bytes and windows spread over the rest.
    mutating func addSamples(_ bytes: UnsafeRawBufferPointer) {
        add(UnsafeRawBufferPointer(rebasing: bytes.prefix(Self.headSampleBytes)))
        guard bytes.count > Self.headSampleBytes else { return }
        let stride = (bytes.count - Self.windowSampleBytes) / Self.windowCount
        for window in 1...Self.windowCount {
            let start = window * stride
            add(UnsafeRawBufferPointer(rebasing: bytes[start..<start + Self.windowSampleBytes]))
        }
    }

    /// The fingerprint of everything added so far.
    func finished() -> PageID {
        var copy = self
        for round in 0..<4 { copy.absorb(copy.absorbedBytes, UInt64(round), copy.lanes.0, copy.lanes.2) }
        let (a, b, c, d) = copy.lanes
        return PageID(Self.avalanche(a), Self.avalanche(b), Self.avalanche(c), Self.avalanche(d))
    }

    private static func word(_ bytes: UnsafeRawBufferPointer, _ place: Int) -> UInt64 {
        UInt64(littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: UInt64.self))
    }

    private mutating func absorb(_ a: UInt64, _ b: UInt64, _ c: UInt64, _ d: UInt64) {
        let p = Self.primes
        let x = Self.turn((lanes.0 ^ a) &* p.0, 29)
        let y = Self.turn((lanes.1 ^ b) &* p.1, 31)
        let z = Self.turn((lanes.2 ^ c) &* p.2, 33)
        let w = Self.turn((lanes.3 ^ d) &* p.3, 27)
        lanes = (x &+ Self.turn(w, 17), y &+ Self.turn(x, 19), z &+ Self.turn(y, 23), w &+ Self.turn(z, 13))
    }

    private static func turn(_ value: UInt64, _ count: UInt64) -> UInt64 { value << count | value >> (64 - count) }

    private static func avalanche(_ value: UInt64) -> UInt64 {
        var x = value
        x = (x ^ (x >> 33)) &* 0xFF51_AFD7_ED55_8CCD
        x = (x ^ (x >> 33)) &* 0xC4CE_B9FE_1A85_EC53
        return x ^ (x >> 33)
    }
}

extension PageID {
    /// All 256 bits, for a `SourceIdentity`.
    var fact: String { "content \(words.0) \(words.1) \(words.2) \(words.3)" }
}
