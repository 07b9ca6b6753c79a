import Messages
import ServingMetrics
import ServingTypes

extension ServingHistograms {
    /// Folds a job's outcome.
    public mutating func observe(_ outcome: JobOutcome) {
        let ending: FinishReason
        switch outcome.ending {
        case .finished(let reason): ending = reason
        case .failed: ending = .failed
        }
        var job = JobObservation(
            ending: ending, promptTokens: outcome.usage.promptTokens, outputTokens: outcome.usage.outputTokens,
            received: outcome.stamps.received)
        job.queued = outcome.stamps.queued
        job.placed = outcome.stamps.placed
        job.firstToken = outcome.stamps.firstToken
        job.transferring = outcome.stamps.transferring
        job.decoding = outcome.stamps.decoding
        job.finished = outcome.stamps.finished
        job.kvBytesMoved = outcome.route.kvBytesMoved
        observe(job)
    }
}

extension Coordinator {
    enum MetricsLimits {
        /// Tenants that get samples of their own, first by name.
        static let tenants = 200
    }

    /// The cluster's metrics in Prometheus text: `tandem_` names, then vLLM's. `model` becomes the
    /// label `model_name`.
    public func metricsText(model: String) -> String {
        var page = MetricsPage()
        let snapshot = snapshot()
        addJobs(snapshot, to: &page)
        addWorkers(snapshot.workers, to: &page)
        addTenants(snapshot.tenants, to: &page)
        addHistograms(to: &page)
        page.addVLLM(readings(snapshot), histograms, model: model)
        return page.text
    }

    private func addJobs(_ snapshot: ClusterSnapshot, to page: inout MetricsPage) {
        let counters = snapshot.counters
        page.gauge("tandem_jobs_queued", "Jobs that wait for a worker.", [.init(snapshot.queuedJobs)])
        page.gauge("tandem_jobs_live", "Jobs admitted and not ended.", [.init(snapshot.liveJobs)])
        page.counter("tandem_jobs_admitted_total", "Jobs admitted.", [.init(counters.admitted)])
        page.counter("tandem_jobs_refused_total", "Jobs refused at admission.", [.init(counters.refused)])
        page.counter(
            "tandem_jobs_ended_total", "Jobs by how they ended.",
            [
                .init(counters.finishedStop, [("ending", "stop")]),
                .init(counters.finishedLength, [("ending", "length")]),
                .init(counters.cancelled, [("ending", "cancelled")]), .init(counters.failed, [("ending", "failed")]),
            ])
        page.counter(
            "tandem_jobs_requeued_total", "Attempts that failed and were repeated.", [.init(counters.requeued)])
        page.counter(
            "tandem_jobs_local_total", "Attempts prefilled where they decode.", [.init(counters.decodedLocally)])
        page.counter("tandem_preemptions_total", "Running jobs paused.", [.init(counters.preempted)])
        page.counter(
            "tandem_swaps_total", "Running jobs whose pages left for a host tier, and came back.",
            [
                .init(counters.swappedOut, [("direction", "out")]), .init(counters.swappedBack, [("direction", "in")]),
            ])
        page.counter("tandem_workers_lost_total", "Workers lost.", [.init(counters.workersLost)])
        page.counter("tandem_transfers_committed_total", "Transfers committed.", [.init(counters.transfersCommitted)])
        page.counter("tandem_transfers_failed_total", "Transfers failed.", [.init(counters.transfersFailed)])
        page.counter("tandem_kv_bytes_moved_total", "Bytes of pages that travelled.", [.init(counters.kvBytesMoved)])
        page.counter(
            "tandem_stale_messages_total", "Messages of a past attempt or epoch, dropped.",
            [.init(counters.staleMessagesDropped)])
        page.counter(
            "tandem_repeated_tokens_total", "Tokens that came again and were dropped.",
            [.init(counters.duplicateTokensDropped)])
        page.counter(
            "tandem_tokens_total", "Tokens by kind.",
            [
                .init(counters.promptTokens, [("kind", "prompt")]), .init(counters.cachedTokens, [("kind", "cached")]),
                .init(counters.outputTokens, [("kind", "output")]),
                .init(counters.recomputedTokens, [("kind", "recomputed")]),
            ])
    }

    private func addWorkers(_ workers: [WorkerView], to page: inout MetricsPage) {
        func samples(_ value: (WorkerView) -> Double) -> [MetricsPage.Sample] {
            workers.map { .init(value($0), [("worker", $0.worker.id.name), ("role", $0.role.rawValue)]) }
        }
        page.gauge(
            "tandem_worker_info", "Registered workers and their state.",
            workers.map {
                .init(
                    1,
                    [
                        ("worker", $0.worker.id.name), ("role", $0.role.rawValue), ("state", $0.state.rawValue),
                        ("epoch", $0.worker.epoch.description),
                    ])
            })
        page.gauge("tandem_worker_jobs", "Jobs given to the worker.", samples { Double($0.assignedJobs) })
        page.gauge("tandem_worker_step_seconds", "Mean time of recent steps.", samples { $0.load.stepTime.seconds })
        page.counter("tandem_worker_steps_total", "Steps finished.", samples { Double($0.load.stepsFinished) })
        page.counter(
            "tandem_worker_page_bytes_sent_total", "Page bytes sent.", samples { Double($0.load.pageBytesSent) })
        page.counter(
            "tandem_worker_page_bytes_received_total", "Page bytes received.",
            samples { Double($0.load.pageBytesReceived) })
        page.gauge("tandem_worker_blocks", "Blocks of the pool by state.", workers.flatMap(blockSamples))
        addHostTiers(workers.filter { $0.load.swap.total > 0 }, to: &page)
    }

