import ServingTypes

/// Gauges and counts that dashboards made for vLLM ask for, beside the histograms.
public struct VLLMReadings: Hashable, Sendable {
    public var running = 0
    public var waiting = 0
    /// Share of the decode workers' pages in use, 0 to 1.
    public var cacheUsage = 0.0
    /// Prompt tokens looked up in prefix caches, and found there.
    public var prefixQueries: UInt64 = 0
    public var prefixHits: UInt64 = 0
    public var preemptions: UInt64 = 0
    public var promptTokens: UInt64 = 0
    public var generationTokens: UInt64 = 0
    public var finishedStop: UInt64 = 0
    public var finishedLength: UInt64 = 0
    public var aborted: UInt64 = 0
    public var blockTokens = 0
    public var blockCount = 0

    public init() {}
}

extension MetricsPage {
    /// vLLM's names (user-experience.md §2.1), so that its dashboards and rules work unchanged.
    public mutating func addVLLM(_ readings: VLLMReadings, _ histograms: ServingHistograms, model: String) {
        let labels: Labels = [("model_name", model), ("engine", "0")]
        gauge("vllm:num_requests_running", "Jobs on workers.", [Sample(readings.running, labels)])
        gauge("vllm:num_requests_waiting", "Jobs that wait for a worker.", [Sample(readings.waiting, labels)])
        gauge(
            "vllm:kv_cache_usage_perc", "Pages in use on decode workers, 1 is all.",
            [Sample(readings.cacheUsage, labels)])
        counter(
            "vllm:prefix_cache_queries_total", "Prompt tokens looked up in prefix caches.",
            [Sample(readings.prefixQueries, labels)])
        counter(
            "vllm:prefix_cache_hits_total", "Prompt tokens found in prefix caches.",
            [Sample(readings.prefixHits, labels)])
        counter("vllm:num_preemptions_total", "Running jobs paused.", [Sample(readings.preemptions, labels)])
        counter("vllm:prompt_tokens_total", "Prompt tokens prefilled.", [Sample(readings.promptTokens, labels)])
        counter("vllm:generation_tokens_total", "Tokens given out.", [Sample(readings.generationTokens, labels)])
        counter(
            "vllm:request_success_total", "Jobs by how they ended.",
            [
                Sample(readings.finishedStop, labels + [("finished_reason", "stop")]),
                Sample(readings.finishedLength, labels + [("finished_reason", "length")]),
                Sample(readings.aborted, labels + [("finished_reason", "abort")]),
            ])
        gauge(
            "vllm:cache_config_info", "Configuration of the page pools.",
            [
                Sample(
                    1,
                    labels + [
                        ("block_size", "\(readings.blockTokens)"), ("num_gpu_blocks", "\(readings.blockCount)"),
                    ])
            ])
        addVLLMHistograms(histograms, labels)
    }

    private mutating func addVLLMHistograms(_ histograms: ServingHistograms, _ labels: Labels) {
        histogram(
            "vllm:time_to_first_token_seconds", "Arrival to first token.", histograms.timeToFirstToken, labels)
        histogram(
            "vllm:inter_token_latency_seconds", "Gap between two tokens.", histograms.interTokenLatency, labels)
        histogram(
            "vllm:request_time_per_output_token_seconds", "Mean gap of one job.", histograms.timePerOutputToken, labels)
        histogram("vllm:e2e_request_latency_seconds", "Arrival to last token.", histograms.endToEnd, labels)
        histogram("vllm:request_queue_time_seconds", "Waiting for a worker.", histograms.queueTime, labels)
        histogram("vllm:request_prefill_time_seconds", "Placed to first token.", histograms.prefillTime, labels)
        histogram("vllm:request_decode_time_seconds", "First token to last.", histograms.decodeTime, labels)
        histogram("vllm:request_inference_time_seconds", "Placed to last token.", histograms.inferenceTime, labels)
        histogram("vllm:request_prompt_tokens", "Prompt sizes.", histograms.promptTokens, labels)
        histogram("vllm:request_generation_tokens", "Output sizes.", histograms.outputTokens, labels)
    }
}
