import ArgumentParser
import ClusterTransport
import Foundation
import Messages
import ServingTypes

/// Pages from one pool to another over loopback TCP with the production sender and receiver:
/// checksums on both ends, payload read into its slot.
struct LinksCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "links", abstract: "Page link throughput on loopback, direct and relayed.")

    @Option(help: "Mebibytes per round.") var mebibytes: Int = 256
    @Option(help: "Rounds of each row.") var rounds: Int = 9

    func validate() throws {
        guard (1...4096).contains(mebibytes), (1...1000).contains(rounds) else {
            throw ValidationError("--mebibytes takes 1 to 4096, --rounds 1 to 1000")
        }
    }

    func run() throws {
        print(Machine.line)
        print("method: one link, \(mebibytes) MiB of pages per round, \(rounds) rounds, both ends in this process")
        print("path    page      GB/s, median (min-max)   processor s/GB, both ends")
        for path in [KVPath.direct, .relay] {
            for kibibytes in [48, 256, 1024] {
                let link = try MeasuredLink(pageBytes: kibibytes << 10, totalBytes: mebibytes << 20, path: path)
                let runs = (0..<rounds).map { link.round($0) }
                link.close()
                let rate = Spread(runs.map(\.gigabytesPerSecond)).text(2)
                let cost = Spread(runs.map(\.processorSecondsPerGigabyte)).text(2)
                print("\(path.rawValue)  \(kibibytes) KiB  \(rate)  \(cost)")
            }
        }
    }
}

/// A pool of pages that hold something.
private final class MeasuredPool: PageMemory, @unchecked Sendable {
    // `@unchecked`: the transport gives each slot to one thread at a time.
    let pageBytes: Int
    private let memory: UnsafeMutableRawBufferPointer

    init(pageBytes: Int, pageCount: Int) {
        self.pageBytes = pageBytes
        memory = .allocate(byteCount: pageBytes * pageCount, alignment: 4096)
        memory.initializeMemory(as: UInt8.self, repeating: 7)
    }

    deinit { memory.deallocate() }

    func page(_ slot: BlockSlot) -> UnsafeMutableRawBufferPointer {
        let start = Int(slot.index) * pageBytes
        return UnsafeMutableRawBufferPointer(rebasing: memory[start..<start + pageBytes])
    }
}

private struct MeasuredLink {
    struct Round {
        var gigabytesPerSecond: Double
        var processorSecondsPerGigabyte: Double
    }

    private static let source = WorkerRef(id: WorkerID("prefill"), epoch: Epoch(1))
    private static let target = WorkerRef(id: WorkerID("decode"), epoch: Epoch(2))

    private let pageCount: Int
    private let totalBytes: Double
    private let receiver: PageReceiverServer
    private let relay: RelayServer
    private let sender: PageSender
    private let landed = DispatchSemaphore(value: 0)

    init(pageBytes: Int, totalBytes: Int, path: KVPath) throws {
        let count = totalBytes / pageBytes
        pageCount = count
        self.totalBytes = Double(count * pageBytes)
        let (landed, up) = (landed, DispatchSemaphore(value: 0))
        receiver = PageReceiverServer(
            host: "127.0.0.1", port: 0, own: Self.target, memory: MeasuredPool(pageBytes: pageBytes, pageCount: count),
            judge: { _ in .accepted }, onEvent: { if case .pageLanded = $0 { landed.signal() } })
        let port = try receiver.start()
        relay = RelayServer(host: "127.0.0.1", port: 0, own: Self.target) { _ in ("127.0.0.1", port) }
        let relayPort = try relay.start()
        let hello = Hello(
            sender: Self.source, role: .prefill, compatibility: CompatibilityDigest(PageID(1, 2, 3, 4)), purpose: .pages
        )
        sender = PageSender(
            target: Self.target, host: "127.0.0.1", port: port, path: path, relay: ("127.0.0.1", relayPort),
            hello: hello, memory: MeasuredPool(pageBytes: pageBytes, pageCount: count),
            onEvent: { if case .up = $0 { up.signal() } })
        sender.start()
        up.wait()
    }

    func round(_ number: Int) -> Round {
        let transfer = TransferID(job: JobID(high: 0, low: UInt64(number)), attempt: .first)
        let blocks = (0..<UInt32(pageCount))
        receiver.openLanding(
            transfer, source: Self.source, pages: blocks.map { LandingPage(block: $0, slot: BlockSlot($0)) })
        let processor = Machine.processorSeconds
        let seconds = Machine.seconds {
            sender.push(transfer, blocks.map { PageToSend(block: $0, slot: BlockSlot($0), filledTokens: 16) })
            for _ in blocks { landed.wait() }
        }
        receiver.closeLanding(transfer)
        return Round(
            gigabytesPerSecond: totalBytes / seconds / 1e9,
            processorSecondsPerGigabyte: (Machine.processorSeconds - processor) / (totalBytes / 1e9))
    }

    func close() {
        sender.close()
        sender.join()
        receiver.stop()
        relay.stop()
    }
}
