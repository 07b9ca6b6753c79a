import Messages
import ServingTypes

/// The model of these tests: the next token is a hash of all tokens before it, so that one wrong
/// token spoils every later one.
enum HashModel {
    static let vocabulary: UInt32 = 997

    static func next(after tokens: [TokenID]) -> TokenID {
        var hash: UInt64 = 0xCBF2_9CE4_8422_2325
        for token in tokens { hash = (hash ^ UInt64(token.value)) &* 0x100_0000_01B3 }
        return TokenID(UInt32((hash >> 17) % UInt64(vocabulary)))
    }

    /// What a job without any fault brings forth.
    static func output(of prompt: [TokenID], _ sampling: SamplingParameters) -> [TokenID] {
        var tokens = prompt
        while tokens.count - prompt.count < sampling.maxTokens {
            tokens.append(next(after: tokens))
            if let last = tokens.last, sampling.stopTokens.contains(last) { break }
        }
        return Array(tokens.dropFirst(prompt.count))
    }
}

/// A scripted worker at message level: reserves, prefills in chunks, commits, decodes, refuses. It
/// keeps the promises of the protocol and none beyond them.
final class FakeWorker {
    struct Decoding {
        var transfer: TransferID
        var tokens: [TokenID]
        var promptTokens: Int
        var sampling: SamplingParameters
        var blocks: Int
        var state: State
        /// Repeated in the first step by some workers.
        var first: SampledToken?

        enum State: Equatable {
            case reserved(since: Int64)
            case prefilling(left: Int)
            case ready(running: Bool)
        }
    }

    struct Prefilling {
        var assignment: AssignPrefill
        var computed: Int
    }

    let id: WorkerID
    let role: WorkerRole
    var epoch: Epoch
    var alive = true
    var blockCount: Int
    let batchJobsMax: Int
    let blockTokens = 4
    /// Incarnation of the control link; nil while there is none.
    var link: Int?
    var frozenUntil: Int64 = 0
    var stalledUntil: Int64 = 0
    var stepsFinished: UInt64 = 0
    var iteration: UInt64 = 0
    var stepping = false
    var draining = false
    var drainBy: Int64 = .max
    var drainReported = false
    let repeatsFirstToken: Bool
    let refusalPercent: Int

    var decoding: [Decoding] = []
    var prefilling: [Prefilling] = []
    var sending: [TransferID: AssignPrefill] = [:]

    init(
        id: WorkerID, role: WorkerRole, epoch: Epoch, blockCount: Int, batchJobsMax: Int, repeatsFirstToken: Bool,
        refusalPercent: Int
    ) {
        self.id = id
        self.role = role
        self.epoch = epoch
        self.blockCount = blockCount
        self.batchJobsMax = batchJobsMax
        self.repeatsFirstToken = repeatsFirstToken
        self.refusalPercent = refusalPercent
    }

    var ref: WorkerRef { WorkerRef(id: id, epoch: epoch) }
    var freeBlocks: Int { blockCount - decoding.reduce(0) { $0 + $1.blocks } }
    var holdsNothing: Bool { decoding.isEmpty && prefilling.isEmpty && sending.isEmpty }
    var held: [TransferID] {
        decoding.map(\.transfer) + prefilling.map(\.assignment.transfer) + sending.keys.sorted()
    }

    func register() -> Register {
        Register(
            role: role, dataHost: role == .prefill ? "" : "127.0.0.1", dataPort: 9, blockTokens: blockTokens,
            blockCount: blockCount, pageBytes: 4096, batchJobsMax: batchJobsMax, stepTokensMax: 64, processID: 1,
            held: held)
    }

    func load() -> LoadReport {
        var load = LoadReport()
        load.stepsFinished = stepsFinished
        load.blocks.free = freeBlocks
        load.blocks.committed = blockCount - freeBlocks
        load.runningJobs = decoding.count
        return load
    }

    /// A killed process forgets everything.
    func die() {
        alive = false
        link = nil
        decoding = []
        prefilling = []
        sending = [:]
        stepping = false
        draining = false
        drainReported = false
        drainBy = .max
    }

    func blocks(_ tokens: Int) -> Int { (tokens + blockTokens - 1) / blockTokens }

    // MARK: Messages from the coordinator

