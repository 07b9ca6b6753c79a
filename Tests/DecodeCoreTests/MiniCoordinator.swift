import KVPaging
import Messages
import ServingTypes

/// Just enough of a coordinator: dispatches, keeps token logs by offset, redispatches what fails,
/// and holds every token against the model run alone.
final class MiniCoordinator {
    enum Phase: Equatable { case waiting, reserving, starting, assigned, decoding, done }

    struct Job {
        let id: JobID
        let prompt: [TokenID]
        let sampling: SamplingParameters
        let expected: [TokenID]
        var log: [TokenID] = []
        var attempt = Attempt(0)
        var base = 0
        var phase = Phase.waiting
        var lastProgress: Int64 = 0
        var retries = 0

        var transfer: TransferID { TransferID(job: id, attempt: attempt) }
        var tokens: [TokenID] { prompt + log }
    }

    private unowned let simulation: PairSimulation
    private(set) var jobs: [Job] = []
    private var pages: [PairSimulation.Side: Set<PageID>] = [:]
    private var sequences: [PairSimulation.Side: UInt64] = [:]
    private var registered: Set<PairSimulation.Side> = []
    private let naming = HashNaming()
    private(set) var commits = 0
    private(set) var evictions = 0
    private(set) var failures = 0

    init(simulation: PairSimulation) { self.simulation = simulation }

    var isDone: Bool { !jobs.isEmpty && jobs.allSatisfy { $0.phase == .done } }
    var unfinished: String {
        jobs.filter { $0.phase != .done }.map { "\($0.transfer) \($0.phase) \($0.log.count)/\($0.expected.count)" }
            .joined(separator: ", ")
    }

    // MARK: Jobs

    /// Prompts grow out of a few stems, so that prefixes are shared.
    func submit(jobs count: Int) {
        let stems = (0..<2).map { _ in self.tokens(simulation.random.within(4...16)) }
        for index in 0..<count {
            var sampling = SamplingParameters()
            sampling.maxTokens = simulation.random.within(1...14)
            if simulation.random.chance(40) { sampling.stopTokens = tokens(2) }
            let stem = stems[simulation.random.below(2)]
            let prompt = Array(stem.prefix(simulation.random.within(1...16)) + tokens(simulation.random.within(0...12)))
            jobs.append(
                Job(
                    id: JobID(high: 9, low: UInt64(index)), prompt: prompt, sampling: sampling,
                    expected: FakeEngine.output(of: prompt, sampling)))
            simulation.after(simulation.random.within(0...20_000)) { self.dispatch(index) }
            if simulation.random.chance(15) {
                simulation.after(simulation.random.within(500...30_000)) { self.abandon(index) }
            }
        }
    }

    private func tokens(_ count: Int) -> [TokenID] {
        (0..<count).map { _ in TokenID(UInt32(simulation.random.below(Int(FakeEngine.vocabulary)))) }
    }

    private func dispatch(_ index: Int) {
        guard jobs[index].phase == .waiting else { return }
        guard registered.contains(.decode) else { return retry(index) }
        jobs[index].attempt = jobs[index].attempt.next
        jobs[index].base = jobs[index].log.count
        jobs[index].lastProgress = simulation.now
        let job = jobs[index]
        let names =
            simulation.random.chance(70)
            ? naming.names(of: job.tokens, blockTokens: PairSimulation.blockTokens, tenant: .anonymous) : []
        if registered.contains(.prefill), simulation.random.chance(75) {
            jobs[index].phase = .reserving
            simulation.toWorker(
                .decode,
                .reservePages(
                    ReservePages(
                        transfer: job.transfer, tenant: .anonymous, tokens: job.tokens, promptTokens: job.prompt.count,
                        pageIDs: names, sampling: job.sampling, source: simulation.prefillRef,
                        lease: .milliseconds(400))))
        } else {
            jobs[index].phase = .starting
            simulation.toWorker(
                .decode,
                .startDecode(
                    StartDecode(
                        transfer: job.transfer, tenant: .anonymous, tokens: job.tokens, promptTokens: job.prompt.count,
                        pageIDs: names, sampling: job.sampling)))
        }
    }

    private func retry(_ index: Int) {
        jobs[index].phase = .waiting
        jobs[index].retries += 1
        simulation.after(simulation.random.within(500...15_000)) { self.dispatch(index) }
    }

    /// Both workers hear of it, whichever of them holds something.
    private func cancelEverywhere(_ index: Int) {
        let order = Message.cancel(Cancel(transfer: jobs[index].transfer, reason: .superseded))
        for side in PairSimulation.Side.allCases { simulation.toWorker(side, order) }
    }

    private func requeue(_ index: Int) {
        guard ![.waiting, .done].contains(jobs[index].phase) else { return }
        if simulation.random.chance(80) { cancelEverywhere(index) }
        retry(index)
    }

    private func abandon(_ index: Int) {
        guard jobs[index].phase != .done else { return }
        if jobs[index].attempt.number > 0 { cancelEverywhere(index) }
        jobs[index].phase = .done
    }

    func lost(_ side: PairSimulation.Side) {
        registered.remove(side)
        for index in jobs.indices {
            switch jobs[index].phase {
            case .waiting, .done: continue
            case .decoding where side == .prefill, .starting where side == .prefill: continue
            case .reserving, .starting, .assigned, .decoding: requeue(index)
            }
        }
    }

    func restarted(_ side: PairSimulation.Side) {
        sequences[side] = nil
        pages[side] = []
    }

