import CWire
import Messages

extension WireWriter {
    func envelope(_ value: Envelope) throws(FrameError) -> Pointer<Tandem__Envelope> {
        let wire = try make(tandem__envelope__init)
        wire.pointee.sequence = value.sequence
        wire.pointee.sender = try worker(value.sender)
        wire.pointee.body_case = Tandem__Envelope__BodyCase(rawValue: UInt32(kind.rawValue))
        switch value.message {
        case .hello(let body): wire.pointee.hello = try hello(body)
        case .helloAck(let body): wire.pointee.hello_ack = try helloAck(body)
        case .register(let body): wire.pointee.register_ = try register(body)
        case .registerAck(let body): wire.pointee.register_ack = try registerAck(body)
        case .heartbeat(let body): wire.pointee.heartbeat = try heartbeat(body)
        case .kvEvent(let body): wire.pointee.kv_event = try kvEvent(body)
        case .drain(let body): wire.pointee.drain = try drain(body)
        case .drainDone: wire.pointee.drain_done = try make(tandem__drain_done__init)
        case .reservePages(let body): wire.pointee.reserve_pages = try reservePages(body)
        case .reserveAck(let body): wire.pointee.reserve_ack = try reserveAck(body)
        case .reserveNack(let body): wire.pointee.reserve_nack = try reserveNack(body)
        case .startDecode(let body): wire.pointee.start_decode = try startDecode(body)
        case .startDecodeAck(let body): wire.pointee.start_decode_ack = try transferReply(body)
        case .setRunning(let body): wire.pointee.set_running = try setRunning(body)
        case .tokenSteps(let body): wire.pointee.token_steps = try tokenSteps(body)
        case .assignPrefill(let body): wire.pointee.assign_prefill = try assignPrefill(body)
        case .assignAck(let body): wire.pointee.assign_ack = try transferReply(body)
        case .assignNack(let body): wire.pointee.assign_nack = try assignNack(body)
        case .prefillProgress(let body): wire.pointee.prefill_progress = try prefillProgress(body)
        case .prefillDone(let body): wire.pointee.prefill_done = try prefillDone(body)
        case .pageOffer(let body): wire.pointee.page_offer = try blockList(body.transfer, body.blocks)
        case .pageWant(let body): wire.pointee.page_want = try blockList(body.transfer, body.blocks)
        case .pagePush(let body): wire.pointee.page_push = try pagePush(body)
        case .pageAck(let body): wire.pointee.page_ack = try blockList(body.transfer, body.blocks)
        case .pageNack(let body): wire.pointee.page_nack = try pageNack(body)
        case .credit(let body): wire.pointee.credit = try credit(body)
        case .transferEnd(let body): wire.pointee.transfer_end = try transferEnd(body)
        case .transferCommitted(let body): wire.pointee.transfer_committed = try transferCommitted(body)
        case .transferFailed(let body): wire.pointee.transfer_failed = try transferFailed(body)
        case .leaseRenew(let body): wire.pointee.lease_renew = try leaseRenew(body)
        case .cancel(let body): wire.pointee.cancel = try cancel(body)
        case .cancelAck(let body): wire.pointee.cancel_ack = try cancelAck(body)
        }
        return wire
    }
}
