import ClusterTransport
import DecodeCore
import Foundation
import KVPaging
import ServingTypes
import Testing

@testable import Hosting

/// Pages in a plain buffer.
private final class Buffer: PageMemory, @unchecked Sendable {
    // `@unchecked`: one test's thread alone touches the bytes.
    let pageBytes: Int
    private let bytes: UnsafeMutableRawBufferPointer

    init(pages: Int, pageBytes: Int) {
        self.pageBytes = pageBytes
        bytes = .allocate(byteCount: pages * pageBytes, alignment: 64)
        for index in bytes.indices { bytes[index] = UInt8(truncatingIfNeeded: index &* 31) }
    }

    deinit { bytes.deallocate() }

    func page(_ slot: BlockSlot) -> UnsafeMutableRawBufferPointer {
        UnsafeMutableRawBufferPointer(rebasing: bytes[Int(slot.index) * pageBytes..<(Int(slot.index) + 1) * pageBytes])
    }
}

struct SwapFileTests {
    private func folder() throws -> String {
        let path = FileManager.default.temporaryDirectory.path + "/tandem-swap-test-\(UUID().uuidString)"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        return path
    }

    private func page(_ slot: UInt32, _ host: UInt32) -> SwapPage {
        SwapPage(slot: BlockSlot(slot), host: HostSlot(host))
    }

    @Test func pagesComeBackByteForByteIntoOtherSlots() throws {
        let folder = try folder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let memory = Buffer(pages: 8, pageBytes: 4100)
        let file = try SwapFile(directory: folder, worker: WorkerID("decode-0"), pages: 4, memory: memory)
        #expect(file.write([page(1, 3), page(2, 0)]) == nil)
        #expect(file.read([page(6, 3), page(7, 0)]) == nil)
        #expect(memory.page(BlockSlot(6)).elementsEqual(memory.page(BlockSlot(1))))
        #expect(memory.page(BlockSlot(7)).elementsEqual(memory.page(BlockSlot(2))))
    }

    @Test func whatWasNeverWrittenIsAnErrorAndNotAPage() throws {
        let folder = try folder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        let memory = Buffer(pages: 4, pageBytes: 512)
        let file = try SwapFile(directory: folder, worker: WorkerID("decode-0"), pages: 4, memory: memory)
        #expect(file.read([page(0, 0)]) != nil, "the file is empty")
        #expect(file.write([page(1, 2)]) == nil)
        #expect(file.read([page(0, 1)]) != nil, "a hole has other bytes than any page")
    }

    @Test func theFileHasNoNameAndLeftoversOfTheWorkerAreRemoved() throws {
        let folder = try folder()
        defer { try? FileManager.default.removeItem(atPath: folder) }
        FileManager.default.createFile(atPath: "\(folder)/\(SwapFile.prefix)decode-0-17", contents: Data([1]))
        FileManager.default.createFile(atPath: "\(folder)/\(SwapFile.prefix)decode-1-18", contents: Data([1]))
        let file = try SwapFile(
            directory: folder, worker: WorkerID("decode-0"), pages: 4, memory: Buffer(pages: 1, pageBytes: 64))
        #expect(file.write([page(0, 0)]) == nil)
        #expect(try FileManager.default.contentsOfDirectory(atPath: folder) == ["\(SwapFile.prefix)decode-1-18"])
    }

    @Test func aFolderThatCannotBeMadeIsASentence() {
        let error = #expect(throws: ServingError.self) {
            try SwapFile(
                directory: "/proc/no/such/place", worker: WorkerID("decode-0"), pages: 1,
                memory: Buffer(pages: 1, pageBytes: 64))
        }
        #expect(error?.message.contains("/proc/no/such/place") == true)
    }
}
