import ServingTypes
import Testing

@testable import ServingMetrics

struct MetricsPageTests {
    @Test func aFamilyHasHelpAndTypeBeforeItsSamples() {
        var page = MetricsPage()
        page.counter("a_total", "Things.", [.init(3), .init(0.5, [("kind", "x")])])
        #expect(page.text == "# HELP a_total Things.\n# TYPE a_total counter\na_total 3.0\na_total{kind=\"x\"} 0.5\n")
    }

    @Test func labelsAndHelpAreEscaped() {
        var page = MetricsPage()
        page.gauge("g", "one\ntwo \\ \"three\"", [.init(1, [("l", "a\"b\\c\nd")])])
        #expect(page.text == "# HELP g one\\ntwo \\\\ \"three\"\n# TYPE g gauge\ng{l=\"a\\\"b\\\\c\\nd\"} 1.0\n")
    }

    @Test func aHistogramIsCumulativeAndEndsAtInfinity() {
        var histogram = Histogram(edges: [0.5, 1])
        for value in [0.1, 0.7, 8] { histogram.observe(value) }
        var page = MetricsPage()
        page.histogram("h", "H.", histogram, [("m", "x")])
        let expected = """
            # HELP h H.
            # TYPE h histogram
            h_bucket{m="x",le="0.5"} 1
            h_bucket{m="x",le="1.0"} 2
            h_bucket{m="x",le="+Inf"} 3
            h_sum{m="x"} 8.8
            h_count{m="x"} 3

            """
        #expect(page.text == expected)
    }

    @Test func numbersThatAreNoneAreSpelledAsTheFormatWants() {
        #expect(MetricsPage.number(.nan) == "NaN")
        #expect(MetricsPage.number(.infinity) == "+Inf")
        #expect(MetricsPage.number(-.infinity) == "-Inf")
    }

    @Test func theNamesOfVLLMAreAllThere() {
        var page = MetricsPage()
        page.addVLLM(VLLMReadings(), ServingHistograms(), model: "tiny \"quoted\"")
        let names = [
            "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "prefix_cache_queries_total",
            "prefix_cache_hits_total", "num_preemptions_total", "time_to_first_token_seconds",
            "inter_token_latency_seconds", "request_time_per_output_token_seconds", "e2e_request_latency_seconds",
            "request_queue_time_seconds", "request_prefill_time_seconds", "request_decode_time_seconds",
            "request_inference_time_seconds", "prompt_tokens_total", "generation_tokens_total", "request_success_total",
            "cache_config_info",
        ]
        for name in names { #expect(page.text.contains("# TYPE vllm:\(name) "), "\(name)") }
        for reason in ["stop", "length", "abort"] { #expect(page.text.contains("finished_reason=\"\(reason)\"")) }
        #expect(page.text.contains(#"model_name="tiny \"quoted\"""#))
    }

    @Test func everyLineIsACommentOrASampleWithANumber() {
        var page = MetricsPage()
        page.addVLLM(VLLMReadings(), ServingHistograms(), model: "m")
        for line in page.text.split(separator: "\n") where !line.hasPrefix("#") {
            let value = line.split(separator: " ").last.map(String.init) ?? ""
            #expect(Double(value) != nil, "\(line)")
        }
        #expect(page.text.hasSuffix("\n"))
    }
}
