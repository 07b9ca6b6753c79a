import CoordinatorCore
import KVPaging
import Messages
import ServingTypes

// What is checked beside the cores' own audits, on every step of a run with audits. S1 to S5, L1 and L2 are those of
// reliability.md §2, I1 to I12 our own reading of disaggregation.md §6:
//
//   S1  every token is the one that the model gives, once, in order     `Clients.check`
//   S2  each tenant is charged for all that it was given                 `Clients.checkOutputCharges`
//       and, once nothing runs, for nothing twice                        `Clients.checkCharges`
//   S3  no step reads a block that another tenant's job has written      `SimulatedEngine.read`
//   S4  one coordinator is obeyed: there is one, and a link ends with    `ControlLink.coordinatorLife`
//       its process, so that what an earlier one said reaches nobody
//   S5  blocks are conserved and have one owner, per worker and tier     `ClusterSimulation.audit`
//   L1  every job ends, as the client was told and why                   `SafetyRun.unrest`, `Clients.checkFailure`
//   L2  every worker holds nothing afterwards                            `SafetyRun.unrest`
//   I1  a slot that pages may land in has no other user                  `checkNobodyWrites`, `openLanding`
//   I2  a page's slot does not change while it is sent                   `PageNetwork.depart`
//   I3  nothing is decoded before all of it is committed                 the engine reads every block
//   I4  bytes that are not those that were sent are never used           the engine reads every block
//   I5  lower attempts are refused by workers                            `checkAccepted`
//   I6  messages of lower attempts change nothing at the coordinator     `checkStale`
//   I7  a reservation without progress does not outlive its lease        `checkLeases`
//   I8  fences: a landing is closed before its slots are reused          `openLanding`, `checkNobodyWrites`
//   I9  a step keeps to its budgets of jobs, tokens and chunk            `checkBudgets`
//   I10 one attempt of a job at a time on a worker                       the cores' `audit`
//   I11 every offset follows the one before                              `Clients.emitted`
//   I12 a drained worker holds nothing                                   `SafetyRun.unrest`

extension ClusterSimulation {
    // MARK: I5

    /// A worker's yes to an attempt: none may be below another that the same process has said yes to.
    func checkAccepted(_ node: SimulatedNode, _ message: Message) {
        let accepted: TransferID
        switch message {
        case .reserveAck(let ack): accepted = ack.transfer
        case .startDecodeAck(let reply) where reply.refusal == nil: accepted = reply.transfer
        case .assignAck(let reply) where reply.refusal == nil: accepted = reply.transfer
        case .hello, .helloAck, .register, .registerAck, .heartbeat, .kvEvent, .drain, .drainDone, .reservePages,
            .reserveNack, .startDecode, .startDecodeAck, .setRunning, .tokenSteps, .assignPrefill, .assignAck,
            .assignNack, .prefillProgress, .prefillDone, .pageOffer, .pageWant, .pagePush, .pageAck, .pageNack,
            .credit, .transferEnd, .transferCommitted, .transferFailed, .leaseRenew, .cancel, .cancelAck:
            return
        }
        let before = node.accepted[accepted.job] ?? .init(0)
        if accepted.attempt < before { fail("\(node.id) took \(Summary.short(accepted)) after attempt \(before)") }
        node.accepted[accepted.job] = max(before, accepted.attempt)
    }

    /// That a pool or a host tier was really full.
    func witnessPool(_ message: Message) {
        if case .reserveNack(let nack) = message { witness("reserve.refused.\(nack.reason.rawValue)") }
        guard case .tokenSteps(let steps) = message else { return }
        for step in steps.steps {
            if case .evicted = step.end { witness("pool.evicted") }
        }
    }

    /// That a prompt was given to a worker in a way that not every cluster has.
    func witnessPrompt(_ worker: WorkerRef, _ message: Message) {
        if case .assignPrefill(let order) = message, order.precedes { witness("prompt.precedes") }
        guard case .startDecode(let order) = message, configuration.coordinator.relief != nil,
            order.tokens.count > configuration.coordinator.placement.localPrefillThreshold,
            let node = nodeOfName[worker.id], nodes[node].shape.role == .decode
        else { return }
        if nodes.contains(where: { $0.shape.role == .prefill && $0.isAlive }) { witness("prompt.relieved") }
    }

    // MARK: I6

    /// A job of which a message tells under another attempt than the one that counts.
    struct StaleWord {
        var job: JobID
        var attempt: Attempt?
        var phase: JobPhase?
    }

