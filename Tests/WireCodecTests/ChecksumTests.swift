import CWire
import Testing
import WireCodec

@Suite struct ChecksumTests {
    /// RFC 3720 appendix B.4.
    @Test func theRFCsExamplesHold() {
        #expect(checksum([UInt8](repeating: 0, count: 32)) == 0x8a91_36aa)
        #expect(checksum([UInt8](repeating: 0xff, count: 32)) == 0x62a8_ab43)
        #expect(checksum((0..<32).map { UInt8($0) }) == 0x46dd_794e)
        #expect(checksum((0..<32).map { UInt8(31 - $0) }) == 0x113f_db5c)
        #expect(checksum(Array("123456789".utf8)) == 0xe306_9283)
    }

    @Test func theInstructionAndTheTablesAgree() {
        var generator = SeededGenerator(seed: 21)
        let bytes = (0..<70_000).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
        for _ in 0..<200 {
            let start = Int(generator.next() % 100)
            let count = Int(generator.next() % UInt64(generator.next() % 2 == 0 ? 1000 : 69_000))
            let seed = UInt32(truncatingIfNeeded: generator.next())
            bytes.withUnsafeBytes { all in
                let part = UnsafeRawBufferPointer(rebasing: all[start..<start + count])
                let expected = tandem_crc32c_portable(seed, part.baseAddress, part.count)
                #expect(CRC32C.checksum(part, seed: seed) == expected, "start \(start), count \(count)")
            }
        }
    }

    @Test func theChecksumOfAWholeIsCombinedFromItsParts() {
        var generator = SeededGenerator(seed: 22)
        let bytes = (0..<5000).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
        for cut in [0, 1, 7, 256, 4096, 4999, 5000] {
            let a = checksum(Array(bytes[..<cut]))
            let b = checksum(Array(bytes[cut...]))
            #expect(CRC32C.combine(a, b, count: bytes.count - cut) == checksum(bytes), "cut \(cut)")
        }
    }

    @Test func noBytesChangeNothing() {
        #expect(CRC32C.checksum(UnsafeRawBufferPointer(start: nil, count: 0), seed: 77) == 77)
        #expect(CRC32C.combine(77, 0, count: 0) == 77)
    }
}

private func checksum(_ bytes: [UInt8]) -> UInt32 { bytes.withUnsafeBytes { CRC32C.checksum($0) } }
