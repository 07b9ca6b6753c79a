import CWire
import Messages
import ServingTypes

extension WireReader {
    func reservePages(_ wire: Tandem__ReservePages) throws(FrameError) -> ReservePages {
        let work = try work(wire.work)
        return ReservePages(
            transfer: work.transfer, tenant: work.tenant, tokens: work.tokens, promptTokens: work.promptTokens,
            pageIDs: work.pageIDs, sampling: work.sampling, source: try worker(wire.source, "source"),
            lease: TimeSpan(nanoseconds: wire.lease))
    }

    func reserveAck(_ wire: Tandem__ReserveAck) throws(FrameError) -> ReserveAck {
        ReserveAck(
            transfer: try transfer(wire.transfer), wanted: numbers(wire.n_wanted, wire.wanted),
            creditBytes: wire.credit_bytes)
    }

    func reserveNack(_ wire: Tandem__ReserveNack) throws(FrameError) -> ReserveNack {
        ReserveNack(
            transfer: try transfer(wire.transfer), reason: try choice(wire.reason, "reason"),
            freeBlocks: try int(wire.free_blocks, "free_blocks"))
    }

    func startDecode(_ wire: Tandem__StartDecode) throws(FrameError) -> StartDecode {
        let work = try work(wire.work)
        return StartDecode(
            transfer: work.transfer, tenant: work.tenant, tokens: work.tokens, promptTokens: work.promptTokens,
            pageIDs: work.pageIDs, sampling: work.sampling)
    }

    func transferReply(_ wire: Tandem__TransferReply) throws(FrameError) -> TransferReply {
        let refusal: Refusal? = wire.has_refusal != 0 ? try choice(wire.refusal, "refusal") : nil
        return TransferReply(
            transfer: try transfer(wire.transfer), refusal: refusal,
            freeBlocks: try int(wire.free_blocks, "free_blocks"))
    }

    func setRunning(_ wire: Tandem__SetRunning) throws(FrameError) -> SetRunning {
        SetRunning(
            run: try transfers(wire.n_run, wire.run, "run"), pause: try transfers(wire.n_pause, wire.pause, "pause"),
            order: try transfers(wire.n_order, wire.order, "order"),
            standby: try transfers(wire.n_standby, wire.standby, "standby"),
            wantedBlocks: wire.has_wanted_blocks != 0 ? try blockCount(wire.wanted_blocks, "wanted_blocks") : 0)
    }

    func tokenSteps(_ wire: Tandem__TokenSteps) throws(FrameError) -> TokenSteps {
        TokenSteps(
            iteration: wire.iteration, computeTime: TimeSpan(nanoseconds: wire.compute_time),
            steps: try list(wire.n_steps, wire.steps, "steps") { (step) throws(FrameError) in try tokenStep(step) },
            room: wire.room != nil ? try room(try required(wire.room, "room")) : nil,
            started: try transfers(wire.n_started, wire.started, "started"))
    }

    private func room(_ wire: Tandem__Room) throws(FrameError) -> Room {
        Room(
            freeBlocks: try blockCount(wire.free_blocks, "room.free_blocks"),
            freeHostPages: try blockCount(wire.free_host_pages, "room.free_host_pages"))
    }

    private func tokenStep(_ wire: Tandem__TokenStep) throws(FrameError) -> TokenStep {
        TokenStep(
            transfer: try transfer(wire.transfer), offset: try int(wire.offset, "steps.offset"),
            tokens: try list(wire.n_tokens, wire.tokens, "steps.tokens") { (token) throws(FrameError) in
                try sampled(token)
            },
            end: wire.end != nil ? try stepEnd(try required(wire.end, "steps.end")) : nil,
            prefilledTokens: try int(wire.prefilled_tokens, "steps.prefilled_tokens"),
            cachedTokens: try int(wire.cached_tokens, "steps.cached_tokens"),
            swap: wire.swap != nil ? try swapNotice(try required(wire.swap, "steps.swap")) : nil,
            evictedFor: wire.evicted_for != nil ? try transfer(wire.evicted_for) : nil)
    }

    private func swapNotice(_ wire: Tandem__SwapNotice) throws(FrameError) -> SwapNotice {
        switch wire.kind {
        case TANDEM__SWAP_NOTICE__KIND__SWAP_LEFT where wire.has_stall == 0: return .left
        case TANDEM__SWAP_NOTICE__KIND__SWAP_BACK where wire.has_stall != 0:
            return .back(stall: TimeSpan(nanoseconds: wire.stall))
        default: throw malformed("steps.swap")
        }
    }

    func assignPrefill(_ wire: Tandem__AssignPrefill) throws(FrameError) -> AssignPrefill {
        let work = try work(wire.work)
        return AssignPrefill(
            transfer: work.transfer, tenant: work.tenant, tokens: work.tokens, promptTokens: work.promptTokens,
            pageIDs: work.pageIDs, sampling: work.sampling, wanted: numbers(wire.n_wanted, wire.wanted),
            target: try worker(wire.target, "target"), targetHost: try text(wire.target_host, "target_host"),
            targetPort: try port(wire.target_port, "target_port"), path: try choice(wire.path, "path"),
            creditBytes: wire.credit_bytes, lease: TimeSpan(nanoseconds: wire.lease),
            precedes: wire.has_precedes != 0 && wire.precedes != 0)
    }

    func assignNack(_ wire: Tandem__AssignNack) throws(FrameError) -> AssignNack {
        AssignNack(
            transfer: try transfer(wire.transfer), reason: try choice(wire.reason, "reason"),
            freeBlocks: try int(wire.free_blocks, "free_blocks"))
    }

    func prefillProgress(_ wire: Tandem__PrefillProgress) throws(FrameError) -> PrefillProgress {
        PrefillProgress(
            transfer: try transfer(wire.transfer), computedTokens: try int(wire.computed_tokens, "computed_tokens"),
            cachedTokens: try int(wire.cached_tokens, "cached_tokens"),
            computeTime: TimeSpan(nanoseconds: wire.compute_time))
    }

    func prefillDone(_ wire: Tandem__PrefillDone) throws(FrameError) -> PrefillDone {
        PrefillDone(
            transfer: try transfer(wire.transfer),
            firstToken: try sampled(try required(wire.first_token, "first_token")),
            cachedTokens: try int(wire.cached_tokens, "cached_tokens"))
    }
}
