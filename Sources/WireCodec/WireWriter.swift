import CWire
import Messages
import ServingTypes

/// Builds protobuf-c values in an arena: the parts that messages share. Every pointer lives until
/// the arena is reset.
struct WireWriter {
    typealias Pointer<T> = UnsafeMutablePointer<T>
    typealias Initialiser<T> = (Pointer<T>?) -> Void

    let arena: OpaquePointer
    let kind: FrameKind

    func allocate<T>(_ count: Int, of type: T.Type) throws(FrameError) -> Pointer<T> {
        guard let memory = tandem_arena_allocate(arena, count * MemoryLayout<T>.stride) else {
            throw .unpackTooLarge(kind, limit: WireLimits.packBytesMax)
        }
        return memory.bindMemory(to: type, capacity: max(count, 1))
    }

    func make<T>(_ initialise: Initialiser<T>) throws(FrameError) -> Pointer<T> {
        let pointer = try allocate(1, of: T.self)
        initialise(pointer)
        return pointer
    }

    // Numbers and text.

    func count(_ value: Int, _ field: String) throws(FrameError) -> UInt64 {
        guard let result = UInt64(exactly: value) else { throw .malformed(kind, field: field) }
        return result
    }

    func text(_ value: String, _ field: String, max limit: Int = WireLimits.nameBytesMax) throws(FrameError)
        -> ProtobufCBinaryData
    {
        let bytes = Array(value.utf8)
        guard bytes.count <= limit else { throw .malformed(kind, field: field) }
        let copy = try copied(bytes, as: UInt8.self)
        return ProtobufCBinaryData(len: bytes.count, data: copy)
    }

    /// Cut at a character's end where it is longer than is accepted.
    func sentence(_ value: String) throws(FrameError) -> ProtobufCBinaryData {
        var end = value.utf8.index(value.startIndex, offsetBy: WireLimits.sentenceBytesMax, limitedBy: value.endIndex)
        while let index = end, index.samePosition(in: value.unicodeScalars) == nil {
            end = value.utf8.index(before: index)
        }
        return try text(end.map { String(value[..<$0]) } ?? value, "sentence", max: WireLimits.sentenceBytesMax)
    }

    /// The elements' memory, reinterpreted: an Element is one or several T without gaps.
    func copied<Element, T>(_ values: [Element], as type: T.Type) throws(FrameError) -> Pointer<T> {
        let bytes = values.count * MemoryLayout<Element>.stride
        let copy = try allocate(bytes / MemoryLayout<T>.stride, of: type)
        values.withUnsafeBytes { source in
            UnsafeMutableRawBufferPointer(start: copy, count: bytes).copyMemory(from: source)
        }
        return copy
    }

    func tokens(_ values: [TokenID]) throws(FrameError) -> (count: Int, pointer: Pointer<UInt32>) {
        (values.count, try copied(values, as: UInt32.self))
    }

    func numbers(_ values: [UInt32]) throws(FrameError) -> (count: Int, pointer: Pointer<UInt32>) {
        (values.count, try copied(values, as: UInt32.self))
    }

    func pages(_ values: [PageID]) throws(FrameError) -> (count: Int, pointer: Pointer<UInt64>) {
        (4 * values.count, try copied(values, as: UInt64.self))
    }

    func list<Element, T>(
        _ values: [Element], _ field: String, max limit: Int = WireLimits.partsMax,
        _ part: (Element) throws(FrameError) -> Pointer<T>
    ) throws(FrameError) -> (count: Int, pointer: Pointer<Pointer<T>?>) {
        guard values.count <= limit else { throw .malformed(kind, field: field) }
        let pointers = try allocate(values.count, of: Pointer<T>?.self)
        for (index, value) in values.enumerated() {
            (pointers + index).initialize(to: try part(value))
        }
        return (values.count, pointers)
    }

    // Shared parts.

    func worker(_ value: WorkerRef) throws(FrameError) -> Pointer<Tandem__WorkerRef> {
        let wire = try make(tandem__worker_ref__init)
        wire.pointee.name = try text(value.id.name, "name")
        wire.pointee.epoch = value.epoch.value
        return wire
    }

    func transfer(_ value: TransferID) throws(FrameError) -> Pointer<Tandem__TransferID> {
        let wire = try make(tandem__transfer_id__init)
        wire.pointee.job_high = value.job.high
        wire.pointee.job_low = value.job.low
        wire.pointee.attempt = value.attempt.number
        return wire
    }

    func transfers(_ values: [TransferID], _ field: String) throws(FrameError)
        -> (count: Int, pointer: Pointer<Pointer<Tandem__TransferID>?>)
    {
        try list(values, field) { (value) throws(FrameError) in try transfer(value) }
    }