    func receive(_ message: Message, at now: Int64, _ random: inout SeededGenerator) -> [Message] {
        switch message {
        case .reservePages(let reserve): return [reservation(reserve, now, &random)]
        case .startDecode(let start): return [started(start, &random)]
        case .assignPrefill(let assignment): return [assigned(assignment, &random)]
        case .setRunning(let plan):
            for transfer in plan.run { setRunning(transfer, true) }
            for transfer in plan.pause { setRunning(transfer, false) }
            return []
        case .cancel(let cancel):
            drop(cancel.transfer)
            return [.cancelAck(CancelAck(transfer: cancel.transfer))]
        case .drain(let drain):
            draining = true
            drainBy = now + drain.deadline.nanoseconds / 1000
            return []
        default: return []
        }
    }

    func drop(_ transfer: TransferID) {
        decoding.removeAll { $0.transfer == transfer }
        prefilling.removeAll { $0.assignment.transfer == transfer }
        sending[transfer] = nil
    }

    private func setRunning(_ transfer: TransferID, _ running: Bool) {
        guard let position = decoding.firstIndex(where: { $0.transfer == transfer }) else { return }
        if case .ready = decoding[position].state { decoding[position].state = .ready(running: running) }
    }

    private func refusal(blocks: Int, _ random: inout SeededGenerator) -> Refusal? {
        if draining { return .draining }
        if blocks > blockCount { return .tooLong }
        if blocks > freeBlocks { return .noMemory }
        return random.chance(refusalPercent) ? .tooManyJobs : nil
    }

    private func reservation(_ reserve: ReservePages, _ now: Int64, _ random: inout SeededGenerator) -> Message {
        let wanted = (0..<UInt32(blocks(reserve.tokens.count))).map { $0 }
        let ack = Message.reserveAck(ReserveAck(transfer: reserve.transfer, wanted: wanted, creditBytes: 1 << 20))
        if decoding.contains(where: { $0.transfer == reserve.transfer }) { return ack }
        let need = blocks(reserve.tokens.count + 1)
        if let reason = refusal(blocks: need, &random) {
            return .reserveNack(ReserveNack(transfer: reserve.transfer, reason: reason, freeBlocks: freeBlocks))
        }
        decoding.append(
            Decoding(
                transfer: reserve.transfer, tokens: reserve.tokens, promptTokens: reserve.promptTokens,
                sampling: reserve.sampling, blocks: need, state: .reserved(since: now)))
        return ack
    }

    private func started(_ start: StartDecode, _ random: inout SeededGenerator) -> Message {
        if decoding.contains(where: { $0.transfer == start.transfer }) {
            return .startDecodeAck(TransferReply(transfer: start.transfer, refusal: nil, freeBlocks: freeBlocks))
        }
        let need = blocks(start.tokens.count + 1)
        let reason = refusal(blocks: need, &random)
        if reason == nil {
            decoding.append(
                Decoding(
                    transfer: start.transfer, tokens: start.tokens, promptTokens: start.promptTokens,
                    sampling: start.sampling, blocks: need, state: .prefilling(left: start.tokens.count)))
        }
        return .startDecodeAck(TransferReply(transfer: start.transfer, refusal: reason, freeBlocks: freeBlocks))
    }

    private func assigned(_ assignment: AssignPrefill, _ random: inout SeededGenerator) -> Message {
        let reply = Message.assignAck(TransferReply(transfer: assignment.transfer, refusal: nil, freeBlocks: 1))
        if held.contains(assignment.transfer) { return reply }
        if draining || random.chance(refusalPercent) {
            return .assignNack(AssignNack(transfer: assignment.transfer, reason: .tooManyJobs, freeBlocks: 1))
        }
        prefilling.append(Prefilling(assignment: assignment, computed: 0))
        return reply
    }

    // MARK: Steps

    var hasWork: Bool {
        if !prefilling.isEmpty { return true }
        return decoding.contains { job in
            switch job.state {
            case .reserved: false
            case .prefilling: true
            case .ready(let running): running
            }
        }
    }

    /// One iteration; messages go to the coordinator, ended pushes to their targets.
    func step(chunk: Int) -> (messages: [Message], pushes: [(AssignPrefill, SampledToken)]) {
        stepsFinished += 1
        return role == .prefill ? prefillStep(chunk) : (decodeStep(chunk), [])
    }

