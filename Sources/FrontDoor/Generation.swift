import BoundedJSON
import CoordinatorCore
import ServingTypes

/// A prompt in tokens, and its text where it is to be echoed.
struct PreparedPrompt: Sendable {
    var tokens: [TokenID]
    var text = ""
}

/// One completion or chat request from its checked body to its last byte: one job per choice.
final class Generation: ExchangeHandler {
    private let door: FrontDoor
    private let exchange: Exchange
    private let request: GenerationRequest
    private let record: JobRequestRecord
    private let idempotencyKey: String?

    private var choices: [Choice] = []
    private var prompts: [PreparedPrompt] = []
    private var shape: ResponseShape
    private var state = State.preparing

    private enum State {
        case preparing
        /// Waiting for every job to be admitted.
        case admitting
        case answering
        case over
    }

    init(
        door: FrontDoor, exchange: Exchange, request: GenerationRequest, record: JobRequestRecord,
        idempotencyKey: String?
    ) {
        self.door = door
        self.exchange = exchange
        self.request = request
        self.record = record
        self.idempotencyKey = idempotencyKey
        shape = ResponseShape(
            kind: request.kind, id: "", created: record.created, model: request.model,
            includesUsage: request.includeUsage, wantsLogprobs: request.sampling.wantsLogprobs,
            wantsTop: request.sampling.topLogprobs > 0)
    }

    // MARK: Prompts

    func start() {
        exchange.hold(self)
        door.generations += 1
        let preparation = door.preparation(request.prompts, echo: request.echo)
        door.prepare(preparation) { self.prepared($0) }
    }

    private func prepared(_ result: Result<[PreparedPrompt], ServingError>) {
        guard state == .preparing else { return }
        do throws(ServingError) {
            prompts = try result.get()
            var plans: [SamplingParameters] = []
            for prompt in prompts { plans.append(try sampling(for: prompt)) }
            state = .admitting
            if request.maxTokens == 0 { answerEcho() } else { submit(plans) }
        } catch {
            fail(error)
        }
    }

    /// Fits the output into what the prompt leaves of the context.
    private func sampling(for prompt: PreparedPrompt) throws(ServingError) -> SamplingParameters {
        let context = door.configuration.model.contextTokensMax
        let count = prompt.tokens.count
        let field = request.prompts.field
        guard count > 0 else { throw .invalid(field, "has no tokens; it must have at least one") }
        let left = context - count
        guard left >= (request.maxTokens == 0 ? 0 : 1) else {
            throw .contextTooLong(prompt: count, output: request.maxTokens ?? 0, limit: context, field: field)
        }
        var sampling = request.sampling
        if let wanted = request.maxTokens {
            guard wanted <= left else {
                throw .contextTooLong(
                    prompt: count, output: wanted, limit: context, field: field, outputField: request.maxTokensField)
            }
            sampling.maxTokens = wanted
        } else {
            switch request.kind {
            case .chat: sampling.maxTokens = left
            case .completion: sampling.maxTokens = min(left, door.configuration.model.defaults.completionTokens)
            }
        }
        sampling.minTokens = min(sampling.minTokens, sampling.maxTokens)
        return sampling
    }

    // MARK: Jobs

    private func submit(_ plans: [SamplingParameters]) {
        let tenant = exchange.caller.tenant
        // What joins or replays a job asks for nothing new.
        let sizes = (0..<plans.count * request.n).map { index -> Int? in
            if let key = key(ofChoice: index), door.service.knows(key: key, of: tenant) { return nil }
            let prompt = index / request.n
            return prompts[prompt].tokens.count + plans[prompt].maxTokens
        }
        let new = sizes.compactMap(\.self)
        if !new.isEmpty,
            let refusal = door.service.takeQuota(tenant, jobs: new.count, tokens: new.reduce(0, +))
        {
            return fail(refusal)
        }
        for (promptIndex, plan) in plans.enumerated() {
            let pages = door.service.pageIDs(of: prompts[promptIndex].tokens, tenant: pageSpace)
            for copy in 0..<request.n {
                guard state == .admitting else {
                    let later = sizes.dropFirst(promptIndex * request.n + copy).compactMap(\.self)
                    return door.service.giveBackQuota(tenant, tokens: later.reduce(0, +))
                }
                submitChoice(promptIndex: promptIndex, copy: copy, plan: plan, pages: pages)
            }
        }
        openIfAdmitted()
    }

    /// Keys hold visible ASCII only, so no client's key looks like another one's later choice.
    private func key(ofChoice index: Int) -> String? {
        idempotencyKey.map { index == 0 ? $0 : "\($0)\u{1F}\(index)" }
    }

    private var pageSpace: TenantID {
        let tenant = exchange.caller.tenant
        return request.cacheSalt.map { Digest.pageSpace(tenant: tenant, salt: $0) } ?? tenant
    }

