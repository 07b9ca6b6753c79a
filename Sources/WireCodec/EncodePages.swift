import CWire
import Messages
import ServingTypes

extension WireWriter {
    func blockList(_ id: TransferID, _ blocks: [UInt32]) throws(FrameError) -> Pointer<Tandem__BlockList> {
        let wire = try make(tandem__block_list__init)
        wire.pointee.transfer = try transfer(id)
        (wire.pointee.n_blocks, wire.pointee.blocks) = try numbers(blocks)
        return wire
    }

    func pagePush(_ value: PagePush) throws(FrameError) -> Pointer<Tandem__PagePush> {
        let wire = try make(tandem__page_push__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.target_epoch = value.targetEpoch.value
        wire.pointee.block = value.block
        wire.pointee.filled_tokens = value.filledTokens
        wire.pointee.offset_bytes = value.offsetBytes
        wire.pointee.page_bytes = value.pageBytes
        wire.pointee.payload_bytes = value.payloadBytes
        wire.pointee.payload_crc = value.payloadCRC
        return wire
    }

    func pageNack(_ value: PageNack) throws(FrameError) -> Pointer<Tandem__PageNack> {
        let wire = try make(tandem__page_nack__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.block = value.block
        wire.pointee.reason = value.reason.wire
        return wire
    }

    func credit(_ value: Credit) throws(FrameError) -> Pointer<Tandem__Credit> {
        let wire = try make(tandem__credit__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.bytes = value.bytes
        return wire
    }

    func transferEnd(_ value: TransferEnd) throws(FrameError) -> Pointer<Tandem__TransferEnd> {
        let wire = try make(tandem__transfer_end__init)
        wire.pointee.transfer = try transfer(value.transfer)
        (wire.pointee.n_blocks, wire.pointee.blocks) = try numbers(value.pages.map(\.block))
        (wire.pointee.n_crcs, wire.pointee.crcs) = try numbers(value.pages.map(\.crc))
        wire.pointee.first_token = try sampled(value.firstToken)
        wire.pointee.cached_tokens = try count(value.cachedTokens, "cached_tokens")
        return wire
    }

    func transferCommitted(_ value: TransferCommitted) throws(FrameError) -> Pointer<Tandem__TransferCommitted> {
        let wire = try make(tandem__transfer_committed__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.received_bytes = value.receivedBytes
        wire.pointee.received_blocks = try count(value.receivedBlocks, "received_blocks")
        wire.pointee.reused_blocks = try count(value.reusedBlocks, "reused_blocks")
        return wire
    }

    func transferFailed(_ value: TransferFailed) throws(FrameError) -> Pointer<Tandem__TransferFailed> {
        let wire = try make(tandem__transfer_failed__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.reason = value.reason.wire
        return wire
    }

    func leaseRenew(_ value: LeaseRenew) throws(FrameError) -> Pointer<Tandem__LeaseRenew> {
        let wire = try make(tandem__lease_renew__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.lease = value.lease.nanoseconds
        return wire
    }

    func cancel(_ value: Cancel) throws(FrameError) -> Pointer<Tandem__Cancel> {
        let wire = try make(tandem__cancel__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.reason = value.reason.wire
        return wire
    }

    func cancelAck(_ value: CancelAck) throws(FrameError) -> Pointer<Tandem__CancelAck> {
        let wire = try make(tandem__cancel_ack__init)
        wire.pointee.transfer = try transfer(value.transfer)
        return wire
    }
}
