import ServingTypes
import Testing

@testable import ServingMetrics

struct HistogramTests {
    @Test func aValueOnAnEdgeBelongsToThatEdge() {
        var histogram = Histogram(edges: [1, 2, 4])
        for value in [0.5, 1, 1.5, 2, 4, 9] { histogram.observe(value) }
        #expect(histogram.counts == [2, 2, 1, 1])
        #expect(histogram.cumulative == [2, 4, 5, 6])
        #expect(histogram.count == 6)
        #expect(histogram.sum == 18)
    }

    @Test func whatIsNoNumberIsNotCounted() {
        var histogram = Histogram(edges: [1])
        histogram.observe(.nan)
        histogram.observe(.infinity)
        histogram.observe(0.5, times: 0)
        #expect(histogram.count == 0 && histogram.sum == 0)
    }

    @Test func everyEdgeListAscendsAndHoldsThoseOfVLLM() {
        let lists = [
            HistogramEdges.timeToFirstToken, HistogramEdges.timePerToken, HistogramEdges.requestTime,
            HistogramEdges.tokens, HistogramEdges.bytes,
        ]
        for edges in lists { #expect(zip(edges, edges.dropFirst()).allSatisfy { $0 < $1 }) }
        let firstToken = [
            0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80, 160, 640,
            2560,
        ]
        #expect(Set(firstToken).isSubset(of: HistogramEdges.timeToFirstToken))
        let request = [
            0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680,
        ]
        #expect(Set(request).isSubset(of: HistogramEdges.requestTime))
    }

    private func job(_ ending: FinishReason) -> JobObservation {
        var job = JobObservation(ending: ending, promptTokens: 30, outputTokens: 5, received: .zero)
        job.queued = .zero
        job.placed = .zero + .milliseconds(10)
        job.firstToken = .zero + .milliseconds(60)
        job.transferring = .zero + .milliseconds(60)
        job.decoding = .zero + .milliseconds(70)
        job.finished = .zero + .milliseconds(460)
        job.kvBytesMoved = 4096
        return job
    }

    @Test func aFinishedJobIsFoldedIntoEveryLatency() {
        var histograms = ServingHistograms()
        histograms.observe(job(.stop))
        #expect(histograms.endToEnd.sum == 0.46)
        #expect(histograms.queueTime.sum == 0.01)
        #expect(histograms.prefillTime.sum == 0.05)
        #expect(histograms.decodeTime.sum == 0.4)
        #expect(histograms.inferenceTime.sum == 0.45)
        #expect(histograms.transferTime.sum == 0.01)
        #expect(histograms.timePerOutputToken.sum == 0.1)
        #expect(histograms.transferBytes.sum == 4096)
    }

    @Test func aCancelledJobCountsInSizesOnly() {
        var histograms = ServingHistograms()
        histograms.observe(job(.cancelled))
        #expect(histograms.promptTokens.count == 1 && histograms.outputTokens.count == 1)
        #expect(histograms.endToEnd.count == 0 && histograms.decodeTime.count == 0)
    }

    @Test func aGapOverSeveralTokensIsSharedAmongThem() {
        var histograms = ServingHistograms()
        histograms.observe(gap: .milliseconds(30), tokens: 3)
        #expect(histograms.interTokenLatency.count == 3)
        #expect(histograms.interTokenLatency.counts[4] == 3, "each within 10 ms")
    }
}
