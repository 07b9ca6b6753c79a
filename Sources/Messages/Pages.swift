import ServingTypes

// Pages: P -> D and back, on a link of their own.

/// Blocks that P has computed and can send.
public struct PageOffer: Hashable, Sendable {
    public var transfer: TransferID
    public var blocks: [UInt32]

    public init(transfer: TransferID, blocks: [UInt32]) {
        self.transfer = transfer
        self.blocks = blocks
    }
}

/// Blocks that D (still) lacks: answers an offer when another job has brought some meanwhile, and
/// asks again for what a broken link lost.
public struct PageWant: Hashable, Sendable {
    public var transfer: TransferID
    public var blocks: [UInt32]

    public init(transfer: TransferID, blocks: [UInt32]) {
        self.transfer = transfer
        self.blocks = blocks
    }
}

/// Header of one slice of one page; the raw bytes follow it outside protobuf (design §4).
public struct PagePush: Hashable, Sendable {
    public var transfer: TransferID
    /// Epoch of the receiver that made the reservation.
    public var targetEpoch: Epoch
    public var block: UInt32
    /// Token positions of the block that hold data (less than blockTokens for the tail).
    public var filledTokens: UInt32
    /// Offset of this slice in the page, and the page's whole size.
    public var offsetBytes: UInt32
    public var pageBytes: UInt32
    public var payloadBytes: UInt32
    /// CRC32C of this slice's payload.
    public var payloadCRC: UInt32

    public init(
        transfer: TransferID, targetEpoch: Epoch, block: UInt32, filledTokens: UInt32, offsetBytes: UInt32,
        pageBytes: UInt32, payloadBytes: UInt32, payloadCRC: UInt32
    ) {
        self.transfer = transfer
        self.targetEpoch = targetEpoch
        self.block = block
        self.filledTokens = filledTokens
        self.offsetBytes = offsetBytes
        self.pageBytes = pageBytes
        self.payloadBytes = payloadBytes
        self.payloadCRC = payloadCRC
    }
}

/// Blocks whose bytes are verified in D's slots.
public struct PageAck: Hashable, Sendable {
    public var transfer: TransferID
    public var blocks: [UInt32]

    public init(transfer: TransferID, blocks: [UInt32]) {
        self.transfer = transfer
        self.blocks = blocks
    }
}

public struct PageNack: Hashable, Sendable {
    public var transfer: TransferID
    public var block: UInt32
    public var reason: Reason

    public enum Reason: String, Hashable, Sendable, CaseIterable {
        case noSlot
        case checksum
        case staleEpoch
        case cancelled
        case badRange
    }

    public init(transfer: TransferID, block: UInt32, reason: Reason) {
        self.transfer = transfer
        self.block = block
        self.reason = reason
    }
}

/// Room for more bytes on this link.
public struct Credit: Hashable, Sendable {
    public var transfer: TransferID
    public var bytes: UInt64

    public init(transfer: TransferID, bytes: UInt64) {
        self.transfer = transfer
        self.bytes = bytes
    }
}

/// Everything wanted has been sent. D compares before it commits.
public struct TransferEnd: Hashable, Sendable {
    public var transfer: TransferID
    /// Blocks pushed under this transfer, with the CRC32C of each whole page, ascending by block.
    public var pages: [PageSum]
    /// The token after the prefilled ones; D decodes from it.
    public var firstToken: SampledToken
    public var cachedTokens: Int

    public init(transfer: TransferID, pages: [PageSum], firstToken: SampledToken, cachedTokens: Int) {
        self.transfer = transfer
        self.pages = pages
        self.firstToken = firstToken
        self.cachedTokens = cachedTokens
    }
}

public struct PageSum: Hashable, Sendable {
    public var block: UInt32
    public var crc: UInt32

    public init(block: UInt32, crc: UInt32) {
        self.block = block
        self.crc = crc
    }
}

/// D -> P and D -> C: every block of the transfer is committed; P's pages may go.
public struct TransferCommitted: Hashable, Sendable {
    public var transfer: TransferID
    /// Bytes that travelled, and blocks that need not.
    public var receivedBytes: UInt64
    public var receivedBlocks: Int
    public var reusedBlocks: Int

    public init(transfer: TransferID, receivedBytes: UInt64, receivedBlocks: Int, reusedBlocks: Int) {
        self.transfer = transfer
        self.receivedBytes = receivedBytes
        self.receivedBlocks = receivedBlocks
        self.reusedBlocks = reusedBlocks
    }
}

/// Either end gives up; the coordinator requeues.
public struct TransferFailed: Hashable, Sendable {
    public var transfer: TransferID
    public var reason: Reason

    public enum Reason: String, Hashable, Sendable, CaseIterable {
        case linkLost
        case cannotConnect
        case checksum
        case incomplete
        case leaseExpired
        case targetRefused
        case stalled
        case engine
    }

    public init(transfer: TransferID, reason: Reason) {
        self.transfer = transfer
        self.reason = reason
    }
}

/// Holder to owner, at a third of the lease: still wanted, and moving.
public struct LeaseRenew: Hashable, Sendable {
    public var transfer: TransferID
    public var lease: TimeSpan

    public init(transfer: TransferID, lease: TimeSpan) {
        self.transfer = transfer
        self.lease = lease
    }
}

/// Stop and give everything back. D frees a slot only once no writer can touch it (P6).
public struct Cancel: Hashable, Sendable {
    public var transfer: TransferID
    public var reason: Reason

    public enum Reason: String, Hashable, Sendable, CaseIterable {
        case client
        case superseded
        case peerLost
        case deadline
        case stopString
        case drain
    }

    public init(transfer: TransferID, reason: Reason) {
        self.transfer = transfer
        self.reason = reason
    }
}

/// Nothing of the transfer is held any more.
public struct CancelAck: Hashable, Sendable {
    public var transfer: TransferID

    public init(transfer: TransferID) { self.transfer = transfer }
}
