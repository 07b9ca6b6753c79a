import ServingTypes

/// A job that is over, reduced to what histograms fold. Instants of one monotonic clock; nil where
/// the job did not get so far.
public struct JobObservation: Hashable, Sendable {
    public var ending: FinishReason
    public var promptTokens: Int
    public var outputTokens: Int
    public var received: Instant
    public var queued: Instant?
    public var placed: Instant?
    public var firstToken: Instant?
    public var transferring: Instant?
    public var decoding: Instant?
    public var finished: Instant?
    public var kvBytesMoved: UInt64

    public init(ending: FinishReason, promptTokens: Int, outputTokens: Int, received: Instant) {
        self.ending = ending
        self.promptTokens = promptTokens
        self.outputTokens = outputTokens
        self.received = received
        kvBytesMoved = 0
    }
}

/// All histograms of served jobs, in seconds, tokens and bytes.
public struct ServingHistograms: Hashable, Sendable {
    /// Arrival to first token.
    public private(set) var timeToFirstToken = Histogram(edges: HistogramEdges.timeToFirstToken)
    /// Each gap between two tokens.
    public private(set) var interTokenLatency = Histogram(edges: HistogramEdges.timePerToken)
    /// Mean gap of one job.
    public private(set) var timePerOutputToken = Histogram(edges: HistogramEdges.timePerToken)
    /// Arrival to last token.
    public private(set) var endToEnd = Histogram(edges: HistogramEdges.requestTime)
    /// Waiting for a worker.
    public private(set) var queueTime = Histogram(edges: HistogramEdges.requestTime)
    /// Placed to first token, first token to last, and both.
    public private(set) var prefillTime = Histogram(edges: HistogramEdges.requestTime)
    public private(set) var decodeTime = Histogram(edges: HistogramEdges.requestTime)
    public private(set) var inferenceTime = Histogram(edges: HistogramEdges.requestTime)
    /// First token to commit on the decode worker.
    public private(set) var transferTime = Histogram(edges: HistogramEdges.timeToFirstToken)
    public private(set) var transferBytes = Histogram(edges: HistogramEdges.bytes)
    public private(set) var promptTokens = Histogram(edges: HistogramEdges.tokens)
    public private(set) var outputTokens = Histogram(edges: HistogramEdges.tokens)

    public init() {}

    /// `tokens` tokens came `gap` after the one before them.
    public mutating func observe(gap: TimeSpan, tokens: Int) {
        guard tokens > 0 else { return }
        interTokenLatency.observe(gap.seconds / Double(tokens), times: tokens)
    }

    public mutating func observeFirstToken(after span: TimeSpan) {
        timeToFirstToken.observe(span.seconds)
    }

    /// Folds a finished job; cancelled and failed ones count nowhere but in the sizes they reached.
    public mutating func observe(_ job: JobObservation) {
        promptTokens.observe(Double(job.promptTokens))
        outputTokens.observe(Double(job.outputTokens))
        if job.kvBytesMoved > 0 { transferBytes.observe(Double(job.kvBytesMoved)) }
        observe(&transferTime, from: job.transferring, to: job.decoding)
        switch job.ending {
        case .cancelled, .failed: return
        case .stop, .length: break
        }
        observe(&endToEnd, from: job.received, to: job.finished)
        observe(&queueTime, from: job.queued, to: job.placed)
        observe(&prefillTime, from: job.placed, to: job.firstToken)
        observe(&decodeTime, from: job.firstToken, to: job.finished)
        observe(&inferenceTime, from: job.placed, to: job.finished)
        if let first = job.firstToken, let last = job.finished, job.outputTokens > 1 {
            timePerOutputToken.observe((last - first).seconds / Double(job.outputTokens - 1))
        }
    }

    private func observe(_ histogram: inout Histogram, from start: Instant?, to end: Instant?) {
        guard let start, let end, start <= end else { return }
        histogram.observe((end - start).seconds)
    }
}
