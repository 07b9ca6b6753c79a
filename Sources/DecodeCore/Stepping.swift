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
        let decoders = chooseDecoders()
        for transfer in decoders { makeRoom(for: transfer) }
        var entries: [StepEntry] = []
        for transfer in decoders {
            if let job = jobs[transfer] { entries.append(decodeEntry(job)) }
        }
        addChunks(to: &entries)
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

    private var waitingPrefills: [TransferID] {
        arrivals.filter { jobs[$0].map { $0.isPrefilling && !$0.isPaused } ?? false }
    }

    /// Whose turn it is. Where there are more than a step takes, those chosen go to the end; a
    /// waiting prompt keeps one place, so that neither side starves.
    private mutating func chooseDecoders() -> [TransferID] {
        let running = turns.filter { jobs[$0].map { !$0.isPaused } ?? false }
        let places = max(min(configuration.batchJobsMax, configuration.stepTokensMax), 1)
        let kept = waitingPrefills.isEmpty || places == 1 ? 0 : 1
        guard running.count > places - kept else { return running }
        let chosen = Array(running.prefix(places - kept))
        let isChosen = Set(chosen)
        turns = turns.filter { !isChosen.contains($0) } + chosen
        return chosen
    }

    private func decodeEntry(_ job: DecodeJob) -> StepEntry {
        StepEntry(
            transfer: job.transfer, tokens: Array(job.tokens[job.computed...]), startPosition: job.computed,
            blockTable: job.table.slots, sample: job.sampleRequest)
    }

    private func addChunks(to entries: inout [StepEntry]) {
        var budget = max(configuration.stepTokensMax, 1) - entries.count
        for transfer in waitingPrefills {
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

    // MARK: Memory

    /// A block for the next token: a free one, a cached one, or one of a job that gives way. Paused
    /// jobs give way before running ones, younger before older; never without telling.
    private mutating func makeRoom(for transfer: TransferID) {
        while let job = jobs[transfer] {
            if jobs[transfer]?.table.grow(toCover: job.tokens.count, in: &pool) ?? true { return }
            if job.table.slots.count >= configuration.blockCount { return end(transfer, .failed(tooLarge(job))) }
            evict(victim ?? transfer)
        }
    }

    private var victim: TransferID? {
        let candidates = arrivals.reversed().filter { jobs[$0].map { !$0.isLanding && $0.ending == nil } ?? false }
        return candidates.first { jobs[$0]?.isPaused ?? false } ?? candidates.first
    }

    private mutating func evict(_ transfer: TransferID) {
        counters.jobsEvicted &+= 1
        end(transfer, .evicted)
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
        if prefilled > 0, result.computeTime > .zero { prefillRate.add(prefilled / result.computeTime.seconds) }
        emit(steps, computeTime: result.computeTime)
    }

    private static let noOutcome = ServingError(.internalError, "The engine's outcome does not answer the step.")

    private mutating func apply(_ outcome: StepOutcome, to share: StepShare) -> TokenStep? {
        let transfer = share.transfer
        guard let job = jobs[transfer] else { return nil }
        jobs[transfer]?.isInStep = false
        switch job.ending {
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
                transfer: transfer, offset: job.outputTokens, tokens: [], prefilledTokens: share.tokens)
        case .sampled(let token) where share.samples:
            advance(transfer, by: share.tokens)
            if job.isPrefilling {
                jobs[transfer]?.phase = .decoding
                turns.append(transfer)
            }
            counters.tokensDecoded &+= 1
            var step = accept(token, for: transfer)
            if job.isPrefilling {
                step.prefilledTokens = share.tokens
                step.cachedTokens = job.cachedTokens
            }
            return step
        case .failed(let error): return finish(transfer, .failed(error))
        case .extended, .sampled: return finish(transfer, .failed(Self.noOutcome))
        }
    }

    private mutating func advance(_ transfer: TransferID, by count: Int) {
        guard let job = jobs[transfer] else { return }
        if job.isPrefilling { counters.tokensPrefilled &+= UInt64(count) }
        let computed = job.computed + count
        let naming = naming
        jobs[transfer]?.computed = computed
        jobs[transfer]?.table.seal(through: computed, of: job.tokens, naming: naming, in: &pool)
    }

    /// Appends a token to its decoding job; the step says whether it was the last.
    mutating func accept(_ token: SampledToken, for transfer: TransferID) -> TokenStep {
        jobs[transfer]?.tokens.append(token.token)
        guard let job = jobs[transfer] else { return TokenStep(transfer: transfer, offset: 0, tokens: []) }
        var step = TokenStep(transfer: transfer, offset: job.outputTokens - 1, tokens: [token])
        if job.sampling.stopTokens.contains(token.token) {
            step.end = .finished(.stop)
        } else if job.outputTokens >= job.sampling.maxTokens || job.tokens.count >= configuration.contextTokensMax {
            step.end = .finished(.length)
        }
        if step.end != nil {
            counters.jobsFinished &+= 1
            forget(transfer)
        }
        return step
    }
}
