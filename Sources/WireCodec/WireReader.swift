import CWire
import Messages
import ServingTypes

/// Turns unpacked protobuf-c values into Swift values, checking every range: the parts that
/// messages share. Sub-messages that the schema requires are there, or unpacking has failed before.
struct WireReader {
    typealias Part<T> = UnsafeMutablePointer<T>?
    typealias Parts<T> = UnsafeMutablePointer<UnsafeMutablePointer<T>?>?

    let kind: FrameKind

    func malformed(_ field: String) -> FrameError { .malformed(kind, field: field) }

    func required<T>(_ part: Part<T>, _ field: String) throws(FrameError) -> T {
        guard let part else { throw malformed(field) }
        return part.pointee
    }

    // Numbers and text.

    func int(_ value: UInt64, _ field: String) throws(FrameError) -> Int {
        guard let result = Int(exactly: value) else { throw malformed(field) }
        return result
    }

    func port(_ value: UInt32, _ field: String) throws(FrameError) -> UInt16 {
        guard let result = UInt16(exactly: value) else { throw malformed(field) }
        return result
    }

    func number(_ value: Float, _ field: String) throws(FrameError) -> Float {
        guard !value.isNaN else { throw malformed(field) }
        return value
    }

    func choice<E: WireEnumeration>(_ wire: E.Wire, _ field: String) throws(FrameError) -> E {
        for candidate in E.allCases where candidate.wire.rawValue == wire.rawValue { return candidate }
        throw malformed(field)
    }

    func text(_ data: ProtobufCBinaryData, _ field: String, max limit: Int = WireLimits.nameBytesMax)
        throws(FrameError) -> String
    {
        guard data.len <= limit else { throw malformed(field) }
        guard let base = data.data else { return "" }
        guard let text = String(validating: UnsafeBufferPointer(start: base, count: data.len), as: UTF8.self) else {
            throw malformed(field)
        }
        return text
    }

    func sentence(_ data: ProtobufCBinaryData, _ field: String) throws(FrameError) -> String {
        try text(data, field, max: WireLimits.sentenceBytesMax)
    }

    /// Copies `count` wire numbers into an array whose elements have the same layout.
    func copied<T, Element>(_ count: Int, _ pointer: Part<T>, as type: Element.Type) -> [Element] {
        guard let pointer, count > 0 else { return [] }
        let bytes = count * MemoryLayout<T>.stride
        return [Element](unsafeUninitializedCapacity: bytes / MemoryLayout<Element>.stride) { buffer, filled in
            let target = UnsafeMutableRawBufferPointer(buffer)
            target.copyMemory(from: UnsafeRawBufferPointer(start: pointer, count: bytes))
            filled = buffer.count
        }
    }

    func tokens(_ count: Int, _ pointer: Part<UInt32>) -> [TokenID] { copied(count, pointer, as: TokenID.self) }

    func numbers(_ count: Int, _ pointer: Part<UInt32>) -> [UInt32] { copied(count, pointer, as: UInt32.self) }

    func pages(_ count: Int, _ pointer: Part<UInt64>, _ field: String) throws(FrameError) -> [PageID] {
        guard count % 4 == 0 else { throw malformed(field) }
        return copied(count, pointer, as: PageID.self)
    }

    func list<T, Element>(
        _ count: Int, _ parts: Parts<T>, _ field: String, max limit: Int = WireLimits.partsMax,
        _ part: (T) throws(FrameError) -> Element
    ) throws(FrameError) -> [Element] {
        guard count <= limit else { throw malformed(field) }
        guard let parts else { return [] }
        var result: [Element] = []
        result.reserveCapacity(count)
        for index in 0..<count { result.append(try part(try required(parts[index], field))) }
        return result
    }

    // Shared parts.

    func worker(_ part: Part<Tandem__WorkerRef>, _ field: String) throws(FrameError) -> WorkerRef {
        let wire = try required(part, field)
        return WorkerRef(id: WorkerID(try text(wire.name, field)), epoch: Epoch(wire.epoch))
    }

    func transfer(_ wire: Tandem__TransferID) -> TransferID {
        TransferID(job: JobID(high: wire.job_high, low: wire.job_low), attempt: Attempt(wire.attempt))
    }

    func transfer(_ part: Part<Tandem__TransferID>) throws(FrameError) -> TransferID {
        transfer(try required(part, "transfer"))
    }

    func transfers(_ count: Int, _ parts: Parts<Tandem__TransferID>, _ field: String) throws(FrameError)
        -> [TransferID]
    {
        try list(count, parts, field) { (wire) throws(FrameError) in transfer(wire) }
    }