    func sampled(_ value: SampledToken) throws(FrameError) -> Pointer<Tandem__SampledToken> {
        let wire = try make(tandem__sampled_token__init)
        wire.pointee.token = value.token.value
        if let logprob = value.logprob {
            wire.pointee.has_logprob = 1
            wire.pointee.logprob = logprob
        }
        guard !value.top.isEmpty else { return wire }
        guard value.top.count <= SamplingLimits.topLogprobsMax else { throw .malformed(kind, field: "top_tokens") }
        (wire.pointee.n_top_tokens, wire.pointee.top_tokens) = try numbers(value.top.map(\.token.value))
        wire.pointee.n_top_logprobs = value.top.count
        wire.pointee.top_logprobs = try copied(value.top.map(\.logprob), as: Float.self)
        return wire
    }

    func sampling(_ value: SamplingParameters) throws(FrameError) -> Pointer<Tandem__Sampling> {
        let wire = try make(tandem__sampling__init)
        wire.pointee.temperature = value.temperature
        wire.pointee.top_k = try count(value.topK, "sampling.top_k")
        wire.pointee.top_p = value.topP
        wire.pointee.min_p = value.minP
        wire.pointee.repetition_penalty = value.repetitionPenalty
        wire.pointee.presence_penalty = value.presencePenalty
        wire.pointee.frequency_penalty = value.frequencyPenalty
        (wire.pointee.n_logit_bias, wire.pointee.logit_bias) = try list(
            value.logitBias, "sampling.logit_bias", max: SamplingLimits.logitBiasMax
        ) { (bias) throws(FrameError) in
            let part = try make(tandem__token_bias__init)
            part.pointee.token = bias.token.value
            part.pointee.bias = bias.bias
            return part
        }
        wire.pointee.seed = value.seed
        guard value.stopTokens.count <= SamplingLimits.stopTokensMax else {
            throw .malformed(kind, field: "sampling.stop_tokens")
        }
        (wire.pointee.n_stop_tokens, wire.pointee.stop_tokens) = try tokens(value.stopTokens)
        wire.pointee.max_tokens = try count(value.maxTokens, "sampling.max_tokens")
        wire.pointee.min_tokens = try count(value.minTokens, "sampling.min_tokens")
        wire.pointee.wants_logprobs = value.wantsLogprobs ? 1 : 0
        guard (0...SamplingLimits.topLogprobsMax).contains(value.topLogprobs) else {
            throw .malformed(kind, field: "sampling.top_logprobs")
        }
        wire.pointee.top_logprobs = UInt32(value.topLogprobs)
        return wire
    }

    func work(
        _ transferID: TransferID, _ tenant: TenantID, _ tokenIDs: [TokenID], promptTokens: Int, _ pageIDs: [PageID],
        _ parameters: SamplingParameters
    ) throws(FrameError) -> Pointer<Tandem__Work> {
        let wire = try make(tandem__work__init)
        wire.pointee.transfer = try transfer(transferID)
        wire.pointee.tenant = try text(tenant.name, "work.tenant")
        (wire.pointee.n_tokens, wire.pointee.tokens) = try tokens(tokenIDs)
        wire.pointee.prompt_tokens = try count(promptTokens, "work.prompt_tokens")
        (wire.pointee.n_page_ids, wire.pointee.page_ids) = try pages(pageIDs)
        wire.pointee.sampling = try sampling(parameters)
        return wire
    }

    func stepEnd(_ value: StepEnd) throws(FrameError) -> Pointer<Tandem__StepEnd> {
        let wire = try make(tandem__step_end__init)
        switch value {
        case .finished(let reason): wire.pointee.kind = reason.wire
        case .evicted: wire.pointee.kind = TANDEM__STEP_END__KIND__END_EVICTED
        case .failed(let error):
            wire.pointee.kind = TANDEM__STEP_END__KIND__END_ERROR
            wire.pointee.failure = try failure(error)
        }
        return wire
    }

    func failure(_ value: ServingError) throws(FrameError) -> Pointer<Tandem__Failure> {
        let wire = try make(tandem__failure__init)
        wire.pointee.blast = value.blast.wire
        wire.pointee.code = try text(value.code.name, "failure.code")
        wire.pointee.message = try sentence(value.message)
        if let field = value.field {
            wire.pointee.has_field = 1
            wire.pointee.field = try text(field, "failure.field")
        }
        if let seconds = value.retryAfterSeconds {
            wire.pointee.has_retry_after_seconds = 1
            wire.pointee.retry_after_seconds = try count(seconds, "failure.retry_after_seconds")
        }
        return wire
    }
}
