import ServingTypes
import Testing

@testable import Scheduling

struct PlacementTests {
    private let placement = PlacementPolicy(PlacementConfiguration())

    private func candidate(
        _ name: String, _ role: WorkerRole, queued: Int = 0, residents: Int = 0, cached: Int = 0, avoided: Bool = false
    ) -> PlacementCandidate {
        PlacementCandidate(
            worker: ref(name), role: role, queuedTokens: queued, residentJobs: residents, cachedTokens: cached,
            avoided: avoided)
    }

    private func ref(_ name: String) -> WorkerRef { WorkerRef(id: WorkerID(name), epoch: Epoch(1)) }

    private func place(
        _ tokens: Int, _ prefill: [PlacementCandidate], _ decode: [PlacementCandidate], localOnly: Bool = false
    ) -> Placement {
        placement.place(
            PlacementRequest(sequenceTokens: tokens, bytesPerToken: 1000, localOnly: localOnly), prefill: prefill,
            decode: decode, costs: CostModel())
    }

    @Test func theShorterPrefillQueueWins() {
        let sources = [candidate("p0", .prefill, queued: 900), candidate("p1", .prefill, queued: 100)]
        #expect(place(500, sources, [candidate("d0", .decode)]) == .pair(prefill: ref("p1"), decode: ref("d0")))
    }

    @Test func aCachedPrefixOutweighsAShortQueue() {
        let sources = [candidate("p0", .prefill), candidate("p1", .prefill, queued: 200, cached: 480)]
        #expect(place(500, sources, [candidate("d0", .decode)]) == .pair(prefill: ref("p1"), decode: ref("d0")))
    }

    @Test func theEmptierDecodeWorkerWinsUnlessPagesAreHeld() {
        let source = [candidate("p0", .prefill)]
        let sinks = [candidate("d0", .decode, residents: 3), candidate("d1", .decode)]
        #expect(place(500, source, sinks) == .pair(prefill: ref("p0"), decode: ref("d1")))
    }

    @Test func tiesGoToTheFirstByName() {
        let sources = [candidate("p0", .prefill), candidate("p1", .prefill)]
        let sinks = [candidate("d0", .decode), candidate("d1", .decode)]
        #expect(place(500, sources, sinks) == .pair(prefill: ref("p0"), decode: ref("d0")))
    }

    @Test func aShortUncachedRestIsPrefilledWhereItDecodes() {
        let source = [candidate("p0", .prefill)]
        #expect(place(63, source, [candidate("d0", .decode)]) == .local(ref("d0")))
        #expect(place(64, source, [candidate("d0", .decode)]) == .pair(prefill: ref("p0"), decode: ref("d0")))
        #expect(place(500, source, [candidate("d0", .decode, cached: 448)]) == .local(ref("d0")))
    }

    @Test func withoutAThresholdNothingIsLocalByLength() {
        var configuration = PlacementConfiguration()
        configuration.localPrefillThreshold = 0
        let decision = PlacementPolicy(configuration).place(
            PlacementRequest(sequenceTokens: 1, bytesPerToken: 0, localOnly: false),
            prefill: [candidate("p0", .prefill)], decode: [candidate("d0", .decode, cached: 1)], costs: CostModel())
        #expect(decision == .pair(prefill: ref("p0"), decode: ref("d0")))
    }

    @Test func mixedWorkersAreAlwaysLocal() {
        #expect(place(5000, [], [candidate("m0", .mixed), candidate("m1", .mixed)]) == .local(ref("m0")))
        let busy = [candidate("d0", .decode), candidate("m0", .mixed, queued: 9000)]
        #expect(place(500, [candidate("p0", .prefill)], busy) == .pair(prefill: ref("p0"), decode: ref("d0")))
    }

    @Test func withoutAPrefillWorkerTheDecodeWorkerDoesItAll() {
        #expect(place(500, [], [candidate("d0", .decode)], localOnly: true) == .local(ref("d0")))
        #expect(place(500, [], [candidate("d0", .decode)]) == .none)
        #expect(place(500, [candidate("p0", .prefill)], []) == .none)
    }

    @Test func aWorkerThatJustFailedTheJobIsTheLastChoice() {
        let sinks = [candidate("d0", .decode, avoided: true), candidate("d1", .decode, residents: 9)]
        #expect(place(500, [candidate("p0", .prefill)], sinks) == .pair(prefill: ref("p0"), decode: ref("d1")))
        #expect(
            place(500, [candidate("p0", .prefill)], [sinks[0]]) == .pair(prefill: ref("p0"), decode: ref("d0")))
    }

    @Test func theCostModelFollowsReports() {
        var costs = CostModel()
        for _ in 0..<200 {
            costs.observePrefill(tokens: 100, time: .milliseconds(400))
            costs.observeDecode(jobs: 4, contextTokens: 400, time: .milliseconds(40))
        }
        #expect(abs(costs.prefill(tokens: 100).milliseconds - 400) < 1)
        #expect(abs(costs.decodeStep(jobs: 4, contextTokens: 400).milliseconds - 40) < 0.1)
        costs.observePrefill(tokens: 0, time: .seconds(9))
        #expect(abs(costs.prefill(tokens: 100).milliseconds - 400) < 1)
    }
}

struct PrefixIndexTests {
    private let worker = WorkerID("d0")
    private func page(_ number: UInt64) -> PageID { PageID(number, 0, 0, 0) }

    @Test func onlyAnUnbrokenPrefixCounts() {
        var index = PrefixIndex()
        index.apply(.stored([page(1), page(2), page(4)]), sequence: 1, from: worker)
        #expect(index.prefixLength(of: [page(1), page(2), page(3), page(4)], on: worker) == 2)
        index.apply(.removed([page(1)]), sequence: 2, from: worker)
        #expect(index.prefixLength(of: [page(1), page(2)], on: worker) == 0)
        #expect(index.entryCount == 2)
    }

    @Test func aGapEmptiesTheWorkerUntilItsNextSnapshot() {
        var index = PrefixIndex()
        index.apply(.stored([page(1)]), sequence: 1, from: worker)
        index.apply(.stored([page(2)]), sequence: 3, from: worker)
        #expect(index.pageCount(of: worker) == 0)
        index.apply(.stored([page(3)]), sequence: 4, from: worker)
        #expect(index.pageCount(of: worker) == 0)
        index.apply(.snapshot([page(1), page(2)]), sequence: 9, from: worker)
        index.apply(.stored([page(3)]), sequence: 10, from: worker)
        #expect(index.prefixLength(of: [page(1), page(2), page(3)], on: worker) == 3)
    }

    @Test func theIndexIsBounded() {
        var index = PrefixIndex(entriesMax: 10)
        index.apply(.stored((0..<50).map(page)), sequence: 1, from: worker)
        #expect(index.entryCount == 10)
        index.forget(worker)
        #expect(index.entryCount == 0)
    }
}
