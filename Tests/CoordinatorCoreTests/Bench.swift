import KVPaging
import Messages
import Scheduling
import ServingTypes

@testable import CoordinatorCore

/// Drives a coordinator by hand and sorts what it does.
struct Bench {
    var core: Coordinator
    var now = Instant.zero
    var actions: [CoordinatorAction] = []

    init(_ change: (inout CoordinatorConfiguration) -> Void = { _ in }) {
        var configuration = CoordinatorConfiguration()
        configuration.blockTokens = 4
        configuration.placement.localPrefillThreshold = 0
        configuration.replyTimeout = .seconds(1)
        configuration.policy = PolicyConfiguration(named: "fcfs") ?? PolicyConfiguration()
        change(&configuration)
        core = Coordinator(configuration: configuration, naming: TestNaming())
    }

    @discardableResult
    mutating func handle(_ event: CoordinatorEvent) -> [CoordinatorAction] {
        actions = core.handle(event, at: now)
        return actions
    }

    /// Time passes in ticks of 50 ms, in which living workers' hearts beat; all actions are kept.
    @discardableResult
    mutating func wait(_ span: TimeSpan, beating: [WorkerRef] = [], steps: Bool = false) -> [CoordinatorAction] {
        var all: [CoordinatorAction] = []
        let end = now + span
        while now < end {
            now = min(now + .milliseconds(50), end)
            for worker in beating {
                stepsFinished += steps ? 1 : 0
                all += core.handle(.workerMessage(worker, .heartbeat(Heartbeat(load: load(worker)))), at: now)
            }
            all += core.handle(.tick, at: now)
        }
        actions = all
        return all
    }

    var stepsFinished: UInt64 = 0

    private func load(_ worker: WorkerRef) -> LoadReport {
        var load = LoadReport()
        load.blocks.free = 64
        load.stepsFinished = stepsFinished
        return load
    }

    func ref(_ name: String, _ epoch: UInt64 = 1) -> WorkerRef { WorkerRef(id: WorkerID(name), epoch: Epoch(epoch)) }

    /// `p…` prefill, `m…` mixed, anything else decode.
    @discardableResult
    mutating func up(
        _ name: String, epoch: UInt64 = 1, blocks: Int = 64, batch: Int = 4, held: [TransferID] = [],
        swapPages: Int = 0, reservesWholeJobs: Bool = false
    ) -> WorkerRef {
        let role: WorkerRole = name.hasPrefix("p") ? .prefill : name.hasPrefix("m") ? .mixed : .decode
        let worker = ref(name, epoch)
        handle(
            .workerUp(
                worker,
                Register(
                    role: role, dataHost: "127.0.0.1", dataPort: 7, blockTokens: 4, blockCount: blocks, pageBytes: 256,
                    batchJobsMax: batch, stepTokensMax: 64, processID: 1, held: held, swapPages: swapPages,
                    reservesWholeJobs: reservesWholeJobs)))
        return worker
    }

    static func submission(
        _ number: Int, prompt: Int = 10, maxTokens: Int = 8, tenant: String = "a", stop: [UInt32] = [],
        deadline: TimeSpan? = nil
    ) -> JobSubmission {
        var sampling = SamplingParameters()
        sampling.maxTokens = maxTokens
        sampling.stopTokens = stop.map { TokenID($0) }
        let tokens = (0..<prompt).map { TokenID(UInt32($0)) }
        return JobSubmission(
            job: JobID(high: 0, low: UInt64(number)), tenant: TenantID(tenant), promptTokens: tokens,
            pageIDs: TestNaming().names(of: tokens, blockTokens: 4, tenant: TenantID(tenant)), sampling: sampling,
            deadline: deadline)
    }

    @discardableResult
    mutating func submit(_ number: Int, prompt: Int = 10, maxTokens: Int = 8, tenant: String = "a") -> JobID {
        let submission = Self.submission(number, prompt: prompt, maxTokens: maxTokens, tenant: tenant)
        handle(.submitted(submission))
        return submission.job
    }

    func transfer(_ number: Int, _ attempt: UInt32 = 1) -> TransferID {
        TransferID(job: JobID(high: 0, low: UInt64(number)), attempt: Attempt(attempt))
    }

    // MARK: What workers say

    @discardableResult
    mutating func say(_ worker: WorkerRef, _ message: Message) -> [CoordinatorAction] {
        handle(.workerMessage(worker, message))
    }

