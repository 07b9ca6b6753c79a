import Messages
import ServingTypes
import Testing

@testable import ClusterTransport

@Suite struct SendQueueTests {
    private let long = Fixture.transfer(1)
    private let short = Fixture.transfer(2)

    @Test func aShortTransferDoesNotWaitForALongOne() {
        var queue = SendQueue(pageBytes: 64 << 10, sliceBytesMax: 1 << 20)
        queue.push(long, pages(1000))
        queue.push(short, pages(2))
        queue.send(.cancelAck(CancelAck(transfer: short)), after: short)
        let order = (0..<12).compactMap { _ in take(&queue)?.transfer }
        #expect(order.prefix(4).allSatisfy { $0 == long })
        #expect(order[4..<7].allSatisfy { $0 == short })
    }

    @Test func largePagesShareTheLinkSliceBySlice() {
        var queue = SendQueue(pageBytes: 4 << 20, sliceBytesMax: 1 << 20)
        queue.push(long, pages(10))
        queue.push(short, pages(1))
        let order = (0..<8).compactMap { _ in take(&queue)?.transfer }
        #expect(order.filter { $0 == short }.count == 4)
        #expect(order == [long, short, long, short, long, short, long, short])
    }

    @Test func slicesOfAPageComeInOrderAndCoverIt() {
        var queue = SendQueue(pageBytes: 1000, sliceBytesMax: 300)
        queue.push(long, pages(2))
        var seen: [(offset: Int, count: Int, isLast: Bool)] = []
        while case .slice(let slice)? = take(&queue) { seen.append((slice.offset, slice.count, slice.isLast)) }
        #expect(seen.map(\.offset) == [0, 300, 600, 900, 0, 300, 600, 900])
        #expect(seen.map(\.count) == [300, 300, 300, 100, 300, 300, 300, 100])
        #expect(seen.filter(\.isLast).count == 2)
        #expect(queue.pageCount == 0)
    }

    @Test func whatIsRemovedIsNotSentAndTheRestGoesOn() {
        var queue = SendQueue(pageBytes: 1000, sliceBytesMax: 300)
        queue.push(long, pages(3))
        queue.push(short, pages(1))
        let first = queue.next()
        queue.remove(long)
        if let first { queue.advance(first, crc: 0) }
        #expect(queue.pageCount == 1)
        var transfers: [TransferID] = []
        while let work = take(&queue) { transfers.append(work.transfer) }
        #expect(transfers == [short, short, short, short])
        #expect(queue.next() == nil)
    }

    @Test func everyTransferGetsItsShareOfBytes() {
        var queue = SendQueue(pageBytes: 48 << 10, sliceBytesMax: 1 << 20)
        for number in 1...5 as ClosedRange<UInt64> { queue.push(Fixture.transfer(number), pages(100)) }
        var sent: [TransferID: Int] = [:]
        for _ in 0..<250 {
            if case .slice(let slice)? = take(&queue) { sent[slice.transfer, default: 0] += slice.count }
        }
        let least = sent.values.min() ?? 0
        let most = sent.values.max() ?? 0
        #expect(sent.count == 5)
        #expect(most - least <= 2 * (256 << 10))
    }

    private func pages(_ count: UInt32) -> [PageToSend] {
        (0..<count).map { PageToSend(block: $0, slot: BlockSlot($0), filledTokens: 16) }
    }

    private func take(_ queue: inout SendQueue) -> SendQueue.Work? {
        guard let work = queue.next() else { return nil }
        queue.advance(work, crc: 0)
        return work
    }
}
