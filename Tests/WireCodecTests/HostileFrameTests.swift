import CWire
import Messages
import ServingTypes
import Testing
import WireCodec

@Suite struct HostileFrameTests {
    @Test func everyTruncationWaitsForMore() throws {
        let codec = FrameCodec()
        var random = RandomMessages(seed: 11)
        for kind in FrameKind.allCases {
            let frame = try codec.encode(random.envelope(kind))
            for length in 0..<frame.count {
                var decoder = FrameDecoder(payloadBytesMax: WireLimits.slicePayloadBytesMax)
                frame[..<length].withUnsafeBytes { decoder.push($0) }
                #expect(try decoder.next() == nil, "\(kind) cut at \(length)")
            }
        }
    }

    @Test func aTruncatedHeaderWithARightChecksumIsMalformed() throws {
        let codec = FrameCodec()
        var random = RandomMessages(seed: 12)
        for kind in FrameKind.allCases where kind != .drainDone {
            let header = try codec.encode(random.envelope(kind)).dropFirst(FramePrefix.byteCount)
            for length in 0..<header.count {
                // A cut between two optional fields leaves a lawful message; anything else is refused.
                if let envelope = try? decode(kind, Array(header.prefix(length)), codec) {
                    #expect(FrameKind(of: envelope.message) == kind)
                }
            }
        }
    }

    @Test func noSingleFlippedBitPasses() throws {
        let codec = FrameCodec()
        var random = RandomMessages(seed: 13)
        for kind in FrameKind.allCases {
            let envelope = random.envelope(kind)
            let frame = try codec.encode(envelope) + payloadFor(envelope)
            let checked = frame.count - payloadFor(envelope).count
            for bit in 0..<8 * min(checked, 400) {
                var damaged = frame
                damaged[bit / 8] ^= 1 << (bit % 8)
                var decoder = FrameDecoder(payloadBytesMax: WireLimits.slicePayloadBytesMax)
                damaged.withUnsafeBytes { decoder.push($0) }
                // Either refused, or (a longer length) still waiting; never another message.
                let decoded = try? decoder.next()
                #expect(decoded == nil, "\(kind), bit \(bit)")
            }
        }
    }

    @Test func flippedBitsWithARightChecksumNeverTrap() throws {
        let codec = FrameCodec()
        var random = RandomMessages(seed: 14)
        var accepted = 0
        for kind in FrameKind.allCases {
            let header = Array(try codec.encode(random.envelope(kind)).dropFirst(FramePrefix.byteCount))
            for bit in 0..<8 * min(header.count, 300) {
                var damaged = header
                damaged[bit / 8] ^= 1 << (bit % 8)
                guard let envelope = try? decode(kind, damaged, codec) else { continue }
                accepted += 1
                // What is accepted is within every range, so it can be sent again.
                _ = try codec.encode(envelope)
            }
        }
        #expect(accepted > 0)
    }

    @Test func randomBytesNeverTrap() {
        let codec = FrameCodec()
        var generator = SeededGenerator(seed: 15)
        for round in 0..<3000 {
            let kind = FrameKind.allCases[round % FrameKind.allCases.count]
            let bytes = (0..<Int(generator.next() % 200)).map { _ in UInt8(truncatingIfNeeded: generator.next()) }
            _ = try? decode(kind, bytes, codec)
            var decoder = FrameDecoder()
            bytes.withUnsafeBytes { decoder.push($0) }
            _ = try? decoder.next()
        }
    }

    @Test func lengthsAreJudgedBeforeAnythingIsReadForThem() throws {
        let codec = FrameCodec()
        var random = RandomMessages(seed: 16)
        for kind in FrameKind.allCases {
            let frame = try codec.encode(random.envelope(kind))
            for shift in 0..<32 {
                var altered = frame
                let length = UInt32(1) << shift
                for index in 0..<4 { altered[8 + index] = UInt8(truncatingIfNeeded: length >> (8 * index)) }
                let refused = Int(length) > kind.headerBytesMax
                #expect(prefixIsRefused(altered) == refused, "\(kind), header length \(length)")
            }
            for shift in 0..<64 {
                var altered = frame
                let length = UInt64(1) << shift
                for index in 0..<8 { altered[16 + index] = UInt8(truncatingIfNeeded: length >> (8 * index)) }
                let refused = length > UInt64(kind.payloadBytesMax)
                #expect(prefixIsRefused(altered) == refused, "\(kind), payload length \(length)")
            }
        }
    }

