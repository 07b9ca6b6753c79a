import CKernels
import Testing

struct ChecksumTests {
    private func sum(_ bytes: [UInt8]) -> UInt64 {
        bytes.withUnsafeBytes { $0.baseAddress.map { base in tk_checksum(base, bytes.count) } ?? 0 }
    }

    private func bytes(_ count: Int, seed: UInt64) -> [UInt8] {
        var state = seed
        return (0..<count).map { _ in
            state = state &* 6_364_136_223_846_793_005 &+ 1_442_695_040_888_963_407
            return UInt8(truncatingIfNeeded: state >> 56)
        }
    }

    @Test func everyInstructionSetGivesThePlainSum() {
        for (seed, count) in [0, 1, 7, 63, 64, 65, 1023, 1024, 1025, 4096, 10_007].enumerated() {
            let data = bytes(count + 9, seed: UInt64(seed))
            data.withUnsafeBytes { buffer in
                guard let base = buffer.baseAddress else { return }
                for offset in [0, 1, 8] {
                    #expect(
                        tk_checksum(base + offset, count) == tk_checksum_scalar(base + offset, count),
                        "\(count) bytes from \(offset), seed \(seed)")
                }
            }
        }
    }

    /// The definition is part of files: it must not change unnoticed.
    @Test func sumsAreWhatTheyWere() {
        #expect(sum(bytes(3000, seed: 5)) == 2_768_586_995_956_982_555)
    }

    @Test func aFlippedBitAndAnExchangeAreNoticed() {
        let data = bytes(5000, seed: 11)
        let right = sum(data)
        for place in stride(from: 0, to: data.count, by: 61) {
            var other = data
            other[place] ^= 1 << UInt8(place % 8)
            #expect(sum(other) != right, "bit of byte \(place)")
        }
        for (a, b) in [(0, 64), (64, 1024), (0, 1024), (128, 2176)] {
            var other = data
            for i in 0..<64 { other.swapAt(a + i, b + i) }
            #expect(sum(other) != right, "stripes at \(a) and \(b)")
        }
        #expect(sum(data + [0]) != right)
        #expect(sum(Array(data.dropLast())) != right)
        #expect(sum([UInt8](repeating: 0, count: 64)) != sum([UInt8](repeating: 0, count: 128)))
    }
}
