import ClusterTransport
import DecodeCore
import Foundation
import KVPaging
import ServingTypes
import WireCodec

/// The bytes of a worker's host tier: a file of pages that has no name any more, so that the kernel
/// takes it back whatever ends the process.
///
/// Written with `pwrite` and read with `pread` rather than mapped: a full disk is then an error of one
/// move, and not a signal that ends the process. The pages lie in the kernel's page cache as long as
/// there is memory for it. A page's CRC32C is kept and compared when it comes back; what differs is
/// an error, so the job is computed again and never decoded from it.
///
/// Confined to the thread that moves pages; `SwapThread` sees to that.
final class SwapFile {
    private let descriptor: Int32
    private let memory: any PageMemory
    private var checksums: [UInt32]

    /// What files are called for the moment in which they have a name.
    static let prefix = "tandem-swap-"

    init(directory: String, worker: WorkerID, pages: Int, memory: any PageMemory) throws(ServingError) {
        self.memory = memory
        checksums = Array(repeating: 0, count: pages)
        do {
            try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: true)
        } catch {
            throw Self.failure("cannot make the folder \(directory): \(error.localizedDescription)", .process)
        }
        Self.removeLeftovers(of: worker, in: directory)
        let path = "\(directory)/\(Self.prefix)\(worker.name)-\(getpid())"
        descriptor = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0o600)
        guard descriptor >= 0 else { throw Self.failure("cannot make \(path): \(Self.reason)", .process) }
        unlink(path)
    }

    deinit { close(descriptor) }

    /// A process that ended between making its file and taking its name away.
    private static func removeLeftovers(of worker: WorkerID, in directory: String) {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: directory)) ?? []
        for name in names where name.hasPrefix("\(prefix)\(worker.name)-") { unlink("\(directory)/\(name)") }
    }

    /// Writes every page, or says why not; what was written of it then counts for nothing.
    func write(_ pages: [SwapPage]) -> ServingError? {
        for page in pages {
            let bytes = UnsafeRawBufferPointer(memory.page(page.slot))
            checksums[Int(page.host.index)] = CRC32C.checksum(bytes)
            if let error = transfer(
                bytes.count, at: page.host,
                with: { done, offset in
                    pwrite(descriptor, bytes.baseAddress?.advanced(by: done), bytes.count - done, offset)
                })
            {
                return error
            }
        }
        return nil
    }

    /// Reads every page into its slot, or says which one is not what was written.
    func read(_ pages: [SwapPage]) -> ServingError? {
        for page in pages {
            let bytes = memory.page(page.slot)
            if let error = transfer(
                bytes.count, at: page.host,
                with: { done, offset in
                    pread(descriptor, bytes.baseAddress?.advanced(by: done), bytes.count - done, offset)
                })
            {
                return error
            }
            guard CRC32C.checksum(UnsafeRawBufferPointer(bytes)) == checksums[Int(page.host.index)] else {
                return Self.failure("\(page.host): its bytes are not those that were written", .request)
            }
        }
        return nil
    }

    private func transfer(_ count: Int, at host: HostSlot, with call: (Int, off_t) -> Int) -> ServingError? {
        var done = 0
        while done < count {
            let moved = call(done, off_t(Int(host.index) * count + done))
            if moved < 0, errno == EINTR { continue }
            guard moved > 0 else {
                return Self.failure("\(host): \(moved == 0 ? "the file ends too early" : Self.reason)", .request)
            }
            done += moved
        }
        return nil
    }

    private static var reason: String { String(cString: strerror(errno)) }

    private static func failure(_ what: String, _ blast: ServingError.Blast) -> ServingError {
        ServingError(.internalError, "swap: \(what)", field: "swap-dir", blast: blast)
    }
}

/// The thread that moves pages between pool and host tier, one job after the other, beside the engine.
/// Its queue is as long as the core has moves under way: `DecodeConfiguration.movesMax`.
///
/// `@unchecked Sendable`: `queue` and `isStopping` are only touched under `condition`, `file` only on
/// the thread once it runs.
final class SwapThread: @unchecked Sendable {
    private struct Work {
        var order: SwapOrder
        var isOut: Bool
        var done: @Sendable (SwapOutcome) -> Void
    }

    private let file: SwapFile
    private let movesMax: Int
    private let condition = NSCondition()
    private var queue: [Work] = []
    private var isStopping = false
    private let clock = MonotonicClock()

    init(file: SwapFile, movesMax: Int) {
        self.file = file
        self.movesMax = movesMax
        let thread = Thread { [self] in loop() }
        thread.name = "swap"
        thread.start()
    }

    /// `done` runs on the thread; hop to your own loop in it.
    func move(_ order: SwapOrder, isOut: Bool, done: @escaping @Sendable (SwapOutcome) -> Void) {
        condition.lock()
        precondition(queue.count < movesMax, "more moves than the core may have under way")
        queue.append(Work(order: order, isOut: isOut, done: done))
        condition.signal()
        condition.unlock()
    }

    /// The thread ends after the move under way.
    func stop() {
        condition.lock()
        isStopping = true
        condition.signal()
        condition.unlock()
    }

    private func loop() {
        while let work = next() {
            let began = clock.now
            let error = work.isOut ? file.write(work.order.pages) : file.read(work.order.pages)
            work.done(SwapOutcome(error: error, time: clock.now - began))
        }
    }

    private func next() -> Work? {
        condition.lock()
        defer { condition.unlock() }
        while queue.isEmpty && !isStopping { condition.wait() }
        return isStopping ? nil : queue.removeFirst()
    }
}
