import ArgumentParser
import Foundation
import Logging
import ModelRuntime
import ServingTypes

/// Flags of both worker programs. People start workers through `tandem up`; these are for other
/// supervisors (systemd, Kubernetes) and for tests.
public struct WorkerFlags: ParsableArguments, Sendable {
    @Option(help: "This worker's name, stable over restarts.")
    public var name: String

    @Option(help: "Hugging Face model folder or GGUF file.")
    public var model: String

    @Option(help: "host:port of the coordinator's control listener.")
    public var coordinator: String

    @Option(help: "host:port of the coordinator's relay listener.")
    public var relay: String?

    @Option(help: "Address to listen on for pages (decode workers).")
    public var dataHost: String = "127.0.0.1"

    @Option(help: "Port to listen on for pages; 0 picks one.")
    public var dataPort: UInt16 = 0

    @Option(help: "host:port that other workers are told to push pages to (default: what is listened on).")
    public var advertise: String?

    @Option(help: "Element type of cached keys and values: f32, f16, bf16, int8.")
    public var kvType: String = "bf16"

    @Option(help: "Quantise 16- and 32-bit matrices while the model is loaded: none, q8_0, q4_0.")
    public var quantize: String = "none"

    @Option(
        help: """
            Folder of packed weights, which the first worker that loads a model writes and others map and share; auto: \
            tandem/packed in the user's cache folder; none: every worker packs in memory of its own.
            """)
    public var packedCache: String = "auto"

    @Option(help: "Bytes of that folder's files; the ones not used for longest are deleted first.")
    public var packedCacheBytes: Int = PackedWeightsCache.Limits.bytesMax

    @Option(help: "Tokens per block.")
    public var blockTokens: Int = 16

    @Option(help: "Blocks in the pool; 0 sizes it by the model's context and the memory.")
    public var blocks: Int = 0

    @Option(help: "Bytes of the host tier, where pages of jobs that wait lie outside the pool; 0: none.")
    public var swapBytes: Int = 0

    @Option(help: "Folder for the host tier's file.")
    public var swapDir: String = NSTemporaryDirectory()

    @Flag(help: "Take a job only with room for all the tokens that it may need, so that none has to give way.")
    public var reserveWholeJobs = false

    @Option(help: "Compute threads.")
    public var threads: Int = 1

    @Option(help: "Cores to pin the compute threads to, such as 0,1: thread i to core i; none by default.")
    public var pinCores: String = ""

    @Flag(help: "Compute with all threads even while other workers of this user and machine compute.")
    public var keepThreads = false

    @Option(help: "Jobs in one decode step at most.")
    public var batchJobs: Int = 32

    @Option(help: "New tokens in one step at most.")
    public var stepTokens: Int = 512

    @Option(help: "Prompt tokens of one job in one step at most.")
    public var chunkTokens: Int = 256

    @Option(
        help: "Milliseconds that a step with prompt beside decoding jobs should take at most; 0: no limit.")
    public var stepLimitMs: Int64 = 0

    @Option(help: "The same limit in multiples of a step that only decodes; 0: no limit.")
    public var stepStretch: Double = 0

    @Option(help: "Kernels: auto, scalar, avx2, avx512.")
    public var kernels: String = "auto"

    @Option(help: "trace, debug, info, notice, warning, error.")
    public var logLevel: String = "info"

    @Flag(help: "End when standard input closes: the supervisor holds its other end.")
    public var supervised = false

    public init() {}

    static let swapBytesMax = 1 << 44
    static let stepLimitMsMax: Int64 = 60_000
    static let stepStretchMax = 1000.0

    public var level: Logger.Level { Logger.Level(rawValue: logLevel) ?? .info }

    public func validate() throws {
        for (flag, value, range) in [
            ("block-tokens", blockTokens, 1...1024), ("blocks", blocks, 0...(1 << 24)), ("threads", threads, 1...1024),
            ("batch-jobs", batchJobs, 1...1024), ("step-tokens", stepTokens, 1...65_536),
            ("chunk-tokens", chunkTokens, 1...65_536),
        ] where !range.contains(value) {
            throw ValidationError("--\(flag): \(value) is outside \(range.lowerBound) to \(range.upperBound)")
        }
        guard (0...Self.stepLimitMsMax).contains(stepLimitMs) else {
            throw ValidationError("--step-limit-ms: \(stepLimitMs) is outside 0 to \(Self.stepLimitMsMax)")
        }
        guard (0...Self.stepStretchMax).contains(stepStretch) else {
            throw ValidationError("--step-stretch: \(stepStretch) is outside 0 to \(Int(Self.stepStretchMax))")
        }
        guard (0...Self.swapBytesMax).contains(swapBytes) else {
            throw ValidationError("--swap-bytes: \(swapBytes) is outside 0 to \(Self.swapBytesMax)")
        }
        guard stepTokens >= batchJobs else {
            throw ValidationError("--step-tokens: \(stepTokens) is less than --batch-jobs \(batchJobs)")
        }
    }
}

/// `host:port` as written on a command line.
public struct HostPort: Hashable, Sendable {
    public var host: String
    public var port: UInt16

    public init(host: String, port: UInt16) {
        self.host = host
        self.port = port
    }

    public init(_ text: String, field: String) throws(ServingError) {
        guard let colon = text.lastIndex(of: ":"), let port = UInt16(text[text.index(after: colon)...]),
            colon > text.startIndex
        else {
            throw ServingError(.invalidValue, "\(field): \(text) is not host:port", field: field, blast: .process)
        }
        self.init(host: String(text[..<colon]), port: port)
    }
}
