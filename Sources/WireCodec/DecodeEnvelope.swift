import CWire
import Messages
import ServingTypes

extension WireReader {
    /// The caller has compared the body's number with `kind`.
    func envelope(_ message: UnsafeMutablePointer<Tandem__Envelope>) throws(FrameError) -> Envelope {
        let wire = message.pointee
        return Envelope(
            sequence: wire.sequence, sender: try worker(wire.sender, "envelope.sender"), message: try body(wire))
    }

    private func body(_ wire: Tandem__Envelope) throws(FrameError) -> Message {
        switch kind {
        case .hello: .hello(try hello(try required(wire.hello, "body")))
        case .helloAck: .helloAck(try helloAck(try required(wire.hello_ack, "body")))
        case .register: .register(try register(try required(wire.register_, "body")))
        case .registerAck: .registerAck(registerAck(try required(wire.register_ack, "body")))
        case .heartbeat: .heartbeat(try heartbeat(try required(wire.heartbeat, "body")))
        case .kvEvent: .kvEvent(try kvEvent(try required(wire.kv_event, "body")))
        case .drain: .drain(drain(try required(wire.drain, "body")))
        case .drainDone: .drainDone(DrainDone())
        case .reservePages: .reservePages(try reservePages(try required(wire.reserve_pages, "body")))
        case .reserveAck: .reserveAck(try reserveAck(try required(wire.reserve_ack, "body")))
        case .reserveNack: .reserveNack(try reserveNack(try required(wire.reserve_nack, "body")))
        case .startDecode: .startDecode(try startDecode(try required(wire.start_decode, "body")))
        case .startDecodeAck: .startDecodeAck(try transferReply(try required(wire.start_decode_ack, "body")))
        case .setRunning: .setRunning(try setRunning(try required(wire.set_running, "body")))
        case .tokenSteps: .tokenSteps(try tokenSteps(try required(wire.token_steps, "body")))
        case .assignPrefill: .assignPrefill(try assignPrefill(try required(wire.assign_prefill, "body")))
        case .assignAck: .assignAck(try transferReply(try required(wire.assign_ack, "body")))
        case .assignNack: .assignNack(try assignNack(try required(wire.assign_nack, "body")))
        case .prefillProgress: .prefillProgress(try prefillProgress(try required(wire.prefill_progress, "body")))
        case .prefillDone: .prefillDone(try prefillDone(try required(wire.prefill_done, "body")))
        case .pagePush: .pagePush(try pagePush(try required(wire.page_push, "body")))
        case .pageNack: .pageNack(try pageNack(try required(wire.page_nack, "body")))
        case .credit: .credit(try credit(try required(wire.credit, "body")))
        case .transferEnd: .transferEnd(try transferEnd(try required(wire.transfer_end, "body")))
        case .transferCommitted:
            .transferCommitted(try transferCommitted(try required(wire.transfer_committed, "body")))
        case .transferFailed: .transferFailed(try transferFailed(try required(wire.transfer_failed, "body")))
        case .leaseRenew: .leaseRenew(try leaseRenew(try required(wire.lease_renew, "body")))
        case .cancel: .cancel(try cancel(try required(wire.cancel, "body")))
        case .cancelAck: .cancelAck(try cancelAck(try required(wire.cancel_ack, "body")))
        case .pageOffer: .pageOffer(try pageOffer(wire))
        case .pageWant: .pageWant(try pageWant(wire))
        case .pageAck: .pageAck(try pageAck(wire))
        }
    }

    private func pageOffer(_ wire: Tandem__Envelope) throws(FrameError) -> PageOffer {
        let list = try blocks(try required(wire.page_offer, "body"))
        return PageOffer(transfer: list.transfer, blocks: list.blocks)
    }

    private func pageWant(_ wire: Tandem__Envelope) throws(FrameError) -> PageWant {
        let list = try blocks(try required(wire.page_want, "body"))
        return PageWant(transfer: list.transfer, blocks: list.blocks)
    }

    private func pageAck(_ wire: Tandem__Envelope) throws(FrameError) -> PageAck {
        let list = try blocks(try required(wire.page_ack, "body"))
        return PageAck(transfer: list.transfer, blocks: list.blocks)
    }
}
