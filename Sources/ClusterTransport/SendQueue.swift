import Messages
import ServingTypes

/// One block ready to travel.
public struct PageToSend: Hashable, Sendable {
    public var block: UInt32
    public var slot: BlockSlot
    /// Token positions that hold data.
    public var filledTokens: Int

    public init(block: UInt32, slot: BlockSlot, filledTokens: Int) {
        self.block = block
        self.slot = slot
        self.filledTokens = filledTokens
    }
}

/// What waits to be sent, in order within a transfer and fair between transfers: deficit round robin
/// by bytes, so that one long prompt does not block short ones.
struct SendQueue: Sendable {
    /// A part of a page, small enough for one frame.
    struct Slice: Sendable {
        var transfer: TransferID
        var page: PageToSend
        var offset: Int
        var count: Int
        /// CRC32C of the page before this slice.
        var crcBefore: UInt32
        var isLast: Bool
    }

    enum Work: Sendable {
        case slice(Slice)
        case message(TransferID, Message)

        var transfer: TransferID {
            switch self {
            case .slice(let slice): slice.transfer
            case .message(let transfer, _): transfer
            }
        }
    }

    private enum Item {
        case page(PageToSend)
        case message(Message)
    }

    private struct Lane {
        var items: [Item] = []
        var head = 0
        /// Of the page at the head.
        var offset = 0
        var crc: UInt32 = 0
        /// Bytes this transfer may still send in its turn.
        var deficit = 0

        var isEmpty: Bool { head == items.count }

        mutating func removeFirst() {
            head += 1
            offset = 0
            crc = 0
            if head == items.count {
                items = []
                head = 0
            } else if head > 256 && 2 * head > items.count {
                items.removeSubrange(..<head)
                head = 0
            }
        }
    }

    /// Bytes each transfer may send in its turn.
    private static let quantumBytes = 256 << 10
    /// What a message costs in its transfer's turn.
    private static let messageCostBytes = 256

    private let pageBytes: Int
    private let sliceBytesMax: Int
    private var lanes: [TransferID: Lane] = [:]
    /// Transfers with something to send, the one whose turn it is first.
    private var ring: [TransferID] = []
    /// Whether the first in the ring has had this turn's bytes.
    private var turnGranted = false
    private(set) var pageCount = 0
    private(set) var messageCount = 0

    init(pageBytes: Int, sliceBytesMax: Int) {
        self.pageBytes = pageBytes
        self.sliceBytesMax = sliceBytesMax
    }

    mutating func push(_ transfer: TransferID, _ pages: [PageToSend]) {
        guard !pages.isEmpty else { return }
        append(transfer, pages.map { .page($0) })
        pageCount += pages.count
    }

    mutating func send(_ message: Message, after transfer: TransferID) {
        append(transfer, [.message(message)])
        messageCount += 1
    }

    private mutating func append(_ transfer: TransferID, _ items: [Item]) {
        if lanes[transfer] == nil { ring.append(transfer) }
        lanes[transfer, default: Lane()].items += items
    }

    /// Drops everything queued for a transfer.
    mutating func remove(_ transfer: TransferID) {
        guard let lane = lanes.removeValue(forKey: transfer) else { return }
        if ring.first == transfer { turnGranted = false }
        ring.removeAll { $0 == transfer }
        for item in lane.items[lane.head...] {
            switch item {
            case .page: pageCount -= 1
            case .message: messageCount -= 1
            }
        }
    }

    /// The next thing to send; the same again until `advance` is told of it or its transfer is removed.
    mutating func next() -> Work? {
        while let transfer = ring.first, var lane = lanes[transfer] {
            if !turnGranted {
                lane.deficit += Self.quantumBytes
                lanes[transfer] = lane
                turnGranted = true
            }
            let work = Self.work(of: lane, transfer, pageBytes: pageBytes, sliceBytesMax)
            if lane.deficit >= Self.cost(of: work) { return work }
            ring.append(ring.removeFirst())
            turnGranted = false
        }
        return nil
    }

    private static func cost(of work: Work) -> Int {
        switch work {
        case .slice(let slice): slice.count
        case .message: messageCostBytes
        }
    }

    private static func work(of lane: Lane, _ transfer: TransferID, pageBytes: Int, _ sliceBytesMax: Int) -> Work {
        switch lane.items[lane.head] {
        case .message(let message): return .message(transfer, message)
        case .page(let page):
            let count = min(pageBytes - lane.offset, sliceBytesMax)
            return .slice(
                Slice(
                    transfer: transfer, page: page, offset: lane.offset, count: count, crcBefore: lane.crc,
                    isLast: lane.offset + count == pageBytes))
        }
    }

    /// `work` has been sent; `crc` is that of the page up to and with its slice.
    mutating func advance(_ work: Work, crc: UInt32) {
        guard var lane = lanes[work.transfer] else { return }
        lane.deficit -= Self.cost(of: work)
        switch work {
        case .message:
            lane.removeFirst()
            messageCount -= 1
        case .slice(let slice) where slice.isLast:
            lane.removeFirst()
            pageCount -= 1
        case .slice(let slice):
            lane.offset = slice.offset + slice.count
            lane.crc = crc
        }
        guard lane.isEmpty else {
            lanes[work.transfer] = lane
            return
        }
        lanes[work.transfer] = nil
        ring.removeFirst()
        turnGranted = false
    }
}