    /// Jobs of which this message tells under another attempt than theirs, and of none under theirs.
    func staleWords(_ message: Message) -> [StaleWord] {
        let transfers = Self.transfersTold(by: message)
        let fresh = Set(transfers.filter { coordinator.attempt(of: $0.job) == $0.attempt }.map(\.job))
        var words: [StaleWord] = []
        for job in Set(transfers.map(\.job)).subtracting(fresh).sorted() {
            guard let attempt = coordinator.attempt(of: job) else { continue }
            words.append(StaleWord(job: job, attempt: attempt, phase: coordinator.view(job)?.phase))
        }
        return words
    }

    /// What the coordinator made of a message: nothing of a stale attempt must have changed its job.
    func checkStale(_ words: [StaleWord], emitted: Set<JobID>) {
        guard !words.isEmpty else { return }
        witness("message.stale", words.count)
        for word in words {
            if emitted.contains(word.job) { fail("tokens of a stale attempt of job \(word.job.low) were given out") }
            if word.phase == .queued { continue }
            let (attempt, phase) = (coordinator.attempt(of: word.job), coordinator.view(word.job)?.phase)
            let isChanged =
                attempt != word.attempt || (phase != word.phase && phase != .paused && word.phase != .paused)
            if isChanged { fail("a message of a stale attempt of job \(word.job.low) changed it to \(phase as Any)") }
        }
    }

    private static func transfersTold(by message: Message) -> [TransferID] {
        switch message {
        case .tokenSteps(let steps): steps.steps.map(\.transfer)
        case .reserveAck(let ack): [ack.transfer]
        case .reserveNack(let nack): [nack.transfer]
        case .startDecodeAck(let reply): [reply.transfer]
        case .assignAck(let reply): [reply.transfer]
        case .assignNack(let nack): [nack.transfer]
        case .prefillProgress(let progress): [progress.transfer]
        case .prefillDone(let done): [done.transfer]
        case .transferCommitted(let commit): [commit.transfer]
        case .transferFailed(let failure): [failure.transfer]
        case .hello, .helloAck, .register, .registerAck, .heartbeat, .kvEvent, .drain, .drainDone, .reservePages,
            .startDecode, .setRunning, .assignPrefill, .pageOffer, .pageWant, .pagePush, .pageAck, .pageNack, .credit,
            .transferEnd, .leaseRenew, .cancel, .cancelAck:
            []
        }
    }

    // MARK: I7

    /// After a tick of the worker, no open landing may be older than its lease since anything was
    /// last heard of it.
    func checkLeases(_ node: SimulatedNode) {
        let lease = configuration.coordinator.transferLease.nanoseconds
        let reading = node.clock.reading(at: now)
        for (transfer, heard) in node.lastHeard where reading - heard > lease + 1_000_000 {
            guard node.landings[transfer] != nil else {
                node.lastHeard[transfer] = nil
                continue
            }
            if node.landings[transfer]?.isClosed == true { continue }
            let age = (reading - heard) / 1_000_000
            return fail("\(node.id) holds \(Summary.short(transfer)), of which it has heard nothing for \(age) ms")
        }
    }

    /// Something came that keeps a reservation alive.
    func hear(_ node: SimulatedNode, _ transfer: TransferID) {
        guard configuration.audits, node.landings[transfer] != nil else { return }
        node.lastHeard[transfer] = node.clock.reading(at: now)
    }

    /// The transfer that a message keeps alive.
    static func renewed(by message: Message) -> TransferID? {
        switch message {
        case .pageOffer(let offer): offer.transfer
        case .transferEnd(let end): end.transfer
        case .leaseRenew(let renewal): renewal.transfer
        case .reservePages(let order): order.transfer
        case .hello, .helloAck, .register, .registerAck, .heartbeat, .kvEvent, .drain, .drainDone, .reserveAck,
            .reserveNack, .startDecode, .startDecodeAck, .setRunning, .tokenSteps, .assignPrefill, .assignAck,
            .assignNack, .prefillProgress, .prefillDone, .pageWant, .pagePush, .pageAck, .pageNack, .credit,
            .transferCommitted, .transferFailed, .cancel, .cancelAck:
            nil
        }
    }

    // MARK: I9

    func checkBudgets(_ node: SimulatedNode, _ batch: StepBatch) {
        let shape = node.shape
        if shape.role != .prefill, batch.entries.count > shape.batchJobsMax {
            fail("\(node.id) runs \(batch.entries.count) jobs in a step, \(shape.batchJobsMax) are allowed")
        }
        if batch.tokenCount > max(shape.stepTokensMax, batch.entries.count) {
            fail("\(node.id) runs \(batch.tokenCount) tokens in a step, \(shape.stepTokensMax) are allowed")
        }
        for entry in batch.entries where entry.tokens.count > max(shape.prefillChunkTokens, 1) {
            fail("\(node.id) runs \(entry.tokens.count) tokens of one job, \(shape.prefillChunkTokens) are allowed")
        }
    }
}
