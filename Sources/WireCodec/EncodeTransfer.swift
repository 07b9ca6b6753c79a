import CWire
import Messages
import ServingTypes

extension WireWriter {
    func reservePages(_ value: ReservePages) throws(FrameError) -> Pointer<Tandem__ReservePages> {
        let wire = try make(tandem__reserve_pages__init)
        wire.pointee.work = try work(
            value.transfer, value.tenant, value.tokens, promptTokens: value.promptTokens, value.pageIDs, value.sampling)
        wire.pointee.source = try worker(value.source)
        wire.pointee.lease = value.lease.nanoseconds
        return wire
    }

    func reserveAck(_ value: ReserveAck) throws(FrameError) -> Pointer<Tandem__ReserveAck> {
        let wire = try make(tandem__reserve_ack__init)
        wire.pointee.transfer = try transfer(value.transfer)
        (wire.pointee.n_wanted, wire.pointee.wanted) = try numbers(value.wanted)
        wire.pointee.credit_bytes = value.creditBytes
        return wire
    }

    func reserveNack(_ value: ReserveNack) throws(FrameError) -> Pointer<Tandem__ReserveNack> {
        let wire = try make(tandem__reserve_nack__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.reason = value.reason.wire
        wire.pointee.free_blocks = try count(value.freeBlocks, "free_blocks")
        return wire
    }

    func startDecode(_ value: StartDecode) throws(FrameError) -> Pointer<Tandem__StartDecode> {
        let wire = try make(tandem__start_decode__init)
        wire.pointee.work = try work(
            value.transfer, value.tenant, value.tokens, promptTokens: value.promptTokens, value.pageIDs, value.sampling)
        return wire
    }

    func transferReply(_ value: TransferReply) throws(FrameError) -> Pointer<Tandem__TransferReply> {
        let wire = try make(tandem__transfer_reply__init)
        wire.pointee.transfer = try transfer(value.transfer)
        if let refusal = value.refusal {
            wire.pointee.has_refusal = 1
            wire.pointee.refusal = refusal.wire
        }
        wire.pointee.free_blocks = try count(value.freeBlocks, "free_blocks")
        return wire
    }

    func setRunning(_ value: SetRunning) throws(FrameError) -> Pointer<Tandem__SetRunning> {
        let wire = try make(tandem__set_running__init)
        (wire.pointee.n_run, wire.pointee.run) = try transfers(value.run, "run")
        (wire.pointee.n_pause, wire.pointee.pause) = try transfers(value.pause, "pause")
        (wire.pointee.n_order, wire.pointee.order) = try transfers(value.order, "order")
        (wire.pointee.n_standby, wire.pointee.standby) = try transfers(value.standby, "standby")
        if value.wantedBlocks != 0 {
            wire.pointee.has_wanted_blocks = 1
            wire.pointee.wanted_blocks = try count(value.wantedBlocks, "wanted_blocks")
        }
        return wire
    }

    func tokenSteps(_ value: TokenSteps) throws(FrameError) -> Pointer<Tandem__TokenSteps> {
        let wire = try make(tandem__token_steps__init)
        wire.pointee.iteration = value.iteration
        wire.pointee.compute_time = value.computeTime.nanoseconds
        (wire.pointee.n_steps, wire.pointee.steps) = try list(value.steps, "steps") { (step) throws(FrameError) in
            try tokenStep(step)
        }
        if let room = value.room { wire.pointee.room = try self.room(room) }
        (wire.pointee.n_started, wire.pointee.started) = try transfers(value.started, "started")
        return wire
    }

    private func room(_ value: Room) throws(FrameError) -> Pointer<Tandem__Room> {
        let wire = try make(tandem__room__init)
        wire.pointee.free_blocks = try count(value.freeBlocks, "room.free_blocks")
        wire.pointee.free_host_pages = try count(value.freeHostPages, "room.free_host_pages")
        return wire
    }

    private func tokenStep(_ value: TokenStep) throws(FrameError) -> Pointer<Tandem__TokenStep> {
        let wire = try make(tandem__token_step__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.offset = try count(value.offset, "steps.offset")
        (wire.pointee.n_tokens, wire.pointee.tokens) = try list(value.tokens, "steps.tokens") {
            (token) throws(FrameError) in try sampled(token)
        }
        if let end = value.end { wire.pointee.end = try stepEnd(end) }
        wire.pointee.prefilled_tokens = try count(value.prefilledTokens, "steps.prefilled_tokens")
        wire.pointee.cached_tokens = try count(value.cachedTokens, "steps.cached_tokens")
        if let notice = value.swap { wire.pointee.swap = try swapNotice(notice) }
        if let cause = value.evictedFor { wire.pointee.evicted_for = try transfer(cause) }
        return wire
    }

    private func swapNotice(_ value: SwapNotice) throws(FrameError) -> Pointer<Tandem__SwapNotice> {
        let wire = try make(tandem__swap_notice__init)
        switch value {
        case .left: wire.pointee.kind = TANDEM__SWAP_NOTICE__KIND__SWAP_LEFT
        case .back(let stall):
            wire.pointee.kind = TANDEM__SWAP_NOTICE__KIND__SWAP_BACK
            wire.pointee.has_stall = 1
            wire.pointee.stall = stall.nanoseconds
        }
        return wire
    }

    func assignPrefill(_ value: AssignPrefill) throws(FrameError) -> Pointer<Tandem__AssignPrefill> {
        let wire = try make(tandem__assign_prefill__init)
        wire.pointee.work = try work(
            value.transfer, value.tenant, value.tokens, promptTokens: value.promptTokens, value.pageIDs, value.sampling)
        (wire.pointee.n_wanted, wire.pointee.wanted) = try numbers(value.wanted)
        wire.pointee.target = try worker(value.target)
        wire.pointee.target_host = try text(value.targetHost, "target_host")
        wire.pointee.target_port = UInt32(value.targetPort)
        wire.pointee.path = value.path.wire
        wire.pointee.credit_bytes = value.creditBytes
        wire.pointee.lease = value.lease.nanoseconds
        (wire.pointee.has_precedes, wire.pointee.precedes) = (value.precedes ? 1 : 0, value.precedes ? 1 : 0)
        return wire
    }

    func assignNack(_ value: AssignNack) throws(FrameError) -> Pointer<Tandem__AssignNack> {
        let wire = try make(tandem__assign_nack__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.reason = value.reason.wire
        wire.pointee.free_blocks = try count(value.freeBlocks, "free_blocks")
        return wire
    }

    func prefillProgress(_ value: PrefillProgress) throws(FrameError) -> Pointer<Tandem__PrefillProgress> {
        let wire = try make(tandem__prefill_progress__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.computed_tokens = try count(value.computedTokens, "computed_tokens")
        wire.pointee.cached_tokens = try count(value.cachedTokens, "cached_tokens")
        wire.pointee.compute_time = value.computeTime.nanoseconds
        return wire
    }

    func prefillDone(_ value: PrefillDone) throws(FrameError) -> Pointer<Tandem__PrefillDone> {
        let wire = try make(tandem__prefill_done__init)
        wire.pointee.transfer = try transfer(value.transfer)
        wire.pointee.first_token = try sampled(value.firstToken)
        wire.pointee.cached_tokens = try count(value.cachedTokens, "cached_tokens")
        return wire
    }
}
