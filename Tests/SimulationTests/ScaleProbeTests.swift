import ServingTypes
import Testing

@testable import Simulation

/// Reads a meter that grows by the same amount with every reading.
@Suite struct ScaleProbeTests {
    private final class Meter {
        var readings = 0

        func read() -> Int {
            readings += 1
            return readings * 6400
        }
    }

    private func probe(_ meter: Meter) -> ScaleProbe {
        var workload = WorkloadTests.small()
        workload.output = .fixed(64)
        return ScaleProbe(shape: ClusterShape(), workload: workload, seed: 1, bytesInUse: meter.read)
    }

    @Test func whatIsHeldMoreIsDividedAmongTheThingsThatWereAdded() {
        let meter = Meter()
        #expect(probe(meter).idleWorker(workers: 10) == 640)
        #expect(probe(meter).waitingJob(jobs: 64) == 100)
        #expect(probe(meter).decodingJob(jobs: 16, jobsPerWorker: 4) == 400)
        #expect(probe(meter).endedJob(jobs: 32) == 200)
        #expect(meter.readings == 8, "two readings of each")
    }
}