    func tick() {
        for index in jobs.indices where simulation.now - jobs[index].lastProgress > 1_000_000 { requeue(index) }
        guard simulation.random.chance(30), let index = jobs.indices.randomElement(using: &simulation.random),
            jobs[index].phase == .decoding
        else { return }
        let transfer = jobs[index].transfer
        simulation.toWorker(.decode, .setRunning(SetRunning(run: [], pause: [transfer])))
        simulation.after(simulation.random.within(100...30_000)) {
            self.simulation.toWorker(.decode, .setRunning(SetRunning(run: [transfer], pause: [])))
        }
    }

    // MARK: Messages

    private func index(of transfer: TransferID) -> Int? {
        jobs.firstIndex { $0.transfer == transfer && $0.phase != .done && $0.phase != .waiting }
    }

    func receive(_ message: Message, from side: PairSimulation.Side) {
        switch message {
        case .register(let register):
            registered.insert(side)
            simulation.toWorker(
                side, .registerAck(RegisterAck(heartbeatEvery: .milliseconds(50), lease: .seconds(1))))
            for transfer in register.held where index(of: transfer) == nil {
                simulation.toWorker(side, .cancel(Cancel(transfer: transfer, reason: .superseded)))
            }
        case .kvEvent(let event): apply(event, side)
        case .reserveAck(let ack): reserved(ack)
        case .reserveNack(let nack): refused(nack.transfer, .reserving)
        case .startDecodeAck(let reply):
            reply.refusal == nil ? running(reply.transfer) : refused(reply.transfer, .starting)
        case .assignNack(let nack): refused(nack.transfer, .assigned)
        case .prefillDone(let done):
            if let index = index(of: done.transfer) {
                append([done.firstToken.token], at: jobs[index].base, to: index)
            }
        case .transferCommitted(let commit):
            commits += 1
            if index(of: commit.transfer) != nil { running(commit.transfer) }
        case .transferFailed(let failure):
            failures += 1
            if let index = index(of: failure.transfer), jobs[index].phase != .decoding { requeue(index) }
        case .tokenSteps(let steps): for step in steps.steps { apply(step) }
        case .prefillProgress(let progress):
            if let index = index(of: progress.transfer) { jobs[index].lastProgress = simulation.now }
        case .heartbeat, .assignAck, .cancelAck: break
        default: simulation.fail("\(side) sent \(message) to the coordinator")
        }
    }

    private func running(_ transfer: TransferID) {
        if let index = index(of: transfer) { jobs[index].phase = .decoding }
    }

    private func refused(_ transfer: TransferID, _ phase: Phase) {
        guard let index = index(of: transfer), jobs[index].phase == phase else { return }
        requeue(index)
    }

    private func reserved(_ ack: ReserveAck) {
        guard let index = index(of: ack.transfer), jobs[index].phase == .reserving else { return }
        jobs[index].phase = .assigned
        let job = jobs[index]
        simulation.toWorker(
            .prefill,
            .assignPrefill(
                AssignPrefill(
                    transfer: job.transfer, tenant: .anonymous, tokens: job.tokens, promptTokens: job.prompt.count,
                    pageIDs: [], sampling: job.sampling, wanted: ack.wanted, target: simulation.decodeRef,
                    targetHost: "h", targetPort: 1, path: .direct, creditBytes: ack.creditBytes,
                    lease: .milliseconds(400))))
    }

    private func apply(_ step: TokenStep) {
        guard let index = index(of: step.transfer) else { return }
        jobs[index].phase = .decoding
        append(step.tokens.map(\.token), at: step.offset, to: index)
        guard jobs[index].phase != .done else { return }
        switch step.end {
        case nil: break
        case .finished(let reason):
            simulation.fail("\(step.transfer) ended (\(reason)) after \(jobs[index].log.count) tokens")
        case .failed(let error): simulation.fail("\(step.transfer) failed: \(error)")
        case .evicted:
            evictions += 1
            retry(index)
        }
    }

    /// The oracle: contiguous offsets, and the tokens of the model run alone.
    private func append(_ tokens: [TokenID], at offset: Int, to index: Int) {
        var job = jobs[index]
        if offset > job.log.count { return simulation.fail("\(job.transfer): gap at \(job.log.count), got \(offset)") }
        for (shift, token) in tokens.enumerated() {
            let position = offset + shift
            guard position < job.expected.count, job.expected[position] == token else {
                return simulation.fail("\(job.transfer): token \(position) is \(token), want \(job.expected)")
            }
            if position == job.log.count { job.log.append(token) }
        }
        job.lastProgress = simulation.now
        jobs[index] = job
        guard job.log.count == job.expected.count else { return }
        cancelEverywhere(index)
        jobs[index].phase = .done
    }

    // MARK: Pages

    private func apply(_ event: KVEvent, _ side: PairSimulation.Side) {
        let last = sequences[side] ?? 0
        if event.sequence <= last { return }
        switch event.change {
        case .snapshot(let all): pages[side] = Set(all)
        case .stored(let stored):
            if event.sequence != last + 1 { simulation.fail("gap in the page events of \(side)") }
            pages[side, default: []].formUnion(stored)
        case .removed(let removed):
            if event.sequence != last + 1 { simulation.fail("gap in the page events of \(side)") }
            pages[side, default: []].subtract(removed)
        }
        sequences[side] = event.sequence
    }

    /// What the events told agrees with what the worker says it has.
    func checkPages(_ side: PairSimulation.Side, _ said: [Message]) {
        for case .kvEvent(let event) in said {
            guard case .snapshot(let all) = event.change else { continue }
            if Set(all) != pages[side, default: []] { simulation.fail("\(side)'s pages differ from its events") }
        }
    }
}
