import KVPaging
import Messages
import ServingTypes

extension DecodeWorkerCore {
    // MARK: Reserve before push

    /// Holds what the cache has, reserves the rest and room for one more token. Of a prompt that is
    /// cached whole nothing is wanted: P then only computes the first token.
    mutating func reserve(_ order: ReservePages) {
        let transfer = order.transfer
        if let job = jobs[transfer], case .landing(let landing) = job.phase { return acknowledge(transfer, landing) }
        let lease = order.lease > .zero ? order.lease : configuration.leaseDefault
        switch admit(
            transfer, order.tokens, order.promptTokens, order.pageIDs, order.tenant, order.sampling, computesHere: false
        )
        {
        case .failure(let refusal):
            counters.reservationsRefused &+= 1
            tellCoordinator(
                .reserveNack(ReserveNack(transfer: transfer, reason: refusal.reason, freeBlocks: admissible)))
        case .success(var job):
            let blocks = BlockTable.blocks(for: job.tokens.count, blockTokens: configuration.blockTokens)
            let wanted = (UInt32(job.table.sealed)..<UInt32(blocks)).map { $0 }
            let landing = Landing(source: order.source, wanted: wanted, lease: lease, expires: now + lease)
            job.phase = .landing(landing)
            hold(job)
            if !wanted.isEmpty {
                let slots = wanted.map { LandingSlot(block: $0, slot: job.table.slots[Int($0)]) }
                actions.append(.openLanding(transfer, source: order.source, slots: slots))
            }
            acknowledge(transfer, landing)
        }
    }

    private mutating func acknowledge(_ transfer: TransferID, _ landing: Landing) {
        let credit = UInt64(max(configuration.creditWindowBytes, configuration.pageBytes))
        tellCoordinator(
            .reserveAck(ReserveAck(transfer: transfer, wanted: landing.missing, creditBytes: credit)))
    }

    // MARK: Local prefill

    /// Prefills and decodes here. The last position is always computed, since its logits are not
    /// in the cache.
    mutating func start(_ order: StartDecode) {
        let transfer = order.transfer
        if jobs[transfer] != nil { return reply(transfer, nil) }
        switch admit(
            transfer, order.tokens, order.promptTokens, order.pageIDs, order.tenant, order.sampling, computesHere: true)
        {
        case .failure(let refusal):
            counters.reservationsRefused &+= 1
            reply(transfer, refusal.reason)
        case .success(let job):
            hold(job)
            reply(transfer, nil)
        }
    }

    private mutating func reply(_ transfer: TransferID, _ refusal: Refusal?) {
        tellCoordinator(
            .startDecodeAck(TransferReply(transfer: transfer, refusal: refusal, freeBlocks: admissible)))
    }

    // MARK: Admission

    private struct Refused: Error {
        var reason: Refusal
    }

    private mutating func admit(
        _ transfer: TransferID, _ tokens: [TokenID], _ promptTokens: Int, _ pageIDs: [PageID], _ tenant: TenantID,
        _ sampling: SamplingParameters, computesHere: Bool
    ) -> Result<DecodeJob, Refused> {
        let size = configuration.blockTokens
        guard !tokens.isEmpty, (1...tokens.count).contains(promptTokens), pageIDs.count <= tokens.count / size,
            sampling.maxTokens > tokens.count - promptTokens
        else { return .failure(Refused(reason: .malformed)) }
        guard attempts.admit(transfer) else {
            countStale()
            return .failure(Refused(reason: .staleAttempt))
        }
        if let old = current[transfer.job] { drop(old, acknowledge: false) }
        if membership.isDraining { return .failure(Refused(reason: .draining)) }
        let room = roomFor(tokens.count, promptTokens: promptTokens, sampling)
        let blocks = BlockTable.blocks(for: room, blockTokens: size)
        guard tokens.count < configuration.contextTokensMax, blocks <= configuration.blockCount else {
            return .failure(Refused(reason: .tooLong))
        }
        guard jobs.count < configuration.jobsMax else { return .failure(Refused(reason: .tooManyJobs)) }

        var table = BlockTable(tokens: tokens, names: pageIDs, tenant: tenant, blockTokens: size, naming: naming)
        let reusable = computesHere ? (tokens.count - 1) / size : tokens.count / size
        table.pin(limit: reusable, in: &pool)
        guard admissible >= blocks - table.sealed, table.grow(toCover: room, in: &pool)
        else {
            table.release(in: &pool)
            wantedBlocks = blocks
            return .failure(Refused(reason: .noMemory))
        }
        (wantedBlocks, claimedBlocks) = (0, 0)
        admittedBlocks.add(Double(blocks))
        let cached = table.sealed * size
        nextOrder += 1
        var job = DecodeJob(
            transfer: transfer, order: nextOrder, sampling: sampling, promptTokens: promptTokens, tokens: tokens,
            table: table, phase: .prefilling)
        job.computed = cached
        job.cachedTokens = cached
        return .success(job)
    }

    /// Tokens that a job is taken with room for.
    private func roomFor(_ tokens: Int, promptTokens: Int, _ sampling: SamplingParameters) -> Int {
        guard configuration.reservesWholeJobs else { return tokens + 1 }
        let (whole, overflow) = promptTokens.addingReportingOverflow(sampling.maxTokens)
        let most = min(configuration.contextTokensMax, configuration.blockCount * configuration.blockTokens)
        return max(min(overflow ? most : whole, most), tokens + 1)
    }

    /// Blocks that another job may take: running ones keep some to grow into.
    var admissible: Int {
        max(pool.available - (jobs.isEmpty ? 0 : configuration.headroomBlocks), 0)
    }

    private mutating func hold(_ job: DecodeJob) {
        jobs[job.transfer] = job
        current[job.transfer.job] = job.transfer
        arrivals.append(job.transfer)
    }

    // MARK: Plans

    /// From the next iteration on. A job that is not held has ended meanwhile.
    mutating func apply(_ plan: SetRunning) {
        for transfer in plan.pause { setPaused(transfer, true) }
        for transfer in plan.run { setPaused(transfer, false) }
        standby = plan.standby
        claimedBlocks = min(max(plan.wantedBlocks, 0), configuration.blockCount)
        guard !plan.order.isEmpty else { return }
        for transfer in turns { jobs.change(transfer) { $0.rank = .max } }
        for (rank, transfer) in plan.order.enumerated() { jobs.change(transfer) { $0.rank = rank } }
        mayExchange = true
    }

    private mutating func setPaused(_ transfer: TransferID, _ isPaused: Bool) {
        if jobs[transfer] == nil { return countStale() }
        let at = now
        jobs.change(transfer) { job in
            job.isPaused = isPaused
            if !isPaused, !job.isInPool { job.stalledSince = job.stalledSince ?? at }
        }
        if isPaused { endStall(transfer) } else { sayLeft(transfer) }
    }
}
