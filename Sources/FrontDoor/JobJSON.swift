import BoundedJSON
import CoordinatorCore
import Messages
import ServingTypes

/// Jobs and clusters as people and scripts read them: snake case, times in milliseconds.
enum JobJSON {
    static func job(_ view: JobView, record: JobRequestRecord?) -> JSONValue {
        var members = JSONObject([
            ("id", .string(view.job.description)), ("object", "tandem.job"), ("tenant", .string(view.tenant.name)),
            ("status", .string(status(view))), ("phase", .string(view.phase.rawValue)),
        ])
        if let record {
            members["kind"] = .string(record.kind.rawValue)
            members["model"] = .string(record.model)
            members["created"] = .integer(record.created)
            members["detached"] = .bool(record.detached)
        }
        members["usage"] = usage(view.usage)
        members["timing"] = timing(view)
        members["stamps_ms"] = stamps(view.stamps)
        members["route"] = route(view.route)
        if case .failed(let error)? = view.ending { members["error"] = ErrorBody(error).json["error"] }
        return .object(members)
    }

    /// The phase, or for an ended job how it ended: stop, length, cancelled, failed.
    private static func status(_ view: JobView) -> String {
        switch view.ending {
        case .finished(let reason): reason.rawValue
        case .failed: FinishReason.failed.rawValue
        case nil: view.phase.rawValue
        }
    }

    private static func usage(_ usage: JobUsage) -> JSONValue {
        [
            "prompt_tokens": integer(usage.promptTokens), "completion_tokens": integer(usage.outputTokens),
            "total_tokens": integer(usage.promptTokens + usage.outputTokens),
            "cached_tokens": integer(usage.cachedTokens), "recomputed_tokens": integer(usage.recomputedTokens),
        ]
    }

    /// Differences of stamps: what `bench` and people ask for.
    private static func timing(_ view: JobView) -> JSONValue {
        let stamps = view.stamps
        func span(_ from: Instant?, _ to: Instant?) -> JSONValue {
            guard let from, let to else { return nil }
            return milliseconds(to - from)
        }
        var tpot: JSONValue = nil
        if let first = stamps.firstToken, let last = stamps.finished, view.usage.outputTokens > 1 {
            tpot = .number((last - first).milliseconds / Double(view.usage.outputTokens - 1))
        }
        return [
            "queue_ms": span(stamps.received, stamps.placed), "ttft_ms": span(stamps.received, stamps.firstToken),
            "prefill_ms": span(stamps.prefilling, stamps.firstToken),
            "transfer_ms": span(stamps.transferring, stamps.decoding),
            "second_token_ms": span(stamps.firstToken, stamps.secondToken), "tpot_ms": tpot,
            "jct_ms": span(stamps.received, stamps.finished),
        ]
    }

    /// Each edge of the lifecycle after `received`.
    private static func stamps(_ stamps: JobStamps) -> JSONValue {
        func since(_ instant: Instant?) -> JSONValue { instant.map { milliseconds($0 - stamps.received) } ?? nil }
        return [
            "queued": since(stamps.queued), "placed": since(stamps.placed), "reserved": since(stamps.reserved),
            "prefilling": since(stamps.prefilling), "first_token": since(stamps.firstToken),
            "transferring": since(stamps.transferring), "decoding": since(stamps.decoding),
            "second_token": since(stamps.secondToken), "finished": since(stamps.finished),
        ]
    }

    private static func route(_ route: JobRoute) -> JSONValue {
        [
            "prefill": route.prefill.map { .string($0.name) } ?? nil,
            "decode": route.decode.map { .string($0.name) } ?? nil, "attempts": integer(route.attempts),
            "preemptions": integer(route.preemptions), "kv_bytes_moved": integer(route.kvBytesMoved),
            "blocks_reused": integer(route.blocksReused), "swaps": integer(route.swaps),
            "swap_stall_seconds": .number(route.swapStall.seconds),
        ]
    }

    // MARK: The cluster

