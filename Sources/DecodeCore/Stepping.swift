import KVPaging
import Messages
import ServingTypes

/// Continuous batching: each iteration runs every decoding job once, and as much waiting prompt as
/// its token budget leaves.
extension DecodeWorkerCore {
    // MARK: Planning

    /// Begins a step unless one is under way, or the coordinator is away and its buffer is full.
    mutating func startStep() {
        guard underWay == nil, bufferedTokens < configuration.bufferedTokensMax else { return }
        guard !arrivals.isEmpty else { return }
        let prefills = waitingPrefills
        let decoders = chooseDecoders(prefillsWait: !prefills.isEmpty)
        for transfer in decoders { makeRoom(for: transfer) }
        var entries: [StepEntry] = []
        for transfer in decoders {
            guard let entry = jobs.readOptional(transfer, { $0.isRunnable && !$0.lacksRoom ? $0.decodeEntry : nil })
            else { continue }
            if jobs.read(transfer, { $0.stalledSince != nil }) ?? false { endStall(transfer) }
            entries.append(entry)
        }
        addChunks(of: prefills, to: &entries)
        guard !entries.isEmpty else { return }
        for entry in entries {
            let end = entry.startPosition + entry.tokens.count
            jobs.change(entry.transfer) { $0.isInStep = true }
            beginFilling(entry.transfer, entry.startPosition..<end)
        }
        underWay = entries.map {
            StepShare(transfer: $0.transfer, tokens: $0.tokens.count, samples: $0.sample != nil)
        }
        actions.append(.runStep(StepBatch(entries: entries)))
    }

    private var waitingPrefills: [TransferID] {
        arrivals.filter { jobs.read($0) { $0.wantsPrefill } ?? false }
    }

    /// Whose turn it is. Where there are more than a step takes, those chosen go to the end; a
    /// waiting prompt keeps one place, so that neither side starves.
    private mutating func chooseDecoders(prefillsWait: Bool) -> [TransferID] {
        let running = turns.filter { jobs.read($0) { $0.isRunnable } ?? false }
        let places = max(min(configuration.batchJobsMax, configuration.stepTokensMax), 1)
        let kept = prefillsWait && places > 1 ? 1 : 0
        guard running.count > places - kept else { return running }
        let chosen = Array(running.prefix(places - kept))
        let isChosen = Set(chosen)
        turns = turns.filter { !isChosen.contains($0) } + chosen
        return chosen
    }

    private func addChunks(of prefills: [TransferID], to entries: inout [StepEntry]) {
        var budget = chunkTokens(besides: entries.count)
        for transfer in prefills {
            guard budget > 0, entries.count < max(configuration.batchJobsMax, 1) else { return }
            guard let job = jobs[transfer] else { continue }
            let end = min(job.computed + max(min(configuration.prefillChunkTokens, budget), 1), job.tokens.count)
            budget -= end - job.computed
            entries.append(
                StepEntry(
                    transfer: transfer, tokens: Array(job.tokens[job.computed..<end]), startPosition: job.computed,
                    blockTable: job.table.slots, sample: end == job.tokens.count ? job.sampleRequest : nil))
        }
    }

    // MARK: Slots

    /// Jobs that stand by take the slots that have fallen free, without waiting for a plan. A job
    /// whose pages are away uses no slot until it is back.
    mutating func fillSlots() -> [TransferID] {
        guard !standby.isEmpty else { return [] }
        var free = configuration.batchJobsMax - arrivals.count { jobs.read($0) { $0.usesSlot } ?? false }
        var started: [TransferID] = []
        while free > 0, !standby.isEmpty {
            let next = standby.removeFirst()
            guard jobs.read(next, { $0.mayStandIn }) ?? false else { continue }
            jobs.change(next) { $0.isPaused = false }
            started.append(next)
            free -= 1
        }
        return started
    }

    // MARK: Memory

    /// A block for the next token: a free one, a cached one, or one of a job that gives way: it is
    /// written to the host tier, and this job sits an iteration out, or, without such a tier, given
    /// back. Paused jobs give way before running ones, then the last in order; never without telling.
    private mutating func makeRoom(for transfer: TransferID) {
        while jobs.read(transfer, { $0.lacksRoom }) ?? false {
            if grow(transfer) { return }
            if let job = jobs[transfer], job.table.slots.count >= configuration.blockCount {
                return end(transfer, .failed(tooLarge(job)))
            }
            if movesOut > 0 || moves.count >= configuration.movesMax { return stall(transfer) }
            if let last = lastInOrder(where: { _ in true }), writeOut(last) { return stall(transfer) }
            evict(victim ?? transfer, for: transfer)
        }
    }