    private func submitChoice(promptIndex: Int, copy: Int, plan: SamplingParameters, pages: [PageID]) {
        let job = door.service.makeJobID()
        var sampling = plan
        sampling.seed = request.seed.map { $0 &+ UInt64(copy) } ?? (job.low ^ job.high)
        let choice = Choice(
            generation: self, index: choices.count, prompt: promptIndex, job: job,
            text: ChoiceText(
                tokenizer: door.configuration.model.tokenizer, stopTokens: sampling.stopTokens,
                stopStrings: request.stopStrings, skipsSpecialTokens: request.skipsSpecialTokens))
        choices.append(choice)
        door.service.submit(
            JobSubmission(
                job: job, tenant: exchange.caller.tenant, promptTokens: prompts[promptIndex].tokens, pageIDs: pages,
                sampling: sampling, priority: request.priority, deadline: request.objectives.deadline,
                idempotencyKey: key(ofChoice: choice.index), pageSpace: pageSpace, due: request.objectives.firstToken),
            request: record, sink: choice)
    }

    fileprivate func choiceAdmitted() {
        if state == .admitting { openIfAdmitted() }
    }

    private func openIfAdmitted() {
        let expected = prompts.count * request.n
        guard state == .admitting, choices.count == expected, choices.allSatisfy(\.isAdmitted),
            let first = choices.first
        else { return }
        state = .answering
        shape.id = ResponseShape.id(request.kind, job: first.job)
        // A joined or replayed job answers with the time and name of its first request.
        if let known = door.service.view(first.job)?.request { shape.created = known.created }
        guard request.stream else { return finishIfEnded() }
        exchange.openEvents(headers: answerHeaders)
        for choice in choices { begin(choice) }
        for choice in choices { advance(choice) }
        finishIfEnded()
    }

    private var answerHeaders: HeaderList {
        var headers = HeaderList()
        if !choices.isEmpty { headers.add("x-tandem-job-id", choices.map(\.job.description).joined(separator: ",")) }
        headers.add(contentsOf: Self.ignoredHeader(request.ignoredFields))
        headers.add(contentsOf: door.service.quota(of: exchange.caller.tenant).headers)
        return headers
    }

    /// Names that can stand in a header field, a bounded number of them.
    static func ignoredHeader(_ names: [String]) -> HeaderList {
        let shown = names.filter { name in
            (1...64).contains(name.utf8.count)
                && name.utf8.allSatisfy { (0x21...0x7E).contains($0) && $0 != UInt8(ascii: ",") }
        }.prefix(GenerationRequestParser.ignoredNamesMax)
        return shown.isEmpty ? [:] : ["x-tandem-ignored-fields": shown.joined(separator: ", ")]
    }

    // MARK: The stream

    private func begin(_ choice: Choice) {
        let usage = runningUsage(choice)
        if request.kind == .chat { exchange.event(shape.roleChunk(index: choice.index, usage: usage)) }
        if request.echo {
            exchange.event(
                shape.textChunk(index: choice.index, text: prompts[choice.prompt].text, entries: [], usage: usage))
        }
    }

    /// Sends what this choice has, unless the client is too slow for it.
    fileprivate func advance(_ choice: Choice) {
        guard state == .answering, request.stream, !exchange.isFull else { return }
        let part = choice.text.take()
        // A token without text is an event as well, as vLLM has it: clients time tokens by events.
        let isSilent = part.tokens > 0 && choice.finishReason == nil
        if !part.text.isEmpty || !part.entries.isEmpty || isSilent {
            exchange.event(
                shape.textChunk(
                    index: choice.index, text: part.text, entries: part.entries, usage: runningUsage(choice)))
        }
        if let reason = choice.finishReason, !choice.isFinishSent {
            choice.isFinishSent = true
            exchange.event(shape.finishChunk(index: choice.index, reason: reason, usage: runningUsage(choice)))
        }
    }

    private func runningUsage(_ choice: Choice) -> UsageReport? {
        guard request.continuousUsage else { return nil }
        return UsageReport(
            promptTokens: prompts[choice.prompt].tokens.count, completionTokens: choice.text.outputTokens,
            cachedTokens: choice.outcome?.usage.cachedTokens ?? 0)
    }

    func bufferDrained() {
        for choice in choices { advance(choice) }
        finishIfEnded()
    }

    // MARK: The end

    fileprivate func choiceEnded(_ choice: Choice) {
        advance(choice)
        finishIfEnded()
    }

    fileprivate func finishIfEnded() {
        guard state == .answering, choices.allSatisfy({ $0.finishReason != nil }) else { return }
        guard request.stream else {
            let answers = choices.map { choice -> JSONValue in
                let part = choice.text.take()
                return shape.choice(
                    index: choice.index, text: (request.echo ? prompts[choice.prompt].text : "") + part.text,
                    entries: part.entries, reason: choice.finishReason ?? .stop)
            }
            let (usage, headers) = (totalUsage, answerHeaders)
            over()
            return exchange.respond(shape.answer(choices: answers, usage: usage), headers: headers)
        }
        guard choices.allSatisfy(\.isFinishSent) else { return }
        let usage = totalUsage
        over()
        if request.includeUsage { exchange.event(shape.usageChunk(usage)) }
        exchange.event("[DONE]")
        exchange.finish()
    }

