import BoundedJSON
import CoordinatorCore
import ServingTypes

/// A client that attached to a job: its log from an output offset, then what comes, to its end.
final class JobFollower: ExchangeHandler, JobSink {
    /// How events are spelled.
    enum Format: String, CaseIterable {
        /// As the first request's stream would be.
        case openai
        /// Token ids with their offsets.
        case raw
    }

    private let door: FrontDoor
    private let exchange: Exchange
    private let format: Format
    private let offset: Int
    private let includeUsage: Bool
    private let job: JobID
    private let record: JobRequestRecord

    private var text: ChoiceText
    private var shape: ResponseShape
    private var tokensSeen = 0
    private var rawTokens: [SampledToken] = []
    private var rawOffset = 0
    private var outcome: JobOutcome?
    private var isOver = false

    init(
        door: FrontDoor, exchange: Exchange, job: JobID, known: (view: JobView, request: JobRequestRecord),
        format: Format, offset: Int, includeUsage: Bool
    ) {
        self.door = door
        self.exchange = exchange
        self.job = job
        self.format = format
        self.offset = offset
        self.includeUsage = includeUsage
        record = known.request
        let model = door.configuration.model
        text = ChoiceText(
            tokenizer: model.tokenizer, stopTokens: record.stopTokens, stopStrings: record.stopStrings,
            skipsSpecialTokens: record.skipsSpecialTokens, skippedTokens: offset)
        shape = ResponseShape(
            kind: record.kind, id: ResponseShape.id(record.kind, job: job), created: record.created,
            model: record.model, includesUsage: includeUsage)
    }

    func start() {
        exchange.hold(self)
        // From the start: text after an offset depends on the characters begun before it.
        door.service.attach(job, fromOffset: 0, sink: self)
        open()
    }

    private func open() {
        guard !isOver, !exchange.hasResponded else { return }
        exchange.openEvents(headers: ["x-tandem-job-id": job.description])
        if format == .openai, record.kind == .chat, offset == 0 {
            exchange.event(shape.roleChunk(index: 0, usage: nil))
        }
        advance()
    }

    // MARK: JobSink

    func admitted(_ job: JobID) {}

    func tokens(offset: Int, _ tokens: [SampledToken]) {
        guard !isOver, !text.isStopped else { return }
        for token in tokens.dropFirst(max(0, tokensSeen - offset)) {
            if token.logprob != nil { (shape.wantsLogprobs, shape.wantsTop) = (true, !token.top.isEmpty) }
            text.push(token)
            if tokensSeen >= self.offset { keepRaw(token) }
            tokensSeen += 1
            guard !text.isStopped else {
                door.service.stopMatched(job, outputTokens: text.outputTokens)
                break
            }
        }
        advance()
    }

    private func keepRaw(_ token: SampledToken) {
        guard format == .raw else { return }
        if rawTokens.isEmpty { rawOffset = tokensSeen }
        rawTokens.append(token)
    }

    func ended(_ outcome: JobOutcome) {
        guard !isOver, self.outcome == nil else { return }
        self.outcome = outcome
        text.finish()
        advance()
    }

    func failed(_ error: ServingError) {
        guard !isOver else { return }
        isOver = true
        let body = ErrorBody(error)
        guard exchange.hasResponded else { return exchange.respond(body) }
        end(with: body)
    }

    // MARK: ExchangeHandler

    func bufferDrained() { advance() }

    func clientLeft() {
        guard !isOver else { return }
        isOver = true
        door.service.leave(job, sink: self)
    }

    // MARK: Events

    private func advance() {
        guard !isOver, exchange.hasResponded, !exchange.isFull else { return }
        let part = text.take()
        switch format {
        case .openai:
            if !part.text.isEmpty || !part.entries.isEmpty {
                exchange.event(shape.textChunk(index: 0, text: part.text, entries: part.entries, usage: nil))
            }
        case .raw:
            if !rawTokens.isEmpty || !part.text.isEmpty { exchange.event(rawEvent(text: part.text)) }
            rawTokens = []
        }
        if let outcome { finish(outcome) }
    }

    private func rawEvent(text: String) -> String {
        JSON.text([
            "offset": .integer(Int64(rawTokens.isEmpty ? tokensSeen : rawOffset)),
            "tokens": .array(rawTokens.map { .integer(Int64($0.token.value)) }), "text": .string(text),
        ])
    }

    private func finish(_ outcome: JobOutcome) {
        isOver = true
        switch outcome.ending {
        case .finished(let reason) where reason == .stop || reason == .length || text.isStopped:
            finish(text.isStopped ? .stop : reason, outcome)
        case .finished(.cancelled): end(with: ErrorBody(ServingError(.cancelled, "The job was cancelled.")))
        case .finished: end(with: ErrorBody(ServingError(.internalError, "The job failed."), billed: true))
        case .failed(let error): end(with: ErrorBody(error, billed: true))
        }
    }

    private func finish(_ reason: FinishReason, _ outcome: JobOutcome) {
        let usage = UsageReport(
            promptTokens: outcome.usage.promptTokens,
            completionTokens: text.isStopped ? text.outputTokens : outcome.usage.outputTokens,
            cachedTokens: outcome.usage.cachedTokens)
        switch format {
        case .openai:
            exchange.event(shape.finishChunk(index: 0, reason: reason, usage: nil))
            if includeUsage { exchange.event(shape.usageChunk(usage)) }
        case .raw:
            exchange.event(JSON.text(["finish_reason": .string(reason.rawValue), "usage": usage.json]))
        }
        exchange.event("[DONE]")
        exchange.finish()
    }

    private func end(with body: ErrorBody) {
        exchange.event(JSON.text(body.json))
        exchange.event("[DONE]")
        exchange.finish()
    }
}
