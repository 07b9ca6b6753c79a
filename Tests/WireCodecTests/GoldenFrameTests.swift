import Messages
import ServingTypes
import Testing
import WireCodec

/// The bytes of three frames, so that no change of the format goes unseen. Whoever must change them
/// raises `FramePrefix.version` as well.
@Suite struct GoldenFrameTests {
    private let sender = WorkerRef(id: WorkerID("decode-0"), epoch: Epoch(0x0102_0304_0506_0708))
    private let transfer = TransferID(job: JobID(high: 1, low: 2), attempt: Attempt(3))

    @Test func helloKeepsItsBytes() throws {
        let hello = Hello(
            sender: sender, role: .decode, compatibility: CompatibilityDigest(PageID(1, 2, 3, 4)), purpose: .control)
        try expect(
            .hello(hello),
            [
                "5444010a0000000058000000f5f910130000000000000000080712130a086465636f64652d3011080706050403020152",
                "3f080110011a130a086465636f64652d3011080706050403020120022a20010000000000000002000000000000000300",
                "00000000000004000000000000003001",
            ])
    }

    @Test func tokenStepsKeepTheirBytes() throws {
        let step = TokenStep(
            transfer: transfer, offset: 5, tokens: [SampledToken(token: TokenID(42), logprob: -0.5)],
            end: .finished(.stop))
        let steps = TokenSteps(iteration: 9, computeTime: .milliseconds(2), steps: [step])
        try expect(
            .tokenSteps(steps),
            [
                "54440118000000004f000000ed3368920000000000000000080712130a086465636f64652d30110807060504030201c2",
                "01350809108092f4011a2c0a14090100000000000000110200000000000000180310051a0a0d2a00000015000000bf22",
                "02080128003000",
            ])
    }

    @Test func pagePushKeepsItsBytes() throws {
        let push = PagePush(
            transfer: transfer, targetEpoch: Epoch(77), block: 6, filledTokens: 16, offsetBytes: 0, pageBytes: 49_152,
            payloadBytes: 49_152, payloadCRC: 0xdead_beef)
        try expect(
            .pagePush(push),
            [
                "54440120000000004c000000c20f170600c0000000000000080712130a086465636f64652d3011080706050403020182",
                "02320a140901000000000000001102000000000000001803114d00000000000000180620102800308080033880800345",
                "efbeadde",
            ])
    }

    private func expect(_ message: Message, _ golden: [String]) throws {
        let frame = try FrameCodec().encode(Envelope(sequence: 7, sender: sender, message: message))
        let digits = frame.map { byte in (byte < 16 ? "0" : "") + String(byte, radix: 16) }.joined()
        #expect(digits == golden.joined())
    }
}