    /// A prompt counts once, however many choices it got.
    private var totalUsage: UsageReport {
        var usage = UsageReport()
        for prompt in prompts { usage.promptTokens += prompt.tokens.count }
        for choice in choices {
            usage.completionTokens += choice.outputTokens
            if choice.index % request.n == 0 { usage.cachedTokens += choice.outcome?.usage.cachedTokens ?? 0 }
        }
        return usage
    }

    /// `max_tokens: 0` with `echo`: the prompt is the answer and no job runs.
    private func answerEcho() {
        shape.id = ResponseShape.id(request.kind, job: door.service.makeJobID())
        let copies = prompts.flatMap { Array(repeating: $0.text, count: request.n) }
        let usage = UsageReport(promptTokens: prompts.reduce(0) { $0 + $1.tokens.count })
        let headers = answerHeaders
        over()
        guard request.stream else {
            let answers = copies.enumerated().map { shape.choice(index: $0, text: $1, entries: [], reason: .length) }
            return exchange.respond(shape.answer(choices: answers, usage: usage), headers: headers)
        }
        exchange.openEvents(headers: headers)
        for (index, text) in copies.enumerated() {
            exchange.event(shape.textChunk(index: index, text: text, entries: [], usage: nil))
            exchange.event(shape.finishChunk(index: index, reason: .length, usage: nil))
        }
        if request.includeUsage { exchange.event(shape.usageChunk(usage)) }
        exchange.event("[DONE]")
        exchange.finish()
    }

    fileprivate func fail(_ error: ServingError) {
        guard state != .over else { return }
        let billed = choices.contains { $0.text.outputTokens > 0 }
        leaveJobs()
        over()
        var body = ErrorBody(error, billed: billed)
        guard exchange.hasResponded else {
            body.headers.add(contentsOf: door.service.quota(of: exchange.caller.tenant).headers)
            return exchange.respond(body)
        }
        exchange.event(JSON.text(body.json))
        exchange.event("[DONE]")
        exchange.finish()
    }

    func clientLeft() {
        guard state != .over else { return }
        // A job that is detached or has a key goes on, and somebody must go on looking for its stop strings.
        let goesOn = record.detached || idempotencyKey != nil
        if !goesOn || request.stopStrings.isEmpty { leaveJobs() }
        over()
    }

    private func leaveJobs() {
        for choice in choices where choice.outcome == nil { choice.leave(door.service) }
    }

    /// From here on the jobs' sinks keep this alive, where a job goes on, and nothing else does.
    private func over() {
        state = .over
        choices = []
        door.generationEnded()
    }

    fileprivate func stopMatched(_ choice: Choice) {
        door.service.stopMatched(choice.job, outputTokens: choice.text.outputTokens)
    }

    fileprivate func choiceFailed(_ error: ServingError) { fail(error) }
}

/// One choice: follows one job.
final class Choice: JobSink {
    private let generation: Generation
    let index: Int
    let prompt: Int
    /// The first job's id where an idempotency key joined one.
    private(set) var job: JobID
    var text: ChoiceText
    private(set) var isAdmitted = false
    private(set) var outcome: JobOutcome?
    private(set) var finishReason: FinishReason?
    var isFinishSent = false
    private var hasLeft = false
    private var tokensSeen = 0

    init(generation: Generation, index: Int, prompt: Int, job: JobID, text: ChoiceText) {
        self.generation = generation
        self.index = index
        self.prompt = prompt
        self.job = job
        self.text = text
    }

    /// Tokens that count: up to the stop string, or all of the job's.
    var outputTokens: Int { text.isStopped ? text.outputTokens : outcome?.usage.outputTokens ?? text.outputTokens }

    func leave(_ service: any JobService) {
        guard !hasLeft else { return }
        hasLeft = true
        service.leave(job, sink: self)
    }

    func admitted(_ job: JobID) {
        self.job = job
        isAdmitted = true
        generation.choiceAdmitted()
    }

    func tokens(offset: Int, _ tokens: [SampledToken]) {
        guard !hasLeft, !text.isStopped else { return }
        // A log that is replayed may begin before what was seen; it never skips.
        for token in tokens.dropFirst(max(0, tokensSeen - offset)) {
            tokensSeen += 1
            text.push(token)
            guard !text.isStopped else {
                generation.stopMatched(self)
                break
            }
        }
        generation.advance(self)
    }

    func ended(_ outcome: JobOutcome) {
        guard !hasLeft, self.outcome == nil else { return }
        self.outcome = outcome
        switch outcome.ending {
        case .finished(let reason) where reason == .stop || reason == .length || text.isStopped:
            text.finish()
            finishReason = text.isStopped ? .stop : reason
            generation.choiceEnded(self)
        case .finished(.cancelled): generation.choiceFailed(ServingError(.cancelled, "The job was cancelled."))
        case .finished: generation.choiceFailed(ServingError(.internalError, "The job failed."))
        case .failed(let error): generation.choiceFailed(error)
        }
    }

    func failed(_ error: ServingError) {
        guard !hasLeft, outcome == nil else { return }
        hasLeft = true
        generation.choiceFailed(error)
    }
}
