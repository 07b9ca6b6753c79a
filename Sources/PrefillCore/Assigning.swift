import KVPaging
import Messages
import ServingTypes

extension PrefillWorkerCore {
    // MARK: Taking work

    /// Queues a prompt, and brings up its link meanwhile. Memory is taken when its turn comes.
    mutating func assign(_ order: AssignPrefill) {
        if jobs[order.transfer] != nil { return accept(order.transfer) }
        if let reason = refusal(of: order) {
            counters.assignmentsRefused &+= 1
            return tellCoordinator(
                .assignNack(AssignNack(transfer: order.transfer, reason: reason, freeBlocks: pool.available)))
        }
        let lease = order.lease > .zero ? order.lease : configuration.leaseDefault
        let table = BlockTable(
            tokens: order.tokens, names: order.pageIDs, tenant: order.tenant, blockTokens: configuration.blockTokens,
            naming: naming)
        jobs[order.transfer] = PrefillJob(
            order: order, table: table,
            outgoing: Outgoing(wanted: order.wanted, credit: order.creditBytes, lease: lease, at: now))
        current[order.transfer.job] = order.transfer
        arrivals.insert(order.transfer, at: place(of: order))
        accept(order.transfer)
        connect(for: order)
    }

    /// Behind everybody, or before all whose prompts are not computed and that do not precede others themselves.
    private func place(of order: AssignPrefill) -> Int {
        guard order.precedes else { return arrivals.count }
        let first = arrivals.firstIndex { other in
            jobs.read(other) { $0.firstToken == nil && !$0.order.precedes } ?? false
        }
        return first ?? arrivals.count
    }

    private mutating func accept(_ transfer: TransferID) {
        tellCoordinator(
            .assignAck(TransferReply(transfer: transfer, refusal: nil, freeBlocks: pool.available)))
    }

    private mutating func refusal(of order: AssignPrefill) -> Refusal? {
        let count = order.tokens.count
        let size = configuration.blockTokens
        let blocks = BlockTable.blocks(for: count, blockTokens: size)
        let isAscending = zip(order.wanted, order.wanted.dropFirst()).allSatisfy { $0 < $1 }
        guard count > 0, (1...count).contains(order.promptTokens), order.pageIDs.count <= count / size, isAscending,
            order.wanted.last.map({ Int($0) < blocks }) ?? true
        else { return .malformed }
        guard attempts.admit(order.transfer) else {
            countStale()
            return .staleAttempt
        }
        if let old = current[order.transfer.job] { drop(old, acknowledge: false) }
        if membership.isDraining { return .draining }
        if count > configuration.contextTokensMax || blocks > configuration.blockCount { return .tooLong }
        return jobs.count < configuration.jobsMax ? nil : .tooManyJobs
    }

    // MARK: Planning

    /// In order, chunk by chunk; a prompt that finds no memory waits, and so do those behind it that have not begun.
    /// One that precedes others shares its steps only with its like.
    mutating func startStep() {
        guard underWay == nil else { return }
        var entries: [StepEntry] = []
        var budget = max(configuration.stepTokensMax, 1)
        var (isFull, isUrgent) = (false, false)
        for transfer in arrivals {
            guard budget > 0, entries.count < max(configuration.stepJobsMax, 1) else { break }
            let precedes = jobs.read(transfer) { $0.order.precedes } ?? false
            if isUrgent, !precedes { break }
            if jobs.read(transfer, { $0.isQueued }) ?? false, isFull || !begin(transfer) {
                isFull = true
                continue
            }
            guard let job = jobs[transfer], job.isComputing else { continue }
            isUrgent = isUrgent || precedes
            let count = job.order.tokens.count
            let end = min(job.computed + max(min(configuration.prefillChunkTokens, budget), 1), count)
            budget -= end - job.computed
            entries.append(
                StepEntry(
                    transfer: transfer, tokens: Array(job.order.tokens[job.computed..<end]),
                    startPosition: job.computed, blockTable: job.table.slots,
                    sample: end == count ? job.sampleRequest : nil))
        }
        guard !entries.isEmpty else { return }
        for entry in entries {
            jobs[entry.transfer]?.isInStep = true
            let end = entry.startPosition + entry.tokens.count
            jobs[entry.transfer]?.table.beginFilling(entry.startPosition..<end, in: &pool)
        }
        underWay = entries.map {
            StepShare(transfer: $0.transfer, tokens: $0.tokens.count, samples: $0.sample != nil)
        }
        actions.append(.runStep(StepBatch(entries: entries)))
    }