    private func addHostTiers(_ workers: [WorkerView], to page: inout MetricsPage) {
        guard !workers.isEmpty else { return }
        page.gauge(
            "tandem_worker_swap_pages", "Pages of the host tier by state.",
            workers.flatMap { worker -> [MetricsPage.Sample] in
                let swap = worker.load.swap
                return [("free", swap.free), ("reserved", swap.reserved), ("held", swap.held)].map {
                    .init($0.1, [("worker", worker.worker.id.name), ("state", $0.0)])
                }
            })
        page.counter(
            "tandem_worker_swap_bytes_total", "Page bytes between pool and host tier.",
            workers.flatMap { worker -> [MetricsPage.Sample] in
                let name = worker.worker.id.name
                return [
                    .init(worker.load.swapBytesOut, [("worker", name), ("direction", "out")]),
                    .init(worker.load.swapBytesIn, [("worker", name), ("direction", "in")]),
                ]
            })
        page.counter(
            "tandem_worker_swap_stall_seconds_total",
            "Time that jobs could have run and did not, for want of their pages; summed over jobs.",
            workers.map { .init($0.load.swapStall.seconds, [("worker", $0.worker.id.name)]) })
    }

    private func blockSamples(_ worker: WorkerView) -> [MetricsPage.Sample] {
        let blocks = worker.load.blocks
        let states = [
            ("free", blocks.free), ("reserved", blocks.reserved), ("filling", blocks.filling),
            ("verified", blocks.verified), ("committed", blocks.committed), ("evictable", blocks.evictable),
            ("fencing", blocks.fencing),
        ]
        return states.map { .init($0.1, [("worker", worker.worker.id.name), ("state", $0.0)]) }
    }

    private func addTenants(_ tenants: [TenantView], to page: inout MetricsPage) {
        let shown = tenants.prefix(MetricsLimits.tenants)
        func samples(_ value: (TenantView) -> Double) -> [MetricsPage.Sample] {
            shown.map { .init(value($0), [("tenant", $0.tenant.name)]) }
        }
        page.gauge("tandem_tenant_virtual_counter", "Units of service over weight.", samples { $0.virtualCounter })
        page.gauge("tandem_tenant_weight", "Entitlement.", samples { $0.weight })
        page.gauge("tandem_tenant_jobs_queued", "Jobs that wait.", samples { Double($0.queuedJobs) })
        page.gauge("tandem_tenant_jobs_running", "Jobs on workers.", samples { Double($0.runningJobs) })
        page.counter(
            "tandem_tenant_tokens_total", "Tokens of ended jobs, by kind.",
            shown.flatMap { view -> [MetricsPage.Sample] in
                let tenant = view.tenant.name
                return [
                    .init(view.usage.promptTokens, [("tenant", tenant), ("kind", "prompt")]),
                    .init(view.usage.outputTokens, [("tenant", tenant), ("kind", "output")]),
                ]
            })
    }

    private func addHistograms(to page: inout MetricsPage) {
        page.histogram(
            "tandem_time_to_first_token_seconds", "Arrival to first token.", histograms.timeToFirstToken)
        page.histogram("tandem_inter_token_latency_seconds", "Gap between two tokens.", histograms.interTokenLatency)
        page.histogram("tandem_time_per_output_token_seconds", "Mean gap of one job.", histograms.timePerOutputToken)
        page.histogram("tandem_job_seconds", "Arrival to last token.", histograms.endToEnd)
        page.histogram("tandem_job_queue_seconds", "Waiting for a worker.", histograms.queueTime)
        page.histogram("tandem_job_prefill_seconds", "Placed to first token.", histograms.prefillTime)
        page.histogram("tandem_job_transfer_seconds", "First token to commit.", histograms.transferTime)
        page.histogram("tandem_job_decode_seconds", "First token to last.", histograms.decodeTime)
        page.histogram("tandem_job_kv_bytes", "Page bytes moved for one job.", histograms.transferBytes)
        page.histogram("tandem_job_prompt_tokens", "Prompt sizes.", histograms.promptTokens)
        page.histogram("tandem_job_output_tokens", "Output sizes.", histograms.outputTokens)
    }

    private func readings(_ snapshot: ClusterSnapshot) -> VLLMReadings {
        let counters = snapshot.counters
        var readings = VLLMReadings()
        readings.running = snapshot.liveJobs - snapshot.queuedJobs
        readings.waiting = snapshot.queuedJobs
        readings.prefixQueries = counters.promptTokens
        readings.prefixHits = counters.cachedTokens
        readings.preemptions = counters.preempted
        readings.promptTokens = counters.promptTokens
        readings.generationTokens = counters.outputTokens
        readings.finishedStop = counters.finishedStop
        readings.finishedLength = counters.finishedLength
        readings.aborted = counters.cancelled + counters.failed
        var used = 0
        for worker in snapshot.workers where worker.role != .prefill {
            let blocks = worker.load.blocks
            used += blocks.total - blocks.available
            readings.blockCount += blocks.total
            readings.blockTokens = worker.blockTokens
        }
        readings.cacheUsage = readings.blockCount > 0 ? Double(used) / Double(readings.blockCount) : 0
        return readings
    }
}
