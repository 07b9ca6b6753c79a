import CWire
import Messages
import ServingTypes

extension WireWriter {
    func hello(_ value: Hello) throws(FrameError) -> Pointer<Tandem__Hello> {
        let wire = try make(tandem__hello__init)
        wire.pointee.version_min = value.versionMin
        wire.pointee.version_max = value.versionMax
        wire.pointee.sender = try worker(value.sender)
        wire.pointee.role = value.role.wire
        (wire.pointee.n_compatibility, wire.pointee.compatibility) = try pages([value.compatibility.page])
        wire.pointee.purpose = value.purpose.wire
        if let target = value.relayTarget {
            wire.pointee.has_relay_target = 1
            wire.pointee.relay_target = try text(target.name, "relay_target")
        }
        return wire
    }

    func helloAck(_ value: HelloAck) throws(FrameError) -> Pointer<Tandem__HelloAck> {
        let wire = try make(tandem__hello_ack__init)
        wire.pointee.version = value.version
        wire.pointee.responder = try worker(value.responder)
        if case .refused(let reason) = value.verdict {
            wire.pointee.has_refusal = 1
            wire.pointee.refusal = try sentence(reason)
        }
        return wire
    }

    func register(_ value: Register) throws(FrameError) -> Pointer<Tandem__Register> {
        let wire = try make(tandem__register__init)
        wire.pointee.role = value.role.wire
        wire.pointee.data_host = try text(value.dataHost, "data_host")
        wire.pointee.data_port = UInt32(value.dataPort)
        wire.pointee.block_tokens = try count(value.blockTokens, "block_tokens")
        wire.pointee.block_count = try count(value.blockCount, "block_count")
        wire.pointee.page_bytes = try count(value.pageBytes, "page_bytes")
        wire.pointee.batch_jobs_max = try count(value.batchJobsMax, "batch_jobs_max")
        wire.pointee.step_tokens_max = try count(value.stepTokensMax, "step_tokens_max")
        wire.pointee.process_id = value.processID
        (wire.pointee.n_held, wire.pointee.held) = try transfers(value.held, "held")
        if value.swapPages != 0 {
            wire.pointee.has_swap_pages = 1
            wire.pointee.swap_pages = try count(value.swapPages, "swap_pages")
        }
        if value.reservesWholeJobs {
            wire.pointee.has_reserves_whole_jobs = 1
            wire.pointee.reserves_whole_jobs = 1
        }
        if value.jobsMax != 0 {
            wire.pointee.has_jobs_max = 1
            wire.pointee.jobs_max = try count(value.jobsMax, "jobs_max")
        }
        return wire
    }

    func registerAck(_ value: RegisterAck) throws(FrameError) -> Pointer<Tandem__RegisterAck> {
        let wire = try make(tandem__register_ack__init)
        wire.pointee.heartbeat_every = value.heartbeatEvery.nanoseconds
        wire.pointee.lease = value.lease.nanoseconds
        return wire
    }

    func heartbeat(_ value: Heartbeat) throws(FrameError) -> Pointer<Tandem__Heartbeat> {
        let load = value.load
        let wire = try make(tandem__heartbeat__init)
        wire.pointee.queued_tokens = try count(load.queuedTokens, "queued_tokens")
        wire.pointee.running_jobs = try count(load.runningJobs, "running_jobs")
        wire.pointee.paused_jobs = try count(load.pausedJobs, "paused_jobs")
        wire.pointee.blocks = try blockCounts(load.blocks)
        wire.pointee.steps_finished = load.stepsFinished
        wire.pointee.step_time = load.stepTime.nanoseconds
        wire.pointee.prefill_tokens_per_second = load.prefillTokensPerSecond
        wire.pointee.page_bytes_sent = load.pageBytesSent
        wire.pointee.page_bytes_received = load.pageBytesReceived
        wire.pointee.stale_messages_dropped = load.staleMessagesDropped
        if load.swap != SwapCounts() || load.swapBytesOut != 0 || load.swapBytesIn != 0 || load.swapStall != .zero {
            try addSwap(load, to: wire)
        }
        return wire
    }

    private func addSwap(_ load: LoadReport, to wire: Pointer<Tandem__Heartbeat>) throws(FrameError) {
        let counts = try make(tandem__swap_counts__init)
        counts.pointee.free = try count(load.swap.free, "swap.free")
        counts.pointee.reserved = try count(load.swap.reserved, "swap.reserved")
        counts.pointee.held = try count(load.swap.held, "swap.held")
        wire.pointee.swap = counts
        wire.pointee.has_swap_bytes_out = 1
        wire.pointee.swap_bytes_out = load.swapBytesOut
        wire.pointee.has_swap_bytes_in = 1
        wire.pointee.swap_bytes_in = load.swapBytesIn
        wire.pointee.has_swap_stall = 1
        wire.pointee.swap_stall = load.swapStall.nanoseconds
    }

    private func blockCounts(_ value: BlockCounts) throws(FrameError) -> Pointer<Tandem__BlockCounts> {
        let wire = try make(tandem__block_counts__init)
        wire.pointee.free = try count(value.free, "blocks.free")
        wire.pointee.reserved = try count(value.reserved, "blocks.reserved")
        wire.pointee.filling = try count(value.filling, "blocks.filling")
        wire.pointee.verified = try count(value.verified, "blocks.verified")
        wire.pointee.committed = try count(value.committed, "blocks.committed")
        wire.pointee.evictable = try count(value.evictable, "blocks.evictable")
        wire.pointee.fencing = try count(value.fencing, "blocks.fencing")
        return wire
    }

    func kvEvent(_ value: KVEvent) throws(FrameError) -> Pointer<Tandem__KVEvent> {
        let wire = try make(tandem__kvevent__init)
        wire.pointee.sequence = value.sequence
        let ids: [PageID]
        switch value.change {
        case .stored(let pages):
            wire.pointee.change = TANDEM__KVEVENT__CHANGE__CHANGE_STORED
            ids = pages
        case .removed(let pages):
            wire.pointee.change = TANDEM__KVEVENT__CHANGE__CHANGE_REMOVED
            ids = pages
        case .snapshot(let pages):
            wire.pointee.change = TANDEM__KVEVENT__CHANGE__CHANGE_SNAPSHOT
            ids = pages
        }
        (wire.pointee.n_pages, wire.pointee.pages) = try pages(ids)
        return wire
    }

    func drain(_ value: Drain) throws(FrameError) -> Pointer<Tandem__Drain> {
        let wire = try make(tandem__drain__init)
        wire.pointee.deadline = value.deadline.nanoseconds
        return wire
    }
}
