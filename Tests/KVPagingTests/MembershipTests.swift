import KVPaging
import Messages
import ServingTypes
import Testing

@Suite struct MembershipTests {
    private func membership() -> WorkerMembership {
        WorkerMembership(
            register: Register(
                role: .decode, dataHost: "h", dataPort: 7, blockTokens: 4, blockCount: 8, pageBytes: 64,
                batchJobsMax: 2, stepTokensMax: 16, processID: 1, held: []),
            heartbeatEvery: .milliseconds(100), orphanGrace: .seconds(1))
    }

    private func at(_ milliseconds: Int64) -> Instant { Instant.zero + .milliseconds(milliseconds) }

    @Test func aWorkerRegistersWithWhatItHoldsAndAllItsPages() {
        var member = membership()
        let held = TransferID(job: JobID(high: 1, low: 2), attempt: Attempt(3))
        let said = member.linkUp(held: [held], pages: [page(1)], at: at(0))
        #expect(said.count == 2)
        guard case .register(let register) = said.first, case .kvEvent(let event) = said.last else {
            Issue.record("said \(said)")
            return
        }
        #expect(register.held == [held])
        #expect(event == KVEvent(sequence: 1, change: .snapshot([page(1)])))
    }

    @Test func aLongSnapshotIsToldInParts() {
        var member = membership()
        let pages = (0..<KVEventLimits.pagesMax * 2 + 1).map { page($0) }
        let said = member.linkUp(held: [], pages: pages, at: at(0))
        var told: [PageID] = []
        var sequences: [UInt64] = []
        for case .kvEvent(let event) in said {
            sequences.append(event.sequence)
            switch event.change {
            case .snapshot(let part), .stored(let part): told += part
            case .removed: Issue.record("nothing was removed")
            }
        }
        #expect(told == pages)
        #expect(sequences == [1, 2, 3])
    }

    @Test func heartbeatsKeepTheIntervalThatTheCoordinatorNames() {
        var member = membership()
        #expect(member.heartbeat(at: at(0), load: LoadReport()) == nil, "without a link nothing beats")
        _ = member.linkUp(held: [], pages: [], at: at(0))
        #expect(member.heartbeat(at: at(99), load: LoadReport()) == nil)
        #expect(member.heartbeat(at: at(100), load: LoadReport()) != nil)
        member.registered(RegisterAck(heartbeatEvery: .milliseconds(500), lease: .seconds(1)))
        #expect(member.heartbeat(at: at(300), load: LoadReport()) == nil)
        #expect(member.heartbeat(at: at(600), load: LoadReport()) != nil)
    }

    @Test func anOrphanIsToldSoOnceAfterTheGrace() {
        var member = membership()
        _ = member.linkUp(held: [], pages: [], at: at(0))
        member.linkDown(at: at(10))
        #expect(member.events([.stored([page(1)])]) == [])
        #expect(member.becameOrphan(at: at(1009)) == false)
        #expect(member.becameOrphan(at: at(1010)) == true)
        #expect(member.becameOrphan(at: at(5000)) == false)
    }

    @Test func aDrainIsFinishedOnce() {
        var member = membership()
        #expect(member.finishDrain() == false)
        member.beginDrain(within: .seconds(1), at: at(0))
        #expect(member.isDraining)
        #expect(!member.drainIsDue(at: at(999)))
        #expect(member.drainIsDue(at: at(1000)))
        #expect(member.finishDrain() == true)
        #expect(member.finishDrain() == false)
        #expect(member.isDraining)
    }

    @Test func onlyAHigherAttemptIsAdmitted() {
        var attempts = AttemptGuard()
        let job = JobID(high: 0, low: 1)
        #expect(attempts.admit(TransferID(job: job, attempt: Attempt(2))) == true)
        #expect(attempts.admit(TransferID(job: job, attempt: Attempt(2))) == false)
        #expect(attempts.admit(TransferID(job: job, attempt: Attempt(1))) == false)
        #expect(attempts.admit(TransferID(job: job, attempt: Attempt(3))) == true)
        #expect(attempts.admit(TransferID(job: JobID(high: 0, low: 2), attempt: Attempt(1))) == true)
    }

    @Test func aBoundedMemoryForgetsTheOldestFirst() {
        var memory = BoundedMemory<Int, Int>(capacity: 2)
        memory.remember(10, for: 1)
        memory.remember(20, for: 2)
        memory.remember(11, for: 1)
        memory.remember(30, for: 3)
        #expect(memory[1] == nil)
        #expect(memory[2] == 20)
        #expect(memory[3] == 30)
        #expect(memory.count == 2)
    }
}
