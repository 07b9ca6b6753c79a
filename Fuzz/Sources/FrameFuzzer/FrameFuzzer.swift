import Glibc
import Messages
import WireCodec

// Bytes from a hostile peer, in two ways: as a stream of frames, and as a header whose checksum is
// right, so that the fuzzer need not guess one. Whatever is accepted must be within every range, and
// so must encode again, to bytes that decode to the same.

@_silgen_name("LLVMFuzzerRunDriver")
func runFuzzer(
    _ argc: UnsafeMutablePointer<Int32>,
    _ argv: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>>,
    _ test: @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32
) -> Int32

/// SwiftPM gives `main` this name.
@_cdecl("FrameFuzzer_main")
func fuzzerMain(_ argc: Int32, _ argv: UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>) -> Int32 {
    if argc == 3, let word = argv[1], let folder = argv[2], String(cString: word) == "seeds" {
        return writeSeeds(String(cString: folder))
    }
    var count = argc
    var arguments = argv
    return withUnsafeMutablePointer(to: &arguments) { runFuzzer(&count, $0, testOneInput) }
}

/// Frames and headers of every kind, for the fuzzer to begin with.
func writeSeeds(_ folder: String) -> Int32 {
    let codec = FrameCodec()
    for seed in 1...4 as ClosedRange<UInt64> {
        var random = RandomMessages(seed: seed)
        for (index, kind) in FrameKind.allCases.enumerated() {
            guard let frame = try? codec.encode(random.envelope(kind)) else { return 1 }
            let header = Array(frame.dropFirst(FramePrefix.byteCount))
            guard write([0xff] + frame, "\(folder)/frame-\(seed)-\(kind)") else { return 1 }
            guard write([UInt8(index)] + header, "\(folder)/header-\(seed)-\(kind)") else { return 1 }
        }
    }
    return 0
}

func write(_ bytes: [UInt8], _ path: String) -> Bool {
    guard let file = fopen(path, "w") else { return false }
    defer { fclose(file) }
    return fwrite(bytes, 1, bytes.count, file) == bytes.count
}

/// First bytes from here on choose the stream, lower ones a kind.
let streamSelector: UInt8 = 192

func testOneInput(_ data: UnsafePointer<UInt8>?, _ size: Int) -> Int32 {
    let bytes = UnsafeRawBufferPointer(start: data, count: size)
    guard let first = bytes.first else { return 0 }
    let rest = UnsafeRawBufferPointer(rebasing: bytes.dropFirst())
    if first >= streamSelector {
        decodeStream(rest, step: 1 + Int(first - streamSelector))
    } else {
        decodeHeader(rest, FrameKind.allCases[Int(first) % FrameKind.allCases.count])
    }
    return 0
}

func decodeStream(_ bytes: UnsafeRawBufferPointer, step: Int) {
    var decoder = FrameDecoder(payloadBytesMax: WireLimits.slicePayloadBytesMax)
    for start in stride(from: 0, to: bytes.count, by: step) {
        decoder.push(UnsafeRawBufferPointer(rebasing: bytes[start..<min(start + step, bytes.count)]))
        do {
            while let frame = try decoder.next() { encodesAgain(frame.envelope) }
        } catch { return }
    }
}

func decodeHeader(_ header: UnsafeRawBufferPointer, _ kind: FrameKind) {
    guard header.count <= kind.headerBytesMax else { return }
    for payload in kind == .pagePush ? [0, 1, 1000] : [0] {
        let prefix = FramePrefix(
            kind: kind, headerBytes: header.count, headerCRC: CRC32C.checksum(header), payloadBytes: payload)
        if let envelope = try? FrameCodec().decodeHeader(prefix, header) { encodesAgain(envelope) }
    }
}

func encodesAgain(_ envelope: Envelope) {
    let codec = FrameCodec()
    // Unknown fields and long encodings are dropped, so one round makes the normal form; what is
    // larger than its limits after that was larger before.
    guard let once = try? codec.encode(envelope) else { fatalError("what was accepted does not encode") }
    let twice = once.withUnsafeBytes { bytes -> [UInt8]? in
        guard let prefix = try? FramePrefix(parsing: bytes) else { return nil }
        let end = FramePrefix.byteCount + prefix.headerBytes
        let header = UnsafeRawBufferPointer(rebasing: bytes[FramePrefix.byteCount..<end])
        guard let again = try? codec.decodeHeader(prefix, header) else { return nil }
        return try? codec.encode(again)
    }
    guard twice == once else { fatalError("what was encoded does not decode to the same") }
}
