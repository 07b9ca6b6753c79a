import CWire
import Messages
import ServingTypes

extension WireReader {
    func hello(_ wire: Tandem__Hello) throws(FrameError) -> Hello {
        guard wire.n_compatibility == 4 else { throw malformed("compatibility") }
        let digest = try pages(4, wire.compatibility, "compatibility")
        return Hello(
            versionMin: wire.version_min, versionMax: wire.version_max, sender: try worker(wire.sender, "sender"),
            role: try choice(wire.role, "role"), compatibility: CompatibilityDigest(digest[0]),
            purpose: try choice(wire.purpose, "purpose"),
            relayTarget: wire.has_relay_target != 0 ? WorkerID(try text(wire.relay_target, "relay_target")) : nil)
    }

    func helloAck(_ wire: Tandem__HelloAck) throws(FrameError) -> HelloAck {
        HelloAck(
            version: wire.version, responder: try worker(wire.responder, "responder"),
            verdict: wire.has_refusal != 0 ? .refused(try sentence(wire.refusal, "refusal")) : .accepted)
    }

    func register(_ wire: Tandem__Register) throws(FrameError) -> Register {
        Register(
            role: try choice(wire.role, "role"), dataHost: try text(wire.data_host, "data_host"),
            dataPort: try port(wire.data_port, "data_port"), blockTokens: try int(wire.block_tokens, "block_tokens"),
            blockCount: try int(wire.block_count, "block_count"), pageBytes: try int(wire.page_bytes, "page_bytes"),
            batchJobsMax: try int(wire.batch_jobs_max, "batch_jobs_max"),
            stepTokensMax: try int(wire.step_tokens_max, "step_tokens_max"), processID: wire.process_id,
            held: try transfers(wire.n_held, wire.held, "held"),
            swapPages: wire.has_swap_pages != 0 ? try blockCount(wire.swap_pages, "swap_pages") : 0,
            reservesWholeJobs: wire.has_reserves_whole_jobs != 0 && wire.reserves_whole_jobs != 0,
            jobsMax: wire.has_jobs_max != 0 ? try blockCount(wire.jobs_max, "jobs_max") : 0)
    }

    func registerAck(_ wire: Tandem__RegisterAck) -> RegisterAck {
        RegisterAck(
            heartbeatEvery: TimeSpan(nanoseconds: wire.heartbeat_every), lease: TimeSpan(nanoseconds: wire.lease))
    }

    func heartbeat(_ wire: Tandem__Heartbeat) throws(FrameError) -> Heartbeat {
        var load = LoadReport()
        load.queuedTokens = try int(wire.queued_tokens, "queued_tokens")
        load.runningJobs = try int(wire.running_jobs, "running_jobs")
        load.pausedJobs = try int(wire.paused_jobs, "paused_jobs")
        load.blocks = try blockCounts(try required(wire.blocks, "blocks"))
        load.stepsFinished = wire.steps_finished
        load.stepTime = TimeSpan(nanoseconds: wire.step_time)
        guard !wire.prefill_tokens_per_second.isNaN else { throw malformed("prefill_tokens_per_second") }
        load.prefillTokensPerSecond = wire.prefill_tokens_per_second
        load.pageBytesSent = wire.page_bytes_sent
        load.pageBytesReceived = wire.page_bytes_received
        load.staleMessagesDropped = wire.stale_messages_dropped
        if wire.swap != nil {
            let counts = try required(wire.swap, "swap")
            load.swap.free = try blockCount(counts.free, "swap.free")
            load.swap.reserved = try blockCount(counts.reserved, "swap.reserved")
            load.swap.held = try blockCount(counts.held, "swap.held")
        }
        if wire.has_swap_bytes_out != 0 { load.swapBytesOut = wire.swap_bytes_out }
        if wire.has_swap_bytes_in != 0 { load.swapBytesIn = wire.swap_bytes_in }
        if wire.has_swap_stall != 0 { load.swapStall = TimeSpan(nanoseconds: wire.swap_stall) }
        return Heartbeat(load: load)
    }

    private func blockCounts(_ wire: Tandem__BlockCounts) throws(FrameError) -> BlockCounts {
        var counts = BlockCounts()
        counts.free = try blockCount(wire.free, "blocks.free")
        counts.reserved = try blockCount(wire.reserved, "blocks.reserved")
        counts.filling = try blockCount(wire.filling, "blocks.filling")
        counts.verified = try blockCount(wire.verified, "blocks.verified")
        counts.committed = try blockCount(wire.committed, "blocks.committed")
        counts.evictable = try blockCount(wire.evictable, "blocks.evictable")
        counts.fencing = try blockCount(wire.fencing, "blocks.fencing")
        return counts
    }

    /// Small enough that the sum over the states cannot overflow: a slot index has 32 bits.
    func blockCount(_ value: UInt64, _ field: String) throws(FrameError) -> Int {
        guard value <= UInt64(UInt32.max) else { throw malformed(field) }
        return Int(value)
    }

    func kvEvent(_ wire: Tandem__KVEvent) throws(FrameError) -> KVEvent {
        let ids = try pages(wire.n_pages, wire.pages, "pages")
        let change: KVEvent.Change =
            switch wire.change {
            case TANDEM__KVEVENT__CHANGE__CHANGE_STORED: .stored(ids)
            case TANDEM__KVEVENT__CHANGE__CHANGE_REMOVED: .removed(ids)
            case TANDEM__KVEVENT__CHANGE__CHANGE_SNAPSHOT: .snapshot(ids)
            default: throw malformed("change")
            }
        return KVEvent(sequence: wire.sequence, change: change)
    }

    func drain(_ wire: Tandem__Drain) -> Drain { Drain(deadline: TimeSpan(nanoseconds: wire.deadline)) }
}