    /// Takes what the cache has, but for the last position, whose logits are not in it.
    private mutating func begin(_ transfer: TransferID) -> Bool {
        guard let job = jobs[transfer] else { return false }
        let count = job.order.tokens.count
        let reusable = (count - 1) / configuration.blockTokens
        let reused = jobs[transfer]?.table.pin(limit: reusable, in: &pool) ?? 0
        let reusedTokens = reused * configuration.blockTokens
        guard jobs[transfer]?.table.grow(toCover: count, in: &pool) ?? false else {
            jobs[transfer]?.table.release(in: &pool)
            return false
        }
        jobs[transfer]?.phase = .computing
        jobs[transfer]?.computed = reusedTokens
        jobs[transfer]?.cachedTokens = reusedTokens
        counters.tokensCached &+= UInt64(reusedTokens)
        ripen(transfer)
        return true
    }

    // MARK: Results

    mutating func finishStep(_ result: StepResult) {
        guard let shares = underWay else { return countStale() }
        underWay = nil
        progress &+= 1
        counters.stepsFinished &+= 1
        stepSeconds.add(result.computeTime.seconds)
        let total = shares.reduce(0) { $0 + $1.tokens }
        if total > 0, result.computeTime > .zero { prefillRate.add(Double(total) / result.computeTime.seconds) }
        for (index, share) in shares.enumerated() {
            jobs[share.transfer]?.isInStep = false
            if let ending = jobs[share.transfer]?.ending {
                jobs[share.transfer]?.ending = nil
                drop(share.transfer, acknowledge: ending.acknowledge)
                continue
            }
            let time = TimeSpan(seconds: result.computeTime.seconds * Double(share.tokens) / Double(max(total, 1)))
            apply(index < result.outcomes.count ? result.outcomes[index] : nil, to: share, time)
        }
    }

    /// An engine that fails a prompt here may not fail it elsewhere: the coordinator decides.
    private mutating func apply(_ outcome: StepOutcome?, to share: StepShare, _ time: TimeSpan) {
        switch outcome {
        case .extended where !share.samples: advance(share, time)
        case .sampled(let token) where share.samples:
            advance(share, time)
            finish(share.transfer, token)
        case .extended, .sampled, .failed, nil: fail(share.transfer, .engine)
        }
    }

    private mutating func advance(_ share: StepShare, _ time: TimeSpan) {
        let transfer = share.transfer
        guard let job = jobs[transfer] else { return }
        counters.tokensComputed &+= UInt64(share.tokens)
        let computed = job.computed + share.tokens
        let naming = naming
        jobs[transfer]?.computed = computed
        jobs[transfer]?.table.seal(through: computed, of: job.order.tokens, naming: naming, in: &pool)
        jobs[transfer]?.outgoing.expires = now + job.outgoing.lease
        tellCoordinator(
            .prefillProgress(
                PrefillProgress(
                    transfer: transfer, computedTokens: computed, cachedTokens: job.cachedTokens, computeTime: time)))
        if !share.samples { ripen(transfer) }
    }

    private mutating func finish(_ transfer: TransferID, _ token: SampledToken) {
        guard let job = jobs[transfer] else { return }
        jobs[transfer]?.phase = .sending(first: token)
        tellCoordinator(
            .prefillDone(PrefillDone(transfer: transfer, firstToken: token, cachedTokens: job.cachedTokens)))
        ripen(transfer)
        endIfAllSent(transfer)
    }
}