    private mutating func grow(_ transfer: TransferID) -> Bool {
        withPool { jobs, pool in jobs.change(transfer) { $0.grow(in: &pool) } ?? true }
    }

    private mutating func beginFilling(_ transfer: TransferID, _ positions: Range<Int>) {
        withPool { jobs, pool in jobs.read(transfer) { $0.table.beginFilling(positions, in: &pool) } }
    }

    private var victim: TransferID? {
        var last: (transfer: TransferID, turn: DecodeJob.Turn)?
        for transfer in arrivals {
            guard let turn = jobs.readOptional(transfer, { $0.mayGiveWay ? $0.turn : nil }) else { continue }
            if let known = last, turn < known.turn { continue }
            last = (transfer, turn)
        }
        return last?.transfer
    }

    private func tooLarge(_ job: DecodeJob) -> ServingError {
        ServingError(
            .contextTooLong,
            "tokens: \(job.tokens.count) tokens need more than the pool's \(configuration.blockCount) blocks of"
                + " \(configuration.blockTokens) tokens.")
    }

    // MARK: Results

    mutating func finishStep(_ result: StepResult) {
        guard let shares = underWay else { return countStale() }
        underWay = nil
        counters.stepsFinished &+= 1
        stepSeconds.add(result.computeTime.seconds)
        let before = counters.tokensPrefilled
        var steps: [TokenStep] = []
        for (index, share) in shares.enumerated() {
            let outcome = index < result.outcomes.count ? result.outcomes[index] : .failed(Self.noOutcome)
            if let step = apply(outcome, to: share) { steps.append(step) }
        }
        let prefilled = Double(counters.tokensPrefilled &- before)
        pace.observe(
            decoders: shares.count { $0.samples && $0.tokens == 1 }, prefilled: Int(prefilled),
            time: result.computeTime)
        if prefilled > 0, result.computeTime > .zero { prefillRate.add(prefilled / result.computeTime.seconds) }
        emit(steps, computeTime: result.computeTime, started: fillSlots())
    }

    private static let noOutcome = ServingError(.internalError, "The engine's outcome does not answer the step.")

    private mutating func apply(_ outcome: StepOutcome, to share: StepShare) -> TokenStep? {
        let transfer = share.transfer
        let before = jobs.change(transfer) { job in
            job.isInStep = false
            return (ending: job.ending, wasPrefilling: job.isPrefilling, cached: job.cachedTokens)
        }
        guard let (ending, prefilled, cached) = before else { return nil }
        switch ending {
        case .dropped(let acknowledge):
            jobs[transfer]?.ending = nil
            drop(transfer, acknowledge: acknowledge)
            return nil
        case .evicted:
            counters.jobsEvicted &+= 1
            return finish(transfer, .evicted)
        case nil: break
        }
        switch outcome {
        case .extended where !share.samples:
            advance(transfer, by: share.tokens)
            return TokenStep(
                transfer: transfer, offset: jobs.read(transfer) { $0.outputTokens } ?? 0, tokens: [],
                prefilledTokens: share.tokens)
        case .sampled(let token) where share.samples:
            advance(transfer, by: share.tokens)
            if prefilled {
                jobs.change(transfer) { $0.phase = .decoding }
                turns.append(transfer)
            }
            counters.tokensDecoded &+= 1
            var step = accept(token, for: transfer)
            if prefilled {
                step.prefilledTokens = share.tokens
                step.cachedTokens = cached
            }
            return step
        case .failed(let error): return finish(transfer, .failed(error))
        case .extended, .sampled: return finish(transfer, .failed(Self.noOutcome))
        }
    }

    private mutating func advance(_ transfer: TransferID, by count: Int) {
        if jobs.read(transfer, { $0.isPrefilling }) ?? false { counters.tokensPrefilled &+= UInt64(count) }
        let naming = naming
        withPool { jobs, pool in jobs.change(transfer) { $0.advance(by: count, naming: naming, in: &pool) } }
    }

    /// Appends a token to its decoding job; the step says whether it was the last.
    mutating func accept(_ token: SampledToken, for transfer: TransferID) -> TokenStep {
        let most = configuration.contextTokensMax
        let accepted = jobs.change(transfer) { job in
            (offset: job.outputTokens, end: job.accept(token.token, contextTokensMax: most))
        }
        guard let (offset, reason) = accepted else { return TokenStep(transfer: transfer, offset: 0, tokens: []) }
        var step = TokenStep(transfer: transfer, offset: offset, tokens: [token])
        if let reason { step.end = .finished(reason) }
        if step.end != nil {
            counters.jobsFinished &+= 1
            forget(transfer)
        }
        return step
    }
}