    private func prefillStep(_ chunk: Int) -> ([Message], [(AssignPrefill, SampledToken)]) {
        guard var job = prefilling.first else { return ([], []) }
        let assignment = job.assignment
        job.computed = min(job.computed + chunk, assignment.tokens.count)
        prefilling[0] = job
        var messages: [Message] = [
            .prefillProgress(
                PrefillProgress(
                    transfer: assignment.transfer, computedTokens: job.computed, cachedTokens: 0,
                    computeTime: .milliseconds(2)))
        ]
        guard job.computed == assignment.tokens.count else { return (messages, []) }
        prefilling.removeFirst()
        let token = SampledToken(token: HashModel.next(after: assignment.tokens))
        messages.append(
            .prefillDone(PrefillDone(transfer: assignment.transfer, firstToken: token, cachedTokens: 0)))
        sending[assignment.transfer] = assignment
        return (messages, [(assignment, token)])
    }

    private func decodeStep(_ chunk: Int) -> [Message] {
        var steps: [TokenStep] = []
        var slots = batchJobsMax
        for transfer in decoding.map(\.transfer) where slots > 0 {
            guard let position = decoding.firstIndex(where: { $0.transfer == transfer }) else { continue }
            switch decoding[position].state {
            case .reserved, .ready(running: false): continue
            case .prefilling(let left):
                slots -= 1
                let computed = min(left, chunk)
                if left > computed {
                    decoding[position].state = .prefilling(left: left - computed)
                    steps.append(
                        TokenStep(
                            transfer: transfer, offset: outputs(decoding[position]), tokens: [],
                            prefilledTokens: computed))
                } else {
                    decoding[position].state = .ready(running: true)
                    steps.append(advance(position, prefilled: computed))
                }
            case .ready(running: true):
                slots -= 1
                if let evicted = makeRoom(for: position) {
                    steps.append(evicted)
                } else {
                    steps.append(advance(position, prefilled: 0))
                }
            }
        }
        guard !steps.isEmpty else { return [] }
        iteration += 1
        return [.tokenSteps(TokenSteps(iteration: iteration, computeTime: .milliseconds(2), steps: steps))]
    }

    private func outputs(_ job: Decoding) -> Int { job.tokens.count - job.promptTokens }

    /// Takes a block where the next token needs one; without any the job itself is evicted.
    private func makeRoom(for position: Int) -> TokenStep? {
        let need = blocks(decoding[position].tokens.count + 1)
        guard need > decoding[position].blocks else { return nil }
        if freeBlocks > 0 {
            decoding[position].blocks = need
            return nil
        }
        let job = decoding.remove(at: position)
        return TokenStep(transfer: job.transfer, offset: outputs(job), tokens: [], end: .evicted)
    }

    private func advance(_ position: Int, prefilled: Int) -> TokenStep {
        var job = decoding[position]
        var offset = outputs(job)
        let token = SampledToken(token: HashModel.next(after: job.tokens))
        var tokens = [token]
        if let first = job.first, repeatsFirstToken {
            tokens.insert(first, at: 0)
            offset -= 1
        }
        job.first = nil
        job.tokens.append(token.token)
        decoding[position] = job
        var end: StepEnd?
        if job.sampling.stopTokens.contains(token.token) {
            end = .finished(.stop)
        } else if outputs(job) >= job.sampling.maxTokens {
            end = .finished(.length)
        }
        if end != nil { decoding.remove(at: position) }
        return TokenStep(transfer: job.transfer, offset: offset, tokens: tokens, end: end, prefilledTokens: prefilled)
    }

    /// The pages of a transfer have come; true where they were awaited.
    func land(_ assignment: AssignPrefill, first: SampledToken) -> Bool {
        guard alive, assignment.target.epoch == epoch,
            let position = decoding.firstIndex(where: { $0.transfer == assignment.transfer })
        else { return false }
        guard case .reserved = decoding[position].state else { return true }
        decoding[position].tokens.append(first.token)
        decoding[position].first = first
        decoding[position].state = .ready(running: true)
        let job = decoding[position]
        if job.sampling.stopTokens.contains(first.token) || outputs(job) >= job.sampling.maxTokens {
            decoding.remove(at: position)
        }
        return true
    }

    /// Reservations that nobody came for.
    func expiredReservations(at now: Int64) -> [TransferID] {
        let expired = decoding.filter { job in
            if case .reserved(let since) = job.state { return now - since > 4_000_000 }
            return false
        }
        for job in expired { drop(job.transfer) }
        return expired.map(\.transfer)
    }

    /// On a drain's deadline everything is handed back.
    func evictAll() -> [Message] {
        guard !decoding.isEmpty else { return [] }
        iteration += 1
        let steps = decoding.map { job in
            TokenStep(transfer: job.transfer, offset: outputs(job), tokens: [], end: .evicted)
        }
        decoding = []
        return [.tokenSteps(TokenSteps(iteration: iteration, computeTime: .zero, steps: steps))]
    }
}