    static func cluster(_ snapshot: ClusterSnapshot) -> JSONValue {
        [
            "policy": .string(snapshot.policy), "queued_jobs": integer(snapshot.queuedJobs),
            "live_jobs": integer(snapshot.liveJobs), "workers": .array(snapshot.workers.map { worker($0) }),
            "tenants": .array(snapshot.tenants.map { tenant($0) }), "counters": counters(snapshot.counters),
        ]
    }

    private static func worker(_ view: WorkerView) -> JSONValue {
        [
            "name": .string(view.worker.id.name), "epoch": .string(view.worker.epoch.description),
            "role": .string(view.role.rawValue), "state": .string(view.state.rawValue),
            "pid": integer(view.processID), "data_endpoint": .string(view.dataEndpoint),
            "assigned_jobs": integer(view.assignedJobs), "block_tokens": integer(view.blockTokens),
            "page_bytes": integer(view.pageBytes), "load": load(view.load),
        ]
    }

    private static func load(_ load: LoadReport) -> JSONValue {
        [
            "queued_tokens": integer(load.queuedTokens), "running_jobs": integer(load.runningJobs),
            "paused_jobs": integer(load.pausedJobs),
            "blocks": [
                "free": integer(load.blocks.free), "reserved": integer(load.blocks.reserved),
                "filling": integer(load.blocks.filling), "verified": integer(load.blocks.verified),
                "committed": integer(load.blocks.committed), "evictable": integer(load.blocks.evictable),
                "fencing": integer(load.blocks.fencing), "total": integer(load.blocks.total),
            ],
            "swap": [
                "free": integer(load.swap.free), "reserved": integer(load.swap.reserved),
                "held": integer(load.swap.held), "bytes_out": integer(load.swapBytesOut),
                "bytes_in": integer(load.swapBytesIn), "stall_seconds": .number(load.swapStall.seconds),
            ],
            "steps_finished": integer(load.stepsFinished), "step_ms": milliseconds(load.stepTime),
            "prefill_tokens_per_second": .number(load.prefillTokensPerSecond),
            "page_bytes_sent": integer(load.pageBytesSent), "page_bytes_received": integer(load.pageBytesReceived),
            "stale_messages_dropped": integer(load.staleMessagesDropped),
        ]
    }

    private static func tenant(_ view: TenantView) -> JSONValue {
        [
            "name": .string(view.tenant.name), "weight": .number(view.weight),
            "virtual_counter": .number(view.virtualCounter), "queued_jobs": integer(view.queuedJobs),
            "running_jobs": integer(view.runningJobs), "usage": usage(view.usage),
        ]
    }

    private static func counters(_ counters: CoordinatorCounters) -> JSONValue {
        [
            "admitted": integer(counters.admitted), "refused": integer(counters.refused),
            "finished_stop": integer(counters.finishedStop), "finished_length": integer(counters.finishedLength),
            "cancelled": integer(counters.cancelled), "failed": integer(counters.failed),
            "requeued": integer(counters.requeued), "preempted": integer(counters.preempted),
            "workers_lost": integer(counters.workersLost),
            "transfers_committed": integer(counters.transfersCommitted),
            "transfers_failed": integer(counters.transfersFailed), "kv_bytes_moved": integer(counters.kvBytesMoved),
            "stale_messages_dropped": integer(counters.staleMessagesDropped),
            "duplicate_tokens_dropped": integer(counters.duplicateTokensDropped),
            "prompt_tokens": integer(counters.promptTokens), "cached_tokens": integer(counters.cachedTokens),
            "output_tokens": integer(counters.outputTokens),
            "recomputed_tokens": integer(counters.recomputedTokens),
            "decoded_locally": integer(counters.decodedLocally), "swapped_out": integer(counters.swappedOut),
            "swapped_back": integer(counters.swappedBack),
        ]
    }

    private static func integer(_ value: some BinaryInteger) -> JSONValue { .integer(Int64(clamping: value)) }

    /// To the microsecond: more digits mean nothing.
    private static func milliseconds(_ span: TimeSpan) -> JSONValue {
        .number((span.milliseconds * 1000).rounded() / 1000)
    }
}
