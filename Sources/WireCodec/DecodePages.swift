import CWire
import Messages
import ServingTypes

extension WireReader {
    func blocks(_ wire: Tandem__BlockList) throws(FrameError) -> (transfer: TransferID, blocks: [UInt32]) {
        (try transfer(wire.transfer), numbers(wire.n_blocks, wire.blocks))
    }

    func pagePush(_ wire: Tandem__PagePush) throws(FrameError) -> PagePush {
        PagePush(
            transfer: try transfer(wire.transfer), targetEpoch: Epoch(wire.target_epoch), block: wire.block,
            filledTokens: wire.filled_tokens, offsetBytes: wire.offset_bytes, pageBytes: wire.page_bytes,
            payloadBytes: wire.payload_bytes, payloadCRC: wire.payload_crc)
    }

    func pageNack(_ wire: Tandem__PageNack) throws(FrameError) -> PageNack {
        PageNack(
            transfer: try transfer(wire.transfer), block: wire.block, reason: try choice(wire.reason, "reason"))
    }

    func credit(_ wire: Tandem__Credit) throws(FrameError) -> Credit {
        Credit(transfer: try transfer(wire.transfer), bytes: wire.bytes)
    }

    func transferEnd(_ wire: Tandem__TransferEnd) throws(FrameError) -> TransferEnd {
        guard wire.n_blocks == wire.n_crcs else { throw malformed("crcs") }
        let sums = zip(numbers(wire.n_blocks, wire.blocks), numbers(wire.n_crcs, wire.crcs)).map {
            PageSum(block: $0, crc: $1)
        }
        return TransferEnd(
            transfer: try transfer(wire.transfer), pages: sums,
            firstToken: try sampled(try required(wire.first_token, "first_token")),
            cachedTokens: try int(wire.cached_tokens, "cached_tokens"))
    }

    func transferCommitted(_ wire: Tandem__TransferCommitted) throws(FrameError) -> TransferCommitted {
        TransferCommitted(
            transfer: try transfer(wire.transfer), receivedBytes: wire.received_bytes,
            receivedBlocks: try int(wire.received_blocks, "received_blocks"),
            reusedBlocks: try int(wire.reused_blocks, "reused_blocks"))
    }

    func transferFailed(_ wire: Tandem__TransferFailed) throws(FrameError) -> TransferFailed {
        TransferFailed(transfer: try transfer(wire.transfer), reason: try choice(wire.reason, "reason"))
    }

    func leaseRenew(_ wire: Tandem__LeaseRenew) throws(FrameError) -> LeaseRenew {
        LeaseRenew(transfer: try transfer(wire.transfer), lease: TimeSpan(nanoseconds: wire.lease))
    }

    func cancel(_ wire: Tandem__Cancel) throws(FrameError) -> Cancel {
        Cancel(transfer: try transfer(wire.transfer), reason: try choice(wire.reason, "reason"))
    }

    func cancelAck(_ wire: Tandem__CancelAck) throws(FrameError) -> CancelAck {
        CancelAck(transfer: try transfer(wire.transfer))
    }
}
