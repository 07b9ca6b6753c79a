import CWire
import Messages
import ServingTypes
import Testing
import WireCodec

@Suite struct FrameRoundTripTests {
    @Test func everyKindComesBackAsItWent() throws {
        let codec = FrameCodec()
        var decoder = FrameDecoder(payloadBytesMax: WireLimits.slicePayloadBytesMax)
        for seed in 1...60 as ClosedRange<UInt64> {
            var random = RandomMessages(seed: seed)
            for kind in FrameKind.allCases {
                let envelope = random.envelope(kind)
                let payload = payloadFor(envelope)
                (try codec.encode(envelope) + payload).withUnsafeBytes { decoder.push($0) }
                let frame = try #require(try decoder.next(), "seed \(seed), \(kind)")
                #expect(frame.envelope == envelope, "seed \(seed), \(kind)")
                #expect(frame.payload == payload, "seed \(seed), \(kind)")
            }
        }
    }

    @Test func framesComeOutWhereverTheStreamIsCut() throws {
        let codec = FrameCodec()
        var random = RandomMessages(seed: 7)
        let sent = FrameKind.allCases.map { random.envelope($0) }
        let bytes = try sent.flatMap { try codec.encode($0) + payloadFor($0) }
        for step in [1, 2, 23, 24, 25, 1000] {
            var decoder = FrameDecoder(payloadBytesMax: WireLimits.slicePayloadBytesMax)
            var received: [Envelope] = []
            for start in stride(from: 0, to: bytes.count, by: step) {
                bytes[start..<min(start + step, bytes.count)].withUnsafeBytes { decoder.push($0) }
                while let frame = try decoder.next() { received.append(frame.envelope) }
            }
            #expect(received == sent, "step \(step)")
        }
    }

    @Test func aLongPromptFitsInOneFrame() throws {
        var random = RandomMessages(seed: 3)
        var message = random.assignPrefill()
        message.tokens = (0..<200_000).map { TokenID($0) }
        message.pageIDs = (0..<12_500).map { PageID($0, 1, 2, 3) }
        let envelope = Envelope(sequence: 1, sender: random.worker(), message: .assignPrefill(message))
        #expect(try decodeOne(try FrameCodec().encode(envelope)) == envelope)
    }

    @Test(arguments: [(1, 60_000), (60_000, 1), (4000, 10)])
    func manySmallPartsFitInTheMemoryForUnpacking(steps: Int, tokens: Int) throws {
        let step = TokenStep(
            transfer: TransferID(job: JobID(high: 0, low: 0), attempt: Attempt(0)), offset: 0,
            tokens: (0..<UInt32(tokens)).map { SampledToken(token: TokenID($0)) })
        let message = TokenSteps(iteration: 0, computeTime: .zero, steps: Array(repeating: step, count: steps))
        let sender = WorkerRef(id: WorkerID("d"), epoch: Epoch(1))
        let envelope = Envelope(sequence: 1, sender: sender, message: .tokenSteps(message))
        #expect(try decodeOne(try FrameCodec().encode(envelope)) == envelope)
    }

    @Test func aSentenceThatIsTooLongIsCutAtACharacter() throws {
        let sentence = "x" + String(repeating: "é", count: WireLimits.sentenceBytesMax)
        let worker = WorkerRef(id: WorkerID("w"), epoch: Epoch(1))
        let ack = HelloAck(version: 1, responder: worker, verdict: .refused(sentence))
        let frame = try FrameCodec().encode(Envelope(sequence: 0, sender: worker, message: .helloAck(ack)))
        guard case .helloAck(let back) = try decodeOne(frame).message, case .refused(let text) = back.verdict else {
            Issue.record("another message came back")
            return
        }
        #expect(text.utf8.count == WireLimits.sentenceBytesMax - 1)
        #expect(sentence.hasPrefix(text))
    }

    @Test func whatThePeerWouldRefuseIsNotEncoded() {
        let codec = FrameCodec()
        let worker = WorkerRef(
            id: WorkerID(String(repeating: "w", count: WireLimits.nameBytesMax + 1)), epoch: Epoch(1))
        #expect(throws: FrameError.malformed(.drainDone, field: "name")) {
            try codec.encode(Envelope(sequence: 0, sender: worker, message: .drainDone(DrainDone())))
        }
        var random = RandomMessages(seed: 5)
        var push = random.pagePush()
        push.payloadBytes = UInt32(WireLimits.slicePayloadBytesMax) + 1
        let envelope = Envelope(sequence: 0, sender: random.worker(), message: .pagePush(push))
        #expect(throws: FrameError.self) { try codec.encode(envelope) }
        let offer = PageOffer(transfer: random.transfer(), blocks: Array(repeating: 1, count: 5 << 20))
        #expect(throws: FrameError.self) {
            try codec.encode(Envelope(sequence: 0, sender: random.worker(), message: .pageOffer(offer)))
        }
    }
}

/// Bytes for the payload that a push announces.
func payloadFor(_ envelope: Envelope) -> [UInt8] {
    guard case .pagePush(let push) = envelope.message else { return [] }
    return (0..<push.payloadBytes).map { UInt8(truncatingIfNeeded: $0) }
}

func decodeOne(_ bytes: [UInt8]) throws -> Envelope {
    var decoder = FrameDecoder(payloadBytesMax: WireLimits.slicePayloadBytesMax)
    bytes.withUnsafeBytes { decoder.push($0) }
    return try #require(try decoder.next()).envelope
}