    @discardableResult
    mutating func ackReserve(_ transfer: TransferID, from worker: WorkerRef) -> [CoordinatorAction] {
        say(worker, .reserveAck(ReserveAck(transfer: transfer, wanted: [0, 1], creditBytes: 64)))
    }

    @discardableResult
    mutating func done(_ transfer: TransferID, from worker: WorkerRef, token: UInt32 = 100, cached: Int = 0)
        -> [CoordinatorAction]
    {
        say(worker, .assignAck(TransferReply(transfer: transfer, refusal: nil, freeBlocks: 1)))
        return say(
            worker,
            .prefillDone(
                PrefillDone(transfer: transfer, firstToken: SampledToken(token: TokenID(token)), cachedTokens: cached)))
    }

    @discardableResult
    mutating func commit(_ transfer: TransferID, from worker: WorkerRef) -> [CoordinatorAction] {
        say(
            worker,
            .transferCommitted(
                TransferCommitted(transfer: transfer, receivedBytes: 512, receivedBlocks: 2, reusedBlocks: 1)))
    }

    @discardableResult
    mutating func step(
        _ transfer: TransferID, from worker: WorkerRef, offset: Int, tokens: [UInt32], end: StepEnd? = nil,
        prefilled: Int = 0, cached: Int = 0
    ) -> [CoordinatorAction] {
        let sampled = tokens.map { SampledToken(token: TokenID($0)) }
        let step = TokenStep(
            transfer: transfer, offset: offset, tokens: sampled, end: end, prefilledTokens: prefilled,
            cachedTokens: cached)
        return say(worker, .tokenSteps(TokenSteps(iteration: 1, computeTime: .milliseconds(1), steps: [step])))
    }

    /// Brings a job from the queue to decoding by way of P.
    mutating func bringToDecoding(_ transfer: TransferID, _ prefill: WorkerRef, _ decode: WorkerRef) {
        ackReserve(transfer, from: decode)
        done(transfer, from: prefill)
        commit(transfer, from: decode)
    }

    // MARK: What the coordinator does

    var sent: [(worker: WorkerRef, message: Message)] { Self.sent(actions) }

    static func sent(_ actions: [CoordinatorAction]) -> [(worker: WorkerRef, message: Message)] {
        actions.compactMap { if case .send(let worker, let message) = $0 { (worker, message) } else { nil } }
    }

    var reserved: [(worker: WorkerRef, reserve: ReservePages)] {
        sent.compactMap { if case .reservePages(let reserve) = $0.message { ($0.worker, reserve) } else { nil } }
    }

    var assigned: [(worker: WorkerRef, assignment: AssignPrefill)] {
        sent.compactMap { if case .assignPrefill(let assignment) = $0.message { ($0.worker, assignment) } else { nil } }
    }

    var started: [(worker: WorkerRef, start: StartDecode)] {
        sent.compactMap { if case .startDecode(let start) = $0.message { ($0.worker, start) } else { nil } }
    }

    var cancelled: [(worker: WorkerRef, cancel: Cancel)] {
        sent.compactMap { if case .cancel(let cancel) = $0.message { ($0.worker, cancel) } else { nil } }
    }

    var plans: [SetRunning] {
        sent.compactMap { if case .setRunning(let plan) = $0.message { plan } else { nil } }
    }

    var emitted: [UInt32] {
        actions.flatMap { action -> [UInt32] in
            if case .emit(_, _, let tokens) = action { tokens.map(\.token.value) } else { [] }
        }
    }

    var finished: [JobOutcome] {
        actions.compactMap { if case .jobFinished(let outcome) = $0 { outcome } else { nil } }
    }

    var refusals: [ServingError] {
        actions.compactMap { if case .jobRefused(_, let error) = $0 { error } else { nil } }
    }

    var closed: [WorkerRef] {
        actions.compactMap { if case .closeLink(let worker) = $0 { worker } else { nil } }
    }

    var notes: [CoordinatorNote] {
        actions.compactMap { if case .note(let note) = $0 { note } else { nil } }
    }

    var drained: [WorkerID] {
        actions.compactMap { if case .workerDrained(let worker) = $0 { worker } else { nil } }
    }

    func phase(_ number: Int) -> JobPhase? { core.view(transfer(number).job)?.phase }

    static func code(_ outcome: JobOutcome?) -> ServingError.Code? {
        if case .failed(let error) = outcome?.ending { return error.code }
        return nil
    }
}