    func sampled(_ wire: Tandem__SampledToken) throws(FrameError) -> SampledToken {
        guard wire.n_top_tokens == wire.n_top_logprobs, wire.n_top_tokens <= SamplingLimits.topLogprobsMax else {
            throw malformed("top_tokens")
        }
        let logprobs = copied(wire.n_top_logprobs, wire.top_logprobs, as: Float.self)
        let top = zip(tokens(wire.n_top_tokens, wire.top_tokens), logprobs).map {
            TokenLogprob(token: $0, logprob: $1)
        }
        let logprob = wire.has_logprob != 0 ? wire.logprob : nil
        return SampledToken(token: TokenID(wire.token), logprob: logprob, top: top)
    }

    func sampling(_ part: Part<Tandem__Sampling>) throws(FrameError) -> SamplingParameters {
        let wire = try required(part, "sampling")
        var value = SamplingParameters()
        value.temperature = try number(wire.temperature, "sampling.temperature")
        value.topK = try int(wire.top_k, "sampling.top_k")
        value.topP = try number(wire.top_p, "sampling.top_p")
        value.minP = try number(wire.min_p, "sampling.min_p")
        value.repetitionPenalty = try number(wire.repetition_penalty, "sampling.repetition_penalty")
        value.presencePenalty = try number(wire.presence_penalty, "sampling.presence_penalty")
        value.frequencyPenalty = try number(wire.frequency_penalty, "sampling.frequency_penalty")
        value.logitBias = try list(
            wire.n_logit_bias, wire.logit_bias, "sampling.logit_bias", max: SamplingLimits.logitBiasMax
        ) { (bias) throws(FrameError) in
            TokenBias(token: TokenID(bias.token), bias: try number(bias.bias, "sampling.logit_bias"))
        }
        value.seed = wire.seed
        guard wire.n_stop_tokens <= SamplingLimits.stopTokensMax else { throw malformed("sampling.stop_tokens") }
        value.stopTokens = tokens(wire.n_stop_tokens, wire.stop_tokens)
        value.maxTokens = try int(wire.max_tokens, "sampling.max_tokens")
        value.minTokens = try int(wire.min_tokens, "sampling.min_tokens")
        value.wantsLogprobs = wire.wants_logprobs != 0
        guard wire.top_logprobs <= SamplingLimits.topLogprobsMax else { throw malformed("sampling.top_logprobs") }
        value.topLogprobs = Int(wire.top_logprobs)
        return value
    }

    struct Work {
        var transfer: TransferID
        var tenant: TenantID
        var tokens: [TokenID]
        var promptTokens: Int
        var pageIDs: [PageID]
        var sampling: SamplingParameters
    }

    func work(_ part: Part<Tandem__Work>) throws(FrameError) -> Work {
        let wire = try required(part, "work")
        return Work(
            transfer: try transfer(wire.transfer), tenant: TenantID(try text(wire.tenant, "work.tenant")),
            tokens: tokens(wire.n_tokens, wire.tokens), promptTokens: try int(wire.prompt_tokens, "work.prompt_tokens"),
            pageIDs: try pages(wire.n_page_ids, wire.page_ids, "work.page_ids"), sampling: try sampling(wire.sampling))
    }

    func stepEnd(_ wire: Tandem__StepEnd) throws(FrameError) -> StepEnd {
        if wire.kind == TANDEM__STEP_END__KIND__END_ERROR {
            return .failed(try failure(try required(wire.failure, "end.failure")))
        }
        guard wire.failure == nil else { throw malformed("end.failure") }
        if wire.kind == TANDEM__STEP_END__KIND__END_EVICTED { return .evicted }
        for reason in FinishReason.allCases where reason.wire == wire.kind { return .finished(reason) }
        throw malformed("end.kind")
    }

    func failure(_ wire: Tandem__Failure) throws(FrameError) -> ServingError {
        guard let blast = ServingError.Blast.all.first(where: { $0.wire == wire.blast }) else {
            throw malformed("failure.blast")
        }
        return ServingError(
            ServingError.Code(try text(wire.code, "failure.code")), try sentence(wire.message, "failure.message"),
            field: wire.has_field != 0 ? try text(wire.field, "failure.field") : nil, blast: blast,
            retryAfterSeconds: wire.has_retry_after_seconds != 0
                ? try int(wire.retry_after_seconds, "failure.retry_after_seconds") : nil)
    }
}