    @Test func unpackingCannotTakeMoreMemoryThanItsShare() throws {
        // A list of empty parts: two bytes each on the wire, dozens when unpacked.
        let body = [UInt16](repeating: 0x001a, count: 4_000_000).withUnsafeBytes { Array($0) }
        let header =
            wireField(1, varint: 1) + wireField(2, bytes: [0x0a, 0x00, 0x11] + [UInt8](repeating: 0, count: 8))
        let steps = wireField(1, varint: 0) + wireField(2, varint: 0) + body
        let bytes = header + wireField(24, bytes: steps)
        #expect(throws: FrameError.unpackTooLarge(.tokenSteps, limit: WireLimits.unpackBytesMax)) {
            try decode(.tokenSteps, bytes, FrameCodec())
        }
    }

    @Test func theErrorSaysWhatIsWrong() throws {
        let codec = FrameCodec()
        let worker = WorkerRef(id: WorkerID("w"), epoch: Epoch(1))
        let frame = try codec.encode(Envelope(sequence: 0, sender: worker, message: .drainDone(DrainDone())))
        #expect(refusal(of: frame, at: 0, becomes: 0) == .badMagic(0x4400))
        #expect(refusal(of: frame, at: 2, becomes: 9) == .badVersion(9))
        #expect(refusal(of: frame, at: 3, becomes: 200) == .unknownKind(200))
        #expect(refusal(of: frame, at: 4, becomes: 1) == .reservedBits)
        #expect(refusal(of: frame, at: 12, becomes: frame[12] ^ 1) == .headerChecksum(.drainDone))
        #expect(refusal(of: frame, at: 3, becomes: FrameKind.cancel.rawValue) == .malformed(.cancel, field: "body"))
        #expect(
            refusal(of: frame, at: 16, becomes: 1) == .payloadTooLarge(.drainDone, bytes: 1, limit: 0))
        let error = FrameError.headerTooLarge(.hello, bytes: 70_000, limit: 65_536)
        #expect(error.description == "The header of a hello frame has 70000 bytes; at most 65536 are accepted.")
        #expect(error.servingError.blast == .link)
    }

    @Test func textThatIsNotUTF8IsRefused() {
        let sender = wireField(1, bytes: [0xff, 0xfe]) + [0x11] + [UInt8](repeating: 0, count: 8)
        let bytes = wireField(1, varint: 1) + wireField(2, bytes: sender) + wireField(17, bytes: [])
        #expect(throws: FrameError.malformed(.drainDone, field: "envelope.sender")) {
            try decode(.drainDone, bytes, FrameCodec())
        }
    }

    @Test func unknownEnumerationValuesAreRefused() {
        let transfer = [0x09] + [UInt8](repeating: 0, count: 8) + [0x11] + [UInt8](repeating: 0, count: 8) + [0x18, 1]
        let sender = wireField(1, bytes: [0x77]) + [0x11] + [UInt8](repeating: 0, count: 8)
        for reason in [0, 7, 99, 1 << 20] {
            let cancel = wireField(1, bytes: transfer) + wireField(2, varint: UInt64(reason))
            let bytes = wireField(1, varint: 1) + wireField(2, bytes: sender) + wireField(40, bytes: cancel)
            #expect(throws: FrameError.malformed(.cancel, field: "reason")) {
                try decode(.cancel, bytes, FrameCodec())
            }
        }
    }
}

/// Decodes a header whose prefix is made to fit it.
@discardableResult
func decode(_ kind: FrameKind, _ header: [UInt8], _ codec: FrameCodec) throws -> Envelope {
    let crc = header.withUnsafeBytes { CRC32C.checksum($0) }
    let prefix = FramePrefix(kind: kind, headerBytes: header.count, headerCRC: crc, payloadBytes: 0)
    return try header.withUnsafeBytes { try codec.decodeHeader(prefix, $0) }
}

private func prefixIsRefused(_ frame: [UInt8]) -> Bool {
    frame.withUnsafeBytes { bytes in (try? FramePrefix(parsing: bytes)) == nil }
}

private func refusal(of frame: [UInt8], at index: Int, becomes byte: UInt8) -> FrameError? {
    var altered = frame
    altered[index] = byte
    var decoder = FrameDecoder()
    altered.withUnsafeBytes { decoder.push($0) }
    do {
        _ = try decoder.next()
        return nil
    } catch { return error }
}

/// One field of the protobuf encoding, by hand.
func wireField(_ number: UInt64, varint value: UInt64) -> [UInt8] { varint(number << 3) + varint(value) }
func wireField(_ number: UInt64, bytes: [UInt8]) -> [UInt8] {
    varint(number << 3 | 2) + varint(UInt64(bytes.count)) + bytes
}

private func varint(_ value: UInt64) -> [UInt8] {
    var rest = value
    var bytes: [UInt8] = []
    while rest >= 0x80 {
        bytes.append(UInt8(rest & 0x7f) | 0x80)
        rest >>= 7
    }
    return bytes + [UInt8(rest)]
}
